"""Structure in a chain of pieces: layers of towers, and readable names of blocks.

A *layer* is a submodule with others of its class beside it (`blocks.3` of a transformer, `layer1.0` of a ResNet) that
holds a whole residual branch. All pieces of a layer are one block. A stage, which has a tower of its own inside, is no
layer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import fx, nn

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
Call = tuple[str, int]
"""A layer's name, and the number of the call: a layer may be called several times."""


class Towers:
    """The submodules that may be layers: those made of several weights, in a list or with others of their class."""

    def __init__(self, module: nn.Module) -> None:
        self.in_lists: set[str] = set()
        others: set[str] = set()
        with_siblings: set[str] = set()
        for path, parent in module.named_modules():
            by_class: dict[type, list[str]] = {}
            for name, child in parent.named_children():
                several = sum(p.dim() > 1 for p in child.parameters()) > 1
                if not isinstance(child, _CONTAINERS) and several and any(True for _ in child.children()):
                    by_class.setdefault(type(child), []).append(f"{path}.{name}" if path else name)
            for names in by_class.values():
                if isinstance(parent, _CONTAINERS):
                    self.in_lists.update(names if len(names) > 1 or isinstance(parent, nn.ModuleList) else ())
                    with_siblings.update(names if len(names) > 1 else ())
                elif len(names) > 1:
                    others.update(names)
        inside = {name.rpartition(".")[0] for name in with_siblings}
        members = self.in_lists | others
        self.layers = {m for m in members if not any(i == m or i.startswith(f"{m}.") for i in inside)}

    def layer_of(self, node: fx.Node) -> Call | None:
        """Return the call of the outermost layer that `node` was recorded in; None outside of all."""
        for name, _, number in node.meta.get("modules", ()):
            if name in self.layers:
                return name, number
        return None

    def begins(self, before: fx.Node, after: fx.Node) -> bool:
        """Whether a layer of a list ends between two neighbouring nodes, or begins."""
        a, b = self.layer_of(before), self.layer_of(after)
        return a != b and any(c is not None and c[0] in self.in_lists for c in (a, b))


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
