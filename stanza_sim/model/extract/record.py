"""The work of forward and backward passes by kind of op, recorded from the ATen ops that run on torch's meta device.

Every op that writes memory is one kernel, and touches what it reads and what it writes; one that only looks at its
input in another shape is none and touches nothing. A convolution's backward is one kernel for each gradient that it
computes. Sums of gradients that meet (residual connections) touch memory, but are no kernels: autograd's engine adds
them, at a small part of what a layer's call costs the host; nor are updates of single numbers.

The passes run with two batch sizes: what grows with the batch is per sample, the rest (weights, running statistics) per
call. FLOPs are 2 x multiply-accumulate of products, by `torch.utils.flop_counter`'s formulas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from stanza_sim.base.op_kinds import OpKind
from stanza_sim.model.profile import OpWork, PassWork

_aten = torch.ops.aten
_CONVOLUTIONS = (_aten.convolution, _aten.convolution_backward)
_PRODUCTS = (_aten.mm, _aten.addmm, _aten.mv, _aten.addmv)
_BATCHED = (_aten.bmm, _aten.baddbmm)
_NORMS = ("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm")
_LOOKUPS = ("embedding", "index_select")
_SUMS = (_aten.add, _aten.add_)
_ALLOCATIONS = (_aten.empty, _aten.empty_like, _aten.new_empty, _aten.empty_strided, _aten.new_empty_strided)


@dataclass(slots=True)
class _Tally:
    flops: int = 0
    nbytes: int = 0
    kernels: int = 0


Tallies = dict[OpKind, _Tally]


def kind_of(func: torch._ops.OpOverload, args: Sequence[object]) -> OpKind:
    """Return the kind of an ATen op."""
    packet = func.overloadpacket
    if packet in _CONVOLUTIONS:
        weight, groups = (args[1], args[8]) if packet is _aten.convolution else (args[2], args[9])
        return _convolution_kind(weight, groups)
    if packet in _PRODUCTS:
        return OpKind.LINEAR
    name = packet.__name__
    if packet in _BATCHED or "attention" in name:
        return OpKind.ATTENTION
    if any(norm in name for norm in _NORMS):
        return OpKind.NORM
    return OpKind.EMBEDDING if name.startswith(_LOOKUPS) else OpKind.ELEMENTWISE


def _convolution_kind(weight: object, groups: object) -> OpKind:
    if not isinstance(weight, torch.Tensor) or not isinstance(groups, int):
        return OpKind.CONV
    if groups > 1:
        return OpKind.DEPTHWISE if weight.shape[1] == 1 else OpKind.GROUPED
    kernel = tuple(weight.shape[2:])
    if prod(kernel) == 1:
        return OpKind.CONV_1X1
    return OpKind.CONV_3X3 if kernel == (3, 3) else OpKind.CONV


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the ATen ops that run while it is entered, by kind; in `backward` autograd's own sums too."""

    def __init__(self, *, backward: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.backward = backward
        self.tallies: Tallies = {}

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: object,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        out: object = func(*args, **(kwargs or {}))
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        made = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        known = {_storage(t) for t in given}
        fresh = made if func._schema.is_mutable else [t for t in made if _storage(t) not in known]
        packet = func.overloadpacket
        if not fresh or packet in _ALLOCATIONS:
            return out
        kind = kind_of(func, args)
        if packet is _aten.convolution_backward:
            self._convolution_backward(kind, args, out)
            return out
        tally = self.tallies.setdefault(kind, _Tally())
        tally.kernels += self._is_launch(packet, fresh)
        tally.nbytes += sum(map(_nbytes, given)) + sum(map(_nbytes, fresh))
        if packet in (_aten.mv, _aten.addmv):
            tally.flops += 2 * prod(given[-2].shape)
        elif packet in flop_registry:
            tally.flops += int(flop_registry[packet](*args, **(kwargs or {}), out_val=out))
        return out

    def _is_launch(self, packet: object, fresh: Sequence[torch.Tensor]) -> bool:
        """Whether an op costs the host a launch: not sums of gradients that meet, nor counters of batches."""
        if self.backward and packet in _SUMS:
            return False
        return any(t.dim() for t in fresh)

    def _convolution_backward(self, kind: OpKind, args: Sequence[object], out: object) -> None:
        """One kernel for each gradient: of the input, of the weight, and of the bias, which is a sum."""
        gradient, source, weight = (t for t in args[:3] if isinstance(t, torch.Tensor))
        results = list(out) if isinstance(out, tuple | list) else [out]
        mask = args[-1] if isinstance(args[-1], list | tuple) else ()
        # `flop_registry` takes the groups for one when it counts a weight gradient.
        outputs = source if args[7] else gradient
        flops = 2 * outputs.numel() * prod(weight.shape[1:])
        operands = ((gradient, weight), (gradient, source), (gradient,))
        for i, (made, read) in enumerate(zip(results, operands, strict=True)):
            if not mask[i] or not isinstance(made, torch.Tensor):
                continue
            tally = self.tallies.setdefault(kind if i < 2 else OpKind.ELEMENTWISE, _Tally())
            tally.kernels += 1
            tally.nbytes += sum(map(_nbytes, read)) + _nbytes(made)
            if i < 2:
                tally.flops += flops


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _nbytes(tensor: torch.Tensor) -> int:
    """Bytes of a tensor; one that repeats what it holds (`expand`) has only these."""
    return min(tensor.numel() * tensor.element_size(), int(tensor.untyped_storage().nbytes()))


@contextmanager
def _recording(*, backward: bool = False) -> Iterator[Recorder]:
    recorder = Recorder(backward=backward)
    with torch.device("meta"), sdpa_kernel(SDPBackend.MATH), torch.enable_grad(), recorder:
        yield recorder


def outputs_of(value: object) -> list[torch.Tensor]:
    """Return the tensors of what a module returned that have a gradient."""
    return [t for t in tree_leaves(value) if isinstance(t, torch.Tensor) and t.requires_grad]


def run_passes(
    call: Callable[..., object], samples: Sequence[torch.Tensor], parameters: Sequence[torch.Tensor]
) -> tuple[Tallies, Tallies, Tallies]:
    """Return what forward, the input gradient and the weight gradients of `call` take, all on the meta device.

    There is no input gradient unless `samples` require one.
    """
    with _recording() as forward:
        outputs = outputs_of(call(*samples))
    gradients = [torch.empty_like(t) for t in outputs]
    wanted = [t for t in samples if t.requires_grad]
    towards_input: Tallies = {}
    if wanted and outputs:
        with _recording(backward=True) as recorder:
            torch.autograd.grad(outputs, wanted, gradients, retain_graph=True, allow_unused=True)
        towards_input = recorder.tallies
    every: Tallies = {}
    trained = [p for p in parameters if p.requires_grad]
    if outputs and (wanted or trained):
        with _recording(backward=True) as recorder:
            torch.autograd.grad(outputs, [*wanted, *trained], gradients, allow_unused=True)
        every = recorder.tallies
    weights: Tallies = {}
    for kind, total in every.items():
        less = towards_input.get(kind, _Tally())
        rest = _Tally(total.flops - less.flops, total.nbytes - less.nbytes, total.kernels - less.kernels)
        if rest.flops or rest.nbytes or rest.kernels:
            weights[kind] = rest
    return forward.tallies, towards_input, weights


def work_of(
    call: Callable[..., object],
    inputs: Sequence[tuple[tuple[int, ...], torch.dtype]],
    parameters: Sequence[torch.Tensor],
    *,
    input_gradient: bool = True,
    batches: tuple[int, int] = (2, 3),
) -> tuple[OpWork, ...]:
    """Return the work of `call` by kind of op, in the order of `OpKind`; `inputs` are a sample's shapes and types."""
    found = []
    for batch in batches:
        samples = [
            torch.empty(batch, *shape, dtype=t, device="meta", requires_grad=input_gradient and t.is_floating_point)
            for shape, t in inputs
        ]
        found.append(run_passes(call, samples, parameters))
    works = []
    for kind in OpKind:
        passes = []
        for small, large in zip(*found, strict=True):
            a, b = small.get(kind, _Tally()), large.get(kind, _Tally())
            step = batches[1] - batches[0]
            each = (b.nbytes - a.nbytes) // step
            passes.append(
                PassWork(
                    flops=(b.flops - a.flops) // step,
                    sample_nbytes=max(0, each),
                    fixed_nbytes=max(0, a.nbytes - each * batches[0]),
                    kernels=a.kernels,
                )
            )
        if any(p != PassWork() for p in passes):
            works.append(OpWork(kind=kind, forward=passes[0], backward_input=passes[1], backward_weight=passes[2]))
    return tuple(works)
