"""How much of what is whole for a while (see `Keep`) a rank may hold at one time: parameters and gradients of bundles.

Passes of a rank come one after another. What is gathered may be there from the pass behind the last one that its
all-gather waits for to the last one that reads it; a gradient from the first backward pass that adds to it until a pass
that waits for its reduce-scatter, since that may be late. A collective waits for what it names, for what that waits
for, and for those before it in its group. It is the most that the dependencies allow, whatever moves how fast.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import accumulate

from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Bundle, Collective, CollectiveKind, Compute, Keep, Op, Phase, Schedule, ValueKind
from stanza_sim.schedule.ops import dependency

MAKE_GRADIENTS = (Phase.BACKWARD, Phase.BACKWARD_WEIGHT)
SCATTERS = CollectiveKind.REDUCE_SCATTER


def whole_at(schedule: Schedule, model: ModelProfile, rank: int) -> dict[str, tuple[int, int]]:
    """For each pass of `rank`, bytes of parameters and of gradients that may be whole in it and are not always so.

    Empty where everything that is whole is so always.
    """
    kept = [b for b in schedule.bundles if b.keep is not Keep.ALL and rank in schedule.owners(b)]
    if not kept:
        return {}
    waits = _Waits(schedule, rank)
    parameters, gradients = [0] * (waits.count + 1), [0] * (waits.count + 1)  # more, or less, than in the pass before
    for bundle in kept:
        users = {b.name for b in model.blocks if not {t.name for t in (*b.tensors, *b.tied)}.isdisjoint(bundle.tensors)}
        nbytes = schedule.pieces(bundle) * -(-bundle.numel // schedule.pieces(bundle)) * schedule.itemsize
        for changes, spans in ((parameters, waits.gathered(bundle, users)), (gradients, waits.added(bundle, users))):
            for first, behind in spans:
                changes[first] += nbytes
                changes[behind] -= nbytes
    return dict(zip(waits.number, zip(accumulate(parameters), accumulate(gradients), strict=True), strict=False))


class _Waits:
    """The passes of a rank, numbered, and what its collectives wait for."""

    def __init__(self, schedule: Schedule, rank: int) -> None:
        self.ops = schedule.for_rank(rank)
        self.number: dict[str, int] = {}  # pass -> its number
        self.behind: dict[str, int] = {}  # op -> the first pass that may run beside it: those before it are over
        self.until: dict[str, int] = {}  # op -> the first pass that waits for it
        groups: dict[str, list[str]] = defaultdict(list)
        needs: dict[str, list[str]] = {}
        for op in self.ops:
            needs[op.name] = [name for name, _ in map(dependency, op.after)]
            if isinstance(op, Collective):
                needs[op.name] += groups[op.ranks][-1:]
                groups[op.ranks].append(op.name)
            if _is_pass(op):
                self.number[op.name] = len(self.number)
            known = (self.number[n] + 1 if n in self.number else self.behind.get(n, 0) for n in needs[op.name])
            self.behind[op.name] = max(known, default=0)
        self.count = len(self.number)
        for op in reversed(self.ops):
            at = self.number.get(op.name, self.until.get(op.name, self.count))
            for name in needs[op.name]:
                if name not in self.number:
                    self.until[name] = min(at, self.until.get(name, self.count))

    def gathered(self, bundle: Bundle, users: set[str]) -> Iterator[tuple[int, int]]:
        """For each all-gather, the first pass during which the whole may be there, and the one behind the last."""
        if bundle.keep is not Keep.SLICES:
            return
        first = last = -1
        for op in self.ops:
            if isinstance(op, Collective) and (op.value.kind, op.value.name) == (ValueKind.PARAM, bundle.name):
                if last >= 0:
                    yield first, last + 1
                first, last = self.behind[op.name], -1
            elif op.name in self.number and isinstance(op, Compute) and op.target in users:
                last = self.number[op.name]
        if last >= 0:
            yield first, last + 1

    def added(self, bundle: Bundle, users: set[str]) -> Iterator[tuple[int, int]]:
        """The first pass that adds to the gradient, and the first that waits until it has been summed."""
        first = -1
        for op in self.ops:
            if isinstance(op, Compute) and op.phase in MAKE_GRADIENTS and op.target in users and first < 0:
                first = self.number[op.name]
            elif isinstance(op, Collective) and (op.kind, op.value.name) == (SCATTERS, bundle.name) and first >= 0:
                yield first, self.until.get(op.name, self.count)
                first = -1


def _is_pass(op: Op) -> bool:
    return isinstance(op, Compute) and not op.phase.on_bundle
