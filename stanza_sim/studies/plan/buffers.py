"""What a rank holds for messages beside what arrives: messages that it has made, values that it has joined or summed.

As the executor has it: a message that is one value of the type in which it travels, whole, is that value itself; else
it is a copy for each destination, which of activations stays until the backward pass behind it, of gradients until the
iteration after the next, as gradients that are sent on do. What arrives from several ranks is joined, what arrives
rounded is widened, and what a collective sums is a copy.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from itertools import pairwise

from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Collective, Compute, Op, Phase, Schedule, Transfer, ValueKind, Wire
from stanza_sim.schedule.progress import WINDOW
from stanza_sim.schedule.samples import Counts, Spot


def sent_nbytes(schedule: Schedule, model: ModelProfile, rank: int, counts: Mapping[Spot, Counts]) -> int:
    """Bytes of what a rank keeps of gradients and factors that it sends, and of sums of activations.

    `counts` are the data ranks whose samples it computes.
    """
    found = 0
    gradients: dict[Spot, int] = {}
    following = {a.name: b.name for a, b in pairwise(model.blocks)}
    size = schedule.batch_per_worker // schedule.microbatches
    for op in schedule.ops:
        if isinstance(op, Collective) and op.value.kind is ValueKind.ACT and rank in schedule.group(op.ranks):
            found += WINDOW * op.nbytes
        if not isinstance(op, Transfer) or not (others := _others(schedule, op, rank)):
            continue
        kind = op.values[0].kind
        if kind is ValueKind.FACTORS:
            found += WINDOW * op.nbytes
        elif (kind is ValueKind.ACTGRAD or kind.is_gradient) and op.wire is not Wire.NATIVE:
            found += WINDOW * schedule.message_bytes(op, rank, others[0]) * len(others)
        for value in op.values:
            spot = following.get(value.name, ""), op.microbatch
            if value.kind is ValueKind.ACTGRAD and spot in counts:
                nbytes = size * int(counts[spot][rank]) * model.block(value.name).output_numel * schedule.itemsize
                if (cut := schedule.cut(op.slices)) is not None:
                    lo, hi = schedule.features(cut, rank)
                    nbytes = nbytes * (hi - lo) // cut.features
                gradients[spot] = WINDOW * nbytes
    return found + sum(gradients.values())


def kept_nbytes(schedule: Schedule, model: ModelProfile, rank: int) -> Mapping[Spot, int]:
    """Bytes that are kept with the activations of a block and micro-batch until its last use.

    What is joined, widened or summed of them, and messages that are made of them.
    """
    following = {a.name: b.name for a, b in pairwise(model.blocks)}
    labels = schedule.batch_per_worker // schedule.microbatches * model.labels.nbytes(schedule.itemsize)
    found: dict[Spot, int] = defaultdict(int)
    for op in schedule.ops:
        match op:
            case Transfer(values=(value, *more)) if not value.kind.on_bundle:
                sources = schedule.sources(op, rank) if rank in schedule.group(op.dst) else ()
                apart = [r for r in sources if r != rank]
                if value.kind is ValueKind.ACT and apart and (len(sources) > 1 or op.wire is not Wire.NATIVE):
                    nbytes = schedule.message_bytes(op, apart[0], rank) - len(more) * labels  # they travel with labels
                    numel = nbytes // op.wire.itemsize(schedule.itemsize)
                    found[following[value.name], op.landing] += numel * schedule.itemsize * len(sources)
                copied = more or op.slices or op.wire is not Wire.NATIVE
                if value.kind is ValueKind.ACT and copied and (others := _others(schedule, op, rank)):
                    nbytes = schedule.message_bytes(op, rank, others[0])
                    found[value.name, op.microbatch] += nbytes * len(others)
            case Collective() if op.value.kind is ValueKind.ACT and rank in schedule.group(op.ranks):
                found[op.value.name, op.microbatch] += 2 * op.nbytes  # the partial sum, and the sum with a bias
            case _:
                pass
    return found


def joins_gradients(schedule: Schedule, rank: int) -> set[str]:
    """Blocks the gradients of whose outputs a rank joins of slices."""
    return {
        op.values[0].name
        for op in schedule.ops
        if isinstance(op, Transfer) and op.slices and op.values[0].kind is ValueKind.ACTGRAD
        if len(schedule.sources(op, rank)) > 1
    }


def summed_nbytes(schedule: Schedule, rank: int) -> int:
    """Bytes of sums of some ranks' gradients, and of copies of parameters that are received apart by who owns some."""
    found = 0
    for op in schedule.ops:
        match op:
            case Compute(phase=Phase.PARTIAL) if rank in schedule.group(op.ranks):
                found += WINDOW * schedule.bundle(op.target).numel * schedule.itemsize
            case Transfer() if op.values[0].kind is ValueKind.COPY and _receives(schedule, op, rank):
                bundle = schedule.bundle(op.values[0].name)
                found += bundle.numel * schedule.itemsize if rank in schedule.owners(bundle) else 0
            case _:
                pass
    return found


def _others(schedule: Schedule, op: Transfer, rank: int) -> list[int]:
    if rank not in schedule.group(op.src):
        return []
    return [r for r in schedule.destinations(op, rank) if r != rank]


def _receives(schedule: Schedule, op: Op, rank: int) -> bool:
    return isinstance(op, Transfer) and any(r != rank for r in schedule.sources(op, rank))
