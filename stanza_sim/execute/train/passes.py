"""The arithmetic of one rank: forward, loss, backward, reduce and update.

Blocks are joined by detached tensors, so that each block has an autograd graph of its own, which lives from its forward
pass to the last of its backward passes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor

from stanza_sim.execute.rank.accelerator import Accelerator
from stanza_sim.execute.rank.job import Training
from stanza_sim.execute.train.factors import Tap, add_rows, packed, reconstruct
from stanza_sim.execute.train.flat import FlatBundle
from stanza_sim.execute.train.gathered import Gathered
from stanza_sim.execute.train.losses import sliced_loss, summed_loss
from stanza_sim.execute.train.norms import clip_factor, counted_runs, squared_norm
from stanza_sim.execute.train.slices import features_of, gradients, gradients_with_tail
from stanza_sim.execute.train.updates import Updates
from stanza_sim.execute.train.values import Generation, RankValues, Spot
from stanza_sim.model.decay import without_decay
from stanza_sim.schedule import Collective, CollectiveKind, Compute, Phase, Schedule, Transfer, ValueKind
from stanza_sim.schedule.factors import factor_transfers, require_factors
from stanza_sim.schedule.progress import WINDOW
from stanza_sim.schedule.recompute import run_again

BACKWARD = (Phase.BACKWARD, Phase.BACKWARD_INPUT, Phase.BACKWARD_WEIGHT)


class Passes:
    """The computations of one rank in one run, on its `values`.

    Losses are kept as tensors until `losses` is called, so that nothing waits for them. A block's output and the
    gradient of it go with its graph, unless they are `kept` for blocks that are computed again by themselves. `terms`
    are how many terms the mean loss of each iteration's global batch is over, from the first on that is run; left out,
    one for each sample.
    """

    def __init__(
        self,
        values: RankValues,
        training: Training,
        accelerator: Accelerator,
        *,
        kept: bool = False,
        terms: Sequence[int] = (),
    ) -> None:
        self._kept = kept
        self._begin = training.begin
        self._terms = terms or [values.schedule.global_batch] * (training.iterations - training.begin)
        self.values, self.training, self.accelerator = values, training, accelerator
        self.schedule, self.rank, self.device = values.schedule, values.rank, values.device
        self._loss: list[dict[int, Tensor]] = [{} for _ in self._terms]
        self._storage_of = {t: f.storage for f in values.bundles.values() for t in f.storage.extents}
        self._positions: dict[Spot, Tensor] = {
            (block, m): torch.tensor(rows, dtype=torch.int32, device=self.device)
            for (r, block, m), rows in values.samples.rows.items()
            if r == self.rank
        }
        mine = self.schedule.for_rank(self.rank)
        computed = [op for op in mine if isinstance(op, Compute)]
        self._first_use: dict[str, str] = {}  # of a tensor: the op that makes the first part of its gradient
        for op in computed:
            if op.phase in (Phase.BACKWARD, Phase.BACKWARD_WEIGHT):
                for name, _ in values.blocks[op.target].parameters:
                    self._first_use.setdefault(name, op.name)
        self._again = run_again(mine, values.model)
        self._last_use = {(op.target, op.microbatch): op.name for op in computed if op.phase in BACKWARD}
        self._summed = {op.target for op in computed if op.phase in (Phase.REDUCE, Phase.RECONSTRUCT)} | {
            op.value.name for op in mine if isinstance(op, Collective) and op.kind is CollectiveKind.REDUCE_SCATTER
        }
        self._factors = {b: require_factors(self.schedule, values.model, b) for b in factor_transfers(self.schedule)}
        self._factored = {block.name: b for b, (block, _) in self._factors.items() if block.name in values.blocks}
        o = training.optimizer
        self._updates = Updates(o, without_decay(values.model, o.no_decay))
        self._taps = {block: Tap(values.blocks[block]) for block in self._factored}
        self._sent_on = {  # gradients of outputs that others computed too
            (v.name, op.microbatch)
            for op in mine
            if isinstance(op, Transfer) and self.rank in self.schedule.group(op.src)
            for v in op.values
            if v.kind is ValueKind.ACTGRAD
        }
        self._messages: dict[Spot, list[tuple[str, int]]] = {}  # with the output of a block: op and destination
        for moved in (op for op in mine if isinstance(op, Transfer)):
            for v in moved.values:
                if v.kind is ValueKind.ACT:
                    sent = [(moved.name, d) for d in self.schedule.destinations(moved, self.rank)]
                    self._messages.setdefault((v.name, moved.microbatch), []).extend(sent)
        self._contributors = _contributors(self.schedule, self.rank, ValueKind.GRAD, ValueKind.SUM)
        self._parts = _contributors(self.schedule, self.rank, ValueKind.PART)
        self._gathered = Gathered(self.schedule, values.model, self.rank, values.bundles)

    def compute(self, op: Compute, iteration: int) -> tuple[float, float]:
        """Carry out `op` and return, once that is done, when it began and when it ended."""
        spent: list[object] = []  # what is no longer needed is kept until the device is done with it
        began = self.accelerator.begin()
        self._compute(op, iteration, spent)
        times = self.accelerator.finish(began)
        self._gathered.done_with(op)
        return times

    def _compute(self, op: Compute, iteration: int, spent: list[object]) -> None:
        g = iteration % WINDOW
        values, bundles = self.values.generations[g], self.values.bundles
        match op.phase:
            case Phase.FORWARD | Phase.RECOMPUTE:
                self._forward(op, iteration, values, spent)
            case Phase.LOSS:
                self._compute_loss(op, iteration, values)
            case Phase.BACKWARD | Phase.BACKWARD_INPUT | Phase.BACKWARD_WEIGHT:
                self._backward(op, g, spent)
            case Phase.PARTIAL:
                bundles[op.target].add_up(g, self._parts[op.target], self.rank)
            case Phase.REDUCE:
                bundles[op.target].reduce(g, self._contributors[op.target], self.rank)
            case Phase.RECONSTRUCT:
                self._reconstruct(op, g)
            case Phase.NORM:
                self._norm(op, iteration)
            case Phase.UPDATE:
                self._update(op, iteration)

    def losses(self) -> tuple[float, ...]:
        """Loss of the samples whose loss this rank computed, for each iteration that was run.

        Summed over ranks and divided by the samples of the global batch it is the mean loss.
        """
        samples = self.schedule.global_batch
        return tuple(
            sum(float(by_microbatch[m]) for m in sorted(by_microbatch)) * (samples / count)
            for by_microbatch, count in zip(self._loss, self._terms, strict=True)
        )

    # ---- forward ---------------------------------------------------------------------------------------------------

    def _forward(self, op: Compute, iteration: int, values: Generation, spent: list[object]) -> None:
        """Run a block forward; if it will run again, without a graph the first time and without its state the second.

        The block before is let go of where it is computed again first.
        """
        held, m = self.values, op.microbatch
        k, block = held.names.index(op.target), held.blocks[op.target]
        if k == 0:
            inputs = held.own_batch(iteration, m)[0]  # floats or tokens: no gradient goes on from here
        else:
            x = held.gather(held.samples.inputs[self.rank, op.target, m], held.names[k - 1], m, values)
            inputs = (features_of(x, block.inputs).detach().requires_grad_(),)
        for dropout in block.dropouts:
            dropout.step, dropout.positions = iteration, self._positions[op.target, m]
        first = op.phase is Phase.FORWARD and (op.target, m) in self._again
        state = [(b, b.clone()) for b in block.module.buffers()] if op.phase is Phase.RECOMPUTE else []
        with torch.set_grad_enabled(not first), held.arithmetic.autocast(self.device):
            output = block.module(*inputs)
        for buffer, was in state:  # running statistics count a batch once
            buffer.data.copy_(was)  # not `buffer.copy_`: the graph may refer to it, and does not need it
        if first:
            values.outputs[op.target, m] = output
            if (before := self._again[op.target, m]) is not None:
                spent.append(values.outputs.pop(before, None))
            return
        if op.target in self._taps:
            values.taps[op.target, m] = self._taps[op.target].take()
        values.graphs[op.target, m] = inputs[0], output
        values.outputs[op.target, m] = output.detach()
        if block.outputs is not None and op.target == held.names[-1]:
            values.logsums[op.target, m] = output.detach().to(held.dtype).logsumexp(-1)

    def _compute_loss(self, op: Compute, iteration: int, values: Generation) -> None:
        held, m = self.values, op.microbatch
        labels = held.labels(m, iteration, values)
        cut, features = self.schedule.cut(op.target), held.blocks[op.target].outputs
        first = cut is None or self.schedule.group(cut.ranks)[0] == self.rank  # others of a group have the very same
        if features is not None:
            logits, logsum = values.outputs[op.target, m].to(held.dtype), values.logsums[op.target, m]
            gradient, loss = sliced_loss(logits, labels, logsum, features, held.model.labels, first=first)
            values.gradients[op.target, m], self._loss[iteration - self._begin][m] = (
                held.arithmetic.scaled(gradient),
                loss,
            )
            return
        logits = held.output(op.target, m, values).detach().to(held.dtype).requires_grad_()
        with torch.enable_grad():
            loss = summed_loss(logits, labels, held.model.labels)
        values.gradients[op.target, m] = held.arithmetic.scaled(torch.autograd.grad(loss, logits)[0])
        if first:
            self._loss[iteration - self._begin][m] = loss.detach()

    # ---- backward --------------------------------------------------------------------------------------------------

    def _backward(self, op: Compute, g: int, spent: list[object]) -> None:
        """Compute the gradients that the phase of `op` names; after its last use the block's graph is `spent`."""
        values, spot = self.values.generations[g], (op.target, op.microbatch)
        keep = self._last_use[spot] != op.name
        k = self.values.names.index(op.target)
        with_input = op.phase is not Phase.BACKWARD_WEIGHT and k > 0
        with_weights = op.phase is not Phase.BACKWARD_INPUT
        block = self.values.blocks[op.target]
        wanted: list[Tensor] = [values.graphs[spot][0]] if with_input else []
        if with_weights:
            wanted += [p for _, p in block.parameters]
        tap = values.taps.pop(spot, None) if op.phase is not Phase.BACKWARD_WEIGHT else None
        if tap is not None:  # torch takes edges among tensors, though its annotations have a sequence of one kind
            wanted.append(cast(Tensor, tap[1]))
        if wanted:
            found = self._gradients(spot, wanted, values, keep=keep)
            if tap is not None:
                self._keep_factors(spot, tap[0], found.pop(), values)
            if with_input:
                values.gradients[self.values.names[k - 1], op.microbatch] = found.pop(0)
            if with_weights:
                names = [name for name, _ in block.parameters]
                self._add_gradients(zip(names, found, strict=True), g, op.name)
        if not keep:
            spent += [values.graphs.pop(spot), values.tails.pop(spot, None)]
            if not self._kept:  # all that others need of the output has arrived before its gradient could come
                spent.append(values.outputs.pop(spot, None))
                spent += [values.sent.pop(message, None) for message in self._messages.get(spot, ())]
                if spot not in self._sent_on:
                    spent.append(values.gradients.pop(spot, None))

    def _gradients(self, spot: Spot, wanted: list[Tensor], values: Generation, *, keep: bool) -> list[Tensor]:
        """The gradients of what is `wanted` of a block's graph, which stays if `keep`."""
        block, tail = self.values.blocks[spot[0]], values.tails.get(spot)
        origin = self.values.samples.gradients[self.rank, *spot]
        gradient = features_of(self.values.output_gradient(origin, *spot, values), block.outputs)
        output = values.graphs[spot][1]
        if tail is None:
            return gradients(output, wanted, gradient, keep=keep)
        return gradients_with_tail(output, tail, wanted, gradient, block.in_tail, keep=keep)

    def _add_gradients(self, found: Iterable[tuple[str, Tensor]], g: int, op: str) -> None:
        """Put the gradients of tensors into their flat vectors; those of later micro-batches and uses are added."""
        for name, gradient in found:
            storage = self._storage_of[name]
            storage.hold_gradients(g)
            target = storage.gradient_of[g][name]
            gradient = gradient.to_dense() if gradient.is_sparse else gradient
            if self._first_use[name] == op:
                target.copy_(gradient)
            else:
                target.add_(gradient)

    # ---- factors, reduction and update -----------------------------------------------------------------------------

    def _keep_factors(self, spot: Spot, x: Tensor, gradient: Tensor, values: Generation) -> None:
        """Keep the factors of one micro-batch, and pack them all once the last of them is there."""
        if (skipped := self._taps[spot[0]].skipped) is not None:
            gradient = gradient.masked_fill((x == skipped).unsqueeze(-1), 0)
        values.factors[spot] = x, gradient.to(self.values.dtype) if x.dtype is torch.int64 else gradient
        spots = [(spot[0], m) for m in range(self.schedule.microbatches)]
        if all(s in values.factors for s in spots):
            name = self._factored[spot[0]]
            wire = self.values.wire_dtype(factor_transfers(self.schedule)[name])
            values.packed[name] = packed([values.factors.pop(s) for s in spots], self._factors[name][1]).to(wire)

    def _reconstruct(self, op: Compute, g: int) -> None:
        """Make the sum of all ranks' gradients of a bundle from their factors."""
        flat, values = self.values.bundles[op.target], self.values.generations[g]
        block, factors = self._factors[op.target]
        moved = factor_transfers(self.schedule)[op.target]
        wire = self.values.wire_dtype(moved)
        messages = [
            values.packed[op.target] if r == self.rank else values.received[moved.name, r].view(wire)
            for r in self.schedule.sources(moved, self.rank)
        ]
        vectors = torch.split(flat.sums[g], [t.numel for t in block.tensors])
        views = {len(t.shape): vector.view(t.shape) for t, vector in zip(block.tensors, vectors, strict=True)}
        if factors.table:
            add_rows(messages, factors, views[2])
            return
        reconstruct([m.to(self.values.dtype) for m in messages], factors, views[2], views.get(1))

    def _norm(self, op: Compute, iteration: int) -> None:
        """Find the squared norm of what counts at this rank of a bundle's gradient, as that of the mean loss."""
        flat, values = self.values.bundles[op.target], self.values.generations[iteration % WINDOW]
        gradient = self._summed_gradient(flat, iteration)
        self.values.arithmetic.check(gradient, op.target)
        counted = counted_runs(self.schedule, self.values.model, flat, self.rank)
        values.norms[op.target] = squared_norm(gradient, counted) / self._divisor(iteration) ** 2

    def _update(self, op: Compute, iteration: int) -> None:
        flat, o = self.values.bundles[op.target], self.training.optimizer
        gradient, divisor = self._summed_gradient(flat, iteration), self._divisor(iteration)
        if o.clip_norm is None:
            self.values.arithmetic.check(gradient, op.target)
            scaled = torch.full((), divisor, dtype=torch.float32, device=self.device)
        else:
            values = self.values.generations[iteration % WINDOW]
            squared = self.values.squared_norm(values) if values.norm is None else values.norm[0]
            scaled = (divisor / clip_factor(squared, o.clip_norm)).float()
        self._updates.update(
            flat,
            gradient,
            lr=o.schedule.at(o.lr, iteration, self.training.iterations),
            step=iteration + 1,
            divisor=scaled,
        )

    def _summed_gradient(self, flat: FlatBundle, iteration: int) -> Tensor:
        """The gradient of what the rank owns, summed over all ranks."""
        g = iteration % WINDOW
        return flat.sums[g][: flat.hi - flat.lo] if flat.bundle.name in self._summed else flat.gradient(g)

    def _divisor(self, iteration: int) -> float:
        """What gradients are divided by to be those of the mean loss."""
        return self._terms[iteration - self._begin] * self.values.arithmetic.scale


def _contributors(schedule: Schedule, rank: int, *kinds: ValueKind) -> dict[str, list[int]]:
    """For each bundle, the ranks whose gradients, or sums of them, arrive at `rank` as values of `kinds`."""
    found: dict[str, set[int]] = {}
    for op in schedule.for_rank(rank):
        if isinstance(op, Transfer):
            for v in op.values:
                if v.kind in kinds:
                    found.setdefault(v.name, set()).update(schedule.sources(op, rank))
    return {name: sorted(ranks) for name, ranks in found.items()}
