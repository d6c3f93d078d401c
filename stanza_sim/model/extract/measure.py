"""What each node of a traced graph costs per sample, found by running it on torch's meta device.

The graph runs with two batch sizes; what an op costs per sample is the difference, so work that does not
depend on the batch (scaling a weight) counts as none. FLOPs are 2 x multiply-accumulate of the
convolutions and matrix products that reach ATen, counted with `torch.utils.flop_counter`'s formulas.

An op's backward pass computes one product of the forward product's size for each factor that needs a
gradient: towards a factor that depends on the samples it is `backward_input`, towards a parameter (or
what is computed from parameters alone) `backward_weight`. So the first convolution has no
`backward_input`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import prod

import torch
from torch import fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from stanza_sim.base.errors import InputError
from stanza_sim.model.extract.factory import USER_ERRORS, describe
from stanza_sim.model.extract.inputs import shape_words
from stanza_sim.model.extract.trace import Trace
from stanza_sim.model.extract.twin import meta_twin

BATCHES = (2, 3)  # batch normalisation needs two samples in training; any two sizes do

_aten = torch.ops.aten
#: ATen's products, with the positions of their two factors.
_FACTORS: Mapping[object, tuple[int, int]] = {
    _aten.mm: (0, 1),
    _aten.bmm: (0, 1),
    _aten.addmm: (1, 2),
    _aten.baddbmm: (1, 2),
    _aten.convolution: (0, 1),
    _aten.mv: (0, 1),
    _aten.addmv: (1, 2),
}
_MATRIX_TIMES_VECTOR = (_aten.mv, _aten.addmv)


@dataclass(slots=True, kw_only=True)
class NodeWork:
    """The work of one graph node per sample; `kernels` is of one forward pass, whatever the batch.

    An op that only looks at its input in another shape (`flatten`) is no kernel and touches nothing; one
    that works in place touches its output. Of a torch module made of several layers (attention, LSTM) the
    ATen ops are counted, of any other node its outputs.
    """

    forward_flops: int = 0
    backward_input_flops: int = 0
    backward_weight_flops: int = 0
    bytes_touched: int = 0
    kernels: int = 0

    def add(self, other: NodeWork) -> None:
        """Add the work of another node."""
        self.forward_flops += other.forward_flops
        self.backward_input_flops += other.backward_input_flops
        self.backward_weight_flops += other.backward_weight_flops
        self.bytes_touched += other.bytes_touched
        self.kernels += other.kernels


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Per node of the graph: its work, its shape per sample, and its type.

    `shapes` has the nodes whose value is one floating-point tensor with one row per sample, `numbers` those whose value
    is such a tensor of whole numbers or truth values, and `dtypes` both. `indices` has the elements per sample of the
    first argument of the nodes that are given integers first.
    """

    work: dict[fx.Node, NodeWork]
    shapes: dict[fx.Node, tuple[int, ...]]
    numbers: dict[fx.Node, tuple[int, ...]]
    dtypes: dict[fx.Node, torch.dtype]
    indices: dict[fx.Node, int]


def measure(module: nn.Module, trace: Trace, where: str) -> Measured:
    """Run `trace` of `module` in training mode on the meta device with samples of its inputs.

    Raises `InputError`, with `where` as its place, if an op rejects the shape that reaches it.
    """
    twin = meta_twin(module, where)
    for name, extra in trace.extras.items():
        setattr(twin, name, deepcopy(extra))
    twin.train()
    small, large = (_Run(twin, trace, batch, where) for batch in BATCHES)
    result = Measured(work={}, shapes={}, numbers={}, dtypes={}, indices={})
    for node, (dtype, shape) in small.tensors.items():
        other = large.tensors[node][1] if node in large.tensors else ()
        if (shape[:1], other[:1]) == (BATCHES[:1], BATCHES[1:]) and shape[1:] == other[1:] and not dtype.is_complex:
            (result.shapes if dtype.is_floating_point else result.numbers)[node] = shape[1:]
            result.dtypes[node] = dtype
    for node, count in small.indices.items():
        result.indices[node] = large.indices[node] - count
    for node, a in small.work.items():
        b = large.work[node]
        result.work[node] = NodeWork(
            forward_flops=b.forward_flops - a.forward_flops,
            backward_input_flops=b.backward_input_flops - a.backward_input_flops,
            backward_weight_flops=b.backward_weight_flops - a.backward_weight_flops,
            bytes_touched=b.bytes_touched - a.bytes_touched,
            kernels=a.kernels,
        )
    return result


class _Run(fx.Interpreter):
    """One run of the graph: what each node returned, and the work that it took at this batch size."""

    def __init__(self, twin: nn.Module, trace: Trace, batch: int, where: str) -> None:
        super().__init__(twin, garbage_collect_values=False, graph=trace.graph)
        self.extra_traceback = False  # it would write into the errors raised here
        self.twin, self.where, self.inputs = twin, where, trace.inputs
        self.work: dict[fx.Node, NodeWork] = {}
        self.indices: dict[fx.Node, int] = {}
        self.tensors: dict[fx.Node, tuple[torch.dtype, tuple[int, ...]]] = {}
        samples = [i.samples(batch) for i in trace.inputs]
        self.counter = _Counter(samples)
        with torch.device("meta"), sdpa_kernel(SDPBackend.MATH), torch.enable_grad(), self.counter:
            self.run(*samples)

    def run_node(self, n: fx.Node) -> object:
        """Run one node, and note what it returned and cost."""
        given = [t for t in tree_leaves(self.fetch_args_kwargs_from_env(n)) if isinstance(t, torch.Tensor)]
        versions = [t._version for t in given]
        self.counter.tally = NodeWork()
        try:
            value: object = super().run_node(n)
        except USER_ERRORS as error:
            raise InputError(
                f"{_words(self.twin, n)} fails on samples of {shape_words(self.inputs)}: {describe(error)}",
                where=self.where,
                hint="set input_shape to the shape of one sample, without the batch",
            ) from error
        if n.op in ("placeholder", "get_attr", "output"):
            self.counter.tally = NodeWork()
        elif not _is_composite(self.twin, n):
            changed = [t for t, version in zip(given, versions, strict=True) if t._version != version]
            fresh = list(_fresh(value, given, changed))
            self.counter.tally.kernels = bool(fresh)
            self.counter.tally.bytes_touched = sum(t.numel() * t.element_size() for t in fresh)
        self.work[n] = self.counter.tally
        if given and not given[0].is_floating_point():
            self.indices[n] = given[0].numel()
        if isinstance(value, torch.Tensor):
            self.tensors[n] = (value.dtype, tuple(value.shape))
        return value

    def get_attr(self, target: fx.node.Target, args: tuple[fx.node.Argument, ...], kwargs: dict[str, object]) -> object:
        """Fetch an attribute; constants that tracing made lie on the CPU."""
        value = super().get_attr(target, args, kwargs)
        return value.to("meta") if isinstance(value, torch.Tensor) else value


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds the ATen ops that run to `tally`, and follows which tensors depend on the samples."""

    def __init__(self, samples: Sequence[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tally = NodeWork()
        # Kept alive, so that no later storage has the same address.
        self._of_samples = {_storage(t): t for t in samples}

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: object,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        out: object = func(*args, **(kwargs or {}))
        made = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        if any(_storage(t) in self._of_samples for t in given):
            self._of_samples |= {_storage(t): t for t in made}
        changed = given if func._schema.is_mutable else []
        fresh = list(_fresh(out, given, changed))
        self.tally.kernels += bool(fresh)
        self.tally.bytes_touched += sum(t.numel() * t.element_size() for t in fresh)
        packet = func.overloadpacket
        if packet in _FACTORS:
            factors = [args[i] for i in _FACTORS[packet]]
            first = factors[0]
            if packet in _MATRIX_TIMES_VECTOR and isinstance(first, torch.Tensor):
                flops = 2 * prod(first.shape)
            else:
                flops = int(flop_registry[packet](*args, **(kwargs or {}), out_val=out))
            self.tally.forward_flops += flops
            for factor in factors:
                if not isinstance(factor, torch.Tensor) or not factor.requires_grad:
                    continue
                if _storage(factor) in self._of_samples:
                    self.tally.backward_input_flops += flops
                else:
                    self.tally.backward_weight_flops += flops
        return out


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _fresh(value: object, given: Sequence[torch.Tensor], changed: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Yield the tensors in `value` that were written: not views of what was given unless that was changed."""
    seen = {_storage(t) for t in given} - {_storage(t) for t in changed}
    for t in tree_leaves(value):
        if isinstance(t, torch.Tensor) and _storage(t) not in seen:
            yield t


def _is_composite(module: nn.Module, node: fx.Node) -> bool:
    """Whether `node` calls a torch module that is made of several layers."""
    if node.op != "call_module":
        return False
    called = module.get_submodule(str(node.target))
    composite = (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase, nn.Transformer)
    return isinstance(called, composite) or any(True for _ in called.children())


def _words(module: nn.Module, node: fx.Node) -> str:
    """Return what `node` calls, in words."""
    if node.op == "call_module":
        return f"{node.target} ({type(module.get_submodule(str(node.target))).__name__})"
    return str(getattr(node.target, "__name__", node.target))
