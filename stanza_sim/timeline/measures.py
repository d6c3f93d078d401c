"""Measures of a timeline, one definition each, for predicted and measured ones alike."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from stanza_sim.schedule import Collective, Compute, Op, Phase, Schedule, Transfer
from stanza_sim.schedule.ops import dependency
from stanza_sim.timeline.spans import Span, Timeline, union_length


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
    awaited = _Awaited(schedule)
    moving: dict[tuple[str, int], dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    main: dict[int, list[Span]] = defaultdict(list)
    passes = {
        op.name
        for op in schedule.ops
        if isinstance(op, Compute) and not op.phase.on_bundle and op.phase is not Phase.LOSS
    }
    lanes = {op.name: op.lane for op in schedule.ops if isinstance(op, Compute)}
    working: set[int] = set()
    for s in timeline.spans:
        if s.op in lanes:
            if lanes[s.op] == "main":
                main[s.rank].append(s)
            if s.op in passes:
                working.add(s.rank)
        else:
            moving[s.op, s.iteration][s.side].append((s.start_s, s.end_s))
    moves = _Moving({key: _both([_merge(v) for v in sides.values()]) for key, sides in moving.items()})
    exposed = idle = weight = 0.0
    for rank in sorted(working):
        here = timeline.multiplicity.get(rank, 1)
        weight += here
        reach: float | None = None
        for s in sorted(main[rank], key=lambda s: (s.start_s, s.end_s)):
            if reach is not None and s.start_s > reach and first < s.iteration <= last:
                comm = moves.overlap((reach, s.start_s), s.iteration, awaited, s.op)
                exposed += here * comm
                idle += here * (s.start_s - reach - comm)
            reach = s.end_s if reach is None else max(reach, s.end_s)
    scale = weight * (last - first)
    return Waiting(exposed_comm_s=exposed / scale if scale else 0.0, idle_s=idle / scale if scale else 0.0)


def _merge(intervals: list[tuple[float, float]]) -> list[tuple[float, float]]:
    out: list[tuple[float, float]] = []
    for a, b in sorted(intervals):
        if out and a <= out[-1][1]:
            out[-1] = (out[-1][0], max(b, out[-1][1]))
        else:
            out.append((a, b))
    return out


def _both(sides: Sequence[list[tuple[float, float]]]) -> list[tuple[float, float]]:
    """When a transfer moves: while somebody sends and somebody receives.

    One side alone is not enough: a receiver's span goes on while it waits for the next of its senders.
    """
    if len(sides) == 1:
        return sides[0]
    (x, y), out = sides, []
    i = j = 0
    while i < len(x) and j < len(y):
        a, b = max(x[i][0], y[j][0]), min(x[i][1], y[j][1])
        if a < b:
            out.append((a, b))
        if x[i][1] < y[j][1]:
            i += 1
        else:
            j += 1
    return out


class _Moving:
    """When each transfer and collective moves, in order of time: what moves in a gap is found without trying all."""

    def __init__(self, intervals: Mapping[tuple[str, int], list[tuple[float, float]]]) -> None:
        self._intervals = sorted((a, b, *key) for key, pieces in intervals.items() for a, b in pieces)
        self._starts = [a for a, *_ in self._intervals]
        self._last_end = list(accumulate((b for _, b, *_ in self._intervals), max))  # of all up to this one

    def overlap(self, gap: tuple[float, float], iteration: int, awaited: _Awaited, op: str) -> float:
        """Seconds of `gap` in which something moves that `op` of `iteration` awaits."""
        pieces: list[tuple[float, float]] = []
        k = bisect_left(self._starts, gap[1]) - 1
        while k >= 0 and self._last_end[k] > gap[0]:
            a, b, name, when = self._intervals[k]
            if b > gap[0] and awaited.by(op, name, iteration - when):
                pieces.append((max(a, gap[0]), min(b, gap[1])))
            k -= 1
        return union_length(pieces)


class _Awaited:
    """Which transfers and collectives each op awaits, in its own iteration or in the one before.

    An op awaits what it names, what comes before it in its lane, channel or group, and what those await.
    """

    def __init__(self, schedule: Schedule) -> None:
        ops = schedule.ops
        self._place = {op.name: i for i, op in enumerate(ops)}
        ahead, around = _neighbours(schedule)
        # Only transfers and collectives have a bit: nothing else is asked for.
        comm = (i for i, op in enumerate(ops) if isinstance(op, Transfer | Collective))
        self._bit = {i: k for k, i in enumerate(comm)}
        own = [1 << self._bit[i] if i in self._bit else 0 for i in range(len(ops))]
        self._same: list[int] = []
        earlier: list[list[int]] = []
        for i, op in enumerate(ops):
            earlier.append([self._place[dependency(d)[0]] for d in op.after] + ahead[i])
            bits = 0
            for j in earlier[i]:
                bits |= self._same[j] | own[j]
            self._same.append(bits)
        self._previous: list[int] = []
        for i, op in enumerate(ops):
            previous = [self._place[dependency(d)[0]] for d in op.after_previous] + around[i]
            bits = 0
            for j in earlier[i]:
                bits |= self._previous[j]
            for j in previous:
                bits |= self._same[j] | own[j]
            self._previous.append(bits)

    def by(self, op: str, other: str, back: int) -> bool:
        """Whether `op` awaits the transfer or collective `other` of `back` iterations before; never if that is > 1."""
        if back not in (0, 1):
            return False
        known = self._previous if back else self._same
        return bool(known[self._place[op]] >> self._bit[self._place[other]] & 1)


def _neighbours(schedule: Schedule) -> tuple[list[list[int]], list[list[int]]]:
    """For each op, those that come before it in its queues: of its iteration, and of the one before.

    Queues are a lane at some ranks, a channel between two groups, and a group of collectives. Those of one lane or
    channel whose groups have ranks in common, of a channel on both sides, wait for each other.
    """
    queues: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, op in enumerate(schedule.ops):
        queues[_queue(op)].append(i)
    meets = {queue: [other for other in queues if _meet(schedule, queue, other)] for queue in queues}
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
    """Whether ops of two queues wait for each other: in one queue, or in a lane or channel of ranks that both have."""
    if one[:2] != other[:2] or one[0] == "group":
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
    found: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    for s in timeline.spans:
        if first < s.iteration <= last:
            found[kinds[s.op], s.rank].append((s.start_s, s.end_s))
    total: dict[str, float] = dict.fromkeys(dict.fromkeys(kinds.values()), 0.0)
    for (kind, rank), intervals in found.items():
        total[kind] += timeline.multiplicity.get(rank, 1) * union_length(intervals)
    return {kind: t / (schedule.world_size * (last - first)) for kind, t in total.items()}
