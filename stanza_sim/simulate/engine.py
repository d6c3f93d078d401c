"""The event-driven engine: runs every class's program on simpy's clock until iterations repeat.

What happens at a rank is decided by counting missing dependencies; simpy keeps the time; a fabric moves messages and
says how fast activities run.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from stanza_sim.errors import RunError
from stanza_sim.schedule import Collective, Compute, Ranks, Schedule, Transfer, UnitKind
from stanza_sim.simulate.fabric import Clock, Fabric, Listener, SmallFabric
from stanza_sim.simulate.lower import Actor, Load, Lowered
from stanza_sim.simulate.stepping import Stepping
from stanza_sim.simulate.waking import wakings
from stanza_sim.timeline import Span

if TYPE_CHECKING:
    from stanza_sim.simulate.variation import Variation

WINDOW = 2
"""Iterations that a rank works on at once: buffers come in two generations, so work of iteration i (the posting of
its receives included) waits until iteration i - 2 is complete at the rank."""


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

    def __init__(self, actor: Actor, wake_s: float) -> None:
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
        self.complete: dict[int, set[int]] = defaultdict(set)
        self.arrived: set[tuple[int, int]] = set()
        self.posting: dict[str, list[tuple[int, int, int]]] = {}  # queue -> heap of (urgency, iteration, unit)
        self.queue_of: dict[int, str] = {}
        self.priority: dict[int, int] = {}
        self.credit: dict[str, int] = {}  # queue -> most sends under way, where that is limited
        self.under_way: dict[str, int] = defaultdict(int)
        for u in units:
            if isinstance(u.op, Transfer | Collective):
                self.priority[u.index] = u.op.priority
                self.queue_of[u.index] = f"{u.op.channel} {u.peers}" if isinstance(u.op, Transfer) else f"@{u.op.ranks}"
            if isinstance(u.op, Transfer) and u.op.credit and actor.sends.get(u.index):
                self.credit[self.queue_of[u.index]] = u.op.credit
        self.posting_busy = False
        self.one_by_one = bool(self.credit) or any(cost > 0 for cost in actor.post_s.values())
        self.wakings = wakings(actor.program, wake_s)
        self.wakes: dict[int, list[int]] = defaultdict(list)  # unit -> computations that a lane wakes up for
        self.wakes_next: dict[int, list[int]] = defaultdict(list)
        for v, others in self.wakings.items():
            for needed in others.needs:
                self.wakes[needed].append(v)
            for needed in others.needs_previous:
                self.wakes_next[needed].append(v)
        self.called_s: dict[tuple[int, int], float] = {}  # (iteration, unit) -> when what it needs of others was there

    def counts(self, iteration: int) -> list[int]:
        """Missing dependencies of each unit in `iteration`; those on the previous iteration count from the second."""
        if iteration not in self.missing:
            first = iteration == 0
            self.missing[iteration] = [b + (0 if first else e) for b, e in zip(self.base, self.extra, strict=True)]
            self.left[iteration] = len(self.base)
        return self.missing[iteration]


class Engine:
    """Runs a lowered schedule on a fabric."""

    def __init__(
        self,
        schedule: Schedule,
        lowered: Lowered,
        *,
        fabric: Callable[[Lowered, Clock, Listener], Fabric] = SmallFabric,
    ) -> None:
        self.lowered = lowered
        self.variation: Variation | None = None  # makes computations take longer or shorter
        self._factor: dict[tuple[int, int], float] = {}  # (rank, iteration) -> by how much
        self.clock = Clock()
        self.fabric = fabric(lowered, self.clock, self)
        self.ranks = [_Rank(a, lowered.wake_s) for a in lowered.actors]
        self.spans: list[Span] = []
        self._working = sum(1 for r in self.ranks if r.actor.program.units)
        self._finished: dict[int, int] = defaultdict(int)
        self._completing = False
        self._completions: deque[tuple[int, int, int]] = deque()
        self._posting: dict[int, None] = {}  # ranks that may post something, in order
        self._stop = self.clock.env.event()
        self._until: Callable[[list[tuple[float, ...]]], bool] | None = None
        self._rings: dict[Ranks, _RingQueue] = {}
        self._ring_of: dict[str, tuple[Ranks, int]] = {}
        for a, rank in enumerate(self.ranks):
            for u in rank.actor.program.units:
                if u.kind is UnitKind.COLLECTIVE and isinstance(u.op, Collective):
                    group = schedule.group(u.op.ranks)
                    ring = self._rings.setdefault(group, _RingQueue(order=[]))
                    if u.op.name not in self._ring_of:
                        self._ring_of[u.op.name] = (group, len(ring.order))
                        ring.order.append((u.op.name, {}))
                    ring.order[self._ring_of[u.op.name][1]][1][a] = u.index
        self._stepping: dict[Ranks, Stepping] = {}
        for group, ring in self._rings.items():
            programs = [(name, p) for name, _ in ring.order if (p := lowered.rings[name].program) is not None]
            if programs:
                self._stepping[group] = Stepping(self.clock, self.fabric, self._stepped, programs)

    @property
    def events(self) -> int:
        """Events of the clock so far."""
        return self.clock.events

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
        self.fabric.settle()
        try:
            self.clock.env.run(until=self._stop)
        except RuntimeError as e:
            if "No scheduled events left" not in str(e):
                raise
            raise RunError(self._deadlock()) from None

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
            for v, others in rank.wakings.items():
                if others.needs_previous:
                    rank.called_s[i, v] = self.clock.now
            ready = [u for u, missing in enumerate(counts) if missing == 0]
            for u in ready:
                self._ready(a, i, u)
            self.fabric.open(a, i)
            self._may_post(a)

    def _ready(self, a: int, i: int, u: int) -> None:
        rank = self.ranks[a]
        unit = rank.actor.program.units[u]
        match unit.kind:
            case UnitKind.COMPUTE:
                called_s = rank.called_s.pop((i, u), None)
                if called_s is None or (late_s := called_s + self.lowered.wake_s - self.clock.now) <= 0:
                    self._awake(a, i, u)
                else:
                    self.clock.after(late_s, lambda: self._awake(a, i, u))
            case UnitKind.SEND | UnitKind.COLLECTIVE:
                queue = rank.queue_of[u]
                heappush(rank.posting.setdefault(queue, []), (rank.priority[u] if queue in rank.credit else 0, i, u))
            case UnitKind.RECV:
                self._maybe_received(a, i, u)

    def _awake(self, a: int, i: int, u: int) -> None:
        """A computation has all that it needs, and its lane knows."""
        rank = self.ranks[a]
        rank.ready[i].add(u)
        self._lane(a, rank.lane_of[u])

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
        rank.complete[i].add(u)
        if rank.wakings:
            rank.called_s.update(((i, v), self.clock.now) for v in rank.wakes[u])
            rank.called_s.update(((i + 1, v), self.clock.now) for v in rank.wakes_next[u])
        for v in rank.dependants[u]:
            self._release(a, i, v)
        for v in rank.dependants_next[u]:
            self._release(a, i + 1, v)
        while rank.left.get(rank.done_iterations) == 0 and not self._stop.triggered:
            done = rank.done_iterations
            del rank.left[done], rank.missing[done]
            rank.ready.pop(done, None)
            rank.complete.pop(done - 1, None)
            rank.ends.append(self.clock.now)
            rank.done_iterations += 1
            self._open(a)
            self._iteration_done(done)
        self._may_post(a)

    def _release(self, a: int, i: int, v: int) -> None:
        rank = self.ranks[a]
        counts = rank.counts(i)
        counts[v] -= 1
        if counts[v] == 0 and i <= rank.opened:
            self._ready(a, i, v)

    def _iteration_done(self, i: int) -> None:
        """A class has completed iteration `i`; once all have, ask whether enough is known."""
        self._finished[i] += 1
        if self._stop.triggered or self._until is None or self._finished[i] < self._working:
            return
        if self._until([tuple(r.ends[: i + 1]) for r in self.ranks if r.actor.program.units]):
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
        start = self.clock.now

        def done() -> None:
            self._span(a, i, u, start, "", 0)
            rank.lane_busy[lane] = False
            self._complete(a, i, u)
            self._lane(a, lane)

        load = rank.actor.loads[u]
        if self.variation is not None:
            drawn = (rank.actor.rank, i)
            if drawn not in self._factor:
                self._factor[drawn] = self.variation.factor(*drawn)
            load = replace(load, work=load.work * self._factor[drawn])
        self.fabric.begin((a, u), i, load, done)

    # ---- posting ------------------------------------------------------------------------------------------------

    def _may_post(self, a: int) -> None:
        """Something is ready at a sender, or it has posted something.

        What it posts next is chosen among all that is ready at this instant, so after every other event of it.
        """
        rank = self.ranks[a]
        if not rank.posting or rank.posting_busy:
            return
        if not rank.one_by_one:  # then there is nothing to choose
            self._post(a)
            return
        if not self._posting:
            self.clock.late(self._post_all)
        self._posting[a] = None

    def _post_all(self) -> None:
        posting, self._posting = self._posting, {}
        for a in posting:
            self._post(a)
        self.fabric.settle()

    def _post(self, a: int) -> None:
        """Post what is ready at a sender, one after the other.

        Program order holds among the same pairs and channel, and in a group; between those, and in a channel with
        credit, the lowest priority goes first.
        """
        rank = self.ranks[a]
        while rank.posting and not rank.posting_busy:
            free = list(rank.posting)
            if rank.credit:
                free = [q for q in free if q not in rank.credit or rank.under_way[q] < rank.credit[q]]
                if not free:
                    return
            queue = min(free, key=lambda q: (rank.priority[rank.posting[q][0][2]], rank.posting[q][0][1:]))
            _, i, u = heappop(rank.posting[queue])
            if not rank.posting[queue]:
                del rank.posting[queue]
            if queue in rank.credit and rank.actor.sends[u]:
                rank.under_way[queue] += 1
            cost = rank.actor.post_s[u]
            if cost <= 0:
                self._posted(a, i, u)
                continue
            rank.posting_busy = True

            def posted(i: int = i, u: int = u) -> None:
                rank.posting_busy = False
                self._posted(a, i, u)
                self._may_post(a)

            self.clock.after(cost, posted)

    def _posted(self, a: int, i: int, u: int) -> None:
        rank = self.ranks[a]
        unit = rank.actor.program.units[u]
        if unit.kind is UnitKind.COLLECTIVE:
            self._join(a, i, u)
            return
        if rank.actor.sends[u]:
            self.fabric.post(a, i, u)
        else:
            self._complete(a, i, u)

    # ---- messages -----------------------------------------------------------------------------------------------

    def sent(self, a: int, i: int, u: int, start_s: float) -> None:
        """Everything that unit `u` of class `a` sends in iteration `i` has left."""
        rank = self.ranks[a]
        self._span(a, i, u, start_s, "sent", rank.actor.traffic[u][0])
        if (queue := rank.queue_of[u]) in rank.credit:
            rank.under_way[queue] -= 1
        self._complete(a, i, u)

    def arrived(self, a: int, i: int, u: int, start_s: float) -> None:
        """Everything that unit `u` of class `a` receives in iteration `i` is there."""
        self._span(a, i, u, start_s, "recv", self.ranks[a].actor.traffic[u][1])
        self.ranks[a].arrived.add((i, u))
        self._maybe_received(a, i, u)

    def iterations_done(self, a: int) -> int:
        """How many iterations class `a` has completed."""
        return self.ranks[a].done_iterations

    def _maybe_received(self, a: int, i: int, u: int) -> None:
        """Complete a receive once all has arrived and, for a local pair, its own part is ready."""
        rank = self.ranks[a]
        if i > rank.opened or rank.counts(i)[u]:
            return
        if rank.actor.arrivals[u]:
            if (i, u) not in rank.arrived:
                return
            rank.arrived.discard((i, u))
        self._complete(a, i, u)

    # ---- collectives --------------------------------------------------------------------------------------------

    def _join(self, a: int, i: int, u: int) -> None:
        """Class `a` takes part in a collective, once its part is copied from a staged device."""
        copies = self.ranks[a].actor.copies.get(u)
        self._copy(None if copies is None else copies.out, i, lambda: self._joined(a, i, u))

    def _copy(self, load: Load | None, i: int, then: Callable[[], None]) -> None:
        """Call `then` when `load`, if any, is done."""
        if load is None:
            then()
        else:
            self.clock.after(load.delay_s, lambda: self.fabric.begin((), i, load, then))

    def _joined(self, a: int, i: int, u: int) -> None:
        name = self.ranks[a].actor.program.units[u].op.name
        group, position = self._ring_of[name]
        if group in self._stepping:
            self._stepping[group].join(a, i, position)
            return
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
        i, start = ring.iteration, self.clock.now

        def done() -> None:
            ring.busy = False
            ring.position += 1
            if ring.position == len(ring.order):
                ring.iteration, ring.position = i + 1, 0
            for a, u in members.items():
                self._collected(a, i, u, start)
            self._advance_ring(group)

        load = self.lowered.rings[name].load
        self.clock.after(load.delay_s, lambda: self.fabric.begin((name,), i, load, done))

    def _stepped(self, a: int, i: int, name: str, start_s: float) -> None:
        """Class `a` is through with the steps of a collective."""
        group, position = self._ring_of[name]
        self._collected(a, i, self._rings[group].order[position][1][a], start_s)

    def _collected(self, a: int, i: int, u: int, start_s: float) -> None:
        """Class `a` has what a collective gives it, and copies it to a staged device."""

        def there() -> None:
            self._span(a, i, u, start_s, "", self.ranks[a].actor.traffic[u][0])
            self._complete(a, i, u)

        copies = self.ranks[a].actor.copies.get(u)
        self._copy(None if copies is None else copies.into, i, there)

    # ---- records ------------------------------------------------------------------------------------------------

    def _span(self, a: int, i: int, u: int, start: float, side: str, nbytes: int) -> None:
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
                end_s=self.clock.now,
                nbytes=nbytes,
            )
        )

    def _deadlock(self) -> str:
        """Which units wait, and for what, in the first iteration that each class has not completed."""
        lines = ["the simulation cannot go on: no op can start"]
        for rank in self.ranks:
            i = rank.done_iterations
            units = rank.actor.program.units
            waiting: list[str] = []
            for u, missing in enumerate(rank.missing.get(i, [])):
                unit = units[u]
                what = f"{unit.op.name} ({unit.kind})"
                if missing:
                    names = [units[v].op.name for v in unit.needs if v not in rank.complete[i]]
                    names += [
                        f"{units[v].op.name} of iteration {i - 1}"
                        for v in unit.needs_previous
                        if i and v not in rank.complete[i - 1]
                    ]
                    waiting.append(f"{what} waits for {', '.join(names)}")
                elif u not in rank.complete[i]:
                    role = {
                        UnitKind.COMPUTE: "its turn in its lane",
                        UnitKind.SEND: "its turn, or its receivers",
                        UnitKind.RECV: f"messages from {unit.peers}",
                        UnitKind.COLLECTIVE: "the other members",
                    }[unit.kind]
                    waiting.append(f"{what} is ready and waits for {role}")
            if waiting:
                more = [f"and {len(waiting) - 8} more"] if len(waiting) > 8 else []
                lines.append(f"rank {rank.actor.rank}, iteration {i}: " + "; ".join(waiting[:8] + more))
        return "\n  ".join(lines)
