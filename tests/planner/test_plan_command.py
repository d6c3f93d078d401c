"""`stanza-sim plan` as a user meets it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stanza_sim.cli import app
from stanza_sim.schedule import parse

ROOT = Path(__file__).parents[2]
LIMIT = ("--max-evaluations", "12", "--jobs", "1")


def call(*args: object, **env: str):
    env = {"COLUMNS": "80", "RANK": None, "SLURM_PROCID": None, "WORLD_SIZE": None, "SLURM_NTASKS": None} | env
    return CliRunner().invoke(app, [str(a) for a in args], env=env)


def test_json_has_the_best_plan_as_run_prints_it(small):
    result = call("plan", small, "--json", "--top", 5, *LIMIT)
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    (plan,) = data["plans"]
    assert plan["model"] == "alexnet"
    assert 0 < plan["evaluated"] <= 12
    assert plan["pruned"] >= 0
    assert plan["best"] == plan["ranked"][0]
    assert len(plan["ranked"]) == 5
    rates = [one["predicted"]["samples_per_s"] for one in plan["ranked"]]
    assert rates == sorted(rates, reverse=True)
    rows = json.loads(call("run", small, "--json").stdout)["runs"]
    assert all(rates[0] >= row["predicted"]["samples_per_s"] for row in rows)
    for key in ("settings", "predicted", "measured", "schedule_hash", "strategy", "nodes"):
        assert key in plan["best"]
    assert plan["explanation"]["runner_up"]["strategy"] != plan["best"]["strategy"]
    assert call("plan", small, "--json", "--top", 5, *LIMIT).stdout == result.stdout


def test_text_ranks_and_explains(small):
    result = call("plan", small, *LIMIT)
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= 80
    for text in ("plans evaluated", "pruned by their bounds", "bottleneck:", "runner-up", "link speed:", "batch per"):
        assert text in result.stdout
    assert result.stderr == ""


def test_output_folder(small, tmp_path):
    out = tmp_path / "out"
    result = call("plan", small, "--json", "-o", out, *LIMIT)
    assert (out / "result.json").read_text() == result.stdout
    (schedule,) = (out / "schedules").iterdir()
    assert parse(schedule.read_text()).digest() == json.loads(result.stdout)["plans"][0]["best"]["schedule_hash"]
    assert call("plan", small, "-o", out, *LIMIT).exit_code == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--budget", "100"), "has no unit"),
        (("--budget", "0s"), "is zero"),
        (("--set", "nodez=3"), "unknown key"),
        (("--testbed",), "nothing is run without --execute"),
        (("--compute", "emulated"), "nothing is run without --execute"),
        (("-o", "/proc/nothing/there"), "cannot be written"),
    ],
)
def test_bad_input(small, args, message):
    result = call("plan", small, *args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


def test_several_searches_by_a_launcher_are_refused(small):
    result = call("plan", small, WORLD_SIZE="4")
    assert result.exit_code == 2
    assert "several searches" in result.stderr


def test_ctrl_c_prints_the_best_so_far(small):
    """Sixteen nodes and a deep model: a search takes a while."""
    command = [sys.executable, "-m", "stanza_sim", "plan", str(small), "--json", "--budget", "60s", "--jobs", "1"]
    command += ["--set", "nodes=16", "--set", "models.0.model=resnet152"]
    code = (
        "import signal, runpy, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "sys.argv = sys.argv[1:]; runpy.run_module('stanza_sim', run_name='__main__')"
    )
    command = [sys.executable, "-c", code, *command[2:]]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(6)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted: the best plans so far" in err
    plan = json.loads(out)["plans"][0]
    assert plan["stopped"] == "interrupted"
