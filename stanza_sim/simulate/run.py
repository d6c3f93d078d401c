"""`simulate`: from a schedule, a model, a cluster and costs to a prediction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from enum import StrEnum
from time import monotonic
from typing import TYPE_CHECKING

from stanza_sim.base.collector import collector_off
from stanza_sim.base.errors import InputError
from stanza_sim.base.processes import cores as available_cores
from stanza_sim.base.telling import Say
from stanza_sim.cluster.cluster import Cluster
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Collective, Schedule, Transfer, UnitKind, check
from stanza_sim.schedule.collectives import about_how_many, steps_of
from stanza_sim.schedule.progress import Issue
from stanza_sim.simulate.engines import EngineChoice, engine_of, pays, require_numba
from stanza_sim.simulate.lowered import Lowered
from stanza_sim.simulate.lowering.arrays import ArrayLowered, lower_to_arrays, message_count
from stanza_sim.simulate.lowering.bounds import bottleneck, bound_s, demands
from stanza_sim.simulate.lowering.fold import Folding, fold, unfolded
from stanza_sim.simulate.lowering.lower import lower
from stanza_sim.simulate.lowering.timed import Seconds, with_times
from stanza_sim.simulate.plain.engine import Engine
from stanza_sim.simulate.prediction import Prediction
from stanza_sim.simulate.steady import even_window, steady_window
from stanza_sim.timeline.measures import op_seconds, steady_iteration_s, waiting
from stanza_sim.timeline.spans import Span, SpanColumns, Timeline

if TYPE_CHECKING:
    from threading import Event

    from stanza_sim.simulate.background import BackgroundFlow
    from stanza_sim.simulate.compiled.graph import Graph
    from stanza_sim.simulate.costs import CostModel
    from stanza_sim.simulate.variation import Variation

MOST_NODES = 8_000_000
"""Simulations that run side by side have together no more nodes than this; one takes some 100 bytes."""
PROGRESS_S = 5.0
"""Seconds between two lines on how far it is."""
LONG = 500_000
"""So many parts, of all repeats together, take seconds to simulate."""
WARM_UP, MEASURED = 2, 5
"""Iterations of a random simulation: those before the window, and those in it."""


class Collectives(StrEnum):
    """How collectives are simulated: each as one activity over all links that it uses, or message by message."""

    ACTIVITY = "activity"
    STEPS = "steps"


@collector_off()
def simulate(
    schedule: Schedule,
    model: ModelProfile,
    cluster: Cluster,
    costs: Callable[[int], CostModel],
    *,
    cost_source: str = "",
    fold_ranks: bool = True,
    max_iterations: int = 40,
    variation: Variation | None = None,
    collectives: Collectives = Collectives.ACTIVITY,
    engine: EngineChoice | str = EngineChoice.AUTO,
    issue: Issue = Issue.EAGER,
) -> Prediction:
    """Predict the steady state of `schedule`, with the costs of rank r's device from `costs(r)`.

    Identical ranks are folded and simulated once unless `fold_ranks` is False; the answer is the same. `variation`
    makes computations take longer or shorter by chance: nothing is then folded, and `iteration_s` is the mean over a
    fixed number of iterations, as it is where background traffic comes and goes. Raises `ScheduleError` for an illegal
    schedule and `InputError` if the cluster has another number of ranks. With `collectives` step by step nothing is
    folded where there are any. `engine` is one of `EngineChoice`, `issue` how messages are issued.
    """
    if variation is not None and not variation.varies:
        variation = None
    by_chance = variation is not None or cluster.varies
    case = SimulationCase(
        schedule,
        model,
        cluster,
        costs,
        by_chance=by_chance,
        fold_ranks=fold_ranks,
        collectives=collectives,
        times=1,
        engine=engine,
        issue=issue,
    )
    return case.predict(case.run(variation, max_iterations=max_iterations), cost_source)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationOutcome:
    """One simulation of a case: when each working rank (or class) ended each iteration, and the window that counts."""

    variation: Variation | None
    ends: Sequence[Sequence[float]]
    window: tuple[int, int]
    now_s: float
    events: int
    background_bytes: dict[int, float]
    spans: Callable[[], Sequence[Span]]

    @property
    def iteration_s(self) -> float:
        """Seconds per iteration."""
        return steady_iteration_s(self.ends, *self.window)


class SimulationCase:
    """A schedule on a cluster, checked, folded and lowered once, to be simulated `times` times.

    See `simulate` for what it is made of. What `run` returns depends on what it is given, not on what ran before, nor
    on what runs beside it in another thread. Where it will take long because nothing is folded, `say` is told why.
    """

    def __init__(
        self,
        schedule: Schedule,
        model: ModelProfile,
        cluster: Cluster,
        costs: Callable[[int], CostModel],
        *,
        by_chance: bool,
        fold_ranks: bool,
        collectives: Collectives,
        times: int,
        engine: EngineChoice | str = EngineChoice.AUTO,
        issue: Issue = Issue.EAGER,
        admit: Callable[[Folding, bool], None] = lambda folding, compiles: None,
        say: Say = lambda text: None,
    ) -> None:
        """`admit` is told how far it folds, and whether compiled code simulates, before it is lowered; it may raise."""
        _check_once(schedule, model)
        if cluster.world_size != schedule.world_size:
            raise InputError(
                f"schedule {schedule.name} has {schedule.world_size} ranks, cluster {cluster.name} places "
                f"{cluster.world_size}",
                hint="build the schedule for the cluster's number of ranks, or set `nodes`",
            )
        self.schedule, self.model, self.cluster, self.costs = schedule, model, cluster, costs
        self.by_chance, self.issue = by_chance, issue
        self._times: Seconds = {}
        engine = engine_of(engine)
        simulate_steps = collectives is Collectives.STEPS and any(isinstance(op, Collective) for op in schedule.ops)
        # Compiled code does not know collectives step by step.
        if engine is EngineChoice.COMPILED:
            if simulate_steps:
                what = "the compiled engine does not carry out collectives step by step"
                raise InputError(what, hint="leave the engine at auto")
            require_numba()
        folds = fold_ranks and not by_chance and not simulate_steps
        why = "what is drawn by chance differs" if by_chance else "collectives are simulated message by message"
        self.folding = fold(schedule, cluster) if folds else unfolded(cluster, why if fold_ranks else "")
        parts = part_count(schedule, self.folding if folds else None)
        if self.folding.reason and parts * times >= LONG:
            ranks = f"all {cluster.world_size:,} ranks are simulated one by one, {parts:,} parts an iteration"
            say(f"note: {ranks}: {self.folding.reason}")
        compiles = engine is EngineChoice.COMPILED
        if engine is EngineChoice.AUTO and not simulate_steps:
            # Random simulations go on for about twice as many iterations.
            simulations = times * (2 if by_chance else 1)
            compiles = pays(parts * simulations)
        self._compiles, self._simulate_steps = compiles, simulate_steps
        admit(self.folding, compiles)
        self._work_out_steps(say)
        self._lower()

    def _work_out_steps(self, say: Say) -> None:
        """Work out the steps of collectives, of which some take long, and say so at once, and how far it is."""
        kinds = {replace(op, name=""): op for op in self.schedule.ops if isinstance(op, Collective)}
        known = [(op, about_how_many(op, self.schedule.group(op.ranks))) for op in kinds.values()]
        many = [(op, count) for op, count in known if count]
        total = sum(count for _, count in many)
        if not total or total < LONG:
            return
        names = ", ".join(sorted({op.algorithm for op, _ in many}))
        say(f"note: collectives by {names} go message by message, {total:,} messages in all, which takes a while")
        told_s = monotonic()
        for done, (op, _) in enumerate(many, 1):
            steps_of(op, self.schedule.group(op.ranks), self.schedule.itemsize_of(op))
            if monotonic() - told_s > PROGRESS_S:
                told_s = monotonic()
                say(f"worked out the messages of {done} of {len(many)} collectives")

    def with_times(self, seconds: Seconds) -> SimulationCase:
        """The case where computations take as long as was measured; no ranks may be folded."""
        case = copy(self)
        case._times = seconds
        case._lower()
        return case

    def _lower(self) -> None:
        self.graph: Graph | None = None
        self.lowered: Lowered
        parts = self.schedule, self.model, self.cluster, self.folding, self.costs
        if self._compiles:
            from stanza_sim.simulate.compiled.graph import graph_of

            self.lowered = arrays = lower_to_arrays(*parts)
            with_times(arrays, self._times)
            self.graph = graph_of(self.schedule, arrays, self.issue)
        else:
            self.lowered = lower(*parts, simulate_steps=self._simulate_steps)
            with_times(self.lowered, self._times)

    def at_costs(self, cluster: Cluster, costs: Callable[[int], CostModel]) -> SimulationCase:
        """The case where computing and messages take longer or shorter: lowered again, and not checked or folded again.

        `cluster` may differ from the case's in how fast it is and in nothing else, and what was alike is alike still.
        """
        case = copy(self)
        case.cluster, case.costs = cluster, costs
        case._lower()
        return case

    @property
    def bound_s(self) -> float:
        """Seconds per iteration that no order of the same work can beat, known before anything is simulated."""
        return bound_s(self.lowered, demands(self.lowered))

    @property
    def received_bytes(self) -> dict[int, dict[str, int]]:
        """Bytes that each rank (one for each class, when folded) receives in each transfer, by op name."""
        return {
            a.rank: {
                u.op.name: a.traffic[u.index][1]
                for u in a.program.units
                if u.kind is UnitKind.RECV and u.index in a.traffic
            }
            for a in self.lowered.rank_classes
        }

    @property
    def side_by_side(self) -> int:
        """How many simulations are worth running at once, each in a thread of its own.

        In plain Python that is one, since only one thread at a time gets on; compiled code takes as many as there are
        cores, and memory for.
        """
        if self.graph is None:
            return 1
        return max(1, min(available_cores(), MOST_NODES // (2 * self.graph.size)))

    def run(
        self,
        variation: Variation | None = None,
        background: Sequence[BackgroundFlow] | None = None,
        *,
        max_iterations: int = 40,
        stop: Event | None = None,
        moved: Callable[[], None] = lambda: None,
    ) -> SimulationOutcome:
        """Simulate with these draws, and the `background` traffic instead of the cluster's.

        `moved` is called after each iteration. Raises `RunError` if `stop` is set.
        """
        ends: list[tuple[float, ...]] = []
        window = (0, 0)

        def enough(known: list[tuple[float, ...]]) -> bool:
            nonlocal ends, window
            moved()
            if self.by_chance:  # iterations that look alike do not end it
                found = (WARM_UP, WARM_UP + MEASURED) if len(known[0]) > WARM_UP + MEASURED else None
            else:
                found = steady_window(known) or even_window(known)
                if found is None and len(known[0]) >= max(max_iterations, 2):
                    found = (len(known[0]) // 2 - 1, len(known[0]) - 1)
            if found is None:
                return False
            ends, window = list(known), found
            return True

        lowered = self.lowered
        traffic = lowered.background if background is None else tuple(background)
        if self.graph is not None and isinstance(lowered, ArrayLowered):
            from stanza_sim.simulate.compiled.engine import CompiledEngine

            fast = CompiledEngine(self.graph, lowered, traffic, variation, stop)
            fast.run(enough)
            spans: Callable[[], Sequence[Span]] = fast.log().spans
            now_s, events, passed = fast.now_s, fast.events, fast.background_bytes()
        else:
            engine = Engine(self.schedule, replace(lowered, background=traffic), issue=self.issue, variation=variation)
            engine.run(enough)
            spans = lambda: engine.spans  # noqa: E731
            now_s, events, passed = (
                engine.clock.now,
                engine.events,
                engine.fabric.background_bytes(),
            )
        return SimulationOutcome(
            variation=variation,
            ends=ends,
            window=window,
            now_s=now_s,
            events=events,
            background_bytes=passed,
            spans=spans,
        )

    def samples_per_s(self, outcome: SimulationOutcome) -> float:
        """What all workers together train per second."""
        return self.schedule.global_batch / outcome.iteration_s if outcome.iteration_s > 0 else float("inf")

    def predict(self, outcome: SimulationOutcome, cost_source: str = "") -> Prediction:
        """Return all that is to be known of an outcome."""
        schedule, lowered, ends, by_chance = self.schedule, self.lowered, outcome.ends, self.by_chance
        first, last = outcome.window
        iteration_s = outcome.iteration_s
        working = [a for a in lowered.rank_classes if a.program.units]
        timeline = Timeline(
            spans=SpanColumns.of(outcome.spans()),
            iteration_end_s={a.rank: tuple(e) for a, e in zip(working, ends, strict=True)},
            multiplicity={a.rank: a.size for a in lowered.rank_classes},
        )
        drawn = outcome.variation
        slower = None if drawn is None else [drawn.mean(a.rank, first + 1, last) for a in lowered.rank_classes]
        busy = demands(lowered, slower)
        floor = bound_s(lowered, busy, slower)
        if by_chance:  # some of the window's work may have been done before it
            floor = min(floor, iteration_s)
        for q, nbytes in outcome.background_bytes.items():
            busy[q] += nbytes * iteration_s / outcome.now_s
        shares = [
            min(1.0, d / (r.capacity * iteration_s)) if iteration_s > 0 else 0.0
            for r, d in zip(lowered.resources, busy, strict=True)
        ]
        utilisation = {r.label: share for r, share in zip(lowered.resources, shares, strict=True)}
        utilisation |= {self.cluster.links[q].label: shares[r] for q, r in lowered.links.items()}
        waits = waiting(schedule, timeline, first, last)
        return Prediction(
            timeline=timeline,
            iteration_s=iteration_s,
            samples_per_s=self.samples_per_s(outcome),
            exposed_comm_s=waits.exposed_comm_s,
            idle_s=waits.idle_s,
            bound_s=floor,
            bottleneck=bottleneck(schedule, self.cluster, self.folding, lowered, busy, iteration_s, slower),
            cost_source=cost_source or self.costs(0).source,
            utilisation=utilisation,
            op_seconds=op_seconds(schedule, timeline, first, last),
            sent_bytes={a.rank: sum(t[0] for t in a.traffic.values()) for a in lowered.rank_classes},
            received_bytes={a.rank: sum(t[1] for t in a.traffic.values()) for a in lowered.rank_classes},
            iterations=last + 1,
            steady=by_chance or steady_window(ends) is not None,
            settled=by_chance or (steady_window(ends) or even_window(ends)) is not None,
            events=outcome.events,
        )


_checked: tuple[Schedule, ModelProfile] | None = None


def _check_once(schedule: Schedule, model: ModelProfile) -> None:
    """As `check`; a legal schedule that is simulated again, at other costs, is not looked through again."""
    global _checked
    last = _checked
    if last is None or last[0] is not schedule or last[1] is not model:
        check(schedule, model)
        _checked = schedule, model


def part_count(schedule: Schedule, folding: Folding | None = None) -> int:
    """What ranks do in one iteration, part by part: computations, sends, receives, shares in collectives, messages.

    With a `folding`, those of its classes.
    """
    standing = None if folding is None else [members[0] for members in folding.classes]
    sizes: dict[str, int] = {}

    def size(name: str) -> int:
        if name not in sizes:
            ranks = schedule.group(name)
            sizes[name] = len(ranks) if standing is None else sum(rank in ranks for rank in standing)
        return sizes[name]

    total = message_count(schedule, size)
    for op in schedule.ops:
        if isinstance(op, Transfer):
            total += size(op.src) + size(op.dst)
        else:
            total += size(op.ranks)
    return total
