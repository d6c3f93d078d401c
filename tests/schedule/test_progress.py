"""The rules of progress, case by case: what starts when, which send goes next, what is told of a rank that waits."""

from __future__ import annotations

import pytest

from stanza_sim.base.errors import RunError
from stanza_sim.schedule import RankProgram, parse, project
from stanza_sim.schedule.progress import Instructions, Issue, Key, Progress
from stanza_sim.schedule.progress_words import label

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


def test_units_start_as_what_they_need_completes() -> None:
    program = project(PING, 0)
    core = Progress(program, messages(program), iterations=3)
    began = core.begin()
    assert names(program, began.start) == [(0, "f")]
    assert began.opened == [0, 1]
    f, ping, pong = range(3)
    assert not core
    core.complete((0, f))
    assert (len(core), core.next_post(), core.next_post()) == (1, (0, ping), None)
    assert core.complete((0, ping)).start == []
    ended = core.arrived((0, pong))
    assert (ended.start, ended.ended, ended.opened) == ([(1, f)], [0], [2])
    assert not core.finished


def test_a_third_iteration_opens_only_when_the_first_is_complete() -> None:
    free = parse("schedule s model=m world=1 batch=1\ngroup a 0\nf: forward x @a lane=l\ng: forward y @a after=f\n")
    core = Progress(project(free, 0), {}, iterations=5)
    assert core.begin().start == [(0, 0)]
    assert core.complete((0, 0)).start == [(0, 1), (1, 0)]
    assert core.complete((1, 0)).start == []  # iteration 2 would use the buffers of iteration 0
    assert core.complete((0, 1)) == Instructions(start=[(2, 0), (1, 1)], ended=[0], opened=[2])


def test_what_is_waited_for_is_told_in_words() -> None:
    program = project(PING, 1)
    core = Progress(program, messages(program), iterations=2)
    core.begin()
    assert core.waiting() == [
        "iteration 0: ping.recv awaits messages from ranks 0",
        "iteration 0: g waits for ping.recv",
        "iteration 0: pong.sent waits for g",
    ]
    assert core.waiting(1)[1:] == ["and 2 more"]
    core.arrived((0, 0), 1.5)
    assert core.story() == (
        "rank 1, iteration 0: g is being computed, or waits for its turn in its lane; "
        "iteration 0: pong.sent waits for g; "
        "last: ping.recv of iteration 0 arrived at 1.5 s"
    )


def test_what_cannot_have_happened_is_refused_with_the_story() -> None:
    program = project(PING, 1)
    core = Progress(program, messages(program), iterations=2)
    core.begin()
    core.arrived((0, 0), 1.5)
    with pytest.raises(RunError, match=r"ping\.recv of iteration 0 arrived at 1\.5 s"):
        core.complete((0, 2))
    with pytest.raises(RunError, match="not awaited"):
        core.arrived((0, 0))


def test_sends_of_a_pair_keep_their_order_and_others_go_by_priority() -> None:
    core = _sends(
        """
        x: transfer act(p) a->b one-to-one nbytes=4 priority=5 after=f
        y: transfer act(p) a->b one-to-one nbytes=4 priority=1
        z: transfer act(p) a->c one-to-one nbytes=4 priority=3
        both: transfer act(p) a->bc fan-out nbytes=4 priority=2
        """
    )
    f, x, y, z, both = range(5)
    assert [core.next_post(), core.next_post()] == [(0, z), None]  # y waits for x, and so does what goes to b as well
    core.complete((0, f))
    assert [core.next_post() for _ in range(4)] == [(0, x), (0, y), (0, both), (1, z)]  # z is free once `both` has gone
    assert core.next_post() is None


def test_with_credit_the_lowest_priority_goes_next_and_no_more_are_under_way() -> None:
    core = _sends(
        """
        x: transfer act(p) a->b one-to-one nbytes=4 priority=5 credit=1
        y: transfer act(p) a->b one-to-one nbytes=4 priority=1 credit=1 after=f
        z: transfer act(p) a->bc fan-out nbytes=4 priority=3 credit=1
        """
    )
    f, x, y, z = range(4)
    assert len(core) == 2
    core.complete((0, f))  # y goes before x, which was ready first; z has other destinations, so its own credit
    assert [core.next_post(), core.next_post(), core.next_post()] == [(0, y), (0, z), None]
    core.complete((0, z))
    assert [core.next_post(), core.next_post()] == [(1, z), None]
    core.complete((0, y))
    assert [core.next_post(), core.next_post()] == [(0, x), None]


def test_in_order_an_op_is_issued_once_the_one_before_it_is_through() -> None:
    schedule = parse(
        """
        schedule s model=m world=2 batch=1
        group a 0
        group b 1
        group w 0-1
        f: forward x @a
        there: transfer act(x) a->b one-to-one nbytes=4 after=f
        swap: transfer act(p) w->w explicit pairs=0>1,1>0 nbytes=4
        """
    )
    program = project(schedule, 0)
    f, there, out, into = range(4)
    core = Progress(program, messages(program), iterations=1, issue=Issue.IN_ORDER)
    assert core.begin() == Instructions(start=[(0, f)], opened=[0])  # `swap` is ready, but not its turn
    assert core.complete((0, f)).issue == [(0, (there,))]
    assert core.complete((0, there)).issue == [(0, (out, into))]
    assert core.arrived((0, into)).ended == []
    assert core.complete((0, out)).ended == [0]
    assert core.next_post() is None


def _sends(ops: str) -> Progress:
    """The rules of a rank that computes `f` and sends."""
    head = "schedule s model=m world=3 batch=1\ngroup a 0\ngroup b 1\ngroup c 2\ngroup bc 1-2\nf: forward x @a\n"
    program = project(parse(head + ops), 0)
    core = Progress(program, messages(program), iterations=2)
    core.begin()
    return core


@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_a_rank_without_units_is_finished(iterations: int) -> None:
    core = Progress(RankProgram(rank=0, units=()), {}, iterations=iterations)
    assert core.begin() == Instructions()
    assert core.finished
