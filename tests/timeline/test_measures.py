"""Measures of timelines worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stanza_sim.cluster import Nic
from stanza_sim.model.profile import BlockKind
from stanza_sim.schedule import Compute, Schedule, parse
from stanza_sim.timeline.intervals import Intervals, common, merged
from stanza_sim.timeline.measures import op_seconds, steady_iteration_s, waiting
from stanza_sim.timeline.spans import Span, Timeline
from tests.schedule.toys import Costs, block, build, cluster, predict, toy

SCHEDULE = parse("""\
schedule m model=toy world=3 batch=1
group w 0-1
group s 2
bundle b numel=12 owners=s tensors=c1.t0,c1.t1
f: forward c1 @w after_previous=pull
k: backward c1 @w after=f
push: transfer grad(b) w->s fan-in nbytes=48 channel=push after=k
red: reduce b @s after=push
pull: transfer param(b) s->w fan-out nbytes=48 channel=pull after=red
other: transfer labels w->s fan-in nbytes=8 channel=other after=f
""")


def _span(op: str, rank: int, iteration: int, start: float, end: float, side: str = "") -> Span:
    return Span(op=op, rank=rank, iteration=iteration, lane="x", side=side, start_s=start, end_s=end)


# Rank 0 pushes at 2 to 3, rank 1 at 4 to 5; the server reduces from 5 to 7 and sends from 8 to 10.
HAND = (
    _span("f", 0, 1, 0, 1),
    _span("k", 0, 1, 1, 2),
    _span("push", 0, 1, 2, 3, "sent"),
    _span("f", 1, 1, 0, 3),
    _span("k", 1, 1, 3, 4),
    _span("push", 1, 1, 4, 5, "sent"),
    _span("push", 2, 1, 2, 5, "recv"),
    _span("red", 2, 1, 5, 7),
    _span("pull", 2, 1, 8, 10, "sent"),
    _span("pull", 0, 1, 8, 10, "recv"),
    _span("pull", 1, 1, 8, 9, "recv"),
    _span("other", 0, 1, 6, 6.5, "sent"),
    _span("f", 0, 2, 10, 11),
    _span("f", 1, 2, 9, 12),
)


def _timeline(spans: tuple[Span, ...], **multiplicity: int) -> Timeline:
    return Timeline(spans=spans, iteration_end_s={}, multiplicity={int(k[1:]): n for k, n in multiplicity.items()})


def test_waiting_by_hand() -> None:
    """Gaps before iteration 2: rank 0 waits 2 to 10, rank 1 waits 4 to 9.

    Rank 0: push moves 2 to 3 (its own) and 4 to 5 (rank 1's, which the reduction awaits), pull 8 to 10: 4 s exposed
    and 4 s idle, although the server's receive goes on from 2 to 5. Rank 1: push 4 to 5, pull 8 to 9: 2 s exposed and
    3 s idle. `other` is awaited by nobody.
    """
    w = waiting(SCHEDULE, _timeline(HAND), 1, 2)
    assert w.exposed_comm_s == pytest.approx((4 + 2) / 2)
    assert w.idle_s == pytest.approx((4 + 3) / 2)


def test_a_rank_that_stands_for_many_counts_as_many() -> None:
    w = waiting(SCHEDULE, _timeline(HAND, r0=3, r1=1), 1, 2)
    assert w.exposed_comm_s == pytest.approx((3 * 4 + 2) / 4)
    assert w.idle_s == pytest.approx((3 * 4 + 3) / 4)


def test_only_gaps_of_the_window_count() -> None:
    assert waiting(SCHEDULE, _timeline(HAND), 0, 1) == waiting(SCHEDULE, _timeline(()), 0, 1)
    two = waiting(SCHEDULE, _timeline(HAND), 0, 2)
    assert two.exposed_comm_s == pytest.approx(3.0 / 2)  # per iteration


def test_the_server_is_no_rank_that_waits() -> None:
    """Only ranks that run passes are counted: a server's gap is not a worker's waiting."""
    spans = (*HAND, _span("red", 2, 2, 50, 51))
    assert waiting(SCHEDULE, _timeline(spans), 1, 2) == waiting(SCHEDULE, _timeline(HAND), 1, 2)


def test_only_what_overlaps_the_gap_counts() -> None:
    """Of what is awaited, what moves before a gap, after it or in an iteration long past fills none of it."""
    far = (_span("push", 0, 0, 5, 6, "sent"), _span("push", 2, 0, 5, 6, "recv"))  # two before iteration 2
    assert waiting(SCHEDULE, _timeline((*far, *HAND)), 1, 2) == waiting(SCHEDULE, _timeline(HAND), 1, 2)
    last = (_span("pull", 2, 0, 5, 9, "sent"), _span("pull", 0, 0, 5, 9, "recv"), _span("f", 0, 1, 9, 10))
    spans = (_span("k", 0, 0, 0, 7), *last)
    w = waiting(SCHEDULE, _timeline(spans), 0, 1)
    assert (w.exposed_comm_s, w.idle_s) == (2.0, 0.0)


def test_waiting_in_a_deep_model() -> None:
    """Each of 3,600 ops awaits some thousand transfers; only those that move in a gap are looked at."""
    blocks = tuple(block(f"b{i}", BlockKind.CONV, [(9,), (3,)], 10) for i in range(600))
    deep = replace(toy(), name="deep", blocks=blocks, boundary=600)
    schedule = build("parameter_server", deep, 3)
    spans, end = [], 0.0
    for iteration in (1, 2):
        for op in schedule.ops:
            ranks = {"sent": 2, "recv": 0} if op.name.startswith("pull") else {"sent": 0, "recv": 2}
            if isinstance(op, Compute):
                spans.append(_span(op.name, min(schedule.group(op.ranks)), iteration, end, end + 1))
            else:
                spans += [_span(op.name, rank, iteration, end, end + 1, side) for side, rank in ranks.items()]
            end += 1
    w = waiting(schedule, _timeline(tuple(spans)), 1, 2)
    # One thing happens at a time. Rank 0 waits for everything since its last pass: 600 pushes and pulls, and as many
    # reductions and updates.
    assert (w.exposed_comm_s, w.idle_s) == (1200.0, 1200.0)


def test_op_seconds_by_hand() -> None:
    seconds = op_seconds(SCHEDULE, _timeline(HAND), 0, 1)
    assert seconds["forward"] == pytest.approx((1 + 3) / 3)  # over all three ranks
    assert seconds["backward"] == pytest.approx(2 / 3)
    assert seconds["reduce"] == pytest.approx(2 / 3)
    assert seconds["transfer push"] == pytest.approx((1 + 1 + 3) / 3)
    assert seconds["transfer pull"] == pytest.approx((2 + 2 + 1) / 3)
    assert seconds["transfer other"] == pytest.approx(0.5 / 3)
    assert set(seconds) == {"forward", "backward", "reduce", "transfer push", "transfer pull", "transfer other"}


def test_op_seconds_do_not_count_the_same_time_twice() -> None:
    spans = (_span("push", 2, 1, 0, 4, "recv"), _span("push", 2, 1, 1, 2, "sent"), _span("push", 2, 1, 3, 5, "sent"))
    assert op_seconds(SCHEDULE, _timeline(spans), 0, 1)["transfer push"] == pytest.approx(5 / 3)


def test_iteration_time_is_that_of_the_slowest_rank() -> None:
    ends = [[0.0, 1.0, 2.0, 3.0], [0.5, 1.5, 3.0, 4.5]]
    assert steady_iteration_s(ends, 1, 3) == 1.5
    assert steady_iteration_s(ends, 0, 1) == 1.0


LENGTHS = st.tuples(st.integers(0, 30), st.integers(0, 9)).map(lambda p: (p[0], p[0] + p[1]))


@given(st.lists(LENGTHS))
def test_unions(intervals: list[tuple[int, int]]) -> None:
    """Each interval in the group of its length's parity."""
    start, end = np.array(intervals, dtype=np.float64).reshape(-1, 2).T
    found = merged((end - start).astype(np.int64) % 2, start, end)
    for group, length in enumerate(found.seconds(2)):
        assert length == len({x for a, b in intervals if (b - a) % 2 == group for x in range(a, b)})
    for k in range(1, len(found.group)):
        assert found.group[k] != found.group[k - 1] or found.start_s[k] > found.end_s[k - 1]


@given(st.tuples(st.lists(LENGTHS), st.lists(LENGTHS)))
def test_what_two_unions_have_in_common(sides: tuple[list[tuple[int, int]], list[tuple[int, int]]]) -> None:
    both = [merged(np.zeros(len(s), dtype=np.int64), *np.array(s, dtype=np.float64).reshape(-1, 2).T) for s in sides]
    found = common(Intervals(*(np.concatenate(x) for x in zip(*both, strict=True))))
    covered = [{x for a, b in s for x in range(a, b)} for s in sides]
    assert sum(found.seconds(1)) == len(covered[0] & covered[1])


# ---- with the simulator ---------------------------------------------------------------------------------------------

COSTS = Costs(flops_s=1e-3)
PASSES = 4 * 1e-3 * (3 * 1550 - 10)  # batch 4; forward and both halves of backward; pool has no weights


def _ring(schedule: Schedule, n: int, b: float) -> float:
    return sum(2 * (n - 1) / n * bundle.numel * 4 / b for bundle in schedule.bundles)


def test_a_straggler_makes_others_idle_and_not_communicate() -> None:
    """Two workers, one at half the speed, all-reduce after the backward pass: the fast one waits for the slow one's
    passes (idle), then both wait for the ring (exposed)."""
    model = toy(100)
    schedule = build("all_reduce", model, 2, overlap=False)
    p = predict(schedule, model, cluster(2, nic=Nic(bandwidth_Bps=1e4), speeds={1: 0.5}), COSTS)
    ring = _ring(schedule, 2, 1e4)
    assert p.iteration_s == pytest.approx(2 * PASSES + ring)
    assert p.exposed_comm_s == pytest.approx(ring)
    assert p.idle_s == pytest.approx(PASSES / 2)  # the mean of PASSES and 0


def test_a_straggler_of_three_under_a_server() -> None:
    """Fast workers' pushes are over before the slow one pushes: that wait is idle but for the slow one's push."""
    model = toy(100)
    schedule = build("parameter_server", model, 4, overlap=False)
    b = 1e4
    p = predict(schedule, model, cluster(4, nic=Nic(bandwidth_Bps=b), speeds={2: 0.25}), COSTS)
    size = model.nbytes / b
    # The two fast ones push together, one NIC's rate at the server, long before the third is ready.
    assert 2 * size < 3 * PASSES
    assert p.iteration_s == pytest.approx(4 * PASSES + size + 3 * size)
    # Exposed: the fast ones' own pushes, the slow one's push, the pulls; the slow one's own push and pulls.
    assert p.exposed_comm_s == pytest.approx((2 * (2 * size + size + 3 * size) + size + 3 * size) / 3)
    assert p.idle_s == pytest.approx(2 * (3 * PASSES - 2 * size) / 3)


@pytest.mark.parametrize("name", ["parameter_server", "all_reduce", "stanza"])
def test_the_main_lane_is_busy_waiting_or_idle(name: str) -> None:
    """For a rank with one lane: passes + updates + exposed + idle = iteration."""
    model = toy(100)
    n = 4
    schedule = build(name, model, n)
    p = predict(schedule, model, cluster(n, nic=Nic(bandwidth_Bps=1e4, latency_s=1e-3)), COSTS, fold_ranks=False)
    busy = sum(
        p.op_seconds.get(k, 0.0) for k in ("forward", "loss", "backward", "backward_input", "backward_weight", "update")
    )
    ranks = n - (name == "parameter_server")
    assert busy * n / ranks + p.exposed_comm_s + p.idle_s == pytest.approx(p.iteration_s)


def test_messages_of_other_groups_in_one_channel_are_awaited() -> None:
    """A forward pass waits for parameters that are queued behind those of another block, which other owners hold."""
    schedule = parse("""\
schedule m model=toy world=2 batch=1
group w 0-1
group one 1
bundle b numel=12 owners=one tensors=c1.t0
bundle c numel=12 owners=w layout=cut tensors=c2.t0
f: forward c1 @w after_previous=pull.b
g: forward c2 @w after=f after_previous=pull.c
pull.c: transfer param(c) w->w all-pairs nbytes=48 channel=pull after=g
pull.b: transfer param(b) one->w fan-out nbytes=48 channel=pull after=g
""")
    spans = (
        _span("f", 0, 1, 0, 1),
        _span("g", 0, 1, 1, 2),
        _span("pull.c", 1, 1, 2, 5, "sent"),
        _span("pull.c", 0, 1, 2, 5, "recv"),
        _span("pull.b", 1, 1, 5, 6, "sent"),
        _span("pull.b", 0, 1, 5, 6, "recv"),
        _span("f", 0, 2, 6, 7),
    )
    found = waiting(schedule, _timeline(spans), 1, 2)
    assert (found.exposed_comm_s, found.idle_s) == (4, 0)
