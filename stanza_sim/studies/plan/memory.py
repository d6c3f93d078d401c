"""Memory that a plan needs on each device, and whether the device has it.

What counts is what DNNMem (Gao et al., "Estimating GPU memory consumption of deep learning models", ESEC/FSE 2020)
counts, as far as a schedule tells it, in the form in which this program's executor holds it:

    weights        P        parameters of the blocks (or slices of blocks) that the rank computes, and of its own slices
    gradients      2 P      one buffer for each of two generations (iterations overlap)
    whole          of bundles that ranks keep in slices, what of parameters and gradients may be whole (`plan.whole`);
                   it is told with the weights and the gradients
    optimiser      k O      what the optimiser keeps of what the rank owns, a slice of a bundle that is cut, else the
                   whole: k = 1 of SGD with momentum (without it 0), 2 of Adam
    sums           2 O'     reduced gradients of what the rank owns and receives contributions to
    backward       of a block in its backward pass: gradients of its parameters before they are in their buffer, and
                   those of its input and output, or of what one operation in it reads and writes, if that is more
    activations    at one time, in the order of the program: sum over blocks and micro-batches, from the forward to the
                   last backward pass, of samples x bytes that the block's operations put out and that are kept. Of an
                   elementwise operation's input and output one is: it computes in place, or only its result is needed.
                   It reads at most twice as much as it writes (an addition), so what it writes is at least a third of
                   what it touches, and so much is not counted (of language models it is known
                   what is kept). Of a pass that runs again it is the output alone, until it does, and nothing where
                   the block behind runs again later
    received       2 R      gradients and activations that arrive in an iteration, in two generations; parameters that
                            are pulled land in place
    sent           gradients that it sends on, sums of activations, copies that are made for messages (`plan.buffers`)
    input          samples x bytes of a sample, in two generations
    communicators  of NCCL: one for each rank that it sends to or receives from, each way, and for each group; each has
                   a buffer of 4 MiB (the default of NCCL_BUFFSIZE, "Environment Variables" in NCCL's user guide) for
                   each of its channels, of which the executor allows 32 or, with many communicators, as many as share
                   out the multiprocessors of a GPU (taken as 132, those of an H100 SXM): an upper bound

and in the host's memory, which topologies do not state and nothing is judged by:

    page-locked    where gloo moves what is in a GPU: 4 R, a buffer for what arrives in an iteration and one as large
                   for what leaves, in two generations

Of activations, of what a backward pass takes and of what is whole it is the most that they are together in a pass.
Not counted: where poolings found their maxima, samples that are loaded ahead, workspace of convolutions and of cuBLAS,
the framework's own context (0.3 to 1 GB on a GPU), and fragmentation.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from math import prod

from stanza_sim.base.op_kinds import OpKind
from stanza_sim.base.units import format_bytes
from stanza_sim.cluster import Cluster
from stanza_sim.cluster.device import load_device
from stanza_sim.model.profile import Block, ModelProfile
from stanza_sim.schedule import (
    Collective,
    CollectiveKind,
    Compute,
    Keep,
    Layout,
    Op,
    Phase,
    Ranks,
    Schedule,
    Transfer,
    ValueKind,
)
from stanza_sim.schedule.cuts import slice_block, slice_numel
from stanza_sim.schedule.progress import WINDOW
from stanza_sim.schedule.recompute import run_again
from stanza_sim.schedule.samples import Spot, data_rank_counts
from stanza_sim.studies.plan.buffers import joins_gradients, kept_nbytes, sent_nbytes, summed_nbytes
from stanza_sim.studies.plan.whole import whole_at

SUMMING = (Phase.REDUCE, Phase.RECONSTRUCT)
"""Phases whose results have room of their own, as those of a reduce-scatter have."""
LANDING = {ValueKind.PARAM, ValueKind.COPY}
"""What lands in place."""
PASSES = (Phase.FORWARD, Phase.RECOMPUTE, Phase.BACKWARD, Phase.BACKWARD_INPUT, Phase.BACKWARD_WEIGHT)
"""From the first of them on a block keeps activations of a micro-batch, to the last of those that follow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes that one rank needs on its device; see the module."""

    weights_nbytes: int
    gradients_nbytes: int
    optimiser_nbytes: int
    sums_nbytes: int
    activations_nbytes: int
    backward_nbytes: int
    received_nbytes: int
    sent_nbytes: int
    input_nbytes: int
    communicators_nbytes: int = 0
    page_locked_nbytes: int = 0

    @property
    def nbytes(self) -> int:
        """All of it that is on the device."""
        return sum(int(getattr(self, f.name)) for f in fields(self)) - self.page_locked_nbytes

    @property
    def largest(self) -> str:
        """What takes most of it, in a word."""
        on_device = (f for f in fields(self) if f.name != "page_locked_nbytes")
        return max(on_device, key=lambda f: int(getattr(self, f.name))).name.removesuffix("_nbytes")


def memory_of(
    schedule: Schedule,
    model: ModelProfile,
    received: Mapping[int, Mapping[str, int]],
    *,
    activation_scale: float = 1.0,
    nccl: Collection[int] = (),
    staged: Collection[int] = (),
) -> dict[int, Memory]:
    """What each rank of `received` needs; `received` has the bytes that it receives in each transfer, by op name.

    `activation_scale` is that of the size of an element of an activation (0.5 for half precision). NCCL moves what the
    ranks of `nccl` send and receive, gloo what those of `staged` do, from and to the host.
    """
    counts = data_rank_counts(schedule)
    of_block: dict[str, list[int]] = {}  # its micro-batches
    for name, m in counts:
        of_block.setdefault(name, []).append(m)
    passes = [op for op in schedule.ops if isinstance(op, Compute) and op.phase in PASSES]
    size = schedule.batch_per_worker // schedule.microbatches
    sums = {op.target for op in schedule.ops if isinstance(op, Compute) and op.phase in SUMMING} | {
        op.value.name for op in schedule.ops if isinstance(op, Collective) and op.kind is CollectiveKind.REDUCE_SCATTER
    }
    lands = {op.name for op in schedule.ops if isinstance(op, Transfer) and {v.kind for v in op.values} <= LANDING}
    data = schedule.data_ranks
    alike = {
        (op.pattern, op.src, op.dst, op.pairs) if isinstance(op, Transfer) else op.ranks: op
        for op in schedule.ops
        if not isinstance(op, Compute)
    }
    in_slices = {t for b in schedule.bundles if b.keep is Keep.SLICES for t in b.tensors}
    let_go = {t for b in schedule.bundles if b.keep is not Keep.ALL for t in b.tensors}
    found: dict[int, Memory] = {}
    for rank, by_op in received.items():
        parameters = gradients = 0
        backward: dict[str, int] = {}
        joins = joins_gradients(schedule, rank)
        kept: dict[Spot, tuple[float, float]] = {}  # all of it, and the output alone
        computes: set[str] = set()
        befores = [0, *(b.output_numel for b in model.blocks)]  # the first block's input needs no gradient
        for block, numel_before in zip(model.blocks, befores, strict=False):
            batches = {m: size * int(counts[block.name, m][rank]) for m in of_block.get(block.name, ())}
            if not (largest := max(batches.values(), default=0)):
                continue
            held = block
            if (cut := schedule.cut(block.name)) is not None:
                lo, hi = schedule.features(cut, rank)
                held = slice_block(block, cut, hi - lo)
            tensors = [*held.tensors, *(t for t in held.tied if t.name not in computes)]  # tied across ranks, too
            parameters += sum(t.numel for t in tensors if t.name not in in_slices) * schedule.itemsize
            gradients += sum(t.numel for t in tensors if t.name not in let_go) * schedule.itemsize
            computes.update(t.name for t in tensors)
            each = _kept_nbytes(held) * activation_scale
            output = schedule.itemsize * activation_scale * held.output_numel
            kept |= {(block.name, m): (batch * each, batch * output) for m, batch in batches.items()}
            ends = max(schedule.itemsize * (held.output_numel + numel_before), _widest_nbytes(held))
            ends += schedule.itemsize * held.output_numel if block.name in joins else 0
            backward[block.name] = held.numel * schedule.itemsize + int(largest * ends * activation_scale)
        own = optimiser = reduced = 0
        for bundle in schedule.bundles:
            owners = schedule.owners(bundle)
            if rank not in owners:
                continue
            numel = bundle.numel
            if bundle.layout is Layout.SHARDED:
                lo, hi = schedule.slice_of(bundle, rank)
                numel = hi - lo
            elif bundle.layout is Layout.FEATURES:
                numel = slice_numel(schedule, model, bundle.name, rank)
            optimiser += schedule.moments * numel * schedule.itemsize
            reduced += numel * schedule.itemsize if bundle.name in sums else 0
            whole = computes.issuperset(bundle.tensors) and bundle.keep is not Keep.SLICES
            own += 0 if whole else numel * schedule.itemsize
        for spot, nbytes in kept_nbytes(schedule, model, rank).items():
            if spot in kept:
                kept[spot] = kept[spot][0] + nbytes, kept[spot][1]
        peak = _peak(schedule, model, passes, kept, backward, rank)
        shapes = (model.input_shape, *(i.shape for i in model.more_inputs))
        sample = sum(map(prod, shapes)) * schedule.itemsize * activation_scale
        found[rank] = Memory(
            weights_nbytes=parameters + own + peak.parameters,
            gradients_nbytes=WINDOW * gradients + peak.gradients,
            optimiser_nbytes=optimiser,
            sums_nbytes=WINDOW * reduced + summed_nbytes(schedule, rank),
            activations_nbytes=int(peak.activations),
            backward_nbytes=peak.backward,
            received_nbytes=WINDOW * sum(n for name, n in by_op.items() if name not in lands),
            sent_nbytes=sent_nbytes(schedule, model, rank, counts),
            input_nbytes=WINDOW * int(schedule.batch_per_worker * sample) if rank in data else 0,
            communicators_nbytes=_communicators_nbytes(schedule, alike.values(), rank) if rank in nccl else 0,
            page_locked_nbytes=2 * WINDOW * sum(by_op.values()) if rank in staged else 0,
        )
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Moment:
    """What a rank holds in one pass of what comes and goes, in bytes."""

    activations: float = 0.0
    backward: int = 0
    parameters: int = 0
    gradients: int = 0

    @property
    def nbytes(self) -> float:
        """All of it."""
        return self.activations + self.backward + self.parameters + self.gradients


def _peak(
    schedule: Schedule,
    model: ModelProfile,
    passes: Sequence[Compute],
    kept: Mapping[Spot, tuple[float, float]],
    backward: Mapping[str, int],
    rank: int,
) -> _Moment:
    """The pass of `rank`, in program order, in which most is held: activations, of what each block keeps of a
    micro-batch, what its backward pass takes beside them, and what is whole for a while."""
    member = {name: rank in schedule.group(name) for name in {op.ranks for op in passes}}
    mine = [op for op in passes if member[op.ranks]]
    again = run_again(schedule.for_rank(rank), model) if any(op.phase is Phase.RECOMPUTE for op in mine) else {}
    forward = {(op.target, op.microbatch): op.lane for op in mine if op.phase is Phase.FORWARD}
    last_use = {(op.target, op.microbatch): op.name for op in mine}
    held: dict[Spot, float] = {}
    whole = whole_at(schedule, model, rank)
    now = 0.0
    most = _Moment()

    def hold(spot: Spot, nbytes: float) -> None:
        nonlocal now
        now += nbytes - held.get(spot, 0.0)
        held[spot] = nbytes

    for op in mine:
        spot = op.target, op.microbatch
        ahead = op.phase in (Phase.FORWARD, Phase.RECOMPUTE)
        if ahead:
            hold(spot, kept[spot][op.phase is Phase.FORWARD and spot in again])
            if op.phase is Phase.FORWARD and (before := again.get(spot)) is not None:
                hold(before, 0.0)
        parameters, gradients = whole.get(op.name, (0, 0))
        beside = 0 if ahead else backward[op.target]
        moment = _Moment(activations=now, backward=beside, parameters=parameters, gradients=gradients)
        most = max(most, moment, key=lambda m: m.nbytes)
        if last_use[spot] == op.name and forward[spot] == op.lane:  # what another lane lets go, it may let go late
            hold(spot, 0.0)
    return most


BUFFER_BYTES, MOST_CHANNELS, MULTIPROCESSORS = 4 * 1024 * 1024, 32, 132


def _communicators_nbytes(schedule: Schedule, ops: Iterable[Op], rank: int) -> int:
    """What NCCL's communicators take of the device of `rank`: see the module.

    `ops` are transfers and collectives, one of each that are between the same ranks.
    """
    peers: tuple[set[Ranks], set[Ranks]] = set(), set()  # groups of those that it sends to, and receives from
    groups: set[tuple[int, ...]] = set()
    for op in ops:
        if isinstance(op, Transfer):
            if rank in schedule.group(op.src):
                peers[0].add(schedule.destinations(op, rank))
            if rank in schedule.group(op.dst):
                peers[1].add(schedule.sources(op, rank))
        elif isinstance(op, Collective) and rank in (group := schedule.group(op.ranks)) and len(group) > 1:
            groups.add(tuple(group))
    pairs = sum(len(set().union(*some) - {rank}) for some in peers)
    if not (count := pairs + len(groups)):
        return 0
    return count * max(1, min(MOST_CHANNELS, MULTIPROCESSORS // count)) * BUFFER_BYTES


def _kept_nbytes(block: Block) -> float:
    """Bytes of a sample that a block's operations put out and that are kept for the backward pass."""
    if block.kept_nbytes is not None:
        return block.kept_nbytes
    elementwise = sum(w.forward.sample_nbytes for w in block.work if w.kind is OpKind.ELEMENTWISE)
    return max(block.bytes_touched - elementwise / 3, 0.0)


def _widest_nbytes(block: Block) -> float:
    """Bytes of a sample that an operation of a block reads and writes, of the kind of which that is most: as many have
    the gradients of its input and output."""
    each = (w.forward.sample_nbytes / w.forward.kernels for w in block.work if w.forward.kernels)
    return max(each, default=0.0)


def too_much(cluster: Cluster, needs: Mapping[int, Memory]) -> str | None:
    """Why a plan does not fit the devices of `cluster`; None if it does, as far as their memory is known."""
    found = least_left(cluster, needs)
    if found is None or found[0] >= 0:
        return None
    rank = found[1]
    need, has = needs[rank], needs[rank].nbytes + found[0]
    of = f" for each of {ranks} ranks" if (ranks := sharing(cluster, rank)) > 1 else ""
    return (
        f"rank {rank} needs {format_bytes(need.nbytes)}, most of it for {need.largest}, "
        f"{cluster.device_of(rank)} has {format_bytes(has)}{of}"
    )


def least_left(cluster: Cluster, needs: Mapping[int, Memory]) -> tuple[int, int] | None:
    """Bytes that are left of the device on which that is least (below 0: missing), and its rank; None: not known."""
    left = [(has - need.nbytes, rank) for rank, need in needs.items() if (has := capacity(cluster, rank)) is not None]
    return min(left, default=None)


def capacity(cluster: Cluster, rank: int) -> int | None:
    """Bytes of the device of `rank`, an equal part of them where ranks share it.

    None for a rank on its host's cores, since topologies do not state a host's.
    """
    if cluster.on_cores(rank):
        return None
    return load_device(cluster.device_of(rank)).memory_nbytes // sharing(cluster, rank)


def sharing(cluster: Cluster, rank: int) -> int:
    """How many ranks compute where `rank` does."""
    return sum(cluster.placement[r] == cluster.placement[rank] for r in cluster.ranks_on(cluster.placement[rank].host))


def not_judged(cluster: Cluster) -> Sequence[int]:
    """Ranks whose device's memory is not known."""
    return [rank for rank in range(cluster.world_size) if cluster.on_cores(rank)]
