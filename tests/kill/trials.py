"""Trials: a command is ended at a random instant, and what it leaves is counted."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.listeners import LOOK_S, open_to_others

ROOT = Path(__file__).parents[2]
MARK = "STANZA_KILL_TRIAL"
GONE_WITHIN_S = 5.0
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
STATUS = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}
SMALL = ("--set", "models=[alexnet]")
TRAINED = ("--set", "training.iterations=200", "--set", "training.warmup=2")
COMMANDS: tuple[tuple[tuple[str, ...], float], ...] = (
    (("run", "ec2_v100", "-o", "out", "--jobs", "2"), 4.0),
    (("sweep", "ec2_v100", *SMALL, "--vary", "nodes=2..30", "-o", "points.csv", "--jobs", "2"), 10.0),
    (("plan", "ec2_v100", *SMALL, "-o", "plan", "--jobs", "2"), 15.0),
    (("run", "laptop", "--execute", *TRAINED, "-o", "out"), 25.0),
    (("run", "laptop", "--execute", "--compute", "emulated", "-o", "out"), 15.0),
    (("calibrate", "laptop", "-o", "network.json"), 15.0),
    (("show", "cluster", "ec2-p3-10", "--picture", "cluster.png"), 3.0),
    (("selftest", "-o", "tests"), 15.0),
)
"""Commands, and how long they may run before the signal comes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What a trial left behind that it should not have."""

    number: int
    command: tuple[str, ...]
    number_of_signal: int
    after_s: float
    faults: tuple[str, ...]


def trial(number: int, seed: int, folder: Path, *, hurry: float = 1.0) -> Left:
    """Run trial `number` in `folder`, which is empty; the signal comes within `hurry` times the usual time."""
    draw = random.Random(f"{seed}:{number}")
    command, most_s = COMMANDS[number % len(COMMANDS)]
    ended_by, after_s = draw.choice(SIGNALS), draw.uniform(0.0, hurry * most_s)
    mark = f"{os.getpid()}-{number}"
    scratch, work = folder / "tmp", folder / "work"
    for made in (scratch, work):
        made.mkdir()
    environment = {
        **os.environ,
        MARK: mark,
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(scratch),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache" / "torch"),  # a cache of torch's own, which it keeps
    }
    log = folder / "log"
    with log.open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "stanza_sim", *command],
            cwd=work,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
        listens: set[str] = set()
        until_s = time.monotonic() + after_s
        while (ended := process.poll()) is None and time.monotonic() < until_s:
            time.sleep(min(LOOK_S, max(0.0, until_s - time.monotonic())))
            listens |= open_to_others(pid for pid, _ in _marked(mark))
        if ended is None:
            process.send_signal(ended_by)
        faults = [f"listens on {found}" for found in sorted(listens)]
        faults += _ending(process, ended, ended_by, log)
    until_s = time.monotonic() + GONE_WITHIN_S
    while (left := list(_marked(mark))) and time.monotonic() < until_s:
        time.sleep(0.05)
    faults += [f"process {pid} lives: {words}" for pid, words in left]
    for pid, _ in left:
        os.kill(pid, signal.SIGKILL)
    faults += [f"partial file {p.relative_to(work)}" for p in work.rglob(".*") if not _is_cache(p)]
    _start_again(environment, work)
    faults += [f"temporary {p.name}" for p in scratch.iterdir()]
    return Left(number=number, command=command, number_of_signal=int(ended_by), after_s=after_s, faults=tuple(faults))


def _ending(process: subprocess.Popen[bytes], ended: int | None, by: int, log: Path) -> Iterator[str]:
    """What is wrong with how the command ended."""
    try:
        status = process.wait(30.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        yield "it did not end within 30 s"
        return
    text = log.read_text(errors="replace")
    if ended is None and status not in (STATUS[signal.Signals(by)], 0):
        # A signal that comes before Python handles any ends it as the system does.
        if status != -by:
            yield f"status {status} after signal {by}"
    elif ended not in (None, 0):
        yield f"it ended by itself with status {ended}: {text[-300:]}"
    if "Traceback" in text and status != -signal.SIGINT:
        yield f"a traceback: {text[-600:]}"


def _marked(mark: str) -> Iterator[tuple[int, str]]:
    """Processes that were started in this trial and have not ended."""
    wanted = f"{MARK}={mark}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                state = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if state not in "ZX":
                    yield int(entry.name), words[:120]
        except OSError:
            continue


def _is_cache(path: Path) -> bool:
    return any(part in ("__pycache__", ".cache") for part in path.parts)


def _start_again(environment: dict[str, str], work: Path) -> None:
    """Start as the next command would: what killed ones left is removed then."""
    code = "import shutil; from stanza_sim.base.processes import scratch_folder; shutil.rmtree(scratch_folder())"
    subprocess.run([sys.executable, "-c", code], cwd=work, env=environment, check=True, timeout=60)
