"""Where an iteration's time goes: the parts add up, and the kinds that differ are found."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stanza_sim.report.compare import WAITING, charge, explain, partition
from stanza_sim.schedule import parse
from stanza_sim.timeline.spans import Span, Timeline

LANES = """\
schedule s model=net world=1 batch=4
group worker 0
bundle b numel=10 owners=worker tensors=w
fwd: forward l @worker
upd: update b @worker lane=server
push: transfer grad(b) worker->worker one-to-one nbytes=40 channel=push
ar: all_reduce grad(b) @worker nbytes=40 algorithm=ring
"""


def span(op: str, start: float, end: float) -> Span:
    return Span(op=op, rank=0, iteration=0, lane="", side="", start_s=start, end_s=end)


def test_the_main_lane_is_charged_before_other_lanes_and_these_before_messages():
    spans = [span("fwd", 1, 3), span("upd", 2, 5), span("push", 0, 6), span("ar", 5.5, 8)]
    parts = charge(spans, parse(LANES), (0, 10))
    assert parts == pytest.approx(
        {"forward": 2.0, "update": 2.0, "transfer push": 1 + 0.5 + 0.25, "all_reduce": 0.25 + 2.0, WAITING: 2.0}
    )


def test_what_lies_outside_the_window_is_not_charged():
    assert charge([span("fwd", 0, 4), span("ar", 7, 20)], parse(LANES), (3, 10)) == pytest.approx(
        {"forward": 1.0, WAITING: 3.0, "all_reduce": 3.0}
    )


OPS = st.sampled_from(["fwd", "upd", "push", "ar"])
TIMES = st.floats(min_value=0, max_value=10)


@given(st.lists(st.tuples(OPS, TIMES, TIMES), max_size=12))
def test_the_parts_add_up_to_the_window(items):
    spans = [span(op, min(a, b), max(a, b)) for op, a, b in items]
    parts = charge(spans, parse(LANES), (2.0, 9.0))
    assert sum(parts.values()) == pytest.approx(7.0)
    assert all(v >= 0 for v in parts.values())


def test_a_class_of_ranks_counts_for_all_its_members(schedule, make_timeline):
    slow = make_timeline({"fwd": 3.0, "loss": 0.0, "bwd": 0.0, "ar": 1.0, "upd": 0.0})
    quick = make_timeline({"fwd": 1.0, "loss": 0.0, "bwd": 0.0, "ar": 3.0, "upd": 0.0})
    both = Timeline(
        spans=tuple(s for s in slow.spans if s.rank == 0) + tuple(s for s in quick.spans if s.rank == 1),
        iteration_end_s=slow.iteration_end_s,
        multiplicity={0: 1, 1: 3},
    )
    assert partition(both, schedule, 1, 4) == pytest.approx({"forward": 1.5, "all_reduce": 2.5})


def test_the_largest_differences_explain_the_error(make_row):
    row = make_row(measured=True)
    shares = explain(row.prediction.timeline, row.measurement.timeline, row.schedule)
    assert [s.kind for s in shares] == ["all_reduce", "forward", "update"]
    assert [s.difference_s for s in shares] == pytest.approx([-2e-3, -0.5e-3, 0.1e-3])


SECONDS = st.lists(st.floats(min_value=1e-4, max_value=1e-2), min_size=5, max_size=5)


def test_the_differences_of_all_kinds_add_up_to_the_difference_of_the_iterations(schedule, make_timeline):
    @given(SECONDS, SECONDS, st.floats(min_value=0, max_value=1e-2))
    def check(one, other, wait):
        ops = ("fwd", "loss", "bwd", "ar", "upd")
        timelines = [make_timeline(dict(zip(ops, times, strict=True)), wait=wait) for times in (one, other)]
        shares = explain(*timelines, schedule, most=9)
        assert sum(s.difference_s for s in shares) == pytest.approx(sum(one) - sum(other), abs=1e-12)
        sizes = [abs(s.difference_s) for s in shares]
        assert sizes == sorted(sizes, reverse=True)

    check()
