"""The sum over kinds of op: its formula, its laws, and that blocks and whole modules add up to the same step."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import stanza_sim as ss
from stanza_sim.base.errors import InputError
from stanza_sim.base.op_kinds import PRODUCTS, OpKind
from stanza_sim.cluster import load_cluster
from stanza_sim.cluster.device import DeviceSpec, LaunchCost, Precision, WorkConstants, load_device
from stanza_sim.model import zoo
from stanza_sim.model.module_work import work_of_profile
from stanza_sim.model.profile import scaled
from stanza_sim.schedule import Axis
from stanza_sim.schedule.cuts import cut_of, slice_block
from stanza_sim.simulate.cost_model import SGD_PASSES, step_s
from stanza_sim.simulate.costs import costs_for
from stanza_sim.simulate.roofline import LOSS_KERNELS, LOSS_PASSES
from stanza_sim.simulate.sum_costs import CAST_NBYTES, Launch, SumCosts, WorkTimes, launch_of, module_step_s, roughly

VGG, RESNET = zoo.get("vgg16"), zoo.get("resnet50")
GPUS = ("V100", "K80", "P100", "A100", "H100", "RTX3090")
PEAK, RATE, LAUNCH_S = 1e12, 1e11, 1e-4


def device(*, overlap: float = 1.0, **constants: dict[OpKind, float]) -> DeviceSpec:
    """A device whose constants are easy to compute with."""
    given = {"flops": dict.fromkeys(PRODUCTS, 2.0), "nbytes": dict.fromkeys(OpKind, 3.0), **constants}
    known = WorkConstants(source="made up", residuals=None, models={}, **given)
    precisions = {
        name: Precision(
            name=name, note=name, peak_flops=PEAK, default=1.0, default_source="", models={}, constants=known
        )
        for name in ("fp32", "fp16")
    }
    return DeviceSpec(
        name="Made",
        description="",
        memory_nbytes=10**9,
        memory_bandwidth_Bps=RATE,
        launch_overhead_s=1e-6,
        precisions=precisions,
        published_fp32="fp32",
        published=(),
        sources=("made up",),
        launch=LaunchCost(forward_s=LAUNCH_S, backward_s=LAUNCH_S / 4, overlap=overlap),
    )


def test_a_pass_is_the_sum_over_kinds_of_flops_bytes_and_kernels() -> None:
    costs, block, n = SumCosts(device(), RESNET), RESNET.block("layer1.0"), 16
    for i, phase in enumerate(("forward_s", "backward_input_s", "backward_weight_s")):
        expected_s = 0.0
        for work in block.work:
            one = work.passes[i]
            expected_s += 2 * one.flops * n / PEAK + 3 * (one.sample_nbytes * n + one.fixed_nbytes) / RATE
            expected_s += one.kernels * (LAUNCH_S if i == 0 else LAUNCH_S / 4)
        assert getattr(costs, phase)(block, n) == pytest.approx(expected_s)
    loss_s = 3 * LOSS_PASSES * 4 * 1000 * n / RATE + LOSS_KERNELS * LAUNCH_S
    assert costs.loss_s(RESNET.blocks[-1], n) == pytest.approx(loss_s)
    assert costs.update_s(10**9) == pytest.approx(SGD_PASSES * 1e9 / RATE, rel=1e-3)
    assert costs.reduce_s(10**9, 4) == pytest.approx(5e9 / RATE, rel=1e-3)


def test_each_kind_has_constants_of_its_own() -> None:
    plain, slow = device(), device(flops=dict.fromkeys(PRODUCTS, 2.0) | {OpKind.LINEAR: 20.0})
    fc, conv = VGG.fc_blocks[1], VGG.block("features.7")
    before, after = SumCosts(plain, VGG), SumCosts(slow, VGG)
    more_s = 18 * fc.forward_flops * 64 / PEAK
    assert after.forward_s(fc, 64) - before.forward_s(fc, 64) == pytest.approx(more_s)
    assert after.forward_s(conv, 64) == before.forward_s(conv, 64)


def test_autocast_halves_the_bytes_and_casts_the_weights() -> None:
    costs, half, block = SumCosts(device(), VGG), SumCosts(device(), VGG, "fp16"), VGG.fc_blocks[1]
    host_s = sum(work.forward.kernels for work in block.work) * LAUNCH_S
    flops_s = 2 * block.forward_flops / PEAK
    whole_s = costs.forward_s(block, 1) - host_s - flops_s
    half_s = half.forward_s(block, 1) - host_s - flops_s
    assert half_s == pytest.approx(whole_s / 2 + 3 * CAST_NBYTES * block.numel / RATE)
    assert half.loss_s(block, 8) == costs.loss_s(block, 8)


@given(samples=st.integers(1, 512), more=st.integers(1, 512), name=st.sampled_from(GPUS))
def test_laws_of_the_sum(samples: int, more: int, name: str) -> None:
    spec = load_device(name)
    costs, slow = SumCosts(spec, VGG), SumCosts(spec, VGG, speed=0.5)
    for block in (VGG.blocks[0], VGG.blocks[7], VGG.blocks[-1]):
        for phase in ("forward_s", "backward_input_s", "backward_weight_s", "backward_s", "loss_s"):
            assert getattr(slow, phase)(block, samples) == pytest.approx(2 * getattr(costs, phase)(block, samples))
        both = costs.backward_input_s(block, samples) + costs.backward_weight_s(block, samples)
        assert costs.backward_s(block, samples) == pytest.approx(both)
    assert 0 < step_s(costs, VGG, samples) < step_s(costs, VGG, samples + more)
    assert slow.update_s(1000) == pytest.approx(2 * costs.update_s(1000))
    assert slow.reduce_s(1000, 3) == pytest.approx(2 * costs.reduce_s(1000, 3))


@pytest.mark.parametrize("name", GPUS)
@pytest.mark.parametrize("model", [VGG, RESNET, zoo.get("inception_v3")], ids=lambda model: model.name)
def test_no_step_is_quicker_than_its_launches(name: str, model: zoo.ModelProfile) -> None:
    spec = load_device(name)
    assert spec.launch is not None
    passes = [one for block in model.blocks for work in block.work for one in (work.forward,)]
    backward = [p for block in model.blocks for work in block.work for p in (work.backward_input, work.backward_weight)]
    host_s = sum(p.kernels for p in passes) * spec.launch.forward_s
    host_s += sum(p.kernels for p in backward) * spec.launch.backward_s
    eager = step_s(SumCosts(spec, model, factored=False), model, 1)
    assert eager > host_s
    graphs = step_s(SumCosts(spec, model, factored=False, launch=Launch.GRAPHS), model, 1)
    assert graphs < eager / (3 if (name, model.name) == ("A100", "resnet50") else 1)
    large = [step_s(SumCosts(spec, model, factored=False, launch=how), model, 2048) for how in Launch]
    assert large[1] < large[0] < 1.1 * large[1]


def test_blocks_add_up_to_the_module() -> None:
    for precision in ("fp32", "fp16"):
        spec = load_device("V100")
        costs = SumCosts(spec, RESNET, precision, factored=False)
        whole_s = module_step_s(spec, work_of_profile(RESNET), precision, 24)
        updates = sum(1 for block in RESNET.blocks if block.numel)
        assert step_s(costs, RESNET, 24) == pytest.approx(whole_s + updates * spec.launch_overhead_s)


def test_a_measured_model_has_its_factor() -> None:
    spec = load_device("V100")
    constants = spec.precision("fp32").constants
    assert constants is not None
    factor = constants.models["resnet50"].value
    with_it, without = SumCosts(spec, RESNET), SumCosts(spec, RESNET, factored=False)
    block = RESNET.blocks[3]
    assert with_it.forward_s(block, 8) == pytest.approx(factor * without.forward_s(block, 8))
    assert f"resnet50 times {factor:.3g}, fitted to 3 published timings" in with_it.source
    residuals = constants.residuals
    assert residuals is not None
    assert f"sum model V100, median error {residuals.median:.0%} on 6 models (not measured" in without.source
    assert "as on other GPUs" in SumCosts(load_device("A100"), RESNET, "bf16").source
    assert SumCosts(spec, RESNET, launch=Launch.GRAPHS).source.endswith("launched by graphs")


def test_slices_take_their_share() -> None:
    model = zoo.get("alexnet")
    block = model.fc_blocks[1]
    cut = cut_of(model, block.name, "g", 4, Axis.COLUMNS, "here")
    part = slice_block(block, cut, 1024)
    costs = SumCosts(device(), model)
    fixed = [costs.forward_s(b, 0) for b in (block, part)]
    whole, quarter = (costs.forward_s(b, 4096) - f for b, f in zip((block, part), fixed, strict=True))
    assert quarter == pytest.approx(whole / 4, rel=1e-6)
    assert fixed[1] < fixed[0]


def test_scaled_models_compute_so_many_times_as_long() -> None:
    spec = device(overlap=1.25)
    for factor in (0.5, 3):
        other = scaled(RESNET, compute=factor)
        for block, scaled_block in list(zip(RESNET.blocks, other.blocks, strict=True))[1:]:
            whole_s = SumCosts(spec, RESNET).backward_s(block, 64)
            assert SumCosts(spec, other).backward_s(scaled_block, 64) == pytest.approx(factor * whole_s, rel=1e-3)


def test_a_block_of_which_only_totals_are_known_is_computed_roughly() -> None:
    bare = replace(VGG, blocks=tuple(replace(block, work=()) for block in VGG.blocks))
    spec = load_device("V100")
    known, rough = (step_s(SumCosts(spec, model, factored=False), model, 32) for model in (VGG, bare))
    assert 0.7 < rough / known < 1.4
    work = roughly(VGG.blocks[1], 4)
    assert sum(one.forward.flops for one in work) == VGG.blocks[1].forward_flops
    assert sum(one.forward.kernels for one in work) == VGG.blocks[1].kernels


def test_an_unknown_launch_and_a_device_without_constants_are_refused() -> None:
    assert launch_of("graphs") is Launch.GRAPHS
    with pytest.raises(InputError, match=r"no launch mode 'graph'\n  did you mean graphs"):
        launch_of("graph")
    with pytest.raises(InputError, match="device cpu has no constants for fp32"):
        SumCosts(load_device("cpu"), VGG)
    with pytest.raises(InputError, match="device K80 has no data for precision 'fp16'"):
        SumCosts(load_device("K80"), VGG, "fp16")


def test_costs_of_a_cluster_launch_as_asked() -> None:
    cluster = load_cluster("ec2-p3-10")
    eager, graphs = (costs_for(cluster, RESNET, launch=how)(0) for how in ("eager", "graphs"))
    assert step_s(graphs, RESNET, 4) < 0.7 * step_s(eager, RESNET, 4)
    schedule = ss.build_schedule("local", RESNET, cluster, batch_per_worker=4)
    one, other = (ss.predict(schedule, cluster, launch=how) for how in ("eager", "graphs"))
    assert other.iteration_s < 0.7 * one.iteration_s
    with pytest.raises(InputError, match=r"predict: launch.*'lazy'"):
        ss.predict(schedule, cluster, launch="lazy")


def test_blocks_in_fp32_are_left_out_of_autocast() -> None:
    """A sharded head of insightface: 125 thousand to 5.5 million classes cost its authors 525 ms an iteration."""
    seconds = []
    for classes in (125_000, 5_500_000):
        model = zoo.load_model("iresnet50", factory_kwargs={"classes": classes})
        head = model.blocks[-1]
        part = slice_block(head, cut_of(model, head.name, "g", 8, Axis.COLUMNS, "here"), classes // 8)
        costs = SumCosts(load_device("V100"), model, "fp16")
        times = (costs.forward_s(part, 1024), costs.backward_s(part, 1024), costs.loss_s(part, 1024))
        seconds.append(sum(times) + costs.update_s(part.numel * 4))
    assert 0.4 < seconds[1] - seconds[0] < 0.65
    half = replace(model, blocks=(*model.blocks[:-1], replace(head, fp32=False)))
    other = SumCosts(load_device("V100"), half, "fp16")
    assert other.forward_s(half.blocks[-1], 128) < 0.95 * costs.forward_s(head, 128)


@pytest.mark.parametrize("name", ["A100", "H100", "RTX3090"])
def test_fp32_is_strict_where_tf32_would_do(name: str) -> None:
    spec = load_device(name)
    strict, tensor = spec.precision("fp32"), spec.precision("tf32")
    assert strict.name == "fp32" and tensor.name == "tf32" and strict.peak_flops <= tensor.peak_flops
    assert strict.constants is not None and "was not measured at fp32" in strict.constants.source
    assert spec.published_fp32 == "tf32"
    # What autocast leaves in fp32 runs in TF32, where there is that.
    outside = WorkTimes(spec, "fp16", 1.0, Launch.EAGER).outside_autocast()
    assert outside.constants == tensor.constants
    assert WorkTimes(load_device("V100"), "fp16", 1.0, Launch.EAGER).outside_autocast().constants == (
        load_device("V100").precision("fp32").constants
    )
