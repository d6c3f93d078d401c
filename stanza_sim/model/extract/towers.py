"""Structure in a chain of pieces: layers of towers, and readable names of blocks.

A *layer* is a submodule with others of its class beside it (`blocks.3` of a transformer, `layer1.0` of a ResNet) that
holds a whole residual branch. All pieces of a layer are one block.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

from torch import nn

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class Piece(Protocol):
    """What is told of a piece: the names of its heavy ops, and whether values branch in it."""

    heavy: list[str]
    branches: bool


def alike(module: nn.Module) -> set[str]:
    """Return the names of submodules made of several that have others of their class beside them, or are in a list."""
    found: set[str] = set()
    for path, parent in module.named_modules():
        by_class: dict[type, list[str]] = {}
        for name, child in parent.named_children():
            if not isinstance(child, _CONTAINERS) and any(True for _ in child.children()):
                by_class.setdefault(type(child), []).append(f"{path}.{name}" if path else name)
        for names in by_class.values():
            if len(names) > 1 or isinstance(parent, nn.ModuleList):
                found.update(names)
    return found


def layers_of(module: nn.Module, pieces: Sequence[Piece]) -> list[str | None]:
    """Return the layer that each piece is part of; None for those in no layer."""
    candidates = alike(module)
    found = {_innermost(p.heavy, candidates) for p in pieces if p.heavy and p.branches} - {None}
    return [_innermost(p.heavy, found) if p.heavy else None for p in pieces]


def _innermost(names: Sequence[str], candidates: set[str | None] | set[str]) -> str | None:
    """Return the longest of `candidates` that holds all of `names`."""
    path = names[0].split(".")
    while path:
        wish = ".".join(path)
        if wish in candidates and all(n == wish or n.startswith(f"{wish}.") for n in names):
            return wish
        path.pop()
    return None


def _common_module(names: Sequence[str]) -> str:
    """Return the qualified name of the innermost module that holds all of `names`; empty for the whole model."""
    shared = names[0].split(".")[:-1]
    for name in names:
        while shared != name.split(".")[: len(shared)]:
            shared.pop()
    return ".".join(shared)


def block_names(
    heavy: Sequence[Sequence[str]], layers: Sequence[str | None], used: Sequence[Sequence[str]]
) -> list[str]:
    """Return a readable, unique name for each block.

    It is its layer, or the heavy op's own name, or of several the module that they share (`layer1.0`) if nothing of
    another block lies in that module, else the first one's.
    """
    names = []
    for i, own in enumerate(heavy):
        first = own[0] if own else (used[i][0].rpartition(".")[0] or used[i][0] if used[i] else "block")
        shared = layers[i] or (_common_module(own) if len(set(own)) > 1 else first)
        elsewhere = (name for j, names_there in enumerate(used) if j != i for name in names_there)
        alone = shared and (layers[i] or not any(name.startswith(f"{shared}.") for name in elsewhere))
        names.append(re.sub(r"[^A-Za-z0-9_.-]", "_", shared if alone and shared else first))
    unique: list[str] = []
    for name in names:
        numbered, number = name, 1
        while numbered in unique:
            number += 1
            numbered = f"{name}-{number}"
        unique.append(numbered)
    return unique
