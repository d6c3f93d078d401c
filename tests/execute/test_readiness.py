"""The pure core of a rank's run: what becomes ready when, and which message goes next."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_schedules import legal_schedules
from toys import toy

from stanza_sim.execute.readiness import GENERATIONS, Key, Progress, Readiness, SendQueue, label
from stanza_sim.schedule import RankProgram, Transfer, UnitKind, parse, project

PING = parse(
    """
    schedule ping model=m world=2 batch=1
    group a 0
    group b 1
    f: forward x @a after_previous=pong
    ping: transfer act(x) a->b one-to-one nbytes=4 after=f
    g: forward y @b after=ping
    pong: transfer actgrad(x) b->a one-to-one nbytes=4 after=g
    """
)


def messages(program: RankProgram) -> dict[int, int]:
    return {u.index: len(u.peers) for u in program.units}


def names(program: RankProgram, keys: list[Key]) -> list[tuple[int, str]]:
    return [(i, label(program.units[u])) for i, u in keys]


def test_units_become_ready_as_their_dependencies_complete() -> None:
    program = project(PING, 0)
    core = Readiness(program, 3, messages(program))
    began = core.begin()
    assert names(program, began.ready) == [(0, "f")]
    assert began.opened == [0, 1]
    f, ping, pong = range(3)
    assert names(program, core.complete((0, f)).ready) == [(0, "ping.sent")]
    assert core.complete((0, ping)).ready == []
    ended = core.arrived((0, pong))
    assert (ended.ready, ended.ended, ended.opened) == ([(1, f)], [0], [2])
    assert not core.finished


def test_a_third_iteration_opens_only_when_the_first_is_complete() -> None:
    free = parse("schedule s model=m world=1 batch=1\ngroup a 0\nf: forward x @a\ng: forward y @a after=f\n")
    core = Readiness(project(free, 0), 5, {})
    assert core.begin().ready == [(0, 0), (1, 0)]
    assert core.complete((1, 0)).ready == [(1, 1)]
    assert core.complete((1, 1)) == Progress(ended=[1])  # iteration 2 would use the buffers of iteration 0
    core.complete((0, 0))
    assert core.complete((0, 1)) == Progress(ended=[0], opened=[2, 3], ready=[(2, 0), (3, 0)])


def test_what_is_waited_for_is_told_in_words() -> None:
    program = project(PING, 1)
    core = Readiness(program, 2, messages(program))
    core.begin()
    assert core.waiting() == [
        "iteration 0: ping.recv awaits messages from ranks 0",
        "iteration 0: g waits for ping.recv",
        "iteration 0: pong.sent waits for g",
    ]
    assert core.waiting(1)[1:] == ["and 2 more"]


@given(schedule=legal_schedules(toy()), seed=st.integers(0, 1000), iterations=st.integers(1, 4))
def test_any_order_of_events_completes_every_unit_once_and_in_order(schedule, seed, iterations) -> None:  # type: ignore[no-untyped-def]
    rng = random.Random(seed)
    for rank in range(schedule.world_size):
        program = project(schedule, rank)
        core = Readiness(program, iterations, messages(program))
        open_, ready, arrivals, ended = set(), [], [], []
        done: set[Key] = set()

        def take(progress: Progress) -> None:
            ready.extend(progress.ready)  # noqa: B023
            ended.extend(progress.ended)  # noqa: B023
            for i in progress.opened:
                open_.add(i)  # noqa: B023
                for u in program.units:  # noqa: B023
                    if u.kind is UnitKind.RECV:
                        arrivals.extend([(i, u.index)] * len(u.peers))  # noqa: B023

        take(core.begin())
        while ready or arrivals:
            pool = ready if ready and (not arrivals or rng.random() < 0.6) else arrivals
            key = pool.pop(rng.randrange(len(pool)))
            if pool is ready:
                unit = program.units[key[1]]
                started = {(key[0], j) for j in unit.needs if program.units[j].kind is UnitKind.COMPUTE}
                assert started <= done
                assert key not in done
                done.add(key)
                take(core.complete(key))
            else:
                take(core.arrived(key))
            assert all(i - GENERATIONS in ended for i in open_ if i >= GENERATIONS)
        assert core.finished
        assert sorted(ended) == list(range(iterations)) or not program.units


def test_messages_of_a_pair_keep_their_order_and_others_go_by_priority() -> None:
    schedule = parse(
        """
        schedule s model=m world=3 batch=1
        group a 0
        group b 1
        group c 2
        x: transfer act(p) a->b one-to-one nbytes=4 priority=5
        y: transfer act(p) a->b one-to-one nbytes=4 priority=1
        z: transfer act(p) a->c one-to-one nbytes=4 priority=3
        """
    )
    units = project(schedule, 0).units
    order: dict[tuple[int, str], list[int]] = {}
    for u in units:
        assert isinstance(u.op, Transfer)
        for p in u.peers:
            order.setdefault((p, u.op.channel), []).append(u.index)
    queue = SendQueue(units, order)
    for key in ((0, 1), (0, 2), (1, 0)):
        queue.ready(key)
    assert queue.pop() == ((0, 2), 2, "p2p")
    assert queue.pop() is None  # y must wait for x, and so must the next iteration's x
    queue.ready((0, 0))
    assert [queue.pop(), queue.pop(), queue.pop()] == [((0, 0), 1, "p2p"), ((0, 1), 1, "p2p"), ((1, 0), 1, "p2p")]
    assert queue.pop() is None
    assert not queue


def test_with_credit_the_lowest_priority_goes_next_and_no_more_are_under_way() -> None:
    schedule = parse(
        """
        schedule s model=m world=3 batch=1
        group a 0
        group b 1
        group both 1-2
        x: transfer act(p) a->b one-to-one nbytes=4 priority=5 credit=1
        y: transfer act(p) a->b one-to-one nbytes=4 priority=1 credit=1
        z: transfer act(p) a->both fan-out nbytes=4 priority=3 credit=1
        """
    )
    units = project(schedule, 0).units
    order: dict[tuple[int, str], list[int]] = {}
    for u in units:
        for p in u.peers:
            order.setdefault((p, "p2p"), []).append(u.index)
    queue = SendQueue(units, order)
    for key in ((0, 0), (0, 1), (0, 2), (1, 1)):
        queue.ready(key)
    # x was ready first; z has other destinations, so it is another line.
    assert [queue.pop(), queue.pop(), queue.pop(), queue.pop()] == [
        ((0, 2), 1, "p2p"),
        ((0, 2), 2, "p2p"),
        ((0, 0), 1, "p2p"),
        None,
    ]
    queue.sent((0, 2))
    assert queue.pop() is None
    queue.sent((0, 0))
    assert [queue.pop(), queue.pop()] == [((0, 1), 1, "p2p"), None]
    queue.sent((0, 1))
    assert [queue.pop(), queue.pop()] == [((1, 1), 1, "p2p"), None]


@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_a_rank_without_units_is_finished(iterations: int) -> None:
    core = Readiness(RankProgram(rank=0, units=()), iterations, {})
    assert core.begin() == Progress()
    assert core.finished
