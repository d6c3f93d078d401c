"""Functions that stand in graphs for what is no function of torch's: assignments, and custom gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch


def set_item(target: torch.Tensor, index: Any, value: Any) -> torch.Tensor:
    """Assign to a part of `target`, and return it."""
    target[index] = value
    return target


def as_changed(tensor: torch.Tensor, change: object) -> torch.Tensor:
    """Return `tensor`, whose memory `change` wrote: the second argument is there to order the two."""
    return tensor


@cache
def apply_of(cls: type, apply: classmethod[Any, Any, Any]) -> Callable[..., object]:
    """Return `cls.apply` of a custom gradient as a function with a name of its own, as graphs need it."""
    bound = apply.__get__(None, cls)

    def call(*args: object, **kwargs: object) -> object:
        return bound(*args, **kwargs)

    call.__name__ = f"apply_{cls.__name__}"
    return call
