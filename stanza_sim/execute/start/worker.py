"""One rank's part in one job: prepare, run its program, report.

What a run that computes and one that only waits differ in is a `Role`: `train.Trained` or `emulate.Emulated`.
"""

from __future__ import annotations

import gc

from stanza_sim.base.errors import InputError
from stanza_sim.execute.emulated.emulate import Emulated
from stanza_sim.execute.rank.clock import ClockOffset, boot_id
from stanza_sim.execute.rank.context import Context, announced
from stanza_sim.execute.rank.deterministic import deterministically
from stanza_sim.execute.rank.engine import Engine
from stanza_sim.execute.rank.exchange import gather_all, meet
from stanza_sim.execute.rank.interfaces import Beat
from stanza_sim.execute.rank.job import Backend, RankReport, RunJob
from stanza_sim.execute.rank.marks import Marked
from stanza_sim.execute.rank.offset import estimate_offset
from stanza_sim.execute.rank.role import Role
from stanza_sim.execute.rank.steal import CoreUse
from stanza_sim.execute.train.train import Trained
from stanza_sim.schedule import project
from stanza_sim.schedule.progress import Issue


def run_job(job: RunJob, context: Context, beat: Beat = lambda ended=0: None) -> RankReport | None:
    """Run this rank's part of `job`; None where the schedule has fewer ranks. Every rank of the world calls this."""
    if context.accelerator.asynchronous:
        gc.collect()  # what the job before left, so that its memory can be given back
        context.accelerator.release()
    with deterministically(job.deterministic):
        return _run(job, context, beat)


def _run(job: RunJob, context: Context, beat: Beat) -> RankReport | None:
    schedule, rank = job.schedule, context.rank
    backend = context.backend(job.backend)
    issue = Issue.EAGER if job.issue is Issue.AUTO else job.issue
    if backend is Backend.NCCL and issue is Issue.IN_ORDER:
        what = "issue: in_order is a way to use gloo; NCCL's messages are received in the order of their announcements"
        raise InputError(what, where="execute.issue", hint="leave `issue` at auto, or use backend: gloo")
    context.start_thread()  # its device is current before communicators are made
    groups = context.groups.prepare(schedule, backend)
    if rank >= schedule.world_size:
        return None
    transport = context.transport(backend, schedule, groups, values=job.emulation is None)
    ranks, boot = schedule.world_size, boot_id()
    boots = gather_all(boot, rank, ranks)
    role: Role
    if job.emulation is None:
        role = Trained(job, context, transport, beat)
    else:
        role = Emulated(job, job.emulation, context, transport, boots)
    program = project(schedule, rank)
    engine = Engine(
        program,
        job.training.iterations,
        Marked(role.work, program),
        transport,
        tagged=transport,
        announced=announced(transport),
        issue=issue,
        start=role.start_thread,
        prepare=context.accelerator.prepare,
    )
    context.accelerator.synchronize()
    before = estimate_offset(rank, ranks, boot, boots[0])
    meet(rank, ranks)
    use = CoreUse()
    with role.running() as realtime_granted:
        engine.run(timeout_s=job.timeout_s, beat=beat)
    took_s, stolen, busy, own = use.elapsed_s(), use.stolen(), use.busy(), use.own()
    transport.close()
    meet(rank, ranks)
    after = estimate_offset(rank, ranks, boot, boots[0])
    result = role.result()
    return RankReport(
        rank=rank,
        host=context.host,
        iteration_end_s=tuple(engine.iteration_end_s) if engine.program.units else (),
        spans=tuple(engine.spans),
        sends=tuple(engine.sends),
        receives=tuple(engine.receives),
        loss_sums=result.loss_sums,
        sent_bytes=transport.sent_bytes,
        received_bytes=transport.received_bytes,
        clock=ClockOffset(before=before, after=after),
        accuracy=result.accuracy,
        parameters=result.parameters,
        realtime=realtime_granted,
        stolen=stolen,
        busy=busy,
        own=own,
        machine=boot,
        took_s=took_s,
    )
