"""The steps of optimisers on flat vectors, elementwise: any slice of a bundle may be updated by itself.

Each is one kernel, which reads parameters, gradients and state once and writes them once.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from stanza_sim.base.optimizers import OptimizerKind
from stanza_sim.execute.rank.job import Optimizer
from stanza_sim.execute.train.flat import FlatBundle


class Updates:
    """The updates of one rank by the optimiser `o`; the tensors `no_decay` have no weight decay."""

    def __init__(self, o: Optimizer, no_decay: Collection[str] = ()) -> None:
        self._o, self._no_decay = o, no_decay
        self._runs: dict[str, list[tuple[float, list[slice]]]] = {}

    def update(self, flat: FlatBundle, gradient: Tensor, *, lr: float, step: int, divisor: Tensor) -> None:
        """Update what the rank owns of a bundle by one step: number `step`, from 1, at the rate `lr`.

        `gradient`, as long as the own slice, is that of the summed loss, perhaps scaled, and is overwritten. Divided by
        `divisor`, one fp32 number on its device, it is what `torch.optim` would be given: the gradient of the mean
        loss, clipped.
        """
        if flat.own is None:
            raise RuntimeError(f"this rank does not own {flat.bundle.name}")
        if (runs := self._runs.get(flat.bundle.name)) is None:
            runs = self._runs[flat.bundle.name] = self._found(flat)
        for weight_decay, some in runs:
            own, own_gradient, *state = (
                [vector[run] for run in some] for vector in (flat.own, gradient, *flat.state.values())
            )
            o = replace(self._o, lr=lr, weight_decay=weight_decay)
            update(own, own_gradient, state, o, step=step, divisor=divisor)

    def _found(self, flat: FlatBundle) -> list[tuple[float, list[slice]]]:
        """Runs of the own slice that have one weight decay, by weight decay."""
        runs: dict[float, list[slice]] = {}
        for name, (lo, hi) in flat.own_extents().items():
            decay = 0.0 if name in self._no_decay else self._o.weight_decay
            known = runs.setdefault(decay, [])
            if known and known[-1].stop == lo:
                lo = known.pop().start
            known.append(slice(lo, hi))
        return list(runs.items())


def update(
    parameters: list[Tensor],
    gradients: list[Tensor],
    state: Sequence[list[Tensor]],
    o: Optimizer,
    *,
    step: int,
    divisor: Tensor,
) -> None:
    """Carry out step number `step`, from 1, of `o` on vectors in place, at its rate `lr`; see `Updates.update`.

    `state` has the vectors of `STATE`, those of each parameter vector at its place. With g = gradient / divisor, w the
    weight decay, p the parameters, and b, c the betas:

    - SGD: v = momentum v + g + w p; p = p - lr v;
    - Adam: g = g + w p; m = b m + (1 - b) g; v = c v + (1 - c) g^2; at step t (the bias correction)
      p = p - lr (m / (1 - b^t)) / (sqrt(v / (1 - c^t)) + eps);
    - AdamW: p = p - lr w p first, and g as it is.
    """
    match o.kind:
        case OptimizerKind.SGD:
            torch._fused_sgd_(
                parameters,
                gradients,
                state[0] if state else [],
                weight_decay=o.weight_decay,
                momentum=o.momentum,
                lr=o.lr,
                dampening=0.0,
                nesterov=False,
                maximize=False,
                is_first_step=False,  # what is kept begins with zeros
                grad_scale=divisor,
            )
        case OptimizerKind.ADAM | OptimizerKind.ADAMW:
            kernel = torch._fused_adam_ if o.kind is OptimizerKind.ADAM else torch._fused_adamw_
            count = torch.full((), float(step), dtype=torch.float32, device=divisor.device)
            kernel(
                parameters,
                gradients,
                state[0],
                state[1],
                [],
                [count] * len(parameters),
                lr=o.lr,
                beta1=o.betas[0],
                beta2=o.betas[1],
                weight_decay=o.weight_decay,
                eps=o.eps,
                amsgrad=False,
                maximize=False,
                grad_scale=divisor,
            )
