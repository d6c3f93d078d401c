"""What the simulator asks of a cost model: seconds of each computation at a rank."""

from __future__ import annotations

from typing import Protocol

from stanza_sim.base.optimizers import update_passes as passes_of
from stanza_sim.model.profile import Block, ModelProfile

SGD_PASSES = passes_of(moments=1)
"""SGD with momentum reads parameter, gradient and momentum and writes parameter and momentum."""


class CostModel(Protocol):
    """Seconds of each kind of computation on an otherwise idle device; `source` is printed with every prediction.

    It may also have a `residual`, how far off all of these may be together: see `stanza_sim.simulate.residual`.

    A block may be a slice of one of the model's, with its name and its share of the work.
    """

    @property
    def source(self) -> str:
        """Where the numbers come from, in words."""
        ...

    def forward_s(self, block: Block, samples: int) -> float:
        """Forward pass of `block` over `samples` samples."""
        ...

    def backward_s(self, block: Block, samples: int) -> float:
        """Input gradient and weight gradient of `block` in one go."""
        ...

    def backward_input_s(self, block: Block, samples: int) -> float:
        """Gradient with respect to the input of `block` only."""
        ...

    def backward_weight_s(self, block: Block, samples: int) -> float:
        """Gradient with respect to the parameters of `block` only."""
        ...

    def loss_s(self, block: Block, samples: int) -> float:
        """Loss and its gradient, from the output of the last block."""
        ...

    def reduce_s(self, nbytes: int, contributions: int) -> float:
        """Sum of `contributions` buffers of `nbytes` each."""
        ...

    def update_s(self, nbytes: int, passes: int = SGD_PASSES) -> float:
        """Optimiser step on `nbytes` of parameters, which passes over so many bytes `passes` times."""
        ...


class RankCosts(Protocol):
    """The cost model of each rank: call it with a rank. `source` says in words where the numbers come from."""

    @property
    def source(self) -> str:
        """The sources of all ranks' numbers."""
        ...

    def __call__(self, rank: int, /) -> CostModel:
        """Return the cost model of the device that `rank` computes on."""
        ...


def step_s(
    costs: CostModel, model: ModelProfile, samples: int, *, update: bool = True, update_passes: int = SGD_PASSES
) -> float:
    """Return the seconds of one training step on one device: passes of all blocks, loss and, if `update`, updates."""
    total = costs.loss_s(model.blocks[-1], samples)
    for block in model.blocks:
        total += costs.forward_s(block, samples) + costs.backward_s(block, samples)
        if update and block.numel:
            total += costs.update_s(block.numel * model.itemsize, update_passes)
    return total
