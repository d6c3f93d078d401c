"""What differs between a rank that trains and one that emulates training."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from stanza_sim.execute.rank.interfaces import Work
from stanza_sim.execute.rank.job import Array, Score
from stanza_sim.schedule import Schedule, Transfer


@dataclass(frozen=True, slots=True, kw_only=True)
class RankResult:
    """What a run has to show beside its times."""

    loss_sums: tuple[float, ...] = ()
    scores: tuple[Score, ...] = ()
    parameters: Mapping[str, Array] | None = None


class Role(Protocol):
    """What one rank does in a run: it trains, or emulates that."""

    @property
    def work(self) -> Work[Tensor]:
        """What the units of its program do."""
        ...

    def start_thread(self) -> None:
        """What every thread must do first."""
        ...

    def running(self) -> AbstractContextManager[bool]:
        """Run within; gives whether real-time scheduling was granted."""
        ...

    def stopped(self, done: int) -> bool:
        """After `done` iterations in all, ranks have stopped: whether they end. All call this, and hear the same."""
        ...

    def result(self) -> RankResult:
        """What came of it; every rank calls this after the run."""
        ...


class MessageSizes:
    """Bytes of the messages of a schedule, each computed once: what is asked for every message must be cheap."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._known: dict[tuple[str, int, int], int] = {}

    def __call__(self, op: Transfer, src: int, dst: int) -> int:
        """Size of the message of `op` from `src` to `dst`."""
        key = op.name, src, dst  # an op's own hash would cost more than all the rest
        size = self._known.get(key)
        if size is None:
            size = self._known[key] = self._schedule.message_bytes(op, src, dst)
        return size
