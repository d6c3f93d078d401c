"""The order of ops at every rank, held against one computed rank by rank from the projections."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stanza_sim.model import zoo
from stanza_sim.model.profile import BlockKind, ModelProfile
from stanza_sim.schedule import (
    Collective,
    CollectiveKind,
    Compute,
    Group,
    Op,
    Pattern,
    Phase,
    Ranks,
    Schedule,
    Transfer,
    UnitKind,
    Value,
    ValueKind,
    check,
    parse,
    project,
)
from stanza_sim.schedule.ops import dependency
from stanza_sim.schedule.order import CellOrder, OpOrder, Order, order_of
from stanza_sim.schedule.rank_cells import RankCells, bits
from tests.schedule.toys import block, build, toy

WORLD = 6
GRAD, PARAM = Value(ValueKind.GRAD, "w"), Value(ValueKind.PARAM, "w")


@st.composite
def tangles(draw: st.DrawFn) -> Schedule:
    """Well-formed ops in any order and pattern; most are not legal, but all have an order."""
    members = draw(st.lists(st.sets(st.integers(0, WORLD - 1), min_size=1), min_size=1, max_size=4))
    groups = {f"g{i}": Ranks.of(ranks) for i, ranks in enumerate(members)}
    group, value = st.sampled_from(sorted(groups)), st.sampled_from([GRAD, PARAM])
    ops: list[Op] = []
    for i in range(draw(st.integers(2, 9))):
        after: tuple[str, ...] = ()
        if ops:
            side = st.sampled_from(["", "", ".recv", ".sent"])
            named = st.tuples(st.sampled_from(ops), side).map(
                lambda p: p[0].name + (p[1] if isinstance(p[0], Transfer) else "")
            )
            after = tuple(draw(st.lists(named, max_size=2)))
        src, name = draw(group), f"o{i}"
        match draw(st.sampled_from(["compute", "compute", "transfer", "transfer", "collective"])):
            case "compute":
                phase, lane = draw(st.sampled_from([Phase.BACKWARD, Phase.REDUCE])), draw(st.sampled_from(["x", "y"]))
                target = "w" if phase is Phase.REDUCE else "c1"
                ops.append(Compute(name=name, ranks=src, phase=phase, target=target, lane=lane, after=after))
            case "transfer":
                dst = draw(group)
                n, k = len(groups[src]), len(groups[dst])
                fits = {Pattern.ONE_TO_ONE: n == k, Pattern.FAN_IN: k == 1, Pattern.FAN_OUT: n == 1}
                pattern = draw(st.sampled_from([p for p in Pattern if fits.get(p, True)]))
                every = [(a, b) for a in groups[src] for b in groups[dst]]
                pairs = draw(st.lists(st.sampled_from(every), min_size=1, unique=True))
                ops.append(
                    Transfer(
                        name=name,
                        src=src,
                        dst=dst,
                        pattern=pattern,
                        values=(draw(value),),
                        nbytes=1,
                        pairs=tuple(pairs) if pattern is Pattern.EXPLICIT else (),
                        after=after,
                    )
                )
            case _:
                kind = draw(st.sampled_from([CollectiveKind.ALL_REDUCE, CollectiveKind.BROADCAST]))
                root = draw(st.sampled_from(list(groups[src]))) if kind is CollectiveKind.BROADCAST else None
                moved = PARAM if root is not None else GRAD
                ops.append(Collective(name=name, kind=kind, ranks=src, value=moved, nbytes=1, root=root, after=after))
    return Schedule(
        name="s",
        model="toy",
        world_size=WORLD,
        batch_per_worker=1,
        groups=tuple(Group(name=n, ranks=r) for n, r in groups.items()),
        bundles=(),
        ops=tuple(ops),
    )


Facts = frozenset[tuple[object, int]]


class ByRank(NamedTuple):
    """(op, rank) -> facts that hold before the op starts there, and before it writes there; (what, rank) is a fact."""

    start: dict[tuple[int, int], Facts]
    writing: dict[tuple[int, int], Facts]


def by_rank(s: Schedule) -> ByRank:
    nothing: Facts = frozenset()
    programs = [project(s, r) for r in range(s.world_size)]
    done: list[dict[int, Facts]] = [{} for _ in programs]  # per rank: unit -> facts once it is complete
    lanes: dict[tuple[int, str], Facts] = {}
    start: dict[tuple[int, int], Facts] = {}
    writing: dict[tuple[int, int], Facts] = {}
    for i, op in enumerate(s.ops):
        units = [(p.rank, u) for p in programs for u in p.units if u.op is op]
        for r, u in units:
            if u.kind is not UnitKind.RECV:
                lane = lanes.get((r, op.lane), nothing) if isinstance(op, Compute) else nothing
                start[i, r] = done[r][u.index] = lane.union(*(done[r][n] for n in u.needs))
        for r, u in units:
            facts = start.get((i, r), nothing)
            match op:
                case Compute():
                    facts |= {(i, r)}
                    if op.phase is Phase.REDUCE:
                        for p in (p for p, x in facts if x == r and isinstance(p, int) and p != i):
                            push = s.ops[p]
                            if isinstance(push, Transfer) and GRAD in push.values:
                                facts |= {("w", q) for q in s.sources(push, r)}
                    done[r][u.index] = lanes[r, op.lane] = facts
                case Transfer() if u.kind is UnitKind.RECV:
                    sources = s.sources(op, r)
                    done[r][u.index] = nothing.union(*(start[i, q] for q in sources)) | {(i, r)}
                    others = [start[i, q] for q in sources if q != r]
                    if others:
                        writing[i, r] = others[0].intersection(*others)
                case Collective():
                    from_ = [op.root, r] if op.root is not None else list(s.group(op.ranks))
                    done[r][u.index] = nothing.union(*(start[i, q] for q in from_)) | {(i, r)}
                    writing[i, r] = facts if op.root is None else facts | start[i, op.root]
                    if op.value == GRAD:
                        done[r][u.index] |= {("w", q) for q in s.group(op.ranks)}
                case _:
                    pass
    return ByRank(start, writing)


def _asked(s: Schedule, order: Order, truth: ByRank) -> list[tuple[bool, list[bool], bool]]:
    """Every question at every cell: (what `order` says, the truth at each rank, whether the cell is one rank)."""
    ranks: dict[int, list[int]] = {}
    for r in range(s.world_size):
        ranks.setdefault(order.cells.of_rank(r), []).append(r)
    found = []
    for i, op in enumerate(s.ops):
        order.add(i)
        params = (op.values if isinstance(op, Transfer) else () if isinstance(op, Compute) else (op.value,)) == (PARAM,)
        starts, ends = order.cells.gated[i], order.cells.completes[i]
        for a, members in ranks.items():
            one = bool(order.cells.single >> a & 1)
            assert one == (len(members) == 1)
            at = 1 << a
            written = params and at & ends and any((i, r) in truth.writing for r in members)
            for j in range(i):
                if at & starts & order.cells.completes[j]:
                    real = [(j, r) in truth.start[i, r] for r in members]
                    found.append((bool(order.before(i, j, at)), real, one))
                if written and at & order.cells.completes[j]:
                    real = [(j, r) in truth.writing.get((i, r), {(j, r)}) for r in members]
                    found.append((bool(order.before_writing(i, j, at)), real, one))
            if written:
                real = [("w", r) in truth.writing.get((i, r), {("w", r)}) for r in members]
                found.append((bool(order.needed(i, "w", at)), real, one))
    return found


BY_HAND = {
    # Rank 0 has no need of x.recv, rank 1 has: what 1 writes at 0 comes after j, which 0's own part does not await.
    "a rank that writes nothing to itself": """\
j: backward c1 @a lane=x
x: transfer grad(w) a->b one-to-one nbytes=1 after=j
t: transfer param(w) ab->ab all-pairs nbytes=1 after=x.recv
""",
    "what is received does not gate a sender": """\
j: backward c1 @a lane=x
x: transfer grad(w) a->b one-to-one nbytes=1 after=j
k: backward c1 @ab lane=y after=x.recv
""",
    "a reduction needs the pushes of its own pairs": """\
p: transfer grad(w) ab->cd one-to-one nbytes=1
r: reduce w @cd after=p
t: transfer param(w) cd->ab explicit nbytes=1 pairs=2>0,2>1,3>1 after=r
""",
}


@pytest.mark.parametrize("name", BY_HAND)
def test_the_order_by_hand(name: str) -> None:
    groups = "group a 0\ngroup b 1\ngroup ab 0-1\ngroup cd 2-3\n"
    s = parse(f"schedule s model=toy world=4 batch=1\n{groups}{BY_HAND[name]}")
    asked = _asked(s, order_of(s), by_rank(s))
    assert {said for said, _, _ in asked} == {True, False} or name.startswith("what")
    assert [[said] for said, _, _ in asked] == [real for _, real, _ in asked]


@settings(max_examples=300, deadline=None)
@given(tangles())
def test_the_order_at_every_rank_is_that_of_the_projections(s: Schedule) -> None:
    """Exact at each cell of one rank, and each cell of several has such a twin; never denied where it is true."""
    truth = by_rank(s)
    order = order_of(s)
    assert isinstance(order, CellOrder)
    for said, real, one in _asked(s, order, truth):
        assert said or not all(real)
        assert not one or said == real[0]


@settings(max_examples=150, deadline=None)
@given(tangles())
def test_coarser_orders_only_ever_allow_more(s: Schedule) -> None:
    truth = by_rank(s)
    cells = RankCells(s, pairwise=False)
    for order in (CellOrder(s, cells, {"w"}), OpOrder(s, cells)):
        for said, real, _ in _asked(s, order, truth):
            assert said or not all(real)


@given(tangles())
def test_the_order_by_op_is_the_closure_of_dependencies_and_lanes(s: Schedule) -> None:
    cells = RankCells(s, pairwise=False)
    order = OpOrder(s, cells)
    before: list[set[int]] = []
    for i, op in enumerate(s.ops):
        order.add(i)
        known: set[int] = set()
        for name, side in map(dependency, op.after):
            j = s.index(name)
            known |= before[j] | ({j} if side != "sent" else set())
        for j in range(i if isinstance(op, Compute) else 0):
            other = s.ops[j]
            if isinstance(other, Compute) and other.lane == op.lane and cells.gated[i] & cells.gated[j]:
                known |= before[j] | {j}
        before.append(known)
        assert {j for j in range(len(s.ops)) if order.before(i, j, cells.completes[j])} == known


@given(tangles())
def test_rank_cells_are_a_partition_that_cuts_no_group(s: Schedule) -> None:
    for pairwise in (True, False):
        cells = RankCells(s, pairwise=pairwise)
        assert {cells.of_rank(r) for r in range(WORLD)} == set(range(cells.count))
        assert {r for r in range(WORLD) if r == cells.first[cells.of_rank(r)]} == set(cells.first.values())
        for g in s.groups:
            inside = set(bits(cells.mask(g.ranks)))
            assert {r for r in range(WORLD) if cells.of_rank(r) in inside} == set(g.ranks)


def _deep(blocks: int) -> ModelProfile:
    made = tuple(block(f"b{i}", BlockKind.CONV, [(9,), (3,)], 10) for i in range(blocks))
    return ModelProfile(name="deep", blocks=made, boundary=blocks, input_shape=(3, 2, 2), num_classes=10)


@pytest.mark.parametrize(
    ("model", "world", "settings", "ops", "exact"),
    [
        (zoo.load_model("resnet152"), 8, {"placement": "colocated", "assignment": "cut"}, 313, True),
        (_deep(600), 8, {"placement": "colocated", "assignment": "cut"}, 3601, True),
        (_deep(600), 1024, {}, 3601, True),
        (zoo.load_model("resnet152"), 1024, {"placement": "colocated"}, 1973, False),
    ],
    ids=["resnet152", "600 blocks", "1,023 workers", "1,024 balanced servers"],
)
def test_how_exactly_a_schedule_is_checked_depends_on_its_size(
    model: ModelProfile, world: int, settings: dict[str, object], ops: int, exact: bool
) -> None:
    schedule = build("parameter_server", model, world, **settings)
    assert len(schedule.ops) == ops
    assert isinstance(order_of(schedule), CellOrder if exact else OpOrder)
    check(schedule, model)


def test_very_many_pairs_are_taken_by_cell() -> None:
    """Four FC workers serve CONV workers in blocks: of twenty every rank is told apart, of four thousand groups are."""
    few, many = (build("stanza", toy(), n, fc_workers=4) for n in (20, 4004))
    assert order_of(few).cells.single.bit_count() == 20
    order = order_of(many)
    assert isinstance(order, CellOrder)
    assert (order.cells.count, order.cells.single.bit_count()) == (4, 2)
    check(few, toy())
    check(many, toy())
