"""What moves and what computes: queues of messages and the solver behind them, for a moderate number of messages.

The engine decides what is posted and when; a fabric starts a message once both sides have posted it and it is first in
its queue, lets activities share resources, and tells the engine what is complete. For very many messages
`compiled.py` does all of this, and what the engine does, in compiled code.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Protocol

from stanza_sim.schedule import Transfer, UnitKind
from stanza_sim.simulate.background import OnOff
from stanza_sim.simulate.lowered import Activity, Lowered, Message
from stanza_sim.simulate.plain.clock import SimClock
from stanza_sim.simulate.plain.fluid import TIE, FluidShare, RunningActivity
from stanza_sim.simulate.plain.token_bucket import TokenBuckets

Pair = tuple[int, int, int, str]


class Listener(Protocol):
    """What a fabric tells the engine. `start_s` is when the first of the messages began to move."""

    def sent(self, a: int, i: int, u: int, start_s: float) -> None:
        """Everything that unit `u` of class `a` sends in iteration `i` has left."""

    def arrived(self, a: int, i: int, u: int, start_s: float) -> None:
        """Everything that unit `u` of class `a` receives in iteration `i` is there."""


class Fabric(Protocol):
    """Runs activities and messages."""

    def begin(self, key: tuple[str | int, ...], iteration: int, activity: Activity, then: Callable[[], object]) -> None:
        """Run `activity` from now on and call `then` when it is done; `key` names it, the same in every iteration."""

    def post(self, a: int, i: int, u: int) -> None:
        """Class `a` has posted the messages of its send `u` of iteration `i`."""

    def open(self, a: int, i: int) -> None:
        """Class `a` has posted all its receives of iteration `i`."""

    def accept(self, a: int, i: int, u: int) -> None:
        """Class `a` has posted its receive `u` of iteration `i`, of an iteration that is never opened as a whole."""

    def background_bytes(self) -> dict[int, float]:
        """Bytes of background traffic that have passed each resource until now."""


@dataclass(slots=True)
class _Queue:
    """Messages of one class of pairs on one channel, in program order, across iterations."""

    order: list[tuple[int, int, Message]]  # (source's unit, destination's unit, message) of one iteration
    iteration: int = 0
    position: int = 0
    busy: bool = False
    posted: set[tuple[int, int]] = field(default_factory=set)  # (iteration, position) posted by the sender


class SmallFabric:
    """A fabric in plain Python: one object per message class and per running activity."""

    def __init__(self, lowered: Lowered, clock: SimClock, listener: Listener) -> None:
        self.clock, self.listener = clock, listener
        self.share = FluidShare([r.capacity for r in lowered.resources])
        self.rank_classes = lowered.rank_classes
        self._opened = [-1] * len(self.rank_classes)
        self._accepted: set[tuple[int, int, int]] = set()  # receives that are posted by themselves
        self._sent: dict[tuple[int, int, int], int] = defaultdict(int)
        self._arrived: dict[tuple[int, int, int], int] = defaultdict(int)
        self._first_s: dict[tuple[int, int, int], float] = {}
        self._queues: dict[Pair, _Queue] = {}
        self._place: dict[tuple[int, int, int, int], tuple[Pair, int]] = {}
        self._incoming: list[list[Pair]] = [[] for _ in self.rank_classes]
        self._solving = False
        self._wake_s = inf  # when the next alarm is due
        self._traffic = [
            RunningActivity(work=inf, usage=((f.resource, 1.0),), weight=f.weight, cap=f.traffic.bandwidth_Bps)
            for f in lowered.background
        ]
        self._token_buckets = TokenBuckets(lowered.token_buckets, self.share, clock)
        self._empty_s = inf  # when the next bucket will be empty
        self._on_off = OnOff(lowered.background, clock, self._switch)
        for running, there in zip(self._traffic, self._on_off.there, strict=True):
            if there:
                self.share.start(running, 0.0)
                self._settle()
        receives = [
            {u.op.name: u.index for u in rank_class.program.units if u.kind is UnitKind.RECV}
            for rank_class in self.rank_classes
        ]
        for a, rank_class in enumerate(self.rank_classes):
            for index, messages in rank_class.messages.items():
                op = rank_class.program.units[index].op
                if not isinstance(op, Transfer):
                    continue
                for m in messages:
                    pair = (m.src, m.dst, m.kind, op.queue)
                    queue = self._queues.get(pair)
                    if queue is None:
                        queue = self._queues[pair] = _Queue(order=[])
                        self._incoming[m.dst].append(pair)
                    self._place[a, index, m.dst, m.kind] = (pair, len(queue.order))
                    queue.order.append((index, receives[m.dst][op.name], m))

    # ---- activities -----------------------------------------------------------------------------------------

    def begin(self, key: tuple[str | int, ...], iteration: int, activity: Activity, then: Callable[[], object]) -> None:
        """See `Fabric.begin`."""
        if activity.work <= 0:
            then()
            return
        running = RunningActivity(
            work=activity.work, usage=activity.usage, weight=activity.weight, cap=activity.cap, tag=then
        )
        self.share.start(running, self.clock.now)
        self._settle()

    def _settle(self) -> None:
        """Have rates solved at the end of this instant: everything that starts or ends in it is one solve."""
        if not self._solving:
            self._solving = True
            self.clock.late(self._solve)

    def _solve(self) -> None:
        self._solving = False
        self._token_buckets.refill()
        self.share.solve(self.clock.now)
        self._empty_s = self._token_buckets.drain()
        self._set_alarm()
        self._on_off.arm()

    def _switch(self, k: int, there: bool) -> None:
        """Background traffic comes or goes."""
        if there:
            self.share.start(self._traffic[k], self.clock.now)
        else:
            self.share.stop(self._traffic[k], self.clock.now)
        self._settle()

    def background_bytes(self) -> dict[int, float]:
        """See `Fabric.background_bytes`."""
        now = self.clock.now
        return {a.usage[0][0]: a.served + a.rate * (now - a.since_s) for a in self._traffic}

    def _set_alarm(self) -> None:
        finish = min(self.share.next_finish_s(), self._empty_s)
        if finish < self._wake_s:  # an alarm that is early sets the next one
            self._wake_s = finish
            self.clock.wake(finish, self._alarm)

    def _alarm(self) -> None:
        self._wake_s = inf
        for running in self.share.finish(self.clock.now):
            then = running.tag
            if callable(then):
                then()
        if self._empty_s <= self.clock.now * (1 + TIE):
            self._token_buckets.refill()
        if self.share.dirty:
            self._settle()
        else:
            self._set_alarm()

    # ---- messages -------------------------------------------------------------------------------------------

    def post(self, a: int, i: int, u: int) -> None:
        """See `Fabric.post`."""
        for m in self.rank_classes[a].messages[u]:
            pair, position = self._place[a, u, m.dst, m.kind]
            if m.copy_out is None:
                self._posted(pair, i, position)
            else:
                self._first_s.setdefault((a, i, u), self.clock.now)
                self._copy(m.copy_out, i, partial(self._posted, pair, i, position))

    def _posted(self, pair: Pair, i: int, position: int) -> None:
        self._queues[pair].posted.add((i, position))
        self._advance(pair)

    def _copy(self, activity: Activity, i: int, then: Callable[[], None]) -> None:
        self.clock.after(activity.delay_s, lambda: self.begin((), i, activity, then))

    def open(self, a: int, i: int) -> None:
        """See `Fabric.open`."""
        self._opened[a] = i
        for pair in self._incoming[a]:
            self._advance(pair)

    def accept(self, a: int, i: int, u: int) -> None:
        """See `Fabric.accept`."""
        self._accepted.add((a, i, u))
        for pair in self._incoming[a]:
            self._advance(pair)

    def _advance(self, pair: Pair) -> None:
        """Start the message at the head of a queue once both sides have posted it."""
        queue = self._queues[pair]
        head = (queue.iteration, queue.position)
        if queue.busy or head not in queue.posted:
            return
        src_unit, dst_unit, m = queue.order[queue.position]
        i = queue.iteration
        if i > self._opened[m.dst] and (m.dst, i, dst_unit) not in self._accepted:
            return  # the receive is not posted yet
        queue.posted.discard(head)
        queue.busy = True
        sender, receiver = (m.src, i, src_unit), (m.dst, i, dst_unit)
        self._first_s.setdefault(sender, self.clock.now)
        if receiver != sender:
            self._first_s.setdefault(receiver, self.clock.now)

        def moved() -> None:
            queue.busy = False
            queue.position += 1
            if queue.position == len(queue.order):
                queue.iteration, queue.position = i + 1, 0
            if self._count(self._sent, sender, len(self.rank_classes[m.src].messages[src_unit])):
                self.listener.sent(*sender, self._first_s.pop(sender))
            if m.copy_in is None:
                arrived()
            else:
                self._copy(m.copy_in, i, arrived)
            self._advance(pair)

        def arrived() -> None:
            if self._count(self._arrived, receiver, self.rank_classes[m.dst].arrivals[dst_unit]):
                self._accepted.discard(receiver)
                self.listener.arrived(*receiver, self._first_s.pop(receiver))

        self.clock.after(m.activity.delay_s, lambda: self.begin((), i, m.activity, moved))

    @staticmethod
    def _count(counts: dict[tuple[int, int, int], int], key: tuple[int, int, int], wanted: int) -> bool:
        counts[key] += 1
        if counts[key] < wanted:
            return False
        del counts[key]
        return True
