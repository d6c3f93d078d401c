"""Sufficient factors at one rank: taking them from a block's linear layer, packing them, and the gradient they make.

The gradient of a pass is not needed to be whole: a rank that sends factors computes no weight gradient of its own, and
makes that of all samples, its own included, in one go.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from stanza_sim.base.errors import InputError
from stanza_sim.execute.train.slices import HeldBlock
from stanza_sim.schedule.factors import Factors


class Tap:
    """Remembers what the linear layer of a block was given, and where the gradient of its output will come by.

    Raises `InputError` unless the parameters of the block are those of one `nn.Linear`.
    """

    def __init__(self, block: HeldBlock) -> None:
        self._block = block.name
        linears = [m for m in block.module.modules() if isinstance(m, nn.Linear)]
        parameters = {id(p) for _, p in block.parameters}
        if len(linears) != 1 or {id(p) for p in linears[0].parameters()} != parameters:
            raise InputError(
                f"block {block.name} has no factors: its parameters are not those of one nn.Linear",
                hint="exchange its gradients instead",
            )
        self._taken: list[tuple[Tensor, GradientEdge]] = []
        linears[0].register_forward_hook(self._take)

    def _take(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if output.requires_grad:  # not where the trained model is tried out
            # What follows may change the output in place, and its gradient would be that of the change: hence an edge,
            # which stays; of a view, that of what it is a view of, since a change in place gives a view a new history.
            made = output if output._base is None else output._base
            self._taken.append((inputs[0].detach(), get_gradient_edge(made)))

    def take(self) -> tuple[Tensor, GradientEdge]:
        """The input of the layer in the forward pass just made, and the edge of its output."""
        taken, self._taken = self._taken, []
        if len(taken) != 1:
            raise InputError(
                f"block {self._block} has no factors: its linear layer is used {len(taken)} times in a pass",
                hint="exchange its gradients instead",
            )
        return taken[0]


def packed(parts: Sequence[tuple[Tensor, Tensor]], factors: Factors) -> Tensor:
    """One flat vector of the inputs, then of the output gradients, of all `parts` (x, dy) in order."""
    inputs = [x.reshape(-1, factors.inputs) for x, _ in parts]
    gradients = [dy.reshape(-1, factors.outputs) for _, dy in parts]
    return torch.cat([t.reshape(-1) for t in (*inputs, *gradients)])


def reconstruct(messages: Sequence[Tensor], factors: Factors, weight: Tensor, bias: Tensor | None) -> None:
    """Write the gradients [outputs, inputs] and [outputs] of all samples in `messages`, packed vectors of each rank.

    One product over the samples of all ranks in the order given: less work on memory than to add up one of each.
    """
    rows = [m.numel() // (factors.inputs + factors.outputs) for m in messages]
    split = [n * factors.inputs for n in rows]
    x = torch.cat([m[:k].view(-1, factors.inputs) for m, k in zip(messages, split, strict=True)])
    dy = torch.cat([m[k:].view(-1, factors.outputs) for m, k in zip(messages, split, strict=True)])
    torch.mm(dy.t(), x, out=weight)
    if bias is not None:
        torch.sum(dy, 0, out=bias)
