"""Blocks that are cut over a group: which can be, what their slices are, and every rule about them."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stanza_sim.base.errors import InputError, ScheduleError
from stanza_sim.model import zoo
from stanza_sim.model.profile import BlockKind, ModelProfile
from stanza_sim.schedule import Axis, check, parse
from stanza_sim.schedule.cuts import Linear, cut_of, linear_of, slice_block
from stanza_sim.schedule.ops import feature_bounds
from tests.schedule.toys import block, build, toy

TOY = toy()
MODEL = replace(
    TOY,
    blocks=(
        *TOY.blocks[:2],
        replace(TOY.blocks[2], output_shape=(30,)),
        block("f1", BlockKind.FC, [(7, 30), (7,)], 7, flops=420),
        TOY.blocks[4],
    ),
)
"""A boundary that is wide enough for the first layer to be cut by rows."""
SLICED = build("stanza", MODEL, 4, fc_workers=2, fc_parallel="model").text()
TURNS = build("stanza", MODEL, 4, fc_workers=2, fc_parallel="model", fc_compute="arrival", microbatches=2).text()


def test_the_bases_are_legal() -> None:
    check(parse(SLICED), MODEL)
    check(parse(TURNS), MODEL)


# Rule: (old text, new text, message).
BROKEN: dict[str, tuple[str, str, str]] = {
    "unknown block": ("cut f1 @", "cut f9 @", "model toy has no such block"),
    "no linear layer": ("cut f1 @fc_worker rows inputs=30 outputs=7", "cut c1 @fc_worker rows inputs=30 outputs=7",
                        "cut c1: the block is no linear layer"),
    "its features": ("rows inputs=30", "rows inputs=8", "cut f1: the block has 30 inputs, 7 outputs"),
    "cut twice": ("cut f2 @fc_worker columns inputs=7 outputs=4", "cut f1 @fc_worker columns inputs=30 outputs=7",
                  "block f1 is cut twice"),
    "bundle of a cut block": ("owners=fc_worker layout=features tensors=f1", "owners=fc_worker layout=cut tensors=f1",
                              "bundle f1 has layout=cut, and block f1 is cut"),
    "bundle of another block": ("layout=replicated tensors=c1", "layout=features tensors=c1", "block c1 is not cut"),
    "another group's bundle": ("bundle f1 numel=217 owners=fc_worker", "bundle f1 numel=217 owners=conv_worker",
                               "only an owner of bundle f1 may update it"),
    "partial sums used": ("fwd.f2: forward f2 @fc_worker after=sum.f1", "fwd.f2: forward f2 @fc_worker after=fwd.f1",
                          "act(f1) is not there before it is used"),
    "the loss of a slice by itself": ("loss f2 @fc_worker after=logsum.f2", "loss f2 @fc_worker after=fwd.f2",
                                      "logsum(f2) is not there before it is used"),
    "logsums before there are any": ("algorithm=ring after=fwd.f2", "algorithm=ring after=sum.f1",
                                     "logsum(f2) is not there before it is used"),
    "logsums of another block": ("all_gather logsum(f2)", "all_gather logsum(f1)", "logsums of the last block"),
    "logsums are not summed": ("all_gather logsum(f2)", "all_reduce logsum(f2)", "logsums of the last block"),
    "logsums are not sent": ("act(c2)+labels", "act(c2)+logsum(f2)", "not sent"),
    "slices are not joined": ("all_gather logsum(f2)", "all_gather act(f2)", "makes partial sums of its input's"),
    "partial gradients used": ("bwdi.f1: backward_input f1 @fc_worker after=sumgrad.f1",
                               "bwdi.f1: backward_input f1 @fc_worker after=bwdi.f2",
                               "actgrad(f1) is not there before it is used"),
    "what is summed": ("sum.f1: all_reduce act(f1) @fc_worker nbytes=224 algorithm=ring after=fwd.f1",
                       "sum.f1: all_reduce act(f1) @fc_worker nbytes=224 algorithm=ring after=act",
                       "act(f1) is not there before it is used"),
    "size of a sum": ("act(f1) @fc_worker nbytes=224", "act(f1) @fc_worker nbytes=220",
                      "nbytes=220, but 8 samples have 224 bytes"),
    "size of what is gathered": ("logsum(f2) @fc_worker nbytes=64", "logsum(f2) @fc_worker nbytes=32",
                              "nbytes=32, but 8 samples have 64 bytes"),
    "slices of another block's input": ("slices=f1 after=fwd.c2", "slices=f2 after=fwd.c2", "cut by rows"),
    "slices of nothing": ("slices=f1 after=fwd.c2", "slices=f3 after=fwd.c2", "slices=f3 is no block that is cut"),
    "a share of the slices": ("conv_worker->fc_worker all-pairs", "conv_worker->fc_worker blocked",
                              "slices of f1 go to all of fc_worker"),
    "whole gradients of slices": ("fc_worker->conv_worker all-pairs nbytes=480 channel=actgrad slices=f1",
                                  "fc_worker->conv_worker blocked nbytes=480 channel=actgrad",
                                  "actgrad(c2) is not there before it is used"),
    "a micro-batch too many": ("after=fwd.f1\n", "microbatch=1 after=fwd.f1\n", "counted from 0"),
    "a collective of labels": ("all_reduce act(f1)", "all_reduce labels", "of a cut block"),
    "gradients of a slice": ("upd.f1: update f1 @fc_worker after=bwdw.f1",
                             "ar: all_reduce grad(f1) @fc_worker nbytes=868 algorithm=ring after=bwdw.f1\n"
                             "upd.f1: update f1 @fc_worker after=ar", "there is nothing to exchange"),
}  # fmt: skip


@pytest.mark.parametrize("rule", BROKEN)
def test_each_rule(rule: str) -> None:
    old, new, message = BROKEN[rule]
    assert SLICED.count(old) == 1, "the replacement is not unique"
    with pytest.raises(ScheduleError) as e:
        check(parse(SLICED.replace(old, new)), MODEL)
    assert message in str(e.value)
    assert "schedule stanza" in str(e.value)


def test_a_sum_is_missing_and_the_hint_says_so() -> None:
    broken = SLICED.replace("fwd.f2: forward f2 @fc_worker after=sum.f1", "fwd.f2: forward f2 @fc_worker after=fwd.f1")
    with pytest.raises(ScheduleError) as e:
        check(parse(broken), MODEL)
    assert "a partial sum of it is there" in (e.value.hint or "")


def test_a_part_of_the_group_does_not_compute() -> None:
    broken = SLICED.replace("group fc_worker 2-3", "group fc_worker 2-3\ngroup one 2")
    broken = broken.replace("fwd.f1: forward f1 @fc_worker", "fwd.f1: forward f1 @one")
    with pytest.raises(ScheduleError, match=r"not there before it is used|all of it computes"):
        check(parse(broken), MODEL)


def test_more_ranks_than_features() -> None:
    with pytest.raises(ScheduleError, match="cut f2: a rank of fc_worker would have no feature"):
        check(parse(SLICED.replace("world=4", "world=7").replace("fc_worker 2-3", "fc_worker 2-6")), MODEL)


@given(st.integers(1, 300), st.integers(1, 40))
def test_features_are_cut_evenly_and_without_gaps(features: int, shards: int) -> None:
    bounds = [feature_bounds(features, shards, i) for i in range(shards)]
    assert bounds[0][0] == 0
    assert bounds[-1][1] == features
    assert all(a[1] == b[0] for a, b in pairwise(bounds))
    widths = [hi - lo for lo, hi in bounds]
    assert max(widths) - min(widths) <= 1
    assert widths[0] == max(widths) == -(-features // shards)


def test_linear_layers_are_known_by_their_tensors() -> None:
    vgg = zoo.get("vgg16")
    assert linear_of(vgg, "classifier.0") == Linear(25088, 4096)
    assert linear_of(vgg, "features.28") is None
    assert linear_of(MODEL, "f2") == Linear(7, 4)
    assert linear_of(MODEL, "pool") is None
    assert linear_of(replace(MODEL, blocks=MODEL.blocks[4:], boundary=0, input_shape=(7,)), "f2") == Linear(7, 4)
    assert linear_of(replace(MODEL, blocks=MODEL.blocks[4:], boundary=0, input_shape=(7, 1)), "f2") is None


@pytest.mark.parametrize("model", ["vgg16", "alexnet"])
@pytest.mark.parametrize("axis", list(Axis))
@pytest.mark.parametrize("shards", [1, 3, 7])
def test_slices_together_are_the_block(model: str, axis: Axis, shards: int) -> None:
    profile: ModelProfile = zoo.get(model)
    layer = profile.fc_blocks[1]
    cut = cut_of(profile, layer.name, "g", shards, axis, "here")
    widths = [hi - lo for lo, hi in (feature_bounds(cut.features, shards, i) for i in range(shards))]
    slices = [slice_block(layer, cut, width) for width in widths]
    bias = layer.tensors[1].numel
    extra = bias * (shards - 1) if axis is Axis.ROWS else 0
    assert sum(s.numel for s in slices) == layer.numel + extra
    assert sum(s.forward_flops for s in slices) == pytest.approx(layer.forward_flops, abs=shards)
    assert {s.output_shape for s in slices} == ({(w,) for w in widths} if axis is Axis.COLUMNS else {(4096,)})
    if shards == 1:
        assert slices == [layer]


def test_what_cannot_be_cut() -> None:
    with pytest.raises(InputError, match="block c2 of model toy is no linear layer") as e:
        cut_of(MODEL, "c2", "g", 2, Axis.ROWS, "here")
    assert e.value.hint
    with pytest.raises(InputError, match="the 4 output features of block f2 cannot be cut over 5 ranks"):
        cut_of(MODEL, "f2", "g", 5, Axis.COLUMNS, "here")
