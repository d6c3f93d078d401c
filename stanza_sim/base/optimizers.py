"""The optimisers that train: which settings each has, and how much it keeps and moves for each parameter."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class OptimizerKind(StrEnum):
    """Whose step it is: that of `torch.optim.SGD`, `torch.optim.Adam` or `torch.optim.AdamW`."""

    SGD = "sgd"
    ADAM = "adam"
    ADAMW = "adamw"


SETTINGS: Mapping[OptimizerKind, Mapping[str, float | tuple[float, float]]] = {
    OptimizerKind.SGD: {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.0},
    OptimizerKind.ADAM: {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0},
    OptimizerKind.ADAMW: {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2},
}
"""The settings that each kind has, and their defaults: those of Adam and AdamW are torch's."""

STATE = ((), ("momentum_buffer",), ("exp_avg", "exp_avg_sq"))
"""The vectors that are kept beside the parameters, by how many they are, as `torch.optim` calls them."""


def moments_of(kind: OptimizerKind, momentum: float) -> int:
    """How many vectors as long as the parameters an optimiser keeps: 0 for SGD without momentum, 2 for Adam."""
    return int(momentum > 0) if kind is OptimizerKind.SGD else 2


def update_passes(moments: int) -> int:
    """Passes over the parameters of an update that is one kernel, with so many vectors of state.

    It reads parameters, gradients and state, and writes parameters and state: 5 for SGD with momentum, 7 for Adam.
    """
    return 3 + 2 * moments
