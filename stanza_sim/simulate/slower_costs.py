"""Costs of what computes faster or slower than another cost model says."""

from __future__ import annotations

from collections.abc import Callable

from stanza_sim.model.profile import Block
from stanza_sim.simulate.cost_model import SGD_PASSES, CostModel, RankCosts
from stanza_sim.simulate.residual import Residual, residual_of


class SlowerCosts:
    """Costs of ranks whose every computation takes `factor(rank, its cost model)` times as long."""

    def __init__(self, costs: RankCosts, factor: Callable[[int, CostModel], float], note: str) -> None:
        self._costs, self._factor, self._note = costs, factor, note
        self._models: dict[tuple[int, float], tuple[CostModel, _Slower]] = {}

    @property
    def source(self) -> str:
        """Where the numbers come from."""
        return f"{self._costs.source}, {self._note}"

    def __call__(self, rank: int, /) -> CostModel:
        """See `RankCosts`."""
        model = self._costs(rank)
        times = self._factor(rank, model)
        key = id(model), times
        if key not in self._models:
            self._models[key] = model, _Slower(model, times)  # with the model, whose id is then no other's
        return self._models[key][1]


class _Slower:
    """A cost model whose every computation takes so many times as long as another's."""

    def __init__(self, model: CostModel, times: float) -> None:
        self._model, self._times = model, times

    @property
    def source(self) -> str:
        return f"{self._model.source}, {1 / self._times:g} times as fast"

    @property
    def residual(self) -> Residual:
        return residual_of(self._model)

    def forward_s(self, block: Block, samples: int) -> float:
        return self._model.forward_s(block, samples) * self._times

    def backward_s(self, block: Block, samples: int) -> float:
        return self._model.backward_s(block, samples) * self._times

    def backward_input_s(self, block: Block, samples: int) -> float:
        return self._model.backward_input_s(block, samples) * self._times

    def backward_weight_s(self, block: Block, samples: int) -> float:
        return self._model.backward_weight_s(block, samples) * self._times

    def loss_s(self, block: Block, samples: int) -> float:
        return self._model.loss_s(block, samples) * self._times

    def reduce_s(self, nbytes: int, contributions: int) -> float:
        return self._model.reduce_s(nbytes, contributions) * self._times

    def update_s(self, nbytes: int, passes: int = SGD_PASSES) -> float:
        return self._model.update_s(nbytes, passes) * self._times
