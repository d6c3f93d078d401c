"""Layer separation itself: where a model is cut, which ranks train which part, and the passes through both parts."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from stanza_sim.base.errors import InputError
from stanza_sim.model.profile import ModelProfile, with_boundary
from stanza_sim.schedule import Pattern, Phase, Ranks, Wire
from stanza_sim.strategies._shared.builder import Builder
from stanza_sim.strategies._shared.crossing import Crossing
from stanza_sim.strategies._shared.cutting import place_of_cut, require_whole


def cut_at(model: ModelProfile, cut: str | None) -> ModelProfile:
    """Return `model` with its FC part beginning at the block `cut`, if given; both parts have blocks.

    Raises `InputError` for a model with one part only, and for a `cut` that is no block but the first.
    """
    if cut is None:
        if not model.fc_blocks or not model.conv_blocks:
            part = "FC" if not model.fc_blocks else "CONV"
            hint = "set the model's `boundary` or this strategy's `cut` to the block that begins the FC part, "
            raise InputError(
                f"model {model.name} has no {part} part, so its layers cannot be separated",
                where="stanza",
                hint=hint + "or leave this strategy out",
            )
        require_whole(model, [model.boundary], "stanza", "cut")
        return model
    place = place_of_cut(model, cut, where="stanza: cut", first="CONV part")
    require_whole(model, [place], "stanza: cut", "cut")
    return with_boundary(model, place)


def places(world_size: int, fc_workers: int, *, colocated: bool, share_out: bool = True) -> tuple[list[int], list[int]]:
    """Ranks of the CONV workers and of the FC workers.

    Dedicated FC workers are the last ranks. Co-located ones are the first rank of each share of CONV workers that
    one of them serves (see `Pattern.BLOCKED`), so that it serves itself. Unless CONV workers are to be shared out,
    there may be fewer of them than FC workers. Raises `InputError` for too many.
    """
    if colocated:
        if fc_workers > world_size:
            raise InputError(
                f"{fc_workers} co-located FC workers are more than the {world_size} nodes",
                where="stanza: fc_workers",
                hint=f"use at most {world_size} FC workers",
            )
        return [*range(world_size)], [-(-d * world_size // fc_workers) for d in range(fc_workers)]
    conv_count = world_size - fc_workers
    if not share_out and conv_count < 1:
        raise InputError(
            f"{fc_workers} FC workers of {world_size} nodes leave {max(conv_count, 0)} CONV workers",
            where="stanza: fc_workers",
            hint=f"use at most {world_size - 1} of {world_size} nodes" if world_size > 1 else "use more nodes",
        )
    if share_out and conv_count < fc_workers:
        most = world_size // 2
        use = f"use at most {most} of {world_size} nodes" if most else "use more nodes, or placement: colocated"
        raise InputError(
            f"{fc_workers} FC workers of {world_size} nodes leave {max(conv_count, 0)} CONV workers",
            where="stanza: fc_workers",
            hint=f"each FC worker serves at least one CONV worker: {use}",
        )
    return [*range(conv_count)], [*range(conv_count, world_size)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Separation:
    """How the FC part is computed: in which lane, and whether the samples of each CONV worker by themselves.

    `wire` is the form in which activations and their gradients travel.
    """

    lane: str
    arrival: bool
    wire: Wire


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """Ops after which the FC part's gradients are complete, by block, and the CONV part's may begin, by micro-batch."""

    grads_ready: dict[str, str]
    returned: dict[int, list[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """What FC workers compute at once: micro-batch `microbatch` of the group `conv`, as `number` on the group `fc`."""

    number: int
    microbatch: int
    conv: str
    fc: str


def separate(b: Builder, conv: str, fc: str, how: Separation) -> Passes:
    """Add the forward pass of the CONV part and all passes of the FC part of the builder's model."""
    model = b.model
    cut = Crossing(block=model.conv_blocks[-1].name, wire=how.wire)
    pieces = _pieces(b, conv, fc, arrival=how.arrival)
    pattern = Pattern.ONE_TO_ONE if how.arrival else Pattern.BLOCKED
    of_microbatch: dict[int, list[_Piece]] = defaultdict(list)
    for piece in pieces:
        of_microbatch[piece.microbatch].append(piece)
    act: dict[int, str] = {}
    for m in range(b.microbatches):
        forward = b.forward(model.conv_blocks, conv, microbatch=m)
        for piece in of_microbatch[m]:
            n = piece.number
            act[n] = cut.on(b, piece.conv, piece.fc, pattern, microbatch=m, number=n, after=forward[-1:])
    returned: dict[int, list[str]] = {}
    grads_ready: dict[str, str] = {}
    for piece in pieces:
        n = piece.number
        forward = b.forward(model.fc_blocks, piece.fc, after=[act[n]], microbatch=n, lane=how.lane)
        before = b.compute(Phase.LOSS, model.blocks[-1].name, piece.fc, after=forward[-1:], microbatch=n, lane=how.lane)
        for block in reversed(model.fc_blocks):
            before = b.compute(Phase.BACKWARD_INPUT, block.name, piece.fc, after=[before], microbatch=n, lane=how.lane)
        m = piece.microbatch
        sent = cut.back(b, piece.fc, piece.conv, pattern, number=n, microbatch=m, after=[before])
        returned.setdefault(m, []).append(sent)
    for block in reversed(model.fc_blocks):
        for piece in pieces:
            before = grads_ready[block.name] = b.compute(
                Phase.BACKWARD_WEIGHT, block.name, piece.fc, after=[before], microbatch=piece.number, lane=how.lane
            )
    return Passes(grads_ready=grads_ready, returned=returned)


def _pieces(b: Builder, conv: str, fc: str, *, arrival: bool) -> list[_Piece]:
    """In the order in which FC workers compute them.

    On arrival, all FC workers take the last CONV worker of their share in the last turn; one that serves fewer begins
    a turn later. So the last op over a block is the last one at every FC worker.
    """
    if not arrival:
        return [_Piece(number=m, microbatch=m, conv=conv, fc=fc) for m in range(b.microbatches)]
    sources, workers = b.groups[conv].ranks, b.groups[fc].ranks
    n, k = len(sources), len(workers)
    turns = -(-n // k)
    ends: list[list[tuple[int, int]]] = [[] for _ in range(turns)]
    for d in range(k):
        first, last = -(-d * n // k), -(-(d + 1) * n // k)
        for i in range(first, last):
            ends[turns - last + i].append((sources[i], workers[d]))
    groups = [
        (
            b.group(f"{conv}.{t}", Ranks.of(s for s, _ in pairs)),
            fc if len(pairs) == k else b.group(f"{fc}.{t}", Ranks.of(d for _, d in pairs)),
        )
        for t, pairs in enumerate(ends)
    ]
    return [
        _Piece(number=b.microbatches + m * turns + t, microbatch=m, conv=c, fc=f)
        for m in range(b.microbatches)
        for t, (c, f) in enumerate(groups)
    ]
