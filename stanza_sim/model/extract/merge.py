"""Recordings of one module laid side by side: what differs follows the number of samples, or the mode."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence

import torch
from torch import fx, nn
from torch.nn import functional

Constant = bool | int | float | str | None


class ModeSwitch(nn.Module):
    """A constant that differs between training and evaluation."""

    def __init__(self, train_value: Constant, eval_value: Constant) -> None:
        super().__init__()
        self.train_value, self.eval_value = train_value, eval_value

    def forward(self) -> Constant:
        """Return the value of the mode that the module is in."""
        return self.train_value if self.training else self.eval_value


class AlwaysDropout(nn.Dropout):
    """Dropout in training and in evaluation alike: `F.dropout` called without `training=`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return `input` with elements dropped, whatever the mode."""
        return functional.dropout(input, self.p, True, self.inplace)


class Differs(Exception):
    """Two recordings are not of one graph: `nodes` are those at which they part."""

    def __init__(self, nodes: Sequence[fx.Node | None], *, batches: bool) -> None:
        super().__init__()
        self.nodes, self.batches = [n for n in nodes if n is not None], batches

    @property
    def words(self) -> str:
        """What the first node calls."""
        if not self.nodes:
            return "its end"
        target = self.nodes[0].target
        called = target if isinstance(target, str) else getattr(target, "__name__", self.nodes[0].name)
        inside = self._innermost()
        return f"{called} of {inside[0]}" if inside and inside[0] else called

    def leaf(self, known: frozenset[type]) -> type | None:
        """Return the class of the innermost submodule in which the recordings part, unless it is known already."""
        inside = self._innermost()
        return inside[1] if inside and inside[0] and inside[1] not in known else None

    def _innermost(self) -> tuple[str, type, int] | None:
        stacks = [s for n in self.nodes if (s := n.meta.get("modules", ()))]
        deepest = max(stacks, key=len, default=())
        return deepest[-1] if deepest else None


class Merger:
    """Makes the first of three graphs hold for the others too: another batch size, and evaluation."""

    def __init__(
        self,
        module: nn.Module,
        graphs: tuple[fx.Graph, fx.Graph, fx.Graph],
        extras: dict[str, nn.Module | torch.Tensor],
        constants: tuple[Mapping[str, torch.Tensor], ...],
        batches: tuple[int, int],
    ) -> None:
        self.module, self.graph, self.extras, self.batches = module, graphs[0], extras, batches
        self.nodes, *others = (list(g.nodes) for g in graphs)
        self.others = others
        self.twins = [dict(zip(self.nodes, nodes, strict=False)) for nodes in others]
        self.constants = constants
        self.batch: fx.Node | None = None
        self.sizes: dict[tuple[int, int], fx.Node] = {}
        self.at: fx.Node = self.nodes[0]

    def merge(self) -> fx.Node | None:
        """Turn each constant that differs into a multiple of the batch or a switch; return the batch's node.

        Raises `Differs` at any other difference.
        """
        for i, node in enumerate(self.nodes):
            self.at = node
            for number, nodes in enumerate(self.others):
                other = nodes[i] if i < len(nodes) else None
                if other is None or (node.op, node.target) != (other.op, other.target) or self._made(node, number):
                    raise Differs([node, other], batches=number == 0)
        for number, nodes in enumerate(self.others):
            if len(nodes) != len(self.nodes):
                raise Differs([nodes[len(self.nodes)]], batches=number == 0)
        for node in self.nodes:
            self.at = node
            a, b = (twin[node] for twin in self.twins)
            node.args = tuple(self._merged(*three) for three in self._together(node.args, a.args, b.args))
            if not set(node.kwargs) == set(a.kwargs) == set(b.kwargs):
                raise self._differs(batches=set(node.kwargs) != set(a.kwargs))
            node.kwargs = {k: self._merged(v, a.kwargs[k], b.kwargs[k]) for k, v in node.kwargs.items()}
        return self.batch

    def _made(self, node: fx.Node, number: int) -> bool:
        """Whether a tensor that was made while recording has another value in the other recording."""
        first, other = self.extras.get(str(node.target)), self.constants[number].get(str(node.target))
        if node.op != "get_attr" or not isinstance(first, torch.Tensor) or other is None:
            return False
        return first.shape != other.shape or not torch.equal(first, other)

    def _together(self, *three: Sequence[fx.node.Argument]) -> list[tuple[fx.node.Argument, ...]]:
        if len({len(one) for one in three}) > 1:
            raise self._differs(batches=len(three[0]) != len(three[1]))
        return list(zip(*three, strict=True))

    def _differs(self, *, batches: bool) -> Differs:
        return Differs([self.at], batches=batches)

    def _merged(self, a: fx.node.Argument, large: fx.node.Argument, other: fx.node.Argument) -> fx.node.Argument:
        if isinstance(a, fx.Node):
            for number, value in enumerate((large, other)):
                if self.twins[number].get(a) is not value:
                    raise self._differs(batches=number == 0)
            return a
        if isinstance(a, tuple | list) and isinstance(large, type(a)) and isinstance(other, type(a)):
            merged = [self._merged(*three) for three in self._together(a, large, other)]
            return tuple(merged) if isinstance(a, tuple) else merged
        if isinstance(a, dict) and isinstance(large, dict) and isinstance(other, dict):
            if not set(a) == set(large) == set(other):
                raise self._differs(batches=set(a) != set(large))
            return {k: self._merged(v, large[k], other[k]) for k, v in a.items()}
        if isinstance(a, slice) and isinstance(large, slice) and isinstance(other, slice):
            parts = ("start", "stop", "step")
            return slice(*(self._merged(getattr(a, p), getattr(large, p), getattr(other, p)) for p in parts))
        if not _same(a, other):
            if not _same(a, large) or not isinstance(a, Constant) or not isinstance(other, Constant):
                raise self._differs(batches=False)
            return self._switch(a, other)
        return a if _same(a, large) else self._multiple(a, large)

    def _switch(self, trained: Constant, evaluated: Constant) -> fx.Node:
        name = fresh_name(self.module, self.extras, "mode")
        switch = ModeSwitch(trained, evaluated)
        switch.training = self.module.training
        self.extras[name] = switch
        with self.graph.inserting_before(self.at):
            return self.graph.call_module(name)

    def _multiple(self, small: fx.node.Argument, large: fx.node.Argument) -> fx.Node:
        """Return the node of the number that is `small` and `large` at the two batch sizes: factor * batch + rest."""
        if not isinstance(small, int) or not isinstance(large, int):
            raise self._differs(batches=True)
        factor, remains = divmod(large - small, self.batches[1] - self.batches[0])
        rest = small - factor * self.batches[0]
        if remains:
            raise self._differs(batches=True)
        first = self.nodes[0]
        if self.batch is None:
            last = next(n for n in reversed(self.nodes) if n.op == "placeholder")
            with self.graph.inserting_after(last):
                self.batch = self.graph.call_method("size", (first, 0))
            self.sizes[1, 0] = self.batch
        if (factor, rest) not in self.sizes:
            with self.graph.inserting_after(self.batch):
                node = self.batch if factor == 1 else self.graph.call_function(operator.mul, (self.batch, factor))
            if rest:
                with self.graph.inserting_after(node):
                    node = self.graph.call_function(operator.add, (node, rest))
            self.sizes[factor, rest] = node
        return self.sizes[factor, rest]


def _same(a: object, b: object) -> bool:
    return type(a) is type(b) and (a == b or a != a)


def fresh_name(module: nn.Module, extras: dict[str, nn.Module | torch.Tensor], wish: str) -> str:
    """Return `wish`, numbered if an attribute of `module` or an extra has that name already."""
    name, number = wish, 0
    while hasattr(module, name) or name in extras:
        number += 1
        name = f"{wish}_{number}"
    return name
