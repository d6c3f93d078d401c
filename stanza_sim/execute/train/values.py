"""What one rank has during a run: activations, gradients, labels and received messages, and where each comes from.

Each value has two generations of buffers, by the iteration's parity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from stanza_sim.execute.train.arithmetic import Arithmetic
from stanza_sim.execute.train.data import Inputs
from stanza_sim.execute.train.flat import FlatBundle, dtype_of, wire_dtype
from stanza_sim.execute.train.samples import Origin, Samples
from stanza_sim.execute.train.slices import HeldBlock, features_of
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Collective, Schedule, Transfer, ValueKind
from stanza_sim.schedule.progress import WINDOW

Batch = Callable[[int], tuple[Inputs, Tensor]]
"""The samples and labels that this rank draws in an iteration."""
FP32 = Arithmetic()
"""How a rank computes unless it is told."""
Spot = tuple[str, int]
"""(block, micro-batch)."""


@dataclass(slots=True)
class Generation:
    """The values of one iteration."""

    outputs: dict[Spot, Tensor] = field(default_factory=dict)
    graphs: dict[Spot, tuple[Tensor, Tensor]] = field(default_factory=dict)  # (input, output)
    sums: dict[Spot, Tensor] = field(default_factory=dict)  # of a block cut by rows: its layer's output, all summed
    logsums: dict[Spot, Tensor] = field(default_factory=dict)  # of a slice of the last block's output, then of all
    tails: dict[Spot, tuple[Tensor, Tensor]] = field(default_factory=dict)  # (that, output of the block)
    gradients: dict[Spot, Tensor] = field(default_factory=dict)  # of the block's output
    received: dict[tuple[str, int], Tensor] = field(default_factory=dict)  # (transfer, source) -> bytes
    taps: dict[Spot, tuple[Tensor, GradientEdge]] = field(default_factory=dict)  # input and output of a linear layer
    factors: dict[Spot, tuple[Tensor, Tensor]] = field(default_factory=dict)  # of a block: (inputs, output gradients)
    packed: dict[str, Tensor] = field(default_factory=dict)  # bundle -> its factors, of all micro-batches
    norms: dict[str, Tensor] = field(default_factory=dict)  # bundle -> squared norm of what counts here of its gradient
    norm: Tensor | None = None  # the sum of all owners', where they are added up
    sent: dict[tuple[str, int], Tensor] = field(default_factory=dict)  # keeps what is on its way alive


class RankValues:
    """The values of one rank in one run. `blocks` are those that it computes, `bundles` those that it uses or owns.

    Activations and their gradients are of the type in which they were computed, or in which they arrived.
    """

    def __init__(
        self,
        *,
        schedule: Schedule,
        model: ModelProfile,
        rank: int,
        samples: Samples,
        blocks: Sequence[HeldBlock],
        bundles: dict[str, FlatBundle],
        batch: Batch,
        device: torch.device,
        arithmetic: Arithmetic = FP32,
    ) -> None:
        self.arithmetic = arithmetic
        self.schedule, self.model, self.rank, self.samples = schedule, model, rank, samples
        self.batch, self.device, self.dtype = batch, device, dtype_of(schedule.itemsize)
        self.blocks = {b.name: b for b in blocks}
        self.bundles = bundles
        self.names = [b.name for b in model.blocks]
        self.transfers = {op.name: op for op in schedule.ops if isinstance(op, Transfer)}
        self.generations = [Generation() for _ in range(WINDOW)]
        self._size = schedule.batch_per_worker // schedule.microbatches
        self._label_order = self._find_label_order()

    def _find_label_order(self) -> dict[int, Tensor | None]:
        """For each micro-batch, how to pick the labels of the last block's samples from those at hand."""
        order: dict[int, Tensor | None] = {}
        for m in self.schedule.microbatch_ids:
            rows = self.samples.rows.get((self.rank, self.names[-1], m))
            have = self.samples.label_rows.get((self.rank, m))
            if rows is not None and have is not None:
                place = {p: i for i, p in enumerate(have)}
                pick = [place[p] for p in rows if p in place]
                order[m] = None if pick == list(range(len(have))) else torch.tensor(pick, device=self.device)
        return order

    # ---- activations ---------------------------------------------------------------------------------------------

    def own_batch(self, iteration: int, microbatch: int) -> tuple[Inputs, Tensor]:
        """The samples and labels of a micro-batch of those that this rank draws."""
        x, y = self.batch(iteration)
        if self.schedule.microbatches == 1:
            return x, y
        rows = slice(microbatch * self._size, (microbatch + 1) * self._size)
        return tuple(part[rows] for part in x), y[rows]

    def gather(self, origin: Origin, block: str, microbatch: int, values: Generation) -> Tensor:
        """The outputs of `block` of all samples that this rank holds, in its order."""
        if origin.transfer is None:
            return self.output(block, microbatch, values)
        pieces = []
        for r in origin.ranks:
            if r == self.rank:
                op = self.transfers[origin.transfer]
                pieces.append(self.sliced(op, r, self.output(block, op.microbatch, values)))
            else:
                pieces.append(self._read(origin.transfer, r, ValueKind.ACT, values))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def output(self, block: str, microbatch: int, values: Generation) -> Tensor:
        """The output of `block`; of one cut by rows, what follows its layer is applied to the sum when asked for."""
        spot = block, microbatch
        held = self.blocks[block]
        if held.tail is not None and spot in values.sums:
            total = values.sums.pop(spot).requires_grad_()
            with torch.enable_grad(), self.arithmetic.autocast(self.device):
                output = held.tail(total)
            values.tails[spot] = total, output
            values.outputs[spot] = output.detach()
        return values.outputs[spot]

    def sliced(self, op: Transfer, dst: int, output: Tensor) -> Tensor:
        """What of an activation goes to `dst` in `op`."""
        cut = self.schedule.cut(op.slices)
        return output if cut is None else features_of(output, self.schedule.features(cut, dst))

    # ---- gradients -----------------------------------------------------------------------------------------------

    def output_gradient(self, origin: Origin, block: str, microbatch: int, values: Generation) -> Tensor:
        """The gradient of the output of `block`."""
        if origin.transfer is None:
            return values.gradients[block, microbatch]
        pieces = []
        for source in origin.ranks:
            if source == self.rank:
                pieces.append(self.rows_for(self.rank, block, self.transfers[origin.transfer], values))
            else:
                pieces.append(self._read(origin.transfer, source, ValueKind.ACTGRAD, values))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)  # slices of the features, in order

    def rows_for(self, rank: int, block: str, op: Transfer, values: Generation) -> Tensor:
        """The gradient of `block`'s output for those samples that `op` is to bring `rank`, from all computed here."""
        following = self.names[self.names.index(block) + 1]
        have = self.samples.rows[self.rank, following, op.microbatch]
        wanted = self.samples.rows[rank, block, op.landing]
        gradient = values.gradients[block, op.microbatch]
        start = have.index(wanted[0])
        if have[start : start + len(wanted)] == wanted:
            return gradient[start : start + len(wanted)]
        return gradient[torch.tensor([have.index(p) for p in wanted], device=self.device)]

    # ---- labels --------------------------------------------------------------------------------------------------

    def labels(self, microbatch: int, iteration: int, values: Generation) -> Tensor:
        """The labels of the samples of which this rank computes the last block, in that order."""
        labels = self._all_labels(microbatch, iteration, values)
        order = self._label_order[microbatch]
        return labels if order is None else labels[order]

    def labels_to_send(self, microbatch: int, iteration: int, values: Generation) -> Tensor:
        """A data rank sends its own labels on, whatever else has come to it under that number."""
        if self.rank in self.schedule.data_ranks and microbatch < self.schedule.microbatches:
            return self.own_batch(iteration, microbatch)[1]
        return self._all_labels(microbatch, iteration, values)

    def _all_labels(self, microbatch: int, iteration: int, values: Generation) -> Tensor:
        origin = self.samples.labels[self.rank, microbatch]
        if origin.transfer is None:
            return self.own_batch(iteration, microbatch)[1]
        pieces = []
        for r in origin.ranks:
            if r == self.rank:
                pieces.append(self.own_batch(iteration, self.transfers[origin.transfer].microbatch)[1])
            else:
                pieces.append(self._read(origin.transfer, r, ValueKind.LABELS, values))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def squared_norm(self, values: Generation) -> Tensor:
        """The sum of the squared norms that count here, in one order whatever came first."""
        return torch.stack([values.norms[b.name] for b in self.schedule.bundles if b.name in values.norms]).sum()

    # ---- messages that have come -----------------------------------------------------------------------------------

    def _read(self, transfer: str, src: int, kind: ValueKind, values: Generation) -> Tensor:
        """The value of `kind` in the message of `transfer` from `src`."""
        op, position = self.transfers[transfer], 0
        message, dtype = values.received[transfer, src], self.wire_dtype(op)
        for v in op.values:
            if v.kind is ValueKind.LABELS:
                shape: tuple[int, ...] = self._size, *self.model.labels.shape
                nbytes = self._size * self.model.labels.nbytes(self.schedule.itemsize)
            else:
                shape = self._size, *self.model.block(v.name).output_shape
                if (cut := self.schedule.cut(op.slices)) is not None:
                    lo, hi = self.schedule.features(cut, src if v.kind is ValueKind.ACTGRAD else self.rank)
                    shape = *shape[:-1], hi - lo
                nbytes = prod(shape) * dtype.itemsize
            if v.kind is kind:
                found = message[position : position + nbytes]
                if kind is ValueKind.LABELS:
                    of_labels = torch.int64 if self.model.labels.indices else self.dtype
                    return found.clone().view(of_labels).view(shape)  # a view would have to begin at a multiple of 8
                return found.view(dtype).view(shape).to(self.dtype)
            position += nbytes
        raise RuntimeError(f"{transfer} carries no {kind}")

    def wire_dtype(self, op: Transfer | Collective) -> torch.dtype:
        """The type in which activations and gradients travel in `op`."""
        return wire_dtype(op.wire, self.dtype)
