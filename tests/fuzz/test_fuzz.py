"""Five hundred mutated files, the same ones each time. More: `python -m tests.fuzz --count 10000 --seed 1`."""

from __future__ import annotations

import pytest

from tests.fuzz.trials import fuzz


@pytest.mark.processes
@pytest.mark.timeout(400)
def test_mutated_files_give_an_answer_or_a_message() -> None:
    statuses, faults = fuzz(500, seed=0, jobs=1)
    assert [(f.kind, f.target, f.command, f.said[-500:]) for f in faults] == []
    assert statuses["status 0"] > 50
    assert statuses["status 2"] > 200
