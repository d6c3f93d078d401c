"""What a run is told and what it answers. Nothing here imports torch: the parent process of local ranks does not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import numpy as np
import numpy.typing as npt

from stanza_sim.base.errors import InputError
from stanza_sim.base.optimizers import OptimizerKind, moments_of
from stanza_sim.base.precision import LOSS_SCALE, Precision
from stanza_sim.base.units import format_time
from stanza_sim.execute.rank.clock import ClockOffset
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Schedule
from stanza_sim.schedule.progress import Issue
from stanza_sim.timeline.spans import Timeline

Array = npt.NDArray[np.generic]


class Backend(StrEnum):
    """Which library moves the messages. `AUTO`: NCCL where every rank has a GPU of its own, else gloo."""

    AUTO = "auto"
    GLOO = "gloo"
    NCCL = "nccl"


class ComputeMode(StrEnum):
    """Whether computations are carried out, or emulated by waiting as long as they would take."""

    REAL = "real"
    EMULATED = "emulated"


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningRate:
    """How the learning rate changes: linear warm-up over `warmup` iterations, then constant, stepped or cosine."""

    kind: Literal["constant", "step", "cosine"] = "constant"
    warmup: int = 0
    every: int | None = None
    factor: float | None = None

    def at(self, base: float, iteration: int, iterations: int) -> float:
        """The rate in `iteration` (from 0) of a run of `iterations`, `base` being the rate after the warm-up.

        Warm-up: `base * (iteration + 1) / warmup`. Step: a factor every `every` iterations after it. Cosine: half
        a cosine from `base` to 0 at the end of the run.
        """
        if iteration < self.warmup:
            return base * (iteration + 1) / self.warmup
        after = iteration - self.warmup
        match self.kind:
            case "constant":
                return base
            case "step":
                if self.every is None or self.factor is None:
                    raise InputError("a stepped learning rate needs `every` and `factor`")
                return base * float(self.factor ** (after // self.every))
            case "cosine":
                return base * (1 + math.cos(math.pi * after / max(iterations - self.warmup, 1))) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimizer:
    """An optimiser, with the step of `torch.optim`'s. `lr` is the rate for the *mean* loss of a global batch.

    With G the gradient of the summed loss and B the global batch the gradient of a step is G / B; where `clip_norm` is
    given it is scaled so that the norm of all parameters' together is that at most. Only SGD uses `momentum`, only Adam
    and AdamW use `betas` and `eps`. What `no_decay` names has no weight decay: see `model.decay.without_decay`.
    """

    kind: OptimizerKind = OptimizerKind.SGD
    lr: float = 0.05
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    no_decay: tuple[str, ...] = ()
    clip_norm: float | None = None
    schedule: LearningRate = LearningRate()

    @property
    def moments(self) -> int:
        """How many vectors as long as the parameters it keeps."""
        return moments_of(self.kind, self.momentum)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What the held-out samples said after `iteration` iterations in all: their mean loss, and what follows from it.

    `accuracy` is the share of positions that are classified correctly, `perplexity` the exponential of the mean loss of
    a position; None where the labels are no classes.
    """

    iteration: int
    loss: float
    accuracy: float | None = None
    perplexity: float | None = None

    def __str__(self) -> str:
        parts = [f"held-out loss {self.loss:#.3g}"]
        if self.perplexity is not None:
            parts.append(f"perplexity {self.perplexity:#.4g}")
        if self.accuracy is not None:
            parts.append(f"accuracy {self.accuracy:.1%}")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What the held-out samples must say for training to end: at least this accuracy, or at most this perplexity."""

    accuracy: float | None = None
    perplexity: float | None = None

    def reached(self, score: Score) -> bool:
        """Whether `score` is as good."""
        if self.accuracy is not None and score.accuracy is not None and score.accuracy >= self.accuracy:
            return True
        return self.perplexity is not None and score.perplexity is not None and score.perplexity <= self.perplexity


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What is trained, and for how long: `iterations` in all, of which the first `warmup` that are run are not timed.

    `data` is `synthetic`, `digits`, or the import path (`package.module:name`) of a torch Dataset. `begin` iterations
    have been done already, by the run that wrote what is resumed. After every `evaluate` iterations, and at the end,
    the held-out samples are looked at; once they reach the `target`, training ends, but not before two iterations
    behind the warm-up have been timed.
    """

    iterations: int = 60
    warmup: int = 10
    optimizer: Optimizer = Optimizer()
    data: str = "synthetic"
    seed: int = 1
    begin: int = 0
    evaluate: int | None = None
    target: Target | None = None

    def stops(self) -> list[int]:
        """After which iterations, of all, the ranks stop: to look at the held-out samples, and at the end."""
        every = self.evaluate or self.iterations
        return [*range((self.begin // every + 1) * every, self.iterations, every), self.iterations]


@dataclass(frozen=True, slots=True, kw_only=True)
class Emulation:
    """How long computations take that are emulated.

    `seconds[r][op]` is what the op takes at rank r on an idle device. `device[r]` is the number of the device on which
    rank r computes; ranks of one number share it, and are on one machine. `capacity[d]` computations run on device d
    at full speed at once, more share it. With `realtime` ranks run under real-time scheduling, if that is permitted.
    With a `dilation` computations are waits so many times as long, and the times that are measured are divided by it.
    """

    seconds: tuple[Mapping[str, float], ...]
    device: tuple[int, ...]
    capacity: tuple[float, ...]
    realtime: bool = False
    dilation: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunJob:
    """One schedule to be executed. `model` must name its factory, unless computations are emulated.

    With `emulation` every computation is a wait, while every message is sent: nothing is trained. `timeout_s` is how
    long a rank may go without completing anything before the run has failed. `keep_parameters` returns the trained
    parameters with the measurement. With `deterministic` repeats are bitwise equal on GPUs, as they always are on CPUs.

    Blocks are computed in `precision`, while parameters, sums and updates are of the parameters' type. Where anything
    is computed or travels in fp16, the mean loss of each worker's batch is multiplied by `loss_scale`; gradients are
    divided by it when they update parameters, and one that has overflowed ends the run.

    Rank 0 writes the trained parameters to the file `save`, and what resuming takes beside it, whenever ranks stop; a
    file that was written so is gone on with where it is `resume`.
    """

    schedule: Schedule
    model: ModelProfile
    training: Training = Training()
    backend: Backend = Backend.AUTO
    issue: Issue = Issue.AUTO
    timeout_s: float = 60.0
    keep_parameters: bool = False
    deterministic: bool = False
    emulation: Emulation | None = None
    precision: Precision = Precision.FP32
    loss_scale: float = LOSS_SCALE
    save: str | None = None
    resume: str | None = None

    @property
    def dilation(self) -> float:
        """How many times slower than reported everything happens; 1 unless computations are emulated so."""
        return 1.0 if self.emulation is None else self.emulation.dilation


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message as its rank saw it: `posted_s` at this end, `arrived_s` at a receiver (0 at a sender).

    `unit` indexes the rank's program; `peer` is the other end. Times are of the rank's own clock.
    """

    unit: int
    iteration: int
    peer: int
    nbytes: int
    posted_s: float
    arrived_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RankReport:
    """What one rank has to say after a run; `measure.merge` makes a `Measurement` of all of them.

    `spans` are (unit, iteration, start, end) of computations and collectives. `loss_sums` are sums over the samples
    whose loss this rank computed, by iteration. Iterations are counted from the first of the run; before those of
    `segments` ranks stopped, and what they did until they went on is left out of all times. `scores` and `parameters`
    come from rank 0 only. `realtime` says that
    real-time scheduling was granted. Of the cores of its `machine` (`clock.boot_id`), in the `took_s` seconds of the
    run, `stolen` is the share that a virtual machine's host took away, `busy` that on which any process ran, and `own`
    that on which this rank did.
    """

    rank: int
    host: str
    iteration_end_s: tuple[float, ...]
    spans: tuple[tuple[int, int, float, float], ...]
    sends: tuple[Message, ...]
    receives: tuple[Message, ...]
    loss_sums: tuple[float, ...]
    sent_bytes: int
    received_bytes: int
    clock: ClockOffset
    scores: tuple[Score, ...] = ()
    segments: tuple[int, ...] = (0,)
    parameters: Mapping[str, Array] | None = None
    realtime: bool = False
    stolen: float = 0.0
    busy: float = 0.0
    own: float = 0.0
    machine: str = ""
    took_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Measurement:
    """What a run measured. `measure.merge` defines the iteration time.

    `iteration_s` is a median, `iteration_s_min` and `iteration_s_max` the spread of single iterations. `losses` are
    means per sample over the global batch, one for each iteration, warm-up included. `scores` are of the held-out part
    of the data, the last of them after training (none where there is none). `sent_bytes[r]` and `received_bytes[r]` are
    what rank r passed to `torch.distributed` in all iterations; of a backend's collective they count what a ring moves
    (`stanza_sim.schedule.collectives.collective_bytes`). `compute` says whether computations were emulated, and then
    there are no losses and no accuracy; `realtime` whether all ranks ran under real-time scheduling. `stolen` is the
    share of the cores that a virtual machine's host took away, `others` that on which processes ran which are no ranks
    (both of the machine that suffered most); of so many `tries` this is the one of which least was taken away. The run
    took `dilation` times as long as its times say.
    """

    timeline: Timeline
    iteration_s: float
    iteration_s_min: float
    iteration_s_max: float
    samples_per_s: float
    losses: tuple[float, ...]
    scores: tuple[Score, ...]
    sent_bytes: tuple[int, ...]
    received_bytes: tuple[int, ...]
    hosts: tuple[str, ...]
    compute: ComputeMode = ComputeMode.REAL
    realtime: bool = False
    stolen: float = 0.0
    others: float = 0.0
    tries: int = 1
    dilation: float = 1.0
    parameters: Mapping[str, Array] | None = None

    @property
    def accuracy(self) -> float | None:
        """The accuracy on the held-out samples after training; None where there is none."""
        return self.scores[-1].accuracy if self.scores else None

    @property
    def perplexity(self) -> float | None:
        """The perplexity of the held-out samples after training; None where there is none."""
        return self.scores[-1].perplexity if self.scores else None

    def __repr__(self) -> str:
        speed = f"{format_time(self.iteration_s)} an iteration, {self.samples_per_s:,.4g} samples/s"
        return f"<Measurement: {speed}, {self.compute} compute at {len(self.hosts):,} ranks>"
