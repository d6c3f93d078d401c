"""An FC part of linear layers that is cut over a group by rows and columns in turn, and the passes through it.

Layers cut by columns and by rows take turns, since a slice that the one makes is what the other needs (Shoeybi et al.,
Megatron-LM, arXiv 1909.08053): a layer by rows is followed by one all-reduce of its output, and one by columns by one
all-reduce of its input's gradient. If the last is by columns, the loss is computed on slices: what is exchanged is one
number for each sample and rank, the log of a sum of exponentials (the parallel cross entropy of Megatron-LM; for face
recognition, An et al., Partial FC, arXiv 2010.05222). No gradient of the FC part's parameters travels: each rank
computes on all samples, and owns its slice.

Where the first layer is cut by rows, each rank needs only its features of the boundary's activations, and makes the
gradients of these only, so that a CONV worker sends and gets each number once, however many ranks there are. By columns
each rank needs all of them, and all make partial sums of all gradients. So the turns begin with rows, as for VGG-16,
unless that moves more: before a large classifier, whose outputs are better not summed (see `axes`).

Bytes that one of the k ranks sends and receives in exchanges over rings, for S samples: 2(k-1)/k times S*O*itemsize for
each layer with O outputs that is cut by rows, and S*I*itemsize for each with I inputs that is cut by columns; and
(k-1)*S*itemsize if the last is one of these.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from stanza_sim.base.errors import InputError
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Axis, Collective, CollectiveKind, Layout, Pattern, Phase, Value, ValueKind, Wire
from stanza_sim.schedule.cuts import Linear, cut_of, gathered_bytes, linear_of, summed_bytes
from stanza_sim.strategies._shared.builder import Builder
from stanza_sim.strategies._shared.collectives import Choice, CollectiveSettings
from stanza_sim.strategies._shared.crossing import Crossing


@dataclass(frozen=True, slots=True, kw_only=True)
class Slicing:
    """How the FC part is computed: over which group, in which lane, and whether each CONV worker's samples by turns.

    `wire` is the form in which the boundary's activations and their gradients travel. `algorithm`, as `settings` has
    it, is that of all-reduces within the group, whose values are not rounded. `where` names the setting in errors.
    """

    fc: str
    lane: str
    by_turns: bool
    wire: Wire
    settings: CollectiveSettings
    algorithm: Choice
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SlicedPasses:
    """Ops that update each FC block, and after which the CONV part's backward pass may begin, by micro-batch."""

    params_ready: dict[str, list[str]]
    returned: dict[int, list[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """What the group computes at once: micro-batch `microbatch` of the group `conv`, under a number of its own.

    `back_from` are the ranks that send gradients back where each has all of them.
    """

    number: int
    microbatch: int
    conv: str
    back_from: str
    samples: int


def axes(model: ModelProfile, shards: int) -> list[Axis]:
    """Along which features each block of the FC part is cut over `shards` ranks: by rows and columns in turn.

    Begins with what can be cut over so many ranks, and makes a rank of the group receive fewer floats for a sample;
    with rows if it is the same.
    """
    layers = [linear_of(model, block.name) for block in model.fc_blocks]
    both = [Axis.ROWS, Axis.COLUMNS]
    turns = [[both[(first + i) % 2] for i, _ in enumerate(layers)] for first in (0, 1)]
    return min(turns, key=lambda found: (not _fits(layers, found, shards), _floats(model, layers, found, shards)))


def _fits(layers: Sequence[Linear | None], found: Sequence[Axis], shards: int) -> bool:
    """Whether every rank gets a feature of every layer."""
    return all(
        layer is not None and shards <= (layer.inputs if axis is Axis.ROWS else layer.outputs)
        for layer, axis in zip(layers, found, strict=True)
    )


def _floats(model: ModelProfile, layers: Sequence[Linear | None], found: Sequence[Axis], shards: int) -> float:
    """Floats that a rank of the group receives for each sample."""
    boundary = model.conv_blocks[-1].output_numel if model.conv_blocks else 0
    total = boundary / shards if found[0] is Axis.ROWS else float(boundary)
    ring = (shards - 1) / shards
    for layer, axis in zip(layers, found, strict=True):
        if layer is not None:
            total += 2 * ring * layer.positions * (layer.outputs if axis is Axis.ROWS else layer.inputs)
    last = layers[-1]
    return total + ((shards - 1) * (last.positions if last else 1) if found[-1] is Axis.COLUMNS else 0)


def can_be_sliced(model: ModelProfile, shards: int) -> bool:
    """Whether the FC part of `model` can be cut over `shards` ranks."""
    try:
        for block, axis in zip(model.fc_blocks, axes(model, shards), strict=True):
            cut_of(model, block.name, "fc_worker", shards, axis, "fc_parallel")
    except InputError:
        return False
    return True


def separate_sliced(b: Builder, conv: str, how: Slicing) -> SlicedPasses:
    """Add the forward pass of the CONV part and all that the FC part does, its update included.

    Passes over several pieces are interleaved: while one waits for an exchange, the next is computed. Raises
    `InputError` for a block that cannot be cut.
    """
    blocks, shards = b.model.fc_blocks, len(b.groups[how.fc].ranks)
    for block, axis in zip(blocks, axes(b.model, shards), strict=True):
        b.cuts.append(cut_of(b.model, block.name, how.fc, shards, axis, how.where))
    pieces = _pieces(b, conv, how)
    cut = Crossing(
        block=b.model.conv_blocks[-1].name, wire=how.wire, slices=blocks[0].name if b.cuts[0].axis is Axis.ROWS else ""
    )
    of_microbatch: dict[int, list[_Piece]] = defaultdict(list)
    for piece in pieces:
        of_microbatch[piece.microbatch].append(piece)
    act: dict[int, str] = {}
    for m in range(b.microbatches):
        forward = b.forward(b.model.conv_blocks, conv, microbatch=m)
        for piece in of_microbatch[m]:
            n = piece.number
            act[n] = cut.on(b, piece.conv, how.fc, Pattern.ALL_PAIRS, microbatch=m, number=n, after=forward[-1:])
    grads_ready: dict[str, str] = {}
    returned: dict[int, list[str]] = {}
    gap = grads_ready if len(pieces) == 1 else None
    waiting = [_passes(b, how, cut, piece, act[piece.number], returned, gap) for piece in pieces]
    running: list[Iterator[None]] = []
    while waiting or running:  # each piece is one exchange behind the one before
        if waiting:
            running.append(waiting.pop(0))
        running = [passes for passes in running if next(passes, "end") is None]
    params_ready: dict[str, list[str]] = {}
    for block in reversed(blocks):
        for piece in pieces if block.name not in grads_ready else ():
            after = [b.named(f"bwdi.{block.name}", piece.number)]
            grads_ready[block.name] = b.compute(
                Phase.BACKWARD_WEIGHT, block.name, how.fc, after=after, microbatch=piece.number, lane=how.lane
            )
    for block in reversed(blocks):
        bundle = b.bundle(block.name, block.tensors, how.fc, Layout.FEATURES)
        update = b.compute(Phase.UPDATE, bundle.name, how.fc, after=[grads_ready[block.name]], lane=how.lane)
        params_ready[block.name] = [update]
    return SlicedPasses(params_ready=params_ready, returned=returned)


def _passes(
    b: Builder,
    how: Slicing,
    crossing: Crossing,
    piece: _Piece,
    act: str,
    returned: dict[int, list[str]],
    gap: dict[str, str] | None,
) -> Iterator[None]:
    """Add the passes over one piece; yields after every exchange, so that others can be added in between.

    Weight gradients are left to the end, so that gradients get to CONV workers early. With `gap`, which notes them,
    those of layers cut by columns are computed while the exchange goes on: nothing else could be.
    """
    blocks, n = b.model.fc_blocks, piece.number

    def compute(phase: Phase, block: str, after: str) -> str:
        return b.compute(phase, block, how.fc, after=[after], microbatch=n, lane=how.lane)

    before = act
    for cut in b.cuts:
        before = compute(Phase.FORWARD, cut.block, before)
        if cut.axis is Axis.ROWS:
            before = _exchange(b, how, piece, Value(ValueKind.ACT, cut.block), cut.outputs, before)
            yield
        elif cut.block == blocks[-1].name:
            before = _exchange(b, how, piece, Value(ValueKind.LOGSUM, cut.block), 1, before)
            yield
    before = compute(Phase.LOSS, blocks[-1].name, before)
    for cut in reversed(b.cuts):
        before = compute(Phase.BACKWARD_INPUT, cut.block, before)
        if cut.axis is Axis.ROWS:
            continue
        value = Value(ValueKind.ACTGRAD, b.model.blocks[b.model.place(cut.block) - 1].name)
        done = before
        before = _exchange(b, how, piece, value, cut.inputs, before)
        if gap is not None:
            gap[cut.block] = compute(Phase.BACKWARD_WEIGHT, cut.block, done)
        yield
    back_from, pattern = (how.fc, Pattern.ALL_PAIRS) if crossing.slices else (piece.back_from, Pattern.BLOCKED)
    sent = crossing.back(b, back_from, piece.conv, pattern, number=n, microbatch=piece.microbatch, after=[before])
    # On a rank that is both, the CONV part need not wait until the gradients of other workers' samples are sent.
    returned.setdefault(piece.microbatch, []).append(f"{sent}.recv")


def _exchange(b: Builder, how: Slicing, piece: _Piece, value: Value, features: int, after: str) -> str:
    """Add the sum of partial sums of `value`, or the gathering of logsums; return its name."""
    shards, itemsize = len(b.groups[how.fc].ranks), b.model.itemsize
    rows = piece.samples * b.cuts[0].positions  # of every layer: each takes what the one before gives
    gathers = value.kind is ValueKind.LOGSUM
    nbytes = gathered_bytes(rows, shards, itemsize) if gathers else summed_bytes(rows, features, itemsize)
    verb = "logsum" if gathers else "sum" if value.kind is ValueKind.ACT else "sumgrad"
    choice = Choice.BACKEND if gathers else how.algorithm
    name = b.named(f"{verb}.{value.name}", piece.number)
    b.ops.append(
        Collective(
            name=name,
            kind=CollectiveKind.ALL_GATHER if gathers else CollectiveKind.ALL_REDUCE,
            ranks=how.fc,
            value=value,
            nbytes=nbytes,
            **how.settings.how(choice, nbytes, shards),
            microbatch=piece.number,
            after=(after,),
        )
    )
    return name


def _pieces(b: Builder, conv: str, how: Slicing) -> list[_Piece]:
    """In the order in which the FC part is computed.

    Where all ranks of the group have whole gradients, each CONV worker gets them from one: with which it shares a rank,
    if it does, or that which would serve it alone.
    """
    sources, size = b.groups[conv].ranks, b.batch_per_worker // b.microbatches
    servers, n = list(b.groups[how.fc].ranks), len(sources)
    k = len(servers)
    if not how.by_turns:
        back_from = how.fc
        if b.cuts[0].axis is Axis.COLUMNS and n < k:
            back_from = b.group(f"{how.fc}.back", [servers[i * k // n] for i in range(n)])
        return [
            _Piece(number=m, microbatch=m, conv=conv, back_from=back_from, samples=size * n)
            for m in range(b.microbatches)
        ]
    groups = [b.group(f"{conv}.{t}", [rank]) for t, rank in enumerate(sources)]
    backs = groups if servers == list(sources) else []
    if b.cuts[0].axis is Axis.COLUMNS and not backs:
        made = [b.group(f"{how.fc}.{j}", [rank]) for j, rank in enumerate(servers)]
        backs = [made[t * k // n] for t in range(n)]
    return [
        _Piece(
            number=b.microbatches + m * len(groups) + t,
            microbatch=m,
            conv=group,
            back_from=backs[t] if backs else how.fc,
            samples=size,
        )
        for m in range(b.microbatches)
        for t, group in enumerate(groups)
    ]
