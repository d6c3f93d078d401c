"""What a rank holds for messages beside what arrives: messages that it has made, and values that it has joined or summed.

As the executor has it: a message that is one value of the type in which it travels, whole, is that value itself, which
stays until the iteration after the next; else it is a copy for each destination. What arrives from several ranks is
joined, what arrives rounded is widened, and what a collective sums is a copy.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Collective, Compute, Op, Phase, Schedule, Transfer, ValueKind, Wire
from stanza_sim.schedule.progress import WINDOW
from stanza_sim.schedule.samples import Counts, Spot

OF_GRADIENTS = (ValueKind.GRAD, ValueKind.PART, ValueKind.SUM)


def sent_nbytes(schedule: Schedule, model: ModelProfile, rank: int, counts: Mapping[Spot, Counts]) -> int:
    """Bytes of what a rank keeps of the messages that it sends; `counts` are the data ranks whose samples it computes."""
    found = 0
    gradients: dict[Spot, int] = {}
    following = {a.name: b.name for a, b in zip(model.blocks, model.blocks[1:], strict=False)}
    size = schedule.batch_per_worker // schedule.microbatches
    for op in schedule.ops:
        if not isinstance(op, Transfer) or not (others := _others(schedule, op, rank)):
            continue
        kinds = [v.kind for v in op.values]
        if kinds[0] in (ValueKind.PARAM, ValueKind.COPY):
            continue
        sliced = bool(op.slices) and kinds[0] is ValueKind.ACT  # of a gradient a rank has but its slice
        copied = len(op.values) > 1 or op.wire is not Wire.NATIVE or sliced
        each = schedule.message_bytes(op, rank, others[0])
        if kinds[0] is ValueKind.FACTORS:
            found += WINDOW * op.nbytes
        elif copied:
            found += WINDOW * each * len(others)
        elif kinds[0] is ValueKind.ACT:
            found += each  # that of this iteration is among the activations
        for value in op.values:
            spot = following.get(value.name, ""), op.microbatch
            if value.kind is ValueKind.ACTGRAD and spot in counts:
                nbytes = size * int(counts[spot][rank]) * model.block(value.name).output_numel * schedule.itemsize
                if (cut := schedule.cut(op.slices)) is not None:
                    lo, hi = schedule.features(cut, rank)
                    nbytes = nbytes * (hi - lo) // cut.features
                gradients[spot] = WINDOW * nbytes
    return found + sum(gradients.values())


def joined_nbytes(schedule: Schedule, model: ModelProfile, rank: int) -> Mapping[Spot, int]:
    """Bytes of what is joined, widened or summed of the activations of a block and micro-batch, for its last use."""
    following = {a.name: b.name for a, b in zip(model.blocks, model.blocks[1:], strict=False)}
    found: dict[Spot, int] = defaultdict(int)
    for op in schedule.ops:
        match op:
            case Transfer(values=(value, *_)) if not value.kind.on_bundle and rank in schedule.group(op.dst):
                sources = schedule.sources(op, rank)
                widened = op.wire is not Wire.NATIVE
                if len(sources) > 1 or (widened and len(sources) and sources[0] != rank):
                    for value in op.values:
                        if value.kind is ValueKind.ACT and value.name in following:
                            other = next(r for r in sources if r != rank)
                            nbytes = schedule.message_bytes(op, other, rank) // op.wire.itemsize(schedule.itemsize)
                            found[following[value.name], op.landing] += nbytes * schedule.itemsize * len(sources)
            case Collective() if op.value.kind is ValueKind.ACT and rank in schedule.group(op.ranks):
                found[op.value.name, op.microbatch] += 2 * op.nbytes  # the partial sum stays, too
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
