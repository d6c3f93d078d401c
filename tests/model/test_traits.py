"""Modules as people bring them: what is extracted, and that the blocks compute what the module does."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stanza_sim.base.errors import InputError
from stanza_sim.model.extract import build_module, extract, split
from stanza_sim.model.profile import ModelProfile
from stanza_sim.model.profile_json import from_json, to_json

WORDS = ["tok", "layers.0", "layers.1", "head"]


def profile_of(net: str, *shape: int, **kwargs: bool | float) -> ModelProfile:
    return extract(f"trait_nets:{net}", name=net, input_shape=shape, factory_kwargs=kwargs)


def samples(profile: ModelProfile, batch: int) -> torch.Tensor:
    torch.manual_seed(7)
    shape = (batch, *profile.input_shape)
    return torch.randn(shape) if profile.vocabulary is None else torch.randint(0, profile.vocabulary, shape)


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
    ],
)
def test_blocks_compute_what_the_module_does(net: str, shape: tuple[int, ...], kwargs: dict[str, bool]) -> None:
    profile = profile_of(net, *shape, **kwargs)
    assert from_json(to_json(profile), where="test") == profile
    torch.manual_seed(1)
    module, original = build_module(profile), build_module(profile)
    original.load_state_dict(module.state_dict())
    blocks = split(module, profile)
    for training in (True, False):
        original.train(training)
        x = samples(profile, 4)
        expected = scores(original(x))
        for block, described in zip(blocks, profile.blocks, strict=True):
            block.module.train(training)
            x = block.module(x)
            assert x.shape == (4, *described.output_shape)
        assert torch.equal(x, expected)
        if training:
            x.square().sum().backward()
            expected.square().sum().backward()
            for (name, p), q in zip(module.named_parameters(), original.parameters(), strict=True):
                assert p.grad is not None, name
                torch.testing.assert_close(p.grad, q.grad, rtol=1e-6, atol=1e-6)
    for (name, a), b in zip(module.named_buffers(), original.buffers(), strict=True):
        assert torch.equal(a, b), name


def test_sequences() -> None:
    profile = profile_of("Words", 6)
    assert [b.name for b in profile.blocks] == WORDS
    assert [b.output_shape for b in profile.blocks] == [(6, 8), (6, 8), (6, 8), (6, 11)]
    assert (profile.vocabulary, profile.num_classes, profile.labels.shape, profile.output) == (11, 11, (6,), "logits")
    assert [b.name for b in profile.fc_blocks] == ["head"]
    assert [[t.name for t in b.tied] for b in profile.blocks] == [[], [], [], ["tok.weight"]]
    assert profile.blocks[3].tensors == ()
    assert profile.blocks[3].backward_weight_flops == profile.blocks[3].forward_flops > 0
    last = profile_of("Words", 6, last=True)
    assert (last.labels.shape, [b.name for b in last.fc_blocks]) == ((), ["head"])


def test_dense_scores_and_layers_called_again() -> None:
    profile = profile_of("Pixels", 1, 8, 8)
    assert (profile.num_classes, profile.labels.shape, profile.boundary) == (5, (8, 8), len(profile.blocks))
    shared = profile_of("Shared", 4, 3)
    assert [b.name for b in shared.blocks] == ["emb", "layer.0", "layer.0-2", "layer.0-3", "head"]
    assert [len(b.tied) for b in shared.blocks] == [0, 0, 12, 12, 0]


def test_recomputation_counts_as_much_as_it_takes() -> None:
    for last in (False, True):
        plain, again = (profile_of("Words", 6, again=again, last=last) for again in (False, True))
        module = build_module(again)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            out = scores(module(samples(again, 2)))
            assert counter.get_total_flops() == 2 * sum(b.forward_flops for b in again.blocks)
            out.sum().backward()
        backward = sum(b.forward_flops + b.backward_input_flops + b.backward_weight_flops for b in again.blocks)
        assert counter.get_total_flops() == 2 * backward
        assert again.blocks[1].backward_input_flops > plain.blocks[1].backward_input_flops
        assert again.blocks[0] == plain.blocks[0]


def test_what_drops_paths_by_chance_is_called_as_it_is() -> None:
    profile = profile_of("Words", 6, drop=0.5)
    assert [b.name for b in profile.blocks] == WORDS
    module = build_module(profile)
    blocks = split(module, profile)
    x = samples(profile, 8)
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
    first, head = profile_of("sparse_words", 5).blocks
    assert [t.lookups for t in (*first.tensors, *head.tensors)] == [5, 0, 0]


def test_what_cannot_be_followed_is_named() -> None:
    with pytest.raises(InputError, match=r"experts \(Experts\) cannot be followed: .*nets.py, line \d+: `out\[cho"):
        profile_of("Nested", 4)
    with pytest.raises(InputError, match=r"parameters are bfloat16 \(0.weight\)\n.*precision: bf16"):
        profile_of("bfloat16", 4)
    with pytest.raises(InputError, match=r"Words fails on samples of 7: ValueError: too long"):
        profile_of("Words", 7)


def test_a_compiled_module_is_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    import trait_nets

    monkeypatch.setattr(trait_nets, "compiled", lambda: torch.compile(nn.Sequential(nn.Linear(4, 2))), raising=False)
    assert [b.name for b in profile_of("compiled", 4).blocks] == ["0"]
