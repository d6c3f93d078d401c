"""Pairs and bytes of transfers, slices, and the projection of a schedule on one rank."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stanza_sim.base.errors import InputError, ScheduleError
from stanza_sim.schedule import (
    Bundle,
    Compute,
    Group,
    Layout,
    Pattern,
    RankProgram,
    Ranks,
    Schedule,
    Transfer,
    Unit,
    UnitKind,
    Value,
    ValueKind,
    parse,
    project,
    slice_bounds,
)
from stanza_sim.schedule.ops import dependency
from tests.schedule.random_schedules import legal_schedules
from tests.schedule.toys import build, toy

WORLD = 12
GROUPS = st.sets(st.integers(0, WORLD - 1), min_size=1, max_size=8).map(Ranks.of)


def _one(op: Transfer, src: Ranks, dst: Ranks, *bundles: Bundle) -> Schedule:
    return Schedule(
        name="s",
        model="toy",
        world_size=WORLD,
        batch_per_worker=1,
        groups=(Group(name="a", ranks=src), Group(name="b", ranks=dst)),
        bundles=bundles,
        ops=(op,),
    )


@st.composite
def transfers(draw: st.DrawFn) -> tuple[Schedule, Transfer]:
    pattern = draw(st.sampled_from(Pattern))
    src, dst = draw(GROUPS), draw(GROUPS)
    pairs: list[tuple[int, int]] = []
    match pattern:
        case Pattern.ONE_TO_ONE:
            n = min(len(src), len(dst))
            src, dst = Ranks.of(list(src)[:n]), Ranks.of(list(dst)[:n])
        case Pattern.FAN_IN:
            dst = Ranks.of([dst[0]])
        case Pattern.FAN_OUT:
            src = Ranks.of([src[0]])
        case Pattern.EXPLICIT:
            both = st.tuples(st.sampled_from(list(src)), st.sampled_from(list(dst)))
            pairs = draw(st.lists(both, min_size=1, unique=True))
        case _:
            pass
    op = Transfer(
        name="t",
        src="a",
        dst="b",
        pattern=pattern,
        values=(Value(ValueKind.LABELS),),
        nbytes=8,
        pairs=tuple(pairs),
    )
    return _one(op, src, dst), op


@given(transfers())
def test_destinations_sources_and_pairs_say_the_same(case: tuple[Schedule, Transfer]) -> None:
    s, op = case
    pairs = list(s.pairs(op))
    assert pairs == sorted(set(pairs))
    assert pairs == [(a, b) for a in range(WORLD) for b in s.destinations(op, a)]
    assert sorted(pairs) == sorted((a, b) for b in range(WORLD) for a in s.sources(op, b))
    assert all(a in s.group("a") and b in s.group("b") for a, b in pairs)
    for r in range(WORLD):
        assert s.takes_part(op, r) == any(r in pair for pair in pairs)
    if op.pattern not in (Pattern.EXPLICIT,):  # nobody is left out
        assert {a for a, _ in pairs} == set(s.group("a"))
        assert {b for _, b in pairs} == set(s.group("b"))


@given(transfers())
def test_which_pairs_each_pattern_has(case: tuple[Schedule, Transfer]) -> None:
    s, op = case
    src, dst, pairs = list(s.group("a")), list(s.group("b")), set(s.pairs(op))
    match op.pattern:
        case Pattern.ONE_TO_ONE:
            assert pairs == set(zip(src, dst, strict=True))
        case Pattern.EXPLICIT:
            assert pairs == set(op.pairs)
        case Pattern.BLOCKED:
            few, many = sorted((len(src), len(dst)))
            served = Counter(b if len(dst) <= len(src) else a for a, b in pairs)
            assert len(pairs) == many
            assert set(served.values()) <= {many // few, -(-many // few)}
            # Contiguous: the larger group in order is served by the smaller in order.
            assert sorted(pairs) == sorted(pairs, key=lambda p: (p[1], p[0]))
        case _:
            assert pairs == {(a, b) for a in src for b in dst}


@given(st.integers(0, 200), st.integers(1, 12))
def test_slices_cover_and_all_but_the_tail_are_equal(numel: int, pieces: int) -> None:
    bounds = [slice_bounds(numel, pieces, i) for i in range(pieces)]
    assert bounds[0][0] == 0
    assert bounds[-1][1] == numel
    assert all(a[1] == b[0] for a, b in pairwise(bounds))
    sizes = [hi - lo for lo, hi in bounds]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(0 < s < sizes[0] for s in sizes) <= 1
    for index in (-1, pieces):
        with pytest.raises(InputError):
            slice_bounds(numel, pieces, index)


@given(GROUPS, GROUPS, st.integers(1, 100), st.sampled_from([ValueKind.GRAD, ValueKind.PARAM]), st.booleans())
def test_cut_bundles_travel_in_slices(workers: Ranks, owners: Ranks, numel: int, kind: ValueKind, cut: bool) -> None:
    layout = Layout.SHARDED if cut else Layout.REPLICATED
    src, dst = (workers, owners) if kind is ValueKind.GRAD else (owners, workers)
    bundle = Bundle(name="w", tensors=("t",), numel=numel, owners="b" if kind is ValueKind.GRAD else "a", layout=layout)
    op = Transfer(name="t", src="a", dst="b", pattern=Pattern.ALL_PAIRS, values=(Value(kind, "w"),), nbytes=4 * numel)
    s = _one(op, src, dst, bundle)
    for w in workers:
        ends = [(w, o) if kind is ValueKind.GRAD else (o, w) for o in owners]
        sizes = [s.message_bytes(op, a, b) for a, b in ends]
        for (a, b), nbytes in zip(ends, sizes, strict=True):
            if a == b:
                assert nbytes == 0
            elif not cut:
                assert s.value_slice(op, op.values[0], a, b) is None
                assert nbytes == 4 * numel
            else:
                bounds = s.value_slice(op, op.values[0], a, b)
                assert bounds == slice_bounds(numel, len(owners), owners.index(b if kind is ValueKind.GRAD else a))
                assert nbytes == 4 * (bounds[1] - bounds[0])
        if cut and w not in owners:
            assert sum(sizes) == op.nbytes


PROGRAM = """\
schedule s model=toy world=4 batch=1
group worker 0-2
group server 2-3
group last 3
f: forward c1 @worker after_previous=pull,late
push: transfer grad(w) worker->server all-pairs nbytes=4 after=f
r: reduce w @server after=push
q: reduce w @server after=push.sent,r
pull: transfer param(w) server->worker all-pairs nbytes=4 after=r
z: update w @last after=pull
y: forward c2 @worker after=pull,z
late: all_reduce grad(w) @worker nbytes=4 algorithm=ring after=push.recv,y
"""


def _units(rank: int) -> list[str]:
    """Each unit as `op kind needs/needs_previous peers`."""
    program = project(parse(PROGRAM), rank)

    def show(unit: Unit) -> str:
        def names(needs: tuple[int, ...]) -> str:
            return ",".join(f"{program.units[i].op.name}.{program.units[i].kind}" for i in needs)

        local = " local" if unit.local else ""
        return f"{unit.op.name} {unit.kind} [{names(unit.needs)}] [{names(unit.needs_previous)}] {unit.peers}{local}"

    assert [u.index for u in program.units] == list(range(len(program.units)))
    return [show(u).strip() for u in program.units]


def test_projection_of_a_rank_that_only_sends_and_receives() -> None:
    assert _units(0) == [
        "f compute [] [pull.recv,late.collective]",
        "push send [f.compute] [] 2-3",
        "pull recv [] [] 2-3",
        "y compute [pull.recv] []",
        # push.recv does not gate a rank that receives nothing in push
        "late collective [y.compute] [] 1-2",
    ]


def test_projection_of_a_rank_that_is_on_both_sides() -> None:
    assert _units(2) == [
        "f compute [] [pull.recv,late.collective]",
        "push send [f.compute] [] 3 local",
        "push recv [f.compute] [] 0-1 local",  # its own part is there once f is done
        "r compute [push.recv] []",  # bare push means .recv where the rank receives
        "q compute [push.send,r.compute] []",
        "pull send [r.compute] [] 0-1 local",
        "pull recv [r.compute] [] 3 local",
        "y compute [pull.recv] []",
        "late collective [push.recv,y.compute] [] 0-1",
    ]


def test_projection_of_a_rank_that_only_receives_and_sends() -> None:
    assert _units(3) == [
        "push recv [] [] 0-2",
        "r compute [push.recv] []",
        "q compute [r.compute] []",  # it does not send in push
        "pull send [r.compute] [] 0-2",
        "z compute [pull.send] []",  # bare pull means .sent where the rank does not receive
    ]


@settings(max_examples=40, deadline=None)
@given(legal_schedules(toy()))
def test_projections_agree_with_the_schedule(schedule: Schedule) -> None:
    programs = [project(schedule, r) for r in range(schedule.world_size)]
    sends: Counter[tuple[str, int, int]] = Counter()
    receives: Counter[tuple[str, int, int]] = Counter()
    for p in programs:
        assert tuple(dict.fromkeys(u.op for u in p.units)) == schedule.for_rank(p.rank)
        order = [schedule.index(u.op.name) for u in p.units]
        assert order == sorted(order)
        for u in p.units:
            assert all(v < u.index for v in u.needs)
            assert p.rank not in u.peers
            if u.kind is UnitKind.SEND:
                sends.update((u.op.name, p.rank, d) for d in u.peers)
            if u.kind is UnitKind.RECV:
                receives.update((u.op.name, s, p.rank) for s in u.peers)
            _complete(schedule, p, u)
    pairs = Counter(
        (op.name, s, d) for op in schedule.ops if isinstance(op, Transfer) for s, d in schedule.pairs(op) if s != d
    )
    assert sends == receives == pairs


def _complete(schedule: Schedule, program: RankProgram, unit: Unit) -> None:
    """Every dependency on an op in which the rank takes part is there."""
    if unit.kind is UnitKind.RECV and not unit.local:
        assert not unit.needs
        return
    found = {program.units[i].op.name for i in unit.needs}
    named = {dependency(d)[0] for d in unit.op.after if not dependency(d)[1]}
    assert {n for n in named if schedule.takes_part(schedule.op(n), program.rank)} <= found


def test_for_rank_and_lookups() -> None:
    s = build("parameter_server", toy(), 4)
    assert {o.name for o in s.for_rank(3)} & {"fwd.c1", "red.c1"} == {"red.c1"}
    for rank in (-1, 4):
        with pytest.raises(InputError, match="has ranks 0 to 3"):
            s.for_rank(rank)
    assert isinstance(s.op("fwd.c1"), Compute)
    assert s.index("fwd.c1") == 0
    for look in (s.op, s.group, s.bundle, s.index):
        with pytest.raises(ScheduleError, match="nothing"):
            look("nothing")
