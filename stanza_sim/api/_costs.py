"""Costs that a caller gives."""

from __future__ import annotations

from collections.abc import Callable

from stanza_sim.simulate.costs import CostModel


class GivenCosts:
    """Costs that a caller gave as a function from a rank to its cost model."""

    def __init__(self, costs: Callable[[int], CostModel]) -> None:
        self._costs = costs

    @property
    def source(self) -> str:
        """Where the numbers of rank 0 come from."""
        return self._costs(0).source

    def __call__(self, rank: int, /) -> CostModel:
        """See `RankCosts`."""
        return self._costs(rank)
