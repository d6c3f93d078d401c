"""A validation in a testbed: interrupted by Ctrl-C it leaves nothing but its journal, and goes on from there."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from uuid import uuid4

import pytest

from stanza_sim.cluster import load_cluster
from stanza_sim.testbed.plan import prefix_of
from tests.testbed.short_calibration import SHORT

ROOT = Path(__file__).parents[2]
STAR = """\
name: {name}
hosts: [{{name: n, count: 2, cores: 2, devices: [V100], nic: {{rate: 200Mbps, efficiency: 0.9564}}}}]
switches: [{{name: switch}}]
"""
SUITE = """\
name: tiny
repeats: 2
timing: {time: 500ms, least: 2, most: 6, warmup: 1}
execute: {compute: emulated}
models: {alex: {model: alexnet, batch_per_worker: 64, scale: {bytes: 0.004}}}
strategies: {ring: all_reduce, shards: {strategy: parameter_server, settings: {placement: colocated}}}
networks: {star: ./star.yaml}
cases: [{network: star, model: alex, strategy: [ring, shards]}]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "star.yaml").write_text(STAR.format(name=f"test-{uuid4().hex[:8]}"))
    (tmp_path / "tiny.yaml").write_text(SUITE)
    return tmp_path


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    command = [*SHORT, "validate", "tiny.yaml", "-o", "out", *more]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    # Where SIGINT comes ignored, as in a job of a shell, Python would not raise KeyboardInterrupt.
    return subprocess.Popen(
        command,
        cwd=folder,
        env=env,
        stdout=pipe,
        stderr=pipe,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def in_session(leader: int) -> list[str]:
    """Commands of the processes that the one with this number has started, itself included."""
    found = subprocess.run(["ps", "-o", "args=", "-s", str(leader)], capture_output=True, text=True, check=False)
    return found.stdout.splitlines()


@pytest.mark.root
@pytest.mark.xdist_group("testbed")
@pytest.mark.timeout(300)
@pytest.mark.alone
def test_ctrl_c_leaves_nothing_but_the_journal_and_resume_completes_it(folder):
    run = start(folder)
    assert run.stderr is not None
    said = []
    for line in run.stderr:
        said.append(line)
        if line.startswith("[2/5]"):  # one calibration, one measurement
            break
    assert said[-1:], "the run ended early"
    assert any("wake-up" in line for line in said), "what calibration found is told"
    assert said[-1].startswith("[2/5] star/alex/"), said
    time.sleep(0.3)
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=30)
    assert (run.returncode, out) == (130, ""), err
    assert "measurements are kept in out/journal.jsonl; add --resume to go on" in err
    assert [p.name for p in (folder / "out").iterdir()] == ["journal.jsonl"]
    prefix = prefix_of(load_cluster(folder / "star.yaml").name, os.getuid())
    assert not [name for name in os.listdir("/run/netns") if name.startswith(prefix)]
    assert in_session(run.pid) == []

    again = start(folder, "--resume")
    out, err = again.communicate(timeout=100)
    assert again.returncode == 0, err
    data = json.loads((folder / "out" / "results.json").read_text())
    assert [(c["case"], len(c["repeats"])) for c in data["cases"]] == [("star/alex/ring", 2), ("star/alex/shards", 2)]
    assert "wake-up" not in err, "calibration is not done again"
    # What is predicted is what happens, if only roughly on a machine that runs other tests.
    assert data["errors_pct"]["max"] < 30
    assert not [name for name in os.listdir("/run/netns") if name.startswith(prefix)]
    assert in_session(again.pid) == []


@pytest.mark.nightly
@pytest.mark.root
@pytest.mark.xdist_group("testbed")
@pytest.mark.timeout(300)
@pytest.mark.alone
def test_three_hosts_are_also_predicted_from_a_calibration_on_two(folder):
    """Hosts are alike, so what two of them say of a message holds for three: the predictions are nearly the same."""
    star = folder / "star.yaml"
    star.write_text(star.read_text().replace("count: 2", "count: 3"))
    run = start(folder, "--set", "calibrate_on=2", "--only", "ring", "--repeats", "1")
    out, err = run.communicate(timeout=200)
    assert run.returncode == 0, err
    assert "calibrated on 2 hosts" in out
    data = json.loads((folder / "out" / "results.json").read_text())
    (case,) = data["cases"]
    assert case["nodes"] == 3
    assert case["small_predicted_s"] == pytest.approx(case["predicted_s"], rel=0.1)
    assert case["small_predicted_s"] != case["predicted_s"], "calibrated again, on other ranks"
    assert data["small_errors_pct"]["cases"] == 1
    assert "on 2 hosts wake-up" in case["calibration"][0]
