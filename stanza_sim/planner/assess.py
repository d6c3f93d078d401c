"""One plan: what bounds it and whether it fits, known once its schedule is built; then what simulating it says."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from stanza_sim.cluster import Cluster
from stanza_sim.config import Loaded
from stanza_sim.errors import InputError
from stanza_sim.experiment import Experiment, ModelEntry
from stanza_sim.model.profile import ModelProfile
from stanza_sim.network_profile import NetworkProfile
from stanza_sim.plan import Plan, plan_for
from stanza_sim.planner.choices import Choice
from stanza_sim.planner.memory import Memory, memory_of, too_much
from stanza_sim.profiles import Profile
from stanza_sim.run import of_network, predict, predicted_on
from stanza_sim.simulate import Collectives, Prediction
from stanza_sim.simulate.costs import HALF, costs_for
from stanza_sim.simulate.run import Case, collector_off
from stanza_sim.timeline import Timeline


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

    def predict(self, plan: Plan) -> Prediction:
        """Simulate a plan of this problem."""
        found = predict(plan, self.cluster, self.loaded, self.profile)
        return of_network(found, self.cluster, self.network, executed=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Appraisal:
    """What is known of a choice before it is simulated.

    No order of its work trains more than `most_samples_per_s`; `digest` is that of its schedule, `memory_nbytes` what
    the rank that needs most needs. If it is `out`, `kind` and `reason` say why, and the rest says nothing.
    """

    most_samples_per_s: float = 0.0
    digest: str = ""
    memory_nbytes: int = 0
    kind: str = ""
    reason: str = ""

    @property
    def out(self) -> bool:
        """Whether it cannot be run."""
        return bool(self.kind)


@collector_off()
def appraise(problem: Problem, choice: Choice) -> Appraisal:
    """Build the schedule of a choice, and find what bounds it and whether it fits the devices."""
    experiment = problem.loaded.value
    try:
        plan = problem.plan(choice)
        cluster = predicted_on(problem.cluster, experiment, problem.profile)
        case = Case(
            plan.schedule,
            plan.model,
            cluster,
            costs_for(cluster, plan.model, experiment.precision, problem.profile),
            by_chance=False,
            fold_ranks=True,
            collectives=Collectives(experiment.simulation.collectives),
            times=1,
        )
    except InputError as error:
        return Appraisal(kind="infeasible", reason=error.one_line)
    needs = _needs(problem, plan, case)
    if (reason := too_much(cluster, needs)) is not None:
        return Appraisal(kind="memory", reason=reason)
    bound_s = case.bound_s
    known = bound_s > 0 and not problem.by_chance
    return Appraisal(
        most_samples_per_s=plan.schedule.global_batch / bound_s if known else math.inf,
        digest=plan.schedule.digest(),
        memory_nbytes=max(need.nbytes for need in needs.values()),
    )


def _needs(problem: Problem, plan: Plan, case: Case) -> dict[int, Memory]:
    half = problem.loaded.value.precision in HALF
    scale = 2 / plan.model.itemsize if half else 1.0
    return memory_of(plan.schedule, plan.model, case.received_bytes, activation_scale=scale)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A choice that was simulated. The prediction has no timeline; `sent_bytes` are those of all ranks together."""

    choice: Choice
    prediction: Prediction
    sent_bytes: int
    memory_nbytes: int = 0

    @property
    def order(self) -> tuple[float, int, int, str]:
        """What it is ranked by: samples per second, then fewer bytes, then the (shorter) name.

        Rates are equal to nine digits, bytes to six: those of a class of ranks are those of one, times its size.
        """
        name = self.choice.label
        return -float(f"{self.prediction.samples_per_s:.9g}"), int(float(f"{self.sent_bytes:.6g}")), len(name), name


def score(problem: Problem, choice: Choice) -> Score:
    """Simulate a choice. Raises `InputError` where it cannot be built."""
    prediction = problem.predict(problem.plan(choice))
    alike = prediction.timeline.multiplicity
    sent = sum(n * alike.get(rank, 1) for rank, n in prediction.sent_bytes.items())
    bare = Timeline(spans=(), iteration_end_s={}, multiplicity={})
    return Score(choice=choice, prediction=replace(prediction, timeline=bare), sent_bytes=sent)
