"""Sufficient factors: the gradient of a linear layer as what it is made of, its inputs and its output gradients.

With inputs x [rows, in] and output gradients dy [rows, out] of some samples the gradient of the weight [out, in] is
dy^T x, and that of the bias [out] the sum of dy over the rows. Instead of either, a rank may send x and dy, from which
others reconstruct it (Xie et al., "Lighter-Communication Distributed Machine Learning via Sufficient Factor
Broadcasting", UAI 2016). Here is which blocks that is possible for, what it takes, and the rules of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod

from stanza_sim.base.errors import ScheduleError
from stanza_sim.model.profile import Block, ModelProfile
from stanza_sim.schedule.facts import violation
from stanza_sim.schedule.ops import Bundle, Collective, Compute, Layout, Op, Pattern, Phase, Transfer, ValueKind, Wire
from stanza_sim.schedule.ranks import Ranks
from stanza_sim.schedule.samples import Counts, Spot, data_rank_counts
from stanza_sim.schedule.schedule import Schedule

_COMPLETE = (Pattern.FAN_IN, Pattern.FAN_OUT, Pattern.ALL_PAIRS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Factors:
    """The factors of a linear layer with so many `inputs` and `outputs`: `rows` of each for every sample.

    Those of a `table` with sparse gradients are the numbers of the rows that were looked up, and their gradients.
    """

    inputs: int
    outputs: int
    rows: int = 1
    table: bool = False

    def numel(self, samples: int) -> int:
        """Elements of the factors of `samples` samples: x [samples * rows, inputs], dy [samples * rows, outputs]."""
        return samples * self.rows * (self.inputs + self.outputs)


def factors_of(model: ModelProfile, block: str) -> Factors | None:
    """The factors of a block whose parameters are those of one linear layer, or a sparse table; None of any other.

    Told by shapes: a weight [out, in], at most a bias [out], and as many vectors of `in` features coming in as vectors
    of `out` features go out. The executor, which has the module, looks at that as well. None too where the weight is
    tied to another block's.
    """
    k = model.place(block)
    found = model.blocks[k]
    before = model.blocks[k - 1].output_shape if k else model.input_shape
    if any(t.name in model.users for t in (*found.tensors, *found.tied)):
        return None  # other blocks add to the gradient
    if len(found.tensors) == 1 and found.tensors[0].lookups:
        table = found.tensors[0]
        return Factors(inputs=1, outputs=prod(table.shape[1:]), rows=table.lookups, table=True)
    weights = [t.shape for t in found.tensors if len(t.shape) == 2]
    others = [t.shape for t in found.tensors if len(t.shape) != 2]
    if len(weights) != 1 or not found.forward_flops or not found.output_shape:
        return None
    outputs, inputs = weights[0]
    rows = prod(found.output_shape[:-1])
    if found.output_shape[-1] != outputs or prod(before) != rows * inputs or others not in ([], [(outputs,)]):
        return None
    return Factors(inputs=inputs, outputs=outputs, rows=rows)


def block_of(model: ModelProfile, bundle: Bundle) -> Block | None:
    """The block whose tensors `bundle` has, all of them and no others; None if there is none."""
    block = model.block_of(bundle.tensors)
    return block if block is not None and block.numel == bundle.numel else None


def bundle_factors(model: ModelProfile, bundle: Bundle) -> Factors | None:
    """The factors of the gradients of `bundle`; None if it is not the parameters of one linear layer."""
    block = block_of(model, bundle)
    return None if block is None else factors_of(model, block.name)


def factor_transfers(schedule: Schedule) -> dict[str, Transfer]:
    """The transfer that moves the factors of each bundle, by the bundle's name."""
    return {op.values[0].name: op for op in schedule.ops if isinstance(op, Transfer) and _moves_factors(op)}


def joined_samples(schedule: Schedule, moved: Transfer, rank: int) -> int:
    """How many samples' factors `rank` has to reconstruct from once `moved` has brought them, its own included."""
    return len(schedule.sources(moved, rank)) * schedule.batch_per_worker


def _moves_factors(op: Op) -> bool:
    return isinstance(op, Transfer) and any(v.kind is ValueKind.FACTORS for v in op.values)


# ---- rules -----------------------------------------------------------------------------------------------------------


def check_factors(schedule: Schedule, model: ModelProfile) -> None:
    """Raise `ScheduleError` for an op on factors that would not give the sum over all samples, each counted once.

    All ranks that compute the block send the factors of their whole batch, in one transfer, to owners of the whole
    bundle, which learn its gradient in no other way. Ops must be well-formed.
    """
    moving: dict[str, Transfer] = {}
    for op, message, hint in _violations(schedule, model, moving):
        if message:
            raise violation(schedule, op, message, hint)


def _violations(
    schedule: Schedule, model: ModelProfile, moving: dict[str, Transfer]
) -> Iterator[tuple[Op, str | None, str | None]]:
    gradients = {
        v.name: op
        for op in schedule.ops
        for v in (op.values if isinstance(op, Transfer) else (op.value,) if isinstance(op, Collective) else ())
        if v.kind is ValueKind.GRAD
    }
    forward = _Forward(schedule)
    for op in schedule.ops:
        if isinstance(op, Transfer) and _moves_factors(op):
            yield op, _transfer(schedule, model, op, forward), None
            name = op.values[0].name
            if name in moving:
                yield op, f"{moving[name].name} moves {op.values[0]} already: samples would count twice", None
            if name in gradients:
                hint = "send gradients or factors of a bundle, not both"
                yield op, f"{gradients[name].name} moves grad({name}): samples would count twice", hint
            moving[name] = op
        elif isinstance(op, Compute) and op.phase is Phase.RECONSTRUCT and op.target not in moving:
            yield op, f"no transfer brings factors({op.target}) before", "name what brings them in after="


class _Forward:
    """Who runs the forward passes of a schedule; found when it is first asked for."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule

    @cached_property
    def groups(self) -> dict[str, set[tuple[int, str]]]:
        """For each block, in which micro-batches which groups do."""
        found: dict[str, set[tuple[int, str]]] = defaultdict(set)
        for op in self._schedule.ops:
            if isinstance(op, Compute) and op.phase is Phase.FORWARD:
                found[op.target].add((op.microbatch, op.ranks))
        return found

    @cached_property
    def counts(self) -> dict[Spot, Counts]:
        """How many data ranks' samples each rank computes."""
        return data_rank_counts(self._schedule)


def _transfer(schedule: Schedule, model: ModelProfile, op: Transfer, runs: _Forward) -> str | None:
    value = op.values[0]
    if len(op.values) > 1:
        return f"{value} travels in a message of its own"
    if op.microbatch:
        return "factors are of the whole batch, not of a micro-batch"
    bundle = schedule.bundle(value.name)
    if bundle.layout is not Layout.REPLICATED:
        return f"from factors an owner reconstructs the whole gradient, and bundle {bundle.name} is {bundle.layout}"
    owners = set(schedule.owners(bundle))
    if not owners.issuperset(schedule.group(op.dst)):
        return f"{value} goes to owners of the bundle ({bundle.owners}) only"
    if op.pattern not in _COMPLETE:
        return "factors go from every source to every destination"
    block = block_of(model, bundle)
    if block is None:
        return f"bundle {bundle.name} is not all of one block"
    if op.wire is not Wire.NATIVE and block.tensors[0].lookups:
        return f"numbers of rows are not rounded, and wire={op.wire}"
    forward = runs.groups.get(block.name, set())
    sources = schedule.group(op.src)
    if Ranks.of(r for _, group in forward for r in schedule.group(group)) != sources:
        return f"factors of all ranks that compute block {block.name} are needed, and {op.src} is not all of them"
    for m in sorted({m for m, _ in forward} | {*range(schedule.microbatches)}):
        computed = runs.counts.get((block.name, m))
        due = int(m < schedule.microbatches)  # others' samples have numbers of their own
        if due and (computed is None or any(computed[a:b].min() < due for a, b in sources.spans)):
            return f"a rank of {op.src} does not compute block {block.name} in micro-batch {m}"
        if computed is not None and any(computed[a:b].max() > due for a, b in sources.spans):
            return f"a rank of {op.src} computes more than its batch of {schedule.batch_per_worker} samples"
    return None


def require_factors(schedule: Schedule, model: ModelProfile, bundle: str) -> tuple[Block, Factors]:
    """The block and the factors of `bundle`; raises `ScheduleError` if it is not the parameters of a linear layer."""
    return factors_of_bundle(schedule.name, model, schedule.bundle(bundle))


def factors_of_bundle(schedule: str, model: ModelProfile, bundle: Bundle) -> tuple[Block, Factors]:
    """`require_factors` for a bundle of a schedule that may still be built, of which the name is known."""
    block, factors = block_of(model, bundle), bundle_factors(model, bundle)
    if block is None or factors is None:
        raise ScheduleError(
            f"bundle {bundle.name} is not the parameters of one linear layer, so it has no factors",
            where=f"schedule {schedule}",
        )
    return block, factors
