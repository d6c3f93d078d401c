"""How long a training runs: epochs, looks at the held-out samples, a target; and where it is saved and resumed."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from stanza_sim.base.errors import InputError
from stanza_sim.base.files import check_target
from stanza_sim.experiment.file import Training
from stanza_sim.experiment.held_out import Evaluation
from stanza_sim.experiment.rows import Plan

if TYPE_CHECKING:  # imported where something is executed
    from stanza_sim.execute import RunJob


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """How many iterations a training has, how many of them are not timed, and after how many it is evaluated."""

    iterations: int
    warmup: int
    evaluate: int | None


def length_of(training: Training, global_batch: int, samples: int | None) -> Length:
    """The length of a training with global batches of so many samples, of `samples` that are trained on, if known.

    Raises `InputError` for epochs that are too short to be timed.
    """

    def in_epochs(epochs: float) -> int:
        if samples is None:
            raise InputError("how many samples an epoch has is not known", hint="state iterations instead")
        return max(1, math.ceil(epochs * samples / global_batch - 1e-9))

    iterations, warmup = training.iterations, training.warmup
    if training.runs_epochs and training.epochs is not None:
        iterations = in_epochs(training.epochs)
        if "warmup" not in training.model_fields_set:
            warmup = min(warmup, max(iterations - 2, 0))
        if iterations < warmup + 2:
            what = f"{training.epochs:g} epochs are {iterations} iterations, and with {warmup} of warm-up"
            raise InputError(f"{what} they leave fewer than two to time", hint="raise `epochs` or lower `warmup`")
    evaluate = training.evaluate or (Evaluation(epochs=1.0) if training.target is not None else None)
    every = None if evaluate is None else evaluate.iterations or in_epochs(evaluate.epochs or 1.0)
    return Length(iterations=iterations, warmup=warmup, evaluate=every)


# ---- files ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Where trainings are saved, and what they go on from: `{model}` and `{row}` in the names are those of a row."""

    save: Path | None = None
    resume: Path | None = None

    def check(self, plans: Sequence[Plan], *, emulated: bool) -> None:
        """Raise `InputError` where several of `plans` would have one file, or none can be written."""
        for option, path in (("--save", self.save), ("--resume", self.resume)):
            if path is None:
                continue
            if emulated:
                what = "with emulated compute nothing is trained"
                raise InputError(what, where=option, hint="leave it out, or compute for real")
            named = [_named(path, plan) for plan in plans]
            if len(set(named)) < len(named):
                what = f"{len(named)} rows would have one file, {path}"
                raise InputError(what, where=option, hint="write {model} and {row} in its name, such as {row}.pt")
            for one in named if option == "--save" else ():
                check_target(one)

    def of(self, plan: Plan, path: Path | None) -> str | None:
        """The file of one row."""
        return None if path is None else str(_named(path, plan).absolute())


NO_FILES = Files()


def _named(path: Path, plan: Plan) -> Path:
    parts = {"{model}": plan.entry.title, "{row}": plan.strategy.title}
    text = str(path)
    for place, title in parts.items():
        text = text.replace(place, re.sub(r"[^A-Za-z0-9_.\-]+", "-", title))
    return Path(text)


def resumed(job: RunJob) -> RunJob:
    """`job` with the iterations that what it resumes has done. Raises `InputError` for what is of another training."""
    from stanza_sim.execute.rank.checkpoint import iterations_in

    training, done = job.training, iterations_in(job)
    warmup = min(training.warmup, training.iterations - done - 2)
    return replace(job, training=replace(training, begin=done, warmup=warmup))
