"""What a rank holds: the blocks that it computes, and the flat parameters of the bundles that it uses or owns.

Each bundle is initialised by its first owner, which builds the module on the CPU under the run's seed; other
ranks build it on the meta device, where it takes no memory, and make room only for what they hold.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stanza_sim.base.errors import InputError
from stanza_sim.execute.train.dropout import CounterDropout
from stanza_sim.execute.train.flat import FlatBundle, Storage, dtype_of
from stanza_sim.execute.train.slices import HeldBlock, cut_block, take_local
from stanza_sim.model.extract import build_module, replace_dropout, split
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Bundle, Collective, Compute, Phase, Schedule, Transfer, ValueKind


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
            case Compute(phase=Phase.PARTIAL | Phase.REDUCE | Phase.RECONSTRUCT | Phase.UPDATE):
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
        for t in block.tensors:
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
    initialises = rank in held.block_source.values() or any(schedule.owners(b)[0] == rank for b in schedule.bundles)
    torch.manual_seed(seed)
    module = build_module(model, device="cpu" if initialises else "meta")
    real = initialises or not any(p.is_meta for p in module.parameters())
    initial = {n: p.detach().clone() for n, p in module.named_parameters()} if real else {}
    flats: dict[str, FlatBundle] = {}
    sharing = Counter(b.tensors for b in schedule.bundles)
    storages: dict[tuple[str, ...], Storage] = {}
    for bundle in schedule.bundles:
        whole = rank in held.wholes[bundle.name]
        owner = rank in schedule.owners(bundle)
        if whole and sharing[bundle.tensors] > 1 and bundle.tensors not in storages:
            dtype = dtype_of(schedule.itemsize)
            made = Storage(model, bundle.tensors, dtype, whole=True, gradients=True, device=device)
            storages[bundle.tensors] = made
        if whole or owner:
            flats[bundle.name] = FlatBundle(
                schedule,
                model,
                bundle,
                rank,
                whole=whole,
                gradients=whole,
                device=device,
                storage=storages.get(bundle.tensors) if whole else None,
            )
    for bundle in schedule.bundles:
        _initialise(schedule, model, bundle, rank, held, flats.get(bundle.name), initial, device)
    blocks = []
    storage_of = {t: f.storage for f in flats.values() for t in f.storage.extents}
    for part in split(module, model):
        if rank != held.block_source.get(part.name) and rank not in held.computes[part.name]:
            continue
        if any(t.is_meta for t in (*part.module.parameters(), *part.module.buffers())):
            part.module.to_empty(device=device)
        else:
            part.module.to(device)
        _exchange_state(part.module, set(part.parameters), rank, held, part.name)
        if rank not in held.computes[part.name]:
            continue
        parameters = []
        for name in part.parameters:
            storage = storage_of[name]
            if storage.whole is None:
                raise RuntimeError(f"{name} is not whole at rank {rank}")
            parameter = nn.Parameter(storage.view(storage.whole, name))
            path, _, leaf = name.rpartition(".")
            setattr(part.module.get_submodule(path), leaf, parameter)
            parameters.append((name, parameter))
        dropouts: list[CounterDropout] = []

        def make(key: str, p: float, dropouts: list[CounterDropout] = dropouts) -> nn.Module:
            dropouts.append(CounterDropout(key, p, seed))
            return dropouts[-1]

        replace_dropout(part.module, make)
        part.module.train()
        held_block = HeldBlock(
            name=part.name, module=part.module, parameters=tuple(parameters), dropouts=tuple(dropouts)
        )
        cut = schedule.cut(part.name)
        if cut is not None:
            held_block = cut_block(held_block, cut, schedule.features(cut, rank))
        blocks.append(held_block)
    return held, blocks, flats


def _initialise(
    schedule: Schedule,
    model: ModelProfile,
    bundle: Bundle,
    rank: int,
    held: Holdings,
    flat: FlatBundle | None,
    initial: dict[str, Tensor],
    device: torch.device,
) -> None:
    """Bring the bundle's initial parameters from its first owner to all who hold it, in one order for all bundles."""
    root = schedule.owners(bundle)[0]
    holders = sorted({*held.wholes[bundle.name], *schedule.owners(bundle)} - {root})
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
    if flat.whole is not None:
        flat.whole[: flat.numel].copy_(values)
    elif flat.own is not None:
        flat.own.copy_(values[flat.lo : flat.hi])


def _exchange_state(module: nn.Module, trained: set[str], rank: int, held: Holdings, block: str) -> None:
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


def state_of(module: nn.Module, trained: set[str]) -> dict[str, Tensor]:
    """Buffers and frozen parameters of a block, by qualified name, in one order in every rank."""
    found = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: found[name] for name in sorted(found) if name not in trained}
