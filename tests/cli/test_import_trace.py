"""`stanza-sim import kineto` as a user meets it: what is printed, what is written, and what a run makes of it."""

from __future__ import annotations

import json
from pathlib import Path

from stanza_sim.profiles.blocks import read_profile
from tests.cli.test_cli import call, refused
from tests.importers.traces import BACKWARD_US, FORWARD_US, LOSS_US, RELU_US, UPDATE_US, Tracing

EXPERIMENT = """name: one
cluster: {cluster}
batch_per_worker: 32
models: [alexnet]
strategies: [local]
"""
CLUSTER = """name: one
hosts: [{name: node, cores: 8, devices: [A100]}]
"""


def test_a_trace_becomes_a_profile_and_a_run_takes_as_long_as_it(tmp_path: Path) -> None:
    trace = Tracing(nccl=True).write(tmp_path / "trace.json")
    target = tmp_path / "mine.json"
    done = call("import", "kineto", trace, "--model", "alexnet", "-o", target, "--cluster", "dgx-a100-16")
    assert done.exit_code == 0, done.output
    assert "features.0" in done.stdout and "0.110" in done.stdout and "allreduce" in done.stdout
    assert "10.000" in done.stdout  # MB
    assert f"written to {target}" in done.stderr
    profile = read_profile(target)
    assert profile.provenance["source"] == "trace.json"
    (tmp_path / "one.yaml").write_text(CLUSTER)
    (tmp_path / "e.yaml").write_text(EXPERIMENT.replace("{cluster}", "one.yaml"))
    ran = call("run", tmp_path / "e.yaml", "--profile", target, "--json")
    assert ran.exit_code == 0, ran.output
    (row,) = json.loads(ran.stdout)["runs"]
    wanted = sum(FORWARD_US) + sum(BACKWARD_US) + len(FORWARD_US) * RELU_US + 2 * LOSS_US + UPDATE_US
    assert abs(row["predicted"]["iteration_s"] / (wanted * 1e-6) - 1) < 1e-3


def test_what_is_refused_leaves_nothing(tmp_path: Path) -> None:
    trace = Tracing().write(tmp_path / "trace.json")
    target = tmp_path / "mine.json"
    options = ("--model", "alexnet", "-o", target)
    for more, message in (
        (("--model", "alexnet", "-o", tmp_path / "mine.yaml"), "is no name of a profile"),
        (("--model", "alxnet", "-o", target), "alexnet"),
        ((*options, "--backward", "0"), "--backward: 0 forwards"),
        ((*options, "--backward", "2"), "has a backward pass"),
        ((*options, "--batch", "7"), "--batch says 7"),
        ((*options, "--device", "B9"), "unknown device 'B9'"),
        ((*options, "--cluster", "nowhere"), "unknown topology 'nowhere'"),
        ((*options, "--input-shape", "3x4"), "'3x4' is no shape"),
        (("--model", "vgg16", "-o", target), "the blocks of vgg16"),
    ):
        assert message in refused("import", "kineto", trace, *more)
    trace.write_bytes(trace.read_bytes()[:5000])
    assert "trace.json:1: is cut short" in refused("import", "kineto", trace, *options)
    trace.write_text("9 1 8\n8\n0 8 400Gbps 0.0005ms 0\n")
    told = refused("import", "kineto", trace, *options)
    assert "looks like a SimAI topology" in told and f"stanza-sim import simai {trace}" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trace.json"]
