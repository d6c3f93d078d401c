"""A run in segments. Between two of them all ranks have stopped; what they do then is in no time that is reported."""

from __future__ import annotations

from dataclasses import replace
from typing import Generic, TypeVar

from stanza_sim.execute.rank.clock import now
from stanza_sim.execute.rank.engine import Engine
from stanza_sim.execute.rank.interfaces import Work
from stanza_sim.execute.rank.job import Message
from stanza_sim.schedule import Collective, Compute, Transfer

Payload = TypeVar("Payload")


class From(Generic[Payload]):
    """`work`, of whose iterations `first` is the one that an engine calls 0."""

    def __init__(self, work: Work[Payload], first: int) -> None:
        self._work, self._first = work, first
        self.nbytes = work.nbytes

    def compute(self, op: Compute, iteration: int, ready_s: float) -> tuple[float, float]:
        """See `Work`, as all of these."""
        return self._work.compute(op, self._first + iteration, ready_s)

    def collective(self, op: Collective, iteration: int) -> None:
        """Carry out a collective."""
        self._work.collective(op, self._first + iteration)

    def outgoing(self, op: Transfer, iteration: int, dst: int) -> Payload:
        """What is sent to `dst`."""
        return self._work.outgoing(op, self._first + iteration, dst)

    def incoming(self, op: Transfer, iteration: int, src: int) -> Payload:
        """Where the message from `src` goes."""
        return self._work.incoming(op, self._first + iteration, src)

    def landed(self, op: Transfer, iteration: int, src: int) -> None:
        """What is left to do with a message."""
        self._work.landed(op, self._first + iteration, src)


class Record:
    """What the engines of one rank saw, one segment after the other, as of one run.

    Iterations are counted from the run's first, and times go on as if ranks had not stopped: what rank 0 says of how
    long they did is taken off at every rank alike, so that clocks stay as far apart as they are.
    """

    def __init__(self) -> None:
        self.spans: list[tuple[int, int, float, float]] = []
        self.sends: list[Message] = []
        self.receives: list[Message] = []
        self.iteration_end_s: list[float] = []
        self.segments: list[int] = []
        self._done = 0
        self._off_s = 0.0
        self._stopped_s: float | None = None

    def stopped_for_s(self) -> float:
        """How long ago this rank stopped; 0 if it has not run yet."""
        return 0.0 if self._stopped_s is None else now() - self._stopped_s

    def resume(self, stopped_s: float) -> None:
        """A segment begins, after a stop of so many seconds."""
        self._off_s += stopped_s
        self.segments.append(self._done)

    def stop(self, engine: Engine[Payload]) -> None:
        """A segment has ended, which `engine` ran."""
        self._stopped_s = now()
        first, off_s = self._done, self._off_s
        self.spans += [(unit, first + i, a - off_s, b - off_s) for unit, i, a, b in engine.spans]
        self.sends += [self._moved(m) for m in engine.sends]
        self.receives += [self._moved(m) for m in engine.receives]
        self.iteration_end_s += [end_s - off_s for end_s in engine.iteration_end_s]
        self._done += engine.iterations

    def _moved(self, message: Message) -> Message:
        if not self._done:
            return message
        return replace(
            message,
            iteration=self._done + message.iteration,
            posted_s=message.posted_s - self._off_s,
            arrived_s=message.arrived_s - self._off_s,
        )
