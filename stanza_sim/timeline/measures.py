"""Measures of a timeline, one definition each, for predicted and measured ones alike."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stanza_sim.schedule import Collective, Compute, Op, Phase, Schedule, Transfer
from stanza_sim.schedule.ops import dependency
from stanza_sim.timeline.intervals import F64, I64, Intervals, common, merged, running_max
from stanza_sim.timeline.spans import SpanColumns, Timeline

MOST_PAIRS = 2_000_000
"""Gaps are held against so many transfers and collectives at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """Mean seconds per iteration, over ranks that run passes, in which the main lane waits.

    `exposed_comm_s`: a transfer or collective that the lane awaits, directly or through other ranks, is moving.
    `idle_s`: none of them moves, an upstream rank still computes.
    """

    exposed_comm_s: float
    idle_s: float


def steady_iteration_s(ends: Sequence[Sequence[float]], first: int, last: int) -> float:
    """Seconds per iteration: the largest over ranks of (end(last) - end(first)) / (last - first).

    `ends[r][i]` is when rank r ended iteration i; choose `last` with further iterations running behind it.
    """
    return max((e[last] - e[first]) / (last - first) for e in ends)


def waiting(schedule: Schedule, timeline: Timeline, first: int, last: int) -> Waiting:
    """Split the main lane's waiting in exposed communication and idling.

    Counted are the gaps before the main lane's computations of iterations first+1 .. last of `timeline`.
    """
    columns, awaited = SpanColumns.of(timeline.spans), _Awaited(schedule)
    kinds = columns.kinds
    computes = {op.name: op for op in schedule.ops if isinstance(op, Compute)}
    working = {
        kinds[k].rank
        for k in np.unique(columns.kind).tolist()
        if (op := computes.get(kinds[k].op)) is not None and not op.phase.on_bundle and op.phase is not Phase.LOSS
    }
    main = {name for name, op in computes.items() if op.lane == "main"}
    place = np.array([awaited.place[kind.op] for kind in kinds], dtype=np.int64)
    within = columns.within(first, last)  # of iteration `first` the end matters, and what still moves
    moves = np.array([kind.op not in computes for kind in kinds], dtype=np.bool_)
    receives = np.array([kind.side == "recv" for kind in kinds], dtype=np.int64)
    moving = _Moving(awaited, _moving(within, place, receives, moves, first, last), first, last)
    in_main = np.array([kind.op in main and kind.rank in working for kind in kinds], dtype=np.bool_)
    rank = np.array([kind.rank for kind in kinds], dtype=np.int64)
    lane = within.where(in_main)
    order = np.lexsort((lane.end_s, lane.start_s, rank[lane.kind]))
    of, start_s = rank[lane.kind][order], lane.start_s[order]
    reach = running_max(of, lane.end_s[order])
    gap = 1 + np.nonzero((of[1:] == of[:-1]) & (start_s[1:] > reach[:-1]) & (lane.iteration[order][1:] > first))[0]
    ends = order[gap]
    iteration = lane.iteration[ends].astype(np.int64)
    gaps = _Gaps(reach[gap - 1], start_s[gap], iteration, place[lane.kind[ends]])
    seconds = moving.overlap(gaps)
    here = np.array([timeline.multiplicity.get(r, 1) for r in of[gap].tolist()], dtype=np.float64)
    weight = sum(timeline.multiplicity.get(r, 1) for r in working)
    scale = weight * (last - first)
    if not scale:
        return Waiting(exposed_comm_s=0.0, idle_s=0.0)
    idle = here @ (gaps.end_s - gaps.begin_s - seconds)
    return Waiting(exposed_comm_s=float(here @ seconds) / scale, idle_s=float(idle) / scale)


class _Gaps(NamedTuple):
    """Gaps of main lanes: when, and the place in the schedule and iteration of the computation that ends each."""

    begin_s: F64
    end_s: F64
    iteration: I64
    op: I64


def _moving(
    spans: SpanColumns, place: I64, receives: I64, moves: npt.NDArray[np.bool_], first: int, last: int
) -> Intervals:
    """When each transfer and collective of each iteration moves; the group is its place times the iterations, plus its.

    A transfer moves while somebody sends and somebody receives. One side alone is not enough: a receiver's span goes on
    while it waits for the next of its senders.
    """
    some = spans.where(moves)
    group = place[some.kind] * (last + 1 - first) + (some.iteration - first)
    sides = merged(2 * group + receives[some.kind], some.start_s, some.end_s)
    one = np.bincount(np.unique(sides.group) // 2)[sides.group // 2] == 1
    alone, paired = (Intervals(sides.group[x] // 2, sides.start_s[x], sides.end_s[x]) for x in (one, ~one))
    return Intervals(*(np.concatenate(both) for both in zip(alone, common(paired), strict=True)))


class _Moving:
    """When each transfer and collective moves, in order of time: what moves in a gap is found without trying all."""

    def __init__(self, awaited: _Awaited, intervals: Intervals, first: int, last: int) -> None:
        order = np.lexsort((intervals.end_s, intervals.start_s))
        self._awaited, self._start_s, self._end_s = awaited, intervals.start_s[order], intervals.end_s[order]
        place, iteration = np.divmod(intervals.group[order], last + 1 - first)
        self._iteration = first + iteration
        self._bit = awaited.bit[place]
        self._last_end_s = np.maximum.accumulate(self._end_s)  # of all up to this one

    def overlap(self, gaps: _Gaps) -> F64:
        """Seconds of each gap in which something moves that its computation awaits."""
        from_ = np.searchsorted(self._last_end_s, gaps.begin_s, side="right")
        counts = np.maximum(np.searchsorted(self._start_s, gaps.end_s) - from_, 0)
        found = np.zeros(len(counts))
        total = np.cumsum(counts)
        begin = 0
        while begin < len(counts):  # not too many pairs at once
            done = total[begin - 1] if begin else 0
            end = max(begin + 1, int(np.searchsorted(total, done + MOST_PAIRS, side="right")))
            part = slice(begin, end)
            some = _Gaps(gaps.begin_s[part], gaps.end_s[part], gaps.iteration[part], gaps.op[part])
            found[part] = self._overlap(some, from_[part], counts[part])
            begin = end
        return found

    def _overlap(self, gaps: _Gaps, from_: I64, counts: I64) -> F64:
        gap = np.repeat(np.arange(len(counts)), counts)
        k = np.arange(len(gap)) + np.repeat(from_ - (np.cumsum(counts) - counts), counts)
        over = self._end_s[k] > gaps.begin_s[gap]
        gap, k = gap[over], k[over]
        awaits = self._awaited.by(gaps.op, gap, gaps.iteration[gap] - self._iteration[k], self._bit[k])
        gap, k = gap[awaits], k[awaits]
        start_s = np.maximum(self._start_s[k], gaps.begin_s[gap])
        return merged(gap, start_s, np.minimum(self._end_s[k], gaps.end_s[gap])).seconds(len(counts))


class _Awaited:
    """Which transfers and collectives each op awaits, in its own iteration or in the one before.

    An op awaits what it names, what comes before it in its lane, channel or group, and what those await.
    """

    def __init__(self, schedule: Schedule) -> None:
        ops = schedule.ops
        self.place = {op.name: i for i, op in enumerate(ops)}
        ahead, around = _neighbours(schedule)
        # Only transfers and collectives have a bit: nothing else is asked for.
        comm = [i for i, op in enumerate(ops) if isinstance(op, Transfer | Collective)]
        self.bit: I64 = np.full(len(ops), -1, dtype=np.int64)
        """The bit of each op by its place in the schedule, -1 for none."""
        self.bit[comm] = np.arange(len(comm))
        self._nbytes = len(comm) // 8 + 1
        own = [0] * len(ops)
        for k, i in enumerate(comm):
            own[i] = 1 << k
        self._same: list[int] = []
        earlier: list[list[int]] = []
        for i, op in enumerate(ops):
            earlier.append([self.place[dependency(d)[0]] for d in op.after] + ahead[i])
            bits = 0
            for j in earlier[i]:
                bits |= self._same[j] | own[j]
            self._same.append(bits)
        self._previous: list[int] = []
        for i, op in enumerate(ops):
            previous = [self.place[dependency(d)[0]] for d in op.after_previous] + around[i]
            bits = 0
            for j in earlier[i]:
                bits |= self._previous[j]
            for j in previous:
                bits |= self._same[j] | own[j]
            self._previous.append(bits)

    def by(self, ops: I64, row: I64, back: I64, bit: I64) -> npt.NDArray[np.bool_]:
        """Whether the op at place `ops[row]` awaits that of `bit` of `back` iterations before; never if that is > 1."""
        places, index = np.unique(ops, return_inverse=True)
        known = [bits[p].to_bytes(self._nbytes, "little") for bits in (self._same, self._previous) for p in places]
        table = np.frombuffer(b"".join(known), dtype=np.uint8).reshape(2, len(places), self._nbytes)
        near = (back >= 0) & (back <= 1)
        byte = table[np.where(near, back, 0), index.reshape(-1)[row], bit >> 3]
        found: npt.NDArray[np.bool_] = near & (byte >> (bit & 7) & 1).astype(np.bool_)
        return found


def _neighbours(schedule: Schedule) -> tuple[list[list[int]], list[list[int]]]:
    """For each op, those that come before it in its queues: of its iteration, and of the one before.

    Queues are a lane at some ranks, a channel between two groups, and a group of collectives. Those of one lane or
    channel whose groups have ranks in common, of a channel on both sides, wait for each other.
    """
    queues: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, op in enumerate(schedule.ops):
        queues[_queue(op)].append(i)
    alike: dict[tuple[str, ...], list[tuple[str, ...]]] = defaultdict(list)
    for queue in queues:
        alike[queue[:2]].append(queue)
    meets = {queue: [other for other in alike[queue[:2]] if _meet(schedule, queue, other)] for queue in queues}
    ahead: list[list[int]] = []
    around: list[list[int]] = []  # the first of a queue comes after the last of the iteration before
    for i, op in enumerate(schedule.ops):
        before, last = [], []
        for queue in meets[_queue(op)]:
            place = bisect_left(queues[queue], i)
            if place:
                before.append(queues[queue][place - 1])
            else:
                last.append(queues[queue][-1])
        ahead.append(before)
        around.append(last)
    return ahead, around


def _queue(op: Op) -> tuple[str, ...]:
    """What orders `op` among its like: its lane at its ranks, its channel between its groups, its group."""
    match op:
        case Compute():
            return "lane", op.lane, op.ranks
        case Transfer():
            return "channel", op.channel, op.src, op.dst
        case Collective():
            return "group", "", op.ranks


def _meet(schedule: Schedule, one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether ops of two queues of one name wait for each other: in one queue, or of a lane or channel of ranks that
    both have."""
    if one[0] == "group":
        return one == other
    ends = zip(one[2:], other[2:], strict=True)
    return all(schedule.group(mine).meets(schedule.group(theirs)) for mine, theirs in ends)


def op_seconds(schedule: Schedule, timeline: Timeline, first: int, last: int) -> dict[str, float]:
    """Mean busy seconds per iteration and rank, by kind of op, in iterations first+1 .. last.

    Computations are named by phase; transfers by channel and collectives by kind, each as the time in which at least
    one of them was under way at the rank. The mean is over all ranks of the schedule.
    """
    kinds: dict[str, str] = {}
    for op in schedule.ops:
        match op:
            case Compute():
                kinds[op.name] = op.phase
            case Transfer():
                kinds[op.name] = f"transfer {op.channel}"
            case Collective():
                kinds[op.name] = op.kind
    names = {kind: k for k, kind in enumerate(dict.fromkeys(kinds.values()))}
    columns = SpanColumns.of(timeline.spans)
    keys: dict[tuple[int, int], int] = {}
    number = [keys.setdefault((names[kinds[kind.op]], kind.rank), len(keys)) for kind in columns.kinds]
    there = columns.within(first + 1, last)
    busy = merged(np.array(number, dtype=np.int64)[there.kind], there.start_s, there.end_s).seconds(len(keys))
    total = [0.0] * len(names)
    for (name, rank), seconds in zip(keys, busy.tolist(), strict=True):
        total[name] += timeline.multiplicity.get(rank, 1) * seconds
    return {kind: total[k] / (schedule.world_size * (last - first)) for kind, k in names.items()}
