"""`stanza-sim sweep` as a user meets it."""

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stanza_sim.cli.app import app
from stanza_sim.model import zoo
from stanza_sim.model.profile_json import fingerprint

RATES = ("--vary", "network.rate=1Gbps,400Gbps")


def call(*args: object):
    return CliRunner().invoke(app, [str(a) for a in args], env={"COLUMNS": "80", "RANK": None, "SLURM_PROCID": None})


def test_text_names_winners_and_crossovers(small):
    result = call("sweep", small, *RATES, "--jobs", 1)
    assert result.exit_code == 0, result.output
    assert "small: 2 points, 2 of them computed now, 4 lines" in result.stdout
    assert "stanza wins up to" in result.stdout
    assert "Gbps (network.rate), then all_reduce" in result.stdout
    assert result.stderr == ""


def test_text_has_the_curve_of_every_row(small):
    keys = ("--vary", "strategies.1.settings.fc_workers=1..3", "--jobs", 1)
    lines = call("sweep", small, *keys).stdout.splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("samples/s "))
    assert lines[begin].split() == ["samples/s", "stanza"]
    points = {line.split()[0].partition("=")[2]: line.split()[1] for line in lines[begin + 1 : begin + 4]}
    assert list(points) == ["1", "2", "3"]
    found = json.loads(call("sweep", small, *keys, "--json").stdout)["points"]
    for point in found:
        if point["label"] == "stanza":
            cell = points[point["at"]["strategies.1.settings.fc_workers"]].replace(",", "")
            rate = point["samples_per_s"]
            assert cell == "-" if rate is None else float(cell) == pytest.approx(rate, rel=2e-3)
    assert points["3"] == "-"  # of 4 nodes
    assert lines[begin + 4].startswith("all_reduce: ") and lines[begin + 4].endswith("at all of these points")


def test_curves_side_by_side_fit_80_columns(small):
    labels = [f"a row with a rather long name, number {i}" for i in range(5)]
    rows = ", ".join(f"{{strategy: all_reduce, label: '{label}'}}" for label in labels)
    result = call("sweep", small, *RATES, "--set", f"strategies=[{rows}]", "--jobs", 1)
    assert all(any(label in line for line in result.stdout.splitlines()) for label in labels)
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_json_and_file(small, tmp_path):
    out = tmp_path / "sweep.csv"
    result = call("sweep", small, *RATES, "--jobs", 1, "--json", "-o", out)
    data = json.loads(result.stdout)
    assert data["vary"] == {"network.rate": ["1Gbps", "400Gbps"]}
    assert [(p["at"]["network.rate"], p["label"]) for p in data["points"]] == [
        ("1Gbps", "all_reduce"),
        ("1Gbps", "stanza"),
        ("400Gbps", "all_reduce"),
        ("400Gbps", "stanza"),
    ]
    (crossover,) = data["crossovers"]
    assert (crossover["unit"], crossover["below"], crossover["above"]) == ("B/s", "stanza", "all_reduce")
    again = call("sweep", small, *RATES, "--jobs", 1, "-o", out)
    assert "0 of them computed now" in again.stdout
    assert "".join(f"written to {out}".split()) in "".join(again.stdout.split())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "needs something to vary"),
        (("--vary", "nodes="), "no values"),
        (("--vary", "nodes=9..2"), "ends before it begins"),
        (("--vary", "nodez=2,3"), "unknown key"),
        (("--vary", "nodes=2,x"), "should be a whole number"),
        (("--vary", "network.rate=1Gbps,10"), "has no unit"),
        (("--vary", "cluster=star,nowhere"), "unknown topology 'nowhere'"),
        (("--vary", "models.0.model=vgg16,vgg61"), "vgg61"),
        (("--vary", "strategies.1.settings.fc_worker=1,2"), "has no setting 'fc_worker'"),
        (
            ("--vary", "strategies.1.settings.fc_worker=1,2", "--vary", "strategies.1.label=a,b"),
            "no setting 'fc_worker'",
        ),
        (("--vary", "simulation.jitter.kind=uniform", "--vary", "simulation.jitter.spread=x"), "spread=x: is a text"),
        (("--vary", "simulation.jitter.kind=uniform"), "uniform jitter without a spread"),
        (("--vary", "profile=nowhere.json"), "no such file"),
        (("--vary", "nodes=null,4"), "is not a whole number"),
        (("--vary", "nodes=1e1"), "--vary nodes=10.0: is a number (10.0)"),
        (("--vary", "network.rate=1_0Gbps"), "unknown unit '_0Gbps'"),
        (("--vary", "strategies.7.settings.fc_workers=1,2"), "has no entry 7"),
        (("--vary", "nodes=2,3", "-o", "/nowhere/sweep.csv"), "lies in no folder that exists"),
        (("--vary", "nodes=2,3", "-o", "/proc/sweep.csv"), "cannot be written"),
        (("--vary", "nodes=2,3", "--scheduler", "tcp://h:1", "--jobs", "2"), "for processes of this machine"),
    ],
)
def test_bad_input(small, args, message):
    result = call("sweep", small, *args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert message in result.stderr


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nonsense", "tcp://127.0.0.1"])
def test_a_scheduler_that_cannot_be_reached(small, tmp_path, address):
    pytest.importorskip("distributed")
    result = call("sweep", small, *RATES, "--scheduler", address, "-o", tmp_path / "sweep.csv")
    assert not (tmp_path / "sweep.csv").exists()
    assert (result.exit_code, result.stdout) == (2, "")
    assert "no Dask scheduler answers there" in result.stderr
    assert "Traceback" not in result.stderr


def test_without_dask_the_extra_is_named(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    result = call("sweep", small, *RATES, "--scheduler", "tcp://127.0.0.1:8786")
    assert result.exit_code == 2
    assert "pip install 'stanza-sim[dask]'" in result.stderr


STANZA_ALONE = ("--set", "strategies=[{strategy: stanza, settings: {fc_workers: 1}}]")


def test_reasons_are_printed_once_with_their_number(small):
    result = call("sweep", small, "--vary", "nodes=1,4", "--vary", "seed=1,2", "--jobs", 1)
    assert result.exit_code == 0, result.output
    assert "8 lines, 2 of them infeasible" in result.stdout
    assert result.stdout.count("2 lines: stanza: fc_workers: 1 FC workers of 1 nodes leave 0 CONV workers;") == 1
    data = json.loads(call("sweep", small, "--vary", "nodes=1,4", "--jobs", 1, "--json").stdout)
    assert [one["lines"] for one in data["infeasible"]] == [1]
    assert data["no_crossover_looked_for"] == []


def test_a_sweep_that_predicts_nothing_fails_but_keeps_its_file(small, tmp_path):
    out = tmp_path / "sweep.csv"
    for more in ((), ("--json",)):
        result = call("sweep", small, "--vary", "nodes=1", *STANZA_ALONE, "--jobs", 1, "-o", out, *more)
        assert result.exit_code == 2
        assert "none of 1 lines could be predicted" in result.stderr
        assert "1 FC workers of 1 nodes" in result.stdout
        assert "no crossover:" not in result.stdout
    assert out.read_text().count(",no,") == 1


def test_text_fits_80_columns(small, monkeypatch):
    monkeypatch.chdir(small.parent)
    vary = ("--vary", "simulation.jitter.kind=lognormal,uniform", "--vary", "simulation.jitter.spread=0.1,2")
    result = call("sweep", small.name, *vary, "--set", "simulation.repeats=1", "--jobs", 1)
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "no crossover looked for along simulation.jitter.kind: lognormal is no number" in result.stdout


def test_warnings_of_a_network_profile_are_said_once(small, network_profile):
    result = call("sweep", small, "--vary", "network.rate=200Mbps,400Mbps", "--jobs", 1, "--profile", network_profile)
    assert result.exit_code == 0, result.output
    assert result.stderr.count("warning: ") == 2
    assert result.stderr.count("busy machine") == 1
    assert result.stderr.count("no messages from a NIC of 400 Mbps") == 1


def test_a_device_is_no_target(small):
    result = call("sweep", small, *RATES, "-o", "/dev/null")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "is no file" in result.stderr
    assert not Path("/dev/null").is_file()


def test_the_profile_of_one_model_leaves_crossovers_of_others_alone(small, tmp_path):
    both = tmp_path / "both.yaml"
    both.write_text(small.read_text().replace("models: [", "models: [{model: vgg16}, "))
    model = zoo.get("vgg16")
    timed = [{"block": b.name, "samples": 32, "forward_s": 1e-3, "backward_s": 2e-3} for b in model.blocks]
    data = {
        "device": "cuda V100", "driver": None, "host_cores": 2, "date": "2026-01-01T00:00:00Z", "precision": "fp32",
        "ranks_at_once": 1, "model": {"name": "vgg16", "fingerprint": fingerprint(model)},
        "blocks": [{**b, "backward_input_s": 1e-3, "backward_weight_s": 1e-3} for b in timed],
        "reduce_Bps": 1e9, "update_Bps": 1e9,
    }  # fmt: skip
    profile = tmp_path / "profile.json"
    profile.write_text(json.dumps(data))
    found = []
    for more in ((), ("--profile", profile)):
        result = call("sweep", both, *RATES, "--jobs", 1, "--json", *more)
        assert result.exit_code == 0, result.output
        found.append([c for c in json.loads(result.stdout)["crossovers"] if c["model"] == "alexnet"])
    assert found[0] == found[1] != []
