"""The checks that need no GPU: versions, gloo, training, staging, and training on imitated GPUs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import torch
import torch.distributed as dist

from stanza_sim.base.processes import cores
from stanza_sim.base.units import format_bytes, format_time
from stanza_sim.execute.calibrate.calibration import measure_loopback
from stanza_sim.execute.rank.accelerator import Accelerator
from stanza_sim.execute.rank.job import Backend, Measurement, RankReport, RunJob
from stanza_sim.execute.rank.staging import LEAST_BYTES, HostBuffers
from stanza_sim.execute.selftest.outcome import Here, require
from stanza_sim.execute.selftest.tasks import GlooTask, StagedTask, on_a_thread, pattern
from stanza_sim.execute.selftest.variants import TOLERANCE, chosen, expected_bytes, job_of, schedule_of, tiny
from stanza_sim.execute.standin.device import Standin
from stanza_sim.execute.standin.task import OnStandin
from stanza_sim.execute.start.launch import Pool
from stanza_sim.execute.start.measure import merge
from stanza_sim.execute.start.protocol import Task
from stanza_sim.execute.start.tasks import RunTask
from stanza_sim.execute.train.reference import largest_deviation, train

LEAST_TORCH = (2, 11)
"""The oldest version that the package supports (the extra `torch`)."""


def versions(here: Here) -> None:
    """Torch is there, new enough, and has gloo; so is what the shipped models and data need."""
    with here.check("versions") as said:
        number = torch.__version__.split("+")[0]
        known = tuple(int(part) for part in number.split(".")[:2])
        require(known >= LEAST_TORCH, f"torch {number} is too old; pip install 'stanza-sim[torch]'")
        require(dist.is_available() and dist.is_gloo_available(), f"torch {number} has no gloo, and ranks need it")
        missing = [name for name in ("torchvision", "sklearn") if find_spec(name) is None]
        require(not missing, f"{' and '.join(missing)} missing; pip install 'stanza-sim[torch]'")
        nccl = "NCCL" if dist.is_nccl_available() else "no NCCL"
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
        said.detail = f"torch {number}, {built}, gloo, {nccl}; {cores()} cores"


def ranks(here: Here) -> None:
    """All that needs ranks: `gloo`, `train:VARIANT`, `staging` and `standin:VARIANT`, on one pool."""
    worlds = [chosen(name.partition(":")[2])[2] for name in here.names if ":" in name]
    with Pool(max([2, *worlds]), timeout_s=here.limit_s / 2) as pool:
        here.note("starting ranks")
        pool.start()
        for name in here.names:
            kind, _, variant = name.partition(":")
            with here.check(name) as said:
                match kind:
                    case "gloo":
                        said.detail = gloo(pool)
                    case "train":
                        said.detail = off_by(variant, RunTask, pool)
                    case "staging":
                        said.detail = staging(pool)
                    case _:
                        said.detail = standin(variant, pool)


def gloo(pool: Pool) -> str:
    """Ranks exchange and sum known values, and two of them time single messages."""
    pool.run(GlooTask())
    found = measure_loopback(pool, Backend.GLOO)
    if found is None:
        return "messages and sums are right"
    took, rate = format_time(found.latency_s), f"{found.bandwidth_Bps / 1e9:.2f} GB/s"
    return f"messages and sums are right; a message takes {took}, bytes pass at {rate}"


def standin(variant: str, pool: Pool) -> str:
    """What is trained on imitated GPUs equals single-process SGD, with NCCL and with staged gloo."""
    backends = (("NCCL", Backend.NCCL), ("staged", Backend.GLOO))
    return "; ".join(f"{word}: {off_by(variant, partial(OnStandin, backend=b), pool)}" for word, b in backends)


def off_by(
    variant: str, task: Callable[[RunJob], Task[RankReport | None]], pool: Pool, tolerance: float = TOLERANCE
) -> str:
    """How far what `task` trains is from SGD, in words; raises `Wrong` if it is too far, or other bytes were sent."""
    _, strategy, world, settings = chosen(variant)
    model = tiny()
    schedule = schedule_of(model, strategy, world, settings)
    job = job_of(model, schedule, timeout_s=pool.timeout_s)
    measured = merge(job, [r for r in pool.run(task(job)) if r is not None])
    off = deviation(job, measured)
    require(off <= tolerance, f"parameters are {off:.1e} of their way off those of SGD, more than {tolerance:.0e}")
    wanted = expected_bytes(schedule, job.training.iterations)
    moved = list(measured.sent_bytes), list(measured.received_bytes)
    require(moved == wanted, f"ranks sent and received {moved} bytes, and not {wanted}")
    return f"equals SGD within {off:.0e}"


def deviation(job: RunJob, measured: Measurement) -> float:
    """How far the parameters of a run are from those of SGD, relative to how far these have moved."""
    require(measured.parameters is not None, "the run returned no parameters")
    return largest_deviation(dict(measured.parameters or {}), train(job))


def staging(pool: Pool) -> str:
    """Host buffers keep what they are given apart, and staged messages arrive as they were sent."""
    device = Standin(seed=1, jitter_s=1e-3)
    on_a_thread(lambda: try_buffers(device), device.start_thread)
    device.check()
    nbytes = pool.run(StagedTask(standin=True))
    return f"staged messages arrive as sent; {format_bytes(max(nbytes))} of host buffers"


def try_buffers(device: Accelerator) -> None:
    """Copy from a device to its host buffers and back, overwriting each source after the copy. Raises `Wrong`.

    The device's memory is overwritten by a later kernel of the same stream, the host's once the stream is done.
    """
    buffers = HostBuffers(device)
    known = pattern(LEAST_BYTES + 1, 7)
    tensor = torch.empty(len(known), dtype=torch.uint8, device=device.device)
    tensor.copy_(known.to(device.device))
    buffer, host = buffers.take(tensor)
    other, apart = buffers.take(tensor)
    require(buffer.data_ptr() != other.data_ptr(), "a host buffer was given out twice at once")
    require(host.shape == tensor.shape and host.dtype == tensor.dtype, "a host buffer has another shape or type")
    host.copy_(tensor, non_blocking=True)
    tensor.fill_(0)
    device.synchronize()
    with device.host():
        require(torch.equal(host, known), "what was copied to the host is not what the device had")
        apart.copy_(known)
    tensor.copy_(apart, non_blocking=True)
    device.synchronize()
    with device.host():
        apart.fill_(0)
    require(torch.equal(tensor.cpu(), known), "what was copied to the device is not what the host had")
    nbytes = buffers.nbytes
    buffers.give(buffer)
    again, _ = buffers.take(tensor)
    require(again.data_ptr() == buffer.data_ptr(), "a host buffer that was given back is not used again")
    require(buffers.nbytes == nbytes, "a host buffer that was given back was not free")
