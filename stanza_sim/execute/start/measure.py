"""From the reports of all ranks to one measurement on one clock. Pure; no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median

from stanza_sim.base.errors import RunError
from stanza_sim.execute.rank.job import ComputeMode, Measurement, Message, RankReport, RunJob
from stanza_sim.schedule import Collective, Compute, Transfer, UnitKind, project
from stanza_sim.timeline.spans import Span, Timeline

_End = tuple[str, int, int, int]
"""(op, iteration, source, destination) of a message."""
_Clock = Callable[[float], float]


def merge(job: RunJob, reports: Sequence[RankReport]) -> Measurement:
    """Make one measurement of the reports of all ranks that the schedule has.

    Iteration i ends when its last op ends on any rank, E(i). The duration of an iteration is E(i) - E(i - 1), over
    the iterations after the warm-up but for the last one, behind which nothing runs that would compete with it, and
    those on both sides of a stop. `iteration_s` is their median, with the least and the greatest. (The mean over ranks
    of increments would count ranks that run ahead; the greatest increment over ranks would count every rank's jitter.)

    Losses are summed over ranks in rank order. Spans of the warm-up are dropped. A transfer's span at a rank begins
    when its first message had been posted at both ends and ends with the last arrival; a collective's begins when
    the last member had joined. All times are divided by the job's dilation, where they are brought to one clock.
    Raises `RunError` for a report that is missing or cut short.
    """
    schedule, training = job.schedule, job.training
    by_rank = {r.rank: r for r in reports}
    if sorted(by_rank) != list(range(schedule.world_size)):
        raise RunError(f"{schedule.name}: reports of ranks {sorted(by_rank)}, the schedule has {schedule.world_size}")
    clocks = {rank: _clock(job, r) for rank, r in by_rank.items()}
    ends = {
        rank: tuple(clocks[rank](t) for t in r.iteration_end_s)
        for rank, r in sorted(by_rank.items())
        if r.iteration_end_s
    }
    first = by_rank[0]
    count = max(map(len, ends.values()))
    latest = [max(ends[r][i] for r in ends) for i in range(count)]
    durations = iteration_durations(latest, training.warmup, first.segments)
    sums = [by_rank[r].loss_sums for r in sorted(by_rank) if by_rank[r].loss_sums]
    losses = tuple(sum(s[i] for s in sums) / schedule.global_batch for i in range(count) if sums)
    return Measurement(
        timeline=Timeline(
            spans=tuple(_spans(job, by_rank, clocks)), iteration_end_s=ends, first_iteration=training.warmup
        ),
        iteration_s=median(durations),
        iteration_s_min=min(durations),
        iteration_s_max=max(durations),
        samples_per_s=schedule.global_batch / median(durations),
        losses=losses,
        scores=first.scores,
        sent_bytes=tuple(by_rank[r].sent_bytes for r in sorted(by_rank)),
        received_bytes=tuple(by_rank[r].received_bytes for r in sorted(by_rank)),
        hosts=tuple(by_rank[r].host for r in sorted(by_rank)),
        compute=ComputeMode.REAL if job.emulation is None else ComputeMode.EMULATED,
        realtime=all(r.realtime for r in reports),
        stolen=max(r.stolen for r in reports),
        dilation=job.dilation,
        others=_others(reports),
        parameters=first.parameters,
    )


def _others(reports: Sequence[RankReport]) -> float:
    """The share of a machine's cores on which processes ran that are no ranks, of the machine where it is greatest."""
    machines: dict[str, list[RankReport]] = {}
    for r in reports:
        machines.setdefault(r.machine, []).append(r)
    return max(0.0, *(max(r.busy for r in here) - sum(r.own for r in here) for here in machines.values()))


def iteration_durations(latest_end_s: Sequence[float], warmup: int, segments: Sequence[int] = ()) -> list[float]:
    """Durations of the iterations from `warmup` on (iteration 0 has none), without those that are not like the others.

    These are the last, the first of each of `segments` and the one before it; they count if no others are left.
    """
    timed = {i: b - a for i, (a, b) in enumerate(pairwise(latest_end_s), 1) if i >= warmup}
    if not timed:
        raise RunError(f"{len(latest_end_s)} iterations with {warmup} of warm-up leave none to time")
    odd = {len(latest_end_s) - 1, *segments, *(first - 1 for first in segments)}
    return [took for i, took in timed.items() if i not in odd] or list(timed.values())


def _clock(job: RunJob, report: RankReport) -> _Clock:
    """What turns a time of a rank's own clock into one of the run: on rank 0's clock, without the dilation."""
    return lambda time_s: report.clock.to_rank0(time_s) / job.dilation


def _spans(job: RunJob, by_rank: dict[int, RankReport], clocks: dict[int, _Clock]) -> list[Span]:
    schedule, first = job.schedule, job.training.warmup
    programs = {r: project(schedule, r).units for r in by_rank}
    sent: dict[_End, float] = {}
    arrivals: dict[_End, tuple[float, float, int]] = {}  # posted, arrived, bytes
    joined: dict[tuple[str, int], float] = {}
    for rank, report in by_rank.items():
        to0, units = clocks[rank], programs[rank]
        for m in report.sends:
            sent[units[m.unit].op.name, m.iteration, rank, m.peer] = to0(m.posted_s)
        for m in report.receives:
            arrivals[units[m.unit].op.name, m.iteration, m.peer, rank] = to0(m.posted_s), to0(m.arrived_s), m.nbytes
        for unit, iteration, begin, _ in report.spans:
            if isinstance(units[unit].op, Collective):
                key = units[unit].op.name, iteration
                joined[key] = max(joined.get(key, to0(begin)), to0(begin))
    spans: list[Span] = []
    for rank, report in by_rank.items():
        to0, units = clocks[rank], programs[rank]
        for unit, iteration, begin, end in report.spans:
            op = units[unit].op
            if iteration < first:
                continue
            start = to0(begin) if isinstance(op, Compute) else joined[op.name, iteration]
            spans.append(
                Span(
                    op=op.name,
                    rank=rank,
                    iteration=iteration,
                    lane=op.lane if isinstance(op, Compute) else "",
                    side="",
                    start_s=min(start, to0(end)),
                    end_s=to0(end),
                    nbytes=op.nbytes if isinstance(op, Collective) else 0,
                )
            )
        together: dict[tuple[int, int], list[tuple[float, float, int]]] = {}
        for kind, messages in ((UnitKind.SEND, report.sends), (UnitKind.RECV, report.receives)):
            for m in messages:
                if m.iteration >= first:
                    moved = _moved(units[m.unit].op.name, m, rank, kind, sent, arrivals)
                    together.setdefault((m.unit, m.iteration), []).append(moved)
        for (unit, iteration), moves in together.items():
            op = units[unit].op
            spans.append(
                Span(
                    op=op.name,
                    rank=rank,
                    iteration=iteration,
                    lane=op.channel if isinstance(op, Transfer) else "",
                    side="sent" if units[unit].kind is UnitKind.SEND else "recv",
                    start_s=min(m[0] for m in moves),
                    end_s=max(m[1] for m in moves),
                    nbytes=sum(m[2] for m in moves),
                )
            )
    spans.sort(key=lambda s: (s.iteration, s.rank, s.start_s, s.op, s.side))
    return spans


def _moved(
    op: str,
    message: Message,
    rank: int,
    kind: UnitKind,
    sent: dict[_End, float],
    arrivals: dict[_End, tuple[float, float, int]],
) -> tuple[float, float, int]:
    """(begin, end, bytes) of one message: from the later posting to the arrival."""
    src, dst = (rank, message.peer) if kind is UnitKind.SEND else (message.peer, rank)
    key = op, message.iteration, src, dst
    posted, arrived, nbytes = arrivals[key]
    return min(max(sent[key], posted), arrived), arrived, nbytes
