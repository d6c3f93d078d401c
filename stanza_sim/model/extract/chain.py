"""A traced graph as a chain of blocks, cut wherever a single tensor is live.

The graph falls into *pieces* at each point that one per-sample tensor alone passes. A block starts at a
piece that holds a *heavy* op (a parametered op that is neither a normalisation nor a parametric activation);
other pieces join the block before, and those before the first heavy piece join it.

Values that do not depend on the samples (parameters, buffers, constants, sizes) are live nowhere: each
block that needs one makes it for itself.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import fx, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _NormBase

from stanza_sim.base.errors import InputError
from stanza_sim.model.extract.measure import BATCHES, Measured, NodeWork, Plain, measure
from stanza_sim.model.extract.trace import Trace, trace

_LIGHT = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.PReLU)
_INPLACE_OPERATORS = (operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ipow, operator.imatmul)
_LOOKUPS = (functional.embedding, functional.embedding_bag)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainBlock:
    """One block: its nodes in order, from `input` to `output`; those without samples may be in others too.

    `parameters` are the trainable ones, by their first name in `named_parameters()` and in that order; `tied` are those
    that an earlier block has among its `parameters`, and this one uses too.
    `fully_connected` says that every heavy op is a linear layer on one vector per sample (a linear layer
    on each position of a sequence or image shares its weights like a convolution).
    """

    name: str
    nodes: tuple[fx.Node, ...]
    input: fx.Node
    output: fx.Node
    output_shape: tuple[int, ...]
    parameters: tuple[str, ...]
    tied: tuple[str, ...]
    fully_connected: bool
    work: NodeWork


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A module as a chain of blocks. `batch` is the node that holds the batch size, if any block needs it."""

    trace: Trace
    blocks: tuple[ChainBlock, ...]
    batch: fx.Node | None


@dataclass(slots=True, kw_only=True)
class _Piece:
    input: fx.Node
    output: fx.Node
    nodes: list[fx.Node]
    heavy: list[str]
    fully_connected: bool


def chain_of(module: nn.Module, input_shape: tuple[int, ...], where: str) -> Chain:
    """Cut `module` into blocks for samples of `input_shape`.

    Raises `InputError`, with `where` as its place, if the module cannot be traced, rejects the shape,
    returns anything but one tensor of floats with the samples first, has no parameters, has parameters that `forward`
    does not use, or running statistics that two blocks would change.
    """
    traced = trace(module, where)
    measured = measure(module, traced, input_shape, where)
    batch = _fold_sizes(traced, measured)
    return _Cutter(module, traced, measured, batch, where).chain()


def _fold_sizes(trace: Trace, measured: Measured) -> fx.Node | None:
    """Replace every number computed from shapes by a constant or a multiple of the batch size.

    Returns the node that holds the batch size, if one is needed. Other numbers stay as they are.
    """
    graph, source = trace.graph, trace.input
    with graph.inserting_after(source):
        batch = graph.call_method("size", (source, 0))
    multiples: dict[int, fx.Node] = {1: batch}
    folded: dict[fx.Node, fx.node.Argument] = {}
    for node, (small, large) in measured.plain.items():
        if node.op not in ("output", "get_attr") and trace.switch(node) is None:
            try:
                folded[node] = _fold(small, large, graph, batch, multiples)
            except ValueError:
                continue
    for node in graph.nodes:
        node.args = fx.node.map_arg(node.args, lambda n: folded.get(n, n))
        node.kwargs = fx.node.map_arg(node.kwargs, lambda n: folded.get(n, n))
    for node in (*reversed(folded), *reversed(multiples.values())):
        if not node.users:
            graph.erase_node(node)
    return batch if batch.users else None


def _fold(
    small: Plain, large: Plain, graph: fx.Graph, batch: fx.Node, multiples: dict[int, fx.Node]
) -> fx.node.Argument:
    """Return what gives `small` and `large` at the two batch sizes; raise `ValueError` if nothing simple does."""
    if isinstance(small, tuple) and isinstance(large, tuple):
        return tuple(_fold(a, b, graph, batch, multiples) for a, b in zip(small, large, strict=True))
    if isinstance(small, tuple) or isinstance(large, tuple):
        raise ValueError
    if small == large:
        return small
    factor, rest = divmod(int(small), BATCHES[0])
    if not (isinstance(small, int) and rest == 0 and large == factor * BATCHES[1]):
        raise ValueError
    if factor not in multiples:
        with graph.inserting_after(batch):
            multiples[factor] = graph.call_function(operator.mul, (batch, factor))
    return multiples[factor]


class _Cutter:
    """Cuts one graph."""

    def __init__(self, module: nn.Module, trace: Trace, measured: Measured, batch: fx.Node | None, where: str) -> None:
        self.module, self.trace, self.measured, self.batch, self.where = module, trace, measured, batch, where
        self.order = {node: i for i, node in enumerate(trace.graph.nodes)}
        self.free = self._free_nodes()
        first_names: dict[int, str] = {}
        self.parameters = dict(module.named_parameters())
        for name, p in module.named_parameters(remove_duplicate=False):
            first_names.setdefault(id(p), name)
        self.first_name = {n: first_names[id(p)] for n, p in module.named_parameters(remove_duplicate=False)}

    def chain(self) -> Chain:
        """Return the blocks, checked."""
        if not any(p.requires_grad for p in self.parameters.values()):
            raise InputError(f"{type(self.module).__name__} has no trainable parameters", where=self.where)
        groups: list[list[_Piece]] = []
        for piece in self._pieces(self._result()):
            if groups and (not piece.heavy or not any(p.heavy for p in groups[-1])):
                groups[-1].append(piece)
            else:
                groups.append([piece])
        used = [self._used_names([n for piece in g for n in piece.nodes]) for g in groups]
        names = _block_names([[h for piece in g for h in piece.heavy] for g in groups], used)
        owner = self._owners(names, groups, used)
        blocks = tuple(self._block(n, g, u, owner) for n, g, u in zip(names, groups, used, strict=True))
        return Chain(trace=self.trace, blocks=blocks, batch=self.batch)

    def _result(self) -> fx.Node:
        """Return the node whose value the module returns."""
        returned = next(n for n in self.trace.graph.nodes if n.op == "output").args[0]
        shape = self.measured.shapes.get(returned) if isinstance(returned, fx.Node) else None
        if isinstance(returned, fx.Node) and shape:
            return returned
        what = "one number for each sample" if shape == () else _returned_words(returned)
        raise InputError(
            f"{type(self.module).__name__} returns {what}, not one tensor of floats with the samples first",
            where=self.where,
            hint="wrap it in a module that returns (batch, classes), (batch, positions, classes) or "
            "(batch, classes, height, width) only",
        )

    def _free_nodes(self) -> set[fx.Node]:
        """Return the nodes that do not depend on the samples (on their number at most)."""
        free: set[fx.Node] = set()
        for node in self.trace.graph.nodes:
            if node is self.batch or node.op == "get_attr":
                free.add(node)
            elif node.op in ("placeholder", "output"):
                continue
            elif not node.users and changes_input(self.trace.module_of(self.module, node), node):
                continue  # it updates a buffer, and stays where it is
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
        source, nodes = fixed[0], list[fx.Node]()
        for node in fixed[1:]:
            nodes.append(node)
            live = {n for n in (*live, node) if last_use[n] > self.order[node]}
            (only,) = live if len(live) == 1 else (None,)
            if only is None or only is source or only not in self.measured.shapes:
                continue
            pieces.append(self._piece(source, only, nodes))
            source, nodes = only, []
        if source is not result:
            pieces.append(self._piece(source, result, nodes))
        elif pieces:
            pieces[-1].nodes.extend(nodes)
        return pieces

    def _piece(self, source: fx.Node, output: fx.Node, nodes: list[fx.Node]) -> _Piece:
        heavy: list[str] = []
        linear = True
        for node in nodes:
            name, is_linear = self._heavy(node)
            if name is not None:
                heavy.append(name)
                linear = linear and is_linear
        return _Piece(input=source, output=output, nodes=nodes, heavy=heavy, fully_connected=bool(heavy) and linear)

    def _heavy(self, node: fx.Node) -> tuple[str | None, bool]:
        """Return the name of the heavy op at `node`, if it is one, and whether it is a linear layer on vectors."""
        called = self.trace.module_of(self.module, node)
        data = [n for n in node.all_input_nodes if n not in self.free]
        on_vectors = len(data) == 1 and len(self.measured.shapes.get(data[0], ())) == 1
        if called is not None:
            if isinstance(called, _LIGHT) or not any(True for _ in called.parameters()):
                return None, False
            return str(node.target), isinstance(called, nn.Linear) and on_vectors
        weights = self._used_names([n for n in self._with_free([node]) if n is not node])
        work = self.measured.work.get(node, NodeWork())
        if not weights or not (work.forward_flops or node.target in _LOOKUPS):
            return None, False
        return weights[0].rpartition(".")[0] or weights[0], node.target is functional.linear and on_vectors

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

    def _owners(
        self, names: Sequence[str], groups: Sequence[list[_Piece]], used: Sequence[list[str]]
    ) -> dict[str, str]:
        """The block that has each parameter: the first that uses it.

        Raises `InputError` for parameters that no block uses, and for running statistics that two would change.
        """
        owner: dict[str, str] = {}
        for block, parameters, group in zip(names, used, groups, strict=True):
            for name in parameters:
                owner.setdefault(name, block)
            for what in self._statistics(group):
                if owner.setdefault(what, block) != block:
                    raise InputError(
                        f"{what} is used by two blocks, {owner[what]} and {block}, and both change its statistics",
                        where=self.where,
                        hint="give each use a layer of its own; weights may be shared, running statistics not",
                    )
        unused = [n for n, p in self.parameters.items() if p.requires_grad and n not in owner]
        if unused:
            raise InputError(
                f"forward does not use the parameters {', '.join(unused[:4])}{' ...' if len(unused) > 4 else ''}",
                where=self.where,
                hint="leave them out of the module, or freeze them with requires_grad_(False)",
            )
        return owner

    def _statistics(self, group: Iterable[_Piece]) -> list[str]:
        """Return the modules of `group` that have buffers: training may change them."""
        found = []
        for node in (n for piece in group for n in piece.nodes):
            called = self.trace.module_of(self.module, node)
            if called is not None and any(True for _ in called.buffers()):
                found.append(f"module {node.target}")
        return found

    def _block(
        self, name: str, group: Sequence[_Piece], used: Sequence[str], owner: Mapping[str, str]
    ) -> ChainBlock:
        nodes = self._with_free(n for piece in group for n in piece.nodes)
        work = NodeWork()
        for node in nodes:
            work.add(self.measured.work.get(node, NodeWork()))
        heavy = [piece for piece in group if piece.heavy]
        trained = [n for n, p in self.parameters.items() if n in used and p.requires_grad]
        return ChainBlock(
            name=name,
            nodes=tuple(nodes),
            input=group[0].input,
            output=group[-1].output,
            output_shape=self.measured.shapes[group[-1].output],
            parameters=tuple(n for n in trained if owner[n] == name),
            tied=tuple(n for n in trained if owner[n] != name),
            fully_connected=bool(heavy) and all(piece.fully_connected for piece in heavy),
            work=work,
        )


def changes_input(called: nn.Module | None, node: fx.Node) -> bool:
    """Whether `node` works in place on its first argument, going by torch's naming; `called` is its module."""
    if called is not None:
        return getattr(called, "inplace", False) is True
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    inplace_operator = node.target in _INPLACE_OPERATORS
    return inplace_operator or node.kwargs.get("inplace") is True or (name.endswith("_") and not name.endswith("__"))


def _returned_words(returned: fx.node.Argument) -> str:
    if isinstance(returned, fx.Node):
        kind = returned.target if isinstance(returned.target, str) else getattr(returned.target, "__name__", "?")
        return f"the value of {kind}"
    return f"a {type(returned).__name__}"


def _common_module(names: Sequence[str]) -> str:
    """Return the qualified name of the innermost module that holds all of `names`; empty for the whole model."""
    shared = names[0].split(".")[:-1]
    for name in names:
        while shared != name.split(".")[: len(shared)]:
            shared.pop()
    return ".".join(shared)


def _block_names(heavy: Sequence[Sequence[str]], used: Sequence[Sequence[str]]) -> list[str]:
    """Return a readable, unique name for each block.

    It is the heavy op's own name, or of several the module that they share (`layer1.0`) if nothing of
    another block lies in that module, else the first one's.
    """
    names = []
    for i, own in enumerate(heavy):
        first = own[0] if own else (used[i][0].rpartition(".")[0] or used[i][0] if used[i] else "block")
        shared = _common_module(own) if len(set(own)) > 1 else first
        elsewhere = (name for j, names_there in enumerate(used) if j != i for name in names_there)
        alone = shared and not any(name.startswith(f"{shared}.") for name in elsewhere)
        names.append(re.sub(r"[^A-Za-z0-9_.-]", "_", shared if alone else first))
    unique: list[str] = []
    for name in names:
        numbered, number = name, 1
        while numbered in unique:
            number += 1
            numbered = f"{name}-{number}"
        unique.append(numbered)
    return unique
