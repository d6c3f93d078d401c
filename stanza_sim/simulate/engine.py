"""The event-driven engine: runs every class's program on simpy's clock until iterations repeat.

What happens at a rank is decided by counting missing dependencies; simpy keeps the time; `FluidShare` says how fast
activities run. Rates are solved once per instant, after everything that starts or ends at it.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush

import simpy

from stanza_sim.errors import RunError
from stanza_sim.schedule import Collective, Compute, Ranks, Schedule, Transfer, UnitKind
from stanza_sim.simulate.fluid import Activity, FluidShare
from stanza_sim.simulate.lower import Actor, Load, Lowered, Message
from stanza_sim.timeline import Span

WINDOW = 2
"""Iterations that a rank works on at once: buffers come in two generations, so work of iteration i (the posting of
its receives included) waits until iteration i - 2 is complete at the rank."""

_LATE = 2  # simpy priority: after every event of the instant

Pair = tuple[int, int, bool, str]


@dataclass(slots=True)
class _Queue:
    """Messages of one class of pairs on one channel, in program order, across iterations."""

    order: list[tuple[int, int, Message]]  # (source's unit, destination's unit, message) of one iteration
    iteration: int = 0
    position: int = 0
    busy: bool = False
    posted: set[tuple[int, int]] = field(default_factory=set)  # (iteration, position) posted by the sender


@dataclass(slots=True)
class _RingQueue:
    """Collectives of one group, in program order, across iterations, one at a time."""

    order: list[tuple[str, dict[int, int]]]  # (op name, actor -> unit)
    iteration: int = 0
    position: int = 0
    busy: bool = False
    joined: dict[tuple[int, int], int] = field(default_factory=lambda: defaultdict(int))


class _Rank:
    """Progress of one class of ranks."""

    def __init__(self, actor: Actor) -> None:
        self.actor = actor
        units = actor.program.units
        self.base = [len(u.needs) for u in units]
        self.dependants: list[list[int]] = [[] for _ in units]
        self.dependants_next: list[list[int]] = [[] for _ in units]
        self.extra = [0] * len(units)
        for u in units:
            for v in u.needs:
                self.dependants[v].append(u.index)
            for v in u.needs_previous:
                self.dependants_next[v].append(u.index)
            self.extra[u.index] = len(u.needs_previous)
        self.missing: dict[int, list[int]] = {}  # iteration -> per unit
        self.left: dict[int, int] = {}  # iteration -> units not complete
        self.opened = -1
        self.done_iterations = 0
        self.ends: list[float] = []
        self.lanes: dict[str, list[int]] = defaultdict(list)
        for u in units:
            if u.kind is UnitKind.COMPUTE and isinstance(u.op, Compute):
                self.lanes[u.op.lane].append(u.index)
        self.lane_of = {u: lane for lane, us in self.lanes.items() for u in us}
        self.lane_at: dict[str, tuple[int, int]] = dict.fromkeys(self.lanes, (0, 0))
        self.lane_busy: dict[str, bool] = dict.fromkeys(self.lanes, False)
        self.ready: dict[int, set[int]] = defaultdict(set)
        self.arrived: dict[tuple[int, int], int] = defaultdict(int)
        self.sent: dict[tuple[int, int], int] = defaultdict(int)
        self.posting: list[tuple[int, int, int]] = []  # heap of (priority, iteration, unit)
        self.posting_busy = False

    def counts(self, iteration: int) -> list[int]:
        """Missing dependencies of each unit in `iteration`; those on the previous iteration count from the second."""
        if iteration not in self.missing:
            first = iteration == 0
            self.missing[iteration] = [b + (0 if first else e) for b, e in zip(self.base, self.extra, strict=True)]
            self.left[iteration] = len(self.base)
        return self.missing[iteration]


class Engine:
    """Runs a lowered schedule. `until(ends)` is asked after each iteration whether enough is known."""

    def __init__(self, schedule: Schedule, lowered: Lowered, *, keep_spans_from: int = 0) -> None:
        self.lowered = lowered
        self.env = simpy.Environment()
        self.fluid = FluidShare([r.capacity for r in lowered.resources])
        self.ranks = [_Rank(a) for a in lowered.actors]
        self.spans: list[Span] = []
        self.keep_spans_from = keep_spans_from
        self.events = 0
        self._solving = False
        self._completing = False
        self._completions: deque[tuple[int, int, int]] = deque()
        self._wake_s = -1.0
        self._stop = self.env.event()
        self._until: Callable[[list[tuple[float, ...]]], bool] | None = None
        self._first_start: dict[tuple[int, int, int], float] = {}
        self._queues: dict[Pair, _Queue] = {}
        self._place: dict[tuple[int, int, int, bool], tuple[Pair, int]] = {}
        self._recv_queues: list[list[Pair]] = [[] for _ in self.ranks]
        self._rings: dict[Ranks, _RingQueue] = {}
        self._ring_of: dict[str, tuple[Ranks, int]] = {}
        self._build_queues(schedule)

    # ---- setting up ---------------------------------------------------------------------------------------------

    def _build_queues(self, schedule: Schedule) -> None:
        recv_unit: list[dict[str, int]] = []
        for rank in self.ranks:
            recv_unit.append({u.op.name: u.index for u in rank.actor.program.units if u.kind is UnitKind.RECV})
        for a, rank in enumerate(self.ranks):
            for index, messages in rank.actor.messages.items():
                op = rank.actor.program.units[index].op
                if not isinstance(op, Transfer):
                    continue
                for m in messages:
                    pair = (m.src, m.dst, m.near, op.channel)
                    queue = self._queues.get(pair)
                    if queue is None:
                        queue = self._queues[pair] = _Queue(order=[])
                        self._recv_queues[m.dst].append(pair)
                    self._place[a, index, m.dst, m.near] = (pair, len(queue.order))
                    queue.order.append((index, recv_unit[m.dst][op.name], m))
            for u in rank.actor.program.units:
                if u.kind is UnitKind.COLLECTIVE and isinstance(u.op, Collective):
                    group = schedule.group(u.op.ranks)
                    ring = self._rings.setdefault(group, _RingQueue(order=[]))
                    if u.op.name not in self._ring_of:
                        self._ring_of[u.op.name] = (group, len(ring.order))
                        ring.order.append((u.op.name, {}))
                    ring.order[self._ring_of[u.op.name][1]][1][a] = u.index

    # ---- running ------------------------------------------------------------------------------------------------

    def run(self, until: Callable[[list[tuple[float, ...]]], bool]) -> None:
        """Run until `until` is satisfied; it gets each class's iteration ends, cut to the shortest.

        Raises `RunError` that lists what waits for what if nothing can happen any more.
        """
        self._until = until
        for a, rank in enumerate(self.ranks):
            if not rank.actor.program.units:
                rank.ends = [0.0]
            self._open(a)
        self._settle()
        try:
            self.env.run(until=self._stop)
        except RuntimeError:
            if self._stop.triggered:
                raise
            raise RunError(self._deadlock()) from None

    def _at(self, delay_s: float, then: Callable[[], None]) -> None:
        if delay_s <= 0:
            then()
            return
        timeout = self.env.timeout(delay_s)

        def fire(_: simpy.Event) -> None:
            self.events += 1
            then()
            self._settle()

        timeout.callbacks.append(fire)

    def _settle(self) -> None:
        """See to it that rates are solved at the end of this instant, and that the next finish wakes us."""
        if self.fluid.dirty and not self._solving:
            self._solving = True
            event = self.env.event()
            event._ok, event._value = True, None
            event.callbacks.append(self._solve)
            self.env.schedule(event, priority=_LATE)  # type: ignore[arg-type]

    def _solve(self, _: simpy.Event) -> None:
        self._solving = False
        self.fluid.solve(self.env.now)
        self._set_alarm()

    def _set_alarm(self) -> None:
        finish = self.fluid.next_finish_s()
        if finish < float("inf") and finish != self._wake_s:
            self._wake_s = finish
            self.env.timeout(max(0.0, finish - self.env.now)).callbacks.append(self._alarm)

    def _alarm(self, _: simpy.Event) -> None:
        self.events += 1
        self._wake_s = -1.0
        for activity in self.fluid.finish(self.env.now):
            then = activity.tag
            if callable(then):
                then()
        self._settle()
        if not self.fluid.dirty:
            self._set_alarm()

    def _start(self, load: Load, then: Callable[[], None]) -> None:
        """Run `load` now (its delay has passed) and call `then` when it is done."""
        if load.work <= 0:
            then()
            return
        self.fluid.start(
            Activity(work=load.work, usage=load.usage, phi=load.phi, cap=load.cap, tag=then), self.env.now
        )

    # ---- one rank's progress ------------------------------------------------------------------------------------

    def _open(self, a: int) -> None:
        """Let rank class `a` begin every iteration that its window allows."""
        rank = self.ranks[a]
        if not rank.actor.program.units:
            return
        while rank.opened < rank.done_iterations + WINDOW - 1:
            rank.opened += 1
            i = rank.opened
            counts = rank.counts(i)
            ready = [u for u, missing in enumerate(counts) if missing == 0]
            for u in ready:
                self._ready(a, i, u)
            for pair in self._recv_queues[a]:
                self._advance(pair)
            self._drain(a)

    def _ready(self, a: int, i: int, u: int) -> None:
        rank = self.ranks[a]
        unit = rank.actor.program.units[u]
        match unit.kind:
            case UnitKind.COMPUTE:
                rank.ready[i].add(u)
                self._lane(a, rank.lane_of[u])
            case UnitKind.SEND | UnitKind.COLLECTIVE:
                priority = unit.op.priority if isinstance(unit.op, Transfer | Collective) else 0
                heappush(rank.posting, (priority, i, u))
            case UnitKind.RECV:
                self._maybe_received(a, i, u)

    def _complete(self, a: int, i: int, u: int) -> None:
        """Unit `u` of iteration `i` is complete. Completions at one instant are worked off in a loop, not nested."""
        self._completions.append((a, i, u))
        if self._completing:
            return
        self._completing = True
        while self._completions and not self._stop.triggered:
            self._completed(*self._completions.popleft())
        self._completing = False

    def _completed(self, a: int, i: int, u: int) -> None:
        rank = self.ranks[a]
        rank.left[i] -= 1
        for v in rank.dependants[u]:
            self._release(a, i, v)
        for v in rank.dependants_next[u]:
            self._release(a, i + 1, v)
        while rank.left.get(rank.done_iterations) == 0 and not self._stop.triggered:
            done = rank.done_iterations
            del rank.left[done], rank.missing[done]
            rank.ready.pop(done, None)
            rank.ends.append(self.env.now)
            rank.done_iterations += 1
            self._open(a)
            self._iteration_done()
        self._drain(a)

    def _release(self, a: int, i: int, v: int) -> None:
        rank = self.ranks[a]
        counts = rank.counts(i)
        counts[v] -= 1
        if counts[v] == 0 and i <= rank.opened:
            self._ready(a, i, v)

    def _iteration_done(self) -> None:
        if self._stop.triggered or self._until is None:
            return
        known = min(len(r.ends) for r in self.ranks if r.actor.program.units)
        if known and self._until([tuple(r.ends[:known]) for r in self.ranks if r.actor.program.units]):
            self._stop.succeed()

    # ---- lanes --------------------------------------------------------------------------------------------------

    def _lane(self, a: int, lane: str) -> None:
        """Start the next computation of a lane if it is ready and the lane is idle."""
        rank = self.ranks[a]
        if rank.lane_busy[lane]:
            return
        i, k = rank.lane_at[lane]
        u = rank.lanes[lane][k]
        if u not in rank.ready[i]:
            return
        rank.ready[i].discard(u)
        rank.lane_busy[lane] = True
        k += 1
        rank.lane_at[lane] = (i, k) if k < len(rank.lanes[lane]) else (i + 1, 0)
        start = self.env.now

        def done() -> None:
            self._span(a, i, u, start, "", 0)
            rank.lane_busy[lane] = False
            self._complete(a, i, u)
            self._lane(a, lane)

        self._start(rank.actor.loads[u], done)

    # ---- posting ------------------------------------------------------------------------------------------------

    def _drain(self, a: int) -> None:
        """Post what is ready at a sender, the lowest priority number first; posting takes its turn."""
        rank = self.ranks[a]
        while rank.posting and not rank.posting_busy:
            _, i, u = heappop(rank.posting)
            cost = rank.actor.post_s[u]
            if cost <= 0:
                self._posted(a, i, u)
                continue
            rank.posting_busy = True

            def posted(i: int = i, u: int = u) -> None:
                rank.posting_busy = False
                self._posted(a, i, u)
                self._drain(a)

            self._at(cost, posted)

    def _posted(self, a: int, i: int, u: int) -> None:
        rank = self.ranks[a]
        unit = rank.actor.program.units[u]
        if unit.kind is UnitKind.COLLECTIVE:
            self._join(a, i, u)
            return
        messages = rank.actor.messages[u]
        if not messages:
            self._complete(a, i, u)
        for m in messages:
            pair, position = self._place[a, u, m.dst, m.near]
            self._queues[pair].posted.add((i, position))
            self._advance(pair)

    # ---- messages -----------------------------------------------------------------------------------------------

    def _advance(self, pair: Pair) -> None:
        """Start the message at the head of a queue once both sides have posted it."""
        queue = self._queues[pair]
        head = (queue.iteration, queue.position)
        if queue.busy or head not in queue.posted:
            return
        src_unit, dst_unit, m = queue.order[queue.position]
        i = queue.iteration
        if i > self.ranks[m.dst].opened:
            return  # the receive is not posted yet
        queue.posted.discard(head)
        queue.busy = True
        start = self.env.now
        for key in ((m.src, i, src_unit), (m.dst, i, dst_unit)):
            self._first_start.setdefault(key, start)

        def moved() -> None:
            queue.busy = False
            queue.position += 1
            if queue.position == len(queue.order):
                queue.iteration, queue.position = i + 1, 0
            self._sent(m.src, i, src_unit)
            self.ranks[m.dst].arrived[i, dst_unit] += 1
            self._maybe_received(m.dst, i, dst_unit)
            self._advance(pair)

        self._at(m.load.delay_s, lambda: self._start(m.load, moved))

    def _sent(self, a: int, i: int, u: int) -> None:
        rank = self.ranks[a]
        rank.sent[i, u] += 1
        if rank.sent[i, u] == len(rank.actor.messages[u]):
            del rank.sent[i, u]
            self._span(a, i, u, self._first_start.pop((a, i, u)), "sent", rank.actor.traffic[u][0])
            self._complete(a, i, u)

    def _maybe_received(self, a: int, i: int, u: int) -> None:
        """Complete a receive once all has arrived and, for a local pair, its own part is ready."""
        rank = self.ranks[a]
        if i > rank.opened or rank.counts(i)[u] or rank.arrived[i, u] != rank.actor.arrivals[u]:
            return
        del rank.arrived[i, u]
        start = self._first_start.pop((a, i, u), None)
        if start is not None:
            self._span(a, i, u, start, "recv", rank.actor.traffic[u][1])
        self._complete(a, i, u)

    # ---- collectives --------------------------------------------------------------------------------------------

    def _join(self, a: int, i: int, u: int) -> None:
        name = self.ranks[a].actor.program.units[u].op.name
        group, position = self._ring_of[name]
        self._rings[group].joined[i, position] += 1
        self._advance_ring(group)

    def _advance_ring(self, group: Ranks) -> None:
        ring = self._rings[group]
        name, members = ring.order[ring.position]
        head = (ring.iteration, ring.position)
        if ring.busy or ring.joined.get(head, 0) < len(members):
            return
        del ring.joined[head]
        ring.busy = True
        i, start = ring.iteration, self.env.now

        def done() -> None:
            ring.busy = False
            ring.position += 1
            if ring.position == len(ring.order):
                ring.iteration, ring.position = i + 1, 0
            for a, u in members.items():
                self._span(a, i, u, start, "", self.ranks[a].actor.traffic[u][0])
                self._complete(a, i, u)
            self._advance_ring(group)

        load = self.lowered.rings[name].load
        self._at(load.delay_s, lambda: self._start(load, done))

    # ---- records ------------------------------------------------------------------------------------------------

    def _span(self, a: int, i: int, u: int, start: float, side: str, nbytes: int) -> None:
        if i < self.keep_spans_from:
            return
        actor = self.ranks[a].actor
        op = actor.program.units[u].op
        match op:
            case Compute():
                lane = op.lane
            case Transfer():
                lane = op.channel
            case Collective():
                lane = op.ranks
        self.spans.append(
            Span(
                op=op.name,
                rank=actor.rank,
                iteration=i,
                lane=lane,
                side=side,
                start_s=start,
                end_s=self.env.now,
                nbytes=nbytes,
            )
        )

    def _deadlock(self) -> str:
        lines = ["the simulation cannot go on: no op can start"]
        for rank in self.ranks:
            waiting: deque[str] = deque(maxlen=8)
            i = rank.done_iterations
            for u, missing in enumerate(rank.missing.get(i, [])):
                unit = rank.actor.program.units[u]
                if missing:
                    needs = [rank.actor.program.units[v].op.name for v in unit.needs]
                    waiting.append(f"{unit.op.name} ({unit.kind}) waits for {', '.join(needs) or 'its turn'}")
            if waiting:
                lines.append(f"rank {rank.actor.rank}, iteration {i}: " + "; ".join(waiting))
        return "\n  ".join(lines)
