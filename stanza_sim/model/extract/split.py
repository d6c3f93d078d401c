"""A real module as the chain of blocks of its profile, for the executor.

Each block is a `torch.fx.GraphModule` that holds the very submodules, parameters and buffers of the module
that was split, under their own qualified names, so training the blocks trains the module.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor, fx, nn

from stanza_sim.base.errors import InputError
from stanza_sim.model.extract.chain import Chain, ChainBlock, chain_of, changes_input
from stanza_sim.model.extract.factory import USER_ERRORS
from stanza_sim.model.extract.measure import vocabulary_of
from stanza_sim.model.extract.record import work_of
from stanza_sim.model.extract.trace import AlwaysDropout
from stanza_sim.model.profile import Block, ModelProfile, OpWork

#: Functions that draw random numbers in another way than elementwise dropout.
_RANDOM_FUNCTIONS = frozenset(
    (
        *("alpha_dropout", "dropout", "dropout1d", "dropout2d", "dropout3d", "dropout_", "feature_alpha_dropout"),
        *("feature_dropout", "stochastic_depth", "rrelu", "rrelu_", "gumbel_softmax"),
        *("bernoulli", "bernoulli_", "multinomial", "normal", "normal_", "uniform_", "exponential_", "random_"),
        *("rand", "rand_like", "randint", "randint_like", "randn", "randn_like", "randperm"),
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitBlock:
    """One block of a module. `module` maps the previous block's output to this block's.

    `parameters` has the module's own trainable `Parameter` objects by their name in the profile, in the
    profile's order, and behind them those that an earlier block has and this one uses too. Frozen parameters and
    buffers are in `module` only, by their qualified names.
    `places[name]` are the qualified names at which `module` holds the parameter: several if weights are tied.
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
    chain = chain_of(module, profile.input_shape, where)
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


def _graph_module(module: nn.Module, chain: Chain, block: ChainBlock) -> fx.GraphModule:
    """Return `block` as a module of its own over the parts of `module`."""
    graph = fx.Graph()
    source = graph.placeholder("input")
    copies: dict[fx.Node, fx.Node] = {}
    first_ops = [n for n in block.nodes if n.args[:1] == (block.input,)]
    if any(changes_input(chain.trace.module_of(module, n), n) for n in first_ops):
        copies[block.input] = graph.call_method("clone", (source,))
    else:
        copies[block.input] = source
    parts: dict[str, nn.Module | Tensor] = {}
    for node in block.nodes:
        if node is chain.batch:
            copies[node] = graph.call_method("size", (source, 0))
            continue
        copies[node] = graph.node_copy(node, copies.__getitem__)
        if node.op in ("call_module", "get_attr"):
            target = str(node.target)
            parts[target] = chain.trace.extras[target] if target in chain.trace.extras else _part(module, target)
    graph.output(copies[block.output])
    result = fx.GraphModule(parts, graph, class_name="Block")
    result.training = module.training
    return result


def block_works(module: nn.Module, chain: Chain, input_shape: tuple[int, ...]) -> tuple[tuple[OpWork, ...], ...]:
    """Return the work of each block of `chain`, `module` cut, by kind of op; empty for a block that cannot be recorded.

    `module` is moved to the meta device. The first block's input, the samples, needs no gradient.
    """
    module.to("meta")
    module.train()
    found, shape = [], input_shape
    for i, cut in enumerate(chain.blocks):
        part = _graph_module(module, chain, cut).to("meta").train()
        dtype = next((p.dtype for p in part.parameters() if p.is_floating_point()), torch.float32)
        if i == 0 and vocabulary_of(module, chain.trace) is not None:
            dtype = torch.int64
        try:
            work = work_of(part, shape, list(part.parameters()), dtype=dtype, input_gradient=i > 0)
        except USER_ERRORS:
            work = ()
        found.append(work)
        shape = cut.output_shape
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
        return module.dropout > 0
    if isinstance(module, nn.MultiheadAttention):
        return bool(module.dropout)
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0 and not _is_plain_dropout(module)
    return isinstance(module, nn.RReLU)


def _calls_random(node: fx.Node) -> bool:
    if node.op not in ("call_function", "call_method"):
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if name == "scaled_dot_product_attention":
        return bool((node.args[4] if len(node.args) > 4 else node.kwargs.get("dropout_p", 0.0)) != 0.0)
    return name in _RANDOM_FUNCTIONS
