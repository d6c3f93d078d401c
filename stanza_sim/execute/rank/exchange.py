"""Small talk between ranks outside of the timed part: objects, and meeting. On the default process group."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.distributed as dist

from stanza_sim.base.errors import RunError
from stanza_sim.execute.rank.wire import from_bytes, to_bytes

T = TypeVar("T")
MOST_NBYTES = 2**32


def send_object(value: object, dst: int) -> None:
    """Send data (see `wire`) to `dst`, which must call `receive_object`."""
    body = torch.frombuffer(bytearray(to_bytes(value)), dtype=torch.uint8)
    dist.send(torch.tensor([len(body)], dtype=torch.int64), dst)
    dist.send(body, dst)


def receive_object(src: int) -> object:
    """Return the data that `src` sends. Raises `RunError` for what is none."""
    size = torch.zeros(1, dtype=torch.int64)
    dist.recv(size, src)
    if not 0 < int(size) <= MOST_NBYTES:
        raise RunError(f"rank {src} announces {int(size)} bytes, which no rank says at once")
    body = torch.empty(int(size), dtype=torch.uint8)
    dist.recv(body, src)
    return from_bytes(body.numpy().tobytes())


def gather(value: T, rank: int, ranks: int) -> list[T] | None:
    """The values of ranks 0 to `ranks` - 1 in order at rank 0, None elsewhere."""
    if rank:
        send_object(value, 0)
        return None
    return [value, *(receive_object(r) for r in range(1, ranks))]  # type: ignore[list-item]


def share(value: T | None, rank: int, ranks: int) -> T:
    """Rank 0's value at every rank below `ranks`."""
    if rank:
        return receive_object(0)  # type: ignore[return-value]
    for r in range(1, ranks):
        send_object(value, r)
    return value  # type: ignore[return-value]


def gather_all(value: T, rank: int, ranks: int) -> list[T]:
    """The values of ranks 0 to `ranks` - 1 in order, at every one of them."""
    return share(gather(value, rank, ranks), rank, ranks)


def meet(rank: int, ranks: int) -> None:
    """Return when all ranks below `ranks` have come here."""
    word = torch.zeros(1)
    if rank:
        dist.send(word, 0)
        dist.recv(word, 0)
        return
    for r in range(1, ranks):
        dist.recv(word, r)
    for r in range(1, ranks):
        dist.send(word, r)
