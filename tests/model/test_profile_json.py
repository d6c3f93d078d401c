from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stanza_sim.base.errors import InputError
from stanza_sim.base.op_kinds import OpKind
from stanza_sim.model import zoo
from stanza_sim.model.labels import Labels, Loss
from stanza_sim.model.profile import (
    Block,
    BlockKind,
    ModelInput,
    ModelProfile,
    OpWork,
    ParamTensor,
    PassWork,
    with_boundary,
)
from stanza_sim.model.profile_json import MOST, fingerprint, from_json, to_json

sizes = st.lists(st.integers(1, 2**40), max_size=4).map(tuple)
texts = st.text(min_size=1, max_size=8)
counts = st.integers(0, MOST)
passes = st.builds(PassWork, flops=counts, sample_nbytes=counts, fixed_nbytes=counts, kernels=counts)
works = st.lists(
    st.builds(OpWork, kind=st.sampled_from(OpKind), forward=passes, backward_input=passes, backward_weight=passes),
    max_size=3,
    unique_by=lambda work: work.kind,
).map(tuple)
blocks = st.builds(
    Block,
    name=texts,
    kind=st.just(BlockKind.CONV),
    tensors=st.lists(st.builds(ParamTensor, name=texts, shape=sizes), max_size=3).map(tuple),
    forward_flops=counts,
    backward_input_flops=counts,
    backward_weight_flops=counts,
    bytes_touched=counts,
    kernels=counts,
    output_shape=sizes,
    work=works,
    fp32=st.booleans(),
)


labels = st.builds(
    Labels,
    loss=st.sampled_from(Loss),
    shape=sizes,
    class_axis=st.sampled_from([0, -1]),
    probabilities=st.booleans(),
)
inputs = st.builds(ModelInput, name=texts, shape=sizes, vocabulary=st.none() | st.integers(0, 9))


@st.composite
def profiles(draw: st.DrawFn) -> ModelProfile:
    chain = tuple(draw(st.lists(blocks, min_size=1, max_size=4, unique_by=lambda b: b.name)))
    profile = ModelProfile(
        name=draw(texts),
        blocks=chain,
        boundary=len(chain),
        input_shape=draw(sizes),
        num_classes=draw(st.integers(1, 100)),
        itemsize=draw(st.sampled_from([2, 4, 8])),
        factory=draw(st.none() | texts),
        factory_kwargs=draw(
            st.dictionaries(texts, st.none() | st.booleans() | st.integers() | texts, max_size=3).map(
                lambda d: tuple(d.items())
            )
        ),
    )
    profile = replace(
        profile,
        vocabulary=draw(st.none() | st.integers(0, 9)),
        stated_labels=draw(st.none() | labels),
        more_inputs=draw(st.lists(inputs, max_size=2).map(tuple)),
        output=draw(st.none() | texts),
    )
    return with_boundary(profile, draw(st.integers(0, len(chain))))


@settings(max_examples=60)
@given(profiles())
def test_round_trip(profile: ModelProfile) -> None:
    assert from_json(to_json(profile), where="test") == profile


def test_fingerprint_follows_the_blocks_only() -> None:
    profile = zoo.get("alexnet")
    first = profile.blocks[0]
    assert fingerprint(profile) == fingerprint(with_boundary(replace(profile, name="other"), 2))
    others = [
        replace(first, name="x"),
        replace(first, forward_flops=1),
        replace(first, tensors=first.tensors[:1]),
        replace(first, output_shape=(1,)),
    ]
    prints = {fingerprint(replace(profile, blocks=(b, *profile.blocks[1:]))) for b in (first, *others)}
    assert len(prints) == 5


DATA = json.loads(to_json(zoo.get("alexnet")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "stanza-sim-model/0"}, "format is 'stanza-sim-model/0'\n  it must be 'stanza-sim-model/1'"),
        ({"nmae": 1}, "unknown key 'nmae'"),
        ({"name": 3}, "name is 3\n  it must be a text"),
        ({"input_shape": [3, -1]}, "input_shape is .3, -1.\n  it must be a list of positive integers"),
        ({"input_shape": 3}, "input_shape is 3\n  it must be a list"),
        ({"num_classes": True}, "num_classes is True\n  it must be an integer of at least 1"),
        ({"boundary": "classifier.2"}, "boundary is 'classifier.2'\n  it must be the name of a block, or null"),
        ({"factory_kwargs": []}, "factory_kwargs: list in place of an object"),
        ({"factory_kwargs": {"a": [1]}}, "factory_kwargs: a is"),
        ({"blocks": [], "boundary": None}, "has no blocks"),
        ({"labels": {"loss": "hinge", "shape": []}}, "labels: loss is 'hinge'\n  it must be one of cross_entropy, mse"),
        ({"labels": {"loss": "mse", "shape": [], "class_axis": 1}}, "labels: class_axis is 1\n  it must be 0 or -1"),
        ({"vocabulary": -1}, "vocabulary is -1"),
        ({"blocks": [DATA["blocks"][0] | {"tied": [["w", 3]]}], "boundary": None}, "tied to w, which no block before"),
        ({"blocks": [3]}, r"blocks\[0\]: int in place of an object"),
        ({"blocks": DATA["blocks"][:1] * 2, "boundary": None}, "two blocks of one name"),
        ({"blocks": [DATA["blocks"][0] | {"kernels": -1}], "boundary": None}, r"blocks\[0\]: kernels is -1"),
        ({"blocks": [DATA["blocks"][0] | {"tensors": [[]]}], "boundary": None}, r"blocks\[0\]: tensors is"),
        ({"blocks": [DATA["blocks"][0] | {"tensors": [["w", 0]]}], "boundary": None}, r"tensors\[0\]: shape is"),
        ({"blocks": [DATA["blocks"][0] | {"fp32": 1}], "boundary": None}, r"blocks\[0\]: fp32 is 1\n  it must be true"),
        ({"blocks": [DATA["blocks"][0] | {"work": []}], "boundary": None}, "work: list in place of an object"),
        ({"blocks": [DATA["blocks"][0] | {"work": {"conf": []}}], "boundary": None}, "unknown key 'conf'"),
        (
            {"blocks": [DATA["blocks"][0] | {"work": {"conv": [[1, 2, 3, -4]] * 3}}], "boundary": None},
            r"work: conv is .*\n  it must be \[FLOPs",
        ),
        ({"blocks": [{k: v for k, v in DATA["blocks"][0].items() if k != "name"}]}, r"blocks\[0\]: name is missing"),
    ],
)
def test_malformed_profiles(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_json(json.dumps(DATA | change), where="alexnet.json")


@pytest.mark.parametrize("text", ["", "[]", b"\xff\xfe\x00", to_json(zoo.get("alexnet"))[:900], "null", "[" * 100_000])
def test_what_is_no_profile(text: str | bytes) -> None:
    with pytest.raises(InputError, match=r"^x\.json: "):
        from_json(text, where="x.json")
