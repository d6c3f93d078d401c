"""One plan: what bounds it roughly, told by its schedule; then its exact bound, whether it fits, and its simulation."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from time import monotonic

from stanza_sim.base.collector import collector_off
from stanza_sim.base.config import Loaded
from stanza_sim.base.errors import InputError
from stanza_sim.base.precision import HALF_BYTES
from stanza_sim.cluster import Cluster
from stanza_sim.experiment.file import Experiment, ModelEntry
from stanza_sim.experiment.rows import Plan, cluster_of, plan_for
from stanza_sim.experiment.scenario import Conditions, Scenario
from stanza_sim.model.profile import ModelProfile
from stanza_sim.profiles.blocks import Profile
from stanza_sim.profiles.network import NetworkProfile
from stanza_sim.simulate import Prediction
from stanza_sim.simulate.lowering.fold import Folding
from stanza_sim.simulate.run import SimulationCase, part_count
from stanza_sim.studies.plan.choices import Choice
from stanza_sim.studies.plan.memory import Memory, least_left, memory_of, too_much
from stanza_sim.studies.plan.room import NoRoom, Room, Work
from stanza_sim.timeline.spans import Timeline

SURE = 1e-9
"""A bound below what it is compared with by less than this, relatively, may be a tie."""

UNLIMITED = Room()

ALIKE = 0.05
"""Rates that differ by less than about this, relatively, promise about the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """Another link speed, or another batch per worker, to look at plans with; None leaves it as it is."""

    rate_Bps: float | None = None
    batch: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What plans are compared on: a model of an experiment, the cluster, and what was measured of both, if anything."""

    loaded: Loaded[Experiment]
    cluster: Cluster
    entry: ModelEntry
    model: ModelProfile
    profile: Profile | None = None
    network: NetworkProfile | None = None

    @property
    def batch_per_worker(self) -> int:
        """Samples per worker and iteration."""
        return self.loaded.value.batch_of(self.entry)

    @property
    def by_chance(self) -> bool:
        """Whether predictions are made of random repeats, so that the bound of one is none of their median."""
        return self.loaded.value.simulation.varies or self.cluster.varies

    def plan(self, choice: Choice) -> Plan:
        """The schedule of a choice. Raises `InputError` where its settings do not fit."""
        return plan_for(self.loaded, self.cluster, self.entry, self.model, choice.entry)

    def varied(self, variant: Variant) -> Problem:
        """The same problem at another link speed or batch. Raises `InputError` for what the cluster cannot have."""
        experiment, changed = self.loaded.value, self
        if variant.rate_Bps is not None:
            network = experiment.network.model_copy(update={"rate": variant.rate_Bps})
            loaded = replace(self.loaded, value=experiment.model_copy(update={"network": network}))
            changed = replace(changed, loaded=loaded, cluster=cluster_of(loaded))
        if variant.batch is not None:
            changed = replace(changed, entry=self.entry.with_batch(variant.batch))
        return changed

    def scenario(self, plan: Plan) -> Scenario:
        """What a plan of this problem is predicted from."""
        conditions = Conditions(loaded=self.loaded, cluster=self.cluster, network=self.network)
        return conditions.scenario(plan, self.profile)

    def predict(self, plan: Plan) -> Prediction:
        """Simulate a plan of this problem."""
        return self.scenario(plan).predict()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sketch:
    """What a schedule alone tells: no order of its work trains more than `most_samples_per_s`.

    `parts` is how much ranks do, part by part, which is about what simulating it costs. `digest` is that of the
    schedule. Without one it could not be built, for a `reason` of this `kind`.
    """

    most_samples_per_s: float = 0.0
    parts: int = 0
    digest: str = ""
    kind: str = ""
    reason: str = ""

    def promise(self, share: float) -> tuple[int, int]:
        """What sketches are ordered by: the rate at that `share` of the bound, in steps of `ALIKE`, then the cost."""
        expected = share * self.most_samples_per_s
        if not 0 < expected < math.inf:
            return (-sys.maxsize if expected else 0), self.parts
        return -math.floor(math.log(expected) / math.log(1 + ALIKE)), self.parts


@collector_off()
def sketch(problem: Problem, choice: Choice, *, bounded: bool = True) -> Sketch:
    """Build the schedule of a choice and, if `bounded`, bound it roughly, which costs about a tenth of `weigh`."""
    try:
        plan = problem.plan(choice)
        bound_s = problem.scenario(plan).quick_bound_s() if bounded and not problem.by_chance else 0.0
    except InputError as error:
        return Sketch(kind="infeasible", reason=error.one_line)
    most = _most(problem, plan, bound_s)
    return Sketch(most_samples_per_s=most, parts=part_count(plan.schedule), digest=plan.schedule.digest())


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighed:
    """What is known of a choice once its schedule is checked, folded and lowered, and its simulation if it is worth it.

    No order of its work trains more than `most_samples_per_s`. If it is `out`, `kind` and `reason` say why, and the
    rest says nothing; `left_nbytes`, if known, is then below 0 by what a device lacks. There is no `score` where the
    bound says that it stays below what was asked for. `work` is what simulating it took.
    """

    most_samples_per_s: float = 0.0
    score: Score | None = None
    work: Work | None = None
    kind: str = ""
    reason: str = ""
    left_nbytes: int | None = None

    @property
    def out(self) -> bool:
        """Whether it cannot be run, or not be simulated here."""
        return bool(self.kind)

    @property
    def limited(self) -> bool:
        """Whether it is out only because time or memory to simulate it were short."""
        return self.kind in ("time", "host_memory")


@collector_off()
def weigh(
    problem: Problem, choice: Choice, least: float = 0.0, room: Room = UNLIMITED, *, sketched: bool = True
) -> Weighed:
    """Bound a choice, see whether it fits the devices and simulate it unless it stays below `least` samples/s.

    What was not `sketched` is bounded roughly first. Where it would need more than there is `room` for, that is said
    before it is lowered.
    """
    until_s, began_s, parts, compiled = room.until_s(monotonic()), 0.0, 0, False

    def admit(folding: Folding, compiles: bool) -> None:
        nonlocal began_s, parts, compiled
        began_s, parts, compiled = monotonic(), part_count(plan.schedule, folding), compiles
        room.admit(parts, compiled, until_s)

    try:
        plan = problem.plan(choice)
        scenario = problem.scenario(plan)
        rough_s = scenario.quick_bound_s() if least > 0 and not sketched and not problem.by_chance else 0.0
        if (most := _most(problem, plan, rough_s)) * (1 + SURE) < least:
            return Weighed(most_samples_per_s=most)
        case = scenario.prepare(admit)
    except InputError as error:
        return Weighed(kind="infeasible", reason=error.one_line)
    except NoRoom as no:
        return Weighed(kind=no.kind, reason=no.reason)
    needs = _needs(problem, plan, case)
    left = least_left(scenario.cluster, needs)
    if (reason := too_much(scenario.cluster, needs)) is not None:
        return Weighed(kind="memory", reason=reason, left_nbytes=left and left[0])
    most = _most(problem, plan, case.bound_s)
    if most * (1 + SURE) < least:
        return Weighed(most_samples_per_s=most)
    prediction = scenario.predict(case)
    alike = prediction.timeline.multiplicity
    score = Score(
        choice=choice,
        prediction=replace(prediction, timeline=Timeline(spans=(), iteration_end_s={}, multiplicity={})),
        sent_bytes=sum(n * alike.get(rank, 1) for rank, n in prediction.sent_bytes.items()),
        memory_nbytes=max(need.nbytes for need in needs.values()),
        left_nbytes=left and left[0],
    )
    work = Work(parts=parts, compiled=compiled, seconds=monotonic() - began_s)
    return Weighed(most_samples_per_s=most, score=score, work=work)


def _most(problem: Problem, plan: Plan, bound_s: float) -> float:
    """Samples/s that no order of the work of a plan exceeds, none of its iterations being shorter than `bound_s`."""
    return plan.schedule.global_batch / bound_s if bound_s > 0 and not problem.by_chance else math.inf


@collector_off()
def spread_of(problem: Problem, one: Score) -> Score:
    """The score with what its samples/s are where costs are off; it is simulated again."""
    spread = problem.scenario(problem.plan(one.choice)).spread(one.prediction)
    return replace(one, prediction=replace(one.prediction, spread=spread))


def _needs(problem: Problem, plan: Plan, case: SimulationCase) -> dict[int, Memory]:
    scale = HALF_BYTES / plan.model.itemsize if problem.loaded.value.precision.is_half else 1.0
    cluster = problem.cluster
    devices = [r for r in case.received_bytes if not cluster.on_cores(r)]
    return memory_of(
        plan.schedule,
        plan.model,
        case.received_bytes,
        activation_scale=scale,
        nccl=[r for r in devices if cluster.host_of(r).staging is None],
        staged=[r for r in devices if cluster.host_of(r).staging is not None],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A choice that was simulated. The prediction has no timeline; `sent_bytes` are those of all ranks together.

    `memory_nbytes` is what the rank that needs most needs, `left_nbytes` what is left of the device on which that is
    least; None: not known.
    """

    choice: Choice
    prediction: Prediction
    sent_bytes: int
    memory_nbytes: int
    left_nbytes: int | None = None

    @property
    def order(self) -> tuple[float, int, int, str]:
        """What it is ranked by: samples per second, then fewer bytes, then the (shorter) name.

        Rates are equal to nine digits, bytes to six: those of a class of ranks are those of one, times its size.
        """
        name = self.choice.label
        return -float(f"{self.prediction.samples_per_s:.9g}"), int(float(f"{self.sent_bytes:.6g}")), len(name), name
