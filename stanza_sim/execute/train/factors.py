"""Sufficient factors at one rank: taking them from a block's linear layer, packing them, and the gradient they make.

Those of a table with sparse gradients are the rows that were looked up, as whole numbers, and their gradients.

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

    Raises `InputError` unless the parameters of the block are those of one `nn.Linear`, or of one `nn.Embedding`.
    """

    def __init__(self, block: HeldBlock) -> None:
        self._block = block.name
        linears = [m for m in block.module.modules() if isinstance(m, nn.Linear | nn.Embedding)]
        parameters = {id(p) for _, p in block.parameters}
        if len(linears) != 1 or {id(p) for p in linears[0].parameters()} != parameters:
            raise InputError(
                f"block {block.name} has no factors: its parameters are not those of one nn.Linear or nn.Embedding",
                hint="exchange its gradients instead",
            )
        layer = linears[0]
        self.skipped: int | None = None
        """The row of a table that has no gradient."""
        if isinstance(layer, nn.Embedding):
            self.skipped = layer.padding_idx
            if layer.max_norm is not None or layer.scale_grad_by_freq:
                raise InputError(
                    f"the table of block {block.name} has max_norm or scale_grad_by_freq, which need the whole batch",
                    hint="leave them out",
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
    if factors.table:
        inputs = [_as_bits(x, parts[0][1].dtype) for x in inputs]
    gradients = [dy.reshape(-1, factors.outputs) for _, dy in parts]
    return torch.cat([t.reshape(-1) for t in (*inputs, *gradients)])


def _as_bits(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Whole numbers in the bits of elements of `dtype`, which are as long."""
    return rows.to(_BITS[dtype]).view(dtype)


_BITS = {torch.float32: torch.int32, torch.float64: torch.int64}


def add_rows(messages: Sequence[Tensor], factors: Factors, table: Tensor) -> None:
    """Write the gradient of a table that the rows in `messages` make, packed vectors of each rank, in their order.

    One order of additions at every rank, so that all have the same table.
    """
    table.zero_()
    for m in messages:
        count = m.numel() // (1 + factors.outputs)
        rows, gradients = m[:count].view(_BITS[m.dtype]).long(), m[count:].view(count, -1)
        if m.is_cuda:  # sorted, where adding to rows at once would be in any order
            table.index_put_((rows,), gradients, accumulate=True)
        else:
            table.index_add_(0, rows, gradients)


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
