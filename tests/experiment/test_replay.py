"""Replay: a run whose computations took other times than predicted is wrong by these, and replayed it is right."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stanza_sim.api.clusters_models import keeping_console, printed
from stanza_sim.base.errors import InputError
from stanza_sim.cli.app import app
from stanza_sim.execute.rank.job import Measurement
from stanza_sim.experiment.details import Details
from stanza_sim.experiment.replay import replay
from stanza_sim.experiment.run import run_experiment
from stanza_sim.profiles.blocks import LoopbackTimes
from stanza_sim.profiles.network import read_network
from stanza_sim.report.folder import write_result
from stanza_sim.report.inputs import RunInputs, inputs_json, read_inputs
from stanza_sim.report.replayed import Replayed, print_replayed, replayed_json
from stanza_sim.report.result import Result, Row
from stanza_sim.simulate.slower_costs import SlowerCosts

EXPERIMENT = {
    "name": "made",
    "cluster": "ec2-p3-10",
    "nodes": 3,
    "models": ["alexnet"],
    "strategies": [
        {"strategy": "parameter_server", "label": "one server"},
        {"strategy": "parameter_server", "label": "shards", "settings": {"placement": "colocated"}},
        {"strategy": "all_reduce", "label": "ring"},
    ],
}


def slowed(row: Row, times: float) -> Row:
    """The row with a measurement: rank 1 computes so many times slower than predicted."""
    assert isinstance(row.details, Details)
    scenario = row.details.scenario
    costs = SlowerCosts(scenario.costs, lambda rank, model: times if rank == 1 else 1.0, "made slow")
    case = replace(scenario, costs=costs).prepare(fold_ranks=False)
    found = case.predict(case.run())
    ends = {rank: tuple(ends) for rank, ends in found.timeline.iteration_end_s.items()}
    measurement = Measurement(
        timeline=replace(found.timeline, iteration_end_s=ends),
        iteration_s=found.iteration_s,
        iteration_s_min=found.iteration_s,
        iteration_s_max=found.iteration_s,
        samples_per_s=found.samples_per_s,
        losses=(),
        scores=(),
        sent_bytes=(),
        received_bytes=(),
        hosts=(),
    )
    return replace(row, measurement=measurement)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Result, Path]:
    """An experiment, its result, and the folder of a run in which a machine was ten times slower than predicted."""
    folder = tmp_path_factory.mktemp("replay")
    path = folder / "made.yaml"
    path.write_text(json.dumps(EXPERIMENT))
    result = run_experiment(str(path))
    assert result is not None
    rows = tuple(slowed(row, 10.0) for row in result.rows)
    ran = replace(result, rows=rows, inputs=RunInputs(profiles=(None,) * len(rows)))
    write_result(ran, folder / "out")
    return str(path), ran, folder / "out"


def test_what_is_due_to_computations_is_gone(made: tuple[str, Result, Path]) -> None:
    path, ran, folder = made
    name, rows = replay(folder, path)
    assert name == "made"
    assert [row.label for row in rows] == ["one server", "shards", "ring"]
    for row, was in zip(rows, ran.rows, strict=True):
        assert was.error_pct is not None
        assert row.error_pct == pytest.approx(was.error_pct)
        assert row.error_pct < -1
        assert row.left_pct == pytest.approx(0.0, abs=0.02)


def test_what_is_due_to_the_network_stays(made: tuple[str, Result, Path]) -> None:
    """The run was on a network of 10 Gb/s; replayed on one of 20 Gb/s it is too fast."""
    path, _, folder = made
    for row in replay(folder, path, ["network.rate=20Gbps"])[1]:
        assert row.left_pct < -25


def test_computations_that_share_cores_are_not_slowed_twice(tmp_path: Path) -> None:
    """Four ranks on two cores: a run that goes as predicted is replayed as it went."""
    path = tmp_path / "shared.yaml"
    cluster = {"name": "shared", "scales": "ranks", "ranks_per_host": 4, "hosts": [{"name": "local", "cores": 2}]}
    (tmp_path / "cluster.yaml").write_text(json.dumps(cluster))
    path.write_text(json.dumps({**EXPERIMENT, "cluster": "cluster.yaml", "nodes": 4}))
    result = run_experiment(str(path))
    assert result is not None
    rows = tuple(slowed(row, 1.0) for row in result.rows)
    write_result(replace(result, rows=rows, inputs=RunInputs(profiles=(None,) * 3)), tmp_path / "out")
    for row in replay(tmp_path / "out", str(path))[1]:
        assert row.left_pct == pytest.approx(0.0, abs=3.0)


def test_inputs_are_read_back(tmp_path: Path, network_profile: Path) -> None:
    loopback = LoopbackTimes(latency_s=5e-5, message_core_s=1e-4, byte_core_s=8e-10, bandwidth_Bps=1.5e9)
    inputs = RunInputs(network=read_network(network_profile), loopback=loopback, profiles=(None,))
    (tmp_path / "inputs.json").write_text(inputs_json(inputs))
    assert read_inputs(tmp_path / "inputs.json") == inputs


def test_folders_that_do_not_fit_are_refused(made: tuple[str, Result, Path], tmp_path: Path) -> None:
    path, ran, folder = made
    predicted = replace(ran, rows=tuple(replace(row, measurement=None) for row in ran.rows), inputs=None)
    write_result(predicted, tmp_path / "out")
    with pytest.raises(InputError, match="holds no run that was measured"):
        replay(tmp_path / "out", path)
    with pytest.raises(InputError, match="does not say which experiment was run"):
        replay(folder)
    with pytest.raises(InputError, match="ran on 3 ranks of ec2-p3-10, not on 4"):
        replay(folder, path, ["nodes=4"])
    with pytest.raises(InputError, match="holds alexnet, one server, which made as it is now has not"):
        replay(folder, path, ["strategies.0.label=other"])
    with pytest.raises(InputError, match="no such folder"):
        replay(tmp_path / "nowhere")


def test_the_table_fits_80_columns() -> None:
    rows = [
        Replayed(label="PS, one server", model="net", measured_s=0.1, predicted_s=0.08, replayed_s=0.097, iterations=9)
    ]
    console = keeping_console(80)
    print_replayed("made", rows, console)
    text = printed(console)
    assert max(map(len, text.splitlines())) <= 80
    assert "-20.0" in text
    assert "-3.0" in text
    (run,) = json.loads(replayed_json("made", rows))["runs"]
    assert run["error_pct"] == pytest.approx(-20)
    assert run["error_left_pct"] == pytest.approx(-3)


def test_the_folder_knows_what_was_run(made: tuple[str, Result, Path], tmp_path: Path) -> None:
    path, ran, _ = made
    assert ran.inputs is not None
    known = ran.inputs.model_copy(update={"experiment": path, "overrides": ("network.rate=20Gbps",)})
    write_result(replace(ran, inputs=known), tmp_path / "out")
    (_, ten), (_, twenty) = replay(tmp_path / "out", path), replay(tmp_path / "out")
    assert all(fast.replayed_s < 0.75 * slow.replayed_s for fast, slow in zip(twenty, ten, strict=True))


def test_what_a_replay_has_no_use_for_is_refused(tmp_path: Path) -> None:
    for args in (["--execute"], ["--explain"], ["--jobs", "2"], ["-o", str(tmp_path / "out")]):
        result = CliRunner().invoke(app, ["run", "laptop", "--from", str(tmp_path), *args])
        assert result.exit_code == 2
        assert "--from: replays what is in" in result.stderr
