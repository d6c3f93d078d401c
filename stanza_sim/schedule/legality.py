"""Every rule that a schedule must keep. Both engines call `check` before they start.

Here are the rules of form of ops: names resolve to earlier ops and gate somebody; groups, blocks, bundles and lanes
exist; both ends of each pair exist; sizes agree with the model; gradients go to owners and parameters come from them; a
rank runs a forward pass once. In `stanza_sim.schedule.header` are the rules of what stands before the ops. In
`stanza_sim.schedule.cuts` are those of blocks that are cut over a group. In `stanza_sim.schedule.factors` are those of
sufficient factors. In `stanza_sim.schedule.dataflow` are those of data flow: a value is there before it is used; a pull
writes parameters in place only behind a reduction that needed the rank's own push. In `stanza_sim.schedule.partial`:
gradients that are added up on the way count once. In `stanza_sim.schedule.clipping`: a norm is of all gradients, once.
"""

from __future__ import annotations

from functools import cached_property
from math import prod

import numpy as np
import numpy.typing as npt

from stanza_sim.base.errors import ScheduleError
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule.clipping import check_clipping
from stanza_sim.schedule.cuts import check_cuts, check_sizes
from stanza_sim.schedule.dataflow import check_data_flow
from stanza_sim.schedule.factors import bundle_factors, check_factors, require_factors
from stanza_sim.schedule.facts import violation
from stanza_sim.schedule.header import check_header
from stanza_sim.schedule.ops import (
    NAME,
    Algorithm,
    Bundle,
    Carrier,
    Collective,
    CollectiveKind,
    Compute,
    Keep,
    Layout,
    Op,
    Pattern,
    Phase,
    Transfer,
    Value,
    ValueKind,
    Wire,
    dependency,
)
from stanza_sim.schedule.partial import check_partial_sums
from stanza_sim.schedule.ranks import Ranks
from stanza_sim.schedule.schedule import Schedule

Mask = npt.NDArray[np.bool_]


def value_bytes(
    schedule: Schedule, model: ModelProfile, value: Value, microbatches: int, wire: Wire = Wire.NATIVE
) -> int:
    """Bytes of one whole message that carries `value` of one worker (one micro-batch of its samples)."""
    samples, itemsize = schedule.batch_per_worker // microbatches, wire.itemsize(schedule.itemsize)
    match value.kind:
        case ValueKind.GRAD | ValueKind.PART | ValueKind.SUM:
            return schedule.bundle(value.name).numel * itemsize
        case ValueKind.PARAM | ValueKind.COPY:
            return schedule.bundle(value.name).numel * schedule.itemsize
        case ValueKind.FACTORS:
            _, factors = require_factors(schedule, model, value.name)
            return factors.numel(schedule.batch_per_worker) * itemsize
        case ValueKind.ACT | ValueKind.ACTGRAD:
            return samples * model.block(value.name).output_numel * itemsize
        case ValueKind.LABELS:
            return samples * model.labels.nbytes(schedule.itemsize)
        case ValueKind.NORM:
            return schedule.itemsize
        case ValueKind.LOGSUM:
            return samples * prod(model.block(value.name).output_shape[:-1]) * schedule.itemsize


def check(schedule: Schedule, model: ModelProfile) -> None:
    """Raise `ScheduleError`, with the op's printed form, for the first rule that `schedule` breaks.

    The rules of data flow are held against every rank, but for very large schedules: see
    `stanza_sim.schedule.order.order_of`.
    """
    check_header(schedule, model)
    _Form(schedule, model).run()
    check_cuts(schedule, model)
    check_clipping(schedule)
    check_data_flow(schedule, model)
    check_partial_sums(schedule, model)
    check_sizes(schedule, model)
    check_factors(schedule, model)


class _Form:
    def __init__(self, schedule: Schedule, model: ModelProfile) -> None:
        self.s, self.model = schedule, model
        self.blocks = {b.name: i for i, b in enumerate(model.blocks)}
        self.groups = {g.name for g in schedule.groups}
        self.bundles = {b.name for b in schedule.bundles}
        self.masks: dict[str, Mask] = {}
        self.meet: dict[tuple[str, ...], bool] = {}  # groups -> whether the first has a rank in common with the others
        self.resolved: set[tuple[str, str, tuple[str, ...]]] = set()  # dependencies of earlier ops, with what they gate
        self.credits: dict[str, int] = {}  # of each channel
        self.runs: dict[str, set[Ranks]] = {}  # of a bundle in slices: the groups that have all of it
        self.ran: dict[tuple[Phase, str, int], Mask] = {}  # (phase, block, micro-batch): ranks that run it
        self.arrived: dict[tuple[str, int], Mask] = {}  # (value, micro-batch of its own): ranks to which it is brought

    def fail(self, op: Op, message: str, hint: str | None = None) -> ScheduleError:
        return violation(self.s, op, message, hint)

    def mask(self, group: str) -> Mask:
        if group not in self.masks:
            m = np.zeros(self.s.world_size, dtype=np.bool_)
            for a, b in self.s.group(group).spans:
                m[a:b] = True
            self.masks[group] = m
        return self.masks[group]

    def run(self) -> None:
        for op in self.s.ops:
            self._groups(op)
        for i, op in enumerate(self.s.ops):
            self._names(i, op)
            match op:
                case Compute():
                    self._compute(op)
                case Transfer():
                    self._transfer(op)
                case Collective():
                    self._collective(op)

    # ---- one op by itself ------------------------------------------------------------------------------------

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {op.name: i for i, op in enumerate(self.s.ops)}

    def _gated(self, gate: str, op: Op, side: str) -> bool:
        """Whether a dependency on (`op`, `side`) can be met at a rank of the group `gate`."""
        if not isinstance(op, Transfer):
            ends: tuple[str, ...] = (op.ranks,)
        else:
            ends = (op.dst,) if side == "recv" else (op.src,) if side == "sent" else (op.src, op.dst)
        key = gate, *ends
        if key not in self.meet:
            self.meet[key] = any((self.mask(gate) & self.mask(end)).any() for end in ends)
        return self.meet[key]

    def _groups(self, op: Op) -> None:
        for group in (op.src, op.dst) if isinstance(op, Transfer) else (op.ranks,):
            if group not in self.groups:
                known = ", ".join(sorted(self.groups))
                raise self.fail(op, f"there is no group {group!r}", hint=f"the groups: {known}")

    def _names(self, i: int, op: Op) -> None:
        queue = op.lane if isinstance(op, Compute) else op.channel if isinstance(op, Transfer) else None
        if queue is not None and NAME.fullmatch(queue) is None:
            raise self.fail(op, f"{queue!r} is not a name for a {'lane' if isinstance(op, Compute) else 'channel'}")
        if op.name.endswith((".recv", ".sent")):
            raise self.fail(op, "an op's name may not end in .recv or .sent")
        if op.microbatch not in self.s.microbatch_ids:
            raise self.fail(op, f"there are {len(self.s.microbatch_ids)} micro-batches, counted from 0")
        gate = op.src if isinstance(op, Transfer) else op.ranks
        for kind, names in (("after", op.after), ("after_previous", op.after_previous)):
            if (kind, gate, names) in self.resolved:
                continue
            self.resolved.add((kind, gate, names))
            for text in names:
                name, side = dependency(text)
                j = self._positions.get(name)
                if j is None:
                    raise self.fail(op, f"{kind} names {name}, and there is no such op")
                if kind == "after" and j >= i:
                    raise self.fail(op, f"after names {name}, which is not an earlier op")
                target = self.s.ops[j]
                if side and not isinstance(target, Transfer):
                    raise self.fail(op, f"{text}: only a transfer has .recv and .sent")
                if not self._gated(gate, target, side):
                    raise self.fail(op, f"{kind} names {text}, but no rank that it would gate takes part in it")

    def _compute(self, op: Compute) -> None:
        if op.phase.on_bundle:
            self._bundle_exists(op, op.target)
            owners = self.mask(self.s.bundle(op.target).owners)
            if op.phase is not Phase.PARTIAL and (self.mask(op.ranks) & ~owners).any():
                raise self.fail(op, f"only an owner of bundle {op.target} may {op.phase} it")
        elif op.target not in self.blocks:
            raise self.fail(op, f"model {self.model.name} has no block {op.target}")
        elif op.phase is Phase.LOSS and self.blocks[op.target] != len(self.blocks) - 1:
            raise self.fail(op, "the loss is computed from the last block's output")
        elif op.phase in (Phase.FORWARD, Phase.RECOMPUTE):
            key, at = (op.phase, op.target, op.microbatch), self.mask(op.ranks)
            done = self.ran.setdefault(key, np.zeros_like(at))
            if (done & at).any():
                # Nothing could say which of the two results the later ops use, or whose samples count.
                raise self.fail(op, f"rank {int((done & at).argmax())} has run this forward pass already")
            self.ran[key] = done | at

    def _transfer(self, op: Transfer) -> None:
        n, k = len(self.s.group(op.src)), len(self.s.group(op.dst))
        match op.pattern:
            case Pattern.ONE_TO_ONE if n != k:
                raise self.fail(op, f"one-to-one needs groups of one size, not {n} and {k}")
            case Pattern.FAN_IN if k != 1:
                raise self.fail(op, f"fan-in has one destination, not {k}")
            case Pattern.FAN_OUT if n != 1:
                raise self.fail(op, f"fan-out has one source, not {n}")
            case Pattern.EXPLICIT:
                for a, b in op.pairs:
                    if a not in self.s.group(op.src) or b not in self.s.group(op.dst):
                        raise self.fail(op, f"the pair {a}>{b} is not from {op.src} to {op.dst}")
                if not op.pairs or len(set(op.pairs)) != len(op.pairs):
                    raise self.fail(op, "explicit pairs must be given, each once")
        if op.pattern is not Pattern.EXPLICIT and op.pairs:
            raise self.fail(op, f"pairs are given by the pattern {op.pattern}", hint="write explicit to list them")
        if not op.values:
            raise self.fail(op, "a transfer carries at least one value")
        credit = self.credits.setdefault(op.channel, op.credit)
        if op.credit < 0 or op.credit != credit:
            hint = "one channel has one credit: 0, or the most ops that may be under way"
            raise self.fail(op, f"credit={op.credit} is not that of its channel, {credit}", hint)
        for value in op.values:
            self._value_exists(op, value)
            if value.kind is ValueKind.LOGSUM:
                raise self.fail(op, "logsums are gathered over the group of a cut, not sent")
            if value.kind is ValueKind.NORM:
                raise self.fail(op, "the norm is added up by an all-reduce, not sent")
        self._arrival(op)
        self._wire(op, *op.values)
        expected = sum(value_bytes(self.s, self.model, v, self.s.microbatches, op.wire) for v in op.values)
        if op.nbytes != expected:
            raise self.fail(op, f"nbytes={op.nbytes}, but the values have {expected} bytes")
        for value in op.values:
            if value.kind.on_bundle:
                if len(op.values) > 1:
                    raise self.fail(op, f"{value} travels in a message of its own")
                bundle = self.s.bundle(value.name)
                if bundle.replicas > 1 or bundle.keep is not Keep.ALL:
                    hint = "use a reduce-scatter and all-gathers"
                    raise self.fail(op, f"bundle {bundle.name} is moved by collectives only", hint=hint)
                owner_sends = value.kind.owner_sends
                end, who = (op.src, "comes from") if owner_sends else (op.dst, "goes to")
                if owner_sends is not None and (self.mask(end) & ~self.mask(bundle.owners)).any():
                    raise self.fail(op, f"{value} {who} owners of the bundle ({bundle.owners}) only")

    def _wire(self, op: Transfer | Collective, *values: Value) -> None:
        if op.wire is not Wire.NATIVE and not any(v.kind.is_activation or v.kind.is_gradient for v in values):
            what = "only activations and gradients are rounded"
            raise self.fail(op, what, hint=f"leave out wire={op.wire}")

    def _arrival(self, op: Transfer) -> None:
        """What goes forward arrives under a number that no data rank uses, or it would hide the receiver's own."""
        if op.arrives_as is None:
            return
        if op.arrives_as < 0:
            raise self.fail(op, "micro-batches are counted from 0")
        kinds = {value.kind for value in op.values}
        if not kinds <= {ValueKind.ACT, ValueKind.ACTGRAD, ValueKind.LABELS}:
            raise self.fail(
                op, "gradients and parameters of a bundle are of no micro-batch", hint="leave out arrives_as"
            )
        if kinds & {ValueKind.ACT, ValueKind.LABELS}:
            if op.arrives_as < self.s.microbatches:
                hint = f"write arrives_as={self.s.microbatches} or more"
                raise self.fail(op, f"micro-batch {op.arrives_as} is of the receiver's own samples", hint=hint)
            at = self.mask(op.dst)
            if op.pattern is Pattern.EXPLICIT:
                at = np.isin(np.arange(self.s.world_size), [b for _, b in op.pairs])
            for value in op.values:
                key = str(value), op.arrives_as
                there = self.arrived.setdefault(key, np.zeros_like(at))
                if (there & at).any():
                    rank = int((there & at).argmax())
                    raise self.fail(op, f"{value} has arrived at rank {rank} as micro-batch {op.arrives_as} already")
                self.arrived[key] = there | at

    def _collective(self, op: Collective) -> None:
        self._value_exists(op, op.value)
        self._wire(op, op.value)
        if op.value.kind in (ValueKind.ACT, ValueKind.ACTGRAD, ValueKind.LOGSUM):
            if op.root is not None:
                raise self.fail(op, f"{op.kind} has no root")
            self._algorithm(op)
            return  # see `stanza_sim.schedule.cuts`
        if op.value.kind is ValueKind.NORM and op.kind is not CollectiveKind.ALL_REDUCE:
            raise self.fail(op, "the norm is added up by an all-reduce")
        if op.value.kind is ValueKind.SUM:
            self._sum_of_slice(op)
            return
        if op.value.kind not in (ValueKind.GRAD, ValueKind.PARAM, ValueKind.NORM):
            raise self.fail(op, "a collective moves gradients or parameters of a bundle, or activations of a cut block")
        if op.microbatch:
            raise self.fail(op, "gradients and parameters of a bundle are of the whole batch, not of a micro-batch")
        expected = value_bytes(self.s, self.model, op.value, 1, op.wire)
        if op.nbytes != expected:
            raise self.fail(op, f"nbytes={op.nbytes}, but the value has {expected} bytes")
        if op.value.kind is ValueKind.NORM:
            if op.root is not None:
                raise self.fail(op, f"{op.kind} has no root")
            self._algorithm(op)
            return  # see `stanza_sim.schedule.clipping`
        bundle = self.s.bundle(op.value.name)
        grads = op.kind in (CollectiveKind.ALL_REDUCE, CollectiveKind.REDUCE_SCATTER)
        if grads != (op.value.kind is ValueKind.GRAD):
            raise self.fail(op, f"{op.kind} moves {'gradients' if grads else 'parameters'}")
        if op.kind in (CollectiveKind.REDUCE_SCATTER, CollectiveKind.ALL_GATHER):
            if bundle.layout is not Layout.SHARDED or self.s.group(op.ranks) not in self._runs(bundle):
                raise self.fail(op, f"{op.kind} needs a bundle that is cut over its own group")
        elif bundle.replicas > 1 or bundle.keep is not Keep.ALL:
            hint = "use a reduce-scatter and all-gathers"
            raise self.fail(op, f"{op.kind} needs bundle {bundle.name} whole, and ranks keep it in slices", hint=hint)
        if op.kind is CollectiveKind.BROADCAST:
            if op.root is None or op.root not in self.s.group(op.ranks):
                raise self.fail(op, "a broadcast needs a root in its group")
            if op.root not in self.s.owners(bundle) or bundle.layout is Layout.SHARDED:
                raise self.fail(op, "a broadcast's root must own the whole bundle")
        elif op.root is not None:
            raise self.fail(op, f"{op.kind} has no root")
        self._algorithm(op)

    def _runs(self, bundle: Bundle) -> set[Ranks]:
        """The groups that have all slices of a bundle."""
        if bundle.name not in self.runs:
            owners, pieces = list(self.s.owners(bundle)), self.s.pieces(bundle)
            self.runs[bundle.name] = {Ranks.of(owners[k : k + pieces]) for k in range(0, len(owners), pieces)}
        return self.runs[bundle.name]

    def _sum_of_slice(self, op: Collective) -> None:
        """What each run of a bundle with replicas has summed is summed by those that have the same slice."""
        bundle, ranks = self.s.bundle(op.value.name), list(self.s.group(op.ranks))
        if op.kind is not CollectiveKind.ALL_REDUCE or bundle.replicas == 1 or op.microbatch or op.root is not None:
            raise self.fail(op, "only an all_reduce sums over replicas, of a bundle that has some")
        owners, pieces = list(self.s.owners(bundle)), self.s.pieces(bundle)
        if ranks[0] not in owners or ranks != owners[owners.index(ranks[0]) % pieces :: pieces]:
            raise self.fail(op, f"the sum of a slice of {bundle.name} is over all owners that have it, and no others")
        lo, hi = self.s.slice_of(bundle, ranks[0])
        if op.nbytes != (expected := (hi - lo) * self.s.itemsize_of(op)):
            raise self.fail(op, f"nbytes={op.nbytes}, but the slice has {expected} bytes")
        self._algorithm(op)

    def _algorithm(self, op: Collective) -> None:
        if op.by is Carrier.BACKEND and op.algorithm is not Algorithm.RING:
            hint = f"write algorithm={op.algorithm} by=steps"
            raise self.fail(op, "a backend's own collectives are rings", hint=hint)
        if op.algorithm is Algorithm.HIERARCHICAL and op.local < 1:
            raise self.fail(op, "a hierarchy needs the number of ranks on a host", hint="write local=8")
        if op.algorithm is not Algorithm.HIERARCHICAL and op.local:
            raise self.fail(op, f"local={op.local} is for a hierarchy, not for {op.algorithm}")
        if op.chunk < self.s.itemsize_of(op):
            raise self.fail(op, f"chunk={op.chunk} is less than an element of {self.s.itemsize_of(op)} bytes")

    def _bundle_exists(self, op: Op, name: str) -> None:
        if name not in self.bundles:
            raise self.fail(op, f"there is no bundle {name!r}", hint=f"the bundles: {', '.join(sorted(self.bundles))}")

    def _value_exists(self, op: Op, value: Value) -> None:
        match value.kind:
            case ValueKind.GRAD | ValueKind.PART | ValueKind.SUM | ValueKind.PARAM | ValueKind.COPY:
                self._bundle_exists(op, value.name)
            case ValueKind.FACTORS:
                self._bundle_exists(op, value.name)
                if bundle_factors(self.model, self.s.bundle(value.name)) is None:
                    raise self.fail(op, f"bundle {value.name} is not the parameters of one linear layer")
            case ValueKind.ACT | ValueKind.ACTGRAD | ValueKind.LOGSUM:
                if value.name not in self.blocks:
                    raise self.fail(op, f"model {self.model.name} has no block {value.name}")
            case ValueKind.LABELS | ValueKind.NORM:
                if value.name:
                    raise self.fail(
                        op, "labels have no name" if value.kind is ValueKind.LABELS else f"{value.kind} has no name"
                    )
