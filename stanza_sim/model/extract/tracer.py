"""Records what `forward` does as a graph, by running it on torch's meta device with samples of a known shape.

Every call of torch's Python functions and of torch's own layers becomes one node. Shapes are plain numbers while it
runs, so `forward` may assert and branch on them, and whatever of Python it calls is simply run. A value that does not
depend on the samples can be read too (`if torch.rand(()) < layerdrop`): it is computed from the nodes that made it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TypeVar

import numpy as np
import torch
import torch.utils.checkpoint as torch_checkpoint
from torch import fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from stanza_sim.model.extract.calls import apply_of, as_changed, set_item
from stanza_sim.model.extract.random_ops import RANDOM_NAMES, is_random
from stanza_sim.model.extract.run_nodes import run_node

_T = TypeVar("_T")
_READS = frozenset(
    ("item", "__bool__", "__int__", "__float__", "__index__", "__contains__", "tolist", "numpy", "is_nonzero", "equal")
)
#: Containers of torch's, and layers of it that are towers: their parts are what is called.
_OPEN = (
    nn.Sequential,
    nn.ModuleList,
    nn.ModuleDict,
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerDecoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
)
_OPERATORS: dict[str, object] = {
    f"__{name}__": getattr(operator, f"__{name}__")
    for name in (
        *("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor", "neg", "invert"),
        *("iadd", "isub", "imul", "itruediv", "ipow", "imatmul", "lt", "le", "gt", "ge", "eq", "ne", "getitem"),
    )
}
_CONSTANTS = (bool, int, float, complex, str, torch.dtype, torch.memory_format, torch.layout, type(None), type(...))


class CannotRecord(Exception):
    """Something that no graph can hold: an argument of an unknown type, a value that depends on the samples."""


def is_leaf(module: nn.Module, more: frozenset[type]) -> bool:
    """Whether a call of `module` is one node: torch's layers, norms derived from them, and classes in `more`."""
    if isinstance(module, _OPEN):
        return False
    ours = type(module).__module__.startswith(("torch.nn.", "torch.ao.nn."))
    return ours or isinstance(module, nn.modules.batchnorm._NormBase) or type(module) in more


class Tracer(TorchFunctionMode):
    """One recording of `root`, all of whose tensors are on the meta device, in its present mode.

    With `compiling` it is told that it is being compiled: libraries then leave out what looks at values (warnings).
    """

    def __init__(self, root: nn.Module, leaves: frozenset[type], *, compiling: bool = False) -> None:
        super().__init__()
        self.root, self.leaves, self.compiling = root, leaves, compiling
        self.graph = fx.Graph()
        self.extras: dict[str, torch.Tensor] = {}
        self.device: fx.Node | None = None
        self.failed_in: str | None = None
        self.random_reads: set[str] = set()
        self._paused = 0
        self._drawn = False
        self._modules = {id(m): name for name, m in root.named_modules()}
        self._stack: list[tuple[nn.Module, int]] = []
        self._calls = 0
        self._checkpoint: tuple[int, bool] | None = None
        self._checkpoints = 0
        self._nodes: dict[int, fx.Node] = {}
        self._kept: list[object] = []  # so that no later object has the same id
        self._sharing: dict[int, list[torch.Tensor]] = {}
        self._names: dict[int, str] = {}
        for prefix, module in root.named_modules():
            own = {**vars(module), **module._buffers, **module._parameters}
            for name, value in own.items():
                if isinstance(value, torch.Tensor):
                    self._names.setdefault(id(value), f"{prefix}.{name}" if prefix else name)

    def run(self, samples: Mapping[str, torch.Tensor], call: Callable[[], object]) -> object:
        """Record `call()`, in which `samples` are the graph's inputs; return what it returned."""
        for name, value in samples.items():
            self._track(value, self.graph.placeholder(name))
        self.device = self.graph.call_function(getattr, (next(iter(self.graph.nodes)), "device"))
        with torch.enable_grad(), torch.device("meta"), self._patched(), self:
            return call()

    def finish(self, result: torch.Tensor) -> None:
        """Let the graph return `result`."""
        self.graph.output(self._node(result))

    # What is called --------------------------------------------------------------------------------------------

    @contextmanager
    def _patched(self) -> Iterator[None]:
        """Let calls of modules, custom gradients and checkpoints come here first."""
        call, apply = nn.Module.__call__, torch.autograd.Function.__dict__["apply"]
        reentrant = torch_checkpoint.CheckpointFunction
        other = torch_checkpoint._checkpoint_without_reentrant_generator
        asked = torch.compiler.is_compiling
        tracer = self

        def call_module(module: nn.Module, *args: object, **kwargs: object) -> object:
            return tracer._call_module(call, module, args, kwargs)

        def apply_function(cls: type, /, *args: object, **kwargs: object) -> object:
            return tracer._record(apply_of(cls, apply), args, kwargs)

        def apply_whole(function: Callable[..., object], _: bool, *args: object) -> object:
            with tracer._checkpointed(whole=True):
                return function(*args)

        def generator(*_: object, **__: object) -> Iterator[None]:
            with tracer._checkpointed(whole=False):
                yield

        nn.Module.__call__ = call_module  # type: ignore[method-assign]
        torch.autograd.Function.apply = classmethod(apply_function)  # type: ignore[assignment]
        torch_checkpoint.CheckpointFunction = SimpleNamespace(apply=apply_whole)  # type: ignore[misc,assignment]
        torch_checkpoint._checkpoint_without_reentrant_generator = generator
        if self.compiling:
            torch.compiler.is_compiling = lambda: True
        try:
            yield
        finally:
            torch.compiler.is_compiling = asked
            nn.Module.__call__ = call  # type: ignore[method-assign]
            torch.autograd.Function.apply = apply  # type: ignore[method-assign]
            torch_checkpoint.CheckpointFunction = reentrant  # type: ignore[misc]
            torch_checkpoint._checkpoint_without_reentrant_generator = other

    @contextmanager
    def _checkpointed(self, *, whole: bool) -> Iterator[None]:
        """What is recorded meanwhile is computed again in the backward pass, to the end if `whole`.

        Of nested checkpoints the outermost counts.
        """
        outer = self._checkpoint
        if outer is None:
            self._checkpoints += 1
            self._checkpoint = (self._checkpoints, whole)
        try:
            yield
        finally:
            self._checkpoint = outer

    @contextmanager
    def _pause(self) -> Iterator[None]:
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1

    def _call_module(
        self, call: Callable[..., object], module: nn.Module, args: Sequence[object], kwargs: Mapping[str, object]
    ) -> object:
        path = self._modules.get(id(module))
        self._calls += 1
        self._stack.append((module, self._calls))
        try:
            if path and not self._paused and is_leaf(module, self.leaves):
                return self._record(path, args, kwargs, run=lambda: call(module, *args, **kwargs))
            return call(module, *args, **kwargs)
        except Exception:
            if self.failed_in is None:
                self.failed_in = self.place()
            raise
        finally:
            self._stack.pop()

    def place(self) -> str:
        """The innermost named module that is being called, in words; the root's class outside any other."""
        for module, _ in reversed(self._stack):
            if path := self._modules.get(id(module)):
                return f"{path} ({type(module).__name__})"
        return type(self.root).__name__

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if self._paused:
            self._drawn |= name in RANDOM_NAMES and not (self._stack and isinstance(self._stack[-1][0], nn.Dropout))
            return func(*args, **kwargs)
        if func is torch.Tensor.__iter__ and isinstance(args[0], torch.Tensor) and args[0].dim():
            parts = self.__torch_function__(torch.Tensor.unbind, (), (args[0], 0))
            return iter(parts)  # type: ignore[call-overload]
        if name in _READS and any(isinstance(a, torch.Tensor) and a.is_meta for a in args):
            args = [self._value(a) if isinstance(a, torch.Tensor) and a.is_meta else a for a in args]
            return func(*args, **kwargs)
        if name == "__setitem__":
            return self._record(set_item, args, kwargs)
        return self._record(func, args, kwargs)

    # Recording -------------------------------------------------------------------------------------------------

    def _record(
        self,
        func: Callable[..., object] | str,
        args: Sequence[object],
        kwargs: Mapping[str, object],
        run: Callable[[], _T] | None = None,
    ) -> object:
        """Run `func`, or the module of that name, and add its node if it returned or changed a tensor."""
        given = [t for t in tree_leaves((args, dict(kwargs))) if isinstance(t, torch.Tensor)]
        versions = [t._version for t in given]
        arguments = None
        if isinstance(func, str):
            try:
                arguments = self._arguments(args, kwargs)
            except CannotRecord:
                return run() if run is not None else None
        self._drawn = False
        with self._pause():
            out = run() if run is not None else func(*args, **kwargs)  # type: ignore[operator]
        changed = [t for t, version in zip(given, versions, strict=True) if t._version != version]
        if not changed and not any(isinstance(t, torch.Tensor) for t in tree_leaves(out)):
            return out
        node = self._create(func, *(arguments or self._arguments(args, kwargs)))
        if self._drawn:
            node.meta["random"] = True
        fresh = isinstance(out, torch.Tensor) and out.is_floating_point() and all(out is not t for t in given)
        if fresh and not torch.is_grad_enabled():
            node = self._mark(self.graph.call_method("detach", (node,)))
        self._bind(out, node)
        for tensor in changed:
            self._change(tensor, node)
        return out

    def _create(
        self, func: Callable[..., object] | str, args: tuple[fx.node.Argument, ...], kwargs: dict[str, fx.node.Argument]
    ) -> fx.Node:
        if isinstance(func, str):
            return self._mark(self.graph.call_module(func, args, kwargs))
        name = getattr(func, "__name__", "")
        if name == "__get__":
            return self._mark(self.graph.call_function(getattr, (args[0], func.__self__.__name__)))  # type: ignore[attr-defined]
        if name in _OPERATORS and not kwargs:
            return self._mark(self.graph.call_function(_OPERATORS[name], args))  # type: ignore[arg-type]
        of_tensor = getattr(torch.Tensor, name, None) if name else None
        if args and of_tensor is not None and (of_tensor == func or func.__module__ == "torch._tensor"):
            return self._mark(self.graph.call_method(name, args, kwargs))
        return self._mark(self.graph.call_function(func, args, kwargs))

    def _mark(self, node: fx.Node) -> fx.Node:
        node.meta["modules"] = tuple((self._modules.get(id(m), ""), type(m), call) for m, call in self._stack)
        if self._checkpoint is not None:
            node.meta["checkpoint"] = self._checkpoint
        return node

    def _bind(self, out: object, node: fx.Node) -> None:
        """Let the tensors in `out` be the value of `node`, or parts of it."""
        if isinstance(out, torch.Tensor):
            self._track(out, node)
            return
        items: Sequence[tuple[object, object]] = ()
        if isinstance(out, Mapping):
            items = list(out.items())
        elif isinstance(out, tuple | list):
            items = list(enumerate(out))
        for key, value in items:
            if any(isinstance(t, torch.Tensor) for t in tree_leaves(value)):
                self._bind(value, self._mark(self.graph.call_function(operator.getitem, (node, key))))  # type: ignore[arg-type]

    def _track(self, tensor: torch.Tensor, node: fx.Node) -> None:
        if id(tensor) not in self._nodes:
            self._kept.append(tensor)
            self._sharing.setdefault(_storage(tensor), []).append(tensor)
        self._nodes[id(tensor)] = node
        node.meta["storage"] = _storage(tensor)

    def _change(self, tensor: torch.Tensor, node: fx.Node) -> None:
        """`node` wrote to the memory of `tensor`: whoever sees that memory sees it after `node`."""
        node.meta["changes"] = _storage(tensor)
        for other in self._sharing.get(_storage(tensor), ()):
            if self._nodes[id(other)] is not node:
                after = self._mark(self.graph.call_function(as_changed, (self._nodes[id(other)], node)))
                self._track(other, after)

    def _arguments(
        self, args: Sequence[object], kwargs: Mapping[str, object]
    ) -> tuple[tuple[fx.node.Argument, ...], dict[str, fx.node.Argument]]:
        return tuple(self._argument(a) for a in args), {k: self._argument(v) for k, v in kwargs.items()}

    def _argument(self, value: object) -> fx.node.Argument:
        if isinstance(value, torch.Tensor):
            return self._node(value)
        if isinstance(value, torch.device):
            return self.device if value.type == "meta" else value
        if isinstance(value, torch.Size):
            return tuple(value)
        if isinstance(value, _CONSTANTS):
            return value  # type: ignore[return-value]
        if isinstance(value, tuple | list):
            found = [self._argument(v) for v in value]
            return found if isinstance(value, list) else tuple(found)
        if isinstance(value, Mapping):
            return {str(k): self._argument(v) for k, v in value.items()}
        if isinstance(value, slice):
            return slice(*(self._argument(v) for v in (value.start, value.stop, value.step)))
        if isinstance(value, np.generic):
            return value.item()  # type: ignore[no-any-return]
        if isinstance(value, np.ndarray):
            with self._pause():
                return self._node(torch.as_tensor(value.copy(), device="cpu"))
        raise CannotRecord(f"an argument is a {type(value).__name__}")

    def _node(self, tensor: torch.Tensor) -> fx.Node:
        if (found := self._nodes.get(id(tensor))) is not None:
            return found
        if (name := self._names.get(id(tensor))) is not None:
            node = self.graph.get_attr(name)
        elif tensor.is_meta:
            raise CannotRecord("a tensor was made in a way that cannot be followed (kept from an earlier call?)")
        else:
            name = _unused(self.root, self.extras, "constant")
            self.extras[name] = tensor
            node = self.graph.get_attr(name)
        self._track(tensor, node)
        return node

    # Values ----------------------------------------------------------------------------------------------------

    def _value(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the value of a meta tensor that depends on constants only. Raises `CannotRecord` for another."""
        wanted = self._node(tensor)
        needed = {wanted}
        for node in reversed(self.graph.nodes):
            if node in needed and node is not self.device:
                needed.update(node.all_input_nodes)
        values: dict[fx.Node, object] = {}
        with self._pause(), torch.device("cpu"):
            for node in self.graph.nodes:
                if node in needed:
                    values[node] = self._compute(node, values)
        result = values[wanted]
        assert isinstance(result, torch.Tensor)
        return result

    def _compute(self, node: fx.Node, values: dict[fx.Node, object]) -> object:
        if node is self.device:
            return torch.device("cpu")
        known = node.op == "get_attr" and str(node.target) in self.extras
        if node.op not in ("call_method", "call_function") and not known:
            raise CannotRecord("it reads values of a tensor that depend on the samples or on parameters")
        value = run_node(node, values, self.extras.__getitem__)
        if is_random(node) and isinstance(value, torch.Tensor):
            self.random_reads.add(self.place())
            return torch.full_like(value, 1 - 1e-6)  # what is dropped by chance is kept
        return value


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _unused(root: nn.Module, extras: Mapping[str, object], wish: str) -> str:
    name, number = wish, 0
    while hasattr(root, name) or name in extras:
        number += 1
        name = f"{wish}_{number}"
    return name
