"""`stanza-sim validate` as a user meets it, on a bench that measures nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stanza_sim.base.errors import RunError
from stanza_sim.cli.app import app
from stanza_sim.studies.validate import chosen
from tests.studies.validate.validate_fakes import FakeBench

ROOT = Path(__file__).parents[3]


@pytest.fixture
def bench(monkeypatch) -> FakeBench:
    """Takes the place of the real one; predicts 100 ms for every case and measures the same."""
    made = FakeBench()
    monkeypatch.setattr(chosen, "LiveBench", lambda suite, plans, cases, *, say: made)
    return made


@pytest.fixture
def call(write_suite, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*args: object, suite: Path | None = None):
        words = ["validate", str(suite or write_suite()), *map(str, args)]
        return CliRunner().invoke(app, words, env={"COLUMNS": "80", "RANK": None})

    return run


def test_a_whole_run(call, bench, tmp_path):
    done = call("--repeats", 3, "--seed", 4)
    assert done.exit_code == 0, done.output
    assert "median 0.00%, bound 2%: held" in done.stdout
    assert "fast/vgg/ring       100.0       100.0     0.0    +0.0" in done.stdout
    assert "[17/17] " in done.stderr
    assert len(bench.measurements()) == 15
    out = tmp_path / "validation-small"
    data = json.loads((out / "results.json").read_text())
    assert data["command"] == f"stanza-sim validate {tmp_path / 'small.yaml'} --repeats 3 --seed 4"
    assert data["all_cases"]
    assert data["errors_pct"]["cases"] == 5


def test_a_dilation_is_in_the_command_and_the_report(call, bench, tmp_path):
    done = call("--dilate", 4, "-o", "here")
    assert done.exit_code == 0, done.output
    data = json.loads((tmp_path / "here" / "results.json").read_text())
    assert data["command"].endswith("small.yaml --dilate 4")
    assert data["conditions"]["dilate"] == "4"
    assert "dilate 4" in (tmp_path / "here" / "report.md").read_text()
    refused = call("--dilate", "half", "-o", "there")
    assert refused.exit_code == 2
    assert "'half' is not a number of times, 1 or more" in refused.stderr


def test_only_some_cases_and_json(call, bench, tmp_path):
    done = call("--only", "slow", "--only", "vgg", "--json", "-o", "here")
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    assert [c["case"] for c in data["cases"]] == ["slow/alex/ps", "slow/alex/ring", "fast/vgg/ring"]
    assert not data["all_cases"]
    assert json.loads((tmp_path / "here" / "results.json").read_text()) == data
    assert "some cases of the suite" in (tmp_path / "here" / "report.md").read_text()


def test_bounds_that_are_missed_give_status_1_and_a_report(call, bench, tmp_path):
    bench.times = {"slow/alex/ps": [0.12, 0.12]}
    done = call()
    assert done.exit_code == 1
    assert "max 16.67%, bound 8%: MISSED" in done.stdout
    assert json.loads((tmp_path / "validation-small" / "results.json").read_text())["held"] is False
    assert call("--set", "bounds.max=20", "--set", "bounds.p90=20", "-o", "b").exit_code == 0


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), 130), (RunError("rank 2 died"), 1)])
def test_what_was_measured_is_kept_and_resumed(call, bench, tmp_path, error, status):
    bench.fail_at, bench.error = 6, error
    done = call()
    assert done.exit_code == status
    assert done.stdout == ""
    kept = Path("validation-small") / "journal.jsonl"
    assert f"6 measurements are kept in {kept}; add --resume to go on" in done.stderr
    assert [p.name for p in (tmp_path / "validation-small").iterdir()] == ["journal.jsonl"]
    again = call()
    assert again.exit_code == 2
    assert "holds a validation that was not finished\n  go on with it by --resume" in again.stderr
    bench.fail_at = None
    changed = call("--resume", "--set", "networks.slow.rate=150Mbps")
    assert changed.exit_code == 2
    assert "now it would be another version of the suite" in changed.stderr
    assert call("--resume").exit_code == 0
    assert len(bench.measurements()) == 10
    assert (tmp_path / "validation-small" / "results.json").exists()


def test_a_dry_run_predicts_and_writes_nothing(call, bench, tmp_path):
    done = call("--dry-run")
    assert done.exit_code == 0, done.output
    assert "5 cases; 5 with 30% or more of exposed communication, 2 with a single parameter server" in done.stdout
    assert "not calibrated" in done.stdout
    data = json.loads(call("--dry-run", "--json").stdout)
    assert list(data) == ["fast/alex/ps", "fast/alex/ring", "slow/alex/ps", "slow/alex/ring", "fast/vgg/ring"]
    assert data["slow/alex/ring"]["nodes"] == 3
    assert bench.log == []
    assert [p.name for p in tmp_path.iterdir()] == ["small.yaml"]


def test_rules_are_checked_before_anything_is_run(call, bench, write_suite):
    suite = write_suite(("repeats: 2", "rules: {exposed_share: 1.0}"))
    done = call(suite=suite)
    assert done.exit_code == 2
    assert "rules: 0 of 5 cases have 100% or more of exposed communication" in done.stderr
    assert bench.log == []
    assert call("--only", "vgg", suite=suite).exit_code == 0, "a rule is about the whole suite"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--only", "none"], "--only: no case has none in its name"),
        (["--set", "bounds.max=-1"], "bounds.max"),
        (["--compute", "imagined"], "should be 'real' or 'emulated'"),
        (["--resume"], "there is nothing to continue here\n  leave --resume out to begin"),
    ],
)
def test_mistakes(call, bench, args, message):
    done = call(*args)
    assert done.exit_code == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_suite_that_there_is_not(call):
    done = call(suite=Path("emulatde"))
    assert done.exit_code == 2
    assert "unknown validation suite 'emulatde'\n  did you mean emulated?" in done.stderr


def test_a_scaled_model_cannot_be_trained(call):
    """The real bench: what cannot run is refused before anything is started."""
    pytest.importorskip("torch")
    done = call("--compute", "real")
    assert done.exit_code == 2
    assert "case fast/alex/ps: model alexnet-bytes0.01 cannot be trained" in done.stderr
    assert "leave `scale` out, or use --compute emulated" in done.stderr


@pytest.mark.processes
def test_a_dry_run_needs_neither_torch_nor_matplotlib():
    code = """
import sys
from stanza_sim.cli.app import app
try:
    app(["validate", "--dry-run", "--only", "star-2-500"])
except SystemExit as end:
    assert not end.code
print({"torch", "matplotlib", "pandas"} & set(sys.modules))
"""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
