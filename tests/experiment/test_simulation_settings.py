"""How collectives are simulated, and by which algorithm, from the experiment file and --set."""

from __future__ import annotations

import pytest

from stanza_sim.base.errors import InputError
from stanza_sim.experiment.run import run_experiment

ONE = ["models=[{model: alexnet}]", "nodes=5"]


def row(*overrides: str) -> tuple[float, int, str]:
    """Iteration time, how many ranks were simulated, and the schedule's text."""
    result = run_experiment("ec2_v100", overrides=[*ONE, *overrides])
    assert result is not None
    (only,) = result.rows
    return only.prediction.iteration_s, len(only.prediction.sent_bytes), only.schedule.text()


def test_collectives_step_by_step() -> None:
    plain = "strategies=[all_reduce]"
    activity, steps = row(plain), row(plain, "simulation.collectives=steps")
    assert activity[1] == 1
    assert steps[1] == 5
    assert steps[0] == pytest.approx(activity[0], rel=0.01)
    assert steps[2] == activity[2]
    assert row(plain, "simulation.collectives=activity") == activity
    with pytest.raises(InputError, match=r"simulation\.collectives"):
        row(plain, "simulation.collectives=both")


def test_an_algorithm_by_name() -> None:
    backend = row("strategies=[all_reduce]")
    tree = row("strategies=[{strategy: all_reduce, settings: {algorithm: tree}}]")
    assert tree[0] > backend[0]
    assert tree[1] == 5
    assert "algorithm=tree by=steps" in tree[2]
    with pytest.raises(InputError, match="hierarchical needs local"):
        row("strategies=[{strategy: all_reduce, settings: {algorithm: hierarchical}}]")
