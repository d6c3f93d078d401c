"""Waking a lane: added after what others bring about, not between the computations of a lane; alike in all engines."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stanza_sim.schedule import Schedule, parse, project
from stanza_sim.simulate import Prediction, simulate
from stanza_sim.simulate.plain.wakeup import wakeup_needs
from stanza_sim.timeline.spans import Span
from tests.schedule.random_schedules import legal_schedules
from tests.schedule.toys import SOME, build, cluster, predict, toy
from tests.simulate.lowering.test_fold import CLUSTERS, MODEL, STRATEGIES, same

WAKE_S = 1e-3
STANZA = build("stanza", toy(1), 2)
"""Rank 0 computes CONV blocks, rank 1 the others; nothing is exchanged but activations and their gradients."""
APART = """\
schedule apart model=toy world=2 batch=1
group a 0
group b 1
fc1: forward c1 @a
fpool: forward pool @a after=fc1
fc2: forward c2 @a after=fpool
act: transfer act(c2)+labels a->b one-to-one nbytes=32 channel=act after=fc2
own: forward c1 @b
ff1: forward f1 @b after=act
"""
LANES = """\
schedule lanes model=toy world=1 batch=1
group a 0
fc1: forward c1 @a
fpool: forward pool @a lane=other after=fc1
fc2: forward c2 @a after=fpool
"""


def span(p: Prediction, op: str, iteration: int, side: str = "") -> Span:
    (found,) = (s for s in p.timeline.spans if (s.op, s.iteration, s.side) == (op, iteration, side))
    return found


def test_a_lane_wakes_up_for_a_message_and_goes_on_by_itself() -> None:
    p = predict(STANZA, toy(1), replace(cluster(2), wakeup_latency_s=WAKE_S), SOME)
    for i in range(3):
        for message, computation in (("act", "fwd.f1"), ("actgrad", "bwd.c2")):
            assert span(p, computation, i).start_s == pytest.approx(span(p, message, i, "recv").end_s + WAKE_S)
        for before, after in (
            ("fwd.c1", "fwd.pool"),
            ("fwd.f1", "fwd.f2"),
            ("loss", "bwdi.f2"),
            ("bwd.c2", "bwd.pool"),
        ):
            assert span(p, after, i).start_s == pytest.approx(span(p, before, i).end_s)
        assert span(p, "act", i, "sent").start_s == pytest.approx(span(p, "fwd.c2", i).end_s)
    none = predict(STANZA, toy(1), cluster(2), SOME)
    assert p.iteration_s == pytest.approx(none.iteration_s + 3 * WAKE_S)  # the third for the all-reduce of one rank
    assert p.bound_s == pytest.approx(none.bound_s)


def test_a_lane_that_is_busy_does_not_sleep() -> None:
    """Rank 1 computes for long after a message has come: its next computation follows at once."""
    slow = SOME.at_speed(0.001)
    p = simulate(parse(APART), toy(1), replace(cluster(2), wakeup_latency_s=WAKE_S), lambda r: slow if r else SOME)
    for i in range(3):
        assert span(p, "own", i).end_s > span(p, "act", i, "recv").end_s + WAKE_S
        assert span(p, "ff1", i).start_s == pytest.approx(span(p, "own", i).end_s)


def test_a_lane_wakes_up_for_a_collective_and_for_another_lane() -> None:
    schedule = build("all_reduce", MODEL, 2, first_bucket="1kB", bucket="10kB")
    p = predict(schedule, MODEL, replace(cluster(2), wakeup_latency_s=WAKE_S), SOME, fold_ranks=False)
    for rank in range(2):
        reduced, updated = (
            next(s for s in p.timeline.spans if (s.op, s.iteration, s.rank) == (op, 1, rank))
            for op in ("ar.bucket2", "upd.bucket2")
        )
        assert updated.start_s == pytest.approx(reduced.end_s + WAKE_S)
    lanes = predict(parse(LANES), toy(1), replace(cluster(1), wakeup_latency_s=WAKE_S), SOME)
    assert span(lanes, "fpool", 0).start_s == pytest.approx(span(lanes, "fc1", 0).end_s + WAKE_S)
    assert span(lanes, "fc2", 0).start_s == pytest.approx(span(lanes, "fpool", 0).end_s + WAKE_S)


def test_what_counts_as_others() -> None:
    program = project(STANZA, 0)
    names = {u.index: u.op.name for u in program.units}
    found = {names[u]: others for u, others in wakeup_needs(program, WAKE_S).items()}
    assert found.keys() == {"bwd.c2", "upd.bucket0"}
    assert [names[u] for u in found["bwd.c2"].needs] == ["actgrad"]
    assert found["bwd.c2"].needs_previous == ()
    assert wakeup_needs(program, 0.0) == {}


@pytest.mark.parametrize("where", ["latency and overhead", "slow NIC", "two ranks per host"])
@pytest.mark.parametrize("name", list(STRATEGIES))
def test_folded_and_unfolded_agree(name: str, where: str) -> None:
    strategy, options = STRATEGIES[name]
    on = replace(CLUSTERS[where](6), wakeup_latency_s=WAKE_S)
    schedule = build(strategy, MODEL, 6, **options)
    same(predict(schedule, MODEL, on, SOME), predict(schedule, MODEL, on, SOME, fold_ranks=False))


@pytest.mark.parametrize("where", ["latency and overhead", "two ranks per host"])
@pytest.mark.parametrize("name", list(STRATEGIES))
def test_compiled_code_wakes_lanes_alike(name: str, where: str) -> None:
    pytest.importorskip("numba")
    from tests.simulate.compiled.test_engine import both

    strategy, options = STRATEGIES[name]
    both(build(strategy, MODEL, 5, **options), replace(CLUSTERS[where](5), wakeup_latency_s=WAKE_S))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_compiled_code_wakes_lanes_of_random_schedules_alike(data: st.DataObject) -> None:
    pytest.importorskip("numba")
    from tests.simulate.compiled.test_engine import both

    schedule: Schedule = data.draw(legal_schedules(MODEL))
    where = data.draw(st.sampled_from(list(CLUSTERS)))
    both(schedule, replace(CLUSTERS[where](schedule.world_size), wakeup_latency_s=WAKE_S))
