"""Who of the processes that a test started listens where other machines reach it; only Linux says it."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stanza_sim.base.listening import is_loopback, listening

LOOK_S = 0.2
LAUNCHER = "torch.distributed.run"
"""PyTorch's own launcher, whose meeting point is on all interfaces."""


def open_to_others(processes: Iterable[int]) -> set[str]:
    """What listens elsewhere than on loopback: address and command."""
    found = set()
    for pid in processes:
        words = ""
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        if LAUNCHER not in words:
            found |= {f"{address}: {words[:120]}" for address in listening(pid) if not is_loopback(address)}
    return found


def family(pid: int) -> Iterator[int]:
    """A process and all that it has started, and so on."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in children.read_text().split():
                yield from family(int(child))


@contextmanager
def watched(pid: int) -> Iterator[set[str]]:
    """What of `family(pid)` is open to others while the block lasts."""
    found: set[str] = set()
    done = threading.Event()

    def look() -> None:
        while not done.wait(LOOK_S):
            found.update(open_to_others(family(pid)))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield found
    finally:
        done.set()
        looking.join()
