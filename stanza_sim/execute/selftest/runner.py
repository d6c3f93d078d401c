"""Carrying out groups of checks, one process at a time: a limit for each check, and a line of JSON flushed for each.

A check that hangs is ended with all that its process has started; so is what a check leaves behind. Those behind it in
its group then get a new process.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from stanza_sim.base.processes import own_command, own_path
from stanza_sim.execute.selftest.outcome import Finding, Group, Status

LOOK_S = 0.1
"""How often the process of a check is looked at."""
START_S = 60.0
"""How much longer the first check of a process may take, which imports torch and starts ranks."""
LOG_LINES, LAST_BYTES = 200, 65_536
"""How much is kept of what the process of a failed check has written."""
UNFINISHED = "no time: "
"""How the detail of a check begins that the budget left no time for."""
BUDGET_SPENT = f"{UNFINISHED}it was ended when the budget was spent"

Tell = Callable[[Finding], None]


@dataclass(slots=True)
class Runner:
    """Carries out groups and keeps what was found.

    `folder` is where `checks.jsonl` and files of the checks go, and what failed checks wrote, as `logs/CHECK.txt`. No
    check is begun that the rest of `budget_s` is too short for. `gpu` is None where checks that need a GPU are to be
    carried out, else why they are not. `environment` is added to that of the processes.
    """

    folder: Path
    budget_s: float
    gpu: str | None
    tell: Tell = lambda finding: None
    environment: Mapping[str, str] = field(default_factory=dict)
    found: list[Finding] = field(default_factory=list)
    began_s: float = field(default_factory=time.monotonic)

    def run(self, groups: Sequence[Group]) -> list[Finding]:
        """Carry out `groups` one after the other; what was found, in their order."""
        for group in groups:
            if group.gpu and self.gpu is not None:
                for name in group.names:
                    self._add(name, Status.SKIPPED, 0.0, self.gpu)
                continue
            left = list(group.names)
            while left:
                left_s = self.budget_s - (time.monotonic() - self.began_s)
                if left_s < group.needs_s:
                    for name in left:
                        rest = f"{UNFINISHED}{max(left_s, 0):.0f} s of the budget are left, it takes about "
                        self._add(name, Status.SKIPPED, 0.0, f"{rest}{group.needs_s:.0f} s")
                    break
                told = _Process(self, group, tuple(left)).told()
                left = [name for name in left if name not in told]
        return self.found

    def _add(self, name: str, status: Status, seconds: float, detail: str) -> None:
        finding = Finding(check=name, status=status, seconds=seconds, detail=detail)
        self.found.append(finding)
        with (self.folder / "checks.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(finding.as_json()) + "\n")
        self.tell(finding)

    @property
    def unfinished(self) -> bool:
        """Whether the budget left no time for a check."""
        return any(f.status is Status.SKIPPED and f.detail.startswith(UNFINISHED) for f in self.found)

    @property
    def failed(self) -> bool:
        """Whether a check failed."""
        return any(f.status is Status.FAILED for f in self.found)


class _Process:
    """One process of a group, from its start until it has ended or been ended."""

    def __init__(self, runner: Runner, group: Group, names: tuple[str, ...]) -> None:
        self._runner, self._group, self._names = runner, group, names
        self._told: set[str] = set()
        self._doing: str | None = None
        self._note = ""
        self._heard = False
        self._since_s = self._clock_s = time.monotonic()
        self._rest = b""

    def told(self) -> set[str]:
        """Start it and take down what it says; returns the checks that have an outcome."""
        reading, writing = os.pipe()
        with tempfile.TemporaryFile() as log:
            try:
                process = self._start(writing, log.fileno())
            finally:
                os.close(writing)
            try:
                why = self._follow(process, reading)
            finally:
                _end(process)
                os.close(reading)
            if why is not None:
                spent = why is BUDGET_SPENT
                self._blame(why, log.fileno(), Status.SKIPPED if spent else Status.FAILED)
            elif len(self._told) < len(self._names):
                self._blame(f"its process {_how(process.returncode)}", log.fileno(), Status.FAILED)
            self._keep(log.fileno())
        return self._told

    def _start(self, writing: int, log: int) -> subprocess.Popen[bytes]:
        group, runner = self._group, self._runner
        environment = {
            **os.environ,
            "PYTHONPATH": own_path(os.environ),
            "PYTHONWARNINGS": "ignore",
            **runner.environment,
        }
        what = [str(writing), str(os.getpid()), group.function, str(runner.folder), str(group.limit_s), *self._names]
        return subprocess.Popen(
            own_command("stanza_sim.execute.selftest.one", *what),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[writing],
            env=environment,
            start_new_session=True,
        )

    def _follow(self, process: subprocess.Popen[bytes], reading: int) -> str | None:
        """Take lines until the process has ended; why it has to be ended, or None."""
        while True:
            ended = _has_ended(process)
            ready, _, _ = select.select([reading], [], [], 0.0 if ended else LOOK_S)
            chunk = os.read(reading, 65_536) if ready else b""
            if chunk:
                self._hear(chunk)
            elif ended:
                return None
            elif ready:  # it has closed its end, and goes on
                time.sleep(LOOK_S)
            limit_s = self._group.limit_s + (0.0 if self._heard else START_S)
            if time.monotonic() - self._clock_s > limit_s:
                return f"took longer than {limit_s:.0f} s and was ended"
            if time.monotonic() - self._runner.began_s > self._runner.budget_s:
                return BUDGET_SPENT

    def _hear(self, chunk: bytes) -> None:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            try:
                said = json.loads(line)
                if "begin" in said:
                    self._doing, self._note, self._heard = str(said["begin"]), "", True
                    self._clock_s = time.monotonic()
                elif "note" in said:
                    self._note = str(said["note"])
                elif said["check"] in self._names and said["check"] not in self._told:
                    self._tell(str(said["check"]), Status(said["status"]), str(said["detail"]))
            except (ValueError, KeyError, TypeError):
                self._note = f"said what is no line of a check: {line[:60]!r}"

    def _tell(self, name: str, status: Status, detail: str) -> None:
        now = time.monotonic()
        self._told.add(name)
        self._runner._add(name, status, now - self._since_s, detail)
        self._since_s = self._clock_s = now
        self._doing, self._note = None, ""

    def _blame(self, why: str, log: int, status: Status) -> None:
        """Give the check that was under way its outcome; all that are left, where the process never began one."""
        last = self._note or next((line for line in reversed(_lines(log)) if line.strip()), "")
        detail = f"{why}; last: {tidy(last.strip())}" if last else why
        began = self._doing is not None and self._doing not in self._told
        left = [n for n in self._names if n not in self._told]
        for name in [str(self._doing)] if began else left if not self._told else left[:1]:
            self._tell(name, status, detail)

    def _keep(self, log: int) -> None:
        """Keep what it wrote, where one of its checks failed."""
        failed = [f for f in self._runner.found if f.check in self._told and f.status is Status.FAILED]
        lines = _lines(log)[-LOG_LINES:]
        if failed and lines:
            folder = self._runner.folder / "logs"
            folder.mkdir(exist_ok=True)
            name = failed[0].check.replace(":", "-")
            (folder / f"{name}.txt").write_text("".join(tidy(line) + "\n" for line in lines), encoding="utf-8")


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether it has ended; its number stays taken until `_end`, so that its group cannot be another's."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process with all that it has started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _how(status: int | None) -> str:
    return f"was ended by signal {-status}" if status is not None and status < 0 else f"ended with status {status}"


def _lines(log: int) -> list[str]:
    """The last lines that it wrote."""
    size = os.fstat(log).st_size
    text = os.pread(log, LAST_BYTES, max(size - LAST_BYTES, 0))
    return text.decode("utf-8", errors="replace").splitlines()


def tidy(text: str) -> str:
    """A line without what is private of this machine: the home folder, and where Python is."""
    for path, name in ((sys.prefix, "<python>"), (str(Path.home()), "~")):
        if len(path) > 1:
            text = text.replace(path, name)
    return text
