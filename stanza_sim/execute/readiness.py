"""The pure core of one rank's run: what is ready, and which message goes next. No threads, no torch, no clock.

Whoever tells it of an event says when that was; it only compares these instants. A key is (iteration, unit index).
Units of iteration i are *open* once iteration i - 2 is complete at this rank: values have two generations of buffers,
so opening later iterations would overwrite what is still in use.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from stanza_sim.schedule import Compute, RankProgram, Transfer, Unit, UnitKind

Key = tuple[int, int]

GENERATIONS = 2
"""Iterations that may be under way at one rank at once."""


@dataclass(slots=True, kw_only=True)
class Progress:
    """What follows from an event: units that became ready to start, iterations that ended, iterations that opened."""

    ready: list[Key] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)
    opened: list[int] = field(default_factory=list)


NOTHING = Progress()
"""Nothing follows. Never changed."""


class Readiness:
    """Counts, for each unit of each iteration under way, the dependencies that are missing.

    `messages[u]` is the number of messages that unit u sends to or awaits from other ranks. A receive is complete once
    its messages have arrived and its dependencies (of a value handed over in memory) are met; a send without messages
    as soon as its dependencies are met. Everything else is complete when `complete` says so.
    `previous` adds dependencies on units of the iteration before to those of the program.
    """

    def __init__(
        self,
        program: RankProgram,
        iterations: int,
        messages: Mapping[int, int],
        previous: Mapping[int, Sequence[int]] | None = None,
    ) -> None:
        self.units: tuple[Unit, ...] = program.units
        self.iterations = iterations
        self._messages = messages
        n = len(self.units)
        self._needs_previous = [
            tuple(sorted({*u.needs_previous, *(previous or {}).get(u.index, ())})) for u in self.units
        ]
        self._next: list[list[int]] = [[] for _ in range(n)]
        self._next_iteration: list[list[int]] = [[] for _ in range(n)]
        for u in self.units:
            for j in u.needs:
                self._next[j].append(u.index)
            for j in self._needs_previous[u.index]:
                self._next_iteration[j].append(u.index)
        self._missing: dict[int, list[int]] = {}
        self._left: dict[int, set[int]] = {}
        self._met_s: dict[int, list[float]] = {}
        self._opened = 0
        self._ended: set[int] = set()  # of which the iteration that shares their buffers is still to open
        self.completed = 0

    @property
    def finished(self) -> bool:
        """Whether every iteration has ended."""
        return self.completed == self.iterations * len(self.units)

    def begin(self, at_s: float = 0.0) -> Progress:
        """Open the first iterations."""
        progress = Progress()
        if self.units:
            for _ in range(min(GENERATIONS, self.iterations)):
                self._open(progress, at_s)
        return progress

    def complete(self, key: Key, at_s: float = 0.0) -> Progress:
        """`key` had been carried out at `at_s`."""
        progress = Progress()
        self._finish(key, progress, at_s)
        return progress

    def arrived(self, key: Key, at_s: float = 0.0) -> Progress:
        """One of the messages that `key` awaits had arrived at `at_s`."""
        counts = self._missing.get(key[0])
        if counts is not None and counts[key[1]] > 1:  # others are missing still
            counts[key[1]] -= 1
            met = self._met_s[key[0]]
            met[key[1]] = max(met[key[1]], at_s)
            return NOTHING
        progress = Progress()
        self._less(key, progress, at_s)
        return progress

    def met_s(self, key: Key) -> float:
        """The latest of the instants at which the dependencies of `key`, which is ready, were met."""
        return self._met_s[key[0]][key[1]]

    def waiting(self, most: int = 6) -> list[str]:
        """In words, what is incomplete in the oldest iteration under way, and what each unit waits for."""
        if not self._left:
            return []
        i = min(self._left)
        left, lines = self._left[i], []
        for index in sorted(left):
            u = self.units[index]
            lacks = [f"{label(self.units[j])}" for j in u.needs if j in left]
            if i > 0 and i - 1 in self._left:
                lacks += [
                    f"{label(self.units[j])} of the iteration before"
                    for j in self._needs_previous[index]
                    if j in self._left[i - 1]
                ]
            if u.kind is UnitKind.RECV and len(u.peers):
                what = f"awaits messages from ranks {u.peers}" + (f" and {', '.join(lacks)}" if lacks else "")
            elif lacks:
                what = f"waits for {', '.join(lacks)}"
            else:
                what = "has been started or waits for its turn"
            lines.append(f"iteration {i}: {label(u)} {what}")
        return lines[:most] + ([f"and {len(lines) - most} more"] if len(lines) > most else [])

    # ---- counting ----------------------------------------------------------------------------------------------

    def _counts(self, iteration: int) -> list[int]:
        counts = self._missing.get(iteration)
        if counts is None:
            counts = []
            for u in self.units:
                n = 1 + len(u.needs)  # one for the iteration's opening
                if iteration > 0:
                    n += len(self._needs_previous[u.index])
                if u.kind is UnitKind.RECV:
                    n += self._messages.get(u.index, 0)
                counts.append(n)
            self._missing[iteration] = counts
            self._met_s[iteration] = [0.0] * len(counts)
            self._left[iteration] = set(range(len(self.units)))
        return counts

    def _open(self, progress: Progress, at_s: float) -> None:
        i = self._opened
        self._opened += 1
        self._counts(i)
        progress.opened.append(i)
        for u in self.units:
            self._less((i, u.index), progress, at_s)

    def _less(self, key: Key, progress: Progress, at_s: float) -> None:
        counts = self._counts(key[0])
        counts[key[1]] -= 1
        met = self._met_s[key[0]]
        met[key[1]] = max(met[key[1]], at_s)
        if counts[key[1]]:
            return
        unit = self.units[key[1]]
        by_itself = unit.kind is UnitKind.RECV or (unit.kind is UnitKind.SEND and not self._messages.get(unit.index, 0))
        if by_itself:
            self._finish(key, progress, met[key[1]])
        else:
            progress.ready.append(key)

    def _finish(self, key: Key, progress: Progress, at_s: float) -> None:
        i, index = key
        self.completed += 1
        self._left[i].discard(index)
        for j in self._next[index]:
            self._less((i, j), progress, at_s)
        if i + 1 < self.iterations:
            for j in self._next_iteration[index]:
                self._less((i + 1, j), progress, at_s)
        if i in self._missing and not self._left[i]:  # a unit that this one completed may have ended it
            del self._missing[i], self._left[i], self._met_s[i]
            progress.ended.append(i)
            self._ended.add(i)
            while self._opened < self.iterations and self._opened - GENERATIONS in self._ended:
                self._ended.discard(self._opened - GENERATIONS)
                self._open(progress, at_s)


@dataclass(slots=True, kw_only=True)
class _Line:
    """Units of a channel with credit that send to the same destinations."""

    credit: int
    under_way: int = 0
    waiting: list[tuple[int, int, int]] = field(default_factory=list)  # heap of (priority, iteration, unit)


class SendQueue:
    """Which message is posted next: first in, first out for each (destination, channel); lowest priority first.

    `order` has the units that send to each (destination, channel), in program order. Of a channel with credit no more
    units are under way to the same destinations; the one of the lowest priority goes next, whatever the program says.
    """

    def __init__(self, units: Sequence[Unit], order: Mapping[tuple[int, str], Sequence[int]]) -> None:
        self._units = units
        self._order = order
        self._pairs_of: dict[int, list[tuple[int, str]]] = {}
        for pair, indices in order.items():
            for index in indices:
                self._pairs_of.setdefault(index, []).append(pair)
        self._head: dict[tuple[int, str], tuple[int, int]] = dict.fromkeys(order, (0, 0))  # (iteration, position)
        self._ready: dict[tuple[int, str], set[Key]] = {pair: set() for pair in order}
        self._heap: list[tuple[int, int, int, int, str]] = []
        self._line_of: dict[int, _Line] = {}  # of units whose channel has credit
        lines: dict[tuple[str, tuple[int, ...]], _Line] = {}
        for index, pairs in self._pairs_of.items():
            op = units[index].op
            if isinstance(op, Transfer) and op.credit:
                to = op.channel, tuple(sorted(dst for dst, _ in pairs))
                self._line_of[index] = lines.setdefault(to, _Line(credit=op.credit))

    def __bool__(self) -> bool:
        return bool(self._heap)

    def __len__(self) -> int:
        """How many messages may be posted now."""
        return len(self._heap)

    def ready(self, key: Key) -> None:
        """The send unit `key` may start: queue its messages, each behind those before it on its pair."""
        if (line := self._line_of.get(key[1])) is not None:
            heapq.heappush(line.waiting, (self._priority(key[1]), *key))
            self._let_go(line)
            return
        for pair in self._pairs_of[key[1]]:
            self._ready[pair].add(key)
            self._queue_head(pair)

    def sent(self, key: Key) -> None:
        """All messages of the unit `key` have been sent; counts where its channel has credit."""
        if (line := self._line_of.get(key[1])) is not None:
            line.under_way -= 1
            self._let_go(line)

    def _let_go(self, line: _Line) -> None:
        while line.waiting and line.under_way < line.credit:
            line.under_way += 1
            priority, *key = heapq.heappop(line.waiting)
            for pair in self._pairs_of[key[1]]:
                heapq.heappush(self._heap, (priority, key[0], key[1], *pair))

    def _priority(self, unit: int) -> int:
        op = self._units[unit].op
        return 0 if isinstance(op, Compute) else op.priority

    def pop(self) -> tuple[Key, int, str] | None:
        """The next message to post as (key, destination, channel); None if no message may be posted now."""
        if not self._heap:
            return None
        _, iteration, index, dst, channel = heapq.heappop(self._heap)
        pair = dst, channel
        if index in self._line_of:
            return (iteration, index), dst, channel
        i, position = self._head[pair]
        following = position + 1
        self._head[pair] = (i, following) if following < len(self._order[pair]) else (i + 1, 0)
        self._queue_head(pair)
        return (iteration, index), dst, channel

    def _queue_head(self, pair: tuple[int, str]) -> None:
        i, position = self._head[pair]
        key = i, self._order[pair][position]
        if key in self._ready[pair]:
            self._ready[pair].discard(key)
            heapq.heappush(self._heap, (self._priority(key[1]), *key, *pair))


def label(unit: Unit) -> str:
    """The unit's op with its side, as in `push.fc1.recv`."""
    side = {UnitKind.SEND: ".sent", UnitKind.RECV: ".recv"}.get(unit.kind, "")
    return unit.op.name + side
