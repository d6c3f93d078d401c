"""Processes of this machine that work for a command: deaf to Ctrl-C, gone when the command ends."""

from __future__ import annotations

import os
import signal
import sys
import threading
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


def can_fork() -> bool:
    """Whether copies of this process would work: nothing else runs in it, and no torch with threads of its own.

    On macOS they would not: system libraries do not survive a fork.
    """
    able = hasattr(os, "fork") and sys.platform != "darwin"
    return able and threading.active_count() == 1 and "torch" not in sys.modules


@contextmanager
def processes(
    count: int,
    prepare: Callable[..., None] | None = None,
    arguments: tuple[object, ...] = (),
    *,
    forked: bool = False,
) -> Iterator[ProcessPoolExecutor]:
    """An executor of `count` processes, each of which calls `prepare(*arguments)` first.

    They are started anew or, if `forked`, copies of this one, which are there at once; see `can_fork`. Where the block
    ends, the processes are ended, and what is still under way is given up.
    """
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor  # as slow to import as all else that builds a cluster

    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        max_workers=count,
        mp_context=multiprocessing.get_context("fork" if forked else "spawn"),
        initializer=_begin,
        initargs=(prepare, arguments),
    )
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
