"""Processes that work for a command, and what they leave behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

import stanza_sim
from stanza_sim.base.processes import own_path, scratch_folder

LAUNCHER = """
import os, sys, time
from stanza_sim.base.processes import processes
if __name__ == "__main__":
    with processes(2, forked={forked}) as pool:
        found = {{pool.submit(os.getpid).result() for _ in range(20)}}
        list(pool.map(time.sleep, [0.1] * 4))
        print(*found, flush=True)
        pool.submit(time.sleep, 60).result()
"""


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")


@pytest.mark.processes
@pytest.mark.parametrize("forked", [True, False])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_pool_ends_with_the_process_that_started_it(tmp_path: Path, forked: bool, number: int) -> None:
    script = tmp_path / "launcher.py"
    script.write_text(LAUNCHER.format(forked=forked))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment) as launcher:
        assert launcher.stdout is not None
        workers = [int(pid) for pid in launcher.stdout.readline().split()]
        assert workers
        assert all(alive(pid) for pid in workers)
        launcher.send_signal(number)
        launcher.wait()
    until_s = time.monotonic() + 5
    while any(alive(pid) for pid in workers) and time.monotonic() < until_s:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in workers)


def test_folders_of_killed_processes_are_removed_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mine = scratch_folder()
    _, _, there, _, _ = mine.name.split("-", 4)
    left = tmp_path / f"stanza-sim-{there}-4194305-abc"  # no process has a number above 2^22
    elsewhere = tmp_path / "stanza-sim-00000000-4194305-abc"  # of another machine, or another container
    other = tmp_path / "stanza-simulation"
    for folder in (left, elsewhere, other):
        folder.mkdir()
        (folder / "store").write_text("x")
    again = scratch_folder()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([mine.name, other.name, elsewhere.name, again.name])
    assert again.stat().st_mode & 0o777 == 0o700


def test_processes_do_not_import_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = str(Path(__file__).parents[2])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), "/elsewhere"])
    assert own_path({}).split(os.pathsep) == [package, "/elsewhere"]
    assert own_path({"PYTHONPATH": str(tmp_path)}).split(os.pathsep) == [package, str(tmp_path), "/elsewhere"]


@pytest.mark.processes
@pytest.mark.parametrize(
    ("number", "status", "said"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGHUP, 129, "hung up")]
)
def test_a_command_that_is_ended_says_so_in_one_line(number: int, status: int, said: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stanza_sim", "sweep", "ec2_v100", "--vary", "nodes=2..40", "-o", "x.csv"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as sweep:
        until_s = time.monotonic() + 30
        while not (tmp_path / "x.csv").exists() and time.monotonic() < until_s:
            time.sleep(0.05)
        sweep.send_signal(number)
        _, told = sweep.communicate(timeout=20)
    assert sweep.returncode == status
    assert told.splitlines()[-1] == said
    assert "Traceback" not in told


def test_no_python_is_started_that_imports_from_the_current_folder() -> None:
    package = Path(stanza_sim.__file__).parent
    starting = [
        f"{path.name}: {line.strip()}"
        for path in sorted(package.rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if "sys.executable" in line
    ]
    assert starting and [line for line in starting if '"-P"' not in line] == []
