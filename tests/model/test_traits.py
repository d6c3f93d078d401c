"""Modules as people bring them: what is extracted, and that the blocks compute what the module does."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stanza_sim.base.errors import InputError
from stanza_sim.experiment.worth import sample_flops
from stanza_sim.model.extract import build_module, extract, split
from stanza_sim.model.profile import ModelInput, ModelProfile
from stanza_sim.model.profile_json import from_json, to_json

WORDS = ["tok", "layers.0", "layers.1", "head"]


Shape = tuple[int, ...] | dict[str, tuple[int, ...]]
TWO = {"target": (4,), "source": (5,)}


def profile_of(net: str, shape: Shape, **kwargs: bool | float) -> ModelProfile:
    return extract(f"trait_nets:{net}", name=net, input_shape=shape, factory_kwargs=kwargs)


def samples(profile: ModelProfile, batch: int) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(7)
    first = ModelInput(name="", shape=profile.input_shape, vocabulary=profile.vocabulary)
    return tuple(
        torch.randn(batch, *i.shape) if i.vocabulary is None else torch.randint(0, i.vocabulary, (batch, *i.shape))
        for i in (first, *profile.more_inputs)
    )


def scores(returned: object) -> torch.Tensor:
    found = getattr(returned, "logits", returned)
    assert isinstance(found, torch.Tensor)
    return found


@pytest.mark.parametrize(
    ("net", "shape", "kwargs"),
    [
        ("Words", (6,), {}),
        ("Words", (5,), {"tied": False, "last": True}),
        ("Words", (6,), {"again": True}),
        ("Words", (6,), {"again": True, "last": True}),
        ("Odd", (6,), {}),
        ("Pixels", (1, 7, 7), {}),
        ("Shared", (4, 3), {}),
        ("Translator", TWO, {}),
    ],
)
def test_blocks_compute_what_the_module_does(net: str, shape: Shape, kwargs: dict[str, bool]) -> None:
    profile = profile_of(net, shape, **kwargs)
    assert from_json(to_json(profile), where="test") == profile
    torch.manual_seed(1)
    module, original = build_module(profile), build_module(profile)
    original.load_state_dict(module.state_dict())
    blocks = split(module, profile)
    for training in (True, False):
        original.train(training)
        given = samples(profile, 4)
        expected = scores(original(*given))
        for block, described in zip(blocks, profile.blocks, strict=True):
            block.module.train(training)
            x = block.module(*given)
            given = (x,)
            assert x.shape == (4, *described.output_shape)
        if net == "Translator":  # products of rows that lie apart may be added in another order
            torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(x, expected)
        if training:
            x.square().sum().backward()
            expected.square().sum().backward()
            for (name, p), q in zip(module.named_parameters(), original.parameters(), strict=True):
                assert p.grad is not None, name
                torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-5)
    for (name, a), b in zip(module.named_buffers(), original.buffers(), strict=True):
        assert torch.equal(a, b), name


def test_sequences() -> None:
    profile = profile_of("Words", (6,))
    assert [b.name for b in profile.blocks] == WORDS
    assert [b.output_shape for b in profile.blocks] == [(6, 8), (6, 8), (6, 8), (6, 11)]
    assert (profile.vocabulary, profile.num_classes, profile.labels.shape, profile.output) == (11, 11, (6,), "logits")
    assert [b.name for b in profile.fc_blocks] == ["head"]
    assert [[t.name for t in b.tied] for b in profile.blocks] == [[], [], [], ["tok.weight"]]
    assert profile.blocks[3].tensors == ()
    assert profile.blocks[3].backward_weight_flops == profile.blocks[3].forward_flops > 0
    last = profile_of("Words", (6,), last=True)
    assert (last.labels.shape, [b.name for b in last.fc_blocks]) == ((), ["head"])


def test_dense_scores_and_layers_called_again() -> None:
    profile = profile_of("Pixels", (1, 8, 8))
    assert (profile.num_classes, profile.labels.shape, profile.boundary) == (5, (8, 8), len(profile.blocks))
    shared = profile_of("Shared", (4, 3))
    assert [b.name for b in shared.blocks] == ["emb", "layer.0", "layer.0-2", "layer.0-3", "head"]
    assert [len(b.tied) for b in shared.blocks] == [0, 0, 12, 12, 0]


def test_encoders_and_decoders_are_towers_between_which_several_tensors_pass() -> None:
    profile = profile_of("Translator", TWO)
    layers = [f"{tower}.layers.{i}" for tower in ("encoder", "decoder") for i in range(2)]
    assert [b.name for b in profile.blocks] == ["words", *layers[:2], "words-2", *layers[2:], "head"]
    # The first block takes both inputs; the target's words are looked up when the encoder is done.
    assert (profile.input_shape, profile.more_inputs) == (
        (5,),
        (ModelInput(name="target", shape=(4,), vocabulary=13),),
    )
    memory, mask, target, ahead = 5 * 8, 5, 4, 4 * 8
    assert [b.output_shape for b in profile.blocks[:4]] == [
        *[(memory + 2 * mask + target,)] * 2,  # the encoder has a mask of floats beside that of truth values
        (memory + mask + target,),
        (memory + mask + ahead,),
    ]
    assert profile.blocks[4].output_shape == (memory + mask + ahead,)
    assert [b.output_shape for b in profile.blocks[5:]] == [(4, 8), (4, 13)]
    with pytest.raises(InputError, match=r"takes \(source, target\)\n  give the shape of each: input_shape: \{"):
        profile_of("Translator", (5,))
    with pytest.raises(InputError, match="has no argument 'tgt'"):
        profile_of("Translator", {"source": (5,), "target": (4,), "tgt": (4,)})


def test_recomputation_counts_as_much_as_it_takes() -> None:
    for last in (False, True):
        plain, again = (profile_of("Words", (6,), again=again, last=last) for again in (False, True))
        module = build_module(again)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            out = scores(module(*samples(again, 2)))
            assert counter.get_total_flops() == 2 * sum(b.forward_flops for b in again.blocks)
            out.sum().backward()
        backward = sum(b.forward_flops + b.backward_input_flops + b.backward_weight_flops for b in again.blocks)
        assert counter.get_total_flops() == 2 * backward
        assert again.blocks[1].backward_input_flops > plain.blocks[1].backward_input_flops
        assert sample_flops(again) == sample_flops(plain)
        assert from_json(to_json(again), where="here").blocks == again.blocks
        assert again.blocks[0] == plain.blocks[0]


def test_what_drops_paths_by_chance_is_called_as_it_is() -> None:
    profile = profile_of("Words", (6,), drop=0.5)
    assert [b.name for b in profile.blocks] == WORDS
    module = build_module(profile)
    blocks = split(module, profile)
    (x,) = samples(profile, 8)
    for training in (True, False):
        module.train(training)
        y = x
        torch.manual_seed(2)
        for block in blocks:
            block.module.train(training)
            y = block.module(y)
        torch.manual_seed(2)
        assert torch.equal(y, scores(module(x)))


def test_sparse_tables_say_how_many_rows_are_looked_up() -> None:
    first, head = profile_of("sparse_words", (5,)).blocks
    assert [t.lookups for t in (*first.tensors, *head.tensors)] == [5, 0, 0]
    bag = profile_of("sparse_bag", (5,)).blocks  # no one row for each number: its gradient is sent whole
    assert [t.lookups for b in bag for t in b.tensors] == [0, 0, 0]


def test_what_cannot_be_followed_is_named() -> None:
    with pytest.raises(InputError, match=r"experts \(Experts\) cannot be followed: .*nets.py, line \d+: `out\[cho"):
        profile_of("Nested", (4,))
    with pytest.raises(InputError, match=r"parameters are bfloat16 \(0.weight\)\n.*precision: bf16"):
        profile_of("bfloat16", (4,))
    with pytest.raises(InputError, match=r"Words fails on samples of 7: ValueError: too long"):
        profile_of("Words", (7,))


def test_a_compiled_module_is_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    import trait_nets

    monkeypatch.setattr(trait_nets, "compiled", lambda: torch.compile(nn.Sequential(nn.Linear(4, 2))), raising=False)
    assert [b.name for b in profile_of("compiled", (4,)).blocks] == ["0"]
