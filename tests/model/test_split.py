from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stanza_sim.base.errors import InputError
from stanza_sim.model.extract import SplitBlock, build_module, extract, replace_dropout, split
from stanza_sim.model.profile import ModelProfile

NETS = [
    ("model_nets:Residual", (1, 8, 8), {}),
    ("model_nets:Residual", (1, 8, 8), {"mc_dropout": True}),
    ("model_nets:FunctionalNorm", (6,), {}),
    ("model_nets:Transformer", (1, 8, 8), {}),
    ("model_nets:TiedInside", (4,), {}),
    ("model_nets:OtherName", (4,), {}),
    ("model_nets:frozen", (4,), {}),
    ("stanza_sim.model.examples:tiny_cnn", (1, 8, 8), {}),
    ("torchvision.models:resnet18", (3, 32, 32), {}),
]


def profile_of(path: str, shape: tuple[int, ...], **kwargs: str | int) -> ModelProfile:
    return extract(path, name="net", input_shape=shape, factory_kwargs=kwargs)


def apply(blocks: tuple[SplitBlock, ...], x: torch.Tensor, seed: int = 3) -> torch.Tensor:
    torch.manual_seed(seed)
    for block in blocks:
        x = block.module(x)
    return x


def assert_same_training(profile: ModelProfile) -> None:
    """Blocks one after another do what the module does: outputs, gradients, running statistics, in both modes."""
    torch.manual_seed(1)
    module = build_module(profile)
    original = copy.deepcopy(module)
    blocks = split(module, profile)
    x = torch.randn(4, *profile.input_shape)
    for training in (True, False):
        original.train(training)
        for block in blocks:
            block.module.train(training)
        torch.manual_seed(3)
        expected = original(x.clone())
        out = apply(blocks, x.clone())
        assert torch.equal(out, expected)
        if training:
            out.square().sum().backward()
            expected.square().sum().backward()
    for (name, p), q in zip(module.named_parameters(), original.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        assert p.grad is None or torch.equal(p.grad, q.grad), name
    for (name, a), b in zip(module.named_buffers(), original.buffers(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(("path", "shape", "kwargs"), NETS)
def test_blocks_one_after_another_are_the_module(
    path: str, shape: tuple[int, ...], kwargs: dict[str, str | int]
) -> None:
    assert_same_training(profile_of(path, shape, **kwargs))


@settings(max_examples=20, deadline=None)
@given(st.text("cbsrdfv", max_size=7))
def test_any_arrangement_of_layers(layers: str) -> None:
    assert_same_training(profile_of("model_nets:random_net", (3, 4, 4), layers=layers))


@pytest.mark.parametrize(("path", "shape", "kwargs"), NETS)
def test_parameters_are_the_modules_own(path: str, shape: tuple[int, ...], kwargs: dict[str, str | int]) -> None:
    profile = profile_of(path, shape, **kwargs)
    module = build_module(profile)
    own = dict(module.named_parameters())
    seen = set()
    for block, described in zip(split(module, profile), profile.blocks, strict=True):
        assert block.name == described.name
        assert list(block.parameters) == [t.name for t in described.tensors]
        inside = {id(p) for p in block.module.parameters() if p.requires_grad}
        assert inside == {id(p) for p in block.parameters.values()}
        for tensor in described.tensors:
            assert block.parameters[tensor.name] is own[tensor.name]
            held = dict(block.module.named_parameters(remove_duplicate=False))
            assert block.places[tensor.name]
            assert all(held[place] is own[tensor.name] for place in block.places[tensor.name])
            assert tuple(own[tensor.name].shape) == tensor.shape
        assert not seen & inside
        seen |= inside
    assert seen == {id(p) for p in own.values() if p.requires_grad}


def test_each_block_gives_the_profiles_shape_for_any_batch_and_leaves_its_input_alone() -> None:
    profile = profile_of("model_nets:Residual", (1, 8, 8))
    for batch in (2, 5):
        x = torch.randn(batch, 1, 8, 8)
        for block, described in zip(split(build_module(profile), profile), profile.blocks, strict=True):
            leaf = x.detach().requires_grad_()
            x = block.module(leaf)
            assert x.shape == (batch, *described.output_shape)
            before = leaf.detach().clone()
            x.sum().backward()
            assert torch.equal(leaf.detach(), before)
            assert leaf.grad is not None


def test_integer_samples() -> None:
    profile = profile_of("model_nets:Words", (5,))
    module = build_module(profile)
    words = torch.randint(0, 20, (3, 5))
    assert torch.equal(apply(split(module, profile), words), module(words))


def test_a_meta_module_splits_without_memory_and_batch_norm_stays() -> None:
    profile = profile_of("stanza_sim.model.examples:digits_cnn", (1, 8, 8))
    blocks = split(build_module(profile, device="meta"), profile)
    assert all(p.is_meta for b in blocks for p in b.parameters.values())
    norms = [n for b in blocks for n, m in b.module.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms == ["features.1", "features.4", "features.8", "features.11"]


def test_blocks_start_in_the_modules_mode_and_the_module_keeps_its_own() -> None:
    profile = profile_of("model_nets:Residual", (1, 8, 8))
    module = build_module(profile)
    attributes = set(vars(module))
    module.eval()
    module.norm.train()
    blocks = split(module, profile)
    assert not module.training
    assert module.norm.training
    assert set(vars(module)) == attributes
    module.norm.eval()
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(apply(blocks, x), module(x.clone()))


@pytest.mark.parametrize(("path", "shape", "kwargs"), NETS)
def test_blocks_of_a_meta_module_work_with_other_parameters(
    path: str, shape: tuple[int, ...], kwargs: dict[str, str | int]
) -> None:
    profile = profile_of(path, shape, **kwargs)
    module = build_module(profile)
    state, values = module.state_dict(), dict(module.named_parameters())
    blocks = split(build_module(profile, device="meta"), profile)
    for block in blocks:
        block.module.to_empty(device="cpu")
        missing = block.module.load_state_dict(state, strict=False).missing_keys
        assert missing == []
        for name in block.parameters:
            block.rebind(name, nn.Parameter(values[name].detach().clone()))
        assert {id(p) for p in block.module.parameters() if p.requires_grad}.isdisjoint(map(id, module.parameters()))
    x = torch.randn(3, *shape)
    out = apply(blocks, x.clone())
    torch.manual_seed(3)
    assert torch.equal(out, module(x.clone()))
    with torch.no_grad():
        for block in blocks:
            for name in block.parameters:
                block.rebind(name, nn.Parameter(torch.zeros_like(values[name])))
    assert not apply(blocks, x).any()


def test_tied_weights_are_rebound_at_every_place() -> None:
    profile = profile_of("model_nets:TiedInside", (4,))
    first, _ = split(build_module(profile), profile)
    assert first.places["left.weight"] == ("left.weight", "right.weight")
    other = nn.Parameter(torch.zeros(4, 4))
    first.rebind("left.weight", other)
    held = dict(first.module.named_parameters(remove_duplicate=False))
    assert held["left.weight"] is other
    assert held["right.weight"] is other


def test_another_module_than_the_profiles_is_refused() -> None:
    profile = profile_of("model_nets:mlp", (4,), width=8)
    with pytest.raises(InputError, match=r"the module's block 0 is not the profile's block 0: .*\(9, 4\)"):
        split(build_module(profile_of("model_nets:mlp", (4,), width=9)), profile)
    with pytest.raises(InputError, match="the module has 2 blocks and its profile 3"):
        split(nn.Sequential(*list(build_module(profile))[:3]), profile)


class Recorded(nn.Module):
    """Keeps all but the first element of each sample."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = torch.ones_like(x[:1].flatten(1))
        mask[:, 0] = 0
        return x * mask.view(x[:1].shape)


def test_every_dropout_is_replaced_by_function_or_by_module() -> None:
    profile = profile_of("model_nets:Residual", (1, 8, 8))
    module = build_module(profile)
    blocks = split(module, profile)
    asked: list[tuple[str, float]] = []

    def make(key: str, p: float) -> nn.Module:
        asked.append((key, p))
        return Recorded()

    keys = [replace_dropout(b.module, make) for b in blocks]
    assert keys == [("drop",), ("drop_1",), ("dropout",), ("dropout_1",), ()]
    assert asked == [("drop", 0.25), ("drop_1", 0.25), ("dropout", 0.3), ("dropout_1", 0.5)]
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(apply(blocks, x, seed=1), apply(blocks, x, seed=2))
    assert apply(blocks[:1], x)[:, 0, 0, 0].eq(0).all()
    assert isinstance(module.drop, nn.Dropout)
    assert [replace_dropout(b.module, make) for b in blocks] == [()] * 5


def test_keys_of_dropout_modules_are_their_names() -> None:
    profile = profile_of("stanza_sim.model.examples:digits_cnn", (1, 8, 8))
    blocks = split(build_module(profile, device="meta"), profile)
    keys = [k for b in blocks for k in replace_dropout(b.module, lambda key, p: nn.Identity())]
    assert keys == ["classifier.3", "classifier.6"]


def test_other_randomness_is_refused() -> None:
    profile = profile_of("model_nets:channel_dropout", (1, 8, 8))
    blocks = split(build_module(profile), profile)
    with pytest.raises(InputError, match="random numbers of '1' depend on how samples are spread"):
        replace_dropout(blocks[0].module, lambda key, p: nn.Identity())
    assert replace_dropout(blocks[1].module, lambda key, p: nn.Identity()) == ()
