"""The rules of data flow: a value is there before it is used, and is not overwritten while it may still be read.

Parameters of a bundle of which ranks keep slices are there from an all-gather to the last pass before the next one.

They must hold at every rank. `stanza_sim.schedule.order` says how finely ranks are told apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import or_

from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule.clipping import clipping_op
from stanza_sim.schedule.cuts import Form
from stanza_sim.schedule.facts import Facts
from stanza_sim.schedule.ops import (
    Axis,
    Collective,
    CollectiveKind,
    Compute,
    Keep,
    Phase,
    Transfer,
    Value,
    ValueKind,
    dependency,
)
from stanza_sim.schedule.schedule import Schedule

_WHOLE = (Form.WHOLE,)
_SLICED = (Form.WHOLE, Form.SLICE)


def check_data_flow(schedule: Schedule, model: ModelProfile) -> None:
    """Raise `ScheduleError` for the first op that uses or overwrites a value too early; ops must be well-formed."""
    _DataFlow(schedule, model).run()


class _DataFlow(Facts):
    """The rules, op by op; see `Facts`."""

    def __init__(self, schedule: Schedule, model: ModelProfile) -> None:
        super().__init__(schedule, model)
        self._clipped: set[tuple[str, int]] = set()  # lanes, and cells, where an update comes behind all norms

    def run(self) -> None:
        for i, op in enumerate(self.s.ops):
            self.order.add(i)
            match op:
                case Compute():
                    self._compute(i, op)
                case Transfer():
                    self._transfer(i, op)
                case Collective():
                    self._collective(i, op)
            for heading in self._headings(op):
                self.under[heading].append(i)

    # ---- what is missing where ---------------------------------------------------------------------------------

    def _need(self, i: int, at: int, value: Value, microbatch: int, forms: Sequence[Form] = (Form.WHOLE,)) -> None:
        """`value` must be at the cells `at` before op `i`, in any of `forms`: computed there, or received."""
        missing = at
        for form in forms:
            missing = missing and self._missing(i, missing, form, value, microbatch)
        if missing:
            hint = "name what brings it in after="
            if not self._missing(i, missing, Form.PARTIAL, value, microbatch):
                hint = "a partial sum of it is there: sum it over the group of the cut, and name that in after="
            elif not self._missing(i, missing, Form.SLICE, value, microbatch):
                hint = "a slice of its features is there, and this needs all of them"
            raise self.fail(i, f"{value} is not there before it is used", missing, hint)

    def _need_gradients(self, i: int, at: int, bundle: str) -> None:
        """The gradients of every tensor of `bundle`, for every micro-batch, must be computed at `at`.

        A rank that takes samples as micro-batches of their own has the numbers of which it runs the forward pass. Of
        blocks that share a tensor it needs those that it computes, one at least.
        """
        own = len(self.s.microbatch_ids) == self.s.microbatches
        for users in dict.fromkeys(tuple(self.users[t]) for t in self.s.bundle(bundle).tensors):
            left = at
            for block in (self.names[k] for k in users):
                of_number = self._forward.get(block, {})
                runs = reduce(or_, of_number.values(), 0)
                here, anywhere = at & runs if len(users) > 1 else at, 0
                for m in self.s.microbatch_ids if own else sorted(of_number):
                    needed = here if own else here & of_number[m]
                    anywhere |= needed
                    if missing := self._missing(i, needed, "weight gradient", block, m):
                        message = f"grad({bundle}) needs the backward pass of {block}"
                        raise self.fail(i, message, missing, "name that op in after=")
                left &= ~anywhere
            if left:
                needed_of = " or ".join(self.names[k] for k in users)
                raise self.fail(i, f"grad({bundle}) needs the backward pass of {needed_of}", left)

    def _need_sum(self, i: int, at: int, bundle: str) -> None:
        """The sum of all ranks' gradients of `bundle`, or where nothing sums them the own ones, must be at `at`."""
        if missing := self._missing(i, at, "sum", bundle):
            made = self.s.bundle(bundle)
            if self._with_slice(made, missing) and (made.replicas > 1 or made.keep is not Keep.ALL):
                message = f"grad({bundle}) has not been summed over all owners before it is used"
                raise self.fail(i, message, self._with_slice(made, missing), "name what sums it in after=")
            self._need_gradients(i, at, bundle)

    def _need_norms(self, i: int, at: int) -> None:
        """Where gradients are clipped, an update needs the norm of all, and what adds it up needs all of its parts."""
        if self._normed and isinstance(self.s.ops[i], Compute) and clipping_op(self.s) is not None:
            parts: list[tuple[tuple[str, ...], int]] = [(("norm of all gradients",), at)]
        else:
            parts = [(("norm", bundle), at & owners) for bundle, owners in self._normed.items()]
        for heading, owners in parts:
            if missing := self._missing(i, owners, *heading):
                raise self.fail(
                    i, f"the {' of '.join(heading)} must be there before this", missing, "name what makes it in after="
                )

    def _need_factors(self, i: int, at: int, bundle: str) -> None:
        """Inputs and output gradients of the linear layer of `bundle`, for every micro-batch, must be at `at`."""
        for block in self._blocks_of(bundle):
            for m in range(self.s.microbatches):
                if missing := self._missing(i, at, "factors", block, m):
                    message = f"factors({bundle}) need the gradient of the output of {block}'s layer"
                    raise self.fail(i, message, missing, "name its backward pass in after=")

    # ---- by kind of op -----------------------------------------------------------------------------------------

    def _compute(self, i: int, op: Compute) -> None:
        at = self.cells.gated[i]
        for name in () if op.phase.on_bundle else self._gathered.get(op.target, ()):
            self._need_whole(i, at, name)
        match op.phase:
            case Phase.FORWARD:
                k = self.blocks[op.target]
                if k:
                    forms = _SLICED if self._axis(op.target) is Axis.ROWS else _WHOLE
                    self._need(i, at, Value(ValueKind.ACT, self.names[k - 1]), op.microbatch, forms)
            case Phase.RECOMPUTE:
                k = self.blocks[op.target]
                for name in self.names[max(k - 1, 0) : k + 1]:  # its input, and itself: it ran before
                    self._need(i, at, Value(ValueKind.ACT, name), op.microbatch)
            case Phase.LOSS:
                if self._axis(op.target) is Axis.COLUMNS:
                    self._need(i, at, Value(ValueKind.ACT, op.target), op.microbatch, _SLICED)
                    self._need(i, at, Value(ValueKind.LOGSUM, op.target), op.microbatch)
                else:
                    self._need(i, at, Value(ValueKind.ACT, op.target), op.microbatch)
                # Who draws samples has their labels.
                away = at & ~self.cells.mask(self.s.data_ranks) if op.microbatch < self.s.microbatches else at
                self._need(i, away, Value(ValueKind.LABELS), op.microbatch)
            case Phase.BACKWARD | Phase.BACKWARD_INPUT | Phase.BACKWARD_WEIGHT:
                forms = _SLICED if self._axis(op.target) is Axis.COLUMNS else _WHOLE
                self._need(i, at, Value(ValueKind.ACT, op.target), op.microbatch, forms)
                self._need(i, at, Value(ValueKind.ACTGRAD, op.target), op.microbatch, forms)
                again = at & self._recomputed[op.target, op.microbatch]
                if missing := self._missing(i, again, "recomputed", op.target, op.microbatch):
                    what = f"the activations inside {op.target} are there once it is computed again"
                    raise self.fail(i, what, missing, "name that op in after=")
            case Phase.REDUCE:
                if missing := self._missing(i, at, "push", op.target):
                    raise self.fail(i, f"no transfer brings grad({op.target}) before it is reduced", missing)
            case Phase.PARTIAL:
                if missing := self._missing(i, at, "part", op.target):
                    raise self.fail(i, f"no transfer brings part({op.target}) before it is added up", missing)
            case Phase.RECONSTRUCT:
                if missing := self._missing(i, at, "push", op.target):
                    message = f"no transfer brings factors({op.target}) before they are used"
                    raise self.fail(i, message, missing, "name what brings them in after=")
            case Phase.NORM:
                self._need_sum(i, at, op.target)
            case Phase.UPDATE:
                self._need_sum(i, at, op.target)
                if (lane := (op.lane, at)) not in self._clipped:  # others of it come behind
                    self._need_norms(i, at)
                    self._clipped.add(lane)
                self._after_readers(i, at, op.target, writing=False)

    def _transfer(self, i: int, op: Transfer) -> None:
        for value in op.values:
            if value.kind in (ValueKind.ACT, ValueKind.ACTGRAD):
                forms = _SLICED if op.slices and value.kind is ValueKind.ACTGRAD else _WHOLE
                self._need(i, self.cells.gated[i], value, op.microbatch, forms)
            elif value.kind in (ValueKind.GRAD, ValueKind.PART):
                self._need_gradients(i, self.cells.gated[i], value.name)
            elif value.kind is ValueKind.SUM:
                if missing := self._missing(i, self.cells.gated[i], "partial sum", value.name):
                    raise self.fail(
                        i, f"{value} is not there before it is used", missing, "name a partial op in after="
                    )
            elif value.kind is ValueKind.COPY:
                if missing := self._missing(i, self.cells.gated[i], "pull", value.name):
                    raise self.fail(i, f"{value} is sent by a rank that did not pull it", missing)
                self._in_place(i, self.cells.written(i), value.name)
            elif value.kind is ValueKind.FACTORS:
                self._need_factors(i, self.cells.gated[i], value.name)
            elif value.kind is ValueKind.PARAM:
                self._in_place(i, self.cells.written(i), value.name)

    def _collective(self, i: int, op: Collective) -> None:
        at = self.cells.gated[i]
        if op.value.kind is ValueKind.GRAD:
            self._need_gradients(i, at, op.value.name)
        elif op.value.kind is ValueKind.NORM:
            self._need_norms(i, at)
        elif op.value.kind is ValueKind.SUM:
            if missing := self._missing(i, at, "sum of a replica", op.value.name):
                message = f"{op.value} is not there before it is used"
                raise self.fail(i, message, missing, "name a reduce-scatter in after=")
        elif op.value.kind is ValueKind.PARAM and self.s.bundle(op.value.name).keep is Keep.SLICES:
            self._gather(i, at, op)
        elif op.value.kind is not ValueKind.PARAM:
            form = Form.PARTIAL if op.kind is CollectiveKind.ALL_REDUCE else Form.SLICE
            self._need(i, at, op.value, op.microbatch, (form,))
        else:
            root = 0 if op.root is None else 1 << self.cells.of_rank(op.root)
            self._in_place(i, at & ~root, op.value.name)

    # ---- parameters that are whole for a while ---------------------------------------------------------------------

    def _need_whole(self, i: int, at: int, bundle: str) -> None:
        """The last all-gather of `bundle` ahead of pass `i`, in program order, must be complete before it."""
        for j in reversed(self.under.get(("gather", bundle), ())):
            here = at & self.cells.completes[j]
            if missing := here & ~self.order.before(i, j, here):
                message = f"param({bundle}) may not be whole before it is used"
                raise self.fail(i, message, missing, f"name {self.s.ops[j].name} in after=")
            at &= ~here
        if at:
            hint = "gather it first: a rank keeps its slice only"
            raise self.fail(i, f"param({bundle}) is not whole before it is used", at, hint)

    def _gather(self, i: int, at: int, op: Collective) -> None:
        """An all-gather of what is whole for a while comes after every pass that read what was gathered before it.

        The first of an iteration therefore waits for the update of the one before, which comes after all its passes.
        """
        bundle = op.value.name
        for block in self._blocks_of(bundle):
            for j in (j for j in self._readers.get(block, ()) if j < i):
                reads = self.cells.gated[j] & at
                if early := reads & ~self.order.before(i, j, reads):
                    message = f"param({bundle}) would be gathered anew while {self.s.ops[j].name} may still read it"
                    raise self.fail(i, message, early)
        if self.under.get(("update", bundle)):
            hint = "begin the next iteration with it"
            raise self.fail(i, f"param({bundle}) is gathered behind its update", at, hint)
        earlier = renewed = 0
        for j in self.under.get(("gather", bundle), ()):
            earlier |= self.cells.completes[j]
        for name, _ in map(dependency, op.after_previous):
            before = self.s.op(name)
            if isinstance(before, Compute) and (before.phase, before.target) == (Phase.UPDATE, bundle):
                renewed |= self.cells.group(before.ranks)
        if stale := at & ~earlier & ~renewed:
            message = f"param({bundle}) would be gathered while the iteration before may still use it"
            raise self.fail(i, message, stale, "name its update in after_previous=")

    # ---- parameters are written behind their readers ----------------------------------------------------------------

    def _in_place(self, i: int, at: int, bundle: str) -> None:
        """Parameters that arrive at `at` overwrite what its passes read: its own push must be needed first."""
        readers = 0
        for block in self._blocks_of(bundle):
            for j in self._readers.get(block, ()):
                readers |= self.cells.gated[j]
        early = at & readers
        early &= ~self.order.needed(i, bundle, early)
        if early:
            raise self.fail(
                i,
                f"param({bundle}) would be overwritten while a pass may still read it",
                early,
                hint="a pull must follow a reduction that needed the same rank's push",
            )
        self._after_readers(i, at, bundle, writing=True)

    def _after_readers(self, i: int, at: int, bundle: str, *, writing: bool) -> None:
        """Op `i` writes the parameters of `bundle` at the cells `at`: every pass that reads them must come first.

        `writing`: it brings them, so what counts is what is complete where they come from.
        """
        before = self.order.before_writing if writing else self.order.before
        for j in () if writing else self.under.get(("gather", bundle), ()):
            sends = self.cells.completes[j] & at
            if early := sends & ~before(i, j, sends):
                name = self.s.ops[j].name
                raise self.fail(i, f"param({bundle}) would be overwritten while {name} may still send it", early)
        for block in self._blocks_of(bundle):
            for j in self._readers.get(block, ()):
                reads = self.cells.gated[j] & at
                early = reads and reads & ~before(i, j, reads)
                if early:
                    name = self.s.ops[j].name
                    raise self.fail(i, f"param({bundle}) would be overwritten while {name} may still read it", early)
