"""Chance in computation times: jitter of every rank and iteration, and stragglers.

Each rank draws one factor for each iteration, by which all its computations in that iteration take longer: a slow
moment of a machine lasts longer than an op. The draw depends on the seed, the repeat, the rank and the iteration alone,
so it is the same in every engine, for every strategy and in whatever order things happen.

Domain of validity: draws are independent between ranks and between iterations. A machine that is slow all the time is
no jitter (give its host a `device_speed`), and neither are slow phases of many iterations or of a whole rack. What a
collective computes while it moves data is not varied.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import exp, log1p, sqrt
from statistics import NormalDist

from stanza_sim.base.errors import InputError
from stanza_sim.cluster.routing import mix

_NORMAL = NormalDist()


class JitterKind(StrEnum):
    """How the factor of a rank and iteration is distributed; its mean is 1."""

    NONE = "none"
    LOGNORMAL = "lognormal"
    UNIFORM = "uniform"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variation:
    """What varies. `spread` is relative to the mean.

    lognormal: the standard deviation of the factor is `spread`. uniform: the factor is between 1 - `spread` and 1 +
    `spread`, which must be below 1. With the chance `straggler_probability`, a rank's iteration takes
    `straggler_slowdown` times as long on top of that. Raises `InputError` for values out of range.
    """

    seed: int = 0
    repeat: int = 0
    jitter: JitterKind = JitterKind.NONE
    spread: float = 0.0
    straggler_probability: float = 0.0
    straggler_slowdown: float = 1.0

    def __post_init__(self) -> None:
        most = 1.0 if self.jitter is JitterKind.UNIFORM else float("inf")
        if not 0 <= self.spread < most:
            hint = "it must be at least 0, and below 1 for uniform jitter"
            raise InputError(f"a spread of {self.spread:g}", hint=hint)
        if not 0 <= self.straggler_probability <= 1:
            raise InputError(f"a probability of {self.straggler_probability:g}", hint="it must be from 0 to 1")
        if not 1 <= self.straggler_slowdown < float("inf"):
            raise InputError(f"a slowdown of {self.straggler_slowdown:g}", hint="it must be at least 1")

    @property
    def varies(self) -> bool:
        """Whether any factor can differ from 1."""
        jitters = self.jitter is not JitterKind.NONE and self.spread > 0
        return jitters or (self.straggler_probability > 0 and self.straggler_slowdown > 1)

    def factor(self, rank: int, iteration: int) -> float:
        """Return how many times as long as usual the computations of `rank` take in `iteration`."""
        drawn = mix(mix(mix(self.seed) ^ self.repeat) ^ mix(rank << 32 | iteration))
        match self.jitter:
            case JitterKind.LOGNORMAL:
                variance = log1p(self.spread**2)  # of the logarithm, so that the factor's own is spread squared
                found = exp(_NORMAL.inv_cdf(_unit(drawn)) * sqrt(variance) - variance / 2)
            case JitterKind.UNIFORM:
                found = 1 + self.spread * (2 * _unit(drawn) - 1)
            case JitterKind.NONE:
                found = 1.0
        if self.straggler_probability and _unit(mix(drawn)) < self.straggler_probability:
            found *= self.straggler_slowdown
        return found

    def mean(self, rank: int, first: int, last: int) -> float:
        """Return the mean factor of `rank` over the iterations `first` .. `last`, both included."""
        return sum(self.factor(rank, i) for i in range(first, last + 1)) / (last + 1 - first)


def _unit(drawn: int) -> float:
    """Return a number between 0 and 1, neither included, from 64 random bits."""
    return ((drawn >> 11) + 0.5) / (1 << 53)
