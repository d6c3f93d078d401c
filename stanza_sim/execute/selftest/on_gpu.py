"""The checks on one GPU: what it is, lanes, copies, staged training, what runs beside what, and repeats.

Their logic is in `on_device`, which tests try on the stand-in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from stanza_sim.base.files import read_json, write_whole
from stanza_sim.base.units import format_bytes, format_time
from stanza_sim.execute.rank import devices
from stanza_sim.execute.rank.accelerator import Cuda
from stanza_sim.execute.rank.context import Context
from stanza_sim.execute.rank.decision import Seat
from stanza_sim.execute.rank.interfaces import Beat
from stanza_sim.execute.rank.job import Array, Backend, RankReport, RunJob
from stanza_sim.execute.selftest import on_device
from stanza_sim.execute.selftest.on_cores import off_by, try_buffers
from stanza_sim.execute.selftest.outcome import Here, Wrong, require
from stanza_sim.execute.selftest.tasks import on_a_thread
from stanza_sim.execute.selftest.variants import job_of, schedule_of, tiny
from stanza_sim.execute.start.fit import fitting
from stanza_sim.execute.start.launch import Pool
from stanza_sim.execute.start.measure import merge
from stanza_sim.execute.start.worker import run_job
from stanza_sim.execute.train.arithmetic import set_fp32

SIZES = (4, 4096, 65_536, 1 << 20, 1 << 24, 1 << 27, 512_000_000)
"""Bytes of the copies that are timed."""
ON_GPU_TOLERANCE = 1e-3
"""As `variants.TOLERANCE`, for strict fp32 whose products a GPU sums in another order than the reference's cores."""
TF32_CAPABILITY = (8, 0)
"""From this compute capability on there is TF32 (CUDA C++ Programming Guide, compute capabilities)."""


def first() -> torch.device:
    """The GPU, the only visible one, made current."""
    device = torch.device("cuda:0")
    torch.cuda.set_device(device)
    return device


def sharing(ranks: int) -> dict[str, Any]:
    """What a pool is told whose ranks share the GPU."""
    return {"seats": [Seat(host=0, device=0, name="this GPU")] * ranks}


# --- 0: provenance ---------------------------------------------------------------------------------------------------


def provenance(here: Here) -> None:
    """What GPU it is, which goes to `machine.json`; the topology that fits it; TF32 can be set and is obeyed."""
    with here.check("gpu:provenance") as said:
        device = first()
        about = described()
        known = read_json(here.folder / "machine.json", expected="what the session wrote")
        known = {**known, "gpu": about} if isinstance(known, dict) else {"gpu": about}
        write_whole(json.dumps(known, indent=2) + "\n", here.folder / "machine.json")
        words = [about["device"], f"driver {about.get('driver', 'unknown')}", topology()]
        if torch.cuda.get_device_capability(device) >= TF32_CAPABILITY:
            words.append(tf32_obeyed(device))
        said.detail = "; ".join(words)


def described() -> dict[str, str]:
    """What is known of the GPU and what runs on it, as text by name."""
    found = devices.visible()
    require(len(found) == 1, f"{len(found)} GPUs are visible to the check, and it is for one")
    return devices.provenance(found[0]).as_text()


def topology() -> str:
    """Which shipped topology fits one host with this GPU."""
    option = fitting([devices.visible()])
    return "no shipped topology has this GPU" if option is None else f"use {option}"


def tf32_obeyed(device: torch.device) -> str:
    """How far products are off in strict fp32 and in TF32, which must be more. Raises `Wrong`."""
    generator = torch.Generator().manual_seed(3)
    a, b = (torch.randn((512, 512), generator=generator, dtype=torch.float64) for _ in range(2))
    images = a.view(4, 64, 32, 32)
    filters = b[:64, :].reshape(64, 64, 8, 1)[:, :, :3].contiguous()
    exact = {"product": a @ b, "convolution": torch.nn.functional.conv2d(images, filters)}
    words = []
    for name, wanted in exact.items():
        off = {}
        for precision in ("ieee", "tf32"):
            set_fp32(precision)
            x, y = (images, filters) if name == "convolution" else (a, b)
            x, y = x.to(device, torch.float32), y.to(device, torch.float32)
            got = torch.nn.functional.conv2d(x, y) if name == "convolution" else x @ y
            off[precision] = float((got.cpu().double() - wanted).abs().max() / wanted.abs().max())
        set_fp32("ieee")
        require(off["ieee"] < 1e-5, f"a {name} in strict fp32 is off by {off['ieee']:.0e}, as with TF32")
        require(off["tf32"] > 4 * off["ieee"], f"TF32 has no effect on a {name}: off by {off['tf32']:.0e}")
        words.append(f"{name} {off['ieee']:.0e} and {off['tf32']:.0e}")
    return f"off in strict fp32 and in TF32: {', '.join(words)}"


# --- 1 and 2: lanes and copies ---------------------------------------------------------------------------------------


def lanes(here: Here) -> None:
    """A sleeping kernel of one lane delays no other; gradients from another thread are right."""
    with here.check("gpu:lanes") as said:
        device = first()
        accelerator = Cuda(device)
        said.detail = on_device.overtakes(accelerator, on_device.cuda_sleep(device))
        said.detail += f"; {on_device.gradients_elsewhere(accelerator)}"


def copies(here: Here) -> None:
    """Copies through page-locked memory are bitwise right; their times go to `copies.json`."""
    with here.check("gpu:copies") as said:
        accelerator = Cuda(first())
        on_a_thread(lambda: try_buffers(accelerator), accelerator.start_thread)
        found = []
        for size in SIZES:
            here.note(f"{size} bytes")
            found.append(on_a_thread(partial(on_device.copies, accelerator, size), accelerator.start_thread))
            write_whole(json.dumps([asdict(one) for one in found], indent=1) + "\n", here.folder / "copies.json")
        least, most = found[0], found[-1]
        rates = f"{most.nbytes / most.out_s / 1e9:.1f} GB/s out, {most.nbytes / most.in_s / 1e9:.1f} GB/s in"
        said.detail = (
            f"right; {format_time(least.out_wait_s)} for {least.nbytes} bytes out, {rates}; "
            f"{format_time(most.allocation_s)} to lock {format_bytes(most.nbytes)}"
        )


# --- 3: staged training ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StagedOnGpu:
    """Run a job over staged gloo in strict fp32."""

    job: RunJob

    def __call__(self, context: Context, beat: Beat) -> RankReport | None:
        """This rank's report."""
        set_fp32("ieee")
        return run_job(replace(self.job, backend=Backend.GLOO), context, beat)


def staged(here: Here) -> None:
    """Four ranks train on the one GPU, over staged gloo, and equal single-process SGD."""
    with Pool(4, timeout_s=here.limit_s / 2, kind="cuda", **sharing(4)) as pool:
        here.note("starting ranks")
        pool.start()
        for name in here.names:
            with here.check(name) as said:
                said.detail = off_by(name.rpartition(":")[2], StagedOnGpu, pool, ON_GPU_TOLERANCE)


# --- 8: computation beside copies ------------------------------------------------------------------------------------


def beside(here: Here) -> None:
    """How much slower products of matrices and copies are beside each other; all of it goes to `beside.json`."""
    with here.check("gpu:beside") as said:
        set_fp32("ieee")
        accelerator = Cuda(first())
        found = on_device.beside(accelerator, width=4096, nbytes=1 << 26, seconds=1.0)
        write_whole(json.dumps(found, indent=1) + "\n", here.folder / "beside.json")
        said.detail = "times as long: " + "; ".join(_slower(row) for row in found.values())


def _slower(row: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {slower:.2f}" for name, slower in row.items())


# --- 9: repeats ------------------------------------------------------------------------------------------------------


def repeats(here: Here) -> None:
    """Two runs give the same bits: by default that is told, with `deterministic` it must be so."""
    for name in here.names:
        with here.check(name) as said:
            deterministic = name.endswith(":deterministic")
            options: dict[str, Any] = {"deterministic": True} if deterministic else {}
            said.detail = repeated(options, here)


def repeated(options: Mapping[str, Any], here: Here) -> str:
    """Train twice, and say whether parameters are bitwise equal; raises `Wrong` where they must be and are not."""
    model = tiny()
    job = job_of(model, schedule_of(model, "all_reduce", 2, {}), timeout_s=here.limit_s / 2, **options)
    runs: list[Mapping[str, Array]] = []
    with Pool(2, timeout_s=here.limit_s / 2, kind="cuda", **options, **sharing(2)) as pool:
        for _ in range(2):
            measured = merge(job, [r for r in pool.run(StagedOnGpu(job)) if r is not None])
            runs.append(measured.parameters or {})
    apart = differing(*runs)
    if not apart:
        return "two runs are bitwise equal"
    if options:
        raise Wrong(f"two deterministic runs differ in {', '.join(apart)}")
    return f"two runs differ in {len(apart)} of {len(runs[0])} tensors: set deterministic to have them equal"


def differing(one: Mapping[str, Array], other: Mapping[str, Array]) -> list[str]:
    """The tensors of which two runs have other bits."""
    require(bool(one) and one.keys() == other.keys(), "the runs have not returned the same parameters")
    return [name for name, values in one.items() if not np.array_equal(_bits(values), _bits(other[name]))]


def _bits(values: Array) -> Array:
    return np.ascontiguousarray(values).view(np.uint8)
