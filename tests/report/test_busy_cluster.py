"""`stanza-sim show cluster --run`: a cluster drawn as busy as a predicted run makes it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stanza_sim.cli.app import app
from stanza_sim.experiment.run import predict_row
from stanza_sim.simulate import simulate
from stanza_sim.simulate.costs import costs_for

EXPERIMENT = """\
name: small
cluster: star
nodes: 4
models: [{model: alexnet, batch_per_worker: 8}, {model: vgg16, batch_per_worker: 8}]
strategies:
  - {strategy: parameter_server, label: "PS, one server", settings: {overlap: false}}
  - {strategy: all_reduce}
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(EXPERIMENT)
    return path


def call(*args: object):
    return CliRunner().invoke(app, ["show", "cluster", *map(str, args)], env={"COLUMNS": "80"})


def test_every_link_is_as_busy_as_it_is_unfolded(small: Path) -> None:
    for row in ("PS, one server", "all_reduce"):
        cluster, plan, folded = predict_row(str(small), model="vgg16", row=row)
        assert (plan.entry.title, plan.strategy.title) == ("vgg16", row)
        costs = costs_for(cluster, plan.model, "fp32", None)
        whole = simulate(plan.schedule, plan.model, cluster, costs, fold_ranks=False)
        labels = [link.label for link in cluster.links]
        assert [folded.utilisation[x] for x in labels] == pytest.approx([whole.utilisation[x] for x in labels])
    assert folded.utilisation["node-3 receive side"] == pytest.approx(folded.utilisation["node-0 transmit side"])


def test_the_drawing_names_the_busiest(small: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "busy.svg"
    result = call("--run", small, "--picture", picture)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "star: 4 hosts, 4 ranks, 1 switch"
    (up,) = [line for line in lines if "up " in line]
    share = re.search(r"most (\d+%): node-3 transmit side$", up)
    assert share, up
    assert re.match(r"alexnet, PS, one server: [\d.]+ m?s an iteration$", lines[-2])
    assert lines[-1].startswith("bottleneck: node-3 receive side (server), ")
    assert picture.read_text().startswith("<?xml")
    plain = tmp_path / "plain.svg"
    assert call("star", "--nodes", 4, "--picture", plain).exit_code == 0
    assert "share of time busy" in picture.read_text()
    assert "share of time busy" not in plain.read_text()


def test_a_run_on_another_cluster(small: Path) -> None:
    result = call("leaf-spine", "--nodes", 8, "--run", small, "--row", "all_reduce", "--set", "network.rate=1Gbps")
    assert result.exit_code == 0
    assert result.stdout.startswith("leaf-spine: 8 hosts, 8 ranks")
    assert "990 Mbps goodput" in result.stdout
    (up, trunk) = [line for line in result.stdout.splitlines() if "up " in line][::-1]
    assert "  0%, most 0%" in trunk  # a single leaf: nothing goes up
    assert "  0%" not in up


def test_mistakes(small: Path) -> None:
    for arguments, says in (
        (["--run", small, "--row", "nobody"], "no strategy 'nobody'"),
        (["--run", small, "--model", "nobody"], "no model 'nobody'"),
        (["--run", "nothing"], "unknown experiment"),
        (["nothing", "--run", small], "unknown topology"),
        (["star", "--row", "x"], "add --run"),
        (["star", "--set", "nodes=3"], "add --run"),
        (["star", "--model", "x"], "add --run"),
    ):
        result = call(*arguments)
        assert (result.exit_code, result.stdout) == (2, ""), arguments
        assert says in result.stderr
