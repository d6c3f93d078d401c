"""What `schedule.progress` works out of a program once: needs, lanes, queues of sends with credit, order of posting.

`messages[u]` is the number of messages of unit u to or from other ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from stanza_sim.schedule.ops import Collective, Compute, Transfer
from stanza_sim.schedule.program import Unit, UnitKind
from stanza_sim.schedule.ranks import Ranks


@dataclass(slots=True)
class Lane:
    """What is done one at a time, in program order. A place is one unit, or in an in-order channel those of one op."""

    places: list[tuple[int, ...]]
    in_order: bool = False
    iteration: int = 0
    position: int = 0
    busy: bool = False
    left: int = 0
    """In an in-order channel: sends and messages of the op under way that are not complete."""


@dataclass(slots=True)
class Line:
    """Sends of a channel with credit to the same destinations."""

    credit: int
    under_way: int = 0
    waiting: list[tuple[int, int, int]] = field(default_factory=list)  # heap of (priority, iteration, unit)

    @property
    def has_credit(self) -> bool:
        """Whether one more may be under way."""
        return self.under_way < self.credit

    @property
    def may_go(self) -> int:
        """How many of those that wait may be posted now."""
        return min(self.credit - self.under_way, len(self.waiting))


def needed_by(units: Sequence[Unit]) -> tuple[list[list[int]], list[list[int]]]:
    """Which units each unit must be complete for, in its own iteration and in the next one."""
    same: list[list[int]] = [[] for _ in units]
    following: list[list[int]] = [[] for _ in units]
    for u in units:
        for j in u.needs:
            same[j].append(u.index)
        for j in u.needs_previous:
            following[j].append(u.index)
    return same, following


def needed_of(units: Sequence[Unit], messages: Sequence[int]) -> tuple[list[int], list[int]]:
    """How many things each unit waits for, in the first iteration and in later ones."""
    first: list[int] = []
    for u in units:
        awaited = messages[u.index] if u.kind is UnitKind.RECV else 0
        first.append(1 + len(u.needs) + awaited)  # one for the opening of the iteration
    return first, [n + len(u.needs_previous) for n, u in zip(first, units, strict=True)]


def lanes_of(units: Sequence[Unit], messages: Sequence[int], *, in_order: bool) -> list[Lane]:
    """Lanes of computations and groups of collectives and, where messages are issued in order, channels."""
    lanes: dict[tuple[str, str | Ranks], Lane] = {}
    for u in units:
        match u.op:
            case Compute():
                lanes.setdefault(("lane", u.op.lane), Lane([])).places.append((u.index,))
            case Collective():
                lanes.setdefault(("group", u.peers), Lane([])).places.append((u.index,))
            case Transfer() if in_order and messages[u.index]:
                places = lanes.setdefault(("channel", u.op.channel), Lane([], in_order=True)).places
                if places and units[places[-1][0]].op is u.op:
                    places[-1] += (u.index,)
                else:
                    places.append((u.index,))
            case Transfer():
                pass
    return list(lanes.values())


def sends_of(units: Sequence[Unit], messages: Sequence[int]) -> list[tuple[Unit, Transfer]]:
    """Sends of messages to other ranks."""
    return [(u, u.op) for u in units if u.kind is UnitKind.SEND and isinstance(u.op, Transfer) and messages[u.index]]


def lines_of(sends: Sequence[tuple[Unit, Transfer]]) -> tuple[list[Line], dict[int, Line]]:
    """The lines of `sends` with credit, and of each such send the line that it is in."""
    lines: dict[tuple[str, Ranks], Line] = {}
    line_of = {u.index: lines.setdefault((op.channel, u.peers), Line(op.credit)) for u, op in sends if op.credit}
    return list(lines.values()), line_of


def posting_order(sends: Sequence[Unit]) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    """Which sends may only be posted after each of `sends`, in its own iteration and in the next one.

    `sends` are those of one rank in channels without credit. A send waits for every earlier one of its channel to any
    of the same destinations; of earlier ones to equal destinations the last stands for all.
    """
    channels: dict[str, dict[Ranks, list[int]]] = {}
    peers_of = {u.index: u.peers for u in sends}
    for u in sends:
        if isinstance(u.op, Transfer):
            channels.setdefault(u.op.channel, {}).setdefault(u.peers, []).append(u.index)
    after: dict[int, list[int]] = {}
    after_next: dict[int, list[int]] = {}
    for by_peers in channels.values():
        seen: dict[Ranks, int] = {}
        for index in sorted(i for indices in by_peers.values() for i in indices):
            mine = peers_of[index]
            for peers, indices in by_peers.items():
                if peers != mine and not _meet(peers, mine):
                    continue
                if (previous := seen.get(peers)) is not None:
                    after.setdefault(previous, []).append(index)
                else:
                    after_next.setdefault(indices[-1], []).append(index)
            seen[mine] = index
    return after, after_next


def behind_of(
    count: int, followers: Mapping[int, Sequence[int]], followers_next: Mapping[int, Sequence[int]]
) -> tuple[list[int], list[int]]:
    """How many sends must be posted before each of `count` units, in the first iteration and in later ones.

    `followers` and `followers_next` are what `posting_order` returns.
    """
    first = [0] * count
    for behind in followers.values():
        for v in behind:
            first[v] += 1
    later = list(first)
    for behind in followers_next.values():
        for v in behind:
            later[v] += 1
    return first, later


def _meet(a: Ranks, b: Ranks) -> bool:
    """Whether two sets of ranks have any in common."""
    return any(x < d and c < y for x, y in a.spans for c, d in b.spans)
