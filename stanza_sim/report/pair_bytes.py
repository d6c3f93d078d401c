"""How many bytes each rank sends to each other one in an iteration of a schedule."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from stanza_sim.schedule import Algorithm, Collective, Compute, Op, Schedule, Transfer
from stanza_sim.schedule.collectives import about_how_many, member_order, steps_of, traffic

MOST_MESSAGES = 400_000
"""Of a schedule with more messages they are not counted one by one."""

Pair = tuple[int, int]
"""Who sends, and who receives."""


def pair_bytes(schedule: Schedule) -> dict[Pair, int] | None:
    """Bytes from rank to rank in an iteration; None for more than about `MOST_MESSAGES` messages.

    A backend's own collective is a ring, as it is simulated (see `schedule.collectives`).
    """
    if sum(_about_how_many(op, schedule) for op in schedule.ops) > MOST_MESSAGES:
        return None
    found: defaultdict[Pair, int] = defaultdict(int)
    for op in schedule.ops:
        for pair, nbytes in _moved(op, schedule):
            found[pair] += nbytes
    return {pair: nbytes for pair, nbytes in found.items() if nbytes}


def _about_how_many(op: Op, schedule: Schedule) -> int:
    match op:
        case Compute():
            return 0
        case Transfer():
            return sum(1 for _ in schedule.pairs(op)) if op.pairs else len(schedule.group(op.src)) * _most(op, schedule)
        case Collective():
            ranks = schedule.group(op.ranks)
            return max(len(ranks), about_how_many(op, ranks))


def _most(op: Transfer, schedule: Schedule) -> int:
    """The destinations of the first source, about as many as every source has."""
    return max(1, len(schedule.destinations(op, schedule.group(op.src)[0])))


def _moved(op: Op, schedule: Schedule) -> Iterable[tuple[Pair, int]]:
    match op:
        case Compute():
            return
        case Transfer():
            for a, b in schedule.pairs(op):
                yield (a, b), schedule.message_bytes(op, a, b)
        case Collective():
            yield from _of_collective(op, schedule)


def _of_collective(op: Collective, schedule: Schedule) -> Iterable[tuple[Pair, int]]:
    ranks, itemsize = schedule.group(op.ranks), schedule.itemsize_of(op)
    if len(ranks) == 1:
        return
    if op.algorithm is not Algorithm.RING:
        for step in steps_of(op, ranks, itemsize):
            yield (step.src, step.dst), (step.hi - step.lo) * itemsize
        return
    order, sent = member_order(op, ranks), traffic(op, ranks, itemsize)
    for i, rank in enumerate(order):
        yield (rank, order[(i + 1) % len(order)]), sent[rank][0]
