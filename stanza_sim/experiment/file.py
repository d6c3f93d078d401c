"""What an experiment file says: models, a cluster, strategies and how to train. See `experiments/` for two examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails

from stanza_sim import strategies
from stanza_sim.base import config
from stanza_sim.base.config import Count, Factor, Loaded, Section
from stanza_sim.base.errors import InputError
from stanza_sim.base.precision import LOSS_SCALE, Precision
from stanza_sim.base.units import PositiveSeconds, Rate
from stanza_sim.experiment.held_out import Evaluation, TrainingTarget
from stanza_sim.experiment.model_entry import Batch as Batch
from stanza_sim.experiment.model_entry import ModelEntry as ModelEntry
from stanza_sim.experiment.model_entry import Name as Name
from stanza_sim.experiment.model_entry import Scale as Scale
from stanza_sim.experiment.optimizer import NamedOptimizer, Optimizer
from stanza_sim.experiment.simulated import Simulation
from stanza_sim.experiment.simulated import wrong as _wrong
from stanza_sim.schedule import Wire
from stanza_sim.schedule.progress import Issue


class Network(Section):
    """Changes to the cluster's network."""

    rate: Rate | None = Field(None, description="Rate of every NIC.")
    nccl: str | None = Field(
        None, min_length=1, description="What NCCL reaches on all hosts: name of a platform, or path of its file."
    )


def _from_name(key: str) -> BeforeValidator:
    """Let a bare name stand for `{key: name}`."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str) else value)


class StrategyEntry(Section):
    """A strategy with its settings."""

    strategy: str = Field(description="Name of the strategy: a file in `strategies/`.")
    label: str | None = Field(None, min_length=1, max_length=60, description="Name of the row; default: the name.")
    settings: SerializeAsAny[BaseModel] = Field(
        default_factory=Section,
        validate_default=True,
        description="Settings of the strategy: see `stanza-sim show strategy NAME`.",
    )

    @field_validator("strategy")
    @classmethod
    def _exists(cls, value: str) -> str:
        try:
            strategies.get(value)
        except InputError as error:
            raise _wrong(error.message, error.hint or "") from None
        return value

    @field_validator("label")
    @classmethod
    def _on_one_line(cls, value: str | None) -> str | None:
        if value is not None and not value.isprintable():
            raise _wrong(f"{value!r} has characters that cannot be printed", "a label is one line of text")
        return value

    @field_validator("settings", mode="plain")
    @classmethod
    def _of_strategy(cls, value: object, info: ValidationInfo) -> BaseModel:
        name = info.data.get("strategy")
        if name is None:  # the strategy's name is wrong, and that is reported
            return Section()
        given = {} if value is None or type(value) is Section else value
        known = strategies.get(name).Settings
        if isinstance(given, Mapping) and (unknown := [k for k in given if k not in known.model_fields]):
            message = f"strategy {name} has no setting {unknown[0]!r}"
            error = _wrong(message, config.near(str(unknown[0]), known.model_fields))
            details = InitErrorDetails(type=error, loc=(unknown[0],), input=given[unknown[0]])
            raise ValidationError.from_exception_data("settings", [details])
        return known.model_validate(given)

    @property
    def title(self) -> str:
        """What the report calls the row."""
        return self.label or self.strategy


DIGITS = 1438
"""Samples of `data: digits` that are trained on: of 1,797 one in five is held out."""


class Training(Section):
    """What `--execute` trains on, and for how long."""

    iterations: Count = Field(60, description="Iterations in all, warm-up and those that are resumed included.")
    warmup: int = Field(10, ge=0, description="First iterations, which train but are not timed.")
    optimizer: NamedOptimizer = Optimizer()
    epochs: Factor | None = Field(
        None,
        description="Of the whole training, for its time and cost; they are run for real, too, unless `iterations` or "
        "`samples` are stated.",
    )
    samples: Count | None = Field(None, description="How many samples an epoch has; default: those of the data.")
    evaluate: Evaluation | None = Field(
        None,
        description="How often the held-out samples are looked at; default: at the end, and with a target each epoch.",
    )
    target: TrainingTarget | None = Field(
        None, description="What ends a training early: {accuracy: 0.9}, or {perplexity: 20} of the held-out samples."
    )
    data: str = Field("synthetic", min_length=1, description="synthetic, digits, or the import path of a Dataset.")
    loss: Literal["cross_entropy", "mse", "bce"] | None = Field(
        None,
        description="Default: cross_entropy for whole numbers; mse, or bce of booleans, where labels are like outputs.",
    )
    accumulation: Annotated[Count, Field(le=10_000)] = Field(
        1,
        description="Steps of an iteration: each worker computes so many batches of batch_per_worker samples, adds up "
        "their gradients, and then exchanges these and updates parameters once.",
    )
    loss_scale: Factor = Field(
        LOSS_SCALE, le=2**24, description="fp16: what the mean loss of a worker's batch is multiplied by."
    )

    @model_validator(mode="after")
    def _epochs_have_samples(self) -> Self:
        if self.epochs is not None and self.samples is None and self.data == "synthetic":
            what = f"how many samples an epoch of `{self.data}` data has is not known"
            raise _wrong(what, "set training.samples, such as samples: 1281167 for ImageNet")
        if self.samples is not None and self.epochs is None:
            raise _wrong("`samples` has no use without `epochs`", "set training.epochs too, such as epochs: 90")
        return self

    @property
    def all_samples(self) -> float | None:
        """Samples of the whole training, if its epochs are stated, and how many an epoch has is known."""
        each = self.samples or (DIGITS if self.data == "digits" else None)
        return None if self.epochs is None or each is None else self.epochs * each

    @property
    def runs_epochs(self) -> bool:
        """Whether the epochs say how many iterations are run."""
        return self.epochs is not None and self.samples is None and "iterations" not in self.model_fields_set

    @model_validator(mode="after")
    def _held_out(self) -> Self:
        if self.data == "synthetic" and (self.evaluate is not None or self.target is not None):
            key = "evaluate" if self.evaluate is not None else "target"
            raise _wrong(f"`{key}` is of held-out samples, and synthetic data has none", "set training.data")
        return self

    @model_validator(mode="after")
    def _some_are_timed(self) -> Self:
        if self.warmup + 2 > self.iterations and not self.runs_epochs:
            raise _wrong(
                f"{self.iterations} iterations with {self.warmup} of warm-up leave fewer than two to time",
                "raise `iterations` or lower `warmup`",
            )
        return self


def _dilation(value: object) -> object:
    """A factor of at least 1, as it is; anything else is refused with what a dilation is."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value < inf:
        raise _wrong(f"{value!r} is not a number of times, 1 or more", "such as dilate: 40; 1 dilates nothing")
    return value


class Execute(Section):
    """How `--execute` starts the ranks."""

    timeout: PositiveSeconds = Field(
        60.0, description="How long a rank may stay silent before the run has failed; multiplied by `dilate`."
    )
    threads_per_rank: Count = Field(1, description="Threads of each rank's computation on a CPU.")
    backend: Literal["auto", "gloo", "nccl"] = Field("auto", description="auto: nccl with one GPU a rank, else gloo.")
    issue: Literal["auto", "eager", "in_order"] = Field(
        "auto", description="eager, as auto: whatever may be sent is; in_order: op by op, with gloo only."
    )
    compute: Literal["real", "emulated"] = Field(
        "real", description="emulated: each computation is a wait of its predicted time, and nothing is trained."
    )
    realtime: bool = Field(
        False,
        description="Emulated: run ranks under real-time scheduling, if that is permitted; default with --testbed.",
    )

    deterministic: Annotated[bool, Field(strict=True)] = Field(
        False, description="Real: repeats are bitwise equal on GPUs too, as they are on CPUs; slower."
    )
    dilate: Annotated[float, BeforeValidator(_dilation)] = Field(
        1.0,
        description="Emulated, in a testbed: links are so many times slower and waits as much longer, and times that "
        "are measured are divided by it.",
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.dilate != 1 and self.compute == "real":
            what = "dilate is for emulated compute: what is computed for real takes the time that it takes"
            raise _wrong(what, "set compute: emulated (--compute emulated), or leave dilate out")
        if self.deterministic and self.compute == "emulated":
            raise _wrong("deterministic is for real compute: what is emulated has no results", "leave it out")
        if self.realtime and self.compute == "real":
            raise _wrong("realtime is for emulated compute: ranks that compute would hold all cores", "leave it out")
        if self.backend == "nccl" and self.compute == "emulated":
            raise _wrong("emulated compute sends from host memory, which NCCL does not", "use backend: gloo, or auto")
        if self.backend == "nccl" and self.issue == "in_order":
            what = "issue: in_order is for gloo; NCCL's messages are received in the order of their announcements"
            raise _wrong(what, "leave `issue` at auto, or use backend: gloo")
        return self

    @property
    def issued(self) -> Issue:
        """How messages are issued."""
        return Issue.IN_ORDER if self.issue == "in_order" else Issue.EAGER


Share = Annotated[float, Field(ge=0, le=10, allow_inf_nan=False, strict=True)]
"""How far off a time may be: 0.2 is up to 1.2 times as long, or as short."""


class Uncertainty(Section):
    """How far off costs may be; see `stanza_sim.experiment.uncertainty`."""

    computation: Share | None = Field(None, description="Of computations; default: the residual of their source.")
    network: Share | None = Field(
        None, description="Of messages; default: that of calibration, else of what is stated."
    )


class Experiment(Section):
    """One experiment file."""

    name: Name = Field(description="Name in results: letters, digits, _, . and -.")
    description: str = Field("", description="What it is for.")
    cluster: str = Field(min_length=1, description="Name of a topology, or path of its file.")
    nodes: Count | None = Field(None, description="How many nodes; default: the topology's.")
    network: Network = Network()
    batch_per_worker: Batch = Field(
        32, description="Samples per worker and iteration, for models that do not say; of language models sequences."
    )
    seed: int = Field(1, ge=0, lt=2**63, strict=True, description="Of parameters, data and what varies by chance.")
    precision: Precision = Field(
        Precision.FP32, description="What is computed in: fp32 (no TF32), tf32, bf16 or fp16 (autocast)."
    )
    gradients: Literal["parameter", "bf16", "fp16"] = Field(
        "parameter",
        description="Type in which gradients of parameters travel: that of the parameters, or one of 2 bytes.",
    )
    launch: Literal["eager", "graphs"] = Field(
        "eager",
        description="How kernels reach a GPU: eager: op by op from Python; graphs: CUDA graphs, compiled steps.",
    )
    models: tuple[Annotated[ModelEntry, _from_name("model")], ...] = Field(min_length=1)
    strategies: tuple[Annotated[StrategyEntry, _from_name("strategy")], ...] = Field(min_length=1)
    training: Training = Training()
    execute: Execute = Execute()
    simulation: Simulation = Simulation()
    uncertainty: Uncertainty = Uncertainty()
    profile: str | None = Field(None, description="File with measured block times, relative to this file.")

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for what, titles in (
            ("models", [m.title for m in self.models]),
            ("strategies", [s.title for s in self.strategies]),
        ):
            if twice := [t for t in dict.fromkeys(titles) if titles.count(t) > 1]:
                key = "name" if what == "models" else "label"
                raise _wrong(f"two {what} are called {twice[0]!r}", f"give each its own `{key}`")
        if "loss_scale" in self.training.model_fields_set and not self._has_fp16():
            raise _wrong("training.loss_scale has no use: nothing is in fp16", "leave it out, or set precision: fp16")
        if self.network.nccl is not None and (self.execute.compute == "emulated" or self.execute.backend == "gloo"):
            what = "emulated compute" if self.execute.compute == "emulated" else "backend gloo"
            raise _wrong(f"network.nccl has no use: {what} does not use NCCL", "leave network.nccl out")
        return self

    def _has_fp16(self) -> bool:
        """Whether anything is computed in fp16 or travels in it."""
        activations = (getattr(row.settings, "activations", None) for row in self.strategies)
        return "fp16" in (self.precision, self.gradients, *activations)

    @property
    def gradient_wire(self) -> Wire:
        """The type in which gradients of parameters travel."""
        return Wire.NATIVE if self.gradients == "parameter" else Wire(self.gradients)

    def batch_of(self, entry: ModelEntry) -> int:
        """Samples per worker and iteration of one of `models`."""
        return entry.own_batch or self.batch_per_worker


def load_experiment(name_or_path: str, overrides: Sequence[str] = ()) -> Loaded[Experiment]:
    """Read an experiment by name or path.

    `overrides` are `key=value` texts, the key a dotted path into the file. `batch_per_worker=N` also overrides what
    the models say themselves, unless `models.I.batch_per_worker` is given too. Raises `InputError` with file, key
    and what would be right.
    """
    loaded = config.load_located(config.find("experiments", name_or_path), Experiment, overrides=overrides)
    keys = loaded.source.overridden.keys()
    if ("batch_per_worker",) not in keys:
        return loaded
    models = list(loaded.value.models)
    for i, entry in enumerate(models):
        own = {("models", i, key) for key in ("batch_per_worker", "tokens_per_worker")}
        if not {("models", i), *own} & keys:
            models[i] = entry.with_batch(None)
    return replace(loaded, value=loaded.value.model_copy(update={"models": tuple(models)}))
