"""A real module as the chain of blocks of its profile, for the executor.

Each block is a `torch.fx.GraphModule` that holds the very submodules, parameters and buffers of the module
that was split, under their own qualified names, so training the blocks trains the module.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import TypeGuard

import torch
from torch import Tensor, fx, nn

from stanza_sim.base.errors import InputError
from stanza_sim.model.extract.chain import Chain, ChainBlock, chain_of
from stanza_sim.model.extract.factory import USER_ERRORS
from stanza_sim.model.extract.inputs import Input
from stanza_sim.model.extract.merge import AlwaysDropout
from stanza_sim.model.extract.packing import pack, unpack
from stanza_sim.model.extract.random_ops import is_random
from stanza_sim.model.extract.recompute import keeps_all, recompute_regions
from stanza_sim.model.extract.record import work_of
from stanza_sim.model.profile import Block, ModelInput, ModelProfile, OpWork


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitBlock:
    """One block of a module. `module` maps the previous block's output to this block's, the first one all inputs.

    `parameters` has the module's own trainable `Parameter` objects by their name in the profile, in the
    profile's order, and behind them those that an earlier block has and this one uses too. Frozen parameters and
    buffers are in `module` only, by their qualified names. `places[name]` are the qualified names at which `module`
    holds a parameter: several if weights are tied.
    """

    name: str
    module: fx.GraphModule
    parameters: dict[str, nn.Parameter]
    places: dict[str, tuple[str, ...]]

    def rebind(self, name: str, parameter: nn.Parameter) -> None:
        """Let the block use `parameter` for the profile's tensor `name`, wherever it uses that tensor.

        A submodule that the block calls is shared with the module that was split, which then uses it too.
        `parameters` goes on telling what the block held when it was split.
        """
        for place in self.places[name]:
            path, _, leaf = place.rpartition(".")
            setattr(self.module.get_submodule(path), leaf, parameter)


def split(module: nn.Module, profile: ModelProfile) -> tuple[SplitBlock, ...]:
    """Return the blocks of `module`, one for each of `profile.blocks`, in order.

    `module` is what the profile's factory returns (`factory.build_module`), on any device, `meta` too;
    nothing is copied and nothing computed on it. Applying the blocks one after another equals applying the
    module, bit by bit, in training and in evaluation. A block's input is not changed in place, so it may be
    a leaf that requires a gradient. Blocks follow their own `train()` and `eval()`; they start in the
    module's mode.

    Raises `InputError` if the module's blocks are not the profile's.
    """
    where = f"model {profile.name}"
    chain = chain_of(module, inputs_of(module, profile), where)
    parameters = dict(module.named_parameters())
    for found, block in zip(chain.blocks, profile.blocks, strict=False):
        _check_same(found, block, parameters, where)
    if len(chain.blocks) != len(profile.blocks):
        raise InputError(
            f"the module has {len(chain.blocks)} blocks and its profile {len(profile.blocks)}",
            where=where,
            hint="extract the profile from the same factory with the same factory_kwargs",
        )
    result = []
    for cut in chain.blocks:
        part = _graph_module(module, chain, cut)
        held = list(part.named_parameters(remove_duplicate=False))
        own = {name: parameters[name] for name in (*cut.parameters, *cut.tied)}
        places = {name: tuple(place for place, p in held if p is parameter) for name, parameter in own.items()}
        result.append(SplitBlock(name=cut.name, module=part, parameters=own, places=places))
    return tuple(result)


def _check_same(found: ChainBlock, block: Block, parameters: dict[str, nn.Parameter], where: str) -> None:
    shapes = tuple((name, tuple(parameters[name].shape)) for name in (*found.parameters, *found.tied))
    expected = tuple((t.name, t.shape) for t in (*block.tensors, *block.tied))
    if (found.name, found.output_shape, shapes) != (block.name, block.output_shape, expected):
        raise InputError(
            f"the module's block {found.name} is not the profile's block {block.name}: "
            f"{shapes} giving {found.output_shape}, and {expected} giving {block.output_shape}",
            where=where,
            hint="extract the profile from the same factory with the same factory_kwargs",
        )


def inputs_of(module: nn.Module, profile: ModelProfile) -> tuple[Input, ...]:
    """Return the inputs that a profile of `module` tells of."""
    floating = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    first = ModelInput(name="", shape=profile.input_shape, vocabulary=profile.vocabulary)
    return tuple(
        Input(name=i.name, shape=i.shape, dtype=floating if i.vocabulary is None else torch.int64)
        for i in (first, *profile.more_inputs)
    )


def _graph_module(module: nn.Module, chain: Chain, block: ChainBlock) -> fx.GraphModule:
    """Return `block` as a module of its own over the parts of `module`."""
    graph, trace = fx.Graph(), chain.trace
    source = graph.placeholder("input")
    whole: fx.Node = source
    copies: dict[fx.Node, fx.Node] = {}
    for node in block.nodes:
        if node.op == "placeholder":
            copies[node] = graph.placeholder(node.name)
    given = {v.node.meta["storage"] for v in block.inputs}
    if any(n.meta.get("changes") in given for n in block.nodes):
        whole = graph.call_method("clone", (source,))
    if len(block.inputs) == 1:
        copies[block.inputs[0].node] = whole
    else:
        start = 0
        for value in block.inputs:
            dtype = None if value.dtype.is_floating_point else value.dtype
            copies[value.node] = graph.call_function(unpack, (whole, start, value.shape, dtype))
            start += prod(value.shape)
    parts: dict[str, nn.Module | Tensor] = {}
    for node in block.nodes:
        if node.op == "placeholder":
            continue
        if node is trace.batch:
            copies[node] = graph.call_method("size", (source, 0))
        elif node is trace.device:
            copies[node] = graph.call_function(getattr, (source, "device"))
        else:
            copies[node] = graph.node_copy(node, copies.__getitem__)
        if node.op in ("call_module", "get_attr"):
            target = str(node.target)
            parts[target] = trace.extras[target] if target in trace.extras else _part(module, target)
    outputs = [copies[v.node] for v in block.outputs]
    graph.output(outputs[0] if len(outputs) == 1 else graph.call_function(pack, tuple(outputs)))
    result = fx.GraphModule(parts, graph, class_name="Block")
    result.training = module.training
    recompute_regions(result)
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockWork:
    """The work of a block by kind of op, and the FLOPs of what its backward passes compute again (inputs, weights)."""

    work: tuple[OpWork, ...]
    again: tuple[int, int]


def block_works(module: nn.Module, chain: Chain) -> tuple[BlockWork, ...]:
    """Return the work of each block of `chain`, `module` cut; without kinds for a block that cannot be recorded.

    `module` is moved to the meta device. The first block's inputs, the samples, need no gradient.
    """
    module.to("meta")
    module.train()
    found = []
    inputs = [(i.shape, i.dtype or torch.float32) for i in chain.trace.inputs]
    for i, cut in enumerate(chain.blocks):
        part = _graph_module(module, chain, cut).to("meta").train()
        parameters, again = list(part.parameters()), (0, 0)
        try:
            work = work_of(part, inputs, parameters, input_gradient=i > 0)
            if (whole := keeps_all(part)) is not None:
                kept = work_of(whole, inputs, parameters, input_gradient=i > 0)
                more = [sum(w.passes[p].flops for w in work) - sum(w.passes[p].flops for w in kept) for p in (1, 2)]
                again = (more[0], more[1])
        except USER_ERRORS:
            work = ()
        found.append(BlockWork(work=work, again=again))
        inputs = [(cut.output_shape, cut.output_dtype)]
    return tuple(found)


def _part(module: nn.Module, target: str) -> nn.Module | Tensor:
    """Return the submodule, parameter or buffer of `module` at the qualified name `target`."""
    path, _, name = target.rpartition(".")
    part = getattr(module.get_submodule(path), name)
    if not isinstance(part, nn.Module | Tensor):
        raise InputError(f"{target} is a {type(part).__name__}, neither a module nor a tensor")
    return part


def replace_dropout(block_module: nn.Module, make: Callable[[str, float], nn.Module]) -> tuple[str, ...]:
    """Replace every dropout of a block by `make(key, p)`; return the keys.

    `key` is the submodule's qualified name, or the name of the graph's node for a call of `F.dropout` (and
    for the second and later calls of one `nn.Dropout`); it is unique within the model and the same in every
    process. `p` is the rate. The replacement takes and returns one tensor; it follows later `train()` and
    `eval()` of the block, and `make` sets the mode that it starts in. The module that was split keeps its own
    dropouts, save those inside a torch layer made of several (`nn.TransformerEncoderLayer`), which it shares.

    Raises `InputError` if the block draws random numbers in any other way: only elementwise dropout can be
    made independent of how the samples are spread over ranks.
    """
    other = [name for name, m in block_module.named_modules() if _draws_otherwise(m)]
    if isinstance(block_module, fx.GraphModule):
        other += [n.name for n in block_module.graph.nodes if _calls_random(n)]
    if other:
        raise InputError(
            f"random numbers of {', '.join(map(repr, other))} depend on how samples are spread over ranks",
            hint="use nn.Dropout or F.dropout with a constant rate, or set the rate to 0",
        )
    found = {key: m.p for key, m in block_module.named_modules() if _is_plain_dropout(m)}
    for key, p in found.items():
        path, _, name = key.rpartition(".")
        setattr(block_module.get_submodule(path), name, make(key, p))
    return tuple(found)


def _is_plain_dropout(module: nn.Module) -> TypeGuard[nn.Dropout]:
    """Whether `module` drops elements independently; subclasses that we do not know may do anything."""
    return type(module) in (nn.Dropout, AlwaysDropout)


def _draws_otherwise(module: nn.Module) -> bool:
    """Whether a torch module draws random numbers in training, other than as elementwise dropout."""
    if isinstance(module, nn.RNNBase):
        return module.dropout > 0 and module.num_layers > 1  # it is between layers
    if isinstance(module, nn.MultiheadAttention):
        return bool(module.dropout)
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0 and not _is_plain_dropout(module)
    return isinstance(module, nn.RReLU)


def _calls_random(node: fx.Node) -> bool:
    if node.op == "call_module":
        return "random" in node.meta
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if name == "scaled_dot_product_attention":
        return bool((node.args[4] if len(node.args) > 4 else node.kwargs.get("dropout_p", 0.0)) != 0.0)
    return is_random(node)
