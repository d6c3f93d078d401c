"""The norm of all gradients together: what a rank adds to it, and how it clips."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stanza_sim.execute.train.flat import FlatBundle
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Layout, Schedule
from stanza_sim.schedule.clipping import clipping_op

AT_ONCE = 4096
"""Elements whose squares are added up in their own type, before all is in fp64: 4 million at once are off by 1e-4."""
LEAST = 1e-6
"""What `torch.nn.utils.clip_grad_norm_` adds to a norm before it divides by it."""


def counted_runs(schedule: Schedule, model: ModelProfile, flat: FlatBundle, rank: int) -> list[slice]:
    """What of the own slice of a bundle's gradient `rank` adds to the norm of all.

    All of it where it finds the norm by itself, or where it has a slice of its own. What several owners have as a whole
    is counted by the first of them.
    """
    if clipping_op(schedule) is None or schedule.owners(flat.bundle)[0] == rank:
        return [slice(0, flat.hi - flat.lo)]
    match flat.bundle.layout:
        case Layout.REPLICATED:
            return []
        case Layout.SHARDED:  # replicas of slices come behind the first ones
            first = schedule.owners(flat.bundle).index(rank) < schedule.pieces(flat.bundle)
            return [slice(0, flat.hi - flat.lo)] if first else []
        case Layout.FEATURES:
            shapes = {t.name: t.shape for block in model.blocks for t in block.tensors}
            sliced = {name for name, shape in flat.storage.shapes.items() if shape != shapes[name]}
            return [slice(lo, hi) for name, (lo, hi) in flat.own_extents().items() if name in sliced]


def squared_norm(gradient: Tensor, runs: Sequence[slice]) -> Tensor:
    """The sum of the squares of what `runs` are of a vector, in fp64."""
    norms = [gradient.new_zeros(1)]
    for vector in (gradient[run] for run in runs):
        whole = len(vector) // AT_ONCE * AT_ONCE
        norms.append(torch.linalg.vector_norm(vector[:whole].view(-1, AT_ONCE), dim=1))
        norms.append(torch.linalg.vector_norm(vector[whole:]).view(1))
    return torch.cat(norms).double().square().sum()


def clip_factor(squared: Tensor, most: float) -> Tensor:
    """What gradients are multiplied by whose norm has this square, so that it is `most` at most."""
    return (most / (squared.double().sqrt() + LEAST)).clamp(max=1.0)
