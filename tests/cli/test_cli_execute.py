"""`--execute` from the command line, with real processes: what it prints and writes, and how it fails."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stanza_sim.cli.app import app
from stanza_sim.schedule import parse
from tests.listeners import watched

ROOT = Path(__file__).parents[2]
TINY = """\
name: tiny
cluster: laptop
nodes: 3
batch_per_worker: 8
models: [{model: "stanza_sim.model.examples:tiny_cnn", input_shape: [1, 8, 8]}]
strategies:
  - {strategy: all_reduce, label: ring}
  - {strategy: stanza, settings: {conv_exchange: parameter_server}}
training: {iterations: 14, warmup: 2, data: digits}
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


def start(*args: object, cwd: Path, module: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", *module, "stanza_sim", "run", *map(str, args)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(cwd)]), "COLUMNS": "80", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        env=env,
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=heed_interrupts,
    )


def heed_interrupts() -> None:
    """A shell starts background jobs with SIGINT ignored, and that is inherited; a user's terminal does not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    with watched(process.pid) as open_to_others:
        out, err = process.communicate(timeout=100)
    assert not open_to_others
    assert "Traceback" not in err
    return process.returncode, out, err


def children(of: int) -> list[int]:
    """Processes whose parent is `of`."""
    text = Path(f"/proc/{of}/task/{of}/children")
    return [int(pid) for pid in text.read_text().split()] if text.exists() else []


def gone(pids: list[int]) -> bool:
    """Whether all of `pids` end within a few seconds (a dead one that nobody has waited for counts as ended)."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        running = [p for p in pids if Path(f"/proc/{p}/stat").exists()]
        if all(Path(f"/proc/{p}/stat").read_text().rpartition(")")[2].split()[0] == "Z" for p in running):
            return True
        time.sleep(0.1)
    return False


@pytest.mark.processes
@pytest.mark.timeout(300)
def test_local_ranks_and_torchrun_agree(tiny, tmp_path):
    out, profile = tmp_path / "out", tmp_path / "cpu.json"
    status, printed, said = finish(
        start(tiny, "--execute", "-v", "--json", "-o", out, "--save-profile", profile, cwd=tmp_path)
    )
    assert status == 0, said
    assert "ranks listen on loopback: no other machine reaches them" in said
    assert "timing the blocks of tiny_cnn" in said
    assert (out / "result.json").read_text() == printed
    runs = json.loads(printed)["runs"]
    for run, text in zip(runs, sorted((out / "schedules").iterdir()), strict=True):
        measured, predicted = run["measured"], run["predicted"]
        assert parse(text.read_text()).digest() == run["schedule_hash"]
        assert 0 < measured["iteration_s_min"] <= measured["iteration_s"] <= measured["iteration_s_max"]
        assert measured["loss_last"] < measured["loss_first"]
        assert run["error_pct"] == pytest.approx(100 * (predicted["iteration_s"] / measured["iteration_s"] - 1))
        assert predicted["cost_source"].startswith("measured on cpu")
        assert run["machine"]["change_pct"] > -100
        assert run["machine"]["against_profile_pct"] is None
    assert len(list((out / "spans").glob("*.measured.csv"))) == 2

    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", "3", "-m")
    status, printed, said = finish(
        start(tiny, "--execute", "-v", "--json", "--profile", profile, cwd=tmp_path, module=torchrun)
    )
    assert status == 0, said
    assert said.count("ranks listen on loopback: no other machine reaches them") == 1
    again = json.loads(printed)["runs"]
    assert "is predicted from the profile of" in said
    for key in ("label", "settings", "schedule_hash"):
        assert [r[key] for r in again] == [r[key] for r in runs]
    # A profile that is given stays as it is, however fast the machine is now; that is said beside it.
    status, printed, said = finish(start(tiny, "--json", "--profile", profile, cwd=tmp_path))
    assert status == 0, said
    assert [r["predicted"] for r in again] == [r["predicted"] for r in json.loads(printed)["runs"]]
    assert all(r["machine"]["against_profile_pct"] > -100 for r in again)
    # Losses do not depend on who started the ranks.
    for key in ("loss_first", "loss_last"):
        assert [r["measured"][key] for r in again] == [r["measured"][key] for r in runs]


@pytest.mark.processes
def test_emulated_compute_is_said_everywhere_and_trains_nothing(tiny, tmp_path):
    out = tmp_path / "out"
    status, printed, said = finish(start(tiny, "--execute", "--compute", "emulated", "-o", out, cwd=tmp_path))
    assert status == 0, said
    assert printed.splitlines()[0] == "tiny: 3 nodes of laptop, fp32, emulated compute"
    assert "loss" not in printed
    assert "timing the blocks" not in said
    assert "measuring single messages" in said
    kept = json.loads((out / "result.json").read_text())["runs"]
    for run in kept:
        assert run["measured"]["compute"] == "emulated"
        assert run["measured"]["loss_first"] is None
        assert run["predicted"]["cost_source"].startswith("roofline cpu")
    status, printed, said = finish(start("--from", out, "--json", cwd=tmp_path))
    assert status == 0, said
    for run, replayed in zip(kept, json.loads(printed)["runs"], strict=True):  # waits are as long as predicted
        assert replayed["measured_s"] == run["measured"]["iteration_s"]
        assert replayed["replayed_s"] == pytest.approx(run["predicted"]["iteration_s"], rel=0.25)


DEADLY = """
import os, signal
import torch

class Deadly(torch.utils.data.Dataset):
    def __len__(self):
        return 100
    def __getitem__(self, index):
        if index > 50 and torch.distributed.is_initialized():  # in a rank, not when samples are looked at before
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.zeros(1, 8, 8), 0
"""


@pytest.mark.processes
def test_a_rank_that_dies_ends_the_run(tiny, tmp_path):
    (tmp_path / "deadly.py").write_text(DEADLY)
    out = tmp_path / "out"
    process = start(tiny, "--execute", "-o", out, "--set", "training.data=deadly:Deadly", cwd=tmp_path)
    seen: set[int] = set()
    while process.poll() is None:
        seen.update(children(process.pid))
        time.sleep(0.05)
    status, printed, said = finish(process)
    assert (status, printed) == (1, "")
    assert "error: the run failed: rank" in said
    assert "signal 9" in said
    assert len(seen) == 3
    assert gone(list(seen))
    assert not out.exists()


@pytest.mark.processes
def test_ctrl_c_leaves_nothing_behind(tiny, tmp_path):
    out = tmp_path / "out"
    process = start(tiny, "--execute", "-o", out, "--set", "training.iterations=100000", cwd=tmp_path)
    for line in process.stderr:
        if "timing" in line:
            break
    time.sleep(1)
    ranks = children(process.pid)
    assert len(ranks) == 3
    process.send_signal(signal.SIGINT)
    status, printed, said = finish(process)
    assert (status, printed) == (130, "")
    assert said.endswith("interrupted\n")
    assert gone(ranks)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny.yaml"]


def test_losses_cannot_be_emulated(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hosts = "hosts: [{name: n, count: 2, cores: 8, devices: [V100], nic: {rate: 10Gbps}, losses: {barrier: true}}]"
    (tmp_path / "lossy.yaml").write_text(f"name: t\n{hosts}\nswitches: [{{name: s}}]\n")
    args = ["run", "ec2_v100", "--set", "cluster=lossy.yaml", "--set", "nodes=2", "--set", "models=[alexnet]"]
    result = CliRunner().invoke(
        app, [*args, "--execute", "--compute", "emulated"], env={"COLUMNS": "200", "RANK": None}
    )
    assert result.exit_code == 2
    assert "what is lost at n-0 cannot be emulated" in result.stderr


FASTER = ("--compute", "emulated", "--testbed")
ON_GPUS = ("--set", "cluster=multi-gpu", "--set", "nodes=2", "--set", "models=[alexnet]")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["ec2_v100"], "use --set cluster=laptop --set nodes=10"),
        (["laptop", "--set", "precision=tf32"], "cannot train in tf32: TF32 is a mode of NVIDIA's tensor cores"),
        (["laptop", "--compute", "guessed"], "should be 'real' or 'emulated'"),
        (["laptop", "--set", "execute.realtime=true"], "realtime is for emulated compute"),
        (["laptop", "--compute", "emulated", "--save-profile", "p.json"], "with emulated compute no block is timed"),
        (
            ["laptop", "--compute", "emulated", "--set", "simulation.jitter={kind: uniform, spread: 0.1}"],
            "jitter and stragglers cannot be emulated",
        ),
        (["ec2_v100", *ON_GPUS, "--compute", "emulated"], "nvlink inside node-0 cannot be emulated"),
        (["laptop", "--testbed"], "a single host cannot be emulated"),
        (["ec2_v100", "--dilate", "4"], "dilate is for emulated compute"),
        (["ec2_v100", "--compute", "emulated", "--dilate", "4"], "only links of a testbed can be slowed down"),
        (["ec2_v100", "--compute", "emulated", "--dilate", "0.5"], "0.5 is not a number of times, 1 or more"),
        (["ec2_v100", "--compute", "emulated", "--dilate", "fast"], "'fast' is not a number of times, 1 or more"),
        (["ec2_v100", "--compute", "emulated", "--dilate=-3"], "-3 is not a number of times, 1 or more"),
        (["ec2_v100", *FASTER, "--dilate", "4"], "--dilate 13 or more"),
        (["ec2_v100", *FASTER, "--dilate", "20000"], "dilate by 10000 at most"),
        (["ec2_v100", "--set", "models=[alexnet]", "--save-profile", "no/p.json"], "--save-profile no/p.json"),
        (["ec2_v100", "--save-profile", "p.json"], "{model}"),
    ],
    ids=[
        "one-machine",
        "precision",
        "compute",
        "realtime",
        "nothing-timed",
        "jitter",
        "nvlink",
        "one-host",
        "dilated-real",
        "dilated-here",
        "dilation-below-1",
        "dilation-a-word",
        "dilation-negative",
        "dilated-too-little",
        "dilated-too-much",
        "folder",
        "several-models",
    ],
)
def test_what_cannot_be_executed_is_said_at_once(tmp_path, monkeypatch, args, says):
    """Before any rank is started, so there is no process to see to."""
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["run", *args, "--execute"], env={"COLUMNS": "80", "RANK": None})
    assert (result.exit_code, result.stdout) == (2, "")
    assert isinstance(result.exception, SystemExit)
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []
