"""In what precision a rank computes: torch's switches, autocast, and the scale of the loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stanza_sim.base.errors import RunError
from stanza_sim.base.precision import Precision
from stanza_sim.execute.rank.job import RunJob
from stanza_sim.schedule import Compute, Schedule, Wire

AUTOCAST = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Arithmetic:
    """How a rank computes forward, loss and backward.

    Gradients of losses are multiplied by `scale`, and divided by it in the parameters' type when parameters are
    updated; with `guarded`, a gradient that is not finite ends the run.
    """

    precision: Precision = Precision.FP32
    scale: float = 1.0
    guarded: bool = False

    @classmethod
    def of(cls, job: RunJob) -> Arithmetic:
        """That of a job: the loss is scaled where anything is computed or travels in fp16."""
        if not has_fp16(job.precision, job.schedule):
            return cls(precision=job.precision)
        model = job.model
        terms = job.schedule.batch_per_worker * model.labels.compared(model.blocks[-1].output_shape)
        return cls(precision=job.precision, scale=job.loss_scale / terms, guarded=True)

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """The context of a forward pass; the backward pass follows the types of the forward pass by itself.

        Without autocast's cache of cast weights, which is one for all threads of a process: parameters are updated in
        place by other threads, and a block casts each of its weights once in a pass anyway.
        """
        dtype = AUTOCAST.get(self.precision)
        if dtype is None:
            return nullcontext()
        return torch.autocast(device.type, dtype=dtype, cache_enabled=False)

    def scaled(self, gradient: Tensor) -> Tensor:
        """The gradient of a summed loss, scaled."""
        return gradient if self.scale == 1.0 else gradient * self.scale

    def check(self, gradient: Tensor, bundle: str) -> None:
        """Raise `RunError` for the gradient of `bundle` that is to update it, if it has overflowed."""
        if self.guarded and not bool(torch.isfinite(gradient).all()):
            raise RunError(
                f"the gradients of bundle {bundle} have overflowed in fp16\n"
                "  lower training.loss_scale or the learning rate, or set precision: bf16"
            )


def has_fp16(precision: Precision, schedule: Schedule) -> bool:
    """Whether anything is computed in fp16, or travels in it."""
    return precision is Precision.FP16 or any(
        not isinstance(op, Compute) and op.wire is Wire.FP16 for op in schedule.ops
    )


@contextmanager
def switched(precision: Precision) -> Iterator[None]:
    """Set torch's switches of this process for fp32 products, convolutions and linear layers alike, and restore them.

    `fp32` is strict. In the other precisions products that stay in fp32 (under autocast, the few that it leaves
    alone) run in TF32. On cores fp32 is strict always.
    """
    before = [switch.fp32_precision for switch in _switches()]
    try:
        _set(["ieee" if precision is Precision.FP32 else "tf32"] * len(before))
        yield
    finally:
        _set(before)


def set_fp32(value: str) -> None:
    """Compute fp32 products of this process as `ieee` or as `tf32` from now on."""
    _set([value] * len(_switches()))


def _switches() -> list[Any]:
    """Those of linear layers, convolutions and recurrent layers on GPUs."""
    return [torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn]  # type: ignore[attr-defined]


def _set(values: Sequence[str]) -> None:
    """Set the switches, and torch's older ones to the same: where the two contradict each other, reading one fails."""
    matmul, conv, _ = values
    torch.backends.cuda.matmul.allow_tf32 = matmul == "tf32"
    torch.backends.cudnn.allow_tf32 = conv == "tf32"
    for switch, value in zip(_switches(), values, strict=True):
        switch.fp32_precision = value
