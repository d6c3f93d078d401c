"""Schedules that know the model for which they were built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

from stanza_sim.api._arguments import Arguments, checked, count, expect, placed
from stanza_sim.base.config import Section, validate
from stanza_sim.base.errors import InputError, at
from stanza_sim.base.precision import Precision
from stanza_sim.cluster.cluster import Cluster
from stanza_sim.experiment.file import StrategyEntry
from stanza_sim.experiment.optimizer import NamedOptimizer, Optimizer
from stanza_sim.model.decay import without_decay
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Compute, Schedule, Transfer, Wire
from stanza_sim.schedule.wires import computed_in

USE_MODEL = "use load_model"
USE_CLUSTER = "use load_cluster"


@dataclass(frozen=True, kw_only=True, repr=False)
class ModelSchedule(Schedule):
    """A schedule with the `profile` of its model, the strategy that built it (`entry`) and a `title` for tables.

    `precision` and `optimizer` are those for which it was built, if they are known. An iteration has `accumulation`
    steps.

    >>> import stanza_sim as ss
    >>> cluster, model = ss.load_cluster("star", nodes=4), ss.load_model("alexnet")
    >>> schedule = ss.build_schedule("all_reduce", model, cluster, batch_per_worker=32)
    >>> schedule.profile is model, schedule.title, schedule.global_batch
    (True, 'all_reduce', 128)
    """

    profile: ModelProfile
    entry: StrategyEntry
    precision: Precision | None = None
    accumulation: int = 1
    optimizer: Optimizer | None = None

    @property
    def title(self) -> str:
        """The label, or else the strategy and the settings that differ from their defaults."""
        from stanza_sim.studies.plan.choices import in_words

        return self.entry.label or in_words(self.entry.strategy, self.entry.settings)

    def bare(self) -> Schedule:
        """The schedule alone, as ranks get it."""
        return Schedule(**{field.name: getattr(self, field.name) for field in fields(Schedule)})

    @classmethod
    def of(
        cls,
        schedule: Schedule,
        profile: ModelProfile,
        entry: StrategyEntry,
        precision: Precision | None = None,
        accumulation: int = 1,
        optimizer: Optimizer | None = None,
    ) -> ModelSchedule:
        """`schedule` with its model, the strategy that built it, and for which precision, steps and optimiser."""
        parts = {field.name: getattr(schedule, field.name) for field in fields(Schedule)}
        return cls(
            **parts,
            profile=profile,
            entry=entry,
            precision=precision,
            accumulation=accumulation,
            optimizer=optimizer,
        )


class _Types(Section):
    precision: Precision = Precision.FP32
    gradients: Literal["parameter", "bf16", "fp16"] = "parameter"
    optimizer: NamedOptimizer = Optimizer()


def build_schedule(
    strategy: str,
    model: ModelProfile,
    cluster: Cluster,
    *,
    batch_per_worker: int,
    label: str | None = None,
    precision: str = "fp32",
    gradients: Literal["parameter", "bf16", "fp16"] = "parameter",
    accumulation: int = 1,
    optimizer: str | Mapping[str, object] = "sgd",
    **settings: object,
) -> ModelSchedule:
    """Return what every rank of `cluster` does in one iteration: `strategy`, with these settings, for `model`.

    `batch_per_worker` is in samples; with `accumulation` n an iteration has n steps of so many, and one exchange of
    their gradients. `label` is its name in tables. Settings are those of an experiment's `settings:`;
    `describe(strategy)` lists them; `on` (["node-3"], or "fastest") is where servers or FC workers are. In `precision`
    bf16 or fp16 activations and their gradients travel in 2 bytes an element, unless a setting `activations` says
    otherwise; `gradients` is the type of those of parameters. `optimizer` is as in a file,
    such as "adamw" or {"kind": "adamw", "lr": 1e-3}: what it keeps is updated too, and `measure` trains with it. Raises
    `InputError` for a strategy or a setting that is not there, and for settings that do not fit the model, the cluster
    or the number of ranks.

    >>> import stanza_sim as ss
    >>> cluster, model = ss.load_cluster("star", nodes=4), ss.load_model("vgg16")
    >>> ss.build_schedule("stanza", model, cluster, batch_per_worker=32, fc_workers=1)
    <ModelSchedule stanza of vgg16: 47 ops for 4 ranks>
    >>> half = ss.build_schedule("stanza", model, cluster, batch_per_worker=32, precision="bf16")
    >>> half.op("act").nbytes  # 32 samples of 25,088 activations in 2 bytes each, and labels in 8
    1605888
    >>> ss.build_schedule("stanza", model, cluster, batch_per_worker=32, fc_worker=1)
    Traceback (most recent call last):
    stanza_sim.base.errors.InputError: build_schedule: fc_worker: strategy stanza has no setting 'fc_worker'
      did you mean fc_workers or fc_compute or fc_parallel?
    """
    from stanza_sim import strategies
    from stanza_sim.simulate.costs import pass_times

    name = "build_schedule"
    with placed(name):
        expect(model, ModelProfile, name, "model", USE_MODEL)
        expect(cluster, Cluster, name, "cluster", USE_CLUSTER)
        count(batch_per_worker, name, "batch_per_worker")
        count(accumulation, name, "accumulation")
        expect(strategy, str, name, "strategy", f"should be one of {', '.join(strategies.names())}")
        place = Arguments(file=name, lines={}, within=("settings",))
        data = {"strategy": strategy, "settings": settings} | ({} if label is None else {"label": label})
        entry = validate(data, StrategyEntry, place)
        types = checked(name, _Types, {"precision": precision, "gradients": gradients, "optimizer": optimizer})
        with at(f"{name}: optimizer.no_decay"):
            without_decay(model, types.optimizer.no_decay)
        made = strategies.build(
            strategy,
            model,
            world_size=cluster.world_size,
            batch_per_worker=batch_per_worker,
            settings=entry.settings,
            precision=types.precision,
            gradients=Wire.NATIVE if types.gradients == "parameter" else Wire(types.gradients),
            cluster=cluster,
            times=pass_times(cluster, model, types.precision),
            accumulation=accumulation,
            moments=types.optimizer.moments,
            clipped=types.optimizer.clip_norm is not None,
        )
        return ModelSchedule.of(made, model, entry, types.precision, accumulation, types.optimizer)


def agreed_precision(schedule: ModelSchedule, given: str | None) -> str:
    """The precision that was `given` for a schedule, else that for which it was built, else fp32."""
    return given or schedule.precision or Precision.FP32


def check_agreed(schedule: ModelSchedule, precision: Precision, function: str) -> None:
    """Raise `InputError` for a precision whose activations do not travel in the type for which a schedule was built."""
    known = schedule.precision
    if (
        known is None
        or computed_in(known) is computed_in(precision)
        or getattr(schedule.entry.settings, "activations", None)
    ):
        return
    sends = any(
        v.kind.is_activation
        for op in schedule.ops
        if not isinstance(op, Compute)
        for v in (op.values if isinstance(op, Transfer) else (op.value,))
    )
    if sends:
        raise InputError(
            f"is {precision}, and the schedule was built for {known}, in which its activations travel",
            where=f"{function}: precision",
            hint=f'build_schedule(..., precision="{precision}") builds one for it',
        )


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
