"""What a computation costs: seconds of a `Compute` op at a rank, on a device that does nothing else.

Contract: `OpCosts` needs the schedule, the model and the cost models of the ranks' devices. It knows no cluster, no
folding and no resources, so a price can be asked without lowering anything; what it looks up first, it looks up when
it is first needed. The schedule must be legal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from stanza_sim.base.optimizers import update_passes
from stanza_sim.model.profile import Block, ModelProfile
from stanza_sim.schedule import Axis, Compute, Layout, Phase, Schedule, Transfer, ValueKind
from stanza_sim.schedule.cuts import slice_block, slice_numel
from stanza_sim.schedule.factors import factor_transfers, joined_samples, require_factors
from stanza_sim.schedule.samples import Counts, Spot, data_rank_counts

if TYPE_CHECKING:
    from stanza_sim.simulate.costs import CostModel


NORM_PASSES = 1
"""The norm of gradients reads each of them once."""


class OpCosts:
    """The prices of the computations of `schedule`; `cost_of(rank)` is the cost model of the device of a rank."""

    def __init__(self, schedule: Schedule, model: ModelProfile, cost_of: Callable[[int], CostModel]) -> None:
        self.schedule, self.model, self.cost_of = schedule, model, cost_of
        self._slices: dict[tuple[str, int], Block] = {}
        self._known: dict[tuple[object, ...], tuple[float, CostModel]] = {}

    def compute_s(self, op: Compute, rank: int) -> float:
        """Seconds of `op` at `rank`."""
        costs = self.cost_of(rank)
        if op.phase is Phase.RECONSTRUCT:  # as much as one weight gradient of all the samples
            block, _ = require_factors(self.schedule, self.model, op.target)
            return costs.backward_weight_s(block, joined_samples(self.schedule, self._factors[op.target], rank))
        if op.phase.on_bundle:
            return self._bundle_s(costs, op, rank)
        block, samples = self._worked_on(op, rank), self._samples(op, rank)
        key = id(costs), op.phase, id(block), samples  # of ranks that are alike
        if key not in self._known:
            self._known[key] = self._pass_s(costs, op.phase, block, samples), costs  # whose id is then no other's
        return self._known[key][0]

    @staticmethod
    def _pass_s(costs: CostModel, phase: Phase, block: Block, samples: int) -> float:
        match phase:
            case Phase.FORWARD | Phase.RECOMPUTE:
                return costs.forward_s(block, samples)
            case Phase.BACKWARD:
                return costs.backward_s(block, samples)
            case Phase.BACKWARD_INPUT:
                return costs.backward_input_s(block, samples)
            case Phase.BACKWARD_WEIGHT:
                return costs.backward_weight_s(block, samples)
            case _:
                return costs.loss_s(block, samples)

    # ---- passes and losses -----------------------------------------------------------------------------------------

    @cached_property
    def samples(self) -> Mapping[Spot, Counts]:
        """For each block and micro-batch, how many data ranks' samples each rank computes."""
        return data_rank_counts(self.schedule)

    def _samples(self, op: Compute, rank: int) -> int:
        """Samples that `rank` works on in `op`."""
        share = int(self.samples[op.target, op.microbatch][rank])
        return share * self.schedule.batch_per_worker // self.schedule.microbatches

    def _worked_on(self, op: Compute, rank: int) -> Block:
        """The block of `op`, or the slice of it that `rank` has where it is cut."""
        cut = self.schedule.cut(op.target)
        if cut is None or (op.phase is Phase.LOSS and cut.axis is Axis.ROWS):  # by rows, the output has been summed
            return self.model.block(op.target)
        lo, hi = self.schedule.features(cut, rank)
        if (op.target, hi - lo) not in self._slices:
            self._slices[op.target, hi - lo] = slice_block(self.model.block(op.target), cut, hi - lo)
        return self._slices[op.target, hi - lo]

    # ---- sums and updates ------------------------------------------------------------------------------------------

    def _bundle_s(self, costs: CostModel, op: Compute, rank: int) -> float:
        """Seconds of a sum or an update of a bundle."""
        itemsize = self.schedule.itemsize
        if op.phase is Phase.PARTIAL:  # of the whole bundle, whoever owns it
            nbytes = self.schedule.bundle(op.target).numel * itemsize
            return costs.reduce_s(nbytes, self._contributions(op.target, rank, ValueKind.PART))
        nbytes = self._owned_numel(op.target, rank) * itemsize
        if op.phase is Phase.NORM:
            return costs.update_s(nbytes, NORM_PASSES)
        if op.phase is Phase.UPDATE:
            return costs.update_s(nbytes, update_passes(self.schedule.moments))
        return costs.reduce_s(nbytes, self._contributions(op.target, rank, ValueKind.GRAD, ValueKind.SUM))

    def _owned_numel(self, name: str, rank: int) -> int:
        """Elements of the bundle called `name` that `rank` sums up or updates."""
        bundle = self.schedule.bundle(name)
        match bundle.layout:
            case Layout.SHARDED:
                lo, hi = self.schedule.slice_of(bundle, rank)
                return hi - lo
            case Layout.FEATURES:
                return slice_numel(self.schedule, self.model, name, rank)
            case _:
                return bundle.numel

    def _contributions(self, bundle: str, rank: int, *kinds: ValueKind) -> int:
        """How many values of `kinds` of `bundle` arrive at `rank`, its own too."""
        pushes = (op for kind in kinds for op in self._pushes.get((kind, bundle), ()))
        return sum(len(self.schedule.sources(op, rank)) for op in pushes)

    @cached_property
    def _factors(self) -> Mapping[str, Transfer]:
        """The transfer that moves the factors of each bundle."""
        return factor_transfers(self.schedule)

    @cached_property
    def _pushes(self) -> Mapping[tuple[ValueKind, str], list[Transfer]]:
        """The transfers of each kind of value of each bundle."""
        found: dict[tuple[ValueKind, str], list[Transfer]] = {}
        for op in self.schedule.ops:
            if isinstance(op, Transfer):
                for value in dict.fromkeys(op.values):
                    found.setdefault((value.kind, value.name), []).append(op)
        return found
