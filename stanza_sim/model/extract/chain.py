"""A traced graph as a chain of blocks, cut wherever a single tensor is live.

The graph falls into *pieces* at each point that one per-sample tensor alone passes. A block starts at a
piece that holds a *heavy* op (a parametered op that is neither a normalisation nor a parametric activation);
other pieces join the block before, and those before the first heavy piece join it. Pieces of one layer of a tower
(`towers`) are one block. Between layers a few tensors may pass (what an encoder gave its decoder, a mask): they are
packed into one (`packing`).

Values that do not depend on the samples (parameters, buffers, constants, sizes) are live nowhere: each
block that needs one makes it for itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import fx, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from stanza_sim.base.errors import InputError
from stanza_sim.model.extract.inputs import Input
from stanza_sim.model.extract.measure import Measured, NodeWork, measure
from stanza_sim.model.extract.random_ops import is_random
from stanza_sim.model.extract.towers import Call, Towers, block_names
from stanza_sim.model.extract.trace import Trace, trace

_LIGHT = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.PReLU)
_LOOKUPS = (functional.embedding, functional.embedding_bag)
_LIBRARIES = ("transformers.", "timm.")
"""Packages whose models have parameters for uses that are not made of them (masks, cross attention)."""
_MOST = 4
"""Tensors that may pass between two layers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A node whose value passes between blocks, with its shape per sample and its type."""

    node: fx.Node
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainBlock:
    """One block: its nodes in order, from `inputs` to `outputs`; those without samples may be in others too.

    `output_shape` and `output_dtype` are those of its output or, if there are several, of all packed into one.

    `parameters` are the trainable ones, by their first name in `named_parameters()` and in that order; `tied` are
    those that an earlier block has among its own. `layer` is the layer of a tower that the block is, if it is one.
    `linear` says that every heavy op is a linear layer, `fully_connected` that each is one on one vector per sample (a
    linear layer on each position of a sequence or image shares its weights like a convolution). `convolves` says that
    the last heavy op is a convolution.
    """

    name: str
    nodes: tuple[fx.Node, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    output_shape: tuple[int, ...]
    output_dtype: torch.dtype
    parameters: tuple[str, ...]
    tied: tuple[str, ...]
    layer: str | None
    linear: bool
    fully_connected: bool
    convolves: bool
    work: NodeWork


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A module as a chain of blocks; `lookups` are the rows that a sample looks up in tables with sparse gradients."""

    trace: Trace
    blocks: tuple[ChainBlock, ...]
    lookups: dict[str, int]


@dataclass(slots=True, kw_only=True)
class _Piece:
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]
    nodes: list[fx.Node]
    heavy: list[str]
    layer: Call | None
    branches: bool
    linear: bool
    fully_connected: bool
    convolves: bool


def chain_of(module: nn.Module, inputs: tuple[Input, ...], where: str) -> Chain:
    """Cut `module` into blocks for samples of `inputs`.

    Raises `InputError`, with `where` as its place, if the module cannot be traced, rejects the shape,
    returns anything but (batch, classes), has no parameters, has parameters that `forward` does not use,
    or uses a parameter in two blocks.
    """
    traced = trace(module, inputs, where)
    return _Cutter(module, traced, measure(module, traced, where), where).chain()


class _Cutter:
    """Cuts one graph."""

    def __init__(self, module: nn.Module, trace: Trace, measured: Measured, where: str) -> None:
        self.module, self.trace, self.measured, self.where = module, trace, measured, where
        self.order = {node: i for i, node in enumerate(trace.graph.nodes)}
        self.free = self._free_nodes()
        self.towers = Towers(module)
        first_names: dict[int, str] = {}
        self.parameters = dict(module.named_parameters())
        for name, p in module.named_parameters(remove_duplicate=False):
            first_names.setdefault(id(p), name)
        self.first_name = {n: first_names[id(p)] for n, p in module.named_parameters(remove_duplicate=False)}

    def chain(self) -> Chain:
        """Return the blocks, checked."""
        if not any(p.requires_grad for p in self.parameters.values()):
            raise InputError(f"{type(self.module).__name__} has no trainable parameters", where=self.where)
        groups, layers = self._groups()
        used = [self._used_names([n for piece in g for n in piece.nodes]) for g in groups]
        names = block_names([[h for piece in g for h in piece.heavy] for g in groups], layers, used)
        self._check_all_used(used)
        self._check_statistics(names, groups)
        blocks: list[ChainBlock] = []
        owned: set[str] = set()
        for name, group, layer, parameters in zip(names, groups, layers, used, strict=True):
            trained = [n for n, p in self.parameters.items() if n in parameters and p.requires_grad]
            own = tuple(n for n in trained if n not in owned)
            tied = tuple(n for n in trained if n in owned)
            owned.update(own)
            blocks.append(self._block(name, group, layer, own, tied))
        return Chain(trace=self.trace, blocks=tuple(blocks), lookups=self._lookups(blocks))

    def _lookups(self, blocks: Sequence[ChainBlock]) -> dict[str, int]:
        """Return the rows that a sample looks up in each table with sparse gradients of one `nn.Embedding`, used once.

        Of others the executor makes dense gradients, which are exchanged whole.
        """
        found: dict[str, int] = {}
        dense = {name for block in blocks for name in block.tied}
        for node in self.trace.graph.nodes:
            called = self.trace.module_of(self.module, node)
            sparse = isinstance(called, nn.Embedding) and called.sparse
            if isinstance(called, nn.Embedding | nn.EmbeddingBag):
                names = self._used_names([node])
            elif node.target in _LOOKUPS:
                names = self._used_names(node.all_input_nodes)
            else:
                continue
            for name in names:
                if name in found or not sparse:
                    dense.add(name)
                found[name] = self.measured.indices.get(node, 0)
        return {name: rows for name, rows in found.items() if name not in dense}

    def _groups(self) -> tuple[list[list[_Piece]], list[str | None]]:
        """Return the pieces of each block, and the layer that it is."""
        pieces = self._pieces(self._result())
        towers = {p.layer[0] for p in pieces if p.branches and p.layer is not None}
        groups: list[list[_Piece]] = []
        layers: list[Call | None] = []
        for piece in pieces:
            layer = piece.layer if piece.layer is not None and piece.layer[0] in towers else None
            started = bool(groups) and any(p.heavy for p in groups[-1])
            if groups and (not piece.heavy or not started or (layer is not None and layer == layers[-1])):
                groups[-1].append(piece)
                layers[-1] = layers[-1] or layer
            else:
                groups.append([piece])
                layers.append(layer)
        return groups, [layer and layer[0] for layer in layers]

    def _result(self) -> fx.Node:
        """Return the node whose value the module returns."""
        returned = next(n for n in self.trace.graph.nodes if n.op == "output").args[0]
        shape = self.measured.shapes.get(returned) if isinstance(returned, fx.Node) else None
        if isinstance(returned, fx.Node) and shape:
            return returned
        words = "one number for each sample" if shape == () else _returned_words(returned)
        raise InputError(
            f"{type(self.module).__name__} returns {words}, not one tensor of scores per sample",
            where=self.where,
            hint="wrap it in a module whose forward returns (batch, classes), (batch, positions, classes) or, of "
            "images, (batch, classes, height, width)",
        )

    def _free_nodes(self) -> set[fx.Node]:
        """Return the nodes that do not depend on the samples (on their number at most)."""
        free: set[fx.Node] = set()
        kept = {n.meta.get("storage") for n in self.trace.graph.nodes if n.op == "get_attr"} - {None}
        for node in self.trace.graph.nodes:
            if node in (self.trace.batch, self.trace.device) or node.op == "get_attr":
                free.add(node)
            elif node.op in ("placeholder", "output") or node.meta.get("changes") in kept or is_random(node):
                continue  # it updates a buffer or draws numbers once, and stays where it is
            elif all(n in free for n in node.all_input_nodes):
                free.add(node)
        return free

    def _pieces(self, result: fx.Node) -> list[_Piece]:
        """Cut the graph wherever a single per-sample tensor is live."""
        fixed = [n for n in self.order if n not in self.free and n.op != "output"]
        last_use = {n: max((self.order[u] for u in n.users if u not in self.free), default=-1) for n in fixed}
        last_use[result] = len(self.order)
        pieces: list[_Piece] = []
        live = {fixed[0]}
        source, nodes, branches = (fixed[0],), list[fx.Node](), False
        for node, following in zip(fixed[1:], [*fixed[2:], None], strict=True):
            nodes.append(node)
            live = {n for n in (*live, node) if last_use[n] > self.order[node]}
            branches |= len(live) > 1
            if set(source) == live or not self._may_cut(live, node, following):
                continue
            outputs = tuple(sorted(live, key=self.order.__getitem__))
            pieces.append(self._piece(source, outputs, nodes, branches))
            source, nodes, branches = outputs, [], False
        if source != (result,):
            pieces.append(self._piece(source, (result,), nodes, branches))
        elif pieces:
            pieces[-1].nodes.extend(nodes)
        return pieces

    def _may_cut(self, live: set[fx.Node], before: fx.Node, after: fx.Node | None) -> bool:
        """Whether a block may end between two nodes, where the values `live` are still needed."""
        region = before.meta.get("checkpoint")
        if after is not None and region is not None and after.meta.get("checkpoint") == region:
            return False
        if len(live) == 1:
            (only,) = live
            return only in self.measured.shapes and only.op != "placeholder"
        floats = sum(n in self.measured.shapes for n in live)
        known = floats + sum(n in self.measured.numbers for n in live)
        return floats > 0 and len(live) == known <= _MOST and after is not None and self.towers.begins(before, after)

    def _piece(
        self, inputs: tuple[fx.Node, ...], outputs: tuple[fx.Node, ...], nodes: list[fx.Node], branches: bool
    ) -> _Piece:
        found = {node: op for node in nodes if (op := self._heavy(node)) is not None}
        calls = {self.towers.layer_of(n) for n in found}
        return _Piece(
            inputs=inputs,
            outputs=outputs,
            nodes=nodes,
            layer=next(iter(calls)) if len(calls) == 1 else None,
            heavy=[name for name, _, _ in found.values()],
            branches=branches,
            linear=bool(found) and all(linear for _, linear, _ in found.values()),
            fully_connected=bool(found) and all(linear and on_vectors for _, linear, on_vectors in found.values()),
            convolves=bool(found) and self._convolves(list(found)[-1]),
        )

    def _convolves(self, node: fx.Node) -> bool:
        called = self.trace.module_of(self.module, node)
        return isinstance(called, _ConvNd) or "conv" in getattr(node.target, "__name__", "")

    def _heavy(self, node: fx.Node) -> tuple[str, bool, bool] | None:
        """Return the name of the heavy op at `node`, whether it is a linear layer, and whether it is on vectors."""
        called = self.trace.module_of(self.module, node)
        data = [n for n in node.all_input_nodes if n not in self.free]
        on_vectors = len(data) == 1 and len(self.measured.shapes.get(data[0], ())) == 1
        if called is not None:
            if isinstance(called, _LIGHT) or not any(True for _ in called.parameters()):
                return None
            return str(node.target), isinstance(called, nn.Linear), on_vectors
        weights = self._used_names([n for n in self._with_free([node]) if n is not node])
        work = self.measured.work.get(node, NodeWork())
        if not weights or not (work.forward_flops or node.target in _LOOKUPS):
            return None
        return weights[0].rpartition(".")[0] or weights[0], node.target is functional.linear, on_vectors

    def _with_free(self, nodes: Iterable[fx.Node]) -> list[fx.Node]:
        """Return `nodes` and the free nodes that they need, in the graph's order."""
        needed: set[fx.Node] = set()
        todo = list(nodes)
        while todo:
            node = todo.pop()
            if node not in needed:
                needed.add(node)
                todo.extend(n for n in node.all_input_nodes if n in self.free)
        return sorted(needed, key=self.order.__getitem__)

    def _used_names(self, nodes: Iterable[fx.Node]) -> list[str]:
        """Return the names of the parameters that `nodes` use, frozen ones included, in order of use."""
        used: dict[str, None] = {}
        for node in self._with_free(nodes):
            target = str(node.target)
            called = self.trace.module_of(self.module, node)
            if called is not None and target not in self.trace.extras:
                used |= {self.first_name[f"{target}.{n}"]: None for n, _ in called.named_parameters()}
            elif node.op == "get_attr" and target in self.first_name:
                used[self.first_name[target]] = None
        return list(used)

    def _check_statistics(self, names: Sequence[str], groups: Sequence[list[_Piece]]) -> None:
        """Raise `InputError` unless every running statistic is updated in one block."""
        owner: dict[str, str] = {}
        for block, group in zip(names, groups, strict=True):
            for what in self._statistics(group):
                if owner.setdefault(what, block) != block:
                    raise InputError(
                        f"{what} is used by two blocks, {owner[what]} and {block}",
                        where=self.where,
                        hint="blocks may be held by different ranks, and its running statistics have one place: "
                        "give each use a module of its own",
                    )

    def _check_all_used(self, used: Sequence[Sequence[str]]) -> None:
        """Raise `InputError` unless every parameter is used, save those that a library's model has to spare."""
        known = {name for names in used for name in names}
        unused = [n for n, p in self.parameters.items() if p.requires_grad and n not in known]
        parts = self.module.named_modules() if unused else ()
        libraries = [f"{name}." if name else "" for name, m in parts if type(m).__module__.startswith(_LIBRARIES)]
        unused = [n for n in unused if not n.startswith(tuple(libraries))]
        if unused:
            raise InputError(
                f"forward does not use the parameters {', '.join(unused[:4])}{' ...' if len(unused) > 4 else ''}",
                where=self.where,
                hint="leave them out of the module, or freeze them in the factory: "
                f"model.get_parameter({unused[0]!r}).requires_grad_(False)",
            )

    def _statistics(self, group: Iterable[_Piece]) -> list[str]:
        """Return the modules of `group` that have buffers: training may change them."""
        found = []
        for node in (n for piece in group for n in piece.nodes):
            called = self.trace.module_of(self.module, node)
            if called is not None and any(True for _ in called.buffers()):
                found.append(f"module {node.target}")
        return found

    def _values(self, nodes: Iterable[fx.Node]) -> tuple[Value, ...]:
        shapes = {**self.measured.numbers, **self.measured.shapes}
        return tuple(Value(node=n, shape=shapes.get(n, ()), dtype=self.measured.dtypes[n]) for n in nodes)

    def _block(
        self, name: str, group: Sequence[_Piece], layer: str | None, own: tuple[str, ...], tied: tuple[str, ...]
    ) -> ChainBlock:
        nodes = self._with_free(n for piece in group for n in piece.nodes)
        work = NodeWork()
        for node in nodes:
            work.add(self.measured.work.get(node, NodeWork()))
        heavy = [piece for piece in group if piece.heavy]
        outputs = self._values(group[-1].outputs)
        return ChainBlock(
            name=name,
            nodes=tuple(nodes),
            inputs=self._values(group[0].inputs),
            outputs=outputs,
            output_shape=outputs[0].shape if len(outputs) == 1 else (sum(prod(v.shape) for v in outputs),),
            output_dtype=next(v.dtype for v in outputs if v.dtype.is_floating_point),
            parameters=own,
            tied=tied,
            layer=layer,
            linear=bool(heavy) and all(piece.linear for piece in heavy),
            fully_connected=bool(heavy) and all(piece.fully_connected for piece in heavy),
            convolves=bool(heavy) and heavy[-1].convolves,
            work=work,
        )


def _returned_words(returned: fx.node.Argument) -> str:
    if isinstance(returned, fx.Node):
        kind = returned.target if isinstance(returned.target, str) else getattr(returned.target, "__name__", "?")
        return f"the value of {kind}"
    return f"a {type(returned).__name__}"
