"""What the engine of a rank asks for: the work of its units, and what moves messages. No torch, and no sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from stanza_sim.execute.rank.job import Score
from stanza_sim.schedule import Collective, Compute, Transfer

In = TypeVar("In", contravariant=True)
Out = TypeVar("Out", covariant=True)


class Beat(Protocol):
    """Called from time to time while a rank makes progress, to show that it does."""

    def __call__(self, ended: int = 0, score: Score | None = None, /) -> None:
        """Take how many iterations have ended, where there are any, and what the held-out samples say then."""
        ...


class Handle(Protocol):
    """A message under way. `wait` must be called exactly once: waiting twice on a gloo message never returns."""

    def wait(self) -> object:
        """Return when the message has been sent, or received."""
        ...


class Transport(Protocol[In]):
    """Moves payloads between ranks. Messages of a pair of ranks and a channel arrive in the order of their posting."""

    def send(self, tensor: In, dst: int, channel: str) -> Handle:
        """Post a message to `dst`."""
        ...

    def receive(self, tensor: In, src: int, channel: str) -> Handle:
        """Post the receipt of a message from `src`."""
        ...

    def together(
        self, sends: Sequence[tuple[In, int]], receives: Sequence[tuple[In, int]], channel: str
    ) -> list[Handle]:
        """Post sends (payload, destination) and receives (payload, source) as one group; wait for every handle."""
        ...


class TaggedTransport(Protocol[In]):
    """Moves the messages of channels with credit, whose order only the sender knows. An op's name is its tag."""

    def send_tagged(self, tensor: In, dst: int, op: Transfer) -> Handle:
        """Post the message of `op` to `dst`, and before it one that carries its tag."""
        ...

    def receive_tagged(self, tensor: In, src: int, op: Transfer) -> Handle:
        """Post the receipt of the message of `op` from `src`, which may be sent before or after others."""
        ...

    def next_tag(self, src: int, channel: str) -> str:
        """Wait until `src` says which message it sends next on `channel`, and return the name of that message's op."""
        ...


class AnnouncedTransport(Protocol[In]):
    """Moves messages each of which is announced to its receiver first, and received in the order of announcements.

    So any order of posting will do, of all channels of a pair, with credit or without.
    """

    def send_tagged(self, tensor: In, dst: int, op: Transfer) -> Handle:
        """Announce the message of `op` to `dst`, and post it."""
        ...

    def next_announced(self, src: int) -> str:
        """Wait until `src` announces its next message to this rank, and return the name of that message's op."""
        ...

    def receive_tagged(self, tensor: In, src: int, op: Transfer) -> Handle:
        """Post the receipt of the message of `op`, which `src` has announced last."""
        ...


class Work(Protocol[Out]):
    """What the units of a rank do."""

    def compute(self, op: Compute, iteration: int, ready_s: float) -> tuple[float, float]:
        """Carry out a computation that could start at `ready_s`; return when it began and when it ended."""
        ...

    def collective(self, op: Collective, iteration: int) -> None:
        """Carry out a collective."""
        ...

    def outgoing(self, op: Transfer, iteration: int, dst: int) -> Out:
        """Return what is sent to `dst`."""
        ...

    def incoming(self, op: Transfer, iteration: int, src: int) -> Out:
        """Return where the message from `src` goes."""
        ...

    def landed(self, op: Transfer, iteration: int, src: int) -> None:
        """Do what is left to do with the message from `src`, now that it is there, before it counts as arrived."""
        ...

    def nbytes(self, op: Transfer, src: int, dst: int) -> int:
        """Return the size of a message in bytes; one of 0 bytes is not sent at all."""
        ...
