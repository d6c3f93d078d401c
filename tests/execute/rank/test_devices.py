"""What a process sees of GPUs, from sources that answer, answer oddly, or fail."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from stanza_sim.execute.rank import devices
from stanza_sim.execute.rank.devices import Clocks, GpuInfo, plain_uuid, provenance, version_in, visible

UUID = "8d2a52b6-1e47-9c11-3b1f-0123456789ab"
SMI = f"0, GPU-{UUID}, NVIDIA H100 80GB HBM3, 81559, 9.0\n1, GPU-f{UUID[1:]}, Tesla K80, [N/A], [N/A]\n"
INFORMATION = f"Model: \t\t NVIDIA H100 PCIe\nIRQ:   \t\t 64\nGPU UUID: \t GPU-{UUID}\n"
GPU = GpuInfo(index=0, uuid=UUID, name="NVIDIA H100 PCIe")


@pytest.fixture(autouse=True)
def nothing_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No source of this machine answers."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(devices.shutil, "which", lambda name: None)
    monkeypatch.setattr(devices, "DRIVER", tmp_path / "nvidia")
    devices.driver_version.cache_clear()


def smi(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Let `nvidia-smi` answer with `text`."""

    def answer(command: list[str], **how: object) -> SimpleNamespace:
        assert how["timeout"]
        fields = command[1].removeprefix("--query-gpu=").split(",")
        return SimpleNamespace(stdout=text if fields != ["driver_version"] else "580.95.05\n580.95.05\n")

    monkeypatch.setattr(devices.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(devices.subprocess, "run", answer)


def test_torch_tells_all_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(
        name="NVIDIA H100 80GB HBM3",
        major=9,
        minor=0,
        total_memory=85_024_112_640,
        uuid=f"GPU-{UUID.upper()}",
        memory_clock_rate=2_619_000,
        memory_bus_width=5120,
    )
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    first, second = visible()
    assert (first.uuid, first.capability, first.memory_nbytes, first.form) == (UUID, (9, 0), 85_024_112_640, "SXM")
    assert first.bandwidth_Bps == pytest.approx(3.352e12, rel=1e-3)  # the data sheet says 3.35 TB/s
    assert second.index == 1
    del properties.uuid, properties.memory_clock_rate
    assert (visible()[0].uuid, visible()[0].bandwidth_Bps) == (None, None)


def test_a_torch_that_fails_sees_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise RuntimeError("CUDA error: unknown error")

    monkeypatch.setattr(torch.cuda, "device_count", fail)
    assert visible() == ()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", fail)
    assert visible() == ()


def test_a_machine_without_gpus() -> None:
    assert devices.on_machine({}) == ()
    assert devices.driver_version() is None
    assert devices.clocks_of(GPU) == Clocks()


def test_the_kernel_is_asked(tmp_path: Path) -> None:
    for number in ("0000:1b:00.0", "0000:43:00.0"):
        folder = tmp_path / "nvidia" / "gpus" / number
        folder.mkdir(parents=True)
        (folder / "information").write_text(INFORMATION if "1b" in number else "Model: Tesla K80\nGPU UUID: GPU-???\n")
    first, second = devices.on_machine({})
    assert (first.index, first.uuid, first.name, first.form) == (0, UUID, "NVIDIA H100 PCIe", "PCIe")
    assert (second.index, second.uuid, second.name) == (1, None, "Tesla K80")
    line = (
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\nGCC version: 12.3.0"
    )
    (tmp_path / "nvidia" / "version").write_text(line)
    assert devices.driver_version() == "535.104.05"


def test_nvidia_smi_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    smi(monkeypatch, SMI)
    first, second = devices.on_machine({})
    assert (first.uuid, first.memory_nbytes, first.capability) == (UUID, 81559 * 2**20, (9, 0))
    assert (second.name, second.memory_nbytes, second.capability) == ("Tesla K80", None, None)
    assert devices.driver_version() == "580.95.05"
    smi(monkeypatch, "1410, 1980, 2619, 2619, [N/A], 2619\n")
    assert devices.clocks_of(GPU) == Clocks(
        sm=1410, sm_max=1980, memory=2619, memory_max=2619, application_sm=None, application_memory=2619
    )


def test_nvml_is_asked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    smi(monkeypatch, SMI)

    def unsupported(*_: object) -> int:
        raise RuntimeError("Not Supported")

    nvml = SimpleNamespace(
        NVML_CLOCK_SM=1,
        NVML_CLOCK_MEM=2,
        NVML_CLOCK_GRAPHICS=0,
        nvmlInit=lambda: None,
        nvmlSystemGetDriverVersion=lambda: b"570.1.2",
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetUUID=lambda handle: f"GPU-{UUID}",
        nvmlDeviceGetName=lambda handle: b"NVIDIA H100 NVL",
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(total=10**11),
        nvmlDeviceGetCudaComputeCapability=lambda handle: (9, 0),
        nvmlDeviceGetClockInfo=lambda handle, kind: 1000 * kind,
        nvmlDeviceGetMaxClockInfo=lambda handle, kind: 2000 * kind,
        nvmlDeviceGetApplicationsClock=unsupported,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    (only,) = devices.on_machine({})
    assert (only.name, only.form, only.uuid, only.memory_nbytes) == ("NVIDIA H100 NVL", "NVL", UUID, 10**11)
    assert devices.driver_version() == "570.1.2"
    assert devices.clocks_of(GPU) == Clocks(sm=1000, sm_max=2000, memory=2000, memory_max=4000)


@pytest.mark.parametrize(
    ("mask", "left"),
    [
        (None, [0, 1]),
        ("", []),
        ("1", [1]),
        ("1, 0", [1, 0]),
        ("0,7,1", [0]),  # as CUDA reads it: what follows a wrong entry is invisible
        ("0,0", [0]),
        ("-1", []),
        (f"GPU-{UUID}", [0]),
        ("GPU-8d2a", [0]),
        ("GPU-f", [1]),
        ("GPU-", []),
        ("NoDevFiles", []),
    ],
)
def test_masks(monkeypatch: pytest.MonkeyPatch, mask: str | None, left: list[int]) -> None:
    smi(monkeypatch, SMI)
    found = devices.on_machine({} if mask is None else {"CUDA_VISIBLE_DEVICES": mask})
    assert [g.index for g in found] == left


def test_provenance_never_fails_and_says_what_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    found = provenance(GPU)
    assert (found.driver, found.gpu) == (None, GPU)
    assert found.tf32_matmul in ("none", "ieee", "tf32")
    assert found.tf32_convolutions in ("none", "ieee", "tf32")
    smi(monkeypatch, "1410, 1980, 2619, 2619, [N/A], 2619\n")
    devices.driver_version.cache_clear()
    text = provenance(GPU).as_text()
    assert text["device"] == "NVIDIA H100 PCIe"
    assert (text["form"], text["driver"]) == ("PCIe", "580.95.05")
    assert text["SM clock"] == "1410 MHz now, 1980 MHz at most"
    assert text["memory clock"].endswith("2619 MHz set for applications")
    assert "memory" not in text


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build", "580.95.05"),
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.57.02  Tue Jul 13", "470.57.02"),
        ("something else 123.45", None),
    ],
)
def test_the_version_of_the_kernel_module(text: str, version: str | None) -> None:
    assert version_in(text) == version


def test_uuids_have_one_form_and_cudnn_has_a_dotted_version() -> None:
    assert {plain_uuid(t) for t in (UUID, f"GPU-{UUID}", f"gpu-{UUID.upper()} ")} == {UUID}
    assert devices._dotted(91_002) == "9.10.2"
    assert devices._dotted(8_902) == "8.9.2"
    assert devices._dotted(None) is None
