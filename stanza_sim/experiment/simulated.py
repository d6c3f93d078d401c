"""The section `simulation:` of an experiment file: what the simulator adds to the plain prediction."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from stanza_sim.base.config import Count, Section


def wrong(message: str, hint: str = "") -> PydanticCustomError:
    """A validation error whose message and hint reach the user as they are (as those of `units` do)."""
    return PydanticCustomError("unit", "{message}", {"message": message, "hint": hint})


class Jitter(Section):
    """How computation times vary by chance, from rank to rank and from iteration to iteration."""

    kind: Literal["none", "lognormal", "uniform"] = Field("none", description="How computation times are distributed.")
    spread: float = Field(
        0.0, ge=0, le=1000, allow_inf_nan=False, strict=True, description="Relative to the mean, such as 0.1."
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.kind == "none") != (self.spread == 0):
            what = "a spread without a kind" if self.kind == "none" else f"{self.kind} jitter without a spread"
            raise wrong(what, "write such as {kind: lognormal, spread: 0.1}")
        if self.kind == "uniform" and self.spread >= 1:
            raise wrong(f"uniform jitter with a spread of {self.spread:g}", "its spread is below 1")
        return self


class Straggler(Section):
    """A chance that a rank takes much longer for an iteration."""

    probability: float | None = Field(None, gt=0, le=1, strict=True, description="Chance of a rank in an iteration.")
    slowdown: float | None = Field(None, gt=1, le=1e6, strict=True, description="How many times as long.")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.probability is None) != (self.slowdown is None):
            raise wrong("stragglers need `probability` and `slowdown`", "such as {probability: 0.01, slowdown: 3}")
        return self


class Simulation(Section):
    """What the simulator adds to the plain prediction. See `stanza_sim.simulate.variation`."""

    jitter: Jitter = Jitter()
    straggler: Straggler = Straggler()
    repeats: Count | None = Field(
        None, le=100_000, description="Simulations with draws of their own; default: 20 if any vary."
    )
    collectives: Literal["activity", "steps"] = Field(
        "activity", description="activity: each as one flow over all its links; steps: message by message, slower."
    )
    engine: Literal["auto", "plain", "compiled"] = Field(
        "auto", description="plain: in Python; compiled: with numba; auto: compiled where that is faster."
    )

    @property
    def varies(self) -> bool:
        """Whether computation times vary by chance."""
        return self.jitter.kind != "none" or self.straggler.probability is not None
