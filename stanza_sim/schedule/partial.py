"""The rule of partial sums: every rank's gradients of a bundle are counted once."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import numpy.typing as npt

from stanza_sim.base.errors import ScheduleError
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule.ops import Compute, Phase, Transfer, Value, ValueKind
from stanza_sim.schedule.printing import print_op
from stanza_sim.schedule.schedule import Schedule

Counts = npt.NDArray[np.int64]


def check_partial_sums(schedule: Schedule, model: ModelProfile) -> None:
    """Raise `ScheduleError` where gradients that are added up on the way to the owners do not count once each.

    For a bundle with partial sums: whoever computes its gradients sends them to one rank that adds up, or to the
    owners, and not both; whoever is sent some adds up, and sends the sum to the owners once.
    """
    if any(isinstance(op, Compute) and op.phase is Phase.PARTIAL for op in schedule.ops) or any(
        v.kind in (ValueKind.PART, ValueKind.SUM) for op in schedule.ops if isinstance(op, Transfer) for v in op.values
    ):
        _Counts(schedule, model).check()


class _Counts:
    def __init__(self, schedule: Schedule, model: ModelProfile) -> None:
        self.s = schedule
        self.block_of = {t.name: b.name for b in model.blocks for t in b.tensors}
        self.sent: dict[Value, list[Transfer]] = defaultdict(list)
        self.pairs: dict[tuple[object, ...], list[tuple[int, int]]] = {}
        self.added: dict[str, list[Compute]] = defaultdict(list)
        self.computed: dict[str, set[str]] = defaultdict(set)  # block -> groups that compute its weights' gradients
        for op in schedule.ops:
            match op:
                case Transfer():
                    for v in op.values:
                        self.sent[v].append(op)
                case Compute(phase=Phase.PARTIAL):
                    self.added[op.target].append(op)
                case Compute(phase=Phase.BACKWARD | Phase.BACKWARD_WEIGHT):
                    self.computed[op.target].add(op.ranks)
                case _:
                    pass

    def check(self) -> None:
        names = {v.name for v in self.sent if v.kind in (ValueKind.PART, ValueKind.SUM)} | set(self.added)
        for bundle in self.s.bundles:
            if bundle.name not in names:
                continue
            parts = self.sent[Value(ValueKind.PART, bundle.name)]
            own = self._per_rank(parts, sending=True)
            gathered = self._per_rank(parts, sending=False) > 0
            direct = self._ranks([op.src for op in self.sent[Value(ValueKind.GRAD, bundle.name)]])
            summed = self._ranks([op.src for op in self.sent[Value(ValueKind.SUM, bundle.name)]])
            added = self._ranks([op.ranks for op in self.added[bundle.name]])
            blocks = {self.block_of[t] for t in bundle.tensors}
            computed = self._ranks([ranks for block in blocks for ranks in self.computed[block]]) > 0
            part = f"part({bundle.name})"
            for wrong, message in (
                (own + direct > 1, f"grad({bundle.name}) of rank {{}} is sent twice"),
                (computed & (own + direct == 0), f"grad({bundle.name}) of rank {{}} is not sent"),
                (gathered & (added != 1), f"{part} that rank {{}} gathers must be added up there, once"),
                (gathered & (summed != 1), f"{part} that rank {{}} gathers must go to the owners as a sum, once"),
                (~gathered & (added + summed > 0), f"rank {{}} adds up {part} and is sent none"),
            ):
                self._none(wrong, message, parts)
            back = {(dst, src) for op in parts for src, dst in self._pairs(op)}
            for op in self.sent[Value(ValueKind.COPY, bundle.name)]:
                for src, dst in self._pairs(op):
                    if src != dst and (src, dst) not in back:
                        # Who sends none could still be reading what the next pull overwrites at the sender.
                        message = f"rank {dst} is sent copy({bundle.name}) by rank {src}, to which it sends no {part}"
                        raise ScheduleError(f"{message}\n  in: {print_op(op)}", where=f"schedule {self.s.name}")

    def _pairs(self, op: Transfer) -> list[tuple[int, int]]:
        """The pairs of `op`; those of the many ops that are alike are found once."""
        key = op.src, op.dst, op.pattern, op.pairs
        if key not in self.pairs:
            self.pairs[key] = list(self.s.pairs(op))
        return self.pairs[key]

    def _ranks(self, groups: list[str]) -> Counts:
        """How often each rank is in `groups`."""
        found = np.zeros(self.s.world_size, dtype=np.int64)
        for group in groups:
            for a, b in self.s.group(group).spans:
                found[a:b] += 1
        return found

    def _per_rank(self, ops: list[Transfer], *, sending: bool) -> Counts:
        """How many messages of `ops` each rank sends, or gets, its own included."""
        found = np.zeros(self.s.world_size, dtype=np.int64)
        for op in ops:
            for src, dst in self._pairs(op):
                found[src if sending else dst] += 1
        return found

    def _none(self, wrong: npt.NDArray[np.bool_], message: str, ops: list[Transfer]) -> None:
        if wrong.any():
            shown = f"\n  in: {print_op(ops[0])}" if ops else ""
            raise ScheduleError(message.format(int(wrong.argmax())) + shown, where=f"schedule {self.s.name}")
