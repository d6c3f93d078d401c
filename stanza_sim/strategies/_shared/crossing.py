"""From one part of a model to the next and back: what crosses a cut, in which micro-batches, and the way back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isqrt

from stanza_sim.base.errors import InputError
from stanza_sim.model.profile import Block
from stanza_sim.schedule import Pattern, Phase, Value, ValueKind, Wire
from stanza_sim.strategies._shared.builder import Builder


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossing:
    """A cut behind `block`: activations with labels go on over it, and the activations' gradients come back.

    They travel as `wire`; with `slices`, in slices of the features (see `Transfer`). `mark` tells the ops and channels
    of several cuts apart.
    """

    block: str
    wire: Wire
    mark: str = ""
    slices: str = ""

    def on(
        self, b: Builder, src: str, dst: str, pattern: Pattern, *, microbatch: int, number: int, after: Iterable[str]
    ) -> str:
        """Add the way on of a micro-batch of `src`, as `number` at `dst`; returns the op's name."""
        values = [Value(ValueKind.ACT, self.block), Value(ValueKind.LABELS)]
        return self._move(b, "act", src, dst, pattern, values, microbatch, number, number, after)

    def back(
        self, b: Builder, src: str, dst: str, pattern: Pattern, *, number: int, microbatch: int, after: Iterable[str]
    ) -> str:
        """Add the way back of `number` of `src`, as `microbatch` at `dst`; returns the op's name."""
        values = [Value(ValueKind.ACTGRAD, self.block)]
        return self._move(b, "actgrad", src, dst, pattern, values, number, microbatch, number, after)

    def _move(
        self,
        b: Builder,
        what: str,
        src: str,
        dst: str,
        pattern: Pattern,
        values: Sequence[Value],
        microbatch: int,
        landing: int,
        number: int,
        after: Iterable[str],
    ) -> str:
        return b.transfer(
            b.named(f"{what}{self.mark}", number),
            src,
            dst,
            pattern,
            values,
            channel=f"{what}{self.mark}",
            after=after,
            microbatch=microbatch,
            arrives_as=None if landing == microbatch else landing,
            wire=self.wire,
            slices=self.slices,
        )


def back_through(
    b: Builder, blocks: Sequence[Block], ranks: str, returned: dict[int, list[str]], *, eager: int
) -> dict[str, str]:
    """Add the backward passes of `blocks`; returns the op after which each block's gradients are complete.

    Micro-batch m waits for `returned[m]`. The first `eager` micro-batches go back one by one, the others together,
    block by block.
    """
    grads_ready: dict[str, str] = {}
    waits = dict(returned)
    together = range(min(eager, b.microbatches), b.microbatches)
    for run in [*([m] for m in range(together.start)), together]:
        for block in reversed(blocks):
            for m in run:
                made = b.compute(Phase.BACKWARD, block.name, ranks, after=waits[m], microbatch=m)
                grads_ready[block.name], waits[m] = made, [made]
    return grads_ready


def check_microbatches(batch: int, microbatches: int, *, eager: int = 0, where: str) -> None:
    """Raise `InputError`, naming the setting of `where`, unless a batch can be cut so, and so many of them be eager."""
    if batch % microbatches:
        low = [d for d in range(1, isqrt(batch) + 1) if batch % d == 0]
        divisors = sorted({*low, *(batch // d for d in low)})
        raise InputError(
            f"a batch of {batch} cannot be cut in {microbatches} equal micro-batches",
            where=f"{where}: microbatches",
            hint=f"use one of {', '.join(map(str, divisors))}",
        )
    if eager > microbatches:
        raise InputError(
            f"{eager} micro-batches cannot go backward one by one: there are {microbatches}",
            where=f"{where}: eager_backward",
            hint=f"use at most {microbatches}, or more microbatches",
        )
