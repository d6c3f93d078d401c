"""Hypothesis strategies: schedules that print, and schedules that are legal."""

from __future__ import annotations

import string
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from hypothesis import strategies as st

from stanza_sim.base.errors import InputError
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import (
    Algorithm,
    Axis,
    Bundle,
    Carrier,
    Collective,
    CollectiveKind,
    Compute,
    Cut,
    Group,
    Layout,
    Op,
    Pattern,
    Phase,
    Ranks,
    Schedule,
    Transfer,
    Value,
    ValueKind,
    Wire,
)
from stanza_sim.schedule.clipping import with_clipping
from stanza_sim.schedule.legality import value_bytes
from stanza_sim.schedule.ops import CHUNK_BYTES
from stanza_sim.schedule.wires import Wires, with_wires

NAMES = st.text(string.ascii_letters + string.digits + "_.-/", min_size=1, max_size=8).filter(
    lambda t: t[0] not in ".-/" and not t.endswith((".recv", ".sent"))
)
RANKS = st.sets(st.integers(0, 40), min_size=1, max_size=8).map(Ranks.of)


@st.composite
def printable_schedules(draw: st.DrawFn) -> Schedule:
    """Any combination of fields; most of them are not legal."""
    groups = draw(st.dictionaries(NAMES, RANKS, min_size=1, max_size=4))
    group = st.sampled_from(sorted(groups))
    bundles = draw(
        st.lists(
            st.builds(
                Bundle,
                name=NAMES,
                tensors=st.lists(NAMES, max_size=3).map(tuple),
                numel=st.integers(0, 10**9),
                owners=group,
                layout=st.sampled_from(Layout),
                start=st.sampled_from([0, 0, 7]),
            ),
            max_size=3,
            unique_by=lambda b: b.name,
        )
    )
    features = st.integers(0, 10**9)
    cut = st.builds(Cut, block=NAMES, ranks=group, axis=st.sampled_from(Axis), inputs=features, outputs=features)
    names = draw(st.lists(NAMES, max_size=8, unique=True))
    value = st.one_of(
        st.just(Value(ValueKind.LABELS)),
        st.builds(Value, st.sampled_from([k for k in ValueKind if k is not ValueKind.LABELS]), NAMES),
    )
    ops: list[Op] = []
    for name in names:
        seen = [op.name for op in ops] or ["none"]
        deps = st.lists(
            st.builds(str.__add__, st.sampled_from(seen), st.sampled_from(["", ".recv", ".sent"])), max_size=3
        ).map(tuple)
        common: dict[str, st.SearchStrategy[object]] = {"after": deps, "after_previous": deps}
        ops.append(
            draw(
                st.one_of(
                    st.builds(
                        Compute,
                        name=st.just(name),
                        ranks=group,
                        phase=st.sampled_from(Phase),
                        target=NAMES,
                        microbatch=st.integers(0, 3),
                        lane=st.one_of(st.just("main"), NAMES),
                        **common,
                    ),
                    st.builds(
                        Transfer,
                        name=st.just(name),
                        src=group,
                        dst=group,
                        pattern=st.sampled_from(Pattern),
                        values=st.lists(value, min_size=1, max_size=3).map(tuple),
                        nbytes=st.integers(0, 10**12),
                        channel=st.one_of(st.just("p2p"), NAMES),
                        priority=st.integers(-5, 9),
                        credit=st.sampled_from([0, 0, 1, 3]),
                        microbatch=st.integers(0, 3),
                        arrives_as=st.one_of(st.none(), st.integers(-1, 9)),
                        wire=st.sampled_from(Wire),
                        pairs=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=3).map(tuple),
                        slices=st.one_of(st.just(""), NAMES),
                        **common,
                    ),
                    st.builds(
                        Collective,
                        name=st.just(name),
                        kind=st.sampled_from(CollectiveKind),
                        ranks=group,
                        value=value,
                        nbytes=st.integers(0, 10**12),
                        algorithm=st.sampled_from(Algorithm),
                        by=st.sampled_from(Carrier),
                        local=st.integers(0, 9),
                        chunk=st.one_of(st.just(CHUNK_BYTES), st.integers(0, 10**9)),
                        microbatch=st.integers(0, 3),
                        root=st.one_of(st.none(), st.integers(0, 40)),
                        wire=st.sampled_from(Wire),
                        **common,
                    ),
                )
            )
        )
    return Schedule(
        name=draw(NAMES),
        model=draw(NAMES),
        world_size=draw(st.integers(1, 10**6)),
        batch_per_worker=draw(st.integers(1, 10**4)),
        groups=tuple(Group(name=n, ranks=r) for n, r in groups.items()),
        bundles=tuple(bundles),
        cuts=tuple(draw(st.lists(cut, max_size=2))),
        ops=tuple(ops),
        microbatches=draw(st.integers(1, 4)),
        itemsize=draw(st.sampled_from([2, 4, 8])),
    )


class _Draft:
    """A data-parallel iteration to which exchanges are added bundle by bundle."""

    def __init__(
        self,
        model: ModelProfile,
        world_size: int,
        workers: int,
        batch: int,
        microbatches: int,
        algorithms: list[Algorithm | None],
    ) -> None:
        self.algorithms = algorithms
        self.s = Schedule(
            name="random",
            model=model.name,
            world_size=world_size,
            batch_per_worker=batch,
            groups=(Group(name="worker", ranks=Ranks.of(range(workers))),),
            bundles=(),
            ops=(),
            microbatches=microbatches,
            itemsize=model.itemsize,
        )
        self.model = model
        self.ops: list[Op] = []
        self.backward: dict[str, list[str]] = {}
        self.params_ready: dict[str, str] = {}
        self.credits: dict[str, int] = {}  # of channels

    def add(self, op: Op) -> str:
        self.ops.append(op)
        return op.name

    def passes(self) -> None:
        for m in range(self.s.microbatches):
            last: tuple[str, ...] = ()
            for b in self.model.blocks:
                last = (self._pass(Phase.FORWARD, f"f.{b.name}.{m}", b.name, m, last),)
            last = (self._pass(Phase.LOSS, f"loss.{m}", self.model.blocks[-1].name, m, last),)
            for b in reversed(self.model.blocks):
                last = (self._pass(Phase.BACKWARD, f"b.{b.name}.{m}", b.name, m, last),)
                self.backward.setdefault(b.name, []).append(last[0])

    def _pass(self, phase: Phase, name: str, block: str, m: int, after: tuple[str, ...]) -> str:
        return self.add(Compute(name=name, ranks="worker", phase=phase, target=block, microbatch=m, after=after))

    def bundle(self, block: str, owners: str, layout: Layout) -> Bundle:
        made = Bundle(
            name=f"w.{block}",
            tensors=tuple(t.name for t in self.model.block(block).tensors),
            numel=self.model.block(block).numel,
            owners=owners,
            layout=layout,
        )
        self.s = replace(self.s, bundles=(*self.s.bundles, made))
        return made

    def group(self, name: str, ranks: Ranks) -> str:
        self.s = replace(self.s, groups=(*self.s.groups, Group(name=name, ranks=ranks)))
        return name

    def on_bundle(self, phase: Phase, bundle: Bundle, ranks: str, lane: str, after: str) -> str:
        name = f"{phase}.{bundle.name}"
        return self.add(Compute(name=name, ranks=ranks, phase=phase, target=bundle.name, lane=lane, after=(after,)))

    def move(
        self, name: str, src: str, dst: str, value: Value, channel: str, priority: int, after: tuple[str, ...]
    ) -> str:
        return self.add(
            Transfer(
                name=name,
                src=src,
                dst=dst,
                pattern=Pattern.ALL_PAIRS,
                values=(value,),
                nbytes=value_bytes(self.s, self.model, value, 1),
                channel=channel,
                priority=priority,
                credit=self.credits.get(channel, 0),
                after=after,
            )
        )

    def collective(self, kind: CollectiveKind, value: Value, after: tuple[str, ...], root: int | None = None) -> str:
        way = self.algorithms[len(self.ops) % len(self.algorithms)]
        hierarchical = way is Algorithm.HIERARCHICAL
        return self.add(
            Collective(
                name=f"{kind}.{value.name}",
                kind=kind,
                ranks="worker",
                value=value,
                nbytes=value_bytes(self.s, self.model, value, 1),
                algorithm=way or Algorithm.RING,
                by=Carrier.STEPS if way else Carrier.BACKEND,
                local=2 if hierarchical else 0,
                chunk=1000 if way in (Algorithm.TREE, Algorithm.HIERARCHICAL) else CHUNK_BYTES,
                root=root,
                after=after,
            )
        )

    def finish(self, extra: Callable[[int, Op], tuple[str, ...]]) -> Schedule:
        ops: list[Op] = []
        for i, op in enumerate(self.ops):
            made = replace(op, after=tuple(dict.fromkeys((*op.after, *extra(i, op)))))
            if isinstance(made, Compute) and made.phase is Phase.FORWARD and made.target in self.params_ready:
                made = replace(made, after_previous=(self.params_ready[made.target],))
            ops.append(made)
        return replace(self.s, ops=tuple(ops))


@st.composite
def legal_schedules(draw: st.DrawFn, model: ModelProfile, max_world: int = 6, *, rounded: bool = True) -> Schedule:
    """Data parallelism in which every block's parameters are exchanged in a way of their own.

    All-reduce; reduce-scatter, update, all-gather; servers anywhere, whole or cut; one owner that broadcasts.
    Collectives are the backend's, or go step by step by any algorithm. Half of them take the norm of all gradients
    before they update.
    """
    world = draw(st.integers(2, max_world))
    workers = draw(st.integers(1, world))
    ways: st.SearchStrategy[list[Algorithm | None]] = st.one_of(
        st.just([None]), st.lists(st.sampled_from([None, *Algorithm]), min_size=1, max_size=3)
    )
    microbatches = draw(st.sampled_from([1, 2]))
    draft = _Draft(model, world, workers, batch=4, microbatches=microbatches, algorithms=draw(ways))
    draft.passes()
    draft.credits = {"x": draw(st.integers(0, 2)), "y": draw(st.integers(0, 1))}
    small = st.integers(0, 3)
    channel, lane = st.sampled_from(["x", "y"]), st.sampled_from(["main", "side"])
    for b in reversed(model.blocks):
        if not b.tensors:
            continue
        ready = tuple(draft.backward[b.name])
        grad, param = Value(ValueKind.GRAD, f"w.{b.name}"), Value(ValueKind.PARAM, f"w.{b.name}")
        way = draw(st.sampled_from(["all_reduce", "scatter", "servers", "broadcast"]))
        if way == "all_reduce":
            bundle = draft.bundle(b.name, "worker", Layout.REPLICATED)
            summed = draft.collective(CollectiveKind.ALL_REDUCE, grad, ready)
            draft.params_ready[b.name] = draft.on_bundle(Phase.UPDATE, bundle, "worker", draw(lane), summed)
        elif way == "scatter":
            bundle = draft.bundle(b.name, "worker", Layout.SHARDED)
            summed = draft.collective(CollectiveKind.REDUCE_SCATTER, grad, ready)
            updated = draft.on_bundle(Phase.UPDATE, bundle, "worker", draw(lane), summed)
            draft.params_ready[b.name] = draft.collective(CollectiveKind.ALL_GATHER, param, (updated,))
        else:
            owner = 0 if way == "broadcast" else None
            ranks = {owner} if owner is not None else draw(st.sets(st.integers(0, world - 1), min_size=1, max_size=3))
            owners = draft.group(f"o.{b.name}", Ranks.of(ranks))
            layout = Layout.SHARDED if len(ranks) > 1 else Layout.REPLICATED
            bundle = draft.bundle(b.name, owners, layout)
            push = draft.move(f"push.{b.name}", "worker", owners, grad, draw(channel), draw(small), ready)
            at = draw(lane)
            summed = draft.on_bundle(Phase.REDUCE, bundle, owners, at, push)
            updated = draft.on_bundle(Phase.UPDATE, bundle, owners, at, summed)
            if way == "broadcast":
                draft.params_ready[b.name] = draft.collective(CollectiveKind.BROADCAST, param, (updated,), root=owner)
            else:
                pull = f"pull.{b.name}"
                draft.params_ready[b.name] = draft.move(
                    pull, owners, "worker", param, draw(channel), draw(small), (updated,)
                )
    wanted = draw(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), max_size=3))
    ops = draft.ops
    more: dict[int, tuple[str, ...]] = {}
    for a, b in wanted:
        i = a % len(ops)
        j = b % (i + 1)
        if i != j and _gates(draft.s, ops[j], ops[i]):
            more[i] = (*more.get(i, ()), ops[j].name)
    made = draft.finish(lambda i, _: more.get(i, ()))
    if draw(st.booleans()):
        with suppress(InputError):  # where what was drawn above puts gradients behind an update
            made = with_clipping(made)
    if not rounded:
        return made
    return with_wires(
        made, model, Wires(activations=draw(st.sampled_from(Wire)), gradients=draw(st.sampled_from(Wire)))
    )


def _gates(s: Schedule, earlier: Op, later: Op) -> bool:
    """Whether a dependency of `later` on `earlier` gates any rank."""
    at = set(s.group(later.src if isinstance(later, Transfer) else later.ranks))
    if isinstance(earlier, Transfer):
        return bool(at & (set(s.group(earlier.src)) | set(s.group(earlier.dst))))
    return bool(at & set(s.group(earlier.ranks)))
