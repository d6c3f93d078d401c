"""The parameters of a bundle at one rank: one flat vector, its gradients, and what an owner needs to update it."""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor

from stanza_sim.errors import InputError
from stanza_sim.execute.readiness import GENERATIONS
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Bundle, Layout, Schedule, slice_bounds

DTYPES = {4: torch.float32, 8: torch.float64}
"""Element types that can be executed, by their size in bytes."""


def dtype_of(itemsize: int) -> torch.dtype:
    """The element type of `itemsize` bytes; raises `InputError` for one that is not executed."""
    if itemsize not in DTYPES:
        raise InputError(f"elements of {itemsize} bytes cannot be executed", hint="use float32 (4) or float64 (8)")
    return DTYPES[itemsize]


class FlatBundle:
    """What one rank holds of a bundle.

    `whole` is the flat parameter vector where the rank computes with it or receives it, padded so that all owners'
    slices have one size; the module's parameters are views of it. `own` are the elements [lo, hi) that an owner
    updates, a view of `whole` where there is one. `gradients` has one whole vector for each generation, `sums` the
    reduced gradient of the own slice, `contributions[g][r]` what rank r sent.
    """

    def __init__(
        self,
        schedule: Schedule,
        model: ModelProfile,
        bundle: Bundle,
        rank: int,
        *,
        whole: bool,
        gradients: bool,
        device: torch.device,
    ) -> None:
        owners = schedule.owners(bundle)
        self.bundle = bundle
        self.owner = rank in owners
        self.dtype, self.device = dtype_of(schedule.itemsize), device
        cut = bundle.layout is Layout.CUT
        parts = len(owners) if cut else 1
        index = owners.index(rank) if cut and self.owner else 0
        self.part = ceil(bundle.numel / parts)
        self.lo, self.hi = slice_bounds(bundle.numel, parts, index)
        if not cut or not self.owner:
            self.lo, self.hi = 0, bundle.numel
        self.whole = self.zeros(self.part * parts) if whole else None
        self.own = None
        self.own_padded = None
        if self.owner:
            self.own_padded = (
                self.whole[index * self.part : (index + 1) * self.part]
                if self.whole is not None
                else self.zeros(self.part)
            )
            self.own = self.own_padded[: self.hi - self.lo]
        self.velocity = self.zeros(self.hi - self.lo) if self.owner else None
        self.gradients = tuple(self.zeros(self.part * parts) for _ in range(GENERATIONS)) if gradients else ()
        self.sums = tuple(self.zeros(self.part) for _ in range(GENERATIONS)) if self.owner else ()
        self.contributions: tuple[dict[int, Tensor], ...] = tuple({} for _ in range(GENERATIONS))
        shapes = {t.name: t.shape for b in model.blocks for t in b.tensors}
        self.extents: dict[str, tuple[int, int]] = {}
        self.shapes = {name: shapes[name] for name in bundle.tensors}
        position = 0
        for name in bundle.tensors:
            numel = 1
            for n in shapes[name]:
                numel *= n
            self.extents[name] = position, position + numel
            position += numel

    def zeros(self, numel: int) -> Tensor:
        """A vector of the bundle's type on its device."""
        return torch.zeros(numel, dtype=self.dtype, device=self.device)

    def view(self, flat: Tensor, name: str) -> Tensor:
        """The tensor `name` as a view of the whole vector `flat`."""
        lo, hi = self.extents[name]
        return flat[lo:hi].view(self.shapes[name])

    def gradient(self, generation: int) -> Tensor:
        """The own gradient of the elements [lo, hi)."""
        return self.gradients[generation][self.lo : self.hi]

    def reduce(self, generation: int, sources: list[int], rank: int) -> None:
        """Sum the contributions of `sources` in the order given; `rank`'s own is its gradient."""
        parts = [self.gradient(generation) if r == rank else self.contributions[generation][r] for r in sources]
        total = self.sums[generation][: self.hi - self.lo]
        if len(parts) == 1:
            total.copy_(parts[0])
            return
        torch.add(parts[0], parts[1], out=total)
        for part in parts[2:]:
            total.add_(part)


def sgd_step(
    parameters: Tensor,
    gradient: Tensor,
    velocity: Tensor,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    global_batch: int,
) -> None:
    """One step of SGD in place, elementwise, so that it may be applied to any slice of a bundle.

    `gradient` is that of the summed loss; it is divided by `global_batch` before weight decay is added, so that `lr`
    and `weight_decay` mean what they mean with the mean loss. As `torch.optim.SGD`:
    v = momentum v + g / B + weight_decay p; p = p - lr v.
    """
    if momentum:
        velocity.mul_(momentum).add_(gradient, alpha=1 / global_batch)
    else:
        torch.mul(gradient, 1 / global_batch, out=velocity)
    if weight_decay:
        velocity.add_(parameters, alpha=weight_decay)
    parameters.add_(velocity, alpha=-lr)
