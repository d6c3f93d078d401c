"""What a rank does, told to PyTorch's profiler under the printed forms of its ops, by which all traces join.

Where no profiler is on, a mark takes 0.4 us. The threads of a rank are seen by a profiler of all threads.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Generic, TypeVar

import torch

from stanza_sim.execute.rank.interfaces import Work
from stanza_sim.schedule import Collective, Compute, RankProgram, Transfer
from stanza_sim.schedule.printing import print_op

Payload = TypeVar("Payload")

record_function: Callable[[str], AbstractContextManager[object]] = getattr(
    torch._C._profiler, "_RecordFunctionFast", torch.profiler.record_function
)
"""The fast form, which has no public name, asks first whether anything is recorded; the other takes 7 us either way."""


class Marked(Generic[Payload]):
    """The `work` of a rank, every part of it under the name of its op."""

    def __init__(self, work: Work[Payload], program: RankProgram) -> None:
        self._work = work
        self._names = {u.op.name: print_op(u.op) for u in program.units}

    def nbytes(self, op: Transfer, src: int, dst: int) -> int:
        """See `Work`."""
        return self._work.nbytes(op, src, dst)

    def compute(self, op: Compute, iteration: int, ready_s: float) -> tuple[float, float]:
        """See `Work`."""
        with record_function(self._names[op.name]):
            return self._work.compute(op, iteration, ready_s)

    def collective(self, op: Collective, iteration: int) -> None:
        """See `Work`."""
        with record_function(self._names[op.name]):
            self._work.collective(op, iteration)

    def outgoing(self, op: Transfer, iteration: int, dst: int) -> Payload:
        """See `Work`."""
        with record_function(self._names[op.name]):
            return self._work.outgoing(op, iteration, dst)

    def incoming(self, op: Transfer, iteration: int, src: int) -> Payload:
        """See `Work`."""
        return self._work.incoming(op, iteration, src)

    def landed(self, op: Transfer, iteration: int, src: int) -> None:
        """See `Work`."""
        with record_function(self._names[op.name]):
            self._work.landed(op, iteration, src)
