"""The arithmetic of one rank: forward, loss, backward, reduce and update, and the messages' contents.

Each value has two generations of buffers, by the iteration's parity. Blocks are joined by detached tensors, so that
each block has an autograd graph of its own, which lives from its forward pass to the last of its backward passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import GradientEdge

from stanza_sim.execute.rank.job import Training
from stanza_sim.execute.train.factors import Tap, packed, reconstruct
from stanza_sim.execute.train.flat import FlatBundle, sgd_step
from stanza_sim.execute.train.samples import Origin, Samples
from stanza_sim.execute.train.slices import HeldBlock, features_of, gradients, gradients_with_tail, sliced_loss
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Collective, CollectiveKind, Compute, Phase, Schedule, Transfer, Value, ValueKind, Wire
from stanza_sim.schedule.factors import factor_transfers, require_factors
from stanza_sim.schedule.legality import LABEL_BYTES
from stanza_sim.schedule.progress import WINDOW

Batch = Callable[[int], tuple[Tensor, Tensor]]
Spot = tuple[str, int]
"""(block, micro-batch)."""


class Reducer(Protocol):
    """Carries out a collective on tensors."""

    def collective(self, op: Collective, output: Tensor, source: Tensor) -> None:
        """Carry out `op` from `source` to `output`, which may be one tensor."""
        ...


@dataclass(slots=True)
class _Generation:
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
    sent: dict[tuple[str, int], Tensor] = field(default_factory=dict)  # keeps what is on its way alive


class Passes:
    """The values of one rank in one run, and the work on them.

    `bundle_of[tensor]` is the flat bundle that holds a tensor. Losses are kept as tensors until `losses` is called, so
    that nothing waits for them.
    """

    def __init__(
        self,
        *,
        schedule: Schedule,
        model: ModelProfile,
        training: Training,
        rank: int,
        samples: Samples,
        blocks: Sequence[HeldBlock],
        bundles: dict[str, FlatBundle],
        batch: Batch,
        device: torch.device,
    ) -> None:
        self.schedule, self.model, self.training, self.rank = schedule, model, training, rank
        self.samples, self.batch, self.device = samples, batch, device
        self.blocks = {b.name: b for b in blocks}
        self.bundles = bundles
        self._names = [b.name for b in model.blocks]
        self._storage_of = {t: f.storage for f in bundles.values() for t in f.storage.extents}
        self._size = schedule.batch_per_worker // schedule.microbatches
        self._generations = [_Generation() for _ in range(WINDOW)]
        self._loss: list[dict[int, Tensor]] = [{} for _ in range(training.iterations)]
        self._positions: dict[Spot, Tensor] = {}
        for (r, block, m), rows in samples.rows.items():
            if r == rank:
                self._positions[block, m] = torch.tensor(rows, dtype=torch.int32, device=device)
        self._label_order = self._find_label_order()
        self._transfers = {op.name: op for op in schedule.ops if isinstance(op, Transfer)}
        mine = [o for o in schedule.for_rank(rank) if isinstance(o, Compute)]
        self._first_backward: dict[str, str] = {}
        for o in mine:
            if o.phase in (Phase.BACKWARD, Phase.BACKWARD_WEIGHT):
                self._first_backward.setdefault(o.target, o.name)
        backward = (Phase.BACKWARD, Phase.BACKWARD_INPUT, Phase.BACKWARD_WEIGHT)
        self._last_use = {(o.target, o.microbatch): o.name for o in mine if o.phase in backward}
        self._summed = {o.target for o in mine if o.phase in (Phase.REDUCE, Phase.RECONSTRUCT)}
        self._factors = {name: require_factors(schedule, model, name) for name in factor_transfers(schedule)}
        self._factored = {block.name: name for name, (block, _) in self._factors.items() if block.name in self.blocks}
        self._taps = {block: Tap(self.blocks[block]) for block in self._factored}
        self._contributors = self._find_contributors(ValueKind.GRAD, ValueKind.SUM)
        self._gathered = self._find_contributors(ValueKind.PART)
        for op in schedule.for_rank(rank):
            if isinstance(op, Collective) and op.kind is CollectiveKind.REDUCE_SCATTER:
                self._summed.add(op.value.name)

    def _find_label_order(self) -> dict[int, Tensor | None]:
        """For each micro-batch, how to pick the labels of the last block's samples from those at hand."""
        order: dict[int, Tensor | None] = {}
        for m in range(self.schedule.parts):
            rows = self.samples.rows.get((self.rank, self._names[-1], m))
            have = self.samples.label_rows.get((self.rank, m))
            if rows is not None and have is not None:
                place = {p: i for i, p in enumerate(have)}
                pick = [place[p] for p in rows if p in place]
                order[m] = None if pick == list(range(len(have))) else torch.tensor(pick, device=self.device)
        return order

    def _find_contributors(self, *kinds: ValueKind) -> dict[str, list[int]]:
        """For each bundle, the ranks whose gradients, or sums of them, arrive here as values of `kinds`."""
        found: dict[str, set[int]] = {}
        for op in self.schedule.for_rank(self.rank):
            if isinstance(op, Transfer):
                for v in op.values:
                    if v.kind in kinds:
                        found.setdefault(v.name, set()).update(self.schedule.sources(op, self.rank))
        return {name: sorted(ranks) for name, ranks in found.items()}

    # ---- computations ------------------------------------------------------------------------------------------

    def compute(self, op: Compute, iteration: int) -> None:
        """Carry out `op`; on a GPU, return when it is done."""
        g = iteration % WINDOW
        match op.phase:
            case Phase.FORWARD:
                self._forward(op, iteration, self._generations[g])
            case Phase.LOSS:
                self._compute_loss(op, iteration, self._generations[g])
            case Phase.BACKWARD | Phase.BACKWARD_INPUT | Phase.BACKWARD_WEIGHT:
                self._backward(op, g)
            case Phase.PARTIAL:
                self.bundles[op.target].add_up(g, self._gathered[op.target], self.rank)
            case Phase.REDUCE:
                self.bundles[op.target].reduce(g, self._contributors[op.target], self.rank)
            case Phase.RECONSTRUCT:
                self._reconstruct(op, g)
            case Phase.UPDATE:
                self._update(op, iteration)
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()

    def _forward(self, op: Compute, iteration: int, values: _Generation) -> None:
        k, m = self._names.index(op.target), op.microbatch
        block = self.blocks[op.target]
        if k == 0:
            x = self._own_batch(iteration, m)[0]
        else:
            x = self._gather(self.samples.inputs[self.rank, op.target, m], self._names[k - 1], m, values)
            x = features_of(x, block.inputs).detach().requires_grad_()
        for dropout in block.dropouts:
            dropout.step, dropout.positions = iteration, self._positions[op.target, m]
        with torch.enable_grad():
            output = block.module(x)
        if op.target in self._taps:
            values.taps[op.target, m] = self._taps[op.target].take()
        values.graphs[op.target, m] = x, output
        values.outputs[op.target, m] = output.detach()
        if block.outputs is not None and op.target == self._names[-1]:
            values.logsums[op.target, m] = output.detach().logsumexp(1)

    def _compute_loss(self, op: Compute, iteration: int, values: _Generation) -> None:
        m = op.microbatch
        labels = self._labels(m, iteration, values)
        cut, features = self.schedule.cut(op.target), self.blocks[op.target].outputs
        first = cut is None or self.schedule.group(cut.ranks)[0] == self.rank  # others of a group have the very same
        if features is not None:
            logits, logsum = values.outputs[op.target, m], values.logsums[op.target, m]
            gradient, loss = sliced_loss(logits, labels, logsum, features, first=first)
            values.gradients[op.target, m], self._loss[iteration][m] = gradient, loss
            return
        logits = self._output(op.target, m, values).detach().requires_grad_()
        with torch.enable_grad():
            loss = F.cross_entropy(logits, labels, reduction="sum")
        values.gradients[op.target, m] = torch.autograd.grad(loss, logits)[0]
        if first:
            self._loss[iteration][m] = loss.detach()

    def _backward(self, op: Compute, g: int) -> None:
        values, spot = self._generations[g], (op.target, op.microbatch)
        block, k = self.blocks[op.target], self._names.index(op.target)
        x, output = values.graphs[spot]
        tail = values.tails.get(spot)
        with_input = op.phase is not Phase.BACKWARD_WEIGHT and k > 0
        with_weights = op.phase is not Phase.BACKWARD_INPUT
        wanted: list[Tensor] = [x] if with_input else []
        if with_weights:
            wanted += [p for _, p in block.parameters]
        tap = values.taps.pop(spot, None) if op.phase is not Phase.BACKWARD_WEIGHT else None
        keep = self._last_use[spot] != op.name
        if tap is not None:  # torch takes edges among tensors, though its annotations have a sequence of one kind
            wanted.append(cast(Tensor, tap[1]))
        if wanted:
            origin = self.samples.gradients[self.rank, *spot]
            gradient = features_of(self._output_gradient(origin, *spot, values), block.outputs)
            if tail is None:
                found = gradients(output, wanted, gradient, keep=keep)
            else:
                found = gradients_with_tail(output, tail, wanted, gradient, block.in_tail, keep=keep)
            if tap is not None:
                self._keep_factors(spot, tap[0], found.pop(), values)
            if with_input:
                values.gradients[self._names[k - 1], op.microbatch] = found.pop(0)
            if with_weights:
                first = self._first_backward[op.target] == op.name
                for (name, _), gradient in zip(block.parameters, found, strict=True):
                    storage = self._storage_of[name]
                    target = storage.view(storage.gradients[g], name)
                    if first:
                        target.copy_(gradient)
                    else:
                        target.add_(gradient)
        if not keep:
            del values.graphs[spot]
            values.tails.pop(spot, None)

    def _keep_factors(self, spot: Spot, x: Tensor, gradient: Tensor, values: _Generation) -> None:
        """Keep the factors of one micro-batch, and pack them all once the last of them is there."""
        values.factors[spot] = x, gradient
        spots = [(spot[0], m) for m in range(self.schedule.microbatches)]
        if all(s in values.factors for s in spots):
            name = self._factored[spot[0]]
            values.packed[name] = packed([values.factors.pop(s) for s in spots], self._factors[name][1])

    def _reconstruct(self, op: Compute, g: int) -> None:
        """Make the sum of all ranks' gradients of a bundle from their factors."""
        flat, values = self.bundles[op.target], self._generations[g]
        block, factors = self._factors[op.target]
        moved = factor_transfers(self.schedule)[op.target]
        messages = [
            values.packed[op.target] if r == self.rank else values.received[moved.name, r].view(self._dtype)
            for r in self.schedule.sources(moved, self.rank)
        ]
        parts = torch.split(flat.sums[g], [t.numel for t in block.tensors])
        views = {len(t.shape): part.view(t.shape) for t, part in zip(block.tensors, parts, strict=True)}
        reconstruct(messages, factors, views[2], views.get(1))

    def _update(self, op: Compute, iteration: int) -> None:
        flat, g, o = self.bundles[op.target], iteration % WINDOW, self.training.optimizer
        if flat.own is None or flat.velocity is None:
            raise RuntimeError(f"rank {self.rank} does not own {op.target}")
        gradient = flat.sums[g][: flat.hi - flat.lo] if op.target in self._summed else flat.gradient(g)
        sgd_step(
            flat.own,
            gradient,
            flat.velocity,
            lr=o.schedule.at(o.lr, iteration, self.training.iterations),
            momentum=o.momentum,
            weight_decay=o.weight_decay,
            global_batch=self.schedule.global_batch,
        )

    # ---- where values come from ----------------------------------------------------------------------------------

    def _own_batch(self, iteration: int, microbatch: int) -> tuple[Tensor, Tensor]:
        x, y = self.batch(iteration)
        if self.schedule.microbatches == 1:
            return x, y
        part = slice(microbatch * self._size, (microbatch + 1) * self._size)
        return x[part], y[part]

    def _gather(self, origin: Origin, block: str, microbatch: int, values: _Generation) -> Tensor:
        """The outputs of `block` of all samples that this rank holds, in its order."""
        if origin.transfer is None:
            return self._output(block, microbatch, values)
        parts = []
        for r in origin.ranks:
            if r == self.rank:
                op = self._transfers[origin.transfer]
                parts.append(self._sliced(op, r, self._output(block, op.microbatch, values)))
            else:
                parts.append(self._read(origin.transfer, r, ValueKind.ACT, values))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _output_gradient(self, origin: Origin, block: str, microbatch: int, values: _Generation) -> Tensor:
        if origin.transfer is None:
            return values.gradients[block, microbatch]
        parts = []
        for source in origin.ranks:
            if source == self.rank:
                parts.append(self._rows_for(self.rank, block, self._transfers[origin.transfer], values))
            else:
                parts.append(self._read(origin.transfer, source, ValueKind.ACTGRAD, values))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)  # slices of the features, in order

    def _labels(self, microbatch: int, iteration: int, values: _Generation) -> Tensor:
        labels = self._all_labels(microbatch, iteration, values)
        order = self._label_order[microbatch]
        return labels if order is None else labels[order]

    def _labels_to_send(self, microbatch: int, iteration: int, values: _Generation) -> Tensor:
        """A data rank sends its own labels on, whatever else has come to it under that number."""
        if self.rank in self.schedule.data_ranks and microbatch < self.schedule.microbatches:
            return self._own_batch(iteration, microbatch)[1]
        return self._all_labels(microbatch, iteration, values)

    def _all_labels(self, microbatch: int, iteration: int, values: _Generation) -> Tensor:
        origin = self.samples.labels[self.rank, microbatch]
        if origin.transfer is None:
            return self._own_batch(iteration, microbatch)[1]
        parts = []
        for r in origin.ranks:
            if r == self.rank:
                parts.append(self._own_batch(iteration, self._transfers[origin.transfer].microbatch)[1])
            else:
                parts.append(self._read(origin.transfer, r, ValueKind.LABELS, values))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _rows_for(self, rank: int, block: str, op: Transfer, values: _Generation) -> Tensor:
        """The gradient of `block`'s output for those samples that `op` is to bring `rank`, from all computed here."""
        following = self._names[self._names.index(block) + 1]
        have = self.samples.rows[self.rank, following, op.microbatch]
        wanted = self.samples.rows[rank, block, op.landing]
        gradient = values.gradients[block, op.microbatch]
        start = have.index(wanted[0])
        if have[start : start + len(wanted)] == wanted:
            return gradient[start : start + len(wanted)]
        return gradient[torch.tensor([have.index(p) for p in wanted], device=self.device)]

    def _output(self, block: str, microbatch: int, values: _Generation) -> Tensor:
        """The output of `block`; of one cut by rows, what follows its layer is applied to the sum when asked for."""
        spot = block, microbatch
        held = self.blocks[block]
        if held.tail is not None and spot in values.sums:
            total = values.sums.pop(spot).requires_grad_()
            with torch.enable_grad():
                output = held.tail(total)
            values.tails[spot] = total, output
            values.outputs[spot] = output.detach()
        return values.outputs[spot]

    def _sliced(self, op: Transfer, dst: int, output: Tensor) -> Tensor:
        """What of an activation goes to `dst` in `op`."""
        cut = self.schedule.cut(op.slices)
        return output if cut is None else features_of(output, self.schedule.features(cut, dst))

    # ---- messages ------------------------------------------------------------------------------------------------

    def outgoing(self, op: Transfer, iteration: int, dst: int) -> Tensor:
        """The message of `op` to `dst`: a flat, contiguous tensor that stays untouched until it has been sent."""
        g = iteration % WINDOW
        value = op.values[0]
        if value.kind.on_bundle:
            return self._of_bundle(op, value, dst, g)
        values, parts = self._generations[g], []
        for v in op.values:
            match v.kind:
                case ValueKind.ACT:
                    output = self._sliced(op, dst, self._output(v.name, op.microbatch, values))
                    parts.append(output.to(self._wire_dtype(op)))
                case ValueKind.ACTGRAD:
                    parts.append(self._rows_for(dst, v.name, op, values).to(self._wire_dtype(op)))
                case ValueKind.FACTORS:
                    parts.append(values.packed[v.name])
                case _:
                    parts.append(self._labels_to_send(op.microbatch, iteration, values))
        flats = [p.contiguous().view(-1).view(torch.uint8) for p in parts]
        message = flats[0] if len(flats) == 1 else torch.cat(flats)
        values.sent[op.name, dst] = message
        return message

    def _of_bundle(self, op: Transfer, value: Value, dst: int, g: int) -> Tensor:
        """What of a bundle is sent to `dst`."""
        flat = self.bundles[value.name]
        lo, hi = self.schedule.value_slice(op, value, self.rank, dst) or (0, flat.bundle.numel)
        match value.kind:
            case ValueKind.GRAD | ValueKind.PART:
                found: Tensor | None = flat.gradients[g][lo:hi]
            case ValueKind.SUM:
                found = flat.partial(g)[lo:hi]
            case ValueKind.COPY:
                found = flat.whole[lo:hi] if flat.whole is not None else None
            case _:
                found = flat.own
        if found is None:
            raise RuntimeError(f"rank {self.rank} does not hold or own {value.name}")
        return found

    def incoming(self, op: Transfer, iteration: int, src: int) -> Tensor:
        """Where the message of `op` from `src` is to be received; parameters go straight into the module."""
        g = iteration % WINDOW
        value = op.values[0]
        if value.kind.on_bundle:
            flat = self.bundles[value.name]
            cut = self.schedule.value_slice(op, value, src, self.rank) or (0, flat.bundle.numel)
            if value.kind in (ValueKind.PARAM, ValueKind.COPY):
                if flat.whole is None:
                    raise RuntimeError(f"rank {self.rank} does not hold {value.name}")
                return flat.whole[cut[0] : cut[1]]
            into = flat.parts[g] if value.kind is ValueKind.PART else flat.contributions[g]
            if src not in into:
                into[src] = flat.zeros(cut[1] - cut[0])
            return into[src]
        received = self._generations[g].received
        if (op.name, src) not in received:
            nbytes = self.schedule.message_bytes(op, src, self.rank)
            received[op.name, src] = torch.empty(nbytes, dtype=torch.uint8, device=self.device)
        return received[op.name, src]

    def _read(self, transfer: str, src: int, kind: ValueKind, values: _Generation) -> Tensor:
        """The value of `kind` in the message of `transfer` from `src`."""
        op, position = self._transfers[transfer], 0
        message, dtype = values.received[transfer, src], self._wire_dtype(op)
        for v in op.values:
            shape: tuple[int, ...] = ()
            if v.kind is ValueKind.LABELS:
                nbytes = self._size * LABEL_BYTES
            else:
                shape = self._size, *self.model.block(v.name).output_shape
                if (cut := self.schedule.cut(op.slices)) is not None:
                    lo, hi = self.schedule.features(cut, src if v.kind is ValueKind.ACTGRAD else self.rank)
                    shape = self._size, hi - lo
                nbytes = prod(shape) * dtype.itemsize
            if v.kind is kind:
                part = message[position : position + nbytes]
                if kind is ValueKind.LABELS:
                    return part.clone().view(torch.int64)  # a view would have to begin at a multiple of 8
                return part.view(dtype).view(shape).to(self._dtype)
            position += nbytes
        raise RuntimeError(f"{transfer} carries no {kind}")

    def _wire_dtype(self, op: Transfer) -> torch.dtype:
        """The type in which activations and their gradients travel in `op`."""
        return torch.bfloat16 if op.wire is Wire.BF16 else self._dtype

    @property
    def _dtype(self) -> torch.dtype:
        return torch.float64 if self.schedule.itemsize == 8 else torch.float32

    def collective(self, op: Collective, iteration: int, reducer: Reducer) -> None:
        """Carry out the collective `op` through `reducer`."""
        if not op.value.kind.on_bundle:
            self._exchange_features(op, self._generations[iteration % WINDOW], reducer)
            return
        flat, g = self.bundles[op.value.name], iteration % WINDOW
        match op.kind:
            case CollectiveKind.ALL_REDUCE:
                reducer.collective(op, flat.gradients[g], flat.gradients[g])
            case CollectiveKind.REDUCE_SCATTER:
                reducer.collective(op, flat.sums[g], flat.gradients[g])
            case CollectiveKind.ALL_GATHER:
                if flat.whole is None or flat.own_padded is None:
                    raise RuntimeError(f"rank {self.rank} does not hold {op.value.name}")
                reducer.collective(op, flat.whole, flat.own_padded.clone())
            case CollectiveKind.BROADCAST:
                if flat.whole is None:
                    raise RuntimeError(f"rank {self.rank} does not hold {op.value.name}")
                reducer.collective(op, flat.whole, flat.whole)

    def _exchange_features(self, op: Collective, values: _Generation, reducer: Reducer) -> None:
        """Sum partial sums of activations or their gradients, or gather the logsums of slices."""
        spot = op.value.name, op.microbatch
        if op.kind is CollectiveKind.ALL_GATHER:
            mine = values.logsums[spot]
            every = mine.new_empty(len(self.schedule.group(op.ranks)) * len(mine))
            reducer.collective(op, every, mine)
            values.logsums[spot] = every.view(-1, len(mine)).logsumexp(0)
            return
        held = values.outputs if op.value.kind is ValueKind.ACT else values.gradients
        total = held[spot].clone(memory_format=torch.contiguous_format)
        reducer.collective(op, total.view(-1), total.view(-1))
        if op.value.kind is ValueKind.ACT:
            values.sums[spot] = total
        else:
            values.gradients[spot] = total

    # ---- results -------------------------------------------------------------------------------------------------

    def losses(self) -> tuple[float, ...]:
        """Loss summed over the samples whose loss this rank computed, for each iteration."""
        return tuple(sum(float(parts[m]) for m in sorted(parts)) for parts in self._loss)
