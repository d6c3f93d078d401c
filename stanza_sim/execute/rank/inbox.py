"""How a thread of the engine is told what to do."""

from __future__ import annotations

from queue import SimpleQueue
from typing import Generic, TypeVar

from stanza_sim.execute.rank.interfaces import Handle
from stanza_sim.schedule.progress import Key

Told = TypeVar("Told")


class Stopped(Exception):
    """The run is over or was given up: leave the thread."""


class Inbox(Generic[Told]):
    """What a thread is told, in order. `None` ends the thread."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Told | None] = SimpleQueue()

    def put(self, told: Told | None) -> None:
        """Tell the thread."""
        self._queue.put(told)

    def get(self) -> Told:
        """Wait for what comes next; raises `Stopped`."""
        told = self._queue.get()
        if told is None:
            raise Stopped
        return told


class _Nothing:
    """The handle of no message."""

    def wait(self) -> None:
        """Return."""


POST: tuple[Handle, Key] = (_Nothing(), (0, -1))
"""In place of a message that was posted: there are others to post."""
