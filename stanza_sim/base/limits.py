"""Limits on what a piece of work may take: an instant at which it ends wherever it is, and memory."""

from __future__ import annotations

import ctypes
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

from stanza_sim.base.errors import InputError
from stanza_sim.base.units import format_bytes

COMPILED_NBYTES = 250_000_000
"""What the compiled engine takes once it is loaded (measured: 125 MB from its cache, 230 MB where it was compiled)."""


LOOK_AGAIN_S = 0.02


class TimeIsUp(BaseException):
    """The time for a piece of work is over. It is no `Exception`, so that no handler on the way takes it for one."""


@contextmanager
def time_limit(deadline_s: float | None) -> Iterator[None]:
    """Raise `TimeIsUp` within the block as soon as the monotonic clock shows `deadline_s`; None sets no limit.

    It is raised in the thread that entered the block, between two instructions of Python wherever these are, so code
    need not ask for the time. A call of compiled code returns first, and an import or a compilation is completed, since
    half of one could not be used afterwards.
    """
    if deadline_s is None:
        yield
        return
    left_s = deadline_s - monotonic()
    if left_s <= 0:
        raise TimeIsUp
    thread, lock, over = threading.get_ident(), threading.Lock(), False

    def end() -> None:
        while True:
            with lock:
                if over or not _needs_completion(thread):
                    if not over:
                        _raise_in(thread, TimeIsUp)
                    return
            sleep(LOOK_AGAIN_S)

    timer = threading.Timer(left_s, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:  # should it be raised in here, it leaves this block, and is raised no second time
        timer.cancel()
        with lock:
            over = True
        _raise_in(thread, None)  # what was set and has not been raised yet is not to be raised outside


def _needs_completion(thread: int) -> bool:
    """Whether a thread imports or compiles something at this moment."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        if str(frame.f_globals.get("__name__")).startswith(("importlib._bootstrap", "numba.")):
            return True
        frame = frame.f_back
    return False


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    made = ctypes.py_object() if error is None else ctypes.py_object(error)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), made)


@contextmanager
def memory_limit(nbytes: int | None) -> Iterator[None]:
    """Within the block this process may have no more than `nbytes` of data: what goes beyond raises `MemoryError`.

    A stricter limit stays. It does nothing where the system knows no such limit (macOS takes it and ignores it).
    """
    try:
        import resource
    except ImportError:  # as on Windows
        nbytes = None
    if nbytes is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    known = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min([nbytes, *known]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def own_memory() -> int:
    """Bytes of data that this process has now, as `memory_limit` counts them; 0 where the system does not say."""
    return _kilobytes(Path("/proc/self/status"), "VmData")


def free_memory() -> int | None:
    """Bytes that this machine, or the container around this process, can still give; None where nothing says so."""
    known = [_kilobytes(Path("/proc/meminfo"), "MemAvailable")]
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        known.append(max(1, limit - int(Path("/sys/fs/cgroup/memory.current").read_text())))
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        pass
    return min((nbytes for nbytes in known if nbytes), default=None)


def _kilobytes(path: Path, key: str) -> int:
    try:
        found = re.search(rf"^{key}:\s+(\d+) kB", path.read_text(), re.MULTILINE)
    except OSError:
        return 0
    return 1024 * int(found[1]) if found else 0


def check_memory(nbytes: int, where: str) -> None:
    """Raise `InputError` for a limit of memory with which a process could not even begin."""
    least = own_memory() + COMPILED_NBYTES
    if nbytes < least:
        what = f"{format_bytes(nbytes)} is less than the program itself takes, {format_bytes(least)}"
        raise InputError(what, where=where, hint="give each process more, such as 1GB")
