"""`stanza-sim import nccl-tests`, and predictions with what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stanza_sim import load_cluster
from stanza_sim.base.errors import InputError
from tests.cli.test_cli import call, refused
from tests.importers.logs import log

PUBLISHED = Path(__file__).parents[2] / "stanza_sim/data/published/nccl.csv"
SLOW = [(1 << k, 30.0 + (1 << k) / 2e4) for k in range(3, 28)]
"""An all-reduce at 20 GB/s."""
EXPERIMENT = """\
name: small
cluster: dgx-a100-16
nodes: 2
models: [{model: alexnet, batch_per_worker: 8}]
strategies: [all_reduce]
"""


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(EXPERIMENT)
    return path


def imported(tmp_path: Path, *more: object) -> Path:
    first, second, out = tmp_path / "one.log", tmp_path / "two.log", tmp_path / "mine.json"
    first.write_text(log(SLOW, hosts=1, per_host=8))
    second.write_text(log([(n, us + 20) for n, us in SLOW], hosts=2, per_host=8))
    done = call("import", "nccl-tests", first, second, "-o", out, *more)
    assert done.exit_code == 0, done.output
    assert "bus rate of a host's NICs, GB/s" in done.stdout
    assert "two.log" in done.stdout
    assert str(out) in done.stderr
    return out


def iteration_s(*args: object) -> float:
    done = call("run", *args, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)["runs"][0]["predicted"]["iteration_s"]


def test_a_profile_is_used_by_run_by_an_experiment_and_by_a_topology(tmp_path: Path, experiment: Path) -> None:
    profile = imported(tmp_path)
    fast = iteration_s(experiment)
    slow = iteration_s(experiment, "--nccl", profile)
    assert slow > 1.5 * fast
    experiment.write_text(f"{EXPERIMENT}network: {{nccl: mine.json}}\n")
    assert iteration_s(experiment) == slow
    topology = (Path(__file__).parents[2] / "topologies/dgx-a100-16.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(topology.replace("nccl: a100-nvlink", "nccl: mine.json"))
    experiment.write_text(EXPERIMENT.replace("dgx-a100-16", "./mine.yaml"))
    assert iteration_s(experiment) == slow
    assert load_cluster("dgx-a100-16", nccl=profile).hosts[0].nccl == str(profile)


def test_with_a_cluster_its_links_bound_the_rates(tmp_path: Path) -> None:
    profile = json.loads(imported(tmp_path, "--cluster", "dgx-a100-16").read_text())
    assert profile["name"] == "mine"
    assert float(profile["across"].removesuffix("GB/s")) < 100


def test_the_published_table_can_be_imported(tmp_path: Path) -> None:
    out = tmp_path / "p.json"
    done = call("import", "nccl-tests", PUBLISHED, "--gpus-per-host", 8, "-o", out, "--platform", "a100-nvlink")
    assert done.exit_code == 0, done.output
    assert json.loads(out.read_text())["ll128"] == "everywhere"


def test_what_is_refused(tmp_path: Path, experiment: Path) -> None:
    text, out = tmp_path / "a.log", tmp_path / "a.json"
    text.write_text("nothing\n")
    assert "a.log: holds no line of times" in refused("import", "nccl-tests", text, "-o", out)
    assert "no such file" in refused("import", "nccl-tests", tmp_path / "b.log", "-o", out)
    text.write_text(log(SLOW[:9]))
    assert "too few to fit" in refused("import", "nccl-tests", text, "-o", out)
    text.write_text(log(SLOW))
    assert "is no name of a profile" in refused("import", "nccl-tests", text, "-o", tmp_path / "a.yaml")
    assert "lies in no folder" in refused("import", "nccl-tests", text, "-o", tmp_path / "none" / "a.json")
    unknown = refused("import", "nccl-tests", text, "-o", out, "--platform", "a100-nvlnk")
    assert "unknown NCCL platform 'a100-nvlnk'" in unknown
    assert "did you mean a100-nvlink" in unknown
    assert "unknown topology" in refused("import", "nccl-tests", text, "-o", out, "--cluster", "dgx")
    assert "has not" in refused("import", "nccl-tests", text, "-o", out, "--cluster", "star")
    assert not out.exists()


def test_an_nccl_that_has_no_use_is_refused(tmp_path: Path, experiment: Path) -> None:
    said = refused("run", experiment, "--nccl", "dgx")
    assert "unknown NCCL platform 'dgx'" in said
    assert "a100-nvlink" in said
    assert "network.nccl" in said
    assert "no such file" in refused("run", experiment, "--nccl", tmp_path / "none.json")
    emulated = refused("run", experiment, "--nccl", "pcie", "--set", "execute.compute=emulated")
    assert "emulated compute does not use NCCL" in emulated
    assert "backend gloo does not" in refused("run", experiment, "--nccl", "pcie", "--set", "execute.backend=gloo")
    assert "has no devices" in refused("run", experiment, "--nccl", "pcie", "--set", "cluster=laptop")


def test_python_takes_the_same(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="load_cluster: unknown NCCL platform 'x'"):
        load_cluster("dgx-a100-16", nccl="x")
    with pytest.raises(InputError, match="load_cluster: nccl: is a int"):
        load_cluster("dgx-a100-16", nccl=3)  # type: ignore[arg-type]


def test_show_cluster_says_which_platform_is_in_force(tmp_path: Path) -> None:
    stated = call("show", "cluster", "dgx-a100-16").stdout
    assert "platform a100-nvlink " in stated
    assert "by what joins" not in stated
    assert "platform pcie, by what joins the devices" in call("show", "cluster", "ec2-p3-10").stdout
    assert "NCCL" not in call("show", "cluster", "laptop").stdout
