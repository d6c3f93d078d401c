"""FC parts that are cut over a group: `stanza` with `fc_parallel: model`, and `sharded_head`."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from stanza_sim import strategies
from stanza_sim.base.errors import InputError
from stanza_sim.cluster import Nic
from stanza_sim.model import zoo
from stanza_sim.model.profile import BlockKind, ModelProfile
from stanza_sim.schedule import Axis, Compute, Phase, check, from_json, parse
from stanza_sim.simulate.lowering.compute_times import compute_seconds
from stanza_sim.simulate.lowering.fold import fold
from stanza_sim.strategies._shared.model_parallel import axes
from tests.schedule.toys import SOME, block, build, cluster, predict, toy
from tests.strategies.sliced_bytes import sliced_bytes

SLICED: list[tuple[str, int, dict[str, object]]] = [
    ("stanza", 4, {"fc_workers": 2}),
    ("stanza", 5, {"fc_workers": 3, "activations": "bf16"}),
    ("stanza", 5, {"fc_workers": 4, "microbatches": 2}),
    ("stanza", 5, {"fc_workers": 2, "fc_compute": "arrival", "microbatches": 2, "eager_backward": 1}),
    ("stanza", 4, {"fc_workers": 3, "placement": "colocated", "overlap": False}),
    ("stanza", 3, {"fc_workers": 3, "placement": "colocated", "fc_compute": "arrival"}),
    ("sharded_head", 1, {}),
    ("sharded_head", 4, {}),
    ("sharded_head", 4, {"fc_compute": "batch"}),
    ("sharded_head", 3, {"fc_compute": "batch", "microbatches": 4, "overlap": False}),
    ("sharded_head", 3, {"microbatches": 2, "activations": "bf16", "eager_backward": 2}),
]


def stack(*features: int) -> ModelProfile:
    """A toy whose boundary and linear layers have so many features."""
    conv = (*toy().conv_blocks[:2], replace(toy().blocks[2], output_shape=(features[0],)))
    fc = (
        block(f"f{i}", BlockKind.FC, [(b, a), (b,)] if i != 2 else [(b, a)], b, flops=2 * a * b)
        for i, (a, b) in enumerate(pairwise(features), 1)
    )
    return replace(toy(), blocks=(*conv, *fc), num_classes=features[-1])


def three() -> ModelProfile:
    """Three linear layers, which few numbers of ranks divide."""
    return stack(62, 31, 13, 4)


@pytest.mark.parametrize(
    ("features", "letters"),
    [
        ((5, 31), "c"),
        ((62, 31), "r"),
        ((30, 7, 4), "rc"),
        ((6, 7, 4), "cr"),
        ((62, 31, 13, 4), "rcr"),
        ((6, 31, 13, 5), "crc"),
    ],
)
@pytest.mark.parametrize(("strategy", "world", "settings"), SLICED, ids=lambda v: str(v))
def test_legal_and_of_the_closed_form_s_bytes(
    strategy: str, world: int, settings: dict[str, object], features: tuple[int, ...], letters: str
) -> None:
    model = stack(*features)
    given = settings | ({"fc_parallel": "model"} if strategy == "stanza" else {})
    schedule = build(strategy, model, world, batch=4, **given)
    check(schedule, model)
    assert parse(schedule.text()) == schedule == from_json(schedule.to_json())
    if world > 1:
        assert "".join(c.axis[0] for c in schedule.cuts) == letters
    on = cluster(world, nic=Nic(bandwidth_Bps=1e6, latency_s=1e-4, overhead_s=1e-5))
    plain = predict(schedule, model, on, fold_ranks=False)
    rows = schedule.cuts[0].axis is Axis.ROWS
    expected = sliced_bytes(model, strategy, world, 4, rows=rows, **settings)  # type: ignore[arg-type]
    assert [(plain.sent_bytes[r], plain.received_bytes[r]) for r in range(world)] == expected
    assert plain.iteration_s >= plain.bound_s * (1 - 1e-9)
    folded = predict(schedule, model, on)
    assert folded.iteration_s == pytest.approx(plain.iteration_s, rel=1e-9)


def test_ranks_with_equal_slices_are_folded() -> None:
    schedule = build("stanza", three(), 9, fc_workers=4, fc_parallel="model")
    # 62 inputs of f1 and 13 outputs of f2 over four ranks: 16, 16, 15, 15 and 4, 3, 3, 3.
    assert [str(c) for c in fold(schedule, cluster(9)).classes] == ["0-4", "5", "6", "7-8"]


def test_a_slice_costs_its_share() -> None:
    model = three()
    seconds = [
        compute_seconds(build("sharded_head", model, n, fc_compute="batch"), model, lambda rank: SOME) for n in (1, 2)
    ]
    (whole,), (half, other) = seconds
    assert whole["fwd.f1"] == pytest.approx(4 * 3844e-6)
    assert half["fwd.f1"] == pytest.approx(8 * 1922e-6)  # half of it for twice as many samples
    assert (half["fwd.f2"], other["fwd.f2"]) == pytest.approx((8 * 434e-6, 8 * 372e-6))  # 7 and 6 of 13 features
    # f2 has no bias; f1's is whole on both ranks, since it is added to the sum.
    assert half["upd.f2"] == pytest.approx(7 * 31 * 4 * SOME.update_byte_s)
    assert half["upd.f1"] == pytest.approx((31 * 31 + 31) * 4 * SOME.update_byte_s)
    assert half["loss"] == whole["loss"]


def test_turns_are_computed_while_others_are_exchanged() -> None:
    schedule = build("sharded_head", three(), 2)
    order = [op.name for op in schedule.for_rank(0) if isinstance(op, Compute)]
    assert order.index("fwd.f1/2") < order.index("loss/1") < order.index("loss/2")


def test_one_layer_is_cut_by_rows() -> None:
    schedule = build("stanza", zoo.get("resnet152"), 6, batch=32, fc_workers=3, fc_parallel="model")
    assert [str(c.axis) for c in schedule.cuts] == ["rows"]
    check(schedule, zoo.get("resnet152"))


@pytest.mark.parametrize(
    ("strategy", "settings", "message", "hint"),
    [
        ("stanza", {"fc_parallel": "model"}, "one FC worker has all of every layer", "fc_workers: 2 or more"),
        ("stanza", {"fc_workers": 8, "fc_parallel": "model"}, "8 FC workers of 8 nodes leave 0 CONV", "at most 7 of 8"),
        (
            "stanza",
            {"fc_workers": 2, "fc_parallel": "model", "cut": "c2"},
            "block c2 of model toy is no linear",
            "nn.L",
        ),
        ("sharded_head", {}, "the 7 output features of block f1 cannot be cut over 8 ranks", "at most 7"),
        (
            "sharded_head",
            {"eager_backward": 2},
            "2 micro-batches cannot go backward one by one: there are 1",
            "at most 1",
        ),
        ("sharded_head", {"microbatches": 3}, "a batch of 4 cannot be cut in 3 equal micro-batches", "one of 1, 2, 4"),
    ],
)
def test_what_does_not_fit(strategy: str, settings: dict[str, object], message: str, hint: str) -> None:
    with pytest.raises(InputError) as e:
        build(strategy, toy(), 8, **settings)
    assert message in str(e.value)
    assert hint in (e.value.hint or "")
    assert strategy in str(e.value)


def test_a_layer_with_fewer_features_than_ranks_is_cut_by_the_others() -> None:
    assert [str(a) for a in axes(stack(30, 7, 4), 4)] == ["rows", "columns"]
    assert [str(a) for a in axes(stack(30, 7, 4), 5)] == ["columns", "rows"]
    with pytest.raises(InputError, match="the 4 output features of block f2 cannot be cut over 8 ranks") as e:
        build("stanza", stack(30, 7, 4), 9, fc_workers=8, fc_parallel="model")
    assert e.value.hint == "use at most 4"


def test_a_head_needs_two_parts() -> None:
    for boundary, part in ((0, "CONV"), (5, "FC")):
        with pytest.raises(InputError, match=f"model toy has no {part} part"):
            build("sharded_head", replace(toy(), boundary=boundary), 2)


@pytest.mark.parametrize("world", [1, 4, 8])
def test_the_space_of_sharded_head_is_of_settings_that_can_be_built(world: int) -> None:
    head = strategies.get("sharded_head")
    found = list(head.space(toy(), world_size=world, batch_per_worker=6, local_size=2))
    assert len(found) == len(set(found))
    assert (found[:1] == [head.Settings()]) == (world <= 7)
    for settings in found:
        head.build(toy(), world_size=world, batch_per_worker=6, settings=settings)


def test_every_rank_of_a_cut_computes_the_loss_of_all_samples() -> None:
    schedule = build("stanza", toy(), 5, fc_workers=3, fc_parallel="model")
    (loss,) = [op for op in schedule.ops if isinstance(op, Compute) and op.phase is Phase.LOSS]
    assert schedule.group(loss.ranks) == schedule.group("fc_worker")
