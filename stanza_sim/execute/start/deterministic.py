"""A task that computes bitwise alike each time. No torch until it is carried out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from stanza_sim.execute.rank.interfaces import Beat
from stanza_sim.execute.start.protocol import Task

if TYPE_CHECKING:
    from stanza_sim.execute.rank.context import Context

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Deterministic(Generic[T]):
    """`task`, with what it computes bitwise equal each time; see `stanza_sim.execute.rank.deterministic`."""

    task: Task[T]

    def __call__(self, context: Context, beat: Beat) -> T:
        """What the task returns; raises `RunError` for an operation without such a form."""
        from stanza_sim.execute.rank.deterministic import deterministically

        with deterministically(True):
            return self.task(context, beat)
