"""Language models whose sizes are published, as chains of blocks without torch: embedding, layers, and a head.

A layer of width h has 12 h² + 13 h parameters (attention 4 h², two linear layers of 4 h, biases and two
normalisations); forward it takes 24 s h² + 4 s² h FLOPs for a sequence of s tokens (Vaswani et al., Attention Is All
You Need, 2017). The head is tied to the embedding, so it has work and no parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

from stanza_sim.model.profile import Block, BlockKind, ModelProfile, ParamTensor

KERNELS = 20
"""Operations of a layer's forward pass: two normalisations, six products, and what lies between them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Layers, width, words and positions of a model, and the tokens of one sample where nothing else is stated."""

    layers: int
    width: int
    words: int
    positions: int
    tokens: int


SIZES = {
    "bertbase": Size(layers=12, width=768, words=30_522, positions=512, tokens=128),
    "bertlarge": Size(layers=24, width=1024, words=30_522, positions=512, tokens=128),
    "robertabase": Size(layers=12, width=768, words=50_265, positions=514, tokens=512),
    "robertalarge": Size(layers=24, width=1024, words=50_265, positions=514, tokens=512),
    "gpt2": Size(layers=12, width=768, words=50_257, positions=1024, tokens=1024),
    "gpt2medium": Size(layers=24, width=1024, words=50_257, positions=1024, tokens=1024),
    "gpt2large": Size(layers=36, width=1280, words=50_257, positions=1024, tokens=1024),
    "gpt2xl": Size(layers=48, width=1600, words=50_257, positions=1024, tokens=1024),
}
"""Devlin et al. 2018 (BERT; 128 tokens in the first phase), Liu et al. 2019 (RoBERTa), Radford et al. 2019 (GPT-2); by
names in small letters without signs."""


def language_model(name: str, size: Size) -> ModelProfile:
    """Return the chain of a language model; its input is a sample's tokens."""
    h, s = size.width, size.tokens
    layer_flops = 24 * s * h * h + 4 * s * s * h
    blocks = [_block("embedding", {"word": (size.words, h), "position": (size.positions, h)}, 0, (s, h))]
    for i in range(size.layers):
        tensors = {"attention": (4 * h, h), "mlp.0": (4 * h, h), "mlp.1": (h, 4 * h), "vectors": (13 * h,)}
        blocks.append(_block(f"layer.{i}", tensors, layer_flops, (s, h)))
    blocks.append(_block("head", {}, 2 * s * h * size.words, (s, size.words)))
    return ModelProfile(name=name, blocks=tuple(blocks), boundary=len(blocks), input_shape=(s,), num_classes=size.words)


def _block(name: str, tensors: dict[str, tuple[int, ...]], flops: int, output: tuple[int, ...]) -> Block:
    numel = output[0] * output[1]
    return Block(
        name=name,
        kind=BlockKind.CONV,
        tensors=tuple(ParamTensor(name=f"{name}.{key}", shape=shape) for key, shape in tensors.items()),
        forward_flops=flops,
        backward_input_flops=flops,
        backward_weight_flops=flops,
        bytes_touched=4 * numel * (KERNELS if flops else 1),
        kernels=KERNELS if tensors and flops else 1,
        output_shape=output,
    )
