"""Measures of a timeline, one definition each, for predicted and measured ones alike."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from stanza_sim.schedule import Collective, Compute, Op, Phase, Schedule, Transfer
from stanza_sim.schedule.ops import dependency
from stanza_sim.timeline.spans import SpanColumns, Timeline, union_length

_Interval = tuple[float, float]


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
    columns = SpanColumns.of(timeline.spans)
    passes = {
        op.name
        for op in schedule.ops
        if isinstance(op, Compute) and not op.phase.on_bundle and op.phase is not Phase.LOSS
    }
    lanes = {op.name: op.lane for op in schedule.ops if isinstance(op, Compute)}
    # Of iteration `first` the end matters, and what still moves.
    moving: dict[tuple[str, int], dict[str, list[_Interval]]] = defaultdict(lambda: defaultdict(list))
    reach: dict[int, float] = {}
    gaps: dict[int, list[tuple[str, int, float, float]]] = defaultdict(list)
    for k, iteration, start_s, end_s in columns.within(first, last).rows():
        op, rank, _, side, _ = columns.kinds[k]
        lane = lanes.get(op)
        if lane is None:
            _extend(moving[op, iteration][side], start_s, end_s)
        elif lane == "main":
            before = reach.get(rank)
            if before is not None and start_s > before and iteration > first:
                gaps[rank].append((op, iteration, before, start_s))
            reach[rank] = end_s if before is None else max(before, end_s)
    moves = _Moving(_Awaited(schedule), {key: _both([*sides.values()]) for key, sides in moving.items()})
    exposed = idle = weight = 0.0
    for rank in sorted({columns.kinds[k].rank for k in set(columns.kind.tolist()) if columns.kinds[k].op in passes}):
        here = timeline.multiplicity.get(rank, 1)
        weight += here
        for op, iteration, before, start_s in gaps[rank]:
            comm = moves.overlap((before, start_s), iteration, op)
            exposed += here * comm
            idle += here * (start_s - before - comm)
    scale = weight * (last - first)
    return Waiting(exposed_comm_s=exposed / scale if scale else 0.0, idle_s=idle / scale if scale else 0.0)


def _extend(intervals: list[_Interval], a: float, b: float) -> None:
    """Add an interval that begins no earlier than any of `intervals`, which do not touch each other."""
    if intervals and a <= intervals[-1][1]:
        intervals[-1] = (intervals[-1][0], max(b, intervals[-1][1]))
    else:
        intervals.append((a, b))


def _both(sides: Sequence[list[_Interval]]) -> list[_Interval]:
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

    def __init__(self, awaited: _Awaited, intervals: Mapping[tuple[str, int], list[_Interval]]) -> None:
        self._awaited = awaited
        self._intervals = sorted((a, b, *key) for key, pieces in intervals.items() for a, b in pieces)
        self._bits = [awaited.bit(name) for *_, name, _ in self._intervals]
        self._starts = [a for a, *_ in self._intervals]
        self._last_end = list(accumulate((b for _, b, *_ in self._intervals), max))  # of all up to this one

    def overlap(self, gap: _Interval, iteration: int, op: str) -> float:
        """Seconds of `gap` in which something moves that `op` of `iteration` awaits."""
        begin, end = gap
        awaited = {iteration - back: bits for back, bits in enumerate(self._awaited.by(op))}
        pieces: list[_Interval] = []
        k = bisect_left(self._starts, end) - 1
        while k >= 0 and self._last_end[k] > begin:
            a, b, _, when = self._intervals[k]
            if b > begin and awaited.get(when, 0) & self._bits[k]:
                pieces.append((max(a, begin), min(b, end)))
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
        bits = {i: 1 << k for k, i in enumerate(comm)}
        own = self._own = [bits.get(i, 0) for i in range(len(ops))]
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

    def bit(self, op: str) -> int:
        """The bit of a transfer or collective."""
        return self._own[self._place[op]]

    def by(self, op: str) -> tuple[int, int]:
        """The bits of all that `op` awaits of its own iteration, and of the one before."""
        place = self._place[op]
        return self._same[place], self._previous[place]


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
    columns = SpanColumns.of(timeline.spans)
    names = [(kinds[kind.op], kind.rank) for kind in columns.kinds]
    found: dict[tuple[str, int], list[_Interval]] = defaultdict(list)
    for k, _, start_s, end_s in columns.within(first + 1, last).rows():
        _extend(found[names[k]], start_s, end_s)
    total: dict[str, float] = dict.fromkeys(dict.fromkeys(kinds.values()), 0.0)
    for (kind, rank), intervals in found.items():
        total[kind] += timeline.multiplicity.get(rank, 1) * sum(b - a for a, b in intervals)
    return {kind: t / (schedule.world_size * (last - first)) for kind, t in total.items()}
