"""A scenario: all that a prediction is made of, assembled in one place for every command and for Python.

`run`, `plan`, `sweep` and `validate` ask the same `Scenario` for what bounds a schedule, what it is lowered to and how
long an iteration takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from stanza_sim.base.collector import collector_off
from stanza_sim.base.config import Loaded
from stanza_sim.base.errors import InputError
from stanza_sim.base.telling import Say
from stanza_sim.cluster import Cluster
from stanza_sim.cluster.faster import with_slower_network
from stanza_sim.experiment.file import Experiment
from stanza_sim.experiment.rows import Plan
from stanza_sim.experiment.uncertainty import Uncertainty, as_stated, network_residual
from stanza_sim.model.profile import ModelProfile
from stanza_sim.profiles.blocks import Profile, with_profile
from stanza_sim.profiles.network import NetworkProfile
from stanza_sim.schedule import Compute, Schedule
from stanza_sim.schedule.progress import Issue
from stanza_sim.simulate import Collectives, EngineChoice, Prediction
from stanza_sim.simulate.costs import Costs, RankCosts, costs_for
from stanza_sim.simulate.lowering.fold import Folding, fold
from stanza_sim.simulate.lowering.quick_bound import quick_bound_s
from stanza_sim.simulate.lowering.timed import Seconds
from stanza_sim.simulate.residual import OPPOSITE, Corner, Residual, Spread, between_corners, within
from stanza_sim.simulate.run import SimulationCase
from stanza_sim.simulate.slower_costs import SlowerCosts
from stanza_sim.simulate.variation import JitterKind, Variation

REPEATS = 20
"""How often what varies by chance is simulated unless stated otherwise."""
AS_GIVEN = Uncertainty()
MOST_EVENTS = 2_000_000
"""What takes more events to simulate is not simulated again with costs that are off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A schedule of a model on a cluster, what computing costs there, and how it is simulated.

    `cluster` is as predictions see it (see `Conditions.seen`). `repeats` are for what varies by chance; left out, there
    are `REPEATS`. `network_note` is said with the prediction's costs. `repeats_at` is where `repeats` were stated.
    `uncertainty` is how far the costs may be off.
    """

    schedule: Schedule
    model: ModelProfile
    cluster: Cluster
    costs: RankCosts
    variation: Variation | None = None
    repeats: int | None = None
    repeats_at: str | None = None
    collectives: Collectives = Collectives.ACTIVITY
    engine: EngineChoice = EngineChoice.AUTO
    issue: Issue = Issue.EAGER
    network_note: str = ""
    uncertainty: Uncertainty = AS_GIVEN

    @property
    def by_chance(self) -> bool:
        """Whether a prediction is made of random repeats, so that the bound of one is none of their median."""
        return self.variation is not None or self.cluster.varies

    def quick_bound_s(self) -> float:
        """Seconds that no order of the same work beats, from the schedule alone; a tenth of the work of `prepare`."""
        return quick_bound_s(self.schedule, self.model, self.cluster, self.costs)

    def prepare(
        self,
        admit: Callable[[Folding, bool], None] = lambda folding, compiles: None,
        say: Say = lambda text: None,
        *,
        by_chance: bool = False,
        fold_ranks: bool = True,
    ) -> SimulationCase:
        """Check, fold and lower the schedule: what it takes and what bounds it, before anything is simulated.

        With `by_chance` it is what one of the repeats simulates. `admit` is as in `SimulationCase`. What takes long
        because nothing can be folded is said, with the reason. Raises `ScheduleError` and `InputError`, the latter also
        where repeats are asked for and nothing varies.
        """
        if self.repeats is not None and not self.by_chance:
            hint = "add jitter, stragglers or background traffic that comes and goes, or leave repeats out"
            raise InputError("every repeat would be the same", where=self.repeats_at, hint=hint)
        return SimulationCase(
            self.schedule,
            self.model,
            self.cluster,
            self.costs,
            by_chance=by_chance,
            fold_ranks=fold_ranks,
            collectives=self.collectives,
            times=(self.repeats or REPEATS) if by_chance else 1,  # one engine for all of them
            engine=self.engine,
            issue=self.issue,
            admit=admit,
            say=say,
        )

    def representative(self) -> Callable[[int], int]:
        """The rank whose spans stand for those of each rank in a folded prediction."""
        folding = fold(self.schedule, self.cluster)
        return lambda rank: folding.classes[folding.class_of[rank]][0]

    def predict(
        self,
        prepared: SimulationCase | None = None,
        *,
        moved: Callable[[], None] = lambda: None,
        say: Say = lambda text: None,
    ) -> Prediction:
        """Simulate, with what was `prepared` if that is there already.

        `moved` is called after each iteration, but not of random repeats. Raises as `prepare` does.
        """
        if self.by_chance:
            from stanza_sim.simulate.repeats import simulate_repeats

            prediction = simulate_repeats(
                self.schedule,
                self.model,
                self.cluster,
                self.costs,
                variation=self.variation or Variation(seed=0),
                repeats=self.repeats or REPEATS,
                collectives=self.collectives,
                engine=self.engine,
                issue=self.issue,
                say=say,
            )
        else:
            case = prepared or self.prepare(say=say)
            prediction = case.predict(case.run(moved=moved))
        source = self.costs.source  # by now it knows what it had to estimate
        return replace(
            prediction,
            cost_source=f"{source}; {self.network_note}" if self.network_note else source,
            basis=self.uncertainty.basis(self.costs, self.cluster.world_size),
        )

    def at(self, corner: Corner) -> Scenario:
        """The scenario with computation and network at an end of their residuals."""
        off = self.uncertainty
        return replace(
            self,
            cluster=with_slower_network(self.cluster, off.network.times(corner.slow_network)),
            costs=SlowerCosts(
                self.costs, lambda rank, costs: off.of(costs).times(corner.slow_computation), corner.value
            ),
        )

    def spread(
        self,
        predicted: Prediction,
        *,
        corners: Iterable[Corner] = Corner,
        prepared: SimulationCase | None = None,
        moved: Callable[[], None] = lambda: None,
    ) -> Spread | None:
        """Samples/s as `predicted` and at `corners` of what its costs rest on; None where that would take too long.

        What cannot differ is not simulated again, and what was `prepared` is not checked and folded again. Where all
        computations share one residual, and no other traffic comes and goes, only the corners at which computation and
        network are off in opposite directions are: the other two follow from them (`between_corners`). Of random
        repeats the one in the middle is simulated again, and all are taken to be as much slower as it is. `moved` is
        called as by `predict`.
        """
        repeats = predicted.repeats
        if predicted.events > MOST_EVENTS * (1 if repeats is None else repeats.count):
            return None
        off, wanted, case = self.uncertainty, tuple(corners), prepared

        middle = 0 if repeats is None else repeats.middle

        def simulated(there: Scenario) -> float:
            nonlocal case
            if case is None:
                case = there.prepare(by_chance=self.by_chance)
            else:
                case = case.at_costs(there.cluster, there.costs)
            if not self.by_chance:
                return case.samples_per_s(case.run(moved=moved))
            from stanza_sim.simulate.repeats import one_repeat

            return case.samples_per_s(one_repeat(case, self.variation or Variation(seed=0), middle, moved=moved))

        as_given = simulated(self) if self.by_chance else math.inf
        share = predicted.samples_per_s / as_given if 0 < as_given < math.inf else 1.0

        def samples_per_s(corner: Corner) -> float:
            return share * simulated(self.at(corner))

        computations = off.computations(self.costs, self.cluster.world_size)
        sends = not off.network.nothing and any(not isinstance(op, Compute) for op in self.schedule.ops)
        computes = not all(one.nothing for one in computations)
        scales = len(computations) == 1 and not self.cluster.varies
        if sends and computes and scales and len(wanted) == len(Corner):
            opposite = {corner: samples_per_s(corner) for corner in OPPOSITE}
            every = between_corners(predicted.samples_per_s, opposite, computations[0], off.network)
            return Spread(predicted=predicted.samples_per_s, corners=every)
        known: dict[tuple[bool, bool], float] = {}
        found: dict[Corner, float] = {}
        for corner in wanted if sends or computes else ():
            key = corner.slow_computation and computes, corner.slow_network and sends
            if key not in known:
                known[key] = samples_per_s(corner)
            found[corner] = known[key]
        return Spread(predicted=predicted.samples_per_s, corners=found)

    def replayed_s(self, iterations: Sequence[Seconds]) -> float:
        """Seconds per iteration with computation times that were measured: the median over these iterations.

        Each of them is simulated as if all were like it.
        """
        case = self.prepare(by_chance=self.cluster.varies, fold_ranks=False)
        return median(case.with_times(seconds).run().iteration_s for seconds in iterations)

    @property
    def most_reversed(self) -> float:
        """By what factor the ratio of two such scenarios' samples/s may change within the residuals of their costs."""
        return self.uncertainty.most_reversed(self.costs, self.cluster.world_size)

    @collector_off()
    def predict_with_spread(
        self, *, moved: Callable[[], None] = lambda: None, say: Say = lambda text: None
    ) -> Prediction:
        """Simulate, and again at the corners of what the costs rest on. Raises as `predict`."""
        case = None if self.by_chance else self.prepare(say=say)
        prediction = self.predict(case, moved=moved, say=say)
        return replace(prediction, spread=self.spread(prediction, prepared=case, moved=moved))


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What the scenarios of one experiment have in common.

    `cluster` has the times of `network`, if that was measured. `executed` predictions are compared with a run. Where
    it `names_rate`, what a prediction rests on names the rate of the network.
    """

    loaded: Loaded[Experiment]
    cluster: Cluster
    network: NetworkProfile | None = None
    executed: bool = False
    names_rate: bool = True

    def scenario(self, row: Plan, profile: Profile | None = None) -> Scenario:
        """The scenario of one row, with measured block times where there is a profile."""
        experiment = self.loaded.value
        simulation = experiment.simulation
        cluster, costs = self.seen(row.model, profile, moments=row.schedule.moments)
        variation = None
        if simulation.varies or cluster.varies:
            variation = Variation(
                seed=experiment.seed,
                jitter=JitterKind(simulation.jitter.kind),
                spread=simulation.jitter.spread,
                straggler_probability=simulation.straggler.probability or 0.0,
                straggler_slowdown=simulation.straggler.slowdown or 1.0,
            )
        return Scenario(
            schedule=row.schedule,
            model=row.model,
            cluster=cluster,
            costs=costs,
            variation=variation,
            repeats=simulation.repeats,
            repeats_at=self.loaded.source.where("simulation", "repeats"),
            collectives=Collectives(simulation.collectives),
            engine=EngineChoice(simulation.engine),
            issue=experiment.execute.issued,
            network_note=self.network_note,
            uncertainty=self.uncertainty,
        )

    def seen(self, model: ModelProfile, profile: Profile | None = None, *, moments: int = 1) -> tuple[Cluster, Costs]:
        """The cluster as predictions see it, with what a profile of block times knows, and what computing costs there.

        Emulated computations begin, nominally, when what they wait for is there: no lane has to wake up. Collectives of
        devices are NCCL's unless gloo is asked for, computations are emulated, or blocks were timed on a CPU.
        """
        cluster, experiment = self.cluster, self.loaded.value
        if profile is not None:
            cluster = with_profile(cluster, profile)
        if experiment.execute.compute == "emulated":
            cluster = replace(cluster, wakeup_latency_s=0.0)
        on_cpu = profile is not None and profile.device.startswith("cpu")
        if experiment.execute.compute == "emulated" or experiment.execute.backend == "gloo" or on_cpu:
            cluster = replace(cluster, uses_nccl=False)
        return cluster, costs_for(
            cluster, model, experiment.precision, profile, launch=experiment.launch, moments=moments
        )

    @property
    def uncertainty(self) -> Uncertainty:
        """How far costs may be off, as the experiment, the sources of computation times and the network's say.

        Emulated computations take as long as predicted.
        """
        experiment = self.loaded.value
        stated, computation = experiment.uncertainty, None
        if experiment.execute.compute == "emulated":
            computation = Residual(basis="emulated, as long as predicted")
        if stated.computation is not None:
            computation = within(stated.computation, as_stated(stated.computation))
        network = network_residual(self.cluster, self.network, stated.network, with_rate=self.names_rate)
        return Uncertainty(network=network, computation=computation)

    @property
    def network_note(self) -> str:
        """Where the network's times are from; where a prediction is compared with a run, also if not calibrated."""
        if len({p.host for p in self.cluster.placement}) < 2 or (self.network is None and not self.executed):
            return ""
        return "network: as the topology states, not calibrated" if self.network is None else self.network.source
