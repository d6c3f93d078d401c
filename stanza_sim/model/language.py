"""Language models by name, of any sequence length and vocabulary, without torch: GPT-2, BERT, RoBERTa and Llama.

A preset is the arguments of one of three factories in `stanza_sim.model.examples`, which build the torch module that a
profile trains with `--execute`; the profile itself is computed from the same arguments (`transformer_work`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from stanza_sim.base.errors import InputError
from stanza_sim.model.profile import Block, BlockKind, ModelProfile, ParamTensor
from stanza_sim.model.shipped import Scalar
from stanza_sim.model.transformer_work import BlockWork

MOST_POSITIONS = 10_000_000
MOST_WORDS = 100_000_000
FACTORIES = "stanza_sim.model.examples"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A published model: the `family` that it is of, its size, and the `sequence` of a sample unless another is given.

    `positions` are the rows of a table of positions, as published; a longer sequence has as many as it needs. None:
    positions are rotations. `numel` are its parameters as published, with its own vocabulary and sequence.
    """

    family: str
    sequence: int
    vocabulary: int
    width: int
    layers: int
    heads: int
    tied: bool
    numel: int
    source: str
    positions: int | None = None
    more: tuple[tuple[str, int | float], ...] = ()

    def arguments(self, sequence: int, vocabulary: int, tied: bool) -> dict[str, Scalar]:
        """The arguments of the factory `family` in `stanza_sim.model.examples`."""
        return {
            "vocabulary": vocabulary,
            "positions": max(sequence, self.positions or 0),
            "width": self.width,
            "layers": self.layers,
            "heads": self.heads,
            **dict(self.more),
            "tied": tied,
        }


def _gpt2(width: int, layers: int, heads: int, numel: int) -> Preset:
    return Preset(
        family="gpt2",
        sequence=1024,
        vocabulary=50257,
        positions=1024,
        width=width,
        layers=layers,
        heads=heads,
        tied=True,
        numel=numel,
        source="Radford et al. 2019, Language Models are Unsupervised Multitask Learners; parameters as released",
    )


def _bert(width: int, layers: int, heads: int, numel: int, *, roberta: bool = False) -> Preset:
    return Preset(
        family="bert",
        sequence=512,
        vocabulary=50265 if roberta else 30522,
        positions=514 if roberta else 512,
        width=width,
        layers=layers,
        heads=heads,
        tied=True,
        numel=numel,
        more=(("hidden", 4 * width), ("segments", 1 if roberta else 2)),
        source="Liu et al., arXiv 1907.11692"
        if roberta
        else "Devlin et al., arXiv 1810.04805, to predict masked words",
    )


def _llama(
    width: int,
    layers: int,
    heads: int,
    kv_heads: int,
    hidden: int,
    numel: int,
    *,
    sequence: int = 8192,
    vocabulary: int = 128256,
    tied: bool = False,
    theta: float = 500_000.0,
    source: str = "Llama 3: Dubey et al., arXiv 2407.21783, table 3",
) -> Preset:
    return Preset(
        family="llama",
        sequence=sequence,
        vocabulary=vocabulary,
        width=width,
        layers=layers,
        heads=heads,
        tied=tied,
        numel=numel,
        more=(("kv_heads", kv_heads), ("hidden", hidden), ("theta", theta)),
        source=source,
    )


def _first_llama(width: int, layers: int, heads: int, hidden: int, numel: int) -> Preset:
    source = "LLaMA: Touvron et al., arXiv 2302.13971, table 2"
    more = {"sequence": 2048, "vocabulary": 32000, "theta": 10_000.0, "source": source}
    return _llama(width, layers, heads, heads, hidden, numel, **more)  # type: ignore[arg-type]


_SMALL_LLAMA = "Llama 3.2: Meta's model card and configuration, 2024"

PRESETS: dict[str, Preset] = {
    "gpt2": _gpt2(768, 12, 12, 124_439_808),
    "gpt2_medium": _gpt2(1024, 24, 16, 354_823_168),
    "gpt2_large": _gpt2(1280, 36, 20, 774_030_080),
    "gpt2_xl": _gpt2(1600, 48, 25, 1_557_611_200),
    "bert_base": _bert(768, 12, 12, 109_514_298),
    "bert_large": _bert(1024, 24, 16, 335_174_458),
    "roberta_base": _bert(768, 12, 12, 124_697_433, roberta=True),
    "roberta_large": _bert(1024, 24, 16, 355_412_057, roberta=True),
    "llama_1b": _llama(2048, 16, 32, 8, 8192, 1_235_814_400, tied=True, source=_SMALL_LLAMA),
    "llama_3b": _llama(3072, 28, 24, 8, 8192, 3_212_749_824, tied=True, source=_SMALL_LLAMA),
    "llama_7b": _first_llama(4096, 32, 32, 11008, 6_738_415_616),
    "llama_8b": _llama(4096, 32, 32, 8, 14336, 8_030_261_248),
    "llama_13b": _first_llama(5120, 40, 40, 13824, 13_015_864_320),
    "llama_70b": _llama(8192, 80, 64, 8, 28672, 70_553_706_496),
}
"""Parameters are those of the released weights, tied ones once; BERT and RoBERTa without their pooling layer."""


def language_model(
    name: str,
    *,
    sequence: int | None = None,
    vocabulary: int | None = None,
    tied: bool | None = None,
    fused: bool = True,
) -> ModelProfile:
    """Return the profile of a preset, with another `sequence` length in tokens, `vocabulary` or head if they are given.

    `tied`: the head has the weights of the table of tokens. A sample is a sequence. Its FC part is the head (BERT: and
    the layer before it). `fused`: see `BlockWork`. Raises `InputError` for numbers that are out of range.
    """
    preset = PRESETS[name]
    where = f"model {name}"
    s = _in_range(sequence, preset.sequence, "sequence", MOST_POSITIONS, where)
    words = _in_range(vocabulary, preset.vocabulary, "vocabulary", MOST_WORDS, where)
    kwargs = preset.arguments(s, words, preset.tied if tied is None else tied)
    blocks = blocks_of(preset.family, s, kwargs, fused=fused)
    return ModelProfile(
        name=name,
        blocks=blocks,
        boundary=next(i for i, b in enumerate(blocks) if b.kind is BlockKind.FC),
        input_shape=(s,),
        num_classes=words,
        vocabulary=words,
        factory=f"{FACTORIES}:{preset.family}",
        factory_kwargs=tuple(kwargs.items()),
    )


def blocks_of(family: str, sequence: int, kwargs: Mapping[str, Scalar], *, fused: bool = True) -> tuple[Block, ...]:
    """Return the blocks of what a factory builds with `kwargs` for sequences of that length."""
    sizes = {key: int(value) for key, value in kwargs.items() if isinstance(value, int | float)}
    return _FAMILIES[family](lambda: BlockWork(sequence, fused=fused), sizes)


def _in_range(given: int | None, usual: int, what: str, most: int, where: str) -> int:
    if given is None:
        return usual
    if isinstance(given, bool) or not isinstance(given, int) or not 1 <= given <= most:
        raise InputError(f"{what} is {given!r:.40}", where=where, hint=f"use a whole number from 1 to {most:,}")
    return given


Sizes = Mapping[str, int]
New = Callable[[], BlockWork]


def _gpt2_blocks(new: New, of: Sizes) -> tuple[Block, ...]:
    width, words = of["width"], of["vocabulary"]
    first = new()
    first.lookup("wte", words, width, of_samples=True)
    first.indices(first.positions)
    first.lookup("wpe", of["positions"], width, of_samples=False)
    first.add_shared(width)
    blocks = [first.block("wte", BlockKind.CONV, width)]
    for i in range(of["layers"]):
        layer, at = new(), f"h.{i}"
        layer.layer_norm(f"{at}.ln_1", width)
        layer.meet(width, gradients=2)
        layer.linear(f"{at}.attn", width, 3 * width, bias=True)
        layer.attention(width, of["heads"], kv_width=width, causal=True, packed=True)
        layer.linear(f"{at}.proj", width, width, bias=True, kept=False)
        layer.add(width)
        layer.layer_norm(f"{at}.ln_2", width)
        layer.meet(width, gradients=2)
        layer.linear(f"{at}.mlp.0", width, 4 * width, bias=True)
        layer.activation(4 * width)
        layer.linear(f"{at}.mlp.2", 4 * width, width, bias=True, kept=False)
        layer.add(width)
        if i == of["layers"] - 1:
            layer.layer_norm("ln_f", width)
        _in_order(layer, [f"{at}.ln_1", f"{at}.ln_2"])
        blocks.append(layer.block(at, BlockKind.CONV, width))
    return (*blocks, _head(new(), "lm_head", "wte", of, bias=False))


def _bert_blocks(new: New, of: Sizes) -> tuple[Block, ...]:
    width, words = of["width"], of["vocabulary"]
    first = new()
    first.lookup("words", words, width, of_samples=True)
    first.indices(3 * first.positions)  # the places, and for each a segment
    first.indices(0)
    first.lookup("places", of["positions"], width, of_samples=False)
    first.lookup("segments", of["segments"], width, of_samples=False)
    first.add_shared(width, kept=False)
    first.add_shared(width)
    first.layer_norm("norm", width, first=True)
    blocks = [first.block("words", BlockKind.CONV, width)]
    for i in range(of["layers"]):
        layer, at = new(), f"layers.{i}"
        for part in ("query", "key", "value"):
            layer.linear(f"{at}.{part}", width, width, bias=True)
        layer.meet(width, gradients=4)
        layer.attention(width, of["heads"], kv_width=width, causal=False, packed=False)
        layer.linear(f"{at}.proj", width, width, bias=True, kept=False)
        layer.add(width)
        layer.layer_norm(f"{at}.norm_1", width)
        layer.meet(width, gradients=2)
        layer.linear(f"{at}.mlp.0", width, of["hidden"], bias=True)
        layer.activation(of["hidden"])
        layer.linear(f"{at}.mlp.2", of["hidden"], width, bias=True, kept=False)
        layer.add(width)
        layer.layer_norm(f"{at}.norm_2", width)
        blocks.append(layer.block(at, BlockKind.CONV, width))
    transform = new()
    transform.linear("transform.0", width, width, bias=True)
    transform.activation(width)
    transform.layer_norm("transform.2", width)
    blocks.append(transform.block("transform.0", BlockKind.FC, width))
    return (*blocks, _head(new(), "head", "words", of, bias=True))


def _llama_blocks(new: New, of: Sizes) -> tuple[Block, ...]:
    width, hidden, heads = of["width"], of["hidden"], of["heads"]
    each = width // heads
    kv_width = of["kv_heads"] * each
    first = new()
    first.lookup("words", of["vocabulary"], width, of_samples=True, kept=True)
    blocks = [first.block("words", BlockKind.CONV, width)]
    for i in range(of["layers"]):
        layer, at = new(), f"layers.{i}"
        layer.rms_norm(f"{at}.norm_1", width)
        layer.meet(width, gradients=3)
        layer.linear(f"{at}.query", width, width, bias=False, kept=False)
        layer.rotate(width, each)
        layer.rotate(kv_width, each)
        layer.attention(width, heads, kv_width=kv_width, causal=True, packed=False)
        layer.linear(f"{at}.proj", width, width, bias=False, kept=False)
        layer.linear(f"{at}.key", width, kv_width, bias=False, kept=False)
        layer.linear(f"{at}.value", width, kv_width, bias=False)
        layer.add(width)
        layer.rms_norm(f"{at}.norm_2", width)
        layer.meet(width, gradients=2)
        layer.linear(f"{at}.gate", width, hidden, bias=False)
        layer.activation(hidden)
        layer.linear(f"{at}.up", width, hidden, bias=False)
        layer.product(hidden)
        layer.linear(f"{at}.down", hidden, width, bias=False, kept=False)
        layer.add(width)
        if i == of["layers"] - 1:
            layer.rms_norm("norm", width, residual=False)
        _in_order(layer, [f"{at}.norm_1", f"{at}.norm_2"])
        blocks.append(layer.block(at, BlockKind.CONV, width))
    return (*blocks, _head(new(), "head", "words", of, bias=False))


def _in_order(layer: BlockWork, first: list[str]) -> None:
    """Put the parameters of the norms `first`, as a module has them that makes its norms first."""

    def late(tensor: ParamTensor) -> bool:
        return tensor.name.rpartition(".")[0] not in first

    layer.tensors.sort(key=late)


def _head(head: BlockWork, name: str, table: str, of: Sizes, *, bias: bool) -> Block:
    """The head: scores of all words from each position; tied to `table` if so."""
    words = of["vocabulary"]
    head.linear(name, of["width"], words, bias=bias, tied=f"{table}.weight" if of["tied"] else None)
    return head.block(name, BlockKind.FC, words)


_FAMILIES: dict[str, Callable[[New, Sizes], tuple[Block, ...]]] = {
    "gpt2": _gpt2_blocks,
    "bert": _bert_blocks,
    "llama": _llama_blocks,
}
