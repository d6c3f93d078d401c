"""A dozen commands ended at random instants. More: `python -m tests.kill --trials 60 --seed 1`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.kill.trials import trial


@pytest.mark.processes
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("number", range(12))
def test_a_command_that_is_ended_leaves_nothing(number: int, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    assert trial(number, 1, tmp_path, hurry=0.5).faults == ()
