"""Fully sharded data parallelism: every rank computes the whole model on its samples and owns a slice of everything.

Sources: Rajbhandari et al., ZeRO: Memory Optimizations Toward Training Trillion Parameter Models, SC20 (stages 1 to 3);
Zhao et al., PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel, VLDB 2023 (units, prefetching, hybrid
sharding). The order of collectives is that of `torch.distributed.fsdp.fully_shard`, which has one communicator for all
of them: the all-gather that is prefetched in the backward pass goes ahead of the reduce-scatter of the unit whose
backward pass runs meanwhile.

A unit is a run of blocks that are gathered together. Tensors that blocks of several units use (tied weights) are a unit
of their own, the root: it is gathered first and whole until the last of its uses, as torch has it. The last unit stays
whole from its forward to its backward pass, since it would be gathered again at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt

from stanza_sim.base.errors import InputError
from stanza_sim.base.units import Size
from stanza_sim.model.profile import Block, ModelProfile, ParamTensor
from stanza_sim.schedule import Bundle, CollectiveKind, Keep, Layout, Phase, Schedule, Value, ValueKind
from stanza_sim.schedule.ops import slice_bounds
from stanza_sim.strategies._shared.builder import Builder

REDUCED_BEHIND = 2
"""The backward pass of a unit waits for the reduce-scatter of the unit so many before it: as in torch, gradients of one
unit are computed while those of another are reduced."""
UNITS_MIB = (25, 100)
"""Sizes of units that `space` tries, beside one block."""
LARGE_HOSTS = 64
"""Up to so many ranks `space` tries hybrid sharding: it has groups for each host."""


class Settings(BaseModel):
    """Settings of `fsdp`."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    stage: Literal[1, 2, 3] = Field(
        3,
        description="ZeRO's stage: 1 shards optimiser state, 2 gradients too, 3 (FSDP) parameters too, each of which "
        "is then whole only while it is needed.",
    )
    unit_blocks: StrictInt | None = Field(
        None, ge=1, description="Blocks with parameters in a unit, which is gathered as a whole. Default: 1."
    )
    unit_size: Size | None = Field(None, description="Instead: blocks are joined until a unit has so many bytes.")
    unit_starts: tuple[str, ...] | None = Field(
        None, description="Instead: names of the blocks with which units begin; the first block begins one anyway."
    )
    prefetch: StrictInt | None = Field(
        None,
        ge=0,
        description="Stage 3: how many units are gathered ahead of the one that is computed. Default: 1.",
    )
    reshard_after_forward: StrictBool | None = Field(
        None,
        description="Stage 3: keep only the slice from forward to backward pass and gather again, or keep units whole "
        "until their backward pass is over. Default: true.",
    )
    local: StrictInt | None = Field(
        None,
        ge=2,
        description="Hybrid sharding (HSDP): ranks of a host, over which everything is sharded; the sums of slices are "
        "all-reduced across hosts. Ranks r with the same r // local are on one host. Default: shard over all ranks.",
    )
    overlap: StrictBool = Field(
        True, description="Reduce-scatter a unit as soon as its gradients are there, or all after the backward pass."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unit:
    """Blocks that are computed one after another, with the bundle of their parameters (none if all are in the root)."""

    blocks: tuple[Block, ...]
    bundle: Bundle | None


def build(model: ModelProfile, *, world_size: int, batch_per_worker: int, settings: Settings) -> Schedule:
    """Return the schedule; raises `InputError` for settings that do not fit each other, the model or the ranks.

    Bytes that each of N ranks sends, and receives, per iteration, by rings, of a model of S bytes: at stages 1 and 2,
    and at stage 3 if it does not reshard after forward, (N-1)/N 2S: a reduce-scatter and an all-gather of each unit.
    Else (N-1)/N (3S - L - R): all units but the last, of L bytes, and the root, of R bytes, are gathered twice. With
    `local` ranks on each of H hosts, `local` takes the place of N, and the all-reduce of slices across hosts adds
    2(H-1)/H S/local. Where gradients travel in 2 bytes an element, an S of these is half of one.

    Bytes of parameters and gradients that each rank holds at once, without what is kept of the own slices, S/N, S/N of
    optimiser state and its sums 2S/N: at stage 1 S + 2S, since there are gradients of two iterations; at stage 2 S and
    the most of any two units in a row, as gradients of one are computed while those of another are reduced; at stage 3,
    with p units ahead, the most over units u of what u-p to u (all up to u without resharding) and u to u+1 have, since
    when u goes backward these are whole, parameters and gradients (no gradients of u+1 with p = 0, whose all-gather
    comes behind their reduce-scatter). The root is whole all the time, and its gradients from its last use on.
    """
    _require_used(settings)
    local = settings.local or world_size
    if world_size % local:
        raise InputError(
            f"hosts of {local} ranks do not divide {world_size} ranks",
            where="fsdp: local",
            hint="hybrid sharding needs as many ranks on every host: set local to a divisor of the number of ranks",
        )
    b = Builder("fsdp", model, world_size, batch_per_worker)
    made = _Made(b, settings, local)
    made.passes()
    return made.finish()


class _Made:
    """The schedule in the making."""

    def __init__(self, b: Builder, settings: Settings, local: int) -> None:
        self.b, self.settings = b, settings
        n, hosts = b.world_size, b.world_size // local
        self.workers = b.group("worker", range(n))
        self.runs, self.across = [self.workers], list[str]()
        if hosts > 1:
            self.runs = [b.group(f"host{h}", range(h * local, (h + 1) * local)) for h in range(hosts)]
            self.across = [b.group(f"slice{i}", range(i, n, local)) for i in range(local)]
        self.hosts = hosts
        self.keep = {1: Keep.ALL, 2: Keep.PARAMETERS, 3: Keep.SLICES}[settings.stage]
        self.sharded = settings.stage == 3
        self.again = self.sharded and settings.reshard_after_forward is not False
        self.prefetch = 1 if settings.prefetch is None else settings.prefetch
        self.units, self.root = self._units()
        self.updates: dict[str, str] = {}  # bundle -> op
        self.reduced: dict[str, list[str]] = {}  # bundle -> reduce-scatters
        self.summed: dict[str, list[str]] = {}  # bundle -> what it is summed over all owners after
        self.renewing: list[tuple[int, Bundle]] = []  # (first all-gather of an iteration, bundle)

    def _units(self) -> tuple[list[_Unit], Bundle | None]:
        """The units in forward order, and the bundle of the tensors that several of them use."""
        runs = _grouped(self.b.model, self.settings)
        used: Counter[str] = Counter(
            name for run in runs for name in {t.name for block in run for t in (*block.tensors, *block.tied)}
        )
        root = [t for run in runs for block in run for t in block.tensors if used[t.name] > 1]
        shared = self._bundle("root", root) if root else None
        units = []
        for i, run in enumerate(runs):
            own = [t for block in run for t in block.tensors if used[t.name] == 1]
            units.append(_Unit(blocks=tuple(run), bundle=self._bundle(f"unit{i}", own) if own else None))
        return units, shared

    def _bundle(self, name: str, tensors: Sequence[ParamTensor]) -> Bundle:
        """A bundle in slices over every run of owners."""
        made = self.b.bundle(name, tensors, self.workers, Layout.SHARDED)
        found = replace(made, replicas=self.hosts, keep=self.keep)
        self.b.bundles[found.name] = found
        return found

    # ---- passes ----------------------------------------------------------------------------------------------------

    def passes(self) -> None:
        """Forward, loss and backward, with what is gathered and reduced among them in the order of the communicator."""
        b, model = self.b, self.b.model
        last = len(self.units) - 1
        begun: list[str] = []  # by unit: the op after which its pass is over
        gathered: dict[int, list[str]] = {}
        root = self._gather(self.root, "ag", []) if self.sharded and self.root else []
        for u, unit in enumerate(self.units):
            for v in range(len(gathered), min(u + self.prefetch, last) + 1):
                behind = v - 1 - self.prefetch
                gathered[v] = self._first(self.units[v].bundle, begun[behind : behind + 1] if behind >= 0 else [])
            for block in unit.blocks:
                waits = [*begun[-1:], *(gathered[u] + (root if u == 0 else []) if block is unit.blocks[0] else [])]
                done = b.compute(Phase.FORWARD, block.name, self.workers, after=waits)
                begun = [*begun[:u], done]
        before = b.compute(Phase.LOSS, model.blocks[-1].name, self.workers, after=begun[-1:])
        again: dict[int, list[str]] = {last: []}
        done_after: dict[int, str] = {last + 1: before}
        for u in range(last, -1, -1):
            for v in range(min(again) - 1, max(u - self.prefetch, 0) - 1, -1):
                after = [done_after[v + 1 + self.prefetch] if v + 1 + self.prefetch <= last else before]
                again[v] = self._gather(self.units[v].bundle, "again", after) if self.again else []
            unit = self.units[u]
            reduced = self._reduced_before(u)
            for block in reversed(unit.blocks):
                first = block is unit.blocks[-1]
                before = b.compute(
                    Phase.BACKWARD, block.name, self.workers, after=[before, *(again[u] + reduced if first else [])]
                )
            done_after[u] = before
            if self.settings.overlap and unit.bundle is not None:
                self._reduce(unit.bundle, before)
        if not self.settings.overlap:
            for unit in reversed(self.units):
                if unit.bundle is not None:
                    self._reduce(unit.bundle, before)
        if self.root is not None:
            self._reduce(self.root, before)

    def _first(self, bundle: Bundle | None, after: list[str]) -> list[str]:
        """Gather a unit for the first time in an iteration, if it is in slices then."""
        return self._gather(bundle, "ag", after) if self.sharded else []

    def _gather(self, bundle: Bundle | None, kind: str, after: Sequence[str]) -> list[str]:
        """All-gather the parameters of `bundle` in each run of owners; those of stage 3 begin with the last update."""
        if bundle is None:
            return []
        names = []
        for run in self.runs:
            if kind == "ag" and self.sharded:
                self.renewing.append((len(self.b.ops), bundle))
            names.append(self._collective(kind, CollectiveKind.ALL_GATHER, bundle, run, ValueKind.PARAM, after))
        return names

    def _reduced_before(self, u: int) -> list[str]:
        """What the backward pass of unit `u` waits for, lest more gradients are whole at once than those of two."""
        later = [unit.bundle for unit in self.units[u + REDUCED_BEHIND :] if unit.bundle is not None]
        return self.reduced.get(later[0].name, []) if self.settings.stage > 1 and later else []

    def _reduce(self, bundle: Bundle, after: str) -> None:
        """Sum the gradients of `bundle`, so that each owner has the sum of its slice."""
        names = [
            self._collective("rs", CollectiveKind.REDUCE_SCATTER, bundle, run, ValueKind.GRAD, [after])
            for run in self.runs
        ]
        self.reduced[bundle.name] = self.summed[bundle.name] = names
        if self.across:
            slices = enumerate(self.across)
            having = [(i, group) for i, group in slices if len(range(*slice_bounds(bundle.numel, len(self.across), i)))]
            self.summed[bundle.name] = [] if len(having) == len(self.across) else list(names)  # for those without
            self.summed[bundle.name] += [
                self._collective("ar", CollectiveKind.ALL_REDUCE, bundle, group, ValueKind.SUM, names, slice_=i)
                for i, group in having
            ]

    def _collective(
        self,
        prefix: str,
        kind: CollectiveKind,
        bundle: Bundle,
        ranks: str,
        value: ValueKind,
        after: Iterable[str],
        slice_: int | None = None,
    ) -> str:
        """Add a collective on a value of `bundle`, or of one slice of it."""
        numel = bundle.numel
        if slice_ is not None:
            lo, hi = slice_bounds(numel, len(self.across), slice_)
            numel = hi - lo
        name = f"{prefix}.{bundle.name}" + (f".{ranks}" if ranks != self.workers else "")
        return self.b.collective(name, kind, ranks, Value(value, bundle.name), numel, after=after)

    # ---- the end of an iteration -----------------------------------------------------------------------------------

    def finish(self) -> Schedule:
        """Update every slice; below stage 3 gather what is updated, in the order in which it is needed."""
        b = self.b
        order = [unit.bundle for unit in reversed(self.units) if unit.bundle is not None]
        for bundle in [*order, *([self.root] if self.root else [])]:
            self.updates[bundle.name] = b.compute(
                Phase.UPDATE, bundle.name, self.workers, after=self.summed[bundle.name]
            )
        params_ready: dict[str, list[str]] = {}
        for bundle in [*([self.root] if self.root else []), *reversed(order)]:
            ready = [self.updates[bundle.name]]
            if not self.sharded:
                ready = self._gather(bundle, "ag", ready)
            for block in self._users(bundle):
                params_ready.setdefault(block, []).extend(ready)
        b.set_params_ready(params_ready)
        for i, bundle in self.renewing:
            b.ops[i] = replace(b.ops[i], after_previous=(self.updates[bundle.name],))
        return b.finish()

    def _users(self, bundle: Bundle) -> list[str]:
        """The blocks that use tensors of `bundle`."""
        names = set(bundle.tensors)
        return [x.name for x in self.b.model.blocks if names & {t.name for t in (*x.tensors, *x.tied)}]


def _grouped(model: ModelProfile, settings: Settings) -> list[list[Block]]:
    """The blocks in units, in order; blocks without parameters are in the unit before them, or in the first."""
    starts, names = set(settings.unit_starts or ()), [block.name for block in model.blocks]
    if unknown := sorted(starts.difference(names)):
        raise InputError(
            f"model {model.name} has no block {unknown[0]}",
            where="fsdp: unit_starts",
            hint=f"its blocks are {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}",
        )
    most = settings.unit_blocks or 1
    runs: list[list[Block]] = [[]]
    for block in model.blocks:
        held = [x for x in runs[-1] if x.tensors]
        if settings.unit_starts is not None:
            full = block.name in starts
        elif settings.unit_size is not None:
            full = bool(block.tensors) and sum(x.numel for x in held) * model.itemsize >= settings.unit_size
        else:
            full = bool(block.tensors) and len(held) >= most
        if full and runs[-1]:
            runs.append([])
        runs[-1].append(block)
    return runs


def _require_used(settings: Settings) -> None:
    """Raise `InputError` for settings of another stage, and for units that are given twice."""
    if settings.stage != 3:
        for key in ("prefetch", "reshard_after_forward"):
            if getattr(settings, key) is not None:
                raise InputError(
                    f"{key} is for stage 3: at stage {settings.stage} parameters stay whole",
                    where=f"fsdp: {key}",
                    hint=f"leave {key} out, or set stage: 3",
                )
    given = [key for key in ("unit_blocks", "unit_size", "unit_starts") if getattr(settings, key) is not None]
    if len(given) > 1:
        raise InputError(
            f"{' and '.join(given)} both say what a unit is", where=f"fsdp: {given[1]}", hint="leave all but one out"
        )


def space(model: ModelProfile, *, world_size: int, batch_per_worker: int, local_size: int) -> Iterator[Settings]:
    """Yield the stages with units of one block and of some sizes, sharded over all ranks or inside hosts.

    Over all ranks, at stage 3, also two units ahead, and without resharding. Settings that come to the same units are
    left out.
    """
    del batch_per_worker  # what fits does not depend on it
    units: dict[tuple[int, ...], dict[str, object]] = {}  # by where they end
    given: list[dict[str, object]] = [{}]
    given += [{"unit_size": f"{size}MiB"} for size in UNITS_MIB]
    for unit in given:
        runs = _grouped(model, Settings.model_validate(unit))
        units.setdefault(tuple(accumulate(len(run) for run in runs)), unit)
    stages: list[dict[str, object]] = [
        {},
        {"prefetch": 2},
        {"reshard_after_forward": False, "prefetch": 2},
        {"stage": 2},
        {"stage": 1},
    ]
    places: list[dict[str, object]] = [{}]
    if 1 < local_size < world_size <= LARGE_HOSTS and world_size % local_size == 0:
        places.append({"local": local_size})
    for place in places:  # inside hosts the stages alone: their ranks are not folded, so they take their time
        for stage in [{}, {"stage": 2}] if place else stages:
            for ends, unit in units.items():
                if stage != {"prefetch": 2} or len(ends) > 2:  # of two units the second is gathered ahead anyway
                    yield Settings.model_validate({**stage, **unit, **place})
