"""The GPUs that a process sees, and where what is known of one comes from: torch, NVML, `nvidia-smi` or the kernel.

No torch at the top: the parent of local ranks asks too. A source that fails gives None, or nothing; it never raises.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

DRIVER = Path("/proc/driver/nvidia")
"""What NVIDIA's kernel module says of itself and, in `gpus/*/information`, of its devices."""
ASKING_S = 10.0
"""How long `nvidia-smi` may take: without a persistent driver it initialises every GPU first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuInfo:
    """A GPU as this process numbers it (`index`, after CUDA_VISIBLE_DEVICES).

    `uuid` is the same in every process and on every host, without the prefix `GPU-`; None where nothing tells it.
    `capability` is CUDA's compute capability, (major, minor). `bandwidth_Bps` is that of the memory, twice its clock
    times the width of its bus (CUDA C++ Best Practices Guide, "Theoretical Bandwidth Calculation"). Memory, capability
    and bandwidth are None where only the kernel could be asked.
    """

    index: int
    uuid: str | None
    name: str
    memory_nbytes: int | None = None
    capability: tuple[int, int] | None = None
    bandwidth_Bps: float | None = None

    @property
    def form(self) -> str | None:
        """Its form factor; see `form_factor`."""
        return form_factor(self.name)

    @property
    def is_slice(self) -> bool:
        """Whether it is a part of a GPU that MIG (Multi-Instance GPU) divides."""
        return (self.form or "").startswith("MIG")


@dataclass(frozen=True, slots=True, kw_only=True)
class Clocks:
    """Clocks of a GPU in MHz: of its multiprocessors (SM) and its memory, now and at most, and as applications set."""

    sm: int | None = None
    sm_max: int | None = None
    memory: int | None = None
    memory_max: int | None = None
    application_sm: int | None = None
    application_memory: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """On what something was measured: the device, its driver, its clocks, and the libraries and switches in force.

    `tf32_matmul` and `tf32_convolutions` are torch's precisions for fp32 (`ieee`, `tf32`, or `none` where nothing is
    set). What no source tells is None.
    """

    gpu: GpuInfo
    driver: str | None = None
    cuda: str | None = None
    cudnn: str | None = None
    nccl: str | None = None
    clocks: Clocks = Clocks()
    tf32_matmul: str | None = None
    tf32_convolutions: str | None = None

    def as_text(self) -> dict[str, str]:
        """What is known, by name, as text with units: for profiles and tables."""
        gpu, clocks = self.gpu, self.clocks
        found: dict[str, object] = {
            "device": gpu.name,
            "uuid": gpu.uuid,
            "form": gpu.form,
            "memory": None if gpu.memory_nbytes is None else f"{gpu.memory_nbytes / 2**30:.1f} GiB",
            "memory bandwidth": None if gpu.bandwidth_Bps is None else f"{gpu.bandwidth_Bps / 1e9:.0f} GB/s",
            "capability": None if gpu.capability is None else ".".join(map(str, gpu.capability)),
            "driver": self.driver,
            "CUDA": self.cuda,
            "cuDNN": self.cudnn,
            "NCCL": self.nccl,
            "SM clock": _clock(clocks.sm, clocks.sm_max, clocks.application_sm),
            "memory clock": _clock(clocks.memory, clocks.memory_max, clocks.application_memory),
            "TF32 of matmul": self.tf32_matmul,
            "TF32 of convolutions": self.tf32_convolutions,
        }
        return {name: str(value) for name, value in found.items() if value is not None}


def _clock(current: int | None, most: int | None, application: int | None) -> str | None:
    words = [(current, "now"), (most, "at most"), (application, "set for applications")]
    return ", ".join(f"{value} MHz {when}" for value, when in words if value is not None) or None


def form_factor(name: str) -> str | None:
    """How a GPU is built in, as far as the driver's name tells: `SXM`, `PCIe`, `NVL`, `MIG 1g.10gb`; else None.

    NVIDIA's driver calls the SXM part of the H100 by its memory alone (`NVIDIA H100 80GB HBM3`), while the other
    parts say what they are (`NVIDIA H100 PCIe`, `NVIDIA H100 NVL`, `NVIDIA A100-SXM4-40GB`, `Tesla V100-PCIE-16GB`).

    >>> [form_factor(n) for n in ("NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "NVIDIA H100 80GB HBM3 MIG 1g.10gb")]
    ['SXM', 'PCIe', 'MIG 1g.10gb']
    """
    if (slice_of := re.search(r"\bMIG (\S+)", name)) is not None:
        return f"MIG {slice_of[1]}"
    words = words_of(name)
    for form, spelt in (("SXM", r"sxm\d?"), ("PCIe", "pcie"), ("NVL", "nvl"), ("SXM", "hbm3")):
        if any(re.fullmatch(spelt, word) for word in words):
            return form
    return None


def words_of(name: str) -> list[str]:
    """The words of a device's name in lower case: `Tesla V100-SXM2-16GB` has tesla, v100, sxm2 and 16gb."""
    return [word for word in re.split(r"[\s_-]+", name.lower()) if word]


def visible() -> tuple[GpuInfo, ...]:
    """The GPUs that torch may use in this process, by its numbers; none where it has no CUDA or finds no driver."""
    return tuple(g for g in (_seen(i) for i in range(_try(_count) or 0)) if g is not None)


def _count() -> int:
    import torch

    return torch.cuda.device_count()


def _seen(index: int) -> GpuInfo | None:
    def ask() -> GpuInfo:
        import torch

        found = torch.cuda.get_device_properties(index)
        clock_kHz, width_bits = getattr(found, "memory_clock_rate", 0), getattr(found, "memory_bus_width", 0)
        uuid = getattr(found, "uuid", None)
        return GpuInfo(
            index=index,
            uuid=None if uuid is None else plain_uuid(str(uuid)),
            name=found.name,
            memory_nbytes=found.total_memory,
            capability=(found.major, found.minor),
            bandwidth_Bps=2e3 * clock_kHz * width_bits / 8 or None,
        )

    return _try(ask)


def plain_uuid(text: str) -> str:
    """A UUID as torch writes it, of one with NVML's prefix `GPU-` (or `MIG-`)."""
    return re.sub(r"^(gpu|mig)-", "", text.strip().lower())


# --- without torch ---------------------------------------------------------------------------------------------------


def on_machine(environment: Mapping[str, str] | None = None) -> tuple[GpuInfo, ...]:
    """The GPUs of this machine that CUDA_VISIBLE_DEVICES leaves visible, without torch.

    By pynvml or the kernel, which take no time; where neither knows any (as under WSL), by `nvidia-smi`.
    """
    masks = os.environ if environment is None else environment
    return _unmasked(_try(_by_pynvml) or _try(_by_kernel) or _try(_by_smi) or (), masks.get("CUDA_VISIBLE_DEVICES"))


def _by_pynvml() -> tuple[GpuInfo, ...]:
    nvml = _nvml()
    found = []
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        found.append(
            GpuInfo(
                index=index,
                uuid=plain_uuid(_text(nvml.nvmlDeviceGetUUID(handle))),
                name=_text(nvml.nvmlDeviceGetName(handle)),
                memory_nbytes=int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
                capability=tuple(nvml.nvmlDeviceGetCudaComputeCapability(handle)),
            )
        )
    return tuple(found)


def _by_smi() -> tuple[GpuInfo, ...]:
    found = []
    for index, uuid, name, memory_MiB, capability in ask_smi(("index", "uuid", "name", "memory.total", "compute_cap")):
        major, _, minor = capability.partition(".")
        found.append(
            GpuInfo(
                index=int(index),
                uuid=plain_uuid(uuid),
                name=name,
                memory_nbytes=int(memory_MiB) * 2**20 if memory_MiB.isdigit() else None,
                capability=(int(major), int(minor)) if major.isdigit() and minor.isdigit() else None,
            )
        )
    return tuple(found)


def _by_kernel() -> tuple[GpuInfo, ...]:
    found = []
    for index, path in enumerate(sorted((DRIVER / "gpus").glob("*/information"))):
        lines = (line.partition(":") for line in path.read_text(encoding="utf-8").splitlines())
        about = {key.strip(): value.strip() for key, _, value in lines}
        uuid = about.get("GPU UUID", "?")
        found.append(
            GpuInfo(index=index, uuid=None if "?" in uuid else plain_uuid(uuid), name=about.get("Model", "GPU"))
        )
    return tuple(found)


def _unmasked(gpus: Sequence[GpuInfo], mask: str | None) -> tuple[GpuInfo, ...]:
    """Those of `gpus` that CUDA_VISIBLE_DEVICES names by number or by (the beginning of) UUID, up to a wrong entry."""
    if mask is None:
        return tuple(gpus)
    found: list[GpuInfo] = []
    for entry in (part.strip() for part in mask.split(",")):
        if entry.isdigit():
            named = [g for g in gpus if g.index == int(entry)]
        else:
            named = [g for g in gpus if entry.startswith("GPU-") and (g.uuid or "").startswith(plain_uuid(entry))]
        if len(named) != 1 or named[0] in found:
            break
        found += named
    return tuple(found)


def ask_smi(fields: Sequence[str], uuid: str | None = None) -> list[list[str]]:
    """What `nvidia-smi` says of every GPU, or of one: a value for each of `fields`. Raises what asking raises."""
    program = shutil.which("nvidia-smi")
    if program is None:
        raise FileNotFoundError("nvidia-smi")
    command = [program, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    if uuid is not None:
        command += ["-i", f"GPU-{uuid}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=ASKING_S, check=True)
    rows = [[cell.strip() for cell in row] for row in csv.reader(done.stdout.splitlines())]
    return [row for row in rows if len(row) == len(fields)]


def _nvml() -> Any:
    """pynvml, which need not be installed and has no types, ready to be asked."""
    import pynvml  # type: ignore[import-not-found, import-untyped, unused-ignore]

    pynvml.nvmlInit()
    return pynvml


def _text(value: str | bytes) -> str:
    """Older versions of pynvml answer with bytes."""
    return value.decode() if isinstance(value, bytes) else value


def _try(ask: Callable[[], T]) -> T | None:
    """What `ask` returns; None if it fails, for whatever reason: what it asks is no part of this program."""
    with suppress(Exception):
        return ask()
    return None


# --- provenance ------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def driver_version() -> str | None:
    """The version of NVIDIA's driver: by NVML, else `nvidia-smi`, else the kernel; None without one."""
    return (
        _try(lambda: _text(_nvml().nvmlSystemGetDriverVersion()))
        or _try(lambda: ask_smi(["driver_version"])[0][0])
        or _try(lambda: version_in((DRIVER / "version").read_text(encoding="utf-8")))
    )


def version_in(text: str) -> str | None:
    """The driver's version in what `/proc/driver/nvidia/version` says.

    >>> version_in("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build")
    '580.95.05'
    """
    found = re.search(r"NVRM version:.*?\b(\d{3}\.\d+(?:\.\d+)?)\b", text)
    return None if found is None else found[1]


_CLOCKS = ("sm", "max.sm", "mem", "max.mem", "applications.gr", "applications.mem")


def clocks_of(gpu: GpuInfo) -> Clocks:
    """The clocks of `gpu`, by NVML or `nvidia-smi`."""
    found = _try(lambda: _clocks_by_pynvml(gpu)) or _try(lambda: _clocks_by_smi(gpu)) or (None,) * len(_CLOCKS)
    sm, sm_max, memory, memory_max, application_sm, application_memory = found
    return Clocks(
        sm=sm,
        sm_max=sm_max,
        memory=memory,
        memory_max=memory_max,
        application_sm=application_sm,
        application_memory=application_memory,
    )


def _clocks_by_pynvml(gpu: GpuInfo) -> tuple[int | None, ...]:
    nvml = _nvml()
    handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{gpu.uuid}".encode())
    sm, memory = nvml.NVML_CLOCK_SM, nvml.NVML_CLOCK_MEM
    return (
        _try(lambda: int(nvml.nvmlDeviceGetClockInfo(handle, sm))),
        _try(lambda: int(nvml.nvmlDeviceGetMaxClockInfo(handle, sm))),
        _try(lambda: int(nvml.nvmlDeviceGetClockInfo(handle, memory))),
        _try(lambda: int(nvml.nvmlDeviceGetMaxClockInfo(handle, memory))),
        _try(lambda: int(nvml.nvmlDeviceGetApplicationsClock(handle, nvml.NVML_CLOCK_GRAPHICS))),
        _try(lambda: int(nvml.nvmlDeviceGetApplicationsClock(handle, memory))),
    )


def _clocks_by_smi(gpu: GpuInfo) -> tuple[int | None, ...]:
    (row,) = ask_smi([f"clocks.{name}" for name in _CLOCKS], gpu.uuid)
    return tuple(int(cell) if cell.isdigit() else None for cell in row)


def provenance(gpu: GpuInfo) -> Provenance:
    """What can be known of `gpu` and of what runs on it, in a process that has torch."""
    import torch

    return Provenance(
        gpu=gpu,
        driver=driver_version(),
        cuda=_try(lambda: torch.version.cuda),
        cudnn=_try(_cudnn_version),
        nccl=_try(_nccl_version),
        clocks=clocks_of(gpu),
        tf32_matmul=_try(lambda: str(torch.backends.cuda.matmul.fp32_precision)),
        tf32_convolutions=_try(_tf32_of_convolutions),
    )


def _tf32_of_convolutions() -> str:
    import torch

    return str(torch.backends.cudnn.conv.fp32_precision)  # type: ignore[attr-defined]


def _nccl_version() -> str:
    import torch

    found: tuple[object, ...] = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
    return ".".join(map(str, found))


def _cudnn_version() -> str | None:
    import torch

    return _dotted(torch.backends.cudnn.version())  # type: ignore[no-untyped-call]


def _dotted(number: int | None) -> str | None:
    """cuDNN's version as people write it: from 9 on major * 10000 + minor * 100 + patch, before major * 1000 + ..."""
    if number is None:
        return None
    major = number // 10_000 if number >= 90_000 else number // 1_000
    rest = number - major * (10_000 if number >= 90_000 else 1_000)
    return f"{major}.{rest // 100}.{rest % 100}"
