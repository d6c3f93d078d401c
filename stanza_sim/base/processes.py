"""Processes of this machine that work for a command: started anew, deaf to Ctrl-C, gone when the command ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _begin(prepare: Callable[..., None] | None, arguments: tuple[object, ...]) -> None:
    """Prepare a process; Ctrl-C is for the one that the user started, which then ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if prepare is not None:
        prepare(*arguments)


@contextmanager
def processes(
    count: int, prepare: Callable[..., None] | None = None, arguments: tuple[object, ...] = ()
) -> Iterator[ProcessPoolExecutor]:
    """An executor of `count` processes, each of which calls `prepare(*arguments)` first.

    Where the block ends, the processes are ended, and what is still under way is given up.
    """
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor  # as slow to import as all else that builds a cluster

    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        max_workers=count,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(prepare, arguments),
    )
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
