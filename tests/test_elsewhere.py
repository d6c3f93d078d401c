"""Predicting needs neither Linux nor Unix; executing says that it does. See `elsewhere.py`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def elsewhere(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "tests" / "elsewhere.py"), *arguments],
        cwd=cwd,
        env={"PYTHONPATH": str(ROOT), "HOME": str(cwd), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.processes
def test_predictions_need_no_linux(tmp_path: Path) -> None:
    done = elsewhere("run", "ec2_v100", "--set", "models=[alexnet]", "--json", "-o", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (tmp_path / "out" / "result.json").read_text()
    assert json.loads(done.stdout)["runs"]
    done = elsewhere(
        *("plan", "ec2_v100", "--set", "models=[alexnet]", "--budget", "2s", "--memory", "2GB", "--jobs", "1"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    sweep = ("sweep", "ec2_v100", "--set", "models=[alexnet]", "--vary", "nodes=2,4", "-o", "x.csv", "--jobs", "1")
    done = elsewhere(*sweep, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.processes
def test_executing_says_what_it_needs(tmp_path: Path) -> None:
    done = elsewhere("run", "laptop", "--execute", cwd=tmp_path)
    assert done.returncode == 2
    assert "needs Linux or macOS" in done.stderr
    assert "Traceback" not in done.stderr
