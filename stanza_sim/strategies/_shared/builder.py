"""What strategies share: adding ops with sizes filled in, the passes over blocks, exchange of gradients."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import replace
from itertools import chain, count

from stanza_sim.model.profile import Block, ModelProfile, ParamTensor
from stanza_sim.schedule.factors import factors_of_bundle
from stanza_sim.schedule.legality import value_bytes
from stanza_sim.schedule.ops import (
    Bundle,
    Collective,
    CollectiveKind,
    Compute,
    Cut,
    Group,
    Layout,
    Op,
    Pattern,
    Phase,
    Transfer,
    Value,
    ValueKind,
    Wire,
)
from stanza_sim.schedule.ranks import Ranks
from stanza_sim.schedule.schedule import Schedule
from stanza_sim.strategies._shared.collectives import How

MIB = 1024 * 1024


class Builder:
    """Collects groups, bundles and ops in program order; `finish` returns the schedule.

    `params_ready[block]` collects the ops after which a block's parameters are those of the next iteration. With
    `numbered` the names of passes end in the number of their micro-batch.
    """

    def __init__(
        self,
        name: str,
        model: ModelProfile,
        world_size: int,
        batch_per_worker: int,
        *,
        microbatches: int = 1,
        numbered: bool = False,
    ) -> None:
        self.name, self.model = name, model
        self.world_size, self.batch_per_worker = world_size, batch_per_worker
        self.microbatches, self.numbered = microbatches, numbered
        self.groups: dict[str, Group] = {}
        self.bundles: dict[str, Bundle] = {}
        self.cuts: list[Cut] = []
        self.ops: list[Op] = []
        self._header = Schedule(
            name=name,
            model=model.name,
            world_size=world_size,
            batch_per_worker=batch_per_worker,
            microbatches=microbatches,
            itemsize=model.itemsize,
            groups=(),
            bundles=(),
            ops=(),
        )

    def group(self, name: str, ranks: Iterable[int]) -> str:
        """Add a group and return its name."""
        self.groups[name] = Group(name=name, ranks=Ranks.of(ranks))
        return name

    def bundle(
        self, name: str, tensors: Sequence[ParamTensor], owners: str, layout: Layout = Layout.REPLICATED
    ) -> Bundle:
        """Add a bundle of `tensors` held by the group `owners`; if the name is taken, see `free_name`."""
        name = self.free_name(name)
        made = Bundle(
            name=name,
            tensors=tuple(t.name for t in tensors),
            numel=sum(t.numel for t in tensors),
            owners=owners,
            layout=layout,
        )
        self.bundles[name] = made
        return made

    def piece(self, name: str, tensor: ParamTensor, part: tuple[int, int], owners: str) -> Bundle:
        """Add a bundle of the elements [lo, hi) = `part` of one tensor; other bundles must have the rest."""
        name = self.free_name(name)
        lo, hi = part
        made = Bundle(name=name, tensors=(tensor.name,), numel=hi - lo, owners=owners, start=lo)
        self.bundles[name] = made
        return made

    def free_name(self, name: str, reserved: Container[str] = ()) -> str:
        """`name`, or the first of `name-2`, `name-3`, ... that no bundle has and that is not `reserved`."""
        numbered = (f"{name}-{i}" for i in count(2))
        return next(n for n in chain([name], numbered) if n not in self.bundles and n not in reserved)

    def blocks_of(self, bundle: Bundle) -> list[str]:
        """Names of the blocks that hold tensors of `bundle`, in forward order."""
        places = {self.model.place(self.model.holder(t)[0].name) for t in bundle.tensors}
        return [self.model.blocks[k].name for k in sorted(places)]

    def named(self, name: str, microbatch: int) -> str:
        """`name`, with the number of the micro-batch where passes are numbered."""
        return f"{name}/{microbatch}" if self.numbered else name

    def compute(
        self,
        phase: Phase,
        target: str,
        ranks: str,
        *,
        after: Iterable[str] = (),
        lane: str = "main",
        name: str = "",
        microbatch: int = 0,
    ) -> str:
        """Add a computation and return its op name."""
        short = {
            Phase.FORWARD: "fwd",
            Phase.RECOMPUTE: "again",
            Phase.BACKWARD: "bwd",
            Phase.BACKWARD_INPUT: "bwdi",
            Phase.BACKWARD_WEIGHT: "bwdw",
            Phase.PARTIAL: "sum",
            Phase.REDUCE: "red",
            Phase.RECONSTRUCT: "rec",
            Phase.UPDATE: "upd",
        }
        name = name or ("loss" if phase is Phase.LOSS else f"{short[phase]}.{target}")
        if not phase.on_bundle:
            name = self.named(name, microbatch)
        self.ops.append(
            Compute(
                name=name,
                ranks=ranks,
                phase=phase,
                target=target,
                microbatch=microbatch,
                lane=lane,
                after=tuple(after),
            )
        )
        return name

    def transfer(
        self,
        name: str,
        src: str,
        dst: str,
        pattern: Pattern,
        values: Sequence[Value],
        *,
        channel: str,
        priority: int = 0,
        credit: int = 0,
        pairs: tuple[tuple[int, int], ...] = (),
        after: Iterable[str] = (),
        microbatch: int = 0,
        arrives_as: int | None = None,
        wire: Wire = Wire.NATIVE,
        slices: str = "",
    ) -> str:
        """Add a transfer of whole `values` (sizes follow from the model) and return its op name."""
        nbytes = sum(self._value_bytes(v, wire) for v in values)
        self.ops.append(
            Transfer(
                name=name,
                src=src,
                dst=dst,
                pattern=pattern,
                values=tuple(values),
                nbytes=nbytes,
                channel=channel,
                priority=priority,
                credit=credit,
                microbatch=microbatch,
                arrives_as=arrives_as,
                wire=wire,
                pairs=pairs,
                slices=slices,
                after=tuple(after),
            )
        )
        return name

    def _value_bytes(self, value: Value, wire: Wire) -> int:
        if value.kind.on_bundle:
            return self.bundles[value.name].numel * self.model.itemsize
        if value.kind is ValueKind.FACTORS:
            _, factors = factors_of_bundle(self.name, self.model, self.bundles[value.name])
            return factors.numel(self.batch_per_worker) * wire.itemsize(self.model.itemsize)
        return value_bytes(self._header, self.model, value, self.microbatches, wire)

    def all_reduce(self, bundle: Bundle, ranks: str, how: How, *, after: Iterable[str]) -> str:
        """Add an all-reduce of the gradients of `bundle` and return its op name."""
        name, value = f"ar.{bundle.name}", Value(ValueKind.GRAD, bundle.name)
        return self.collective(name, CollectiveKind.ALL_REDUCE, ranks, value, bundle.numel, how, after=after)

    def collective(
        self,
        name: str,
        kind: CollectiveKind,
        ranks: str,
        value: Value,
        numel: int,
        how: How | None = None,
        *,
        after: Iterable[str],
    ) -> str:
        """Add a collective on `value`, of `numel` elements in all, by default the library's own; return its op name."""
        made = Collective(
            name=name, kind=kind, ranks=ranks, value=value, nbytes=numel * self.model.itemsize, after=tuple(after)
        )
        self.ops.append(made if how is None else replace(made, **how))
        return name

    def forward(
        self,
        blocks: Sequence[Block],
        ranks: str,
        *,
        after: Sequence[str] = (),
        microbatch: int = 0,
        lane: str = "main",
    ) -> list[str]:
        """Add the forward pass through `blocks`; the first op also waits for `after`."""
        names: list[str] = []
        for b in blocks:
            waits = names[-1:] or after
            names.append(self.compute(Phase.FORWARD, b.name, ranks, after=waits, microbatch=microbatch, lane=lane))
        return names

    def set_params_ready(self, params_ready: dict[str, list[str]]) -> None:
        """Make each block's forward op wait for the ops of the previous iteration that renew its parameters."""
        for i, op in enumerate(self.ops):
            if isinstance(op, Compute) and op.phase is Phase.FORWARD and params_ready.get(op.target):
                self.ops[i] = replace(op, after_previous=tuple(dict.fromkeys(params_ready[op.target])))

    def priority(self, bundle: Bundle) -> int:
        """Place of the bundle's first block in forward order: what the next forward pass needs first is least."""
        return self.model.place(self.blocks_of(bundle)[0])

    def finish(self) -> Schedule:
        """The schedule of everything added so far."""
        return replace(
            self._header,
            groups=tuple(self.groups.values()),
            cuts=tuple(self.cuts),
            bundles=tuple(self.bundles.values()),
            ops=tuple(self.ops),
        )


def fuse(tensors: Sequence[ParamTensor], itemsize: int, first_bytes: int, cap_bytes: int) -> list[list[ParamTensor]]:
    """Buckets by the rule of PyTorch's DistributedDataParallel, in launch order.

    Tensors are taken in reverse order of definition; a bucket is closed once it holds at least its limit
    (`first_bytes` for the first bucket, `cap_bytes` for the others); a tensor is never split. Source:
    torch `compute_bucket_assignment_by_size` (torch/csrc/distributed/c10d/reducer.cpp).
    """
    buckets: list[list[ParamTensor]] = [[]]
    size, limit = 0, first_bytes
    for t in reversed(tensors):
        if buckets[-1] and size >= limit:
            buckets.append([])
            size, limit = 0, cap_bytes
        buckets[-1].append(t)
        size += t.numel * itemsize
    return [b for b in buckets if b]


def fuse_to_fit(tensors: Sequence[ParamTensor], itemsize: int, most_bytes: int) -> list[list[ParamTensor]]:
    """Buckets by the rule of Horovod's fusion buffer, in launch order.

    Tensors are taken in the order in which their gradients are ready, which is taken to be the reverse of that of
    definition; a bucket ends before the tensor that would make it exceed `most_bytes`. A tensor is never split: one
    that does not fit goes alone. Source: Sergeev and Del Balso, arXiv 1802.05799, section 4. Horovod also looks for
    smaller tensors behind one that does not fit; here the order is kept.
    """
    buckets: list[list[ParamTensor]] = [[]]
    size = 0
    for t in reversed(tensors):
        nbytes = t.numel * itemsize
        if buckets[-1] and size + nbytes > most_bytes:
            buckets.append([])
            size = 0
        buckets[-1].append(t)
        size += nbytes
    return [b for b in buckets if b]


def balance(tensors: Sequence[ParamTensor], servers: int) -> dict[str, int]:
    """Assign each tensor to one of `servers` servers: the largest first, to the least loaded (longest
    processing time first, Graham 1969); ties go to the lowest server."""
    load = [0] * servers
    where: dict[str, int] = {}
    for t in sorted(tensors, key=lambda t: -t.numel):
        j = load.index(min(load))
        where[t.name] = j
        load[j] += t.numel
    return where
