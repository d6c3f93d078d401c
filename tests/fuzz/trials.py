"""Trials: a good file is mutated, and a command reads it."""

from __future__ import annotations

import contextlib
import io
import os
import random
import resource
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from stanza_sim.base.processes import processes
from stanza_sim.base.telling import CONTROL
from tests.fuzz.mutations import mutated
from tests.fuzz.seeds import Target, targets

LIMIT_S = 5.0
WAITING_S = 90.0
"""What has not answered by then waits for something."""
LIMIT_MB = 400
"""What a trial may take beside what its process has: a new one has 100 MB, and later ones what others imported."""
AT_A_TIME, PARTS = 50, 10
"""How many trials a process runs in one folder, and for how many folders it lives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What went wrong in a trial."""

    number: int
    kind: str
    target: str
    command: tuple[str, ...]
    content: bytes
    said: str


class TooLong(BaseException):
    """A trial took too long."""


def trial(number: int, seed: int, target: Target, name: str) -> tuple[int, Fault | None]:
    """Run trial `number` in the current folder; the exit status, and what was wrong."""
    draw = random.Random(f"{seed}:{number}")
    content, command = mutated(target.content, draw), draw.choice(target.commands)
    path = Path(target.file)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    out, err = io.StringIO(), io.StringIO()
    status, kind, begin = 0, "", time.process_time()
    try:
        with _limited(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = _run(command)
    except TooLong:
        kind = "time"
    except BaseException:  # noqa: BLE001 - that is what is looked for
        kind, said = "traceback", traceback.format_exc()
        err.write(said)
    finally:
        path.write_bytes(target.content)
    said = err.getvalue()
    if not kind and time.process_time() - begin > LIMIT_S:
        kind = "time"
    if not kind and status not in (0, 1, 2):
        kind = f"status {status}"
    if not kind and CONTROL.search(out.getvalue() + said):
        kind = "control character"
    if not kind and status and not any(line.startswith("error:") for line in said.splitlines()):
        kind = "no message"
    if not kind and status == 2 and not any(name in said for name in (path.stem, "experiment.yaml")):
        kind = "the file is not named"
    fault = Fault(number=number, kind=kind, target=name, command=command, content=content, said=said) if kind else None
    return status, fault


def _run(command: tuple[str, ...]) -> int:
    from stanza_sim.cli.app import app

    try:
        app(list(command))
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Raise `TooLong` after three times the limit; what takes longer than the limit is a fault anyway."""

    def end(number: int, frame: object) -> None:
        raise TooLong

    timers = ((signal.SIGPROF, signal.ITIMER_PROF, 3 * LIMIT_S), (signal.SIGALRM, signal.ITIMER_REAL, WAITING_S))
    before = [signal.signal(number, end) for number, _, _ in timers]
    had, most = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (_data_nbytes() + LIMIT_MB * 10**6, most))
    for _, timer, seconds in timers:
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (had, most))
        for (number, timer, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


def _data_nbytes() -> int:
    """What counts against the limit of memory."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmData:")[2].split()[0]) * 1024


def trials(numbers: range, seed: int) -> tuple[Counter[str], list[Fault]]:
    """Run these trials in a folder of their own."""
    statuses: Counter[str] = Counter()
    faults: list[Fault] = []
    with tempfile.TemporaryDirectory() as scratch, patch.dict(os.environ, {"XDG_CACHE_HOME": scratch}):
        folder = Path(scratch)
        known = targets(folder)
        names = sorted(known)
        with contextlib.chdir(folder):
            for number in numbers:
                name = names[number % len(names)]
                status, fault = trial(number, seed, known[name], name)
                statuses[f"status {status}"] += 1
                if fault is not None:
                    faults.append(fault)
    return statuses, faults


def fuzz(
    count: int, seed: int, jobs: int, tell: Callable[[int, int], None] = lambda done, faults: None
) -> tuple[Counter[str], list[Fault]]:
    """Run `count` trials in `jobs` processes; `tell` is told from time to time how many are done, and faults so far."""
    statuses: Counter[str] = Counter()
    faults: list[Fault] = []
    parts = [range(first, min(first + AT_A_TIME, count)) for first in range(0, count, AT_A_TIME)]
    # Processes are renewed from time to time: what one trial leaves behind is no fault of the next. (Not by
    # `max_tasks_per_child`, with which Python 3.11 may wait for ever; its issue 115634.)
    for first in range(0, len(parts), PARTS * jobs):
        some = parts[first : first + PARTS * jobs]
        with processes(jobs) as pool:
            for found, wrong in pool.map(trials, some, [seed] * len(some)):
                statuses += found
                faults += wrong
        tell(statuses.total(), len(faults))
    return statuses, faults
