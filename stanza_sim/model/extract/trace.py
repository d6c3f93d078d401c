"""One graph of a module that holds in training and in evaluation.

torch.fx records what `forward` does, and `self.training` is a plain bool to it. So the module is traced
twice; where the two graphs differ in a constant only (`F.dropout(x, training=self.training)`), the
constant becomes a small submodule that follows the mode. Every dropout becomes a submodule of its own,
so that it can be replaced (`split.replace_dropout`).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn import functional

from stanza_sim.base.errors import InputError
from stanza_sim.model.extract.factory import USER_ERRORS, describe

Constant = bool | int | float | str | None

_DROPOUT_FUNCTIONS: dict[object, tuple[str, str]] = {
    functional.dropout: ("p", "training"),
    torch.dropout: ("p", "train"),
}
_DROPOUT_DEFAULTS = {"p": 0.5, "training": True, "train": True}


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What a module does: `graph` refers to the module's attributes and to `extras` by name."""

    graph: fx.Graph
    extras: dict[str, nn.Module | torch.Tensor]

    @property
    def input(self) -> fx.Node:
        """The graph's only placeholder."""
        found: fx.Node = next(n for n in self.graph.nodes if n.op == "placeholder")
        return found

    def switch(self, node: fx.Node) -> ModeSwitch | None:
        """Return the switch that `node` reads, if it reads one."""
        extra = self.extras.get(str(node.target)) if node.op == "call_module" else None
        return extra if isinstance(extra, ModeSwitch) else None

    def module_of(self, root: nn.Module, node: fx.Node) -> nn.Module | None:
        """Return the submodule (of `root` or of the extras) that `node` calls, if it calls one."""
        if node.op != "call_module":
            return None
        extra = self.extras.get(str(node.target))
        return extra if isinstance(extra, nn.Module) else root.get_submodule(str(node.target))


class _Tracer(fx.Tracer):
    """Records buffers by name, for training may change them; shapes of parameters are plain numbers."""

    def __init__(self) -> None:
        super().__init__(param_shapes_constant=True)

    def getattr(self, attr: str, attr_val: object, parameter_proxy_cache: dict[str, fx.Proxy]) -> object:
        """Return what stands for `attr_val`, an attribute of the module, in the trace."""
        if isinstance(attr_val, torch.Tensor) and not isinstance(attr_val, nn.Parameter):
            # Not by fx's own `proxy_buffer_attributes`: together with `param_shapes_constant` it fails.
            for name, buffer in self.root.named_buffers():
                if buffer is attr_val:
                    if name not in parameter_proxy_cache:
                        parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
                    return parameter_proxy_cache[name]
        value: object = super().getattr(attr, attr_val, parameter_proxy_cache)
        return value


def trace(module: nn.Module, where: str) -> Trace:
    """Trace `module` (its parameters are neither read nor copied) in both modes.

    Raises `InputError`, with `where` as its place, if `forward` takes more than one tensor, cannot be
    traced, or takes another path in evaluation than in training.
    """
    defaults = _optional_arguments(module, where)
    extras: dict[str, nn.Module | torch.Tensor] = {}
    with _modes_kept(module):
        module.train()
        graph = _trace_once(module, defaults, extras, where)
        module.eval()
        eval_extras: dict[str, nn.Module | torch.Tensor] = {}
        eval_graph = _trace_once(module, defaults, eval_extras, where)
    _Merger(module, graph, eval_graph, extras, eval_extras, where).merge()
    result = Trace(graph=graph, extras=extras)
    _dropouts_to_modules(module, result)
    graph.lint()
    return result


@contextmanager
def _modes_kept(module: nn.Module) -> Iterator[None]:
    modes = [(m, m.training) for m in module.modules()]
    try:
        yield
    finally:
        for m, training in modes:
            m.training = training


def _optional_arguments(module: nn.Module, where: str) -> dict[str, object]:
    """Return the defaults of forward's optional arguments; there must be one argument without a default."""
    parameters = list(inspect.signature(module.forward).parameters.values())
    needed = [p.name for p in parameters if p.default is p.empty]
    if len(needed) != 1 or parameters[0].kind not in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    ):
        raise InputError(
            f"forward of {type(module).__name__} takes ({', '.join(str(p) for p in parameters)}), not one tensor",
            where=where,
            hint="wrap the model in a module whose forward takes the samples and returns (batch, classes)",
        )
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _trace_once(
    module: nn.Module, defaults: dict[str, object], extras: dict[str, nn.Module | torch.Tensor], where: str
) -> fx.Graph:
    """Trace in the present mode; tensors that tracing hangs on the module move to `extras`."""
    before = set(vars(module))
    try:
        graph: fx.Graph = _Tracer().trace(module, concrete_args=defaults or None)
    except USER_ERRORS as error:
        raise InputError(
            f"torch.fx cannot trace {type(module).__name__}: {describe(error)}",
            where=where,
            hint="forward may not branch or loop on values or sizes of tensors, nor convert them to Python numbers",
        ) from error
    finally:
        for name in set(vars(module)) - before:
            value = getattr(module, name)
            if isinstance(value, torch.Tensor):
                extras[name] = value
            delattr(module, name)
    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    for placeholder in reversed(placeholders[1:]):  # defaults: fx checks each of them with an assertion
        for user in reversed(list(placeholder.users)):
            for check in reversed(list(user.users)):
                graph.erase_node(check)
            graph.erase_node(user)
        graph.erase_node(placeholder)
    return graph


class _Merger:
    """Makes the training graph hold in evaluation too."""

    def __init__(
        self,
        module: nn.Module,
        graph: fx.Graph,
        eval_graph: fx.Graph,
        extras: dict[str, nn.Module | torch.Tensor],
        eval_extras: dict[str, nn.Module | torch.Tensor],
        where: str,
    ) -> None:
        self.module, self.graph, self.extras, self.where = module, graph, extras, where
        self.nodes, self.eval_nodes = list(graph.nodes), list(eval_graph.nodes)
        self.eval_extras = eval_extras
        self.twin = dict(zip(self.nodes, self.eval_nodes, strict=False))

    def merge(self) -> None:
        """Turn each constant that depends on the mode into a switch; raise `InputError` at any other difference."""
        if len(self.nodes) != len(self.eval_nodes):
            first = next((a for a, b in self.twin.items() if (a.op, a.target) != (b.op, b.target)), self.nodes[-1])
            raise self._differs(first)
        for node, other in self.twin.items():
            if (node.op, node.target) != (other.op, other.target) or not self._same_constant(node):
                raise self._differs(node)
            node.args = tuple(self._merged(a, b, node) for a, b in self._pairs(node.args, other.args, node))
            if set(node.kwargs) != set(other.kwargs):
                raise self._differs(node)
            node.kwargs = {k: self._merged(v, other.kwargs[k], node) for k, v in node.kwargs.items()}

    def _same_constant(self, node: fx.Node) -> bool:
        """Whether a tensor made while tracing is the same in both modes."""
        a, b = self.extras.get(str(node.target)), self.eval_extras.get(str(node.target))
        if node.op != "get_attr" or not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
            return True
        return a.shape == b.shape and (a.is_meta or bool(torch.equal(a, b)))

    def _pairs(
        self, a: tuple[fx.node.Argument, ...], b: tuple[fx.node.Argument, ...], node: fx.Node
    ) -> list[tuple[fx.node.Argument, fx.node.Argument]]:
        if len(a) != len(b):
            raise self._differs(node)
        return list(zip(a, b, strict=True))

    def _merged(self, a: fx.node.Argument, b: fx.node.Argument, node: fx.Node) -> fx.node.Argument:
        if isinstance(a, fx.Node):
            if self.twin.get(a) is not b:
                raise self._differs(node)
            return a
        if isinstance(a, tuple | list) and isinstance(b, tuple | list):
            merged = [self._merged(x, y, node) for x, y in self._pairs(tuple(a), tuple(b), node)]
            return tuple(merged) if isinstance(a, tuple) else merged
        if isinstance(a, dict) and isinstance(b, dict) and set(a) == set(b):
            return {k: self._merged(v, b[k], node) for k, v in a.items()}
        if isinstance(a, slice) and isinstance(b, slice):
            return slice(*(self._merged(getattr(a, f), getattr(b, f), node) for f in ("start", "stop", "step")))
        if type(a) is type(b) and a == b:
            return a
        if isinstance(a, Constant) and isinstance(b, Constant):
            name = fresh_name(self.module, self.extras, "mode")
            switch = ModeSwitch(a, b)
            switch.training = self.module.training
            self.extras[name] = switch
            with self.graph.inserting_before(node):
                return self.graph.call_module(name)
        raise self._differs(node)

    def _differs(self, node: fx.Node) -> InputError:
        return InputError(
            f"forward of {type(self.module).__name__} takes another path in evaluation than in training "
            f"(first at {node.target if isinstance(node.target, str) else node.name})",
            where=self.where,
            hint="return one tensor, made alike in both modes, and no auxiliary output (torchvision: aux_logits false)",
        )


def fresh_name(module: nn.Module, extras: dict[str, nn.Module | torch.Tensor], wish: str) -> str:
    """Return `wish`, numbered if an attribute of `module` or an extra has that name already."""
    name, number = wish, 0
    while hasattr(module, name) or name in extras:
        number += 1
        name = f"{wish}_{number}"
    return name


def _dropouts_to_modules(module: nn.Module, trace: Trace) -> None:
    """Give each call of dropout, by function or by module, a submodule of its own."""
    called: set[str] = set()
    for node in list(trace.graph.nodes):
        replacement: nn.Dropout | None = None
        if node.op == "call_function" and node.target in _DROPOUT_FUNCTIONS:
            replacement = _as_module(node, trace)
        elif type(original := trace.module_of(module, node)) is nn.Dropout and isinstance(original, nn.Dropout):
            if node.target in called:
                replacement = nn.Dropout(original.p, original.inplace)
            called.add(str(node.target))
        if replacement is None:
            continue
        replacement.training = module.training
        name = fresh_name(module, trace.extras, node.name)
        trace.extras[name] = replacement
        value = node.args[0] if node.args else node.kwargs["input"]
        with trace.graph.inserting_before(node):
            call = trace.graph.call_module(name, (value,))
        node.replace_all_uses_with(call)
        trace.graph.erase_node(node)
    for node in list(trace.graph.nodes):
        if trace.switch(node) and not node.users:
            trace.graph.erase_node(node)
            del trace.extras[str(node.target)]


def _as_module(node: fx.Node, trace: Trace) -> nn.Dropout | None:
    """Return the module that does what a call of a dropout function does; None if its rate is computed."""
    given = dict(zip(("input", *_DROPOUT_FUNCTIONS[node.target], "inplace"), node.args, strict=False)) | node.kwargs
    rates = []
    for training in (True, False):
        settings = {}
        for key in _DROPOUT_FUNCTIONS[node.target]:
            value = given.get(key, _DROPOUT_DEFAULTS[key])
            if isinstance(value, fx.Node):
                switch = trace.switch(value)
                if switch is None:
                    return None
                value = switch.train_value if training else switch.eval_value
            settings[key] = value
        p, active = settings.values()
        rates.append(float(p) if active and isinstance(p, int | float) else 0.0)
    inplace = bool(given.get("inplace", False))
    if rates[1] == 0.0:
        return nn.Dropout(rates[0], inplace)
    return AlwaysDropout(rates[0], inplace) if rates[0] == rates[1] else None
