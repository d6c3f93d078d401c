"""What an experiment file says about the optimiser."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from stanza_sim.base.config import Count, Factor, Section
from stanza_sim.base.optimizers import SETTINGS, OptimizerKind, moments_of
from stanza_sim.experiment.simulated import wrong as _wrong

Share = Annotated[float, Field(ge=0, lt=1)]


class LearningRate(Section):
    """How the learning rate changes: a linear warm-up, then constant, in steps, or along a half cosine to zero."""

    kind: Literal["constant", "step", "cosine"] = Field("constant", description="How it changes after the warm-up.")
    warmup: int = Field(0, ge=0, description="Iterations of linear warm-up from lr/warmup to lr.")
    every: Count | None = Field(None, description="step: iterations between two steps.")
    factor: float | None = Field(None, gt=0, lt=1, description="step: the factor of one step.")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        given = self.every is not None, self.factor is not None
        if self.kind == "step" and not all(given):
            raise _wrong("a step schedule needs `every` and `factor`", "such as {kind: step, every: 30, factor: 0.1}")
        if self.kind != "step" and any(given):
            raise _wrong(f"`every` and `factor` are for kind step, not {self.kind}", "leave them out or set kind: step")
        return self


class Optimizer(Section):
    """SGD, Adam or AdamW, with the steps of `torch.optim`."""

    kind: Literal["sgd", "adam", "adamw"] = Field("sgd", description="Whose step: that of torch's SGD, Adam or AdamW.")
    lr: Factor | None = Field(
        None, description="Learning rate for the mean loss of a global batch; default 0.05, adam and adamw: 0.001."
    )
    momentum: Share | None = Field(None, description="sgd: the factor on the last step; default 0.9.")
    betas: tuple[Share, Share] | None = Field(
        None, description="adam, adamw: decay of the averages of gradients and of their squares; default [0.9, 0.999]."
    )
    eps: Factor | None = Field(None, description="adam, adamw: added to the root of the second; default 1e-8.")
    weight_decay: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="Weight decay, which adamw applies apart; default 0, adamw: 0.01."
    )
    no_decay: tuple[str, ...] = Field(
        (),
        description="Parameters that do not decay: bias, norm (weights of one dimension), or patterns of names, such "
        "as embed*.",
    )
    clip_norm: Factor | None = Field(
        None, description="The most that the norm of all gradients together may be; above it they are scaled down."
    )
    schedule: LearningRate = LearningRate()

    @model_validator(mode="after")
    def _only_its_own(self) -> Self:
        known = SETTINGS[OptimizerKind(self.kind)]
        for key in ("momentum", "betas", "eps"):
            if key not in known and getattr(self, key) is not None:
                others = " and ".join(kind for kind, keys in SETTINGS.items() if key in keys)
                raise _wrong(f"{self.kind} has no `{key}`", f"it is of {others}: leave it out, or set another kind")
        if self.no_decay and not self.settings["weight_decay"]:
            raise _wrong("`no_decay` has no use without weight decay", "set weight_decay, or leave it out")
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that the kind has: those that are given, and its defaults."""
        known = SETTINGS[OptimizerKind(self.kind)]
        return {key: default if (value := getattr(self, key)) is None else value for key, default in known.items()}

    @property
    def moments(self) -> int:
        """How many vectors as long as the parameters it keeps."""
        return moments_of(OptimizerKind(self.kind), self.settings.get("momentum", 0.0))


NamedOptimizer = Annotated[
    Optimizer, BeforeValidator(lambda value: {"kind": value} if isinstance(value, str) else value)
]
"""An optimiser, or its kind alone."""
