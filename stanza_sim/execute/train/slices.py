"""Blocks of which a rank holds a slice of the features: the module of the slice, and slices of tensors."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from stanza_sim.base.errors import InputError
from stanza_sim.execute.train.dropout import CounterDropout
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Axis, Bundle, Cut, Layout, Schedule
from stanza_sim.schedule.cuts import slice_shape

_ELEMENTWISE = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus),
    *(nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Identity, CounterDropout),
)
_SHAPES = (nn.Flatten,)
_FUNCTIONS = (torch.relu, torch.tanh, torch.sigmoid, F.relu, F.relu6, F.gelu, F.silu, F.leaky_relu, F.tanh, F.sigmoid)
_METHODS = ("relu", "tanh", "sigmoid", "contiguous", "clone")


@dataclass(slots=True, kw_only=True)
class HeldBlock:
    """A block that this rank computes. `parameters` are views of flat vectors, in the profile's order; `trained` are
    the names at which `module` has them.

    Of a block that is cut, `module` is the rank's slice; `inputs` and `outputs` are the features [lo, hi) of its input
    and of its output that it has where those are slices. Under a cut by rows `tail` is what follows the sum of all
    ranks' outputs of `module`, and `in_tail` are the identities of the parameters that it has.
    """

    name: str
    module: nn.Module
    parameters: tuple[tuple[str, nn.Parameter], ...]
    dropouts: tuple[CounterDropout, ...]
    tail: nn.Module | None = None
    in_tail: frozenset[int] = frozenset()
    inputs: tuple[int, int] | None = None
    outputs: tuple[int, int] | None = None
    trained: frozenset[str] = frozenset()


def cut_block(block: HeldBlock, cut: Cut, features: tuple[int, int]) -> HeldBlock:
    """Return `block`, whose parameters are slices already, as the slice with `features` of a block that is cut.

    Raises `InputError` unless its module is one `nn.Linear` with elementwise modules around it, in a chain.
    """
    graph = block.module
    if not isinstance(graph, fx.GraphModule):
        raise InputError(f"block {cut.block} is a {type(graph).__name__}, not a chain of modules")
    nodes = [n for n in graph.graph.nodes if n.op not in ("placeholder", "output")]
    linears = [i for i, n in enumerate(nodes) if _kind(graph, n) is nn.Linear]
    odd = [str(n.target) for i, n in enumerate(nodes) if i not in linears and not _is_elementwise(graph, n)]
    chained = all(n.all_input_nodes == [n.prev] for n in nodes)
    if len(linears) != 1 or odd or not chained:
        found = f"{odd[0]!r} is not elementwise" if odd else f"there are {len(linears)} linear layers in it"
        raise InputError(
            f"the features of block {cut.block} cannot be cut: {found if odd or len(linears) != 1 else 'it branches'}",
            hint="cut only blocks of one nn.Linear with elementwise modules around it",
        )
    before, after = nodes[: linears[0]], nodes[linears[0] + 1 :]
    sliced = before if cut.axis is Axis.ROWS else after
    for dropout in (m for m in (_module(graph, n) for n in sliced) if isinstance(m, CounterDropout)):
        dropout.first_element, dropout.features = features[0], cut.features
    if cut.axis is Axis.COLUMNS:
        return replace(block, outputs=features)
    linear = _module(graph, nodes[linears[0]])
    bias = linear.bias if isinstance(linear, nn.Linear) else None
    linear.register_parameter("bias", None)
    tail = _chain(graph, after, bias if isinstance(bias, nn.Parameter) else None, copied=bool(after))
    return replace(
        block,
        module=_chain(graph, [*before, nodes[linears[0]]], None),
        tail=tail,
        in_tail=frozenset() if bias is None else frozenset({id(bias)}),
        inputs=features,
    )


def _chain(
    module: fx.GraphModule, nodes: Iterable[fx.Node], bias: nn.Parameter | None, *, copied: bool = False
) -> fx.GraphModule:
    """`nodes` of `module`, one after another, as a module; first, `bias` is added, or the input is `copied`."""
    graph = fx.Graph()
    last = graph.placeholder("input")
    parts: dict[str, nn.Module | Tensor] = {}
    if bias is not None:
        parts["_summed_bias"] = bias
        last = graph.call_function(operator.add, (last, graph.get_attr("_summed_bias")))
    elif copied:
        last = graph.call_method("clone", (last,))  # what follows may work in place, and on a leaf it must not
    for node in nodes:
        if node.op == "call_module":
            parts[str(node.target)] = _module(module, node)
        last = graph.node_copy(node, lambda _, last=last: last)  # type: ignore[misc]
    graph.output(last)
    made = fx.GraphModule(parts, graph, class_name="Slice")
    made.train(module.training)
    return made


def _module(graph: fx.GraphModule, node: fx.Node) -> nn.Module:
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else nn.Identity()


def _kind(graph: fx.GraphModule, node: fx.Node) -> type[nn.Module] | None:
    return type(_module(graph, node)) if node.op == "call_module" else None


def _is_elementwise(graph: fx.GraphModule, node: fx.Node) -> bool:
    match node.op:
        case "call_module":
            kind = _kind(graph, node)
            return kind in _ELEMENTWISE or kind in _SHAPES
        case "call_function":
            return node.target in _FUNCTIONS or (node.target is torch.flatten and node.args[1:] == (1,))
        case "call_method":
            return node.target in _METHODS
        case _:
            return False


def features_of(x: Tensor, features: tuple[int, int] | None) -> Tensor:
    """The slice of `x` (samples, ..., features) if it is not that slice already; all of it for None."""
    if features is None or x.shape[-1] == features[1] - features[0]:
        return x
    return x[..., features[0] : features[1]]


def gradients(output: Tensor, wanted: Sequence[Tensor], gradient: Tensor, *, keep: bool) -> list[Tensor]:
    """Gradients of `wanted`, given that of `output`; zeros of what `output` does not depend on."""
    given = gradient.to(output.dtype)
    return list(
        torch.autograd.grad(output, wanted, given, retain_graph=keep, allow_unused=True, materialize_grads=True)
    )


def gradients_with_tail(
    output: Tensor,
    tail: tuple[Tensor, Tensor],
    wanted: Sequence[Tensor],
    gradient: Tensor,
    in_tail: frozenset[int],
    *,
    keep: bool,
) -> list[Tensor]:
    """As `gradients`, where the sum of all ranks' `output` was fed to a tail, (input, output), with parameters too.

    `in_tail` are the identities of these.
    """
    behind = [p for p in wanted if id(p) in in_tail]
    before = [p for p in wanted if id(p) not in in_tail]
    of_sum, *found = gradients(tail[1], [tail[0], *behind], gradient, keep=keep)
    by_id = {id(p): g for p, g in zip(behind, found, strict=True)}
    if before:
        by_id |= {id(p): g for p, g in zip(before, gradients(output, before, of_sum, keep=keep), strict=True)}
    return [by_id[id(p)] for p in wanted]


# ---- slices of parameters ------------------------------------------------------------------------------------------


def local_shape(schedule: Schedule, block: str, shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """The shape of what `rank` has of a tensor of `block`."""
    cut = schedule.cut(block)
    if cut is None or rank not in schedule.group(cut.ranks):
        return shape
    lo, hi = schedule.features(cut, rank)
    return slice_shape(cut, shape, hi - lo)


def take_local(schedule: Schedule, model: ModelProfile, bundle: Bundle, rank: int, whole: Tensor) -> Tensor:
    """What `rank` has of the flat vector `whole` of a bundle, as a flat vector."""
    if bundle.layout is not Layout.FEATURES:
        return whole
    return torch.cat([part.reshape(-1) for part in _parts(schedule, model, bundle, rank, whole)])


def put_local(
    schedule: Schedule, model: ModelProfile, bundle: Bundle, rank: int, whole: Tensor, values: Tensor
) -> None:
    """Write `values`, what `rank` has of a bundle, to where it is in the flat vector `whole`."""
    position = 0
    for part in _parts(schedule, model, bundle, rank, whole):
        part.copy_(values[position : position + part.numel()].view(part.shape))
        position += part.numel()


def _parts(schedule: Schedule, model: ModelProfile, bundle: Bundle, rank: int, whole: Tensor) -> list[Tensor]:
    """Views of what `rank` has of each tensor of a bundle, in `whole`."""
    block_of = {t.name: (b.name, t.shape) for b in model.blocks for t in b.tensors}
    found, position = [], 0
    for name in bundle.tensors:
        block, shape = block_of[name]
        numel = prod(shape)
        tensor = whole[position : position + numel].view(shape)
        position += numel
        cut = schedule.cut(block)
        if cut is not None:
            lo, hi = schedule.features(cut, rank)
            if cut.axis is Axis.COLUMNS:
                tensor = tensor[lo:hi]
            elif len(shape) > 1:
                tensor = tensor[:, lo:hi]
        found.append(tensor)
    return found
