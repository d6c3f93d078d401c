"""Whose samples each rank works on: data ranks draw them, transfers of activations carry them on."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stanza_sim.schedule.ops import Compute, Pattern, Phase, Transfer, ValueKind
from stanza_sim.schedule.ranks import Ranks
from stanza_sim.schedule.schedule import Schedule

Counts = npt.NDArray[np.int64]


def data_rank_counts(schedule: Schedule) -> dict[str, Counts]:
    """For each block, how many data ranks' samples each rank computes it for, in a legal schedule.

    Legality allows one forward pass of a block and micro-batch per rank, so micro-batch 0 counts each rank once.
    Returns arrays of shape (world_size,). A rank's batch for a block is its count times `batch_per_worker`.
    """
    first: str | None = None
    held: dict[str, Counts] = {}  # block -> data ranks whose activation of it a rank holds
    computed: dict[str, Counts] = {}
    previous: dict[str, str] = {}  # block -> the block before it, as the forward ops name them
    last_seen: str | None = None
    for op in schedule.ops:
        if isinstance(op, Compute) and op.phase is Phase.FORWARD and op.microbatch == 0:
            mask = _mask(schedule, schedule.group(op.ranks))
            if first is None:
                first = op.target
            if op.target not in previous and last_seen is not None and last_seen != op.target:
                previous[op.target] = last_seen
            last_seen = op.target
            inputs = np.ones_like(mask) if op.target == first else held[previous[op.target]]
            counts = mask * inputs
            computed[op.target] = computed.get(op.target, 0) + counts
            held[op.target] = held.get(op.target, 0) + counts
        elif isinstance(op, Transfer) and op.microbatch == 0:
            for value in op.values:
                if value.kind is ValueKind.ACT and value.name in held:
                    arrived = _deliver(schedule, op, held[value.name])
                    local = arrived * 0
                    if op.pattern in (Pattern.FAN_IN, Pattern.FAN_OUT, Pattern.ALL_PAIRS):
                        both = _mask(schedule, schedule.group(op.src)) * _mask(schedule, schedule.group(op.dst))
                        local = both * held[value.name]
                    held[value.name] = held[value.name] + arrived - local
    return computed


def _mask(schedule: Schedule, ranks: Ranks) -> Counts:
    m = np.zeros(schedule.world_size, dtype=np.int64)
    for a, b in ranks.spans:
        m[a:b] = 1
    return m


def _deliver(schedule: Schedule, op: Transfer, held: Counts) -> Counts:
    out = np.zeros_like(held)
    if op.pattern in (Pattern.FAN_IN, Pattern.FAN_OUT, Pattern.ALL_PAIRS):
        total = int((held * _mask(schedule, schedule.group(op.src))).sum())
        out += _mask(schedule, schedule.group(op.dst)) * total
        return out
    for s, d in schedule.pairs(op):
        if s != d:
            out[d] += held[s]
    return out
