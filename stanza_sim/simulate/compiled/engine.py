"""The engine in compiled code: runs a graph of all ranks' programs until iterations repeat.

It does what `engine.py` does, but nothing of an instant happens in Python; tests hold the two equal. While it runs it
lets go of Python's lock, so several get on side by side in threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import inf
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stanza_sim.base.errors import RunError
from stanza_sim.schedule import Collective, Compute, Transfer, UnitKind
from stanza_sim.schedule.progress import Progress, stuck
from stanza_sim.simulate.background import BackgroundFlow, OnOff
from stanza_sim.simulate.compiled import kernel
from stanza_sim.simulate.compiled.advance import (
    COMPLETE,
    COMPLETED,
    FULL,
    FURTHEST,
    INSTANTS,
    LOGGED,
    REACHED,
    STUCK,
    Plan,
    RunState,
    advance,
)
from stanza_sim.simulate.compiled.graph import Graph
from stanza_sim.simulate.lowering.arrays import ArrayLowered
from stanza_sim.simulate.plain.token_bucket import EMPTY, Shape
from stanza_sim.timeline.spans import SpanColumns, SpanKind

if TYPE_CHECKING:
    from threading import Event

    from stanza_sim.simulate.variation import Variation

F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]

STEPS = 50_000
"""Instants between two looks at whether the user wants to stop."""
_COLUMNS = 12  # iterations for which there is room at first


class _PhaseClock:
    """The clock of background traffic that comes and goes: it is the only one to ask for the end of a phase."""

    def __init__(self) -> None:
        self.now = 0.0  # set by who lets time pass
        self.wake_s = inf
        self.then: Callable[[], None] = lambda: None

    @property
    def pending(self) -> bool:
        """Compiled code says when nothing else is to happen."""
        return True

    def wake(self, at_s: float, then: Callable[[], None]) -> None:
        """Note what is to be called at `at_s`."""
        self.wake_s, self.then = max(at_s, self.now), then


@dataclass(frozen=True, slots=True)
class Log:
    """Spans of one simulation: node, iteration, start and end of each, in order of the end."""

    graph: Graph
    lowered: ArrayLowered
    columns: tuple[I32, I32, F64, F64]

    def rows(self) -> Iterator[tuple[int, int, float, float]]:
        """Yield node, iteration, start and end of each."""
        return zip(*(x.tolist() for x in self.columns), strict=True)

    def spans(self) -> SpanColumns:
        """Make them: one for each unit that a node is a span of."""
        kinds: list[SpanKind] = []
        first, count = np.zeros((2, self.graph.size), dtype=np.int64)
        for node, ending in self.graph.endings.items():
            first[node], count[node] = len(kinds), len(ending.units)
            kinds += (self._kind(a, index, ending.side) for a, index in ending.units)
        nodes, iteration, start_s, end_s = self.columns
        counts = count[nodes]
        row = np.repeat(np.arange(len(nodes)), counts)
        place = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        return SpanColumns(tuple(kinds), first[nodes][row] + place, iteration[row], start_s[row], end_s[row])

    def _kind(self, a: int, index: int, side: str) -> SpanKind:
        rank_class = self.lowered.rank_classes[a]
        op = rank_class.program.units[index].op
        match op:
            case Compute():
                lane, nbytes = op.lane, 0
            case Transfer():
                lane, nbytes = op.channel, rank_class.traffic[index][0 if side == "sent" else 1]
            case Collective():
                lane, nbytes = op.ranks, rank_class.traffic[index][0]
        return SpanKind(op.name, rank_class.rank, lane, side, nbytes)


@lru_cache(maxsize=256)
def _drawn(variation: Variation, ranks: tuple[int, ...], first: int, columns: int) -> F64:
    """The factor of each rank and of each of so many iterations; kept, as every strategy has the same draws."""
    return np.array([[variation.factor(rank, i) for i in range(first, first + columns)] for rank in ranks])


class CompiledEngine:
    """One simulation of a graph, which several may share. Another thread may end it by setting `stop`."""

    def __init__(
        self,
        graph: Graph,
        lowered: ArrayLowered,
        background: Sequence[BackgroundFlow],
        variation: Variation | None = None,
        stop: Event | None = None,
    ) -> None:
        self.graph, self.lowered, self.variation = graph, lowered, variation
        self.traffic, self.stop = background, stop
        template, posts, computations = graph.nodes, graph.posts, graph.computations
        self._nodes = template._replace(
            work=template.work.copy(), missing=template.missing.copy(), done_s=template.done_s.copy()
        )
        self._net = graph.net._replace(capacity=graph.net.capacity.copy())
        self._state = kernel.make_state(self._net, self._nodes)
        shaped = [s for q, bucket in lowered.token_buckets if (s := Shape.of(q, self._net.capacity[q], bucket)).matters]
        self._plan = Plan(
            size=graph.size,
            kind=graph.kind,
            rank=graph.rank,
            opening=graph.opening,
            ready=posts.ready,
            posted=posts.posted,
            post_ptr=posts.ptr,
            post_unit=posts.unit,
            post_queue=posts.queue,
            post_priority=posts.priority,
            post_credit=posts.credit,
            paid_by=graph.paid_by,
            compute_ptr=computations.ptr,
            compute_node=computations.node,
            compute_work=computations.work,
            spans=len(graph.endings),
            working=len(graph.working),
            shaped=np.array([s.resource for s in shaped], dtype=np.int32),
            shape=np.array([(s.rate_Bps, s.nbytes, s.peak_Bps, EMPTY * s.nbytes) for s in shaped]).reshape(-1, 4),
        )
        world, room = len(lowered.rank_classes), (_COLUMNS + 2) * len(graph.endings)
        self._go = RunState(
            now=np.array([0.0, inf]),
            bucket=np.array([(0.0, 0.0, -s.rate_Bps, inf) for s in shaped]).reshape(-1, 4),
            counts=np.zeros(4, dtype=np.int64),
            done=np.zeros(world, dtype=np.int64),
            ends=np.full((world, _COLUMNS), np.nan),
            factor=self._factors(0, _COLUMNS),
            finished=np.zeros(_COLUMNS, dtype=np.int64),
            busy=np.zeros(world, dtype=np.int8),
            waiting=np.zeros(world, dtype=np.int32),
            who=np.zeros(2 * len(posts.unit), dtype=np.int32),
            when=np.zeros(2 * len(posts.unit), dtype=np.int64),
            under_way=np.zeros(int(posts.queue.max(initial=0)) + 1, dtype=np.int64),
            touched=np.zeros(6 * len(posts.unit), dtype=np.int32),
            log_node=np.zeros(room, dtype=np.int32),
            log_iteration=np.zeros(room, dtype=np.int32),
            log_start=np.zeros(room),
            log_end=np.zeros(room),
        )
        of_rank = np.repeat(np.arange(world), np.diff(computations.ptr))
        openings = graph.opening + np.array(graph.working, dtype=np.int32)
        for iteration in (0, 1):
            shift = iteration * graph.size
            self._nodes.work[computations.node + shift] = computations.work * self._go.factor[of_rank, iteration]
            self._trigger(openings + shift)
        self._trigger(np.array(graph.background, dtype=np.int32))  # it never ends; while it is away, its cap is zero
        self._clock = _PhaseClock()
        self._on_off = OnOff(background, self._clock, self._switch)
        for node, there in zip(graph.background, self._on_off.there, strict=True):
            if not there:
                self._state.row[self._nodes.cls[node], kernel.CAP] = 0.0

    @property
    def now_s(self) -> float:
        """The time that is reached."""
        return float(self._go.now[0])

    @property
    def events(self) -> int:
        """Instants at which something happened."""
        return int(self._go.counts[INSTANTS])

    def run(self, until: Callable[[list[tuple[float, ...]]], bool]) -> None:
        """See `Engine.run`."""
        complete = 0
        while self.stop is None or not self.stop.is_set():
            self._on_off.arm()
            clock = self._clock
            why = advance(self._net, self._nodes, self._state, self._plan, self._go, complete, clock.wake_s, STEPS)
            clock.now = self.now_s
            if why == COMPLETED:
                while complete < self._go.counts[COMPLETE]:
                    complete += 1
                    if until([tuple(self._go.ends[a, :complete].tolist()) for a in self.graph.working]):
                        return
            elif why == FULL:
                self._grow()
            elif why == REACHED:
                clock.wake_s = inf
                clock.then()
            elif why == STUCK:
                raise RunError(self._stuck())
        raise RunError("the simulation was stopped")

    def log(self) -> Log:
        """All spans so far."""
        go, count = self._go, int(self._go.counts[LOGGED])
        nodes, iterations = go.log_node[:count].copy(), go.log_iteration[:count].copy()
        columns = (nodes, iterations, go.log_start[:count].copy(), go.log_end[:count].copy())
        return Log(self.graph, self.lowered, columns)

    def background_bytes(self) -> dict[int, float]:
        """See `Fabric.background_bytes`."""
        found = {}
        for flow, node in zip(self.traffic, self.graph.background, strict=True):
            own = self._state.row[self._nodes.cls[node]]
            found[flow.resource] = float(own[kernel.SERVED] + own[kernel.RATE] * (self.now_s - own[kernel.SINCE]))
        return found

    def _stuck(self) -> str:
        """What each rank waits for: the rules are told what has happened, and tell the story."""
        rank_classes = self.lowered.rank_classes
        cores = [Progress(a.program, a.messages_of, issue=self.graph.issue) for a in rank_classes]
        for core in cores:
            core.begin()
        for node, iteration, _, end_s in self.log().rows():
            for a, index in self.graph.endings[node].units:
                key = (iteration, index)
                if rank_classes[a].program.units[index].kind is UnitKind.RECV:
                    cores[a].arrived(key, end_s)
                else:
                    cores[a].complete(key, end_s)
        return stuck(cores)

    def _trigger(self, which: I32) -> None:
        kernel.trigger(self._nodes, self._state, which.astype(np.int32), self.now_s)

    def _switch(self, k: int, there: bool) -> None:
        """Background traffic comes or goes."""
        flow, state = self.traffic[k], self._state
        cap = flow.traffic.bandwidth_Bps if there else 0.0
        c = self._nodes.cls[self.graph.background[k]]
        state.finish[c] = np.nan  # so that its rate is found anew
        state.row[c, kernel.CAP] = cap
        if state.link_epoch[flow.resource] != -1:
            state.link_epoch[flow.resource] = -1
            state.changed[state.scalars[kernel.CHANGED]] = flow.resource
            state.scalars[kernel.CHANGED] += 1

    def _factors(self, first: int, columns: int) -> F64:
        """How many times as long computations of each rank take, in `columns` iterations."""
        if self.variation is None:
            return np.ones((len(self.lowered.rank_classes), columns))
        ranks = tuple(a.rank for a in self.lowered.rank_classes)
        return _drawn(self.variation, ranks, first, columns).copy()

    def _grow(self) -> None:
        """Make room for twice as much."""
        go, columns = self._go, self._go.ends.shape[1]
        if go.counts[FURTHEST] + 4 > columns:
            more = {
                "ends": np.concatenate([go.ends, np.full_like(go.ends, np.nan)], axis=1),
                "factor": np.concatenate([go.factor, self._factors(columns, columns)], axis=1),
                "finished": np.concatenate([go.finished, np.zeros_like(go.finished)]),
            }
        else:
            names = ("log_node", "log_iteration", "log_start", "log_end")
            more = {name: np.concatenate([getattr(go, name)] * 2) for name in names}
        self._go = go._replace(**more)
