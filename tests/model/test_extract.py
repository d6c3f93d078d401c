from __future__ import annotations

import sys
from math import prod
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from stanza_sim.base.errors import InputError
from stanza_sim.model.extract import build, build_module, extract, load_factory
from stanza_sim.model.profile import Block, BlockKind, ModelProfile
from stanza_sim.model.profile_json import from_json, to_json


def profile_of(net: str, *input_shape: int, boundary: int | str | None = None, **kwargs: str | int) -> ModelProfile:
    return extract(f"model_nets:{net}", name=net, input_shape=input_shape, factory_kwargs=kwargs, boundary=boundary)


def flops(block: Block) -> tuple[int, int, int]:
    return block.forward_flops, block.backward_input_flops, block.backward_weight_flops


@pytest.mark.parametrize(
    ("kind", "input_shape", "output_shape", "kwargs"),
    [
        ("Conv1d", (4, 9), (6, 7), {}),
        ("Conv2d", (4, 9, 8), (6, 7, 6), {"groups": 2}),
        ("Conv2d", (4, 9, 9), (4, 5, 5), {"dilation": 2, "groups": 4, "bias": False}),
        ("Conv2d", (2, 11, 11), (5, 3, 3), {"stride": 4}),
        ("Conv3d", (2, 5, 6, 7), (3, 3, 4, 5), {}),
        ("ConvTranspose1d", (4, 5), (6, 11), {"stride": 2}),
        ("ConvTranspose2d", (4, 5, 5), (6, 11, 11), {"stride": 2, "groups": 2}),
    ],
)
def test_flops_of_convolutions(
    kind: str, input_shape: tuple[int, ...], output_shape: tuple[int, ...], kwargs: dict[str, int]
) -> None:
    arguments = {"in_channels": input_shape[0], "out_channels": output_shape[0], "kernel_size": 3, **kwargs}
    first, head = profile_of("layer_and_head", *input_shape, kind=kind, features=prod(output_shape), **arguments).blocks
    window = 3 ** (len(input_shape) - 1)
    groups = kwargs.get("groups", 1)
    if kind.startswith("ConvTranspose"):
        products = prod(input_shape) * output_shape[0] // groups * window
    else:
        products = prod(output_shape) * input_shape[0] // groups * window
    assert flops(first) == (2 * products, 0, 2 * products)
    assert flops(head) == (4 * prod(output_shape),) * 3
    assert first.output_shape == (prod(output_shape),)
    assert (first.bytes_touched, first.kernels) == (4 * prod(output_shape), 1)
    assert (first.kind, head.kind) == (BlockKind.CONV, BlockKind.FC)


def test_a_linear_layer_on_a_sequence_counts_every_position_and_is_no_fc_block() -> None:
    profile = profile_of("layer_and_head", 5, 8, kind="Linear", features=20, in_features=8, out_features=4)
    assert profile.blocks[0].forward_flops == 2 * 5 * 8 * 4
    assert profile.boundary == 1


@pytest.mark.parametrize(("net", "shape"), [("Transformer", (1, 8, 8)), ("mlp", (4,)), ("frozen", (4,))])
def test_flops_are_those_of_a_real_training_step(net: str, shape: tuple[int, ...]) -> None:
    profile = profile_of(net, *shape)
    module = build_module(profile)
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        out = module(torch.randn(3, *shape))
        forward = counter.get_total_flops()
        out.sum().backward()
    assert 3 * sum(b.forward_flops for b in profile.blocks) == forward
    assert 3 * sum(sum(flops(b)) for b in profile.blocks) == counter.get_total_flops()


def test_frozen_parameters_are_no_tensors_and_need_no_gradient() -> None:
    first, second, third = profile_of("frozen", 4).blocks
    assert first.tensors == ()
    assert flops(first)[1:] == (0, 0)
    assert flops(second) == (512, 0, 512)
    assert flops(third) == (64, 64, 64)


def test_blocks_hold_branches_and_what_follows_them() -> None:
    profile = profile_of("Residual", 1, 8, 8)
    assert [b.name for b in profile.blocks] == ["stem", "left", "up", "hidden", "head"]
    assert [b.output_shape for b in profile.blocks] == [(4, 8, 8), (4, 8, 8), (512,), (12,), (3,)]
    assert profile.block("stem").kernels == 4  # with norm, dropout, and act, which changes its input for all
    assert profile.boundary == 3
    left = profile.block("left")
    assert [t.name for t in left.tensors] == ["left.weight", "left.bias", "right.weight", "right.bias"]
    # left, right, their sum, dropout: each writes 4 x 8 x 8 floats
    assert (left.kernels, left.bytes_touched) == (4, 4 * 4 * 256)
    assert [t.name for t in profile.block("up").tensors] == ["scale", "up.weight"]


def test_layers_of_torch_and_direct_parameters() -> None:
    profile = profile_of("Transformer", 1, 8, 8)
    assert [b.name for b in profile.blocks] == ["patch", "attention", "mlp", "head"]
    assert [t.name for t in profile.blocks[0].tensors] == ["token", "patch.weight", "patch.bias"]
    attention = profile.block("attention")
    projections, products = 2 * 5 * 8 * (24 + 8), 2 * 2 * 5 * 5 * 8
    assert flops(attention) == (projections + products, projections + 2 * products, projections)
    assert attention.kernels > 5
    words = profile_of("Words", 5)
    assert [b.name for b in words.blocks] == ["table", "lstm", "head"]
    assert (words.boundary, words.blocks[0].forward_flops, words.blocks[0].kernels) == (2, 0, 1)


def test_constants_that_differ_between_the_modes() -> None:
    profile = profile_of("FunctionalNorm", 6)
    assert [(b.name, [t.name for t in b.tensors]) for b in profile.blocks] == [
        ("first", ["first.weight", "first.bias"]),
        ("weight", ["weight"]),
    ]


def test_tied_weights_within_a_block_are_one_tensor() -> None:
    first, _ = profile_of("TiedInside", 4).blocks
    assert [t.name for t in first.tensors] == ["left.weight", "left.bias", "right.bias"]


def test_boundary() -> None:
    assert profile_of("mlp", 4).boundary == 0
    assert profile_of("mlp", 4, boundary=3).fc_blocks == ()
    named = profile_of("mlp", 4, boundary="2")
    assert named.boundary == 1
    assert [b.kind for b in named.blocks] == [BlockKind.CONV, BlockKind.FC, BlockKind.FC]
    with pytest.raises(InputError, match=r"boundary 'hiden' is not a block of model Residual\n  did you mean 'hidden'"):
        profile_of("Residual", 1, 8, 8, boundary="hiden")
    with pytest.raises(InputError, match="boundary 4 is not between 0 and 3"):
        profile_of("mlp", 4, boundary=4)


@pytest.mark.parametrize(
    ("net", "shape", "message"),
    [
        ("Branching", (4,), r"cannot be followed: it reads .* \(model_nets.py, line \d+: `if x.sum\(\) > 0:`\)\n"),
        ("TrainsOtherwise", (4,), "takes another path in evaluation than in training .first at mul"),
        ("NormTwice", (4, 4), "module norm is used by two blocks, a and b\n"),
        ("OneNumber", (4,), "returns one number for each sample, not one tensor of scores"),
        ("Unused", (4,), r"forward does not use .* spare.weight, spare.bias\n.*model.get_parameter\('spare.weight'\)"),
        ("TwoInputs", (4,), r"takes \(x, y\)\n  give the shape of each: input_shape: \{x: "),
        ("TwoOutputs", (4,), r"returns tuple of 2, not one tensor of scores\n.*`return self.model\(x\)\[0\]`"),
        ("relu_only", (4,), "has no trainable parameters"),
        ("lazy", (4,), "0.weight has no shape yet"),
        ("two_types", (4,), r"trainable parameters of several types: float32 \(.*\), float64 \("),
        ("mlp", (5,), r"0 \(Linear\) fails on samples of 5: .*\n  set input_shape"),
        ("mlp", (0,), r"input_shape \[0\] is not a list of positive integers"),
        ("mlp", (), r"input_shape \[\] is not"),
    ],
)
def test_modules_that_are_no_chain(net: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        profile_of(net, *shape)
    assert caught.value.where == f"model {net}"


@pytest.mark.parametrize("two_names", [True, False])
def test_tied_weights_are_counted_where_they_are_used_first(two_names: bool) -> None:
    profile = profile_of("Tied", 4, two_names=two_names)
    blocks = {b.name: ([t.name for t in b.tensors], [t.name for t in b.tied]) for b in profile.blocks}
    first, second, last = blocks.values()
    assert first == (["a.weight", "a.bias"], [])
    assert second == ((["b.bias"], ["a.weight"]) if two_names else ([], ["a.weight", "a.bias"]))
    assert last == (["c.weight", "c.bias"], [])
    assert profile.numel == 16 + 4 + 4 * two_names + 10
    assert profile.users["a.weight"] == tuple(blocks)[:2]
    assert from_json(to_json(profile), where="here") == profile


def test_outputs_of_many_positions() -> None:
    profile = profile_of("Image", 1, 8, 8)
    assert (profile.num_classes, profile.labels.shape, profile.labels.class_axis) == (3, (6, 6), 0)
    assert profile.vocabulary is None


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("vgg16", "not an import path"),
        ("torch.nn:", "not an import path"),
        (":net", "not an import path"),
        ("torch/nn:Linear", "not an import path"),
        ("no_such_module_here:net", "there is no module 'no_such_module_here'"),
        ("torch.no_such_part:net", "there is no module 'torch.no_such_part'"),
        ("model_nets:absent", "module model_nets has no 'absent'"),
        ("model_nets:constant", "constant is a int, not a callable"),
    ],
)
def test_bad_factory_paths(path: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_factory(path)
    assert caught.value.where == f"model factory {path!r}"


def test_bad_factories() -> None:
    with pytest.raises(InputError, match=r"not_a_module\(\) returns a str, not a torch.nn.Module"):
        build("model_nets:not_a_module")
    with pytest.raises(InputError, match="missing 1 required positional argument: 'size'"):
        build("model_nets:fails", device="meta")
    with pytest.raises(InputError, match=r"fails\(size=3\) fails: ValueError: size 3 is odd \(model_nets.py, line"):
        build("model_nets:fails", {"size": 3})


def test_a_factory_that_cannot_run_on_the_meta_device() -> None:
    assert all(p.is_meta for p in build("model_nets:mlp", device="meta").parameters())
    assert [b.name for b in profile_of("reads_a_value", 4).blocks] == ["0", "2"]


def test_the_current_directory_is_importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.chdir(tmp_path)
    Path("own_net.py").write_text(
        "from torch import nn\nclass Nets:\n  @staticmethod\n  def net():\n"
        "    import own_helper\n    return nn.Linear(own_helper.SIZE, 2)\n"
    )
    Path("own_helper.py").write_text("SIZE = 7\n")
    Path("own_broken.py").write_text("def net(:\n")
    Path("own_needy.py").write_text("import a_package_that_is_not_there\n")
    Path("own_raising.py").write_text("raise RuntimeError('no licence')\n")
    profile = extract("own_net:Nets.net", name="own", input_shape=(7,))
    assert [t.shape for t in profile.blocks[0].tensors] == [(2, 7), (2,)]
    with pytest.raises(InputError, match="importing own_broken fails: SyntaxError"):
        load_factory("own_broken:net")
    with pytest.raises(InputError, match=r"importing own_needy fails: .*a_package_that_is_not_there"):
        load_factory("own_needy:net")
    with pytest.raises(InputError, match="importing own_raising fails: RuntimeError: no licence"):
        load_factory("own_raising:net")


def test_extraction_leaves_the_random_state_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    profile_of("Residual", 1, 8, 8)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("examples", "digits_cnn"),
        ("examples", "tiny_cnn"),
        ("examples", "narrow_vgg16"),
        ("wide_heads", "iresnet18"),
        ("wide_heads", "lstm_2048_512"),
    ],
)
def test_factories_load_by_the_paths_that_they_had(module: str, name: str) -> None:
    found = load_factory(f"stanza_sim.execute.{module}:{name}")
    assert found is load_factory(f"stanza_sim.model.examples:{name}")
