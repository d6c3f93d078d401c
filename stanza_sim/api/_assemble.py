"""Where the public functions meet the rooms that predict and execute: nothing else here calls these.

What a call gives as objects (a schedule, a cluster) stands beside an experiment of the other arguments, which is
checked as a file is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from stanza_sim.api._arguments import arguments, expect
from stanza_sim.api.schedules import USE_CLUSTER, ModelSchedule
from stanza_sim.base.config import Loaded, validate
from stanza_sim.base.telling import Say
from stanza_sim.cluster.cluster import Cluster
from stanza_sim.experiment.file import Execute, Experiment, ModelEntry, Scale
from stanza_sim.experiment.fitted import fitted
from stanza_sim.experiment.how_far import running_line
from stanza_sim.experiment.jobs import jobs_of, open_ranks
from stanza_sim.experiment.loops import NO_FILES, Files
from stanza_sim.experiment.rows import Plan, known_profiles, model_of
from stanza_sim.experiment.scenario import Conditions, Scenario
from stanza_sim.experiment.what_if import Change
from stanza_sim.model.profile import ModelProfile
from stanza_sim.profiles.blocks import Profile
from stanza_sim.profiles.network import mismatches, with_network
from stanza_sim.simulate.costs import RankCosts

if TYPE_CHECKING:
    from stanza_sim.execute import Measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a prediction is made of beside its schedule: the cluster and an experiment's keys, block times, costs."""

    conditions: Conditions
    profile: Profile | None = None
    costs: RankCosts | None = None
    changes: tuple[Change, ...] = ()
    """What is faster than that, one on top of the other."""

    @property
    def cluster(self) -> Cluster:
        """The cluster, with the times of its network if these were measured, and with what is faster."""
        cluster = self.conditions.cluster
        for change in self.changes:
            cluster = change.cluster(cluster)
        return cluster

    @property
    def devices(self) -> frozenset[str]:
        """The names of what ranks compute on."""
        return frozenset(map(self.cluster.device_of, range(self.cluster.world_size)))

    def scenario(self, schedule: ModelSchedule) -> Scenario:
        """What the prediction of a schedule is made of."""
        found = self.conditions.scenario(plan_of(schedule), self.profile)
        if self.costs is not None:
            found = replace(found, costs=self.costs)
        for change in self.changes:
            found = change.of(found)
        return found

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


def with_dilation(function: str, loaded: Loaded[Experiment], dilate: float) -> Loaded[Experiment]:
    """The experiment with its `execute.dilate` replaced. Raises `InputError` where that does not fit."""
    execute = loaded.value.execute
    given = validate({"compute": execute.compute, "dilate": dilate}, Execute, arguments(function))
    changed = execute.model_copy(update={"dilate": given.dilate})
    return replace(loaded, value=loaded.value.model_copy(update={"execute": changed}))


def setup(
    function: str,
    cluster: Cluster,
    model: ModelProfile,
    loaded: Loaded[Experiment],
    *,
    profiles: Sequence[Path] = (),
    costs: RankCosts | None = None,
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
    conditions = Conditions(loaded=loaded, cluster=cluster, network=network)
    return Setup(conditions=conditions, profile=known.get(model.name), costs=costs)


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
    batch = schedule.batch_per_worker // schedule.accumulation
    return Plan(
        entry=entry_of(schedule.profile, batch),
        strategy=schedule.entry,
        model=schedule.profile,
        batch_per_worker=batch,
        schedule=schedule.bare(),
    )


def measured(schedule: ModelSchedule, made: Setup, *, testbed: bool, files: Files = NO_FILES, say: Say) -> Measurement:
    """Execute a schedule on the ranks of this machine, or of a launcher. Raises `InputError` and `RunError`."""
    from stanza_sim.execute import execute, require_torch

    require_torch()
    (plan,) = fitted(made.conditions.loaded, [plan_of(schedule)], say)
    known = {} if made.profile is None else {plan.entry.title: made.profile}
    jobs = jobs_of(made.conditions.loaded, [plan], made.cluster, known, testbed=testbed, files=files)
    with open_ranks(made.conditions.loaded, made.cluster, testbed=testbed, say=say) as workers:
        return execute(jobs, workers, moving=lambda i, ended: say(running_line(i, ended, plan, jobs[i])))[0]
