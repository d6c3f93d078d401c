"""Passes that run again at a rank, and what it lets go of meanwhile: activation checkpoints."""

from __future__ import annotations

from collections.abc import Iterable

from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule.ops import Compute, Op, Phase, Transfer
from stanza_sim.schedule.samples import Spot


def run_again(ops: Iterable[Op], model: ModelProfile) -> dict[Spot, Spot | None]:
    """Of each block and micro-batch that runs again in `ops`, those of a rank: what is let go once it ran forward.

    That is the output of the block before, where that block makes it again before this one needs it again, and it is
    for nobody else.
    """
    found: dict[Spot, Spot | None] = {}
    sent: set[Spot] = set()
    for op in ops:
        if isinstance(op, Transfer):
            sent.update((value.name, op.microbatch) for value in op.values)
        elif isinstance(op, Compute) and op.phase is Phase.RECOMPUTE:
            k = model.place(op.target)
            before = model.blocks[k - 1].name, op.microbatch
            found[op.target, op.microbatch] = before if k and before in found else None
    return {spot: None if before in sent else before for spot, before in found.items()}
