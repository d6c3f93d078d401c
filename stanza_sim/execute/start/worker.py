"""One rank's part in one job: prepare, run its program, report.

What a run that computes and one that only waits differ in is a `Part`: `train.Trained` or `emulate.Emulated`.
"""

from __future__ import annotations

from collections.abc import Callable

from stanza_sim.base.errors import InputError
from stanza_sim.execute.emulated.emulate import Emulated
from stanza_sim.execute.rank.clock import boot_id, estimate_offset
from stanza_sim.execute.rank.context import Context, transport_for
from stanza_sim.execute.rank.engine import Engine
from stanza_sim.execute.rank.exchange import gather, meet, share
from stanza_sim.execute.rank.job import Backend, Clock, RankReport, RunJob
from stanza_sim.execute.rank.part import Part
from stanza_sim.execute.rank.steal import Stolen
from stanza_sim.execute.train.train import Trained
from stanza_sim.schedule import project
from stanza_sim.schedule.progress import Issue


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
