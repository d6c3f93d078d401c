"""Which parameters have no weight decay: what `training.optimizer.no_decay` names."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from stanza_sim.base.config import near
from stanza_sim.base.errors import InputError
from stanza_sim.model.profile import ModelProfile, ParamTensor

BIAS, NORM = "bias", "norm"


def without_decay(model: ModelProfile, named: Sequence[str]) -> frozenset[str]:
    """Return the tensors of `model` that `named` takes out of weight decay.

    `bias` are those of one dimension whose name ends so, `norm` the others of one dimension, which are the weights of
    normalising layers; anything else is a pattern of names, as a shell has them. Raises `InputError` for a pattern that
    is no tensor's.
    """
    tensors = [t for block in model.blocks for t in block.tensors]
    found: set[str] = set()
    for pattern in named:
        matching = {t.name for t in tensors if _matches(t, pattern)}
        if not matching and pattern not in (BIAS, NORM):
            what = f"no parameter of {model.name} is called {pattern!r}"
            names = [t.name for t in tensors]
            raise InputError(what, hint=near(pattern, [BIAS, NORM, *names]))
        found |= matching
    return frozenset(found)


def _matches(tensor: ParamTensor, pattern: str) -> bool:
    if pattern in (BIAS, NORM):
        return len(tensor.shape) < 2 and tensor.name.endswith(BIAS) is (pattern == BIAS)
    return fnmatchcase(tensor.name, pattern)
