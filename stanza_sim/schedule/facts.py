"""What the ops of a schedule make, bring, read and sum, and at which ranks: what the rules of data flow ask about."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property

from stanza_sim.base.errors import ScheduleError
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule.cuts import Form
from stanza_sim.schedule.ops import Axis, Bundle, Collective, Compute, Keep, Op, Phase, Transfer, Value, ValueKind
from stanza_sim.schedule.order import order_of
from stanza_sim.schedule.printing import print_op
from stanza_sim.schedule.rank_cells import bits
from stanza_sim.schedule.schedule import Schedule

READING = (Phase.FORWARD, Phase.RECOMPUTE, Phase.BACKWARD, Phase.BACKWARD_INPUT)
"""Passes that read parameters."""


def violation(schedule: Schedule, op: Op, message: str, hint: str | None = None) -> ScheduleError:
    """The error for a rule that `op` breaks, with its printed form."""
    return ScheduleError(f"{message}\n  in: {print_op(op)}", where=f"schedule {schedule.name}", hint=hint)


class Facts:
    """Cells stand for ranks: `at` is a mask of them."""

    def __init__(self, schedule: Schedule, model: ModelProfile) -> None:
        self.s = schedule
        self.names = [b.name for b in model.blocks]
        self.blocks = {name: i for i, name in enumerate(self.names)}
        self.users: dict[str, list[int]] = defaultdict(list)  # of a tensor: the blocks that have it, or are tied to it
        for i, b in enumerate(model.blocks):
            for t in (*b.tensors, *b.tied):
                self.users[t.name].append(i)
        self.order = order_of(schedule)
        self.cells = self.order.cells
        self.under: dict[tuple[object, ...], list[int]] = defaultdict(list)  # ops found under that heading

    def fail(self, i: int, message: str, at: int, hint: str | None = None) -> ScheduleError:
        """The error, with a rank at which the rule is broken where it is not broken everywhere."""
        if at not in (self.cells.gated[i], self.cells.completes[i]):
            message += f" (rank {min(self.cells.first[a] for a in bits(at))})"
        return violation(self.s, self.s.ops[i], message, hint)

    def _headings(self, op: Op) -> Iterable[tuple[object, ...]]:
        """Under what later ops look for `op`: the values that it makes or brings, the gradients that it sums."""
        match op:
            case Compute(phase=Phase.FORWARD):
                form = {None: Form.WHOLE, Axis.COLUMNS: Form.SLICE, Axis.ROWS: Form.PARTIAL}[self._axis(op.target)]
                yield form, Value(ValueKind.ACT, op.target), op.microbatch
                if form is Form.SLICE:
                    yield form, Value(ValueKind.LOGSUM, op.target), op.microbatch
            case Compute(phase=Phase.RECOMPUTE):
                yield Form.WHOLE, Value(ValueKind.ACT, op.target), op.microbatch
                yield "recomputed", op.target, op.microbatch
            case Compute(phase=Phase.LOSS):
                form = Form.SLICE if self._axis(op.target) is Axis.COLUMNS else Form.WHOLE
                yield form, Value(ValueKind.ACTGRAD, op.target), op.microbatch
            case Compute(phase=Phase.BACKWARD | Phase.BACKWARD_INPUT | Phase.BACKWARD_WEIGHT):
                k = self.blocks[op.target]
                if k and op.phase is not Phase.BACKWARD_WEIGHT:
                    form = {None: Form.WHOLE, Axis.COLUMNS: Form.PARTIAL, Axis.ROWS: Form.SLICE}[self._axis(op.target)]
                    yield form, Value(ValueKind.ACTGRAD, self.names[k - 1]), op.microbatch
                if op.phase is not Phase.BACKWARD_INPUT:
                    yield "weight gradient", op.target, op.microbatch
                if op.phase is not Phase.BACKWARD_WEIGHT:
                    yield "factors", op.target, op.microbatch
            case Compute(phase=Phase.REDUCE | Phase.RECONSTRUCT):
                yield "sum", op.target
            case Compute(phase=Phase.PARTIAL):
                yield "partial sum", op.target
            case Compute(phase=Phase.NORM):
                yield "norm", op.target
            case Compute(phase=Phase.UPDATE):
                yield "update", op.target
            case Transfer():
                for value in op.values:
                    yield Form.SLICE if _arrives_sliced(op, value) else Form.WHOLE, value, op.landing
                    if value.kind in (ValueKind.GRAD, ValueKind.SUM, ValueKind.FACTORS):
                        yield "push", value.name
                    elif value.kind is ValueKind.PART:
                        yield "part", value.name
                    elif value.kind is ValueKind.PARAM:
                        yield "pull", value.name
            case Collective() if op.value.kind is ValueKind.GRAD:
                yield "sum" if self.s.bundle(op.value.name).replicas == 1 else "sum of a replica", op.value.name
            case Collective() if op.value.kind is ValueKind.SUM:
                yield "sum", op.value.name
            case Collective() if op.value.kind is ValueKind.NORM:
                yield ("norm of all gradients",)
            case Collective() if op.value.kind is ValueKind.PARAM:
                yield "gather", op.value.name
            case Collective():
                yield Form.WHOLE, op.value, op.microbatch

    def _axis(self, block: str) -> Axis | None:
        cut = self.s.cut(block)
        return None if cut is None else cut.axis

    def _missing(self, i: int, at: int, *heading: object) -> int:
        """Cells of `at` at which no op under `heading` is complete before op `i` starts there."""
        for j in self.under.get(heading, ()):
            if not at:
                break
            at &= ~self.order.before(i, j, at & self.cells.completes[j])
        return at

    def _blocks_of(self, bundle: str) -> list[str]:
        return [self.names[k] for k in sorted({k for t in self.s.bundle(bundle).tensors for k in self.users[t]})]

    def _with_slice(self, bundle: Bundle, at: int) -> int:
        """Cells of `at` whose ranks have elements of a bundle: of one with fewer than owners, some have none."""
        if bundle.numel < self.s.pieces(bundle):
            for rank in self.s.owners(bundle):
                lo, hi = self.s.slice_of(bundle, rank)
                at &= -1 if lo < hi else ~(1 << self.cells.of_rank(rank))
        return at

    @cached_property
    def _normed(self) -> dict[str, int]:
        """The cells that take the norm of each bundle's gradients."""
        found: dict[str, int] = defaultdict(int)
        for i, op in enumerate(self.s.ops):
            if isinstance(op, Compute) and op.phase is Phase.NORM:
                found[op.target] |= self.cells.gated[i]
        return found

    @cached_property
    def _gathered(self) -> dict[str, list[str]]:
        """For each block, the bundles with its tensors that are whole only behind an all-gather."""
        found: dict[str, list[str]] = defaultdict(list)
        for bundle in self.s.bundles:
            for block in self._blocks_of(bundle.name) if bundle.keep is Keep.SLICES else ():
                found[block].append(bundle.name)
        return found

    @cached_property
    def _forward(self) -> dict[str, dict[int, int]]:
        """For each block and micro-batch, the cells that run its forward pass."""
        found: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
        for i, op in enumerate(self.s.ops):
            if isinstance(op, Compute) and op.phase is Phase.FORWARD:
                found[op.target][op.microbatch] |= self.cells.gated[i]
        return found

    @cached_property
    def _recomputed(self) -> dict[tuple[str, int], int]:
        """For each block and micro-batch, the cells that run its forward pass again."""
        found: dict[tuple[str, int], int] = defaultdict(int)
        for i, op in enumerate(self.s.ops):
            if isinstance(op, Compute) and op.phase is Phase.RECOMPUTE:
                found[op.target, op.microbatch] |= self.cells.gated[i]
        return found

    @cached_property
    def _readers(self) -> dict[str, list[int]]:
        """Passes over each block, but for those that only compute weight gradients and so read no parameters."""
        found: dict[str, list[int]] = defaultdict(list)
        for i, op in enumerate(self.s.ops):
            if isinstance(op, Compute) and op.phase in READING:
                found[op.target].append(i)
        return found


def _arrives_sliced(op: Transfer, value: Value) -> bool:
    """Whether a destination has but a slice of `value`; slices of a gradient are joined there."""
    return bool(op.slices) and value.kind is ValueKind.ACT
