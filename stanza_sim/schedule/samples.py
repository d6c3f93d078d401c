"""Whose samples each rank works on: data ranks draw them, transfers of activations carry them on."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stanza_sim.schedule.ops import Compute, Pattern, Phase, Transfer, ValueKind
from stanza_sim.schedule.ranks import Ranks
from stanza_sim.schedule.schedule import Schedule

Counts = npt.NDArray[np.int64]
Spot = tuple[str, int]
"""(block, micro-batch)."""

_COMPLETE = (Pattern.FAN_IN, Pattern.FAN_OUT, Pattern.ALL_PAIRS)


def data_rank_counts(schedule: Schedule) -> dict[Spot, Counts]:
    """For each block and micro-batch, how many data ranks' samples each rank computes, in a legal schedule.

    Legality allows one forward pass of a block and micro-batch per rank. Returns arrays of shape (world_size,). A
    rank's batch for a block is its count times `batch_per_worker` over the schedule's `microbatches`.
    """
    first: str | None = None
    held: dict[Spot, Counts] = {}  # data ranks whose activation of it a rank holds
    computed: dict[Spot, Counts] = {}
    previous: dict[str, str] = {}  # block -> the block before it, as the forward ops and transfers name them
    last_seen: dict[int, str] = {}  # micro-batch -> block
    for op in schedule.ops:
        if isinstance(op, Compute) and op.phase is Phase.FORWARD:
            mask, m = _mask(schedule, schedule.group(op.ranks)), op.microbatch
            if first is None:
                first = op.target
            if op.target not in previous and last_seen.get(m, op.target) != op.target:
                previous[op.target] = last_seen[m]
            last_seen[m] = op.target
            inputs = np.ones_like(mask) if op.target == first else held[previous[op.target], m]
            counts = mask * inputs
            spot = op.target, m
            computed[spot] = computed.get(spot, 0) + counts
            held[spot] = held.get(spot, 0) + counts
        elif isinstance(op, Transfer):
            for value in op.values:
                if value.kind is ValueKind.ACT and (value.name, op.microbatch) in held:
                    there = value.name, op.landing
                    arrived = _deliver(schedule, op, held[value.name, op.microbatch])
                    held[there] = held[there] + arrived if there in held else arrived
                    last_seen.setdefault(op.landing, value.name)
    return computed


def _mask(schedule: Schedule, ranks: Ranks) -> Counts:
    m = np.zeros(schedule.world_size, dtype=np.int64)
    for a, b in ranks.spans:
        m[a:b] = 1
    return m


def _deliver(schedule: Schedule, op: Transfer, held: Counts) -> Counts:
    """What each rank comes to hold: under a new number its own as well, else that is there already."""
    new = op.landing != op.microbatch
    if op.pattern in _COMPLETE:
        src, dst = (_mask(schedule, schedule.group(name)) for name in (op.src, op.dst))
        arrived: Counts = dst * int((held * src).sum())
        return arrived if new else arrived - src * dst * held
    out = np.zeros_like(held)
    for s, d in schedule.pairs(op):
        if s != d or new:
            out[d] += held[s]
    return out
