"""Schedules that know the model for which they were built."""

from __future__ import annotations

from dataclasses import dataclass, fields

from stanza_sim.api._arguments import Arguments, count, expect, placed
from stanza_sim.base.config import validate
from stanza_sim.base.errors import InputError
from stanza_sim.cluster.cluster import Cluster
from stanza_sim.experiment.file import StrategyEntry
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Schedule

USE_MODEL = "use load_model"
USE_CLUSTER = "use load_cluster"


@dataclass(frozen=True, kw_only=True, repr=False)
class ModelSchedule(Schedule):
    """A schedule with the `profile` of its model, the strategy that built it (`entry`) and a `title` for tables.

    >>> import stanza_sim as ss
    >>> cluster, model = ss.load_cluster("star", nodes=4), ss.load_model("alexnet")
    >>> schedule = ss.build_schedule("all_reduce", model, cluster, batch_per_worker=32)
    >>> schedule.profile is model, schedule.title, schedule.global_batch
    (True, 'all_reduce', 128)
    """

    profile: ModelProfile
    entry: StrategyEntry

    @property
    def title(self) -> str:
        """The label, or else the strategy and the settings that differ from their defaults."""
        from stanza_sim.studies.plan.choices import in_words

        return self.entry.label or in_words(self.entry.strategy, self.entry.settings)

    def bare(self) -> Schedule:
        """The schedule alone, as ranks get it."""
        return Schedule(**{field.name: getattr(self, field.name) for field in fields(Schedule)})

    @classmethod
    def of(cls, schedule: Schedule, profile: ModelProfile, entry: StrategyEntry) -> ModelSchedule:
        """`schedule` with its model, and with the strategy that built it."""
        parts = {field.name: getattr(schedule, field.name) for field in fields(Schedule)}
        return cls(**parts, profile=profile, entry=entry)


def build_schedule(
    strategy: str,
    model: ModelProfile,
    cluster: Cluster,
    *,
    batch_per_worker: int,
    label: str | None = None,
    **settings: object,
) -> ModelSchedule:
    """Return what every rank of `cluster` does in one iteration: `strategy`, with these settings, for `model`.

    `batch_per_worker` is in samples. `label` is its name in tables. Settings are those of an experiment's
    `settings:`; `describe(strategy)` lists them. Raises `InputError` for a strategy or a setting that is not there, and
    for settings that do not fit the model or the number of ranks.

    >>> import stanza_sim as ss
    >>> cluster, model = ss.load_cluster("star", nodes=4), ss.load_model("vgg16")
    >>> ss.build_schedule("stanza", model, cluster, batch_per_worker=32, fc_workers=1)
    <ModelSchedule stanza of vgg16: 47 ops for 4 ranks>
    >>> ss.build_schedule("stanza", model, cluster, batch_per_worker=32, fc_worker=1)
    Traceback (most recent call last):
    stanza_sim.base.errors.InputError: build_schedule: fc_worker: strategy stanza has no setting 'fc_worker'
      did you mean fc_workers or fc_compute or fc_parallel?
    """
    from stanza_sim import strategies

    name = "build_schedule"
    with placed(name):
        expect(model, ModelProfile, name, "model", USE_MODEL)
        expect(cluster, Cluster, name, "cluster", USE_CLUSTER)
        count(batch_per_worker, name, "batch_per_worker")
        expect(strategy, str, name, "strategy", f"should be one of {', '.join(strategies.names())}")
        place = Arguments(file=name, lines={}, within=("settings",))
        data = {"strategy": strategy, "settings": settings} | ({} if label is None else {"label": label})
        entry = validate(data, StrategyEntry, place)
        made = strategies.get(strategy).build(
            model, world_size=cluster.world_size, batch_per_worker=batch_per_worker, settings=entry.settings
        )
        return ModelSchedule.of(made, model, entry)


def of_model(schedule: Schedule, model: ModelProfile | None, function: str) -> ModelSchedule:
    """A schedule with its model, which a schedule that was not built here must be given. Raises `InputError`."""
    expect(schedule, Schedule, function, "schedule", "use build_schedule")
    if isinstance(schedule, ModelSchedule) and model is None:
        return schedule
    if model is None:
        what = f"schedule {schedule.name} does not know its model"
        raise InputError(what, where=f"{function}: model", hint="give model=, or use what build_schedule returns")
    expect(model, ModelProfile, function, "model", USE_MODEL)
    entry = StrategyEntry.model_construct(strategy=schedule.name, label=schedule.name)
    return ModelSchedule.of(schedule, model, entry)
