"""Which tensor of what `forward` returns is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass

import torch
from torch import nn

from stanza_sim.base.errors import InputError

_FIELDS = ("logits", "prediction_logits", "pooler_output", "last_hidden_state")
"""Fields of an output that may be what is trained, the likeliest first."""


def chosen_output(returned: object, module: nn.Module, where: str) -> tuple[torch.Tensor, str | None]:
    """Return the tensor that is trained, and its field's name if `returned` has several.

    Raises `InputError`, with `where` as its place, if it is not clear which one that is.
    """
    if isinstance(returned, torch.Tensor):
        return returned, None
    found = _named(returned)
    if not found and isinstance(returned, tuple | list) and len(returned) == 1:
        return chosen_output(returned[0], module, where)
    for name in _FIELDS:
        if name in found:
            return found[name], name
    if len(found) == 1:
        name, value = next(iter(found.items()))
        return value, name
    kind = type(module).__name__
    if found:
        words = f"{type(returned).__name__} of {', '.join(found)}"
        hint = f"wrap it in a module whose forward returns one of them: `return self.model(x).{next(iter(found))}`"
    elif isinstance(returned, tuple | list):
        words = f"{type(returned).__name__} of {len(returned)}"
        hint = "wrap it in a module whose forward returns one of them: `return self.model(x)[0]`"
    else:
        words = f"a {type(returned).__name__}"
        hint = "wrap it in a module whose forward returns the class scores"
    raise InputError(f"{kind} returns {words}, not one tensor of scores", where=where, hint=hint)


def _named(returned: object) -> dict[str, torch.Tensor]:
    """The tensors of an output with named fields."""
    items: list[tuple[str, object]] = []
    if isinstance(returned, Mapping):
        items = [(str(k), v) for k, v in returned.items()]
    elif is_dataclass(returned):
        items = [(f.name, getattr(returned, f.name)) for f in fields(returned)]
    elif isinstance(returned, tuple) and hasattr(returned, "_fields"):
        items = list(zip(returned._fields, returned, strict=True))
    return {k: v for k, v in items if isinstance(v, torch.Tensor)}
