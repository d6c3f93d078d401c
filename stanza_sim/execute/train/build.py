"""What a rank holds: the blocks that it computes, and the flat parameters of the bundles that it uses or owns.

Each bundle is initialised by its first owner, which builds the module on the CPU under the run's seed; other
ranks build it on the meta device, where it takes no memory, and make room only for what they hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stanza_sim.base.errors import InputError
from stanza_sim.execute.train.dropout import CounterDropout
from stanza_sim.execute.train.flat import FlatBundle, Storage, dtype_of
from stanza_sim.execute.train.slices import HeldBlock, cut_block, take_local
from stanza_sim.model.extract import SplitBlock, build_module, replace_dropout, split
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Bundle, Collective, CollectiveKind, Compute, Keep, Phase, Schedule, Transfer, ValueKind

SUMMING = (Phase.REDUCE, Phase.RECONSTRUCT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """Who holds what, the same in every rank.

    `computes[block]` are the ranks that compute a block, `wholes[bundle]` those that hold all its parameters,
    `block_source[block]` the rank that initialises a block's buffers.
    """

    computes: dict[str, list[int]]
    wholes: dict[str, list[int]]
    block_source: dict[str, int]


def holdings(schedule: Schedule, model: ModelProfile) -> Holdings:
    """Find out who holds what; raises `InputError` if a tensor is in no bundle, so that nobody would train it."""
    computes: dict[str, set[int]] = {b.name: set() for b in model.blocks}
    wholes: dict[str, set[int]] = {b.name: set() for b in schedule.bundles}
    bundles_of: dict[str, list[Bundle]] = {}
    for b in schedule.bundles:
        for name in b.tensors:
            bundles_of.setdefault(name, []).append(b)
    for op in schedule.ops:
        match op:
            case Compute(phase=phase) if phase.on_bundle:
                pass
            case Compute():
                computes[op.target].update(schedule.group(op.ranks))
            case Transfer():
                for value in op.values:
                    if value.kind in (ValueKind.PARAM, ValueKind.COPY):
                        wholes[value.name].update(r for s, r in schedule.pairs(op) if s != r)
            case Collective() if op.value.kind.on_bundle:
                wholes[op.value.name].update(schedule.group(op.ranks))
            case _:
                pass
    source: dict[str, int] = {}
    for block in model.blocks:
        for t in (*block.tensors, *block.tied):
            if t.name not in bundles_of:
                raise InputError(
                    f"tensor {t.name} is in no bundle, so nobody would train it", where=f"schedule {schedule.name}"
                )
            for bundle in bundles_of[t.name]:
                wholes[bundle.name].update(computes[block.name])
        if block.tensors:
            source[block.name] = schedule.owners(bundles_of[block.tensors[0].name][0])[0]
        elif computes[block.name]:
            source[block.name] = min(computes[block.name])
    return Holdings(
        computes={name: sorted(ranks) for name, ranks in computes.items()},
        wholes={name: sorted(ranks) for name, ranks in wholes.items()},
        block_source=source,
    )


def build(
    schedule: Schedule, model: ModelProfile, rank: int, seed: int, device: torch.device
) -> tuple[Holdings, list[HeldBlock], dict[str, FlatBundle]]:
    """Build what `rank` holds and bring initial values to all ranks; every rank of the schedule must call this."""
    held = holdings(schedule, model)
    place = _Place(schedule=schedule, model=model, held=held, rank=rank, device=device)
    module, initial = _module(place, seed)
    bundles = _bundles(place)
    for bundle in schedule.bundles:
        _initialise(place, bundle, bundles.get(bundle.name), initial)
    storage_of = {t: f.storage for f in bundles.values() for t in f.storage.extents}
    made: dict[str, nn.Parameter] = {}
    blocks = []
    for piece in split(module, model):
        if rank == held.block_source.get(piece.name) or rank in held.computes[piece.name]:
            _bring_state(place, piece)
        if rank in held.computes[piece.name]:
            blocks.append(_held_block(place, piece, storage_of, made, seed))
    return held, blocks, bundles


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Which rank of which schedule builds what it holds, and where."""

    schedule: Schedule
    model: ModelProfile
    held: Holdings
    rank: int
    device: torch.device


def _module(place: _Place, seed: int) -> tuple[nn.Module, dict[str, Tensor]]:
    """The whole model and its initial parameters under `seed`: on the CPU at ranks that others get them from, else on
    the meta device and without parameters, if it can be built there.
    """
    schedule, rank = place.schedule, place.rank
    is_source = rank in place.held.block_source.values()
    initialises = is_source or any(schedule.owners(b)[0] == rank for b in schedule.bundles)
    torch.manual_seed(seed)
    module = build_module(place.model, device="cpu" if initialises else "meta")
    real = initialises or not any(p.is_meta for p in module.parameters())
    return module, {n: p.detach().clone() for n, p in module.named_parameters()} if real else {}


def _bundles(place: _Place) -> dict[str, FlatBundle]:
    """The bundles of which the rank uses the whole or owns a slice, all zeros."""
    schedule, rank = place.schedule, place.rank
    storages = _shared_storages(place)
    summed = summed_apart(schedule)
    found: dict[str, FlatBundle] = {}
    for bundle in schedule.bundles:
        whole = rank in place.held.wholes[bundle.name]
        if whole or rank in schedule.owners(bundle):
            found[bundle.name] = FlatBundle(
                schedule,
                place.model,
                bundle,
                rank,
                whole=whole,
                gradients=whole,
                device=place.device,
                storage=storages.get(bundle.tensors) if whole else None,
                summed=bundle.name in summed,
            )
    return found


def summed_apart(schedule: Schedule) -> set[str]:
    """Bundles whose summed gradients have room of their own: not where an all-reduce leaves them in place."""
    return {op.target for op in schedule.ops if isinstance(op, Compute) and op.phase in SUMMING} | {
        op.value.name
        for op in schedule.ops
        if isinstance(op, Collective) and op.kind is CollectiveKind.REDUCE_SCATTER and op.value.kind.on_bundle
    }


def _shared_storages(place: _Place) -> dict[tuple[str, ...], Storage]:
    """The storage of tensors whose bundles are pieces of them, where the rank uses any such bundle as a whole."""
    sharing = Counter(b.tensors for b in place.schedule.bundles)
    used = [b.tensors for b in place.schedule.bundles if place.rank in place.held.wholes[b.name]]
    dtype = dtype_of(place.schedule.itemsize)
    return {
        tensors: Storage(place.model, tensors, dtype, whole=True, gradients=True, device=place.device)
        for tensors in dict.fromkeys(used)
        if sharing[tensors] > 1
    }


def _initialise(place: _Place, bundle: Bundle, flat: FlatBundle | None, initial: dict[str, Tensor]) -> None:
    """Bring the bundle's initial parameters from its first owner to all who hold it, in one order for all bundles."""
    schedule, model, rank = place.schedule, place.model, place.rank
    root = schedule.owners(bundle)[0]
    holders = sorted({*place.held.wholes[bundle.name], *schedule.owners(bundle)} - {root})
    if rank != root and rank not in holders:
        return
    if flat is None:
        raise RuntimeError(f"rank {rank} should hold {bundle.name}")
    if rank == root:
        values = torch.cat([initial[t].reshape(-1) for t in bundle.tensors])
        values = values[bundle.start : bundle.start + bundle.numel]
        for r in holders:
            dist.send(take_local(schedule, model, bundle, r, values), r)
        values = take_local(schedule, model, bundle, rank, values)
    else:
        values = torch.empty(flat.numel, dtype=flat.dtype)
        dist.recv(values, root)
    put_whole(flat, values)


def put_whole(flat: FlatBundle, values: Tensor) -> None:
    """Put parameters where a rank holds them: `values` are all elements of its vector."""
    if flat.whole is not None and flat.bundle.keep is not Keep.SLICES:
        flat.whole[: flat.numel].copy_(values)
    elif flat.own is not None:
        flat.own.copy_(values[flat.lo : flat.hi])


def _bring_state(place: _Place, piece: SplitBlock) -> None:
    """Make room for a block on the rank's device, and bring its buffers and frozen parameters there."""
    if any(t.is_meta for t in (*piece.module.parameters(), *piece.module.buffers())):
        piece.module.to_empty(device=place.device)
    else:
        piece.module.to(place.device)
    _exchange_state(piece.module, trained_names(piece), place.rank, place.held, piece.name)


def trained_names(piece: SplitBlock) -> set[str]:
    """The qualified names at which a block holds what is trained; a tied weight may have another there."""
    return {place for places in piece.places.values() for place in places}


def _held_block(
    place: _Place, piece: SplitBlock, storage_of: Mapping[str, Storage], made: dict[str, nn.Parameter], seed: int
) -> HeldBlock:
    """A block that the rank computes, of which it may hold a shard of the features only."""
    schedule = place.schedule
    block = HeldBlock(
        name=piece.name,
        module=piece.module,
        parameters=_parameters(place, piece, storage_of, made),
        trained=frozenset(trained_names(piece)),
        dropouts=_dropouts(piece.module, seed),
    )
    piece.module.train()
    shard = schedule.cut(piece.name)
    return block if shard is None else cut_block(block, shard, schedule.features(shard, place.rank))


def _parameters(
    place: _Place, piece: SplitBlock, storage_of: Mapping[str, Storage], made: dict[str, nn.Parameter]
) -> tuple[tuple[str, nn.Parameter], ...]:
    """Put views of flat vectors in the place of the block's parameters, and return them by name.

    Blocks may share a layer, and with it its parameters, so there is one view of each: those that were `made`.
    """
    found = []
    for name in piece.parameters:
        storage = storage_of[name]
        if storage.whole is None:
            raise RuntimeError(f"{name} is not whole at rank {place.rank}")
        if name not in made:
            made[name] = nn.Parameter(storage.parameter_of[name])
        parameter = made[name]
        piece.rebind(name, parameter)
        found.append((name, parameter))
    return tuple(found)


def _dropouts(module: nn.Module, seed: int) -> tuple[CounterDropout, ...]:
    """Replace the dropout of a block by one that draws the same masks however samples are split, and return them."""
    found: list[CounterDropout] = []

    def make(key: str, p: float) -> nn.Module:
        found.append(CounterDropout(key, p, seed))
        return found[-1]

    replace_dropout(module, make)
    return tuple(found)


def _exchange_state(module: nn.Module, trained: Collection[str], rank: int, held: Holdings, block: str) -> None:
    """Bring buffers and frozen parameters from the block's source to the ranks that compute it."""
    source = held.block_source[block]
    receivers = [r for r in held.computes[block] if r != source]
    for tensor in state_of(module, trained).values():
        host = tensor.detach().to("cpu", copy=True).reshape(-1)
        if rank == source:
            for r in receivers:
                dist.send(host, r)
        elif rank in receivers:
            dist.recv(host, source)
            with torch.no_grad():
                tensor.copy_(host.view(tensor.shape))


def state_of(module: nn.Module, trained: Collection[str]) -> dict[str, Tensor]:
    """Buffers and frozen parameters of a block, by qualified name, in one order in every rank."""
    found = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: found[name] for name in sorted(found) if name not in trained}
