"""Costs that a caller gives, and costs of what computes faster."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stanza_sim.model.profile import Block
from stanza_sim.simulate.costs import CostModel, RankCosts


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


class FasterCosts:
    """Costs of ranks that compute `times[rank]` times as fast."""

    def __init__(self, costs: RankCosts, times: Sequence[float]) -> None:
        self._costs, self._times = costs, times

    @property
    def source(self) -> str:
        """Where the numbers come from."""
        return f"{self._costs.source}, at other speeds"

    def __call__(self, rank: int, /) -> CostModel:
        """See `RankCosts`."""
        return _Faster(self._costs(rank), self._times[rank])


class _Faster:
    """A cost model that is so many times as fast as another."""

    def __init__(self, slow: CostModel, times: float) -> None:
        self._slow, self._times = slow, times

    @property
    def source(self) -> str:
        return f"{self._slow.source}, {self._times:g} times as fast"

    def forward_s(self, block: Block, samples: int) -> float:
        return self._slow.forward_s(block, samples) / self._times

    def backward_s(self, block: Block, samples: int) -> float:
        return self._slow.backward_s(block, samples) / self._times

    def backward_input_s(self, block: Block, samples: int) -> float:
        return self._slow.backward_input_s(block, samples) / self._times

    def backward_weight_s(self, block: Block, samples: int) -> float:
        return self._slow.backward_weight_s(block, samples) / self._times

    def loss_s(self, block: Block, samples: int) -> float:
        return self._slow.loss_s(block, samples) / self._times

    def reduce_s(self, nbytes: int, contributions: int) -> float:
        return self._slow.reduce_s(nbytes, contributions) / self._times

    def update_s(self, nbytes: int) -> float:
        return self._slow.update_s(nbytes) / self._times
