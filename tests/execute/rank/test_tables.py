"""What an engine looks up, computed from a program alone: no thread is started and no message sent."""

from __future__ import annotations

from dataclasses import fields

from hypothesis import given
from hypothesis import strategies as st

from stanza_sim.execute.rank.tables import RankTables
from stanza_sim.schedule import Compute, Schedule, Transfer, UnitKind, parse, project
from tests.schedule.random_schedules import legal_schedules
from tests.schedule.toys import toy

TEXT = """
schedule s model=toy world=4 batch=1
group a 0
group b 1-3
group all 0-3
f: forward c1 @all
out: transfer act(c1) a->b fan-out nbytes=40 after=f
in: transfer actgrad(c1) b->a fan-in nbytes=20 after=out
g: backward c1 @a after=in,out lane=other
credited: transfer act(pool) a->b fan-out nbytes=8 credit=1 channel=c after=f
sum: all_reduce grad(w.c1) @all nbytes=48 algorithm=ring after=g
"""


def tables_of(schedule: Schedule, rank: int) -> RankTables:
    return RankTables.of(project(schedule, rank), schedule.message_bytes)


def by_name(schedule: Schedule, rank: int) -> dict[tuple[str, UnitKind], int]:
    return {(u.op.name, u.kind): u.index for u in project(schedule, rank).units}


def test_a_sender_knows_its_peers_and_what_is_awaited() -> None:
    schedule = parse(TEXT)
    found, unit = tables_of(schedule, 0), by_name(schedule, 0)
    out, back = unit["out", UnitKind.SEND], unit["in", UnitKind.RECV]
    credited = unit["credited", UnitKind.SEND]
    assert found.peers == {out: (1, 2, 3), back: (1, 2, 3), credited: (1, 2, 3)}
    assert found.nbytes == {(u, p): n for u, n in ((out, 40), (back, 20), (credited, 8)) for p in (1, 2, 3)}
    channel = found.transfers[out].channel
    assert found.arrivals == {(p, channel): (back,) for p in (1, 2, 3)}
    assert found.channels == (channel, "c")
    # `g` waits until `out` has left; nothing waits for `credited` but the credit of its channel.
    assert found.awaited_sends == {out, credited}
    assert found.awaited_from == (*((p, channel) for p in (1, 2, 3)), *((p, "c") for p in (1, 2, 3)))
    assert found.sends_any


def test_lanes_and_groups_work_one_thing_at_a_time() -> None:
    schedule = parse(TEXT)
    found, units = tables_of(schedule, 0), project(schedule, 0).units
    assert {units[u].op.name: w for u, w in found.worker_of.items() if isinstance(w, str)} == {
        "f": units[0].op.lane,  # type: ignore[union-attr]
        "g": "other",
    }
    assert [tuple(w) for w in found.worker_of.values() if not isinstance(w, str)] == [(1, 2, 3)]


def test_messages_of_no_bytes_are_left_out() -> None:
    schedule = parse(TEXT)
    found = RankTables.of(project(schedule, 0), lambda op, src, dst: 0 if dst in (1, 2) or src == 3 else 5)
    unit = by_name(schedule, 0)
    assert found.peers[unit["out", UnitKind.SEND]] == (3,)
    assert found.peers[unit["in", UnitKind.RECV]] == (1, 2)
    silent = RankTables.of(project(schedule, 0), lambda op, src, dst: 0)
    assert not silent.sends_any
    assert (silent.nbytes, silent.arrivals, silent.channels, silent.awaited_from) == ({}, {}, (), ())
    assert set(silent.peers.values()) == {()}


@given(schedule=legal_schedules(toy()), seed=st.integers(0, 2**16))
def test_tables_cover_the_program(schedule: Schedule, seed: int) -> None:
    rank = seed % schedule.world_size
    program, found = project(schedule, rank), tables_of(schedule, rank)
    assert sorted([*found.transfers, *found.worker_of]) == [u.index for u in program.units]
    for u in program.units:
        match u.op:
            case Transfer():
                sizes = [found.nbytes.get((u.index, p), 0) for p in u.peers]
                ends = [(rank, p) if u.kind is UnitKind.SEND else (p, rank) for p in u.peers]
                assert sizes == [schedule.message_bytes(u.op, *pair) for pair in ends]
            case Compute():
                assert found.worker_of[u.index] == u.op.lane
            case _:
                assert found.worker_of[u.index] == u.peers
    received = [(p, found.transfers[unit].channel, unit) for (p, _), some in found.arrivals.items() for unit in some]
    kinds = {u.index: u.kind for u in program.units}
    assert sorted(received) == sorted(
        (p, found.transfers[unit].channel, unit)
        for unit, peers in found.peers.items()
        for p in peers
        if kinds[unit] is UnitKind.RECV
    )
    assert all(list(some) == sorted(some) for some in found.arrivals.values())
    needed = {j for u in program.units for j in (*u.needs, *u.needs_previous)}
    assert found.awaited_sends == {
        u for u, op in found.transfers.items() if kinds[u] is UnitKind.SEND and (op.credit or u in needed)
    }
    again = tables_of(schedule, rank)
    assert all(getattr(found, f.name) == getattr(again, f.name) for f in fields(found))
