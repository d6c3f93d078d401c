"""The critical path: the chain of ops and waits that sets how long an iteration takes, across ranks and iterations.

It is found by walking back from the last end of an iteration. Whatever is on the path began at some instant because
the last of what it waited for had ended by then: what it names in `after`, what comes before it in its lane, channel
or group, and the iteration before the last at its rank, which makes room for this one. The walk goes on there; the
time between that end and the beginning, if any, is a wait (the overhead of posting, latency, waking up). A receive
continues at the sender whose messages ended last; a collective, at the member that joined last.

In a steady state the walk comes to an op at a rank where it has been before, one period (or several) later. What lies
between is a circle that repeats for ever, and its length over its iterations is the time of an iteration. Where the
timeline is too short to close the circle, the path is the last period, cut at its ends.

What is not followed: a rank that posts many messages one after the other shows as a wait before each, and so does an op
that begins while what is before it in its channel still moves to other ranks. Of messages that share a link, the path
has one, for as long as it moves, and not those that slow it down.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from stanza_sim.base.tables import Tabular
from stanza_sim.base.units import format_time
from stanza_sim.schedule import Collective, Compute, Ranks, Schedule, Transfer, UnitKind, project
from stanza_sim.schedule.program import RankProgram, Unit
from stanza_sim.schedule.progress import WINDOW
from stanza_sim.timeline.spans import Span, Timeline

SAME = 1e-9
"""Two instants that differ by no more, relative to the end of the timeline, are one."""


class StepKind(StrEnum):
    """What a step of a path is."""

    COMPUTE = "compute"
    TRANSFER = "transfer"
    COLLECTIVE = "collective"
    WAIT = "wait"


@dataclass(frozen=True, slots=True, kw_only=True)
class PathStep:
    """One step: `op` of `iteration` at `rank` from `start_s` to `end_s`, seconds on the timeline's clock.

    A wait is the time before `op` in which nothing that it waits for is under way. `rank` is the rank that ends the
    step: of a transfer the receiver. In a folded prediction it stands for its class.
    """

    kind: StepKind
    op: str
    rank: int
    iteration: int
    start_s: float
    end_s: float

    @property
    def seconds(self) -> float:
        """How long the step takes."""
        return self.end_s - self.start_s


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class CriticalPath(Tabular):
    """Steps in the order of time, each beginning where the one before it ends, over so many `iterations`.

    `closed` says that the path is a circle: it begins at the op and rank at which it ends, `iterations` earlier.
    """

    steps: tuple[PathStep, ...]
    iterations: int
    closed: bool

    @property
    def seconds(self) -> float:
        """The time between its ends, which is the sum of its steps."""
        return self.steps[-1].end_s - self.steps[0].start_s if self.steps else 0.0

    @property
    def iteration_s(self) -> float:
        """Seconds per iteration. In a steady state this is the time of an iteration."""
        return self.seconds / self.iterations

    @property
    def by_kind(self) -> dict[StepKind, float]:
        """Seconds per iteration of each kind of step, the most first."""
        total: defaultdict[StepKind, float] = defaultdict(float)
        for step in self.steps:
            total[step.kind] += step.seconds / self.iterations
        return dict(sorted(total.items(), key=lambda item: -item[1]))

    def __iter__(self) -> Iterator[PathStep]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)

    def __repr__(self) -> str:
        per = f"{self.iterations} iterations" if self.iterations > 1 else "one iteration"
        shares = ", ".join(f"{kind} {format_time(seconds)}" for kind, seconds in self.by_kind.items())
        return f"<CriticalPath of {len(self.steps)} steps in {per}: {shares} per iteration>"

    def _columns(self) -> Mapping[str, Sequence[object]]:
        names = ("kind", "op", "rank", "iteration", "start_s", "end_s", "seconds")
        return {name: [getattr(step, name) for step in self.steps] for name in names}


_Node = tuple[int, int, int]
"""(rank, iteration, index of the unit in the rank's program)."""


def critical_path(
    schedule: Schedule,
    timeline: Timeline,
    window: tuple[int, int],
    *,
    representative: Callable[[int], int] = lambda rank: rank,
) -> CriticalPath:
    """Return the critical path of a run of `schedule`, of which iterations first+1 .. last, the `window`, repeat.

    `representative(r)` is the rank whose spans stand for those of rank r, where identical ranks are folded.
    """
    first, last = window
    walk = _Walk(schedule, timeline, representative)
    ends = timeline.iteration_end_s
    rank = max(ends, key=lambda r: (ends[r][last], -r))
    period = last - first
    steps: list[PathStep] = []
    seen: dict[tuple[int, int], tuple[int, int]] = {}  # (rank, unit) -> (iteration, how many steps had been taken)
    node: _Node | None = walk.last_of(rank, last)
    now = ends[rank][last]
    least = ends[rank][first]
    cut: list[PathStep] | None = None
    while node is not None:
        if walk.ended(node) >= now - walk.same:  # a circle begins and ends at the end of an op
            iteration, taken = seen.setdefault((node[0], node[2]), (node[1], len(steps)))
            laps = iteration - node[1]
            if laps > 0 and laps % period == 0:
                return CriticalPath(steps=tuple(reversed(steps[taken:])), iterations=laps, closed=True)
        now, node, back = walk.back(node, now)
        steps += back
        if cut is None and now <= least:
            cut = _cut(steps, least)
    path = cut if cut is not None else steps
    return CriticalPath(steps=tuple(reversed(path)), iterations=period, closed=False)


def _cut(steps: Sequence[PathStep], least: float) -> list[PathStep]:
    """The parts of `steps` after the instant `least`."""
    return [replace(step, start_s=max(step.start_s, least)) for step in steps if step.end_s > least]


class _Walk:
    """Finds, for what is on the path, when it began, and what it waited for last."""

    def __init__(self, schedule: Schedule, timeline: Timeline, representative: Callable[[int], int]) -> None:
        self._schedule, self._timeline, self._of = schedule, timeline, representative
        self._spans: dict[tuple[int, int, str, str], Span] = {}
        for s in timeline.spans:
            self._spans[s.rank, s.iteration, s.op, s.side] = s
        self._programs: dict[int, RankProgram] = {}
        self._places: dict[int, dict[tuple[str, UnitKind], int]] = {}
        self._queues: dict[int, dict[int, _Queues]] = {}
        self._ended: dict[_Node, float] = {}
        self._last: dict[tuple[int, int], _Node] = {}
        latest = max((e[-1] for e in timeline.iteration_end_s.values() if e), default=0.0)
        self.same = SAME * latest

    def _program(self, rank: int) -> RankProgram:
        if rank not in self._programs:
            program = self._programs[rank] = project(self._schedule, rank)
            self._places[rank] = {(u.op.name, u.kind): u.index for u in program.units}
            self._queues[rank] = _queues(program)
        return self._programs[rank]

    def _unit(self, node: _Node) -> Unit:
        return self._program(node[0]).units[node[2]]

    def _span(self, node: _Node) -> Span | None:
        unit = self._unit(node)
        side = {UnitKind.SEND: "sent", UnitKind.RECV: "recv"}.get(unit.kind, "")
        return self._spans.get((node[0], node[1], unit.op.name, side))

    def last_of(self, rank: int, iteration: int) -> _Node:
        """What ended last at `rank` in `iteration`; of equal ones, the last of the program."""
        found = self._last.get((rank, iteration))
        if found is None:
            nodes = [(rank, iteration, u.index) for u in self._program(rank).units]
            found = self._last[rank, iteration] = max(nodes, key=lambda n: (self.ended(n), n[2]))
        return found

    def ended(self, node: _Node) -> float:
        """When a unit was complete; what has no span (a value that is handed over) as soon as all that it needs is."""
        known = self._ended.get(node)
        if known is None:
            span, needs = self._span(node), self._needs(node)
            passes = span is None or self._unit(node).kind is UnitKind.RECV
            known = max((self.ended(n) for n in needs), default=0.0) if passes else 0.0
            self._ended[node] = known = known if span is None else max(known, span.end_s)
        return known

    def back(self, node: _Node, now: float) -> tuple[float, _Node | None, list[PathStep]]:
        """Take a step back from `node`, which ended by `now`: what led to it, since when, and the steps, latest first.

        The first of them is a wait, where `node` ended before `now`: then it is of what was walked from.
        """
        steps: list[PathStep] = []
        unit, (rank, iteration, _) = self._unit(node), node
        span = self._span(node)
        begins: Sequence[_Node]
        if span is None or (unit.kind is UnitKind.RECV and self.ended(node) > span.end_s + self.same):
            begins, start = self._needs(node), now  # a hand-over: it was complete when what it needs was
        elif unit.kind is UnitKind.RECV:
            sender = self._sender(node, span)
            begun = span if sender is None else self._span(sender) or span
            start = min(begun.start_s, now)
            begins = [] if sender is None else self._before(sender)
        else:
            start, begins = min(span.start_s, now), self._before(node)
        if start < now:
            steps.append(_step(unit, rank, iteration, start, now))
        led = self._latest(begins, start)
        if led is None:
            return start, None, steps
        end = min(self.ended(led), start)
        if start - end > self.same:
            wait = PathStep(
                kind=StepKind.WAIT, op=unit.op.name, rank=rank, iteration=iteration, start_s=end, end_s=start
            )
            steps.append(wait)
            start = end
        return start, led, steps

    def _latest(self, nodes: Sequence[_Node], by: float) -> _Node | None:
        """Of `nodes` the one that ended last, by that instant; if none had, the one that ended first."""
        done = [n for n in nodes if self.ended(n) <= by + self.same]
        if done:
            return max(done, key=lambda n: (self.ended(n), n[1], n[2]))
        return min(nodes, key=self.ended, default=None)

    # ---- what a unit waits for -----------------------------------------------------------------------------------

    def _needs(self, node: _Node) -> list[_Node]:
        rank, iteration, _ = node
        unit = self._unit(node)
        found = [(rank, iteration, j) for j in unit.needs]
        if iteration > self._timeline.first_iteration:
            found += [(rank, iteration - 1, j) for j in unit.needs_previous]
        return found

    def _window(self, rank: int, iteration: int) -> list[_Node]:
        """The iteration that had to end at `rank` before this one could begin."""
        before = iteration - WINDOW
        return [self.last_of(rank, before)] if before >= self._timeline.first_iteration else []

    def _before(self, node: _Node) -> list[_Node]:
        """All that may have kept a computation, a collective or a send from beginning earlier."""
        rank, iteration, index = node
        unit = self._unit(node)
        found = self._needs(node) + self._window(rank, iteration) + self._queue(node)
        match unit.op:
            case Collective():
                for other in map(self._of, unit.peers):
                    if (place := self._place(other, unit.op.name, UnitKind.COLLECTIVE)) is not None:
                        member = (other, iteration, place)
                        found += self._needs(member) + self._window(other, iteration) + self._queue(member)
            case Transfer():
                for other in map(self._of, unit.peers):
                    found += self._window(other, iteration)
            case Compute():
                pass
        return [n for n in dict.fromkeys(found) if n != (rank, iteration, index)]

    def _queue(self, node: _Node) -> list[_Node]:
        """What is before a unit in its lane, group or channel, in its iteration or at the end of the one before.

        Of what goes one at a time that is one unit; with credit, all that may have used it up.
        """
        rank, iteration, index = node
        op = self._unit(node).op
        again = iteration > self._timeline.first_iteration
        found: list[_Node] = []
        for queue in self._queues[rank].get(index, ()):
            place = bisect_left(queue, index)
            earlier, later = queue[:place], queue[place:]
            if not (isinstance(op, Transfer) and op.credit):
                earlier, later = earlier[-1:], () if earlier else later[-1:]
            found += [(rank, iteration, j) for j in earlier]
            found += [(rank, iteration - 1, j) for j in later if again]
        return found

    def _sender(self, node: _Node, span: Span) -> _Node | None:
        """The sender whose messages ended when the receive did; of several, the one that began last."""
        iteration, unit = node[1], self._unit(node)
        found: list[tuple[bool, float, _Node]] = []
        for other in dict.fromkeys(map(self._of, unit.peers)):
            if (place := self._place(other, unit.op.name, UnitKind.SEND)) is not None:
                sender = (other, iteration, place)
                if (sent := self._span(sender)) is not None and sent.start_s <= span.end_s + self.same:
                    found.append((sent.end_s >= span.end_s - self.same, sent.start_s, sender))
        return max(found)[2] if found else None

    def _place(self, rank: int, op: str, kind: UnitKind) -> int | None:
        self._program(rank)
        return self._places[rank].get((op, kind))


_Queues = tuple[tuple[int, ...], ...]


def _queues(program: RankProgram) -> dict[int, _Queues]:
    """The queues of each unit: its lane, its group, or sends of its channel to equal destinations.

    Units of a queue are in program order.
    """
    queues: dict[tuple[str, str, Ranks | None], list[int]] = {}
    for u in program.units:
        match u.op:
            case Compute():
                queues.setdefault(("lane", u.op.lane, None), []).append(u.index)
            case Collective():
                queues.setdefault(("group", "", u.peers), []).append(u.index)
            case Transfer():
                if u.kind is UnitKind.SEND:
                    queues.setdefault(("channel", u.op.channel, u.peers), []).append(u.index)
    found: dict[int, _Queues] = {}
    for key, units in queues.items():
        mine = _meeting(key, queues)
        found |= dict.fromkeys(units, mine)
    return found


def _meeting(
    key: tuple[str, str, Ranks | None], queues: Mapping[tuple[str, str, Ranks | None], Sequence[int]]
) -> _Queues:
    """The queues that units of one wait for: itself, and those of its channel that have a destination in common."""
    kind, name, peers = key
    if kind != "channel" or peers is None:
        return (tuple(queues[key]),)
    own = {*peers}
    return tuple(
        tuple(units)
        for (k, n, others), units in queues.items()
        if k == kind and n == name and others is not None and own.intersection(others)
    )


def _step(unit: Unit, rank: int, iteration: int, start: float, end: float) -> PathStep:
    match unit.op:
        case Compute():
            kind = StepKind.COMPUTE
        case Transfer():
            kind = StepKind.TRANSFER
        case Collective():
            kind = StepKind.COLLECTIVE
    return PathStep(kind=kind, op=unit.op.name, rank=rank, iteration=iteration, start_s=start, end_s=end)
