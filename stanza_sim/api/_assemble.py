"""Where the public functions meet the rooms that predict and execute: nothing else here calls these.

What a call gives as objects (a schedule, a cluster) stands beside an experiment of the other arguments, which is
checked as a file is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stanza_sim.api._arguments import Say, arguments, expect
from stanza_sim.api.schedules import USE_CLUSTER, ModelSchedule
from stanza_sim.base.config import Loaded, validate
from stanza_sim.base.errors import InputError
from stanza_sim.cluster.cluster import Cluster
from stanza_sim.experiment.file import Experiment, ModelEntry, Scale
from stanza_sim.experiment.run import jobs_of, known_profiles, of_network, open_ranks, predicted_on
from stanza_sim.experiment.run import predict as predict_plan
from stanza_sim.experiment.scenario import Plan, model_of
from stanza_sim.model.profile import ModelProfile
from stanza_sim.profiles.blocks import Profile
from stanza_sim.profiles.network import NetworkProfile, mismatches, with_network
from stanza_sim.schedule import Schedule
from stanza_sim.simulate.costs import RankCosts
from stanza_sim.simulate.lowering.fold import fold
from stanza_sim.simulate.run import EngineKind, Prediction

if TYPE_CHECKING:
    from stanza_sim.execute import Measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a prediction is made of beside its schedule: the cluster, an experiment's keys, costs, the engine."""

    loaded: Loaded[Experiment]
    cluster: Cluster
    profile: Profile | None = None
    network: NetworkProfile | None = None
    costs: RankCosts | None = None
    engine: EngineKind = EngineKind.AUTO

    def __repr__(self) -> str:
        return f"<Setup on {self.cluster!r}>"


def experiment_of(
    function: str,
    keys: Mapping[str, object],
    *,
    strategies: Sequence[object] = ("local",),
    models: Sequence[object] = ("model",),
    within: Sequence[str] = (),
) -> Loaded[Experiment]:
    """An experiment with these keys, for a schedule or model and a cluster that are objects. Raises `InputError`."""
    source = arguments(function, *within)
    data = {"name": "python", "cluster": "cluster", "models": list(models), "strategies": list(strategies)}
    given = {key: value for key, value in keys.items() if value is not None}
    return Loaded(value=validate({**data, **given}, Experiment, source), source=source, path=Path("python"))


def engine_of(name: str, function: str) -> EngineKind:
    """The engine of that name. Raises `InputError`."""
    try:
        return EngineKind(name)
    except ValueError:
        hint = f"should be {', '.join(EngineKind)}"
        raise InputError(f"is {name!r:.60}", where=f"{function}: engine", hint=hint) from None


def setup(
    function: str,
    cluster: Cluster,
    model: ModelProfile,
    loaded: Loaded[Experiment],
    *,
    profiles: Sequence[Path] = (),
    costs: RankCosts | None = None,
    engine: str = "auto",
    models: Mapping[str, ModelProfile] | None = None,
    say: Say = lambda text: None,
) -> Setup:
    """All that predictions for `model` on `cluster` need; `profiles` may also serve others of `models`, by title.

    Raises `InputError` for profiles that do not fit.
    """
    expect(cluster, Cluster, function, "cluster", USE_CLUSTER)
    known, network = known_profiles(loaded, profiles, {model.name: model} if models is None else models)
    if network is not None:
        for difference in mismatches(network, cluster):
            say(f"warning: {difference}")
        cluster = with_network(cluster, network)
    return Setup(
        loaded=loaded,
        cluster=cluster,
        profile=known.get(model.name),
        network=network,
        costs=costs,
        engine=engine_of(engine, function),
    )


def models_of(loaded: Loaded[Experiment]) -> dict[str, ModelProfile]:
    """The models of an experiment by title. Raises `InputError`."""
    return {entry.title: model_of(loaded, i) for i, entry in enumerate(loaded.value.models)}


def entry_of(model: ModelProfile, batch_per_worker: int) -> ModelEntry:
    """The entry of an experiment that stands for a model that is an object."""
    return ModelEntry.model_construct(
        model=model.name, name=model.name, batch_per_worker=batch_per_worker, scale=Scale()
    )


def plan_of(schedule: ModelSchedule) -> Plan:
    """The row of an experiment that a schedule would be. Ranks are sent no more than the schedule alone."""
    return Plan(
        entry=entry_of(schedule.profile, schedule.batch_per_worker),
        strategy=schedule.entry,
        model=schedule.profile,
        batch_per_worker=schedule.batch_per_worker,
        schedule=schedule.bare(),
    )


def predicted(schedule: ModelSchedule, made: Setup) -> Prediction:
    """Simulate a schedule."""
    found = predict_plan(
        plan_of(schedule), made.cluster, made.loaded, made.profile, costs=made.costs, engine=made.engine
    )
    return of_network(found, made.cluster, made.network, executed=False)


def measured(schedule: ModelSchedule, made: Setup, *, testbed: bool, say: Say) -> Measurement:
    """Execute a schedule on the ranks of this machine, or of a launcher. Raises `InputError` and `RunError`."""
    from stanza_sim.execute import execute, require_torch

    require_torch()
    plan = plan_of(schedule)
    known = {} if made.profile is None else {plan.entry.title: made.profile}
    jobs = jobs_of(made.loaded, [plan], made.cluster, known, testbed=testbed)
    with open_ranks(made.loaded, made.cluster, testbed=testbed, say=say) as workers:
        return execute(jobs, workers)[0]


def representative(schedule: Schedule, made: Setup) -> Callable[[int], int]:
    """The rank whose spans stand for those of each rank in a folded prediction."""
    folding = fold(schedule, predicted_on(made.cluster, made.loaded.value, made.profile))
    return lambda rank: folding.classes[folding.class_of[rank]][0]
