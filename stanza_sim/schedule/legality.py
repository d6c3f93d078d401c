"""Every rule that a schedule must keep, in one place. Both engines call `check` before they start.

Names resolve to earlier ops and gate somebody; groups, blocks, bundles and lanes exist; both ends of each
pair exist; sizes agree with the model; gradients go to owners and parameters come from them; a value is there
before it is used; a pull writes parameters in place only behind a reduction that needed the rank's own push.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

import numpy as np
import numpy.typing as npt

from stanza_sim.errors import ScheduleError
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule.ops import (
    NAME,
    Collective,
    CollectiveKind,
    Compute,
    Layout,
    Op,
    Pattern,
    Phase,
    Transfer,
    Value,
    ValueKind,
    dependency,
)
from stanza_sim.schedule.schedule import Schedule
from stanza_sim.schedule.text import print_op

Mask = npt.NDArray[np.bool_]
NAME_HINT = "names have letters, digits and _ . - / and no spaces, so that the printed form reads back"
LABEL_BYTES = 8
"""Bytes of one label: an int64 class index, as torch's cross entropy takes it."""


def value_bytes(schedule: Schedule, model: ModelProfile, value: Value, microbatches: int) -> int:
    """Bytes of one whole message that carries `value` of one worker (one micro-batch of its samples)."""
    samples = schedule.batch_per_worker // microbatches
    match value.kind:
        case ValueKind.GRAD | ValueKind.PARAM:
            return schedule.bundle(value.name).numel * schedule.itemsize
        case ValueKind.ACT | ValueKind.ACTGRAD:
            return samples * model.block(value.name).output_numel * schedule.itemsize
        case ValueKind.LABELS:
            return samples * LABEL_BYTES


def check(schedule: Schedule, model: ModelProfile) -> None:
    """Raise `ScheduleError`, with the op's printed form, for the first rule that `schedule` breaks."""
    _Checker(schedule, model).run()


class _Checker:
    def __init__(self, schedule: Schedule, model: ModelProfile) -> None:
        self.s, self.model = schedule, model
        self.blocks = {b.name: i for i, b in enumerate(model.blocks)}
        self.block_of = {t.name: i for i, b in enumerate(model.blocks) for t in b.tensors}
        self.groups = {g.name for g in schedule.groups}
        self.bundles = {b.name for b in schedule.bundles}
        self.names = list(self.blocks)
        self.masks: dict[str, Mask] = {}
        self.closure: list[int] = []  # bit j of closure[i]: op i comes after op j in the same iteration
        self.under: dict[tuple[object, ...], int] = {}  # bit j: op j is found under that heading
        self.lanes: dict[tuple[str, str], int] = {}  # the last op of each group's lane

    def fail(self, op: Op, message: str, hint: str | None = None) -> ScheduleError:
        return ScheduleError(f"{message}\n  in: {print_op(op)}", where=f"schedule {self.s.name}", hint=hint)

    def mask(self, group: str) -> Mask:
        if group not in self.masks:
            m = np.zeros(self.s.world_size, dtype=np.bool_)
            for a, b in self.s.group(group).spans:
                m[a:b] = True
            self.masks[group] = m
        return self.masks[group]

    def run(self) -> None:
        self._header()
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
            self._closure(i, op)
            self._flow(i, op)

    # ---- header ----------------------------------------------------------------------------------------------

    def _header(self) -> None:
        s, where = self.s, f"schedule {self.s.name}"
        for what, value in (
            ("world", s.world_size),
            ("batch", s.batch_per_worker),
            ("microbatches", s.microbatches),
            ("itemsize", s.itemsize),
        ):
            if value < 1:
                raise ScheduleError(f"{what}={value} must be at least 1", where=where)
        if s.batch_per_worker % s.microbatches:
            raise ScheduleError(
                f"a batch of {s.batch_per_worker} cannot be cut in {s.microbatches} equal micro-batches", where=where
            )
        for kind, names, once in (
            ("schedule", [s.name], True),
            ("model", [s.model], True),
            ("block", [b.name for b in self.model.blocks], True),
            ("tensor", [t for b in s.bundles for t in b.tensors], False),
            ("group", [g.name for g in s.groups], True),
            ("bundle", [b.name for b in s.bundles], True),
            ("op", [o.name for o in s.ops], True),
        ):
            for name in names:
                if NAME.fullmatch(name) is None:
                    raise ScheduleError(f"{name!r} is not a name for a {kind}", where=where, hint=NAME_HINT)
            if once and len(set(names)) != len(names):
                twice = next(n for n in names if names.count(n) > 1)
                raise ScheduleError(f"two {kind}s are called {twice}", where=where)
        for g in s.groups:
            if not len(g.ranks):
                raise ScheduleError(f"group {g.name} is empty", where=where)
            if g.ranks.spans[-1][1] > s.world_size:
                raise ScheduleError(
                    f"group {g.name} has rank {g.ranks.spans[-1][1] - 1}, the world is {s.world_size} ranks",
                    where=where,
                )
        numel = {t.name: t.numel for b in self.model.blocks for t in b.tensors}
        seen: set[str] = set()
        for b in s.bundles:
            s.owners(b)
            for t in b.tensors:
                if t not in numel:
                    raise ScheduleError(f"bundle {b.name}: model {self.model.name} has no tensor {t}", where=where)
                if t in seen:
                    raise ScheduleError(f"tensor {t} is in two bundles", where=where)
                seen.add(t)
            if b.numel != sum(numel[t] for t in b.tensors):
                raise ScheduleError(
                    f"bundle {b.name} has numel={b.numel}, its tensors have {sum(numel[t] for t in b.tensors)}",
                    where=where,
                )
        if s.model != self.model.name:
            raise ScheduleError(f"was made for model {s.model}, not {self.model.name}", where=where)

    # ---- one op by itself ------------------------------------------------------------------------------------

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {op.name: i for i, op in enumerate(self.s.ops)}

    def _gate(self, op: Op) -> Mask:
        """Ranks at which the op's dependencies gate it."""
        return self.mask(op.src if isinstance(op, Transfer) else op.ranks)

    def _completes(self, op: Op, side: str) -> Mask:
        """Ranks at which a dependency on (op, side) can be met."""
        if not isinstance(op, Transfer):
            return self.mask(op.ranks)
        src, dst = self.mask(op.src), self.mask(op.dst)
        return dst if side == "recv" else src if side == "sent" else src | dst

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
        if not isinstance(op, Collective) and not 0 <= op.microbatch < self.s.microbatches:
            raise self.fail(op, f"there are {self.s.microbatches} micro-batches, counted from 0")
        for kind, names in (("after", op.after), ("after_previous", op.after_previous)):
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
                if not (self._gate(op) & self._completes(target, side)).any():
                    raise self.fail(op, f"{kind} names {text}, but no rank that it would gate takes part in it")

    def _compute(self, op: Compute) -> None:
        if op.phase.on_bundle:
            self._bundle_exists(op, op.target)
            owners = self.mask(self.s.bundle(op.target).owners)
            if (self.mask(op.ranks) & ~owners).any():
                raise self.fail(op, f"only an owner of bundle {op.target} may {op.phase} it")
        elif op.target not in self.blocks:
            raise self.fail(op, f"model {self.model.name} has no block {op.target}")
        elif op.phase is Phase.LOSS and self.blocks[op.target] != len(self.blocks) - 1:
            raise self.fail(op, "the loss is computed from the last block's output")

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
        for value in op.values:
            self._value_exists(op, value)
        expected = sum(value_bytes(self.s, self.model, v, self.s.microbatches) for v in op.values)
        if op.nbytes != expected:
            raise self.fail(op, f"nbytes={op.nbytes}, but the values have {expected} bytes")
        for value in op.values:
            if value.kind in (ValueKind.GRAD, ValueKind.PARAM):
                if len(op.values) > 1:
                    raise self.fail(op, f"{value} travels in a message of its own")
                bundle = self.s.bundle(value.name)
                end, who = (op.dst, "goes to") if value.kind is ValueKind.GRAD else (op.src, "comes from")
                if (self.mask(end) & ~self.mask(bundle.owners)).any():
                    raise self.fail(op, f"{value} {who} owners of the bundle ({bundle.owners}) only")

    def _collective(self, op: Collective) -> None:
        self._value_exists(op, op.value)
        if op.value.kind not in (ValueKind.GRAD, ValueKind.PARAM):
            raise self.fail(op, "a collective moves gradients or parameters of a bundle")
        expected = value_bytes(self.s, self.model, op.value, 1)
        if op.nbytes != expected:
            raise self.fail(op, f"nbytes={op.nbytes}, but the value has {expected} bytes")
        bundle = self.s.bundle(op.value.name)
        grads = op.kind in (CollectiveKind.ALL_REDUCE, CollectiveKind.REDUCE_SCATTER)
        if grads != (op.value.kind is ValueKind.GRAD):
            raise self.fail(op, f"{op.kind} moves {'gradients' if grads else 'parameters'}")
        if op.kind in (CollectiveKind.REDUCE_SCATTER, CollectiveKind.ALL_GATHER) and (
            bundle.layout is not Layout.CUT or bundle.owners != op.ranks
        ):
            raise self.fail(op, f"{op.kind} needs a bundle that is cut over its own group")
        if op.kind is CollectiveKind.BROADCAST:
            if op.root is None or op.root not in self.s.group(op.ranks):
                raise self.fail(op, "a broadcast needs a root in its group")
            if op.root not in self.s.owners(bundle) or bundle.layout is Layout.CUT:
                raise self.fail(op, "a broadcast's root must own the whole bundle")
        elif op.root is not None:
            raise self.fail(op, f"{op.kind} has no root")

    def _bundle_exists(self, op: Op, name: str) -> None:
        if name not in self.bundles:
            raise self.fail(op, f"there is no bundle {name!r}", hint=f"the bundles: {', '.join(sorted(self.bundles))}")

    def _value_exists(self, op: Op, value: Value) -> None:
        match value.kind:
            case ValueKind.GRAD | ValueKind.PARAM:
                self._bundle_exists(op, value.name)
            case ValueKind.ACT | ValueKind.ACTGRAD:
                if value.name not in self.blocks:
                    raise self.fail(op, f"model {self.model.name} has no block {value.name}")
            case ValueKind.LABELS:
                if value.name:
                    raise self.fail(op, "labels have no name")

    # ---- a value is there before it is used --------------------------------------------------------------------

    def _closure(self, i: int, op: Op) -> None:
        bits = 0
        for text in op.after:
            name, side = dependency(text)
            j = self._positions[name]
            bits |= self.closure[j]
            if side != "sent":  # what was sent need not have arrived
                bits |= 1 << j
        if isinstance(op, Compute):  # a lane works in program order
            if (last := self.lanes.get((op.ranks, op.lane))) is not None:
                bits |= self.closure[last] | 1 << last
            self.lanes[op.ranks, op.lane] = i
        self.closure.append(bits)
        for heading in self._headings(op):
            self.under[heading] = self.under.get(heading, 0) | 1 << i

    def _headings(self, op: Op) -> Iterable[tuple[object, ...]]:
        """Under what later ops look for `op`: the values that it makes or brings, the gradients that it sums."""
        match op:
            case Compute(phase=Phase.FORWARD):
                yield "value", Value(ValueKind.ACT, op.target), op.microbatch
            case Compute(phase=Phase.LOSS):
                yield "value", Value(ValueKind.ACTGRAD, op.target), op.microbatch
            case Compute(phase=Phase.BACKWARD | Phase.BACKWARD_INPUT | Phase.BACKWARD_WEIGHT):
                k = self.blocks[op.target]
                if k and op.phase is not Phase.BACKWARD_WEIGHT:
                    yield "value", Value(ValueKind.ACTGRAD, self.names[k - 1]), op.microbatch
                if op.phase is not Phase.BACKWARD_INPUT:
                    yield "weight gradient", op.target, op.microbatch
            case Compute(phase=Phase.REDUCE):
                yield "sum", op.target
            case Transfer():
                for value in op.values:
                    yield "value", value, op.microbatch
                    if value.kind is ValueKind.GRAD:
                        yield "push", value.name
            case Collective() if op.value.kind is ValueKind.GRAD:
                yield "sum", op.value.name

    def _before(self, i: int, *heading: object) -> Iterable[Op]:
        """Ops under `heading` that op `i` comes after."""
        bits = self.closure[i] & self.under.get(heading, 0)
        while bits:
            low = bits & -bits
            yield self.s.ops[low.bit_length() - 1]
            bits ^= low

    def _covered(self, at: Mask, producers: Iterable[Mask]) -> bool:
        missing = at.copy()
        for m in producers:
            missing &= ~m
            if not missing.any():
                return True
        return not missing.any()

    def _need(self, i: int, op: Op, at: Mask, value: Value, microbatch: int) -> None:
        """`value` must be at the ranks `at` before op `i`: computed there, or received."""
        made = (self._completes(o, "recv") for o in self._before(i, "value", value, microbatch))
        if not self._covered(at, made):
            raise self.fail(op, f"{value} is not there before it is used", hint="name what brings it in after=")

    def _need_gradients(self, i: int, op: Op, at: Mask, bundle: str) -> None:
        """The gradients of every tensor of `bundle`, for every micro-batch, must be computed at `at`."""
        for block in self._blocks_of(bundle):
            for m in range(self.s.microbatches):
                if not self._covered(at, (self._gate(o) for o in self._before(i, "weight gradient", block, m))):
                    raise self.fail(
                        op,
                        f"grad({bundle}) needs the backward pass of {block}",
                        hint="name that op in after=",
                    )

    def _blocks_of(self, bundle: str) -> list[str]:
        return [self.names[k] for k in sorted({self.block_of[t] for t in self.s.bundle(bundle).tensors})]

    def _flow(self, i: int, op: Op) -> None:
        match op:
            case Compute():
                self._compute_flow(i, op)
            case Transfer():
                for value in op.values:
                    if value.kind in (ValueKind.ACT, ValueKind.ACTGRAD):
                        self._need(i, op, self.mask(op.src), value, op.microbatch)
                    elif value.kind is ValueKind.GRAD:
                        self._need_gradients(i, op, self.mask(op.src), value.name)
                    elif value.kind is ValueKind.PARAM:
                        self._in_place(i, op, self.mask(op.dst) & ~self._local_only(op), value.name)
            case Collective():
                if op.value.kind is ValueKind.GRAD:
                    self._need_gradients(i, op, self.mask(op.ranks), op.value.name)
                else:
                    written = self.mask(op.ranks).copy()
                    if op.root is not None:
                        written[op.root] = False
                    self._in_place(i, op, written, op.value.name)

    def _compute_flow(self, i: int, op: Compute) -> None:
        at = self.mask(op.ranks)
        match op.phase:
            case Phase.FORWARD:
                k = self.blocks[op.target]
                if k:
                    self._need(i, op, at, Value(ValueKind.ACT, self.names[k - 1]), op.microbatch)
            case Phase.LOSS:
                self._need(i, op, at, Value(ValueKind.ACT, op.target), op.microbatch)
                away = at & ~self.mask_of_data()
                if away.any():
                    self._need(i, op, away, Value(ValueKind.LABELS), op.microbatch)
            case Phase.BACKWARD | Phase.BACKWARD_INPUT | Phase.BACKWARD_WEIGHT:
                self._need(i, op, at, Value(ValueKind.ACT, op.target), op.microbatch)
                self._need(i, op, at, Value(ValueKind.ACTGRAD, op.target), op.microbatch)
            case Phase.REDUCE:
                if not self._covered(at, (self._completes(o, "recv") for o in self._before(i, "push", op.target))):
                    raise self.fail(op, f"no transfer brings grad({op.target}) before it is reduced")
            case Phase.UPDATE:
                if not self._covered(at, (self._gate(o) for o in self._before(i, "sum", op.target))):
                    self._need_gradients(i, op, at, op.target)
                self._after_readers(i, op, at, op.target)

    def mask_of_data(self) -> Mask:
        """Ranks that draw samples, and so have their labels."""
        m = np.zeros(self.s.world_size, dtype=np.bool_)
        for a, b in self.s.data_ranks.spans:
            m[a:b] = True
        return m

    def _local_only(self, op: Transfer) -> Mask:
        """Ranks that receive nothing but their own pair: nothing is written there."""
        m = np.zeros(self.s.world_size, dtype=np.bool_)
        if op.pattern is Pattern.EXPLICIT or op.pattern is Pattern.ONE_TO_ONE or op.pattern is Pattern.BLOCKED:
            for r in self.s.group(op.dst):
                m[r] = tuple(self.s.sources(op, r)) in ((r,), ())
        elif len(self.s.group(op.src)) == 1:
            m[self.s.group(op.src)[0]] = True
        return m

    def _in_place(self, i: int, op: Op, at: Mask, bundle: str) -> None:
        """Parameters that arrive at `at` overwrite what its passes read: its own push must be needed first."""
        readers = np.zeros(self.s.world_size, dtype=np.bool_)
        for block in self._blocks_of(bundle):
            for _, mask in self._readers.get(block, ()):
                readers |= mask
        pushed: list[Mask] = []
        for o in self._before(i, "sum", bundle):
            if isinstance(o, Collective):
                pushed.append(self.mask(o.ranks))
            else:
                pushed += [self._gate(p) for p in self._before(self._positions[o.name], "push", bundle)]
        if not self._covered(at & readers, pushed):
            raise self.fail(
                op,
                f"param({bundle}) would be overwritten while a pass may still read it",
                hint="a pull must follow a reduction that needed the same rank's push",
            )
        self._after_readers(i, op, at, bundle)

    @cached_property
    def _readers(self) -> dict[str, list[tuple[int, Mask]]]:
        """Passes over each block, but for those that only compute weight gradients and so read no parameters."""
        found: dict[str, list[tuple[int, Mask]]] = {}
        for i, op in enumerate(self.s.ops):
            if isinstance(op, Compute) and op.phase in (Phase.FORWARD, Phase.BACKWARD, Phase.BACKWARD_INPUT):
                found.setdefault(op.target, []).append((i, self.mask(op.ranks)))
        return found

    def _after_readers(self, i: int, op: Op, at: Mask, bundle: str) -> None:
        """Op `i` writes the parameters of `bundle` at the ranks `at`: every pass that reads them must come first."""
        for block in self._blocks_of(bundle):
            for j, mask in self._readers.get(block, ()):
                if not self.closure[i] >> j & 1 and (mask & at).any():
                    raise self.fail(
                        op, f"param({bundle}) would be overwritten while {self.s.ops[j].name} may still read it"
                    )
