"""The parameters of a bundle at one rank: one flat vector, its gradients, and what an owner needs to update it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, prod

import torch
from torch import Tensor

from stanza_sim.base.errors import InputError
from stanza_sim.base.optimizers import STATE
from stanza_sim.execute.train.slices import local_shape
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Bundle, Keep, Layout, Schedule, Wire, slice_bounds
from stanza_sim.schedule.progress import WINDOW

DTYPES = {4: torch.float32, 8: torch.float64}
"""Element types that can be executed, by their size in bytes."""


def dtype_of(itemsize: int) -> torch.dtype:
    """The element type of `itemsize` bytes; raises `InputError` for one that is not executed."""
    if itemsize not in DTYPES:
        raise InputError(f"elements of {itemsize} bytes cannot be executed", hint="use float32 (4) or float64 (8)")
    return DTYPES[itemsize]


def wire_dtype(wire: Wire, native: torch.dtype) -> torch.dtype:
    """The type in which values travel; `native` is that of the parameters."""
    return {Wire.NATIVE: native, Wire.BF16: torch.bfloat16, Wire.FP16: torch.float16}[wire]


class Storage:
    """Tensors laid end to end: `whole` are their parameters where a rank computes with them or receives them.

    The module's parameters are views of it. `gradients` has a vector for each generation, as long as `padded` elements.
    Bundles of parts of the same tensors share one storage. `shapes` are those of slices of tensors, if they are that.
    Views are made at once, so that the memory behind them may come and go (`make_room`, `let_go`).
    """

    def __init__(
        self,
        model: ModelProfile,
        tensors: tuple[str, ...],
        dtype: torch.dtype,
        *,
        whole: bool,
        gradients: bool,
        device: torch.device,
        padded: int = 0,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        if shapes is None:
            shapes = {t.name: t.shape for b in model.blocks for t in b.tensors}
        self.shapes = {name: shapes[name] for name in tensors}
        self.extents: dict[str, tuple[int, int]] = {}
        position = 0
        for name in tensors:
            numel = prod(shapes[name])
            self.extents[name] = position, position + numel
            position += numel
        self.numel = position
        numel = max(position, padded)
        self.whole = torch.zeros(numel, dtype=dtype, device=device) if whole else None
        generations = range(WINDOW if gradients else 0)
        self.gradients = tuple(torch.zeros(numel, dtype=dtype, device=device) for _ in generations)
        self.parameter_of = {} if self.whole is None else {name: self._view(self.whole, name) for name in tensors}
        """Each tensor's parameters, as a view of `whole`."""
        self.gradient_of = tuple({name: self._view(flat, name) for name in tensors} for flat in self.gradients)
        """By generation, each tensor's gradient, as a view of those of that generation."""

    def _view(self, flat: Tensor, name: str) -> Tensor:
        lo, hi = self.extents[name]
        return flat[lo:hi].view(self.shapes[name])

    def hold_gradients(self, generation: int) -> None:
        """Make room for gradients that had been let go; what pads them is zero."""
        flat = self.gradients[generation]
        if make_room(flat):
            flat[self.numel :].zero_()


def make_room(tensor: Tensor) -> bool:
    """Give all views of what `tensor` is a view of memory, if it was let go; whether it was."""
    storage = tensor.untyped_storage()
    if storage.nbytes():
        return False
    storage.resize_(tensor.nbytes)
    return True


def let_go(tensor: Tensor) -> None:
    """Free the memory behind `tensor`, and all views of it: nothing may read or write them until there is room again.

    Saved for a backward pass, they are there again once parameters have been gathered again.
    """
    tensor.untyped_storage().resize_(0)


class FlatBundle:
    """What one rank holds of a bundle.

    `numel` are the elements of the vector; `whole` is that vector where the rank computes with it or receives it,
    padded so that all owners' slices have one size. It and `gradients` are views of `storage`, which a part of some
    tensors shares with the other parts and which is made here if it is not given. `own` are the elements [lo, hi)
    that an owner updates, a view of `whole` where there is one. `gradients` has one whole vector for each
    generation, `sums` the reduced gradient of the own slice where it is `summed` apart, `contributions[g][r]`
    what rank r sent and `parts[g][r]` what it sent to be added up to `partial(g)`, a sum of some ranks' gradients.

    Under `Layout.FEATURES` the vector is that of the rank's own slices of the tensors, and whole in itself.

    What the bundle's `keep` says is whole for a while has no memory until `whole` is gathered, or `gradients` are
    computed; `own` is then no part of `whole`.
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
        storage: Storage | None = None,
        summed: bool = True,
    ) -> None:
        owners = schedule.owners(bundle)
        self.bundle = bundle
        self.owner = rank in owners
        self.dtype, self.device = dtype_of(schedule.itemsize), device
        cut = bundle.layout is Layout.SHARDED
        self._replicated = bundle.layout is Layout.REPLICATED and len(owners) > 1
        parts = schedule.pieces(bundle)
        index = owners.index(rank) % parts if cut and self.owner else 0
        local: dict[str, tuple[int, ...]] | None = None
        self.numel = bundle.numel
        if bundle.layout is Layout.FEATURES:
            block_of = {t.name: (b.name, t.shape) for b in model.blocks for t in b.tensors}
            local = {name: local_shape(schedule, *block_of[name], rank) for name in bundle.tensors}
            self.numel = sum(prod(shape) for shape in local.values())
        self.part = ceil(self.numel / parts)
        self.lo, self.hi = slice_bounds(self.numel, parts, index)
        if not cut or not self.owner:
            self.lo, self.hi = 0, self.numel
        if storage is None:
            padded = self.part * parts
            storage = Storage(
                model,
                bundle.tensors,
                self.dtype,
                whole=whole,
                gradients=gradients,
                device=device,
                padded=padded,
                shapes=local,
            )
        self.storage = storage
        mine = slice(bundle.start, bundle.start + self.part * parts)
        self.whole = storage.whole[mine] if storage.whole is not None else None
        self.own = None
        self.own_padded = None
        if self.owner:
            self.own_padded = (
                self.whole[index * self.part : (index + 1) * self.part]
                if self.whole is not None and bundle.keep is not Keep.SLICES
                else self.zeros(self.part)
            )
            self.own = self.own_padded[: self.hi - self.lo]
        self.state = {name: self.zeros(self.hi - self.lo) for name in STATE[schedule.moments] if self.owner}
        """What the optimiser keeps of the elements [lo, hi), as `torch.optim` calls it."""
        self.gradients = tuple(g[mine] for g in storage.gradients)
        self.sums = tuple(self.zeros(self.part) for _ in range(WINDOW)) if self.owner and summed else ()
        self.contributions: tuple[dict[int, Tensor], ...] = tuple({} for _ in range(WINDOW))
        self.parts: tuple[dict[int, Tensor], ...] = tuple({} for _ in range(WINDOW))
        self._partial: dict[int, Tensor] = {}
        self.echo: Tensor | None = None
        """Room for a copy of the whole that comes from another rank to an owner of a slice."""
        if bundle.keep is Keep.SLICES:
            self.let_parameters_go()
        if bundle.keep is not Keep.ALL:
            for gradient in self.gradients:
                let_go(gradient)

    def let_parameters_go(self) -> None:
        """Keep the own slice only, until the whole is gathered."""
        if self.whole is not None:
            let_go(self.whole)

    def zeros(self, numel: int, dtype: torch.dtype | None = None) -> Tensor:
        """A vector of the bundle's type, or of another, on its device."""
        return torch.zeros(numel, dtype=dtype or self.dtype, device=self.device)

    def gradient(self, generation: int) -> Tensor:
        """The own gradient of the elements [lo, hi)."""
        return self.gradients[generation][self.lo : self.hi]

    def own_extents(self) -> dict[str, tuple[int, int]]:
        """The elements of each tensor that the rank owns, [lo, hi) of its own slice."""
        begin, end = self.bundle.start + self.lo, self.bundle.start + self.hi
        held = {name: (max(lo, begin), min(hi, end)) for name, (lo, hi) in self.storage.extents.items()}
        return {name: (lo - begin, hi - begin) for name, (lo, hi) in held.items() if lo < hi}

    def reduce(self, generation: int, sources: list[int], rank: int) -> None:
        """Sum the contributions of `sources` in the order given; `rank`'s own is its gradient, or its partial sum.

        An owner whose slice is empty, since the bundle has fewer elements than owners, gets none and sums none. Where
        several owners have all of the bundle, an own contribution is rounded as those that travel, so that they agree.
        """
        if self.lo == self.hi:
            return

        def own() -> Tensor:
            partial = self._partial.get(generation)
            mine = self.gradient(generation) if partial is None else partial[self.lo : self.hi]
            theirs = next(iter(self.contributions[generation].values()), mine).dtype
            return mine.to(theirs) if self._replicated else mine

        parts = [own() if r == rank else self.contributions[generation][r] for r in sources]
        add_in_order(parts, self.sums[generation][: self.hi - self.lo])

    def add_up(self, generation: int, sources: list[int], rank: int) -> None:
        """Sum the gradients that `sources` sent to be added up, in the order given; `rank`'s own is its gradient."""
        if generation not in self._partial:
            self._partial[generation] = self.zeros(self.bundle.numel)
        whole = slice(0, self.bundle.numel)
        parts = [self.gradients[generation][whole] if r == rank else self.parts[generation][r] for r in sources]
        add_in_order(parts, self._partial[generation])

    def partial(self, generation: int) -> Tensor:
        """What `add_up` found."""
        return self._partial[generation]


def add_in_order(parts: Sequence[Tensor], total: Tensor) -> None:
    """Put the sum of `parts`, in their order, into `total`, in whose type it is formed."""
    if len(parts) == 1 or parts[0].dtype is not total.dtype or parts[1].dtype is not total.dtype:
        total.copy_(parts[0])
        rest = parts[1:]
    else:
        torch.add(parts[0], parts[1], out=total)
        rest = parts[2:]
    for part in rest:
        total.add_(part)
