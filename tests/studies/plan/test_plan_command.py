"""`stanza-sim plan` as a user meets it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stanza_sim.base.errors import RunError
from stanza_sim.cli.app import app
from stanza_sim.schedule import parse
from stanza_sim.studies.plan.assess import Weighed, weigh
from stanza_sim.studies.plan.choices import choices
from stanza_sim.studies.plan.worker_pool import WorkerPool

LIMIT = ("--max-evaluations", "12", "--jobs", "1")


def call(*args: object, **env: str):
    env = {"COLUMNS": "80", "RANK": None, "SLURM_PROCID": None, "WORLD_SIZE": None, "SLURM_NTASKS": None} | env
    return CliRunner().invoke(app, [str(a) for a in args], env=env)


@pytest.fixture(scope="module")
def plan_result(small_text: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """An experiment, the folder that a plan of it was written to, and the JSON that was printed."""
    folder = tmp_path_factory.mktemp("planned")
    experiment, out = folder / "small.yaml", folder / "out"
    experiment.write_text(small_text)
    result = call("plan", experiment, "--json", "--top", 5, "-o", out, *LIMIT)
    assert result.exit_code == 0, result.output
    return experiment, out, result.stdout


def test_json_has_the_best_plan_as_run_prints_it(plan_result):
    experiment, _, printed = plan_result
    (plan,) = json.loads(printed)["plans"]
    assert plan["model"] == "alexnet"
    assert 0 < plan["evaluated"] <= 12
    assert plan["pruned"] >= 0
    assert plan["best"] == plan["ranked"][0]
    assert len(plan["ranked"]) == 5
    rates = [one["predicted"]["samples_per_s"] for one in plan["ranked"]]
    assert rates == sorted(rates, reverse=True)
    rows = json.loads(call("run", experiment, "--json").stdout)["runs"]
    assert all(rates[0] >= row["predicted"]["samples_per_s"] for row in rows)
    assert rows[0].keys() <= plan["best"].keys()
    assert plan["explanation"]["runner_up"]["strategy"] != plan["best"]["strategy"]


def test_json_says_how_sure_the_best_plans_are(plan_result):
    (plan,) = json.loads(plan_result[2])["plans"]
    labels = [one["label"] for one in plan["ranked"]]
    for one in plan["ranked"]:
        p = one["predicted"]
        assert p["samples_per_s_low"] < p["samples_per_s"] < p["samples_per_s_high"]
        assert p["basis"].startswith("network: as the topology states, 10 Gbps")
        for other in one["tied_with"]:
            if other in labels:
                assert one["label"] in plan["ranked"][labels.index(other)]["tied_with"]


def test_output_folder(plan_result):
    _, out, printed = plan_result
    assert (out / "result.json").read_text() == printed
    (schedule,) = (out / "schedules").iterdir()
    assert parse(schedule.read_text()).digest() == json.loads(printed)["plans"][0]["best"]["schedule_hash"]


def test_a_run_that_fails_does_not_lose_the_answer(small, monkeypatch):
    def fail(*args, **more):
        raise RunError("rank 1 has ended")

    monkeypatch.setattr("stanza_sim.studies.plan.session.run_loaded", fail)
    result = call("plan", small, *LIMIT, "--execute")
    assert result.exit_code == 1
    assert "plans evaluated" in result.stdout
    assert "rank 1 has ended" in result.stderr


def test_text_ranks_and_explains(small):
    result = call("plan", small, *LIMIT)
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= 80
    for text in ("plans evaluated", "pruned by their bounds", "bottleneck:", "runner-up", "link speed:", "batch per"):
        assert text in result.stdout
    assert result.stderr == ""


def test_the_network_profile_is_named_and_its_warnings_are_said_once(small, network_profile, monkeypatch):
    def rows_only(*args, **more):
        some, out = choices(*args, **more)
        return some[:2], out

    monkeypatch.setattr("stanza_sim.studies.plan.session.choices", rows_only)
    result = call("plan", small, *LIMIT, "--profile", network_profile, "--set", "network.rate=400Mbps")
    assert result.exit_code == 0, result.output
    assert "network: calibrated with single messages" in " ".join(result.stdout.split())
    assert result.stderr.count("warning: ") == 2
    assert result.stderr.count("busy machine") == 1
    assert result.stderr.count("no messages from a NIC of 400 Mbps") == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--budget", "100"), "has no unit"),
        (("--budget", "0s"), "is zero"),
        (("--budget", "-1s"), "is negative"),
        (("--budget", "nan"), "is not a time"),
        (("--memory", "0GB"), "is zero"),
        (("--memory", "-1GB"), "is negative"),
        (("--memory", "1000000000"), "has no unit"),
        (("--memory", "a lot"), "is not a size"),
        (("--memory", "9" * 400 + "GB"), "is too large"),
        (("--memory", "1MB"), "is less than the program itself takes"),
        (("--set", "nodez=3"), "unknown key"),
        (("--scheduler", "nonsense"), "no Dask scheduler answers there"),
        (("--scheduler", "tcp://127.0.0.1:9", "--jobs", "2"), "leave it out with --scheduler"),
        (("--testbed",), "nothing is run without --execute"),
        (("--compute", "emulated"), "nothing is run without --execute"),
        (("-o", "/proc/nothing/there"), "cannot be written"),
    ],
)
def test_bad_input(small, args, message):
    result = call("plan", small, *args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


def test_what_there_was_no_time_and_no_memory_for_is_said(small, monkeypatch):
    def out(problem, choice, least, room, *, sketched):
        kinds = {"parameter_server": "time", "stanza": "host_memory"}
        if choice.strategy in kinds:
            return Weighed(kind=kinds[choice.strategy], reason=f"short of {kinds[choice.strategy]}")
        return weigh(problem, choice, least, room)

    monkeypatch.setattr("stanza_sim.studies.plan.worker_pool.weigh", out)
    args = ("--budget", "100s", "--max-evaluations", "6", "--jobs", "1")
    (plan,) = json.loads(call("plan", small, "--json", *args).stdout)["plans"]
    found = {(one["strategy"], one["kind"], one["reason"]) for one in plan["left_out"]}
    assert ("parameter_server", "time", "short of time") in found
    assert ("stanza", "host_memory", "short of host_memory") in found
    printed = " ".join(call("plan", small, *args).stdout.split())
    assert "that take too long to simulate in this budget, such as PS, one server: short of time" in printed
    assert "that take too much memory to simulate, such as stanza: short of host_memory" in printed


def test_several_searches_by_a_launcher_are_refused(small):
    result = call("plan", small, WORLD_SIZE="4")
    assert result.exit_code == 2
    assert "several searches" in result.stderr


def test_ctrl_c_prints_the_best_so_far(small, monkeypatch):
    calls = []
    real = WorkerPool.weigh

    def weighing(self, *args, **more):
        calls.append(args)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return real(self, *args, **more)

    monkeypatch.setattr(WorkerPool, "weigh", weighing)
    result = call("plan", small, "--json", "--jobs", 1)
    assert result.exit_code == 130
    assert "interrupted: the best plans so far" in result.stderr
    data = json.loads(result.stdout)
    assert data["interrupted"] is True
    (plan,) = data["plans"]
    assert (plan["stopped"], plan["explanation"]) == ("interrupted", None)
    assert plan["best"]["predicted"]["samples_per_s"] > 0


def test_without_any_plan_it_fails_and_says_why(small):
    result = call("plan", small, *LIMIT, "--set", "models=[{model: alexnet, batch_per_worker: 100000}]")
    assert result.exit_code == 2
    assert "no plan was simulated" in result.stdout
    assert "no plan could be made for alexnet" in result.stderr
    assert "GB" in result.stderr
