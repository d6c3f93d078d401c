"""When the held-out samples are looked at, and what they must say for a training to end."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from stanza_sim.base.config import Count, Factor, Fraction, Section
from stanza_sim.base.errors import InputError
from stanza_sim.experiment.simulated import wrong
from stanza_sim.model.labels import Labels, Loss


class Evaluation(Section):
    """How often the held-out samples are looked at."""

    iterations: Count | None = Field(None, description="After so many iterations each time.")
    epochs: Factor | None = Field(None, description="After so many epochs each time, such as 1 or 0.5.")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.iterations is None) is (self.epochs is None):
            raise wrong("evaluate takes one of iterations and epochs", "such as evaluate: {epochs: 1}")
        return self


class TrainingTarget(Section):
    """What the held-out samples must say for a training to end early."""

    accuracy: Fraction | None = Field(None, description="At least this share of positions is classified correctly.")
    perplexity: Annotated[float, Field(strict=True, ge=1, allow_inf_nan=False)] | None = Field(
        None, description="The exponential of the mean loss of a position is at most this."
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.accuracy is None) is (self.perplexity is None):
            raise wrong("target takes one of accuracy and perplexity", "such as target: {accuracy: 0.9}")
        return self

    def check(self, labels: Labels) -> None:
        """Raise `InputError` for samples with `labels` that say nothing of it."""
        if self.perplexity is not None and not labels.has_perplexity:
            what = f"a perplexity is of class indices at several positions, and here the loss is {labels.loss}"
            raise InputError(what, hint="set target: {accuracy: ...}" if labels.loss is not Loss.MSE else None)
        if self.accuracy is not None and labels.loss is Loss.MSE:
            raise InputError("an accuracy is of classes, and here the loss is mse", hint="leave the target out")
