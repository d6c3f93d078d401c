"""Language models without torch: they equal what torch's modules are recorded to do, and what is published."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from stanza_sim.base.errors import InputError
from stanza_sim.base.op_kinds import OpKind
from stanza_sim.model import examples, zoo
from stanza_sim.model.extract import extract
from stanza_sim.model.language import FACTORIES, PRESETS, blocks_of, language_model
from stanza_sim.model.profile import BlockKind
from stanza_sim.model.profile_json import from_json, to_json


def _sizes(vocabulary: int, positions: int, width: int, layers: int, heads: int, **more: float) -> dict[str, float]:
    sizes = {"vocabulary": vocabulary, "positions": positions, "width": width, "layers": layers, "heads": heads}
    return {**sizes, **more}


CASES = [
    ("gpt2", 24, _sizes(100, 40, 8, 2, 2, tied=False)),
    ("bert", 16, _sizes(50, 24, 16, 1, 4, hidden=24, segments=2, tied=True)),
    ("llama", 24, _sizes(100, 24, 24, 2, 6, kv_heads=3, hidden=40, theta=1e4, tied=True)),
    ("llama", 16, _sizes(60, 16, 32, 1, 4, kv_heads=4, hidden=40, theta=1e4, tied=False)),
]


@pytest.mark.parametrize(("family", "sequence", "kwargs"), CASES)
def test_blocks_equal_those_of_the_torch_module(family: str, sequence: int, kwargs: dict[str, float]) -> None:
    found = extract(f"{FACTORIES}:{family}", name="m", input_shape=(sequence,), factory_kwargs=kwargs)
    assert blocks_of(family, sequence, kwargs, fused=False) == found.blocks
    # A fused kernel changes only what is touched and how often the backward pass multiplies.
    fused = blocks_of(family, sequence, kwargs)
    assert [replace(b, work=(), kept_nbytes=None) for b in fused] == [replace(b, work=()) for b in found.blocks]
    assert found.vocabulary == kwargs["vocabulary"]


@pytest.mark.parametrize(
    ("family", "kwargs"),
    [
        ("gpt2", _sizes(100, 64, 64, 2, 4, tied=False)),
        ("bert", _sizes(100, 64, 64, 2, 4, hidden=256, segments=2, tied=False)),
        ("llama", _sizes(100, 64, 64, 2, 4, kv_heads=2, hidden=176, theta=1e4, tied=False)),
    ],
)
def test_what_is_kept_for_the_backward_pass_is_what_autograd_saves(family: str, kwargs: dict[str, float]) -> None:
    module = getattr(examples, family)(**kwargs)
    own = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
    saved: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no other tensor comes to lie there
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        pack(module(torch.randint(100, (3, 64))))
    nbytes = sum(t.untyped_storage().nbytes() for at, t in saved.items() if at not in own)
    expected = 3 * sum(b.kept_nbytes or 0 for b in blocks_of(family, 64, kwargs))
    assert expected == pytest.approx(nbytes, rel=2e-3)  # indices of positions are not those of samples


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_are_those_published(name: str) -> None:
    profile, preset = language_model(name), PRESETS[name]
    assert profile.numel == preset.numel
    assert (profile.sample_tokens, profile.num_classes) == (preset.sequence, preset.vocabulary)
    # 2 FLOPs a parameter and token forward (Kaplan et al., arXiv 2001.08361), tables left out, and attention's 4 s² h.
    matrices = sum(t.numel for b in profile.blocks[1:] for t in (*b.tensors, *b.tied) if len(t.shape) == 2)
    attention = preset.layers * 4 * preset.sequence**2 * preset.width
    assert sum(b.forward_flops for b in profile.blocks) == 2 * preset.sequence * matrices + attention


def test_sequence_vocabulary_and_head() -> None:
    longer = zoo.load_model("gpt2", sequence=2048, vocabulary=128_000)
    assert longer.numel == 124_439_808 + 768 * (1024 + 128_000 - 50_257)
    assert dict(longer.factory_kwargs)["positions"] == 2048
    shorter = zoo.load_model("gpt2", sequence=512)
    assert (shorter.numel, shorter.input_shape) == (124_439_808, (512,))  # the table of positions stays as published
    untied = zoo.load_model("gpt2", tied=False, name="own", boundary="h.11")
    assert untied.numel == 124_439_808 + 768 * 50_257
    assert (untied.name, untied.boundary, untied.users) == ("own", 12, {})
    assert [b.kind for b in zoo.load_model("llama_1b").fc_blocks] == [BlockKind.FC]


def test_fused_attention_touches_what_goes_in_and_out_only() -> None:
    def touched(profile: int, fused: bool) -> int:
        layer = language_model("gpt2", sequence=profile, fused=fused).blocks[1]
        return sum(p.sample_nbytes for w in layer.work for p in w.passes)

    assert touched(4096, True) == 4 * touched(1024, True)
    assert touched(4096, False) > 8 * touched(1024, False)
    work = {w.kind: w for w in language_model("gpt2").blocks[1].work}[OpKind.ATTENTION]
    assert work.backward_input.flops == 2.5 * work.forward.flops


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("vgg16", {"sequence": 12}, r"model vgg16 has no 'sequence' to set\n.*gpt2"),
        ("model_nets:mlp", {"tied": True}, r"has no 'tied' to set\n.*factory_kwargs"),
        ("gpt2", {"sequence": 0}, "model gpt2: sequence is 0\n.*from 1 to"),
        ("gpt2", {"vocabulary": True}, "vocabulary is True"),
        (
            "gpt2",
            {"input_shape": (99,)},
            r"is for input_shape \[1024\].*\n.*`sequence`, `vocabulary` and",
        ),
        ("gpt2", {"factory_kwargs": {"layers": 3}}, "examples:gpt2"),
    ],
)
def test_bad_input(model: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        zoo.load_model(model, **settings)  # type: ignore[arg-type]


def test_a_profile_in_json_is_the_same() -> None:
    profile = language_model("llama_1b", sequence=16)
    assert from_json(to_json(profile), where="llama") == profile
