"""Cost models: the roofline against its formula, profiles against their numbers, and which a cluster gets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stanza_sim.base.config import available, find
from stanza_sim.base.errors import InputError
from stanza_sim.cluster import Host, Nic, load_cluster, star
from stanza_sim.cluster.device import load_device
from stanza_sim.model import zoo
from stanza_sim.model.profile_json import fingerprint
from stanza_sim.profiles.blocks import BlockTime, LoopbackTimes, Profile, ProfiledModel
from stanza_sim.schedule import Axis
from stanza_sim.schedule.cuts import cut_of, slice_block
from stanza_sim.simulate.costs import (
    SGD_PASSES,
    CostModel,
    MeasuredCosts,
    RooflineCosts,
    SumCosts,
    costs_for,
    device_costs,
    measured_name,
)
from stanza_sim.simulate.fit.write import MARKER

VGG = zoo.get("vgg16")
GPUS = ("V100", "K80", "P100", "A100", "H100")


def _step_s(costs: CostModel, samples: int) -> float:
    return sum(costs.forward_s(b, samples) + costs.backward_s(b, samples) for b in VGG.blocks)


# --- roofline --------------------------------------------------------------------------------------------------------


def test_a_block_with_much_arithmetic_is_bound_by_it() -> None:
    device, block = load_device("V100"), VGG.block("features.7")
    costs = RooflineCosts(device, VGG, efficiency=0.5)
    launch_s = block.kernels * 5e-6
    assert costs.forward_s(block, 64) == pytest.approx(block.forward_flops * 64 / (0.5 * 15.7e12) + launch_s)
    weight_s = block.backward_weight_flops * 64 / (0.5 * 15.7e12) + 5e-6
    assert costs.backward_weight_s(block, 64) == pytest.approx(weight_s)


def test_a_block_with_much_memory_is_bound_by_it() -> None:
    device, block = load_device("V100"), VGG.fc_blocks[0]
    costs = RooflineCosts(device, VGG)
    parameters_s = block.numel * 4 / 900e9
    one = costs.forward_s(block, 1)
    assert parameters_s < one < 1.1 * parameters_s + block.kernels * 5e-6


def test_reduce_update_and_loss_move_memory() -> None:
    costs = RooflineCosts(load_device("V100"), VGG)
    assert costs.update_s(10**9) == pytest.approx(SGD_PASSES * 1e9 / 900e9, rel=0.01)
    assert costs.reduce_s(10**9, 4) == pytest.approx(5e9 / 900e9, rel=0.01)
    assert 0 < costs.loss_s(VGG.blocks[-1], 32) < 1e-4


@given(samples=st.integers(1, 512), more=st.integers(1, 512), name=st.sampled_from(GPUS))
def test_laws_of_the_roofline(samples: int, more: int, name: str) -> None:
    device = load_device(name)
    costs, slow = RooflineCosts(device, VGG), RooflineCosts(device, VGG, speed=0.5)
    for block in (VGG.blocks[0], VGG.blocks[7], VGG.blocks[-1]):
        for phase in ("forward_s", "backward_input_s", "backward_weight_s", "backward_s", "loss_s"):
            time_s = getattr(costs, phase)(block, samples)
            assert 0 < time_s <= getattr(costs, phase)(block, samples + more)
            assert getattr(slow, phase)(block, samples) == pytest.approx(2 * time_s)
        both = costs.backward_input_s(block, samples) + costs.backward_weight_s(block, samples)
        assert costs.backward_s(block, samples) == pytest.approx(both)
    assert slow.update_s(1000) == pytest.approx(2 * costs.update_s(1000))
    assert slow.reduce_s(1000, 3) == pytest.approx(2 * costs.reduce_s(1000, 3))


def test_half_precision_moves_half_the_bytes() -> None:
    device, block = load_device("V100"), VGG.fc_blocks[0]
    single, half = RooflineCosts(device, VGG), RooflineCosts(device, VGG, "fp16")
    overhead_s = block.kernels * 5e-6
    assert half.forward_s(block, 1) - overhead_s == pytest.approx((single.forward_s(block, 1) - overhead_s) / 2)


def test_a_precision_without_data_is_refused() -> None:
    with pytest.raises(InputError, match=r"device K80 has no data for precision 'fp16'"):
        RooflineCosts(load_device("K80"), VGG, "fp16")
    with pytest.raises(InputError, match=r"has no data for precision 'tf32'"):
        RooflineCosts(load_device("V100"), VGG, "tf32")


def test_sources_say_what_they_rest_on() -> None:
    v100 = load_device("V100")
    assert RooflineCosts(v100, VGG, efficiency=0.5).source == "roofline V100, efficiency 0.5 as given"
    assert "A100 (fp32, without TF32)" in RooflineCosts(load_device("A100"), VGG).source
    assert "A100 (TF32 on tensor cores)" in RooflineCosts(load_device("A100"), VGG, "tf32").source
    assert "not calibrated" in RooflineCosts(load_device("cpu"), VGG).source
    assert RooflineCosts(v100, VGG, speed=0.8).source.endswith("at 0.8 of its speed")


def test_a_model_keeps_its_measurements_under_another_name_and_no_other_takes_them() -> None:
    assert measured_name(replace(VGG, name="mine")) == "vgg16"
    stranger = replace(VGG, factory="mymodel:vgg16")
    assert "not measured for vgg16" in SumCosts(load_device("V100"), stranger).source


def test_shipped_devices() -> None:
    assert {*GPUS, "cpu"} <= set(available("devices"))
    assert load_device("V100").precision("fp32").peak_flops == 15.7e12
    assert load_device("V100").memory_bandwidth_Bps == 900e9
    assert all(load_device(name).sources for name in available("devices"))


def test_computed_costs_are_a_sum_where_there_are_constants() -> None:
    assert isinstance(device_costs(load_device("V100"), VGG), SumCosts)
    assert isinstance(device_costs(load_device("cpu"), VGG), RooflineCosts)
    with pytest.raises(InputError, match=r"no launch mode 'lazy'"):
        device_costs(load_device("cpu"), VGG, launch="lazy")


# --- measured --------------------------------------------------------------------------------------------------------


def _profile(**changes: object) -> Profile:
    model = zoo.get("alexnet")
    rows = []
    for samples, scale in ((16, 1.0), (64, 2.5)):
        for index, block in enumerate(model.blocks):
            last = index == len(model.blocks) - 1
            rows.append(
                BlockTime(
                    block=block.name,
                    samples=samples,
                    forward_s=1e-3 * scale,
                    backward_s=3e-3 * scale,
                    backward_input_s=1.4e-3 * scale,
                    backward_weight_s=1.8e-3 * scale,
                    loss_s=1e-4 * scale if last else None,
                )
            )
    data: dict[str, object] = {
        "device": "cpu Some Processor",
        "host_cores": 2,
        "date": "2026-01-01",
        "precision": "fp32",
        "ranks_at_once": 4,
        "model": ProfiledModel(name="alexnet", fingerprint=fingerprint(model)),
        "blocks": tuple(rows),
        "reduce_Bps": 1e9,
        "update_Bps": 2e9,
    }
    return Profile.model_validate(data | changes)


@pytest.mark.parametrize(
    ("samples", "forward_s"),
    [(16, 1e-3), (64, 2.5e-3), (40, 1.75e-3), (8, 0.5e-3), (128, 5e-3), (1, 1e-3 / 16)],
)
def test_measured_times_are_exact_interpolated_or_proportional(samples: int, forward_s: float) -> None:
    model = zoo.get("alexnet")
    costs, block = MeasuredCosts(_profile(), model), model.blocks[-1]
    assert costs.forward_s(block, samples) == pytest.approx(forward_s)
    assert costs.backward_s(block, samples) == pytest.approx(3 * forward_s)
    assert costs.backward_input_s(block, samples) == pytest.approx(1.4 * forward_s)
    assert costs.backward_weight_s(block, samples) == pytest.approx(1.8 * forward_s)
    assert costs.loss_s(block, samples) == pytest.approx(0.1 * forward_s)
    estimated = "" if samples in (16, 64) else f"; from these estimated for {samples}"
    known = "measured on cpu Some Processor (2026-01-01, 4 ranks at once) for 16, 64 samples"
    assert costs.source == known + estimated


def test_slices_take_their_share_and_the_source_says_so() -> None:
    model = zoo.get("alexnet")
    block = model.fc_blocks[1]
    cut = cut_of(model, block.name, "g", 4, Axis.COLUMNS, "here")
    part = slice_block(block, cut, 1024)
    costs = MeasuredCosts(_profile(op_overhead_s=1e-5), model)
    assert costs.forward_s(part, 16) == pytest.approx(1e-3 / 4 + 1e-5)
    assert costs.forward_s(block, 16) == pytest.approx(1e-3 + 1e-5)
    assert costs.source.endswith("; slices of classifier.4 by their share of the FLOPs")
    roofline = RooflineCosts(load_device("V100"), model)
    launch = roofline.forward_s(block, 0) - block.numel * 4 / load_device("V100").memory_bandwidth_Bps
    whole, quarter = (roofline.forward_s(b, 10_000) - launch for b in (block, part))
    assert quarter == pytest.approx(whole / 4, rel=1e-6)
    assert roofline.forward_s(block, 1) > roofline.forward_s(part, 1)  # fewer parameters to read


def test_measured_rates_overhead_and_speed() -> None:
    model = zoo.get("alexnet")
    costs = MeasuredCosts(_profile(op_overhead_s=1e-4), model, speed=0.5)
    assert costs.reduce_s(10**6, 3) == pytest.approx(2 * (3e-3 + 1e-4))
    assert costs.update_s(10**6) == pytest.approx(2 * (0.5e-3 + 1e-4))
    assert costs.forward_s(model.blocks[0], 16) == pytest.approx(2 * 1.1e-3)
    assert costs.source.endswith("at 0.5 of its speed")
    with pytest.raises(InputError, match="no loss time for block"):
        costs.loss_s(model.blocks[0], 16)


# --- costs of a cluster ----------------------------------------------------------------------------------------------


def test_costs_by_device_and_speed() -> None:
    nic = Nic(bandwidth_Bps=1e9)
    cluster = star(
        [
            Host(name="a", cores=8, nic=nic, devices=("V100",)),
            Host(name="b", cores=8, nic=nic, devices=("V100",), device_speed=0.5),
            Host(name="c", cores=8, nic=nic, devices=("K80", "V100")),
            Host(name="d", cores=8, nic=nic),
        ]
    )
    costs = costs_for(cluster, VGG)
    assert cluster.world_size == 5
    assert costs(0) is costs(3)
    assert _step_s(costs(1), 32) == pytest.approx(2 * _step_s(costs(0), 32))
    assert _step_s(costs(2), 32) > 3 * _step_s(costs(0), 32)
    assert _step_s(costs(4), 1) > _step_s(costs(2), 1)
    parts = costs.source.split("; ")
    assert [part.partition(",")[0] for part in parts if part.startswith(("sum", "roofline"))] == [
        *("sum model V100", "sum model V100", "sum model K80", "roofline cpu"),
    ]
    assert parts[1].endswith("at 0.5 of its speed")


def test_a_profile_serves_the_ranks_on_its_device() -> None:
    model, profile = zoo.get("alexnet"), _profile()
    assert costs_for(load_cluster("laptop"), model, "fp32", profile).source.startswith("measured on cpu")
    nic = Nic(bandwidth_Bps=1e9)
    mixed = star([Host(name="a", cores=8, nic=nic), Host(name="b", cores=8, nic=nic, devices=("V100",))])
    costs = costs_for(mixed, model, "fp32", profile)
    assert costs(0).source.startswith("measured")
    assert costs(1).source.startswith("sum model V100")
    gpu = _profile(device="cuda Tesla V100-SXM2-16GB")
    assert costs_for(load_cluster("ec2-p3-10"), model, "fp32", gpu).source.startswith("measured on cuda")


def test_a_profile_of_something_else_is_refused() -> None:
    model, laptop = zoo.get("alexnet"), load_cluster("laptop")
    with pytest.raises(InputError, match="measured for model alexnet, not for vgg16"):
        costs_for(laptop, VGG, "fp32", _profile())
    with pytest.raises(InputError, match="measured at fp32, not at tf32"):
        costs_for(laptop, model, "tf32", _profile())
    with pytest.raises(InputError, match=r"measured on cpu Some Processor, the ranks of ec2-p3-10 compute on V100"):
        costs_for(load_cluster("ec2-p3-10"), model, "fp32", _profile())
    with pytest.raises(InputError, match=r"no time for block 'features\.0'"):
        costs_for(laptop, model, "fp32", _profile(blocks=_profile().blocks[1:8]))


def test_a_device_file_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "devices").mkdir()
    text = find("devices", "K80").read_text().partition(MARKER)[0]
    (tmp_path / "devices" / "Mine.yaml").write_text(text.replace("name: K80", "name: Mine"))
    assert "Mine" in available("devices")
    assert "nothing known" in RooflineCosts(load_device("Mine"), VGG).source
    (tmp_path / "devices" / "Bad.yaml").write_text(text.replace("240GB/s", "240GB"))
    with pytest.raises(InputError, match=r"Bad\.yaml:4: memory_bandwidth: '240GB' is not a rate"):
        load_device("Bad")
    (tmp_path / "devices" / "Bad2.yaml").write_text(text + "efficiency: {fp8: {default: {value: 1, source: x}}}\n")
    with pytest.raises(InputError, match=r"Bad2\.yaml: efficiency: .*'fp8'"):
        load_device("Bad2")


CONSTANTS = """\
published_fp32: fp32
launch: {forward: 100us, backward: 25us, overlap: 1.25}
constants:
  fp32: {source: mine, flops: {linear: 1.5}, bytes: {norm: 2.0}}
"""


@pytest.mark.parametrize(
    ("now", "then", "message"),
    [
        ("100us", "-100us", "launch.forward: '-100us' is negative"),
        ("100us", "100", "launch.forward: 100 has no unit"),
        ("overlap: 1.25", "overlap: 0.5", "launch.overlap.*greater than or equal to 1"),
        ("linear: 1.5", "linear: -1.5", r"constants\.fp32\.flops\.linear.*greater than 0"),
        ("linear: 1.5", "lineal: 1.5", r"constants\.fp32\.flops.*lineal"),
        ("  fp32:", "  fp23:", r"constants: constants of 'fp23', which is no precision of it"),
        ("_fp32: fp32", "_fp32: tf32", r"published_fp32: published_fp32 is 'tf32', which is no precision of it"),
        ("launch: {forward: 100us, backward: 25us, overlap: 1.25}\n", "", "constants, but no `launch`"),
        ("source: mine, ", "", "constants.fp32: the key 'source' is missing"),
    ],
)
def test_wrong_constants_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now: str, then: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "devices").mkdir()
    text = find("devices", "K80").read_text().partition(MARKER)[0].replace("K80", "Mine")
    (tmp_path / "devices" / "Mine.yaml").write_text(text + CONSTANTS)
    assert load_device("Mine").precision("fp32").constants is not None
    assert now in CONSTANTS
    (tmp_path / "devices" / "Wrong.yaml").write_text(text + CONSTANTS.replace(now, then))
    with pytest.raises(InputError, match=message):
        load_device("Wrong")


def test_loopback_times_are_part_of_a_profile() -> None:
    loopback = LoopbackTimes(latency_s=1e-5, message_core_s=2e-5, byte_core_s=1e-9, bandwidth_Bps=3e9)
    assert _profile(loopback=loopback).loopback == loopback
