"""Processes of this machine that work for a command: deaf to Ctrl-C, gone when the command ends, however it does."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor
    from types import FrameType

PR_SET_PDEATHSIG = 1
LOOK_S = 0.5
"""How often a process looks whether its parent is still there."""
_PREFIX = "stanza-sim-"
_ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# ---- how a process begins, and where it is found -----------------------------------------------------------------


def own_command(module: str, *arguments: str) -> list[str]:
    """The command of a process that runs a module of this package. The current folder is not where it imports from."""
    return [sys.executable, "-P", "-m", module, *arguments]


def own_path(environment: Mapping[str, str]) -> str:
    """The PYTHONPATH of such a process: this package and what this process imports from, without the current folder.

    A file there may be called as a module of the standard library is. It stays if the user's own PYTHONPATH has it.
    """
    here = os.getcwd()
    stated = [os.path.abspath(p) for p in environment.get("PYTHONPATH", "").split(os.pathsep) if p]
    others = [p for p in sys.path if p and (os.path.abspath(p) != here or here in stated)]
    return os.pathsep.join(dict.fromkeys([str(Path(__file__).parents[2]), *others]))


def end_with_parent(parent: int) -> None:
    """Let this process end when the process `parent`, which started it, has ended.

    Linux does it by itself, also in the midst of compiled code; elsewhere a thread looks.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent").start()


@contextmanager
def ending_by_signal() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end what is within by `SystemExit`, so that it cleans up, if nothing handles them yet."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    with handling({n: end for n in _ENDING if signal.getsignal(n) is signal.SIG_DFL}):
        yield


@contextmanager
def handling(handlers: Mapping[int, Callable[[int, FrameType | None], None]]) -> Iterator[None]:
    """Handle signals within; outside the main thread, where Python never handles any, change nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put off SIGINT, SIGTERM and SIGHUP until what is within is done."""
    came: list[int] = []

    def keep(number: int, frame: FrameType | None) -> None:
        came.append(number)

    numbers = [signal.SIGINT, *_ENDING]
    try:
        with handling({n: keep for n in numbers if signal.getsignal(n) not in (signal.SIG_IGN, None)}):
            yield
    finally:
        for number in came[:1]:
            signal.raise_signal(number)


# ---- folders of theirs ---------------------------------------------------------------------------------------------


def scratch_folder() -> Path:
    """A new folder that only this user can look into, to be removed by whoever asked for it.

    First those are removed that processes left which were killed.
    """
    base = Path(tempfile.gettempdir())
    with suppress(OSError):
        for folder in base.glob(f"{_PREFIX}*"):
            found = re.fullmatch(rf"{_PREFIX}{_numbering()}-([0-9]+)-.*", folder.name)
            if found and _is_left(folder, int(found[1])):
                shutil.rmtree(folder, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{_numbering()}-{os.getpid()}-"))


@cache
def _numbering() -> str:
    """Tells apart machines, containers and times since a start, in each of which a number means another process."""
    parts = [platform.node()]
    with suppress(OSError):
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")]
    return sha256("".join(parts).encode()).hexdigest()[:8]


def _is_left(folder: Path, owner: int) -> bool:
    """Whether a folder is this user's and the process that made it has ended."""
    if not hasattr(os, "getuid") or folder.is_symlink() or folder.stat().st_uid != os.getuid():
        return False
    try:
        os.kill(owner, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False


# ---- pools ---------------------------------------------------------------------------------------------------------


def _begin(parent: int, prepare: Callable[..., None] | None, arguments: Sequence[object]) -> None:
    """Prepare a process; Ctrl-C is for the one that the user started, which then ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in _ENDING:
        signal.signal(number, signal.SIG_DFL)
    end_with_parent(parent)
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
        initargs=(os.getpid(), prepare, arguments),
    )
    try:
        with undisturbed():  # a process that is told what it is while its parent is ended would end with a traceback
            for _ in range(count):
                pool.submit(cores)
        yield pool
    finally:
        for child in set(multiprocessing.active_children()) - before:
            child.kill()
        pool.shutdown(cancel_futures=True)  # waits for its thread, which must not close what the exit still uses
