"""What `forward` takes: names, shapes and types of a sample's tensors."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import nn

from stanza_sim.base.errors import InputError

_INTEGER_NAMES = ("ids", "id", "idx", "index", "indices", "token", "tokens", "words", "mask")


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """One tensor of a sample. `name` is forward's argument; the type is None until it is found."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None = None

    def samples(self, batch: int) -> torch.Tensor:
        """Return `batch` samples without values."""
        return torch.empty(batch, *self.shape, dtype=self.dtype, device="meta")


def shape_words(inputs: Sequence[Input]) -> str:
    """Return the shapes of a sample, in words."""
    return " and ".join(" x ".join(map(str, i.shape)) for i in inputs)


def arguments_of(module: nn.Module, inputs: tuple[Input, ...], where: str) -> tuple[Input, ...]:
    """Return `inputs` with the names of forward's arguments, in forward's order; the first may be unnamed.

    Raises `InputError`, with `where` as its place, if `forward` needs others.
    """
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = [p for p in inspect.signature(module.forward).parameters.values() if p.kind in kinds]
    names = [p.name for p in parameters]
    needed = [p.name for p in parameters if p.default is p.empty]
    if not names and any(p.kind is p.VAR_POSITIONAL for p in inspect.signature(module.forward).parameters.values()):
        names = ["input"]
    named = [replace(i, name=i.name or (names[0] if names else "")) for i in inputs]
    unknown = [i.name for i in named if i.name not in names]
    missing = [n for n in needed if n not in {i.name for i in named}]
    if not names or unknown or missing:
        what = ", ".join(f"{p.name}={p.default!r}" if p.default is not p.empty else p.name for p in parameters)
        shapes = ", ".join(f"{n}: [...]" for n in (needed or names[:1]))
        if unknown and not missing:
            hint = f"it has no argument {unknown[0]!r}"
        elif len(needed) > 1:
            hint = f"give the shape of each: input_shape: {{{shapes}}}, or wrap it in a module that takes one tensor"
        else:
            hint = "wrap the model in a module whose forward takes the samples and returns (batch, classes)"
        raise InputError(f"forward of {type(module).__name__} takes ({what})", where=where, hint=hint)
    return tuple(sorted(named, key=lambda i: names.index(i.name)))


def options_of(module: nn.Module) -> dict[str, bool]:
    """Return what to tell `forward` beside the samples: to keep nothing for later calls, which only generate texts."""
    parameters = inspect.signature(module.forward).parameters
    return {name: False for name in ("use_cache", "use_mems") if name in parameters}


def more_arguments(module: nn.Module, inputs: Sequence[Input]) -> str:
    """Return a hint at an argument that encoders with decoders need and were not given; empty if there is none."""
    needed = "decoder_input_ids"
    if needed not in inspect.signature(module.forward).parameters or any(i.name == needed for i in inputs):
        return ""
    return f", or give that of {needed} too: input_shape: {{{inputs[0].name}: [...], {needed}: [...]}}"


def dtypes_to_try(module: nn.Module, inputs: tuple[Input, ...]) -> Iterator[tuple[Input, ...]]:
    """Yield the inputs with types that they may have, the likeliest first."""
    floating = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    choices = []
    for one in inputs:
        if one.dtype is not None:
            choices.append([one.dtype])
            continue
        integer = one.name.lower().split("_")[-1] in _INTEGER_NAMES
        choices.append([torch.int64, floating] if integer else [floating, torch.int64])
    for dtypes in product(*choices):
        yield tuple(replace(i, dtype=d) for i, d in zip(inputs, dtypes, strict=True))
