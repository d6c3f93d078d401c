"""Collectives carried out message by message, by the same steps that the simulator runs.

In each step a rank posts its receives, then its sends, waits for all of them, and only then adds what it received, in
the order that the steps state: two runs give equal bits, whatever arrives first. Sums go through a buffer of their own;
the rest is received in place. Ranks that are not in a step do not wait for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from stanza_sim.execute.rank.library import Library
from stanza_sim.schedule import Collective, CollectiveKind, slice_bounds
from stanza_sim.schedule.collectives import RankStep


def run_steps(
    op: Collective,
    program: Sequence[RankStep],
    place: tuple[int, int],
    output: Tensor,
    source: Tensor,
    group: dist.ProcessGroup,
    library: Library,
    *,
    values: bool = True,
) -> tuple[int, int]:
    """Carry out this rank's `program` of `op` and return the bytes that it sent and received.

    `place` is (index of this rank in the group, size of the group). `output` and `source` are as torch's functions take
    them, one tensor for an all-reduce and a broadcast: `source` is left as it is otherwise. Only one thread may use
    `group`, whose messages `library` moves. Without `values` the same messages travel, but nothing is added or copied:
    no result is meant.
    """
    if not values:
        longest = output if len(output) >= len(source) else source
        moved = [_step(step, longest, group, library, values=False) for step in program]
        return sum(out for out, _ in moved), sum(back for _, back in moved)
    index, parts = place
    whole = output
    match op.kind:
        case CollectiveKind.REDUCE_SCATTER:
            whole = source.clone()
        case CollectiveKind.ALL_GATHER:
            size = len(source)
            whole[index * size : (index + 1) * size].copy_(source)
        case _ if output.data_ptr() != source.data_ptr():
            whole.copy_(source)
    sent = received = 0
    for step in program:
        out, back = _step(step, whole, group, library, values=True)
        sent, received = sent + out, received + back
    if op.kind is CollectiveKind.REDUCE_SCATTER:
        lo, hi = slice_bounds(op.nbytes // whole.element_size(), parts, index)
        output[: hi - lo].copy_(whole[lo:hi])
    return sent, received


def _step(
    step: RankStep, whole: Tensor, group: dist.ProcessGroup, library: Library, *, values: bool
) -> tuple[int, int]:
    arriving = [whole[s.lo : s.hi] for s in step.receives]
    added = [values and s.reduce for s in step.receives]
    landing = [torch.empty_like(t) if add else t for add, t in zip(added, arriving, strict=True)]
    leaving = [whole[s.lo : s.hi] for s in step.sends]
    sends = [(t, s.dst) for s, t in zip(step.sends, leaving, strict=True)]
    receives = [(t, s.src) for s, t in zip(step.receives, landing, strict=True)]
    for work in library.exchange(sends, receives, group):
        library.wait(work)
    for add, mine, theirs in zip(added, arriving, landing, strict=True):
        if add:
            mine.add_(theirs)
    return sum(t.nbytes for t in leaving), sum(t.nbytes for t in landing)
