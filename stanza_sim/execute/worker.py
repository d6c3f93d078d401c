"""One rank's part in one job: prepare, run its program, report.

What a run that computes and one that only waits differ in is a `Part`: `train.Trained` or `emulate.Emulated`.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from stanza_sim.errors import InputError
from stanza_sim.execute.clock import boot_id, estimate_offset
from stanza_sim.execute.emulate import Emulated
from stanza_sim.execute.engine import Engine
from stanza_sim.execute.exchange import gather, meet, share
from stanza_sim.execute.job import Backend, Clock, RankReport, RunJob
from stanza_sim.execute.part import Part
from stanza_sim.execute.steal import Stolen
from stanza_sim.execute.train import Trained
from stanza_sim.execute.transport import GroupKey, ProcessGroups, StagedTransport, Transport
from stanza_sim.schedule import Schedule, project
from stanza_sim.schedule.progress import Issue


@dataclass(slots=True)
class Context:
    """A rank's place in the world, for as many jobs as it runs. `kind` is `cpu` or `cuda`, `host` its host's name."""

    rank: int
    world_size: int
    local_rank: int
    local_size: int
    threads: int
    kind: str = "cpu"
    host: str = field(default_factory=socket.gethostname)
    groups: ProcessGroups = field(init=False)
    device: torch.device = field(init=False)

    def __post_init__(self) -> None:
        gpus = torch.cuda.device_count() if self.kind == "cuda" else 0
        if self.kind == "cuda" and not gpus:
            raise InputError(
                "the topology has GPUs, but torch finds none on this machine",
                hint="use a topology without devices, such as laptop",
            )
        self.device = torch.device(f"cuda:{self.local_rank % gpus}" if gpus else "cpu")
        self.groups = ProcessGroups(self.world_size)

    def backend(self, wanted: Backend) -> Backend:
        """The backend to use; NCCL needs a GPU of its own for each local rank. Raises `InputError`."""
        gpus = torch.cuda.device_count() if self.kind == "cuda" else 0
        possible = gpus >= self.local_size and dist.is_nccl_available()
        if wanted is Backend.NCCL and not possible:
            raise InputError(
                f"backend nccl needs one GPU for each of {self.local_size} local ranks, here are {gpus}",
                hint="use backend: gloo, or auto",
            )
        if wanted is not Backend.AUTO:
            return wanted
        return Backend.NCCL if possible else Backend.GLOO

    def start_thread(self) -> None:
        """What every computing thread must do first: both settings are the thread's own."""
        torch.set_num_threads(self.threads)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)


def run_job(job: RunJob, context: Context, beat: Callable[[], None] = lambda: None) -> RankReport | None:
    """Run this rank's part of `job`; None where the schedule has fewer ranks. Every rank of the world calls this."""
    schedule, rank = job.schedule, context.rank
    backend = context.backend(job.backend)
    groups = context.groups.prepare(schedule, backend)
    if rank >= schedule.world_size:
        return None
    context.start_thread()
    transport = transport_for(context, backend, schedule, groups, values=job.emulation is None)
    ranks, boot = schedule.world_size, boot_id()
    boots = share(gather(boot, rank, ranks), rank, ranks)
    part: Part
    if job.emulation is None:
        part = Trained(job, context, transport, beat)
    else:
        part = Emulated(job, job.emulation, context, transport, boots)
    issue = job.issue
    if issue is Issue.AUTO:
        issue = Issue.IN_ORDER if backend is Backend.NCCL else Issue.EAGER
    if backend is Backend.NCCL and issue is Issue.EAGER:
        raise InputError("NCCL posts no receive ahead of need", hint="leave `issue` at auto")
    engine = Engine(
        project(schedule, rank),
        job.training.iterations,
        part.work,
        transport,
        naming=transport,
        issue=issue,
        start=part.start_thread,
    )
    before = estimate_offset(rank, ranks, boot, boots[0])
    meet(rank, ranks)
    stolen = Stolen()
    with part.running() as realtime_granted:
        engine.run(timeout_s=job.timeout_s, beat=beat)
    share_stolen, took_s = stolen.share(), stolen.elapsed_s()
    meet(rank, ranks)
    after = estimate_offset(rank, ranks, boot, boots[0])
    outcome = part.outcome()
    return RankReport(
        rank=rank,
        host=context.host,
        iteration_end_s=tuple(engine.iteration_end_s) if engine.program.units else (),
        spans=tuple(engine.spans),
        sends=tuple(engine.sends),
        receives=tuple(engine.receives),
        loss_sums=outcome.loss_sums,
        sent_bytes=transport.sent_bytes,
        received_bytes=transport.received_bytes,
        clock=Clock(before=before, after=after),
        accuracy=outcome.accuracy,
        parameters=outcome.parameters,
        realtime=realtime_granted,
        stolen=share_stolen,
        took_s=took_s,
    )


def transport_for(
    context: Context,
    backend: Backend,
    schedule: Schedule,
    groups: dict[GroupKey, dist.ProcessGroup],
    *,
    values: bool = True,
) -> Transport:
    """The transport of a run on this rank's device: staged where gloo is to move a GPU's tensors."""
    staged = context.device.type == "cuda" and backend is Backend.GLOO
    return (StagedTransport if staged else Transport)(schedule, context.rank, groups, values=values)
