"""Processes: who owns a testbed, what runs inside its namespaces, and how that is ended."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from stanza_sim.base.errors import InputError, RunError

Ident = tuple[int, int]
"""Device and inode of a namespace: the same for its name and for every process in it."""
GRACE_S = 2.0
"""Time between SIGTERM and SIGKILL."""
_GIVE_UP_S = 10.0
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process, told from a later one with the same number by when it started (clock ticks since boot)."""

    pid: int
    started: int

    def alive(self) -> bool:
        """Return whether it still runs; one that has ended but was not waited for does not."""
        return _started(self.pid) == self.started


def this_process() -> Process:
    """Return the process that calls this."""
    return process_of(os.getpid())


def process_of(pid: int) -> Process:
    """Return the process that has the number `pid` now; one that is not there is never alive."""
    started = _started(pid)
    return Process(pid=pid, started=-1 if started is None else started)


def wait_for_end(process: Process) -> None:
    """Return when `process` has ended."""
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        if process.alive():
            select.select([handle], [], [])
    finally:
        os.close(handle)


def processes_inside(namespaces: Mapping[Ident, str]) -> dict[int, str]:
    """Return the number of each process that is in one of `namespaces`, and the name of that."""
    found = {}
    for entry in os.scandir(_PROC):
        if entry.name.isdigit() and (name := namespaces.get(_namespace_of(entry.name))) is not None:
            found[int(entry.name)] = name
    return found


def end_processes(namespaces: Mapping[Ident, str]) -> int:
    """End all processes inside `namespaces`, with SIGTERM and then SIGKILL; return how many there were.

    Raises `InputError` if this process is inside itself, and `RunError` if any does not end.
    """
    begin, seen = time.monotonic(), set[int]()
    while inside := processes_inside(namespaces):
        if os.getpid() in inside:
            raise InputError(
                "this command runs inside the testbed",
                where=inside[os.getpid()],
                hint="run it outside of the testbed's namespaces",
            )
        waited_s = time.monotonic() - begin
        if waited_s > GRACE_S + _GIVE_UP_S:
            raise RunError(f"processes in {', '.join(sorted(set(inside.values())))} do not end: {sorted(inside)}")
        for pid in inside:
            if waited_s > GRACE_S or pid not in seen:
                _signal_inside(pid, namespaces, signal.SIGKILL if waited_s > GRACE_S else signal.SIGTERM)
        seen |= set(inside)
        time.sleep(0.02)
    return len(seen)


def _signal_inside(pid: int, namespaces: Mapping[Ident, str], number: signal.Signals) -> None:
    """Signal a process, if it is inside; what has taken its number meanwhile is left alone."""
    with suppress(ProcessLookupError):
        handle = os.pidfd_open(pid)
        try:
            if _namespace_of(str(pid)) in namespaces:
                signal.pidfd_send_signal(handle, number)
        finally:
            os.close(handle)


def _namespace_of(pid: str) -> Ident:
    """Return the network namespace of a process; (0, 0), which is none, if it is gone or not ours to see."""
    try:
        found = os.stat(_PROC / pid / "ns" / "net")
    except OSError:
        return 0, 0
    return found.st_dev, found.st_ino


def _started(pid: int) -> int | None:
    """Return when a process started; None if there is none."""
    try:
        # The name of the program, in brackets, may contain anything; what follows the last bracket does not.
        fields = (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else int(fields[19])
