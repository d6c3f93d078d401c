"""`import kineto`: traces of known durations become block times, whichever way the blocks are told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stanza_sim.base.errors import InputError
from stanza_sim.cluster import load_cluster
from stanza_sim.importers.kineto import Stated, Taken, take
from stanza_sim.importers.kineto_comm import communication
from stanza_sim.importers.kineto_events import read_trace
from stanza_sim.model.zoo import load_model
from stanza_sim.schedule import CollectiveKind
from stanza_sim.simulate.measured_costs import MeasuredCosts
from tests.importers.traces import (
    BACKWARD_US,
    BATCH,
    FORWARD_US,
    LOSS_US,
    MODEL,
    NCCL_US,
    RELU_US,
    UPDATE_US,
    Tracing,
)


def taken(tmp_path: Path, tracing: Tracing, **stated: object) -> Taken:
    path = tracing.write(tmp_path / "trace.json")
    return take(read_trace(path), MODEL, Stated(**stated), source=path.name)  # type: ignore[arg-type]


def check(found: Taken, *, backward: bool = True, loss: bool = True) -> None:
    """Every kernel is its block's."""
    assert [row.block for row in found.profile.blocks] == [block.name for block in MODEL.blocks]
    for k, row in enumerate(found.profile.blocks):
        # the ReLU of the last block is its own only where something says that it is no loss
        assert row.forward_s == pytest.approx((FORWARD_US[k] + RELU_US) * 1e-6), row.block
        if backward:
            assert row.backward_s == pytest.approx(BACKWARD_US[k] * 1e-6), row.block
            assert row.backward_input_s + row.backward_weight_s == pytest.approx(row.backward_s)
        assert row.samples == BATCH
    if loss:
        assert found.profile.blocks[-1].loss_s == pytest.approx(2 * LOSS_US * 1e-6)


@pytest.mark.parametrize(
    ("tracing", "how"),
    [
        (Tracing(), "by the order of 5 convolution ops and 3 linear ops, whose weights have the shapes of the model"),
        (Tracing(marks=True), "by the names that record_function gave"),
        (Tracing(marks=True, prefix="## forward:"), "by the names that record_function gave"),
        (Tracing(modules=True), "of the model, and by the calls of nn.Module around them"),
        (Tracing(correlation=False), "whose weights have the shapes of the model"),
        (Tracing(nccl=True), "whose weights have the shapes of the model"),
    ],
    ids=["ops", "marks", "other marks", "modules", "External id", "NCCL beside"],
)
def test_kernels_are_their_blocks(tmp_path: Path, tracing: Tracing, how: str) -> None:
    found = taken(tmp_path, tracing)
    check(found)
    assert found.how.endswith(how)
    profile = found.profile
    assert (profile.device, profile.date, profile.precision) == ("cuda NVIDIA A100-SXM4-40GB", "2023-11-14", "fp32")
    nbytes = sum(block.numel for block in MODEL.blocks) * 4
    assert profile.update_Bps == pytest.approx(nbytes / (UPDATE_US * 1e-6))
    assert MeasuredCosts(profile, MODEL, "fp32").forward_s(MODEL.blocks[2], BATCH) == pytest.approx(310e-6)
    assert found.blocks_s == pytest.approx((sum(FORWARD_US) + sum(BACKWARD_US) + 80 + 14 + UPDATE_US) * 1e-6)


def test_clearing_gradients_is_part_of_the_update(tmp_path: Path) -> None:
    found = taken(tmp_path, Tracing(zero_us=100.0))
    check(found)
    nbytes = sum(block.numel for block in MODEL.blocks) * 4
    assert nbytes / found.profile.update_Bps == pytest.approx((UPDATE_US + 100.0) * 1e-6)


def test_times_on_a_cpu_are_from_one_block_to_the_next(tmp_path: Path) -> None:
    found = taken(tmp_path, Tracing(gpu=None))
    first, second = found.profile.blocks[:2]
    assert (first.forward_s, second.forward_s) == pytest.approx((114e-6, 214e-6))  # two gaps of 2 us
    assert second.backward_s == pytest.approx((BACKWARD_US[1] + 4) * 1e-6)
    assert found.profile.device == "cpu of the trace"
    with pytest.raises(InputError, match="is of a CPU"):
        taken(tmp_path, Tracing(gpu=None), device="A100")
    assert found.step_s is not None and found.blocks_s == pytest.approx(found.step_s, rel=0.01)


def test_times_are_medians_and_their_spread_is_kept(tmp_path: Path) -> None:
    found = taken(tmp_path, Tracing(slower=(3.0, 1.0, 1.2)))
    row = found.profile.blocks[0]
    assert row.forward_s == pytest.approx(110e-6 * 1.2)
    assert row.spread == pytest.approx((3.0 - 1.0) / 1.2)


def test_the_samples_come_from_the_shapes_or_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not say of how many samples a pass was\n  state --batch"):
        taken(tmp_path, Tracing(shapes=False))
    check(taken(tmp_path, Tracing(shapes=False), samples=BATCH))
    with pytest.raises(InputError, match="a pass is of 32 samples, --batch says 64"):
        taken(tmp_path, Tracing(), samples=64)
    small = Tracing()
    text = json.dumps(small.data()).replace("[32, 3, 224, 224]", "[32, 3, 64, 64]")
    (tmp_path / "small.json").write_text(text)
    with pytest.raises(InputError, match="it ran on samples of 3x64x64, alexnet is of 3x224x224"):
        take(read_trace(tmp_path / "small.json"), MODEL, Stated(), source="small")


def test_a_trace_without_backward_needs_a_ratio(tmp_path: Path) -> None:
    forward = {"backward": False, "update": False}
    with pytest.raises(InputError, match=r"has no backward pass\n.*--backward 2"):
        taken(tmp_path, Tracing(**forward))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="has a backward pass"):
        taken(tmp_path, Tracing(), backward=2.0)
    found = taken(tmp_path, Tracing(**forward), backward=2.0)  # type: ignore[arg-type]
    row = found.profile.blocks[1]
    assert (row.forward_s, row.backward_s) == pytest.approx((210e-6, 420e-6))
    assert [note.partition(":")[0] for note in found.notes] == [
        "the trace has no backward pass",
        "no update was found (Optimizer.step)",
        "no loss was found after the last block",
    ]


def test_the_precision_and_the_gpu_are_told_or_asked_for(tmp_path: Path) -> None:
    assert taken(tmp_path, Tracing(half="c10::BFloat16")).profile.precision == "bf16"
    assert taken(tmp_path, Tracing(), precision="tf32").profile.precision == "tf32"
    with pytest.raises(InputError, match="A100 has no data for precision 'int4'"):
        taken(tmp_path, Tracing(), precision="int4")
    with pytest.raises(InputError, match="is of the GPU 'NVIDIA B9000', of which nothing is known"):
        taken(tmp_path, Tracing(gpu="NVIDIA B9000"))
    for other in ("NVIDIA RTX A1000", "NVIDIA A100X", "NVIDIA GeForce RTX 3090 Ti"):
        with pytest.raises(InputError, match=f"is of the GPU '{other}', of which nothing is known"):
            taken(tmp_path, Tracing(gpu=other))
    known = taken(tmp_path, Tracing(gpu="NVIDIA GeForce RTX 3090")).profile.device
    assert known == "cuda RTX3090 NVIDIA GeForce RTX 3090"
    assert taken(tmp_path, Tracing(gpu="NVIDIA B9000"), device="V100").profile.device == "cuda V100 NVIDIA B9000"


def test_another_model_s_trace_says_what_it_has(tmp_path: Path) -> None:
    path = Tracing(modules=True).write(tmp_path / "trace.json")
    with pytest.raises(InputError) as caught:
        take(read_trace(path), load_model("vgg16"), Stated(), source="x")
    told = str(caught.value)
    assert "trace.json: the blocks of vgg16 (13 convolution, 3 linear) are not in it" in told
    assert "nn.Module calls Conv2d_0, Conv2d_1" in told and "15 convolution, 9 linear in 3 steps" in told
    assert "record_function" in told


def test_collectives_are_reported_beside_predictions(tmp_path: Path) -> None:
    trace = read_trace(Tracing(nccl=True, slower=(1.0, 0.5, 2.0)).write(tmp_path / "trace.json"))
    (row,) = communication(trace)
    assert (row.name, row.kind, row.nbytes, row.ranks) == ("allreduce", CollectiveKind.ALL_REDUCE, 10_000_000, 16)
    assert (row.count, row.median_s, row.least_s) == (3, NCCL_US * 1e-6, NCCL_US * 0.5e-6)
    predicted = row.predicted_s(load_cluster("dgx-a100-16"))
    assert predicted is not None and 1e-4 < predicted < 1e-3
    assert row.predicted_s(load_cluster("hgx-h100-1")) is None  # which has one GPU
    assert communication(read_trace(Tracing().write(tmp_path / "alone.json"))) == ()


def test_sizes_of_older_versions_are_those_of_the_mark(tmp_path: Path) -> None:
    old = Tracing(nccl=True, steps=1)
    data = old.data()
    kernel = next(e for e in old.events if str(e["name"]).startswith("nccl"))
    kernel["name"] = "ncclKernel_AllReduce_RING_LL_Sum_float(ncclWorkElem)"
    assert isinstance(kernel["args"], dict) and isinstance(kernel["ts"], float)
    kernel["args"] = {"correlation": kernel["args"]["correlation"]}
    launch = next(e for e in old.events if e["cat"] == "cuda_runtime" and e["args"] == kernel["args"])
    mark = {"ph": "X", "cat": "user_annotation", "name": "nccl:all_reduce", "pid": 7, "tid": 2}
    mark |= {"ts": launch["ts"], "dur": 4, "args": {"Input Dims": [[1000, 100]], "Input type": ["c10::Half"]}}
    old.events.append(mark)
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({**data, "distributedInfo": {"rank": 0, "world_size": 8}}))
    (row,) = communication(read_trace(path))
    assert (row.kind, row.nbytes, row.ranks) == (CollectiveKind.ALL_REDUCE, 200_000, 8)
    old.gpu = None
    gloo = {**mark, "name": "gloo:all_reduce", "dur": 5000, "ts": 10.0}
    path.write_text(json.dumps({"traceEvents": [gloo, {**mark, "ts": 20.0}]}))
    (row,) = communication(read_trace(path))
    assert (row.nbytes, row.median_s, row.ranks) == (200_000, 5e-3, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"traceEvents": [{"ph": "X", "cat": "cpu_op", "na', r"trace\.json:1: is cut short"),
        ('{"traceEvents": [\n{"ph": "X" "cat": 1}]}', r"trace\.json:2: is not JSON"),
        ('{"traceEvents": []}', "has no traceEvents"),
        ('{"traceEvents": {"ph": "X"}}', "has no traceEvents"),
        ('{"traceEvents": [{"ph": "X", "cat": "cpu_op", "name": "a", "ts": "soon"}]}', "event 0, 'a', has no"),
        ('{"traceEvents": [{"ph": "X", "cat": "cpu_op", "name": "a", "ts": 1, "dur": -1}]}', "event 0"),
        ("SwitchName=s0 Nodes=n0\n", "looks like a Slurm topology.conf, not a trace of PyTorch's profiler"),
        ("", "is empty"),
    ],
)
def test_a_file_that_is_no_trace_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "trace.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_trace(path)


def test_events_without_what_they_should_have_are_no_crash(tmp_path: Path) -> None:
    odd = [
        {"ph": "X", "cat": "kernel", "name": "k", "ts": 5, "dur": 1},
        {"ph": "X", "cat": "cpu_op", "name": "aten::conv2d", "ts": 5, "dur": 1, "args": None},
        {"ph": "X", "cat": "cpu_op", "name": "aten::linear", "ts": 6, "dur": 1, "args": {"Input Dims": "?"}},
        {"ph": "X", "cat": "user_annotation", "name": "features.0", "ts": 6, "dur": 1, "args": {"Input Dims": [[]]}},
        {"ph": "X", "cat": "cpu_op", "name": "a", "pid": {}, "tid": [], "ts": 7, "args": {"External id": []}},
        {"ph": "X", "cat": "kernel", "name": "ncclA", "ts": 7, "args": {"correlation": {}, "device": []}},
        {"ph": "B", "cat": "cpu_op"},
        7,
    ]
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"traceEvents": odd, "deviceProperties": "?", "distributedInfo": 3}))
    trace = read_trace(path)
    assert communication(trace)[0].nbytes is None
    with pytest.raises(InputError, match="are not in it"):
        take(trace, MODEL, Stated(), source="x")
