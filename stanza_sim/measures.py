"""Measures of a timeline, one definition each, for predicted and measured ones alike."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stanza_sim.schedule import Collective, Compute, Op, Phase, Schedule, Transfer
from stanza_sim.schedule.ops import dependency
from stanza_sim.timeline import Span, Timeline, union_length


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
    awaited = _awaited(schedule)
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
    merged = {key: _both([_merge(v) for v in sides.values()]) for key, sides in moving.items()}
    exposed = idle = weight = 0.0
    for rank in sorted(working):
        here = timeline.multiplicity.get(rank, 1)
        weight += here
        reach: float | None = None
        for s in sorted(main[rank], key=lambda s: (s.start_s, s.end_s)):
            if reach is not None and s.start_s > reach and first < s.iteration <= last:
                comm = _overlap((reach, s.start_s), awaited[s.op], s.iteration, merged)
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


def _overlap(
    gap: tuple[float, float],
    awaited: Sequence[tuple[str, int]],
    iteration: int,
    moving: Mapping[tuple[str, int], list[tuple[float, float]]],
) -> float:
    pieces: list[tuple[float, float]] = []
    for name, back in awaited:
        for a, b in moving.get((name, iteration - back), ()):
            if b > gap[0] and a < gap[1]:
                pieces.append((max(a, gap[0]), min(b, gap[1])))
    return union_length(pieces)


def _awaited(schedule: Schedule) -> dict[str, tuple[tuple[str, int], ...]]:
    """For each computation, the transfers and collectives that it awaits, as (op, iterations back: 0 or 1).

    An op awaits what it names, what comes before it in its lane, channel or group, and what those await.
    """
    ops = schedule.ops
    place = {op.name: i for i, op in enumerate(ops)}
    queues: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for i, op in enumerate(ops):
        queues[_queue(op)].append(i)
    ahead: dict[int, int] = {}
    around: dict[int, int] = {}  # the first of a queue comes after the last of the iteration before
    for queue in queues.values():
        ahead.update(zip(queue[1:], queue, strict=False))
        around[queue[0]] = queue[-1]
    earlier: list[list[int]] = []
    same: list[int] = []
    for i, op in enumerate(ops):
        earlier.append([place[dependency(d)[0]] for d in op.after] + ([ahead[i]] if i in ahead else []))
        bits = 0
        for j in earlier[i]:
            bits |= same[j] | 1 << j
        same.append(bits)
    reach: list[int] = []  # ops of the iteration before
    for i, op in enumerate(ops):
        previous = [place[dependency(d)[0]] for d in op.after_previous] + ([around[i]] if i in around else [])
        back = 0
        for j in earlier[i]:
            back |= reach[j]
        for j in previous:
            back |= same[j] | 1 << j
        reach.append(back)
    comm = sum(1 << i for i, op in enumerate(ops) if isinstance(op, Transfer | Collective))
    result: dict[str, tuple[tuple[str, int], ...]] = {}
    for i, op in enumerate(ops):
        if isinstance(op, Compute):
            found = [(ops[j].name, 0) for j in _bits(same[i] & comm)]
            result[op.name] = (*found, *((ops[j].name, 1) for j in _bits(reach[i] & comm)))
    return result


def _queue(op: Op) -> tuple[object, ...]:
    """What orders `op` among its like: its lane at its ranks, its channel between its groups, its group."""
    match op:
        case Compute():
            return "lane", op.ranks, op.lane
        case Transfer():
            return "channel", op.src, op.dst, op.channel
        case Collective():
            return "group", op.ranks


def _bits(value: int) -> list[int]:
    found = []
    while value:
        low = value & -value
        found.append(low.bit_length() - 1)
        value ^= low
    return found


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
