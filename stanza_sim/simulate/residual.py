"""How far predicted costs may be off, and how far that leaves a prediction.

A residual is a range of factors on times: those of a fit, a calibration or an assumption. Where it comes from is said
by the source of the costs. A scenario is simulated again with computation and network each at an end of its residual:
the four corners. Two predictions that rest on the same costs share their errors, so they are compared corner by corner.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

SAME = 0.02
"""Samples/s that differ by no more than this, relatively, are called the same: even where costs have no error, as on
emulated networks with emulated computations, nine predictions in ten are within 2.2% of what is measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Residual:
    """True times are taken to be between `low` (at most 1) and `high` (at least 1) times the predicted ones.

    `basis` says in words what that rests on.
    """

    low: float = 1.0
    high: float = 1.0
    basis: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.low <= 1 <= self.high:
            raise ValueError(f"a residual of {self.low:g} to {self.high:g} does not hold 1")

    @property
    def nothing(self) -> bool:
        """Whether predicted times are taken to be exact."""
        return self.low == self.high == 1

    def times(self, slow: bool) -> float:
        """The factor on times at one end."""
        return self.high if slow else self.low


def residual_of(costs: object) -> Residual:
    """How far off the times of a cost model may be, as its `residual` says; one that says nothing is taken as exact."""
    found = getattr(costs, "residual", None)
    return found if isinstance(found, Residual) else Residual(basis="times as given")


def within(share: float, basis: str = "") -> Residual:
    """The residual of times that may be up to 1 + `share` times as long, or as short."""
    return Residual(low=1 / (1 + share), high=1 + share, basis=basis)


def of_ratios(ratios: Iterable[float], basis: str = "") -> Residual:
    """The residual of predicted over true times, from the least to the greatest."""
    true = [1 / ratio for ratio in ratios]
    return Residual(low=min(1.0, *true), high=max(1.0, *true), basis=basis)


def leave_one_out(values: Sequence[float]) -> tuple[float, float]:
    """How far each value is from the geometric mean of all others: median and 90th percentile, as shares (0.5: 1.5
    times as much, or as little). Raises `ValueError` for fewer than two."""
    logs = np.log(values)
    if len(logs) < 2:
        raise ValueError("nothing is left without one")
    off = np.abs(logs - (logs.sum() - logs) / (len(logs) - 1))
    middle, most = np.expm1(np.quantile(off, (0.5, 0.9))).tolist()
    return middle, most


class Corner(StrEnum):
    """Where a scenario is simulated again: which costs are at the slow end of their residuals, the others being fast.

    The first two bound samples/s. In the last two computation and communication are off in opposite directions, which
    is what reverses the order of two rows that share their costs.
    """

    SLOW = "all slow"
    FAST = "all fast"
    COMPUTATION = "computation slow, network fast"
    NETWORK = "computation fast, network slow"

    @property
    def slow_computation(self) -> bool:
        """Whether computations take longest."""
        return self in (Corner.SLOW, Corner.COMPUTATION)

    @property
    def slow_network(self) -> bool:
        """Whether messages take longest."""
        return self in (Corner.SLOW, Corner.NETWORK)


OPPOSITE = (Corner.COMPUTATION, Corner.NETWORK)
"""The corners that alone tell whether an order may be reversed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Samples/s as predicted, and at each corner; at none where nothing may be off."""

    predicted: float
    corners: Mapping[Corner, float] = field(default_factory=dict)

    @property
    def low(self) -> float:
        """The least samples/s."""
        return min(self.predicted, *self.corners.values()) if self.corners else self.predicted

    @property
    def high(self) -> float:
        """The most samples/s."""
        return max(self.predicted, *self.corners.values()) if self.corners else self.predicted

    def at(self, corner: Corner) -> float:
        """Samples/s at a corner."""
        return self.corners.get(corner, self.predicted)


def between_corners(
    predicted: float, opposite: Mapping[Corner, float], computation: Residual, network: Residual
) -> dict[Corner, float]:
    """Samples/s at all corners, from those as predicted and at the corners where costs are off in opposite ways.

    If all costs are twice as high, an iteration takes twice as long, so its time is that of the network times a
    function of how slow computations are relative to it. That is known at three such ratios, and taken to be linear
    between them. As an iteration takes as long as the longest of many paths, it is convex in that ratio: what is
    returned is never too fast.
    """
    slow, fast = opposite[Corner.COMPUTATION], opposite[Corner.NETWORK]
    ratios = [computation.low / network.high, 1.0, computation.high / network.low]
    times = [1 / (fast * network.high), 1 / predicted, 1 / (slow * network.low)]

    def at(of_computation: float, of_network: float) -> float:
        return 1 / (of_network * float(np.interp(of_computation / of_network, ratios, times)))

    return {
        Corner.SLOW: at(computation.high, network.high),
        Corner.FAST: at(computation.low, network.low),
        **opposite,
    }


def tied(a: Spread, b: Spread, *, share_computation: bool = True, share_network: bool = True) -> bool:
    """Whether some corner within the residuals reverses the order of two predictions, or makes their difference vanish.

    It has vanished where it is no more than `SAME`. What they share, the devices that they compute on or the network,
    is off alike for both; what they do not share may be at one end for this and at the other for that.
    """
    if not a.predicted >= b.predicted:
        a, b = b, a
    pairs = [(a.predicted, b.predicted)]
    for one in Corner:
        for other in Corner:
            alike = one.slow_computation == other.slow_computation or not share_computation
            if alike and (one.slow_network == other.slow_network or not share_network):
                pairs.append((a.at(one), b.at(other)))
    return any(first <= second * (1 + SAME) for first, second in pairs)


def ties(spreads: Sequence[Spread | None]) -> list[tuple[int, ...]]:
    """For each of several predictions that share all costs the numbers of those that it is tied with.

    What has no spread is tied with none.
    """
    known = [(i, spread) for i, spread in enumerate(spreads) if spread is not None]
    return [() if a is None else tuple(j for j, b in known if j != i and tied(a, b)) for i, a in enumerate(spreads)]
