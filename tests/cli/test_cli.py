"""The command line as a user meets it: what is printed where, exit statuses, mistakes answered without traceback."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import simpy
from typer.testing import CliRunner

from stanza_sim import strategies
from stanza_sim.base import config
from stanza_sim.base.errors import RunError
from stanza_sim.base.version import __version__
from stanza_sim.cli.app import app
from stanza_sim.model import zoo
from stanza_sim.schedule import from_json, parse

ROOT = Path(__file__).parents[2]
SMALL = """\
name: small
cluster: star
nodes: 4
models: [{model: alexnet, batch_per_worker: 8}]
strategies:
  - {strategy: parameter_server, label: "PS, one server", settings: {overlap: false}}
  - {strategy: stanza, settings: {fc_workers: 1}}
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


def call(*args: object):
    """Run a command in this process; stdout and stderr are kept apart."""
    return CliRunner().invoke(app, [str(a) for a in args], env={"COLUMNS": "80", "RANK": None, "SLURM_PROCID": None})


def refused(*args: object, status: int = 2) -> str:
    """Run a command that must fail; return what it says on stderr."""
    result = call(*args)
    assert result.exit_code == status, result.output
    assert result.stdout == ""
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    return result.stderr


def process(*args: object, code: str = "", flags: Sequence[str] = (), **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command, or `code`, in a process of its own."""
    what = ["-c", code] if code else ["-m", "stanza_sim", *map(str, args)]
    command = [sys.executable, *flags, *what]
    everything = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "80"} | env
    return subprocess.run(command, env=everything, capture_output=True, text=True, timeout=100, check=False)


# ---- run


def test_run_prints_a_table(small):
    result = call("run", small)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "small: 4 nodes of star, fp32"
    for heading in ("strategy", "iteration", "samples/s", "low high", "speed-up", "exposed", "bound"):
        assert heading in lines[3]
    assert sum("bottleneck: " in line for line in lines) == 2
    assert "1.00x" in result.stdout
    assert "costs: sum model V100, alexnet" in result.stdout
    assert result.stderr == ""


def test_json_is_one_object_and_all_there_is_on_stdout(small):
    result = call("run", small, "--json", "--set", "nodes=3", "--set", "network.rate=1Gbps")
    assert result.exit_code == 0
    data = json.loads(result.stdout)
    assert data["experiment"] == "small"
    assert [r["label"] for r in data["runs"]] == ["PS, one server", "stanza"]
    run = data["runs"][0]
    assert (run["nodes"], run["cluster"], run["batch_per_worker"], run["measured"]) == (3, "star", 8, None)
    # One server, no overlap: at least twice all parameters of two workers through its port.
    nbytes = zoo.get("alexnet").nbytes
    assert run["predicted"]["iteration_s"] > 2 * 2 * nbytes / 1.25e8
    said = {"servers": None, "placement": "dedicated", "assignment": "balanced", "overlap": False}
    assert said.items() <= run["settings"].items()


def test_two_runs_print_the_same_bytes(small):
    assert call("run", small, "--json").stdout == call("run", small, "--json").stdout


def test_output_folder(small, tmp_path):
    out = tmp_path / "out"
    printed = call("run", small, "--json", "-o", out)
    assert printed.exit_code == 0
    assert (out / "result.json").read_text() == printed.stdout
    data = json.loads(printed.stdout)
    schedules = sorted((out / "schedules").iterdir())
    assert [parse(p.read_text()).digest() for p in schedules] == [r["schedule_hash"] for r in data["runs"]]
    assert len(list((out / "spans").glob("*.predicted.csv"))) == 2
    assert call("run", small, "-o", out).exit_code == 0


def test_ranks_but_the_first_are_silent(small):
    result = CliRunner().invoke(app, ["run", str(small)], env={"RANK": "3"})
    assert (result.exit_code, result.output) == (0, "")


def same_but_for_last_digits(one: str, other: str) -> bool:
    """Whether two tables have the same words, and numbers that differ by 1% or one last digit (a rounding) at most."""
    number = re.compile(r"[+-]?[\d,]*\.?\d+")
    if number.sub("N", one).split() != number.sub("N", other).split():
        return False
    for a, b in zip(number.findall(one), number.findall(other), strict=True):
        unit = 10.0 ** -len(a.partition(".")[2])
        if float(a.replace(",", "")) != pytest.approx(float(b.replace(",", "")), rel=0.01, abs=unit):
            return False
    return True


@pytest.mark.processes
def test_the_shipped_experiment_needs_no_torch():
    code = """
import sys
from stanza_sim.cli.app import app
try:
    app(["run", "ec2_v100"])
except SystemExit as end:
    assert end.code == 0, end.code
heavy = {"torch", "torchvision", "matplotlib", "pandas", "scipy", "sklearn"} & sys.modules.keys()
assert not heavy, heavy
"""
    done = process(code=code)
    assert done.returncode == 0, done.stderr
    printed = done.stdout
    for model in ("alexnet, 128", "vgg16, 32", "inception_v3, 32", "resnet152, 32"):
        assert f"{model} samples per worker" in printed
    # To bring what stands beside the experiment up to date: stanza-sim run ec2_v100 > experiments/ec2_v100/table.txt
    kept = (ROOT / "experiments" / "ec2_v100" / "table.txt").read_text()
    assert same_but_for_last_digits(printed, kept)
    example = (ROOT / "README.md").read_text().partition("$ stanza-sim run ec2_v100\n")[2].partition("```")[0]
    assert len(example.splitlines()) > 10
    assert set(example.splitlines()) <= set(kept.splitlines())


# ---- mistakes


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("nodes: 4", "nodez: 4", ["small.yaml:3: nodez: unknown key", "did you mean nodes"]),
        ("nodes: 4", "network: {rate: 10GB}", ["small.yaml:3: network.rate", "GB/s"]),
        ("nodes: 4", "network: {rate: -1Gbps}", ["small.yaml:3: network.rate", "negative"]),
        ("nodes: 4", "network: {rate: 0Gbps}", ["small.yaml:3: network.rate", "zero"]),
        ("nodes: 4", "nodes: -4", ["small.yaml:3: nodes", "greater than or equal to 1"]),
        ("batch_per_worker: 8", "batch_per_worker: 0", ["small.yaml:4: models.0.batch_per_worker"]),
        ("cluster: star", "cluster: stars", ["small.yaml:2: cluster: unknown topology 'stars'", "did you mean star"]),
        ("model: alexnet", "model: alexnett", ["small.yaml:4: models.0", "unknown model 'alexnett'", "alexnet"]),
        ("model: alexnet", 'model: "nowhere.at:all", input_shape: [1]', ["small.yaml:4: models.0", "nowhere"]),
        ("model: alexnet", 'model: "math:sqrt", input_shape: [1]', ["small.yaml:4: models.0", "math:sqrt"]),
        ("model: alexnet", 'model: "stanza_sim.model.examples:tiny_cnn"', ["small.yaml:4: models.0", "input_shape"]),
        ("model: alexnet", "model: alexnet, boundary: nowhere", ["small.yaml:4: models.0", "nowhere"]),
        ("strategy: stanza", "strategy: stanzas", ["small.yaml:7: strategies.1.strategy", "stanza"]),
        ("name: small", "name: small\nprecision: fp12", ["'fp12'", "'bf16'"]),
        ("name: small", "name: small\nprofile: none.json", ["none.json", "no such file"]),
        ("{fc_workers: 1}}\n", "{fc_workers", ["small.yaml:", "is not valid YAML"]),
    ],
)
def test_a_mistake_in_the_file(small, old, new, says):
    assert old in SMALL
    small.write_text(SMALL.replace(old, new))
    message = refused("run", small)
    for part in says:
        assert part in message


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("fc_workers: 1", "fc_workers: 4", ["small.yaml:7: strategies.1", "fc_workers", "leave 0 CONV workers"]),
        ("overlap: false", "servers: 4", ["small.yaml:6: strategies.0", "servers", "leave 0 workers"]),
    ],
)
def test_a_row_that_is_not_possible(small, old, new, reason):
    small.write_text(SMALL.replace(old, new))
    result = call("run", small, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert len(found["runs"]) == 1
    (one,) = found["infeasible"]
    assert all(part in one["reason"] for part in reason)


NO_FC = """
from torch import nn
def net():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 10, 6), nn.Flatten())
"""


def test_a_model_without_fc_part_under_stanza(small, tmp_path, monkeypatch):
    (tmp_path / "nofc.py").write_text(NO_FC)
    monkeypatch.chdir(tmp_path)
    small.write_text(SMALL.replace("model: alexnet", 'model: "nofc:net", input_shape: [1, 8, 8]'))
    assert "\ninfeasible\nstanza: " in call("run", small).stdout
    message = refused("run", small, "--set", "strategies=[stanza]")
    assert "strategies.0" in message
    assert "no FC part" in message
    assert "boundary" in message


def test_a_rank_on_a_missing_host(small, tmp_path):
    text = (ROOT / "topologies" / "star.yaml").read_text() + "placement: [node-0, node-1, node-7]\n"
    (tmp_path / "mine.yaml").write_text(text)
    small.write_text(SMALL.replace("cluster: star\nnodes: 4\n", "cluster: mine.yaml\n"))
    message = refused("run", small)
    assert "mine.yaml" in message
    assert "node-7" in message


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["run", "ec2_v10"], "did you mean ec2_v100"),
        (["run", "nowhere/experiment.yaml"], "no such file"),
        (["run", "ec2_v100", "--set", "nodez=2"], "did you mean nodes"),
        (["run", "ec2_v100", "--set", "nodes"], "not key=value"),
        (["run", "ec2_v100", "--set", "network.rate=10GB"], "GB/s"),
        (["run", "ec2_v100", "--profile", "none.json"], "no such file"),
        (["run", "ec2_v100", "-o", "/dev/null/out"], "cannot be written"),
        (["run", "ec2_v100", "--save-profile", "p.json"], "--execute"),
        (["show", "model", "vgg17"], "did you mean 'vgg1"),
        (["show", "model", "vgg16", "--input-shape", "3,x"], "not a shape"),
        (["show", "cluster", "ec2"], "ec2-p3-10"),
        (["show", "cluster", "ec2-p3-10", "--nodes", "0"], "at least 1"),
        (["show", "device", "V10"], "V100"),
        (["show", "strategy", "ps"], "parameter_server"),
        (["show", "schedule", "ec2_v100", "--model", "lenet"], "alexnet"),
        (["show", "schedule", "ec2_v100", "--strategy", "x"], "all-reduce"),
        (["show", "schedule", "ec2_v100", "--model", "alexnet", "--rank", "10"], "ranks 0 to 9"),
        (["show", "schedule", "ec2_v100", "--rank", "1", "--json"], "leave one"),
    ],
    ids=lambda v: " ".join(v[1:]) if isinstance(v, list) else None,
)
def test_a_mistake_on_the_command_line(args, says):
    assert says in refused(*args)


def test_an_output_folder_of_others_is_refused_before_anything_runs(small, tmp_path, monkeypatch):
    (tmp_path / "notes.md").write_text("mine")
    monkeypatch.setattr("stanza_sim.experiment.run.run_experiment", lambda *a, **k: pytest.fail("it ran"))
    assert "notes.md" in refused("run", small, "-o", tmp_path)


def test_unknown_options_and_commands_have_status_2():
    for args in (["run", "ec2_v100", "--exec"], ["runn"], ["run"], ["show", "models"]):
        result = call(*args)
        assert result.exit_code == 2
        assert "Traceback" not in result.output


def test_a_failed_run_has_status_1_and_ctrl_c_130(small, monkeypatch):
    def fail(*args, **kwargs):
        raise RunError("rank 2 died")

    monkeypatch.setattr("stanza_sim.experiment.run.run_experiment", fail)
    assert refused("run", small, status=1) == "error: rank 2 died\n"

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("stanza_sim.experiment.run.run_experiment", interrupt)
    result = call("run", small)
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "interrupted\n")


@pytest.mark.processes
def test_execute_without_torch(small, tmp_path):
    # Everything that is installed but torch: with -S no other packages are found.
    packages = tmp_path / "packages"
    packages.mkdir()
    for entry in Path(simpy.__file__).parents[1].iterdir():
        if not entry.name.startswith(("torch", "functorch")):
            (packages / entry.name).symlink_to(entry)
    env = {"PYTHONPATH": os.pathsep.join([str(packages), str(ROOT)])}
    done = process("run", small, flags=["-S"], **env)
    assert (done.returncode, done.stderr) == (0, "")
    done = process("run", small, "--execute", "-o", tmp_path / "out", flags=["-S"], **env)
    assert (done.returncode, done.stdout) == (2, "")
    assert "stanza-sim[torch]" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


# ---- show, help


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("model", list(zoo.available())),
        ("cluster", config.available("topologies")),
        ("device", config.available("devices")),
        ("strategy", strategies.names()),
    ],
)
def test_show_lists_what_there_is_and_shows_each(what, names):
    assert call("show", what).stdout.split() == names
    for name in names:
        result = call("show", what, name)
        assert result.exit_code == 0, result.output
        assert len(result.stdout.splitlines()) > 3 or result.stdout == "it has no settings\n"
        assert max(map(len, result.stdout.splitlines())) <= 80


def test_show_model_gives_facts():
    text = call("show", "model", "vgg16").stdout
    assert "138,357,544" in text
    assert "89.4% of them FC" in text
    assert "from classifier.0" in text
    assert json.loads(call("show", "model", "vgg16", "--json").stdout)["name"] == "vgg16"


def test_show_schedule_prints_what_parses_back(small):
    text = call("show", "schedule", small, "--strategy", "stanza")
    assert text.exit_code == 0
    schedule = parse(text.stdout)
    assert (schedule.name, schedule.world_size) == ("stanza", 4)
    assert schedule.digest() in text.stdout.splitlines()[0]
    line, *more = call("show", "schedule", small, "--strategy", "stanza", "--json").stdout.splitlines()
    assert not more
    assert from_json(line) == schedule
    mine = call("show", "schedule", small, "--strategy", "stanza", "--rank", 3).stdout
    assert 0 < len(mine.splitlines()) < len(text.stdout.splitlines())


def test_help_has_examples():
    for args in ([], ["run"], ["show"], ["show", "schedule"]):
        result = call(*args, "--help")
        assert result.exit_code == 0
        assert "Example" in result.stdout
        assert "stanza-sim" in result.stdout
        assert max(map(len, result.stdout.splitlines())) <= 80
    assert call("--version").stdout == f"stanza-sim {__version__}\n"


@pytest.mark.processes
@pytest.mark.parametrize("how", [[], ["--json"]])
def test_output_that_cannot_be_written_is_said(small, how):
    command = [sys.executable, "-m", "stanza_sim", "run", str(small), *how]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, env=env, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: standard output: cannot be written: No space left on device\n"


@pytest.mark.processes
def test_two_processes_predict_what_one_does():
    rows = ("run", "ec2_v100", "--set", "models=[{model: resnet152}]", "--json")
    with_one, with_two = (process(*rows, "--jobs", jobs) for jobs in (1, 2))
    assert (with_one.returncode, with_two.returncode) == (0, 0), with_two.stderr
    assert with_one.stdout == with_two.stdout


@pytest.mark.processes
def test_what_is_wrong_with_a_row_is_said_by_two_processes_too():
    code = """
import sys
import stanza_sim.experiment.side_by_side as side_by_side
from stanza_sim.base.errors import InputError
from stanza_sim.cli.app import main

def wrong(index):
    raise InputError(f"row {index} is wrong", where="there", hint="like this")

side_by_side._predict = wrong
sys.argv = ["stanza-sim", "run", "ec2_v100", "--jobs", "2"]
main()
"""
    done = process(code=code)
    assert (done.returncode, done.stderr) == (2, "error: there: row 0 is wrong\n  like this\n")


def test_processes_are_for_predictions_alone(small):
    assert "--jobs: is for predictions alone" in refused("run", small, "--execute", "--jobs", 2)


@pytest.mark.processes
def test_python_dash_m_is_the_same_command():
    done = process("show", "strategy")
    assert (done.returncode, done.stdout.split()) == (0, strategies.names())
    assert process("show", "strategy", "ps").returncode == 2
