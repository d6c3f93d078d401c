"""When a rank lets go of gathered parameters: once the last pass ahead of the next all-gather has read them."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping

from stanza_sim.execute.train.flat import FlatBundle
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Collective, Compute, Keep, Schedule, ValueKind


class Gathered:
    """The passes of one rank that read each of the rank's all-gathers of parameters that are whole for a while.

    Legality puts all of them ahead of the next all-gather of the same bundle, in any iteration.
    """

    def __init__(self, schedule: Schedule, model: ModelProfile, rank: int, bundles: Mapping[str, FlatBundle]) -> None:
        self._lock = threading.Lock()
        self._read_by: dict[str, list[int]] = defaultdict(list)  # op -> all-gathers that it reads
        self._readers: list[int] = []  # of each all-gather
        self._bundle: list[FlatBundle] = []
        tensors = {b.name: {t.name for t in (*b.tensors, *b.tied)} for b in model.blocks}
        last: dict[str, int] = {}  # bundle -> its last all-gather so far
        for op in schedule.for_rank(rank):
            if isinstance(op, Collective) and op.value.kind is ValueKind.PARAM:
                if schedule.bundle(op.value.name).keep is Keep.SLICES:
                    last[op.value.name] = len(self._readers)
                    self._readers.append(0)
                    self._bundle.append(bundles[op.value.name])
            elif isinstance(op, Compute) and not op.phase.on_bundle:
                for name, gather in last.items():
                    if not tensors[op.target].isdisjoint(schedule.bundle(name).tensors):
                        self._read_by[op.name].append(gather)
                        self._readers[gather] += 1
        self._left = list(self._readers)

    def done_with(self, op: Compute) -> None:
        """`op` is over: let go of what no other pass reads before it is gathered again."""
        for gather in self._read_by.get(op.name, ()):
            with self._lock:
                self._left[gather] -= 1
                if over := not self._left[gather]:
                    self._left[gather] = self._readers[gather]
            if over:
                self._bundle[gather].let_parameters_go()
