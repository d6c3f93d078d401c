"""One rank's part in one job: prepare, run its program, report.

What a run that computes and one that only waits differ in is a `Role`: `train.Trained` or `emulate.Emulated`.
"""

from __future__ import annotations

import gc
from functools import partial

from stanza_sim.base.errors import InputError
from stanza_sim.execute.emulated.emulate import Emulated
from stanza_sim.execute.rank.clock import ClockOffset, boot_id
from stanza_sim.execute.rank.context import Context, announced
from stanza_sim.execute.rank.deterministic import deterministically
from stanza_sim.execute.rank.engine import Engine
from stanza_sim.execute.rank.exchange import gather_all, meet, share
from stanza_sim.execute.rank.interfaces import Beat
from stanza_sim.execute.rank.job import Backend, RankReport, RunJob, Score
from stanza_sim.execute.rank.marks import Marked
from stanza_sim.execute.rank.offset import estimate_offset
from stanza_sim.execute.rank.role import Role
from stanza_sim.execute.rank.segments import From, Record
from stanza_sim.execute.rank.steal import CoreUse
from stanza_sim.execute.train.train import Trained
from stanza_sim.schedule import project
from stanza_sim.schedule.progress import Issue


def run_job(job: RunJob, context: Context, beat: Beat = lambda ended=0, score=None: None) -> RankReport | None:
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
    program, record, done = project(schedule, rank), Record(), job.training.begin
    work = Marked(role.work, program)
    context.accelerator.synchronize()
    before = estimate_offset(rank, ranks, boot, boots[0])
    use = CoreUse()
    with role.running() as realtime_granted:
        for stop in job.training.stops():
            engine = Engine(
                program,
                stop - done,
                From(work, done),
                transport,
                tagged=transport,
                announced=announced(transport),
                issue=issue,
                start=role.start_thread,
                prepare=context.accelerator.prepare,
            )
            meet(rank, ranks)
            record.resume(share(record.stopped_for_s(), rank, ranks))
            engine.run(timeout_s=job.timeout_s, beat=partial(_beat_from, beat, done))
            meet(rank, ranks)
            record.stop(engine)
            done = stop
            if role.stopped(done):
                break
    took_s, stolen, busy, own = use.elapsed_s(), use.stolen(), use.busy(), use.own()
    transport.close()
    meet(rank, ranks)
    after = estimate_offset(rank, ranks, boot, boots[0])
    result = role.result()
    return RankReport(
        rank=rank,
        host=context.host,
        iteration_end_s=tuple(record.iteration_end_s) if program.units else (),
        spans=tuple(record.spans),
        sends=tuple(record.sends),
        receives=tuple(record.receives),
        segments=tuple(record.segments),
        loss_sums=result.loss_sums,
        sent_bytes=transport.sent_bytes,
        received_bytes=transport.received_bytes,
        clock=ClockOffset(before=before, after=after),
        scores=result.scores,
        parameters=result.parameters,
        realtime=realtime_granted,
        stolen=stolen,
        busy=busy,
        own=own,
        machine=boot,
        took_s=took_s,
    )


def _beat_from(beat: Beat, done: int, ended: int = 0, score: Score | None = None) -> None:
    """`beat`, for iterations that are counted from `done` on."""
    beat(done + ended, score)
