"""Blocks that are cut over a group by the features of their linear layer: which can be, their slices, their rules.

The values at a rank of the group come in forms: whole, a slice of the features, or a partial sum of the whole. The
rules of data flow say which form an op makes and which forms it takes; here are the rules of form.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import pairwise
from math import prod
from typing import TypeGuard

from stanza_sim.base.errors import InputError, ScheduleError
from stanza_sim.model.profile import Block, ModelProfile, ParamTensor
from stanza_sim.schedule.ops import (
    Axis,
    Bundle,
    Collective,
    CollectiveKind,
    Compute,
    Cut,
    Layout,
    Op,
    Pattern,
    Phase,
    Transfer,
    ValueKind,
)
from stanza_sim.schedule.printing import print_op
from stanza_sim.schedule.samples import data_rank_counts
from stanza_sim.schedule.schedule import Schedule

_COMPLETE = (Pattern.FAN_IN, Pattern.FAN_OUT, Pattern.ALL_PAIRS)


class Form(StrEnum):
    """What a rank has of a value: all of it, a slice of its features, or a partial sum of all of it."""

    WHOLE = "whole"
    SLICE = "slice"
    PARTIAL = "partial"


@dataclass(frozen=True, slots=True)
class Linear:
    """The features of a block's linear layer, which is applied to each of a sample's `positions`."""

    inputs: int
    outputs: int
    positions: int = 1


def linear_of(model: ModelProfile, block: str) -> Linear | None:
    """The linear layer that `block` is, with elementwise modules around it at most; None if it is another block.

    Told by the tensors: a weight [outputs, inputs] and at most a bias [outputs], on vectors that come in and as many
    that go out. The executor, which has the module, looks at that as well. A weight that is tied to another block's is
    none: that block would need all of it.
    """
    k = model.place(block)
    found = model.blocks[k]
    shape = model.blocks[k - 1].output_shape if k else model.input_shape
    weights = [t.shape for t in found.tensors if len(t.shape) == 2]
    biases = [t.shape for t in found.tensors if len(t.shape) != 2]
    if len(weights) != 1 or not shape or any(t.name in model.users for t in (*found.tensors, *found.tied)):
        return None
    outputs, inputs = weights[0]
    rows = tuple(shape[:-1])
    if shape[-1] != inputs or tuple(found.output_shape) != (*rows, outputs) or biases not in ([], [(outputs,)]):
        return None
    return Linear(inputs, outputs, prod(rows))


def cut_of(model: ModelProfile, block: str, ranks: str, shards: int, axis: Axis, where: str) -> Cut:
    """Return how `block` is cut over the group `ranks` of `shards` ranks; raises `InputError` if it cannot be."""
    linear = linear_of(model, block)
    found = model.block(block)
    if tied := [t.name for t in (*found.tied, *found.tensors) if t.name in model.users]:
        users = " and ".join(model.users[tied[0]])
        raise InputError(
            f"{tied[0]} is used by the blocks {users}, so the features of {block} cannot be cut",
            where=where,
            hint="tied weights train under parameter_server, all_reduce, and FC workers that each have whole layers",
        )
    if linear is None:
        raise InputError(
            f"block {block} of model {model.name} is no linear layer, so its features cannot be cut",
            where=where,
            hint="cut only blocks of one nn.Linear with elementwise modules after it",
        )
    cut = Cut(
        block=block,
        ranks=ranks,
        axis=axis,
        inputs=linear.inputs,
        outputs=linear.outputs,
        positions=linear.positions,
    )
    if shards > cut.features:
        what = "output" if axis is Axis.COLUMNS else "input"
        raise InputError(
            f"the {cut.features} {what} features of block {block} cannot be cut over {shards} ranks",
            where=where,
            hint=f"use at most {cut.features}",
        )
    return cut


def slice_shape(cut: Cut, shape: tuple[int, ...], width: int) -> tuple[int, ...]:
    """The shape of the slice with `width` features of a tensor of the block; a bias is whole under a cut by rows."""
    if cut.axis is Axis.COLUMNS:
        return (width, *shape[1:])
    return shape if len(shape) < 2 else (shape[0], width)


def slice_numel(schedule: Schedule, model: ModelProfile, bundle: str, rank: int) -> int:
    """Elements that `rank` has of a bundle of `Layout.FEATURES`."""
    total = 0
    for name in schedule.bundle(bundle).tensors:
        block, tensor = model.holder(name)
        cut = schedule.cut(block.name)
        if cut is None:
            raise InputError(f"block {block.name} of bundle {bundle} is not cut")
        lo, hi = schedule.features(cut, rank)
        total += prod(slice_shape(cut, tensor.shape, hi - lo))
    return total


def slice_block(block: Block, cut: Cut, width: int) -> Block:
    """The work of a slice of `width` features: its share of the FLOPs and parameters, and of the memory traffic.

    By rows each rank writes outputs of full width, so only parameters and FLOPs are shared.
    """
    share = width / cut.features
    columns = cut.axis is Axis.COLUMNS
    return replace(
        block,
        tensors=tuple(ParamTensor(name=t.name, shape=slice_shape(cut, t.shape, width)) for t in block.tensors),
        forward_flops=round(block.forward_flops * share),
        backward_input_flops=round(block.backward_input_flops * share),
        backward_weight_flops=round(block.backward_weight_flops * share),
        again_flops=round(block.again_flops * share),
        bytes_touched=round(block.bytes_touched * share) if columns else block.bytes_touched,
        kept_nbytes=None if block.kept_nbytes is None else round(block.kept_nbytes * (share if columns else 1)),
        output_shape=(*block.output_shape[:-1], width) if columns else block.output_shape,
        work=tuple(work.times(share, share if columns else 1.0, share) for work in block.work),
    )


# ---- sizes of collectives --------------------------------------------------------------------------------------------


def summed_bytes(samples: int, features: int, itemsize: int) -> int:
    """Bytes of an all-reduce of partial sums with `features` features for each of `samples` positions."""
    return samples * features * itemsize


def gathered_bytes(samples: int, shards: int, itemsize: int) -> int:
    """Bytes of an all-gather of the logsums of `shards` slices for each of `samples` positions."""
    return samples * shards * itemsize


# ---- rules -----------------------------------------------------------------------------------------------------------


def check_cuts(schedule: Schedule, model: ModelProfile) -> None:
    """Raise `ScheduleError` for a cut that the model does not have, and for an op that does not respect one."""
    blocks = {b.name for b in model.blocks}
    seen: set[str] = set()
    for cut in schedule.cuts:
        if cut.block not in blocks:
            raise _wrong(schedule, f"cut {cut.block}: model {model.name} has no such block")
        if cut.block in seen:
            raise _wrong(schedule, f"block {cut.block} is cut twice")
        seen.add(cut.block)
        if message := _cut(schedule, cut, model):
            raise _wrong(schedule, f"cut {cut.block}: {message}")
    block_of = {t.name: b.name for b in model.blocks for t in b.tensors}
    numel = {t.name: t.numel for b in model.blocks for t in b.tensors}
    for bundle in schedule.bundles:
        if message := _bundle(schedule, bundle, block_of, numel):
            raise _wrong(schedule, f"bundle {bundle.name}{message}")
    previous = {b.name: a.name for a, b in pairwise(model.blocks)}
    for op in schedule.ops:
        if message := _op(schedule, op, model, previous):
            raise _wrong(schedule, f"{message}\n  in: {print_op(op)}")


def _wrong(schedule: Schedule, message: str) -> ScheduleError:
    return ScheduleError(message, where=f"schedule {schedule.name}")


def _cut(schedule: Schedule, cut: Cut, model: ModelProfile) -> str | None:
    """A cut is of a linear layer of its size, of which each rank has some features."""
    linear = linear_of(model, cut.block)
    if linear is None:
        return "the block is no linear layer"
    if linear != Linear(cut.inputs, cut.outputs, cut.positions):
        at = f" at {linear.positions} positions" if linear.positions > 1 else ""
        return f"the block has {linear.inputs} inputs, {linear.outputs} outputs{at}"
    if len(schedule.group(cut.ranks)) > cut.features:
        return f"a rank of {cut.ranks} would have no feature"
    return None


def _bundle(schedule: Schedule, bundle: Bundle, block_of: Mapping[str, str], numel: Mapping[str, int]) -> str | None:
    """The parameters of cut blocks, and no others, are cut by features, as whole tensors, over the block's ranks."""
    by_features = bundle.layout is Layout.FEATURES
    if by_features and bundle.numel != sum(numel[t] for t in bundle.tensors):
        return ": what is cut by features has whole tensors"
    for tensor in bundle.tensors:
        block = block_of[tensor]
        cut = schedule.cut(block)
        if (cut is not None) != by_features:
            is_cut = "not cut" if cut is None else "cut"
            return f" has layout={bundle.layout}, and block {block} is {is_cut}"
        if cut is not None and cut.ranks != bundle.owners:
            return f": its block is cut over {cut.ranks}"
    return None


def _op(schedule: Schedule, op: Op, model: ModelProfile, previous: Mapping[str, str]) -> str | None:
    """The rules of ops, by what an op does."""
    match op:
        case Compute():
            return _compute(schedule, op)
        case Transfer() if op.slices:
            return _sliced_transfer(schedule, op, previous)
        case Transfer():
            return _exchange(schedule, [v.name for v in op.values if v.kind.on_bundle])
        case Collective() if op.value.kind.on_bundle:
            return _exchange(schedule, [op.value.name])
        case Collective() if op.value.kind is ValueKind.NORM:
            return None
        case Collective():
            return _collective(schedule, op, model)


def _compute(schedule: Schedule, op: Compute) -> str | None:
    """All ranks over which a block is cut compute it, and nobody else."""
    cut = None if op.phase.on_bundle else schedule.cut(op.target)
    if cut is not None and schedule.group(op.ranks) != schedule.group(cut.ranks):
        return f"block {op.target} is cut over {cut.ranks}: all of it computes, and nobody else"
    if cut is not None and op.phase is Phase.RECOMPUTE:
        return f"block {op.target} is cut over {cut.ranks}: its forward pass is not run again"
    return None


def _exchange(schedule: Schedule, bundles: Iterable[str]) -> str | None:
    """What is cut by features stays where it is."""
    if any(schedule.bundle(name).layout is Layout.FEATURES for name in bundles):
        return "each owner alone has its features: there is nothing to exchange"
    return None


def check_sizes(schedule: Schedule, model: ModelProfile) -> None:
    """Raise `ScheduleError` for a collective of activations that is not of the size of its samples.

    `schedule` must be legal otherwise.
    """
    ops = [op for op in schedule.ops if _of_activations(op)]
    counts = data_rank_counts(schedule) if ops else {}
    for op in ops:
        block = _cut_block(op, model)
        cut, ranks = schedule.cut(block), schedule.group(op.ranks)
        if cut is None:
            continue
        samples = int(counts[block, op.microbatch][ranks[0]]) * schedule.batch_per_worker // schedule.microbatches
        if op.kind is CollectiveKind.ALL_GATHER:
            expected = gathered_bytes(samples * cut.positions, len(ranks), schedule.itemsize)
        else:
            features = cut.outputs if op.value.kind is ValueKind.ACT else cut.inputs
            expected = summed_bytes(samples * cut.positions, features, schedule.itemsize_of(op))
        if op.nbytes != expected:
            what = f"nbytes={op.nbytes}, but {samples} samples have {expected} bytes"
            raise _wrong(schedule, f"{what}\n  in: {print_op(op)}")


def _cut_block(op: Collective, model: ModelProfile) -> str:
    """The block that is cut: of an activation the block that made it, of a gradient the one behind."""
    k = model.place(op.value.name)
    if op.value.kind is ValueKind.ACTGRAD:
        k = min(k + 1, len(model.blocks) - 1)
    return model.blocks[k].name


def _of_activations(op: Op) -> TypeGuard[Collective]:
    return isinstance(op, Collective) and op.value.kind in (ValueKind.ACT, ValueKind.ACTGRAD, ValueKind.LOGSUM)


def _sliced_transfer(schedule: Schedule, op: Transfer, previous: Mapping[str, str]) -> str | None:
    cut = schedule.cut(op.slices)
    if cut is None or cut.axis is not Axis.ROWS:
        return f"slices={op.slices} is no block that is cut by rows"
    kinds = [v.kind for v in op.values]
    if op.values[0].kind not in (ValueKind.ACT, ValueKind.ACTGRAD) or any(k is not ValueKind.LABELS for k in kinds[1:]):
        return "what travels in slices is one activation or its gradient, and labels behind it"
    if op.values[0].name != previous.get(op.slices):
        return f"the input of {op.slices} is {previous.get(op.slices, 'the batch')}, not {op.values[0].name}"
    forward = kinds[0] is ValueKind.ACT
    end, name = (schedule.group(op.dst), op.dst) if forward else (schedule.group(op.src), op.src)
    if end != schedule.group(cut.ranks) or op.pattern not in _COMPLETE:
        return f"slices of {op.slices} go {'to' if forward else 'from'} all of {cut.ranks}, not {op.pattern} {name}"
    return None


def _collective(schedule: Schedule, op: Collective, model: ModelProfile) -> str | None:
    block = _cut_block(op, model)
    cut = schedule.cut(block)
    forward = op.value.kind is ValueKind.ACT
    if cut is None or cut.ranks != op.ranks:
        return f"{op.value} is exchanged by the group over which block {block} is cut"
    if op.value.kind is ValueKind.LOGSUM:
        if op.kind is not CollectiveKind.ALL_GATHER or cut.axis is not Axis.COLUMNS or block != model.blocks[-1].name:
            return "what is gathered are the logsums of the last block, cut by columns"
        return None
    rows = cut.axis is Axis.ROWS
    if op.kind is not CollectiveKind.ALL_REDUCE or forward is not rows:
        return f"{op.kind} of {op.value}: block {block} is cut by {cut.axis}, which makes partial sums of " + (
            "its output" if rows else "its input's gradient"
        )
    return None
