"""Groups of checks that misbehave, each in its way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from stanza_sim.base.errors import InputError
from stanza_sim.execute.selftest.outcome import Here, Skipped, require


def fine(here: Here) -> None:
    for name in here.names:
        with here.check(name) as said:
            said.detail = f"{name} is fine"


def mixed(here: Here) -> None:
    """One passes, one raises, one is skipped, one finds something wrong, one is bad input."""
    for name in here.names:
        with here.check(name):
            match name:
                case "raises":
                    raise ZeroDivisionError("by nothing")
                case "skipped":
                    raise Skipped("not here")
                case "wrong":
                    require(False, "one is two")
                case "input":
                    raise InputError("no such thing", hint="use another")


def hangs(here: Here) -> None:
    """The check `hang` never ends; it has said how far it was."""
    for name in here.names:
        with here.check(name):
            if name == "hang":
                here.note("at the third of five")
                time.sleep(1000)


def silent(here: Here) -> None:
    """Never begins."""
    time.sleep(1000)


def crashes(here: Here) -> None:
    """The check `crash` ends the process hard."""
    for name in here.names:
        with here.check(name):
            if name == "crash":
                sys.stderr.write(f"about to die in {sys.prefix}/lib\n")
                sys.stderr.flush()
                os.kill(os.getpid(), 11)


def nothing(here: Here) -> None:
    """Ends without a word."""


def garbage(here: Here) -> None:
    """Writes what is no line of a check, to stdout and where lines go."""
    sys.stdout.write('{"check": "garbage", "status": "failed"}\n\x00\xff')
    os.write(
        here.lines, b"\x00\xff no line\n[]\n3\n" + b'{"check": "garbage"}\n{"check": "another", "status": "passed"}\n'
    )
    with here.check("garbage"):
        pass


def children(here: Here) -> None:
    """Leaves a process behind, whose number is in the file `child`."""
    for name in here.names:
        with here.check(name):
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
            (here.folder / "child").write_text(str(child.pid))
            if name == "hang":
                time.sleep(1000)


def file(here: Here) -> None:
    """Keeps a file."""
    with here.check("file"):
        (here.folder / "kept.json").write_text("{}\n")


def interrupts(here: Here) -> None:
    """As if Ctrl-C were pressed, for the process that started this one, after the first check."""
    with here.check(here.names[0]):
        pass
    while not (here.folder / "checks.jsonl").exists():
        time.sleep(0.05)
    os.kill(os.getppid(), signal.SIGINT)
    time.sleep(1000)
