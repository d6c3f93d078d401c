"""What the checks on GPUs compute of what they measure, and their ranks' part on cores."""

from __future__ import annotations

import csv
import json
import subprocess
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from stanza_sim.cluster import load_cluster  # noqa: E402
from stanza_sim.cluster.device import device_path, load_device  # noqa: E402
from stanza_sim.execute.rank.job import RunJob  # noqa: E402
from stanza_sim.execute.selftest import blocks, gpu_predictions, on_gpu, predictions, refit  # noqa: E402
from stanza_sim.execute.selftest.on_cores import off_by  # noqa: E402
from stanza_sim.execute.selftest.outcome import Here, Wrong  # noqa: E402
from stanza_sim.execute.start.launch import Pool  # noqa: E402
from stanza_sim.execute.start.tasks import RunTask  # noqa: E402
from stanza_sim.model.zoo import get  # noqa: E402
from stanza_sim.profiles.blocks import BlockTime, Profile, ProfiledModel, write_profile  # noqa: E402


def profile(model: str, batch: int, precision: str = "fp32", rate: float = 1e13, launch_s: float = 1e-4) -> Profile:
    """A made-up one: each block's passes take a launch, and its FLOPs at a rate that is half as high for FC blocks."""
    found = get(model)
    rows = []
    for n, b in enumerate(found.blocks):
        flops = b.forward_flops + b.backward_input_flops + b.backward_weight_flops
        took = launch_s + batch * flops / (rate if n < found.boundary else rate / 2)
        times: dict[str, Any] = dict.fromkeys(("backward_input_s", "backward_weight_s"), took / 3)
        rows.append(BlockTime(block=b.name, samples=batch, forward_s=took / 3, backward_s=2 * took / 3, **times))
    return Profile(
        device="cuda Some GPU",
        host_cores=4,
        versions={"torch": "2.13.0"},
        date="2026-01-02T03:04:05Z",
        precision=precision,
        ranks_at_once=1,
        model=ProfiledModel(name=model, fingerprint="x"),
        blocks=tuple(rows),
        reduce_Bps=1e11,
        update_Bps=1e11,
    )


def test_all_cases_cheapest_first() -> None:
    found = blocks.cases()
    assert len(found) == 9 * 3 * 3
    assert [blocks.work(c) for c in found] == sorted(blocks.work(c) for c in found)
    assert str(found[-1]).endswith("-128-fp32")
    lost = {found[0]: "too little memory", found[1]: "too little memory", found[2]: "no time was left"}
    text = blocks.summary(found[3:], lost)
    assert text == (
        f"78 of 81 profiles; missing (too little memory): {found[0]}, {found[1]}; "
        f"missing (no time was left): {found[2]}"
    )


def test_the_fit_finds_what_timings_were_made_of() -> None:
    profiles = [profile(m, b) for m in ("alexnet", "vgg16", "vgg19") for b in (8, 32)]
    found = {fit.part: fit for fit in refit.fits(profiles)}
    assert found["CONV"].flops == pytest.approx(1e13, rel=1e-6)
    assert found["FC"].flops == pytest.approx(5e12, rel=1e-6)
    assert found["CONV"].launch_s == pytest.approx(1e-4, rel=1e-6)
    assert found["FC"].off == pytest.approx(0.0, abs=1e-9)
    assert found["CONV"].weights_Bps is None or found["CONV"].weights_Bps > 1e15
    made_of = [(f, w, 1e-3 + f / 1e12 + w / 1e9) for f, w in ((1e9, 1e6), (5e9, 3e6), (2e9, 9e6), (7e9, 1e6))]
    again = refit.fit_of("FC", "fp32", made_of)
    assert (again.launch_s, again.flops, again.weights_Bps) == pytest.approx((1e-3, 1e12, 1e9))
    falling = refit.fit_of("CONV", "fp32", [(1e12, 1.0, 3.0), (2e12, 1.0, 2.0), (4e12, 1.0, 1.0)])
    assert falling.launch_s >= 0
    assert falling.flops is None or falling.flops > 0


def test_rows_for_the_device_file(tmp_path: Path) -> None:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "machine.json").write_text('{"gpu": {"device": "Some GPU"}}')
    for batch in (8, 32):
        write_profile(profile("alexnet", batch), tmp_path / "profiles" / f"alexnet-{batch}-fp32.json")
    lines = tmp_path / "lines"
    with lines.open("wb") as file:
        refit.refit(Here(names=("gpu:fit",), folder=tmp_path, limit_s=10.0, lines=file.fileno()))
    (end,) = [json.loads(line) for line in lines.read_text().splitlines()][1:]
    assert end["status"] == "passed", end
    assert "CONV fp32 10 TFLOPS, off by 0%" in end["detail"]
    rows = list(csv.DictReader(StringIO((tmp_path / "rows.csv").read_text())))
    assert [(r["gpu"], r["model"], r["batch"], r["image"]) for r in rows][1] == ("Some GPU", "alexnet", "8", "224")
    header = Path(refit.__file__).parents[2] / "data" / "single_timings.csv"
    assert tuple(rows[0]) == refit.COLUMNS == tuple(header.read_text().splitlines()[0].split(","))
    step_s = refit.step_s(profile("alexnet", 8))
    assert float(rows[1]["samples_per_s"]) == pytest.approx(8 / step_s, rel=1e-3)
    assert json.loads((tmp_path / "fit.json").read_text())["gpu"] == {"device": "Some GPU"}


def test_a_device_file_for_another_gpu(tmp_path: Path) -> None:
    text = gpu_predictions.renamed(device_path("H100").read_text(), "NVIDIA H200", 150_000_000_000)
    path = tmp_path / "device.yaml"
    path.write_text(text)
    found = load_device(str(path))
    assert (found.name, found.memory_nbytes) == ("NVIDIA H200", 150e9)
    assert found.memory_bandwidth_Bps == load_device("H100").memory_bandwidth_Bps
    assert gpu_predictions.device_called("Tesla V100-SXM2-16GB") == "V100"
    assert gpu_predictions.device_called("A GPU of tomorrow") is None


def test_a_topology_for_this_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_predictions, "device", lambda folder: "V100")
    alone = load_cluster(str(gpu_predictions.topology(tmp_path, None)))
    assert alone.world_size == 1
    assert alone.hosts[0].devices


def test_memory_is_judged() -> None:
    assert "(+20%)" in gpu_predictions.memory_words(120, 100)
    for estimated in (80, 140):
        with pytest.raises(Wrong, match="not within"):
            gpu_predictions.memory_words(estimated, 100)
    rows = [{"strategy": "all_reduce", "memory_nbytes": 3}, {"strategy": "local", "memory_nbytes": 2}]
    assert gpu_predictions.estimate({"plans": [{"ranked": rows, "best": rows[0]}]}) == 2
    assert gpu_predictions.estimate({"plans": [{"ranked": rows[:1], "best": rows[0]}]}) == 3


def test_predictions_are_judged_unless_others_compute() -> None:
    row = partial(predictions.Compared, label="x", measured_s=0.1)
    assert predictions.judged(row(predicted_s=0.08, others_pct=1.0)) == "80 ms predicted, 100 ms measured (-20.0%)"
    with pytest.raises(Wrong, match="more than a factor of 3 apart"):
        predictions.judged(row(predicted_s=0.02, others_pct=1.0))
    assert "not judged, other programs had 60%" in predictions.judged(row(predicted_s=0.02, others_pct=60.0))


def test_a_command_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.CompletedProcess([], 2, stdout="", stderr="note: x\nerror: no such thing\n  use another\n")
    monkeypatch.setattr(predictions.subprocess, "run", lambda *args, **kwargs: done)
    with pytest.raises(Wrong, match="error: no such thing use another"):
        predictions.command(["run", "x"], Here(names=(), folder=tmp_path, limit_s=1.0, lines=2))


def test_switches_of_fp32_agree() -> None:
    for precision in ("tf32", "ieee"):
        on_gpu.set_fp32(precision)
        assert torch.backends.cuda.matmul.fp32_precision == torch.backends.cudnn.conv.fp32_precision == precision
        assert torch.backends.cuda.matmul.allow_tf32 is (precision == "tf32")


def test_bits_are_compared() -> None:
    one = {"a": np.array([0.0, np.nan]), "b": np.array(1.0)}
    assert on_gpu.differing(one, {"a": np.array([0.0, np.nan]), "b": np.array(1.0)}) == []
    assert on_gpu.differing(one, {"a": np.array([-0.0, np.nan]), "b": np.array(1.0)}) == ["a"]
    with pytest.raises(Wrong, match="have not returned the same parameters"):
        on_gpu.differing(one, {})


@pytest.mark.processes
def test_ranks_of_staged_training_and_repeats(pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_gpu, "Pool", lambda *args, **options: nullcontext(pool))
    lines = tmp_path / "lines"
    with lines.open("wb") as file:
        here = partial(Here, folder=tmp_path, limit_s=60.0, lines=file.fileno())
        on_gpu.staged(here(names=("gpu:staged:stanza-2-sliced",)))
        on_gpu.repeats(here(names=("gpu:repeats",)))
    told = [json.loads(line) for line in lines.read_text().splitlines()]
    ends = {line["check"]: line for line in told if "check" in line}
    assert ends["gpu:staged:stanza-2-sliced"]["status"] == "passed", ends
    assert ends["gpu:repeats"] == {
        "check": "gpu:repeats",
        "status": "passed",
        "detail": "two runs are bitwise equal",
    }


@pytest.mark.processes
def test_parameters_that_are_off_are_found(pool: Pool) -> None:
    def faster(job: RunJob) -> RunTask:
        training = replace(job.training, optimizer=replace(job.training.optimizer, lr=0.11))
        return RunTask(replace(job, training=training))

    with pytest.raises(Wrong, match="off those of SGD"):
        off_by("all-reduce", faster, pool)
