"""The critical path: closed forms where there are any, and its length everywhere."""

from __future__ import annotations

from itertools import pairwise

import pytest

import stanza_sim as ss
from stanza_sim import strategies
from stanza_sim.schedule import parse
from stanza_sim.simulate.costs import pass_times
from stanza_sim.timeline.critical_path import StepKind, critical_path
from stanza_sim.timeline.spans import Span, Timeline

MODEL = ss.load_model("vgg16")
CLUSTER = ss.load_cluster("ec2-p3-10", nodes=4)


def check(prediction: ss.Prediction) -> ss.CriticalPath:
    path = prediction.critical_path()
    assert path.steps
    assert all(a.end_s == pytest.approx(b.start_s, abs=1e-12) for a, b in pairwise(path.steps))
    assert all(step.seconds >= 0 for step in path)
    assert sum(step.seconds for step in path) == pytest.approx(path.seconds)
    assert sum(path.by_kind.values()) == pytest.approx(path.iteration_s)
    assert path.iteration_s == pytest.approx(prediction.iteration_s, rel=1e-6)
    return path


def schedules(name: str) -> list[ss.Schedule]:
    strategy = strategies.get(name)
    space = strategy.space(MODEL, world_size=4, batch_per_worker=32, local_size=1)
    times = pass_times(CLUSTER, MODEL)
    return [
        strategies.build(name, MODEL, world_size=4, batch_per_worker=32, settings=one, cluster=CLUSTER, times=times)
        for one in list(space)[:6]
    ]


@pytest.mark.parametrize("name", strategies.names())
def test_its_length_is_the_time_of_an_iteration(name: str) -> None:
    for schedule in schedules(name):
        folded, unfolded = (
            ss.predict(schedule, CLUSTER, model=MODEL, engine=engine) for engine in ("plain", "compiled")
        )
        assert check(folded).iteration_s == pytest.approx(check(unfolded).iteration_s, rel=1e-6)
        assert folded.critical_path().closed


@pytest.mark.parametrize("name", ["parameter_server", "all_reduce", "stanza"])
def test_on_a_fabric_with_shared_links(name: str) -> None:
    cluster = ss.load_cluster("leaf-spine", nodes=8)
    check(ss.predict(ss.build_schedule(name, MODEL, cluster, batch_per_worker=32), cluster))


def test_one_rank_alone_computes_all_the_time() -> None:
    cluster = ss.load_cluster("ec2-p3-10", nodes=2)
    prediction = ss.predict(ss.build_schedule("local", MODEL, cluster, batch_per_worker=32), cluster)
    path = check(prediction)
    assert set(path.by_kind) == {StepKind.COMPUTE}
    # Every computation of the rank, once.
    assert sorted(step.op for step in path) == sorted(
        op.name for op in prediction.schedule.for_rank(path.steps[0].rank)
    )


def test_a_server_that_everybody_waits_for() -> None:
    """One server, nothing overlaps: forward, backward, push, update, pull, one after the other."""
    prediction = ss.predict(
        ss.build_schedule("parameter_server", MODEL, CLUSTER, batch_per_worker=32, servers=1, overlap=False), CLUSTER
    )
    path = check(prediction)
    rate = CLUSTER.hosts[0].nic.goodput_Bps
    moving = 2 * 3 * MODEL.nbytes / rate  # three workers' gradients into the server's NIC, parameters out of it
    assert path.by_kind[StepKind.TRANSFER] == pytest.approx(moving, rel=1e-3)
    posting = path.by_kind[StepKind.WAIT]  # the overheads of messages
    assert 0 < posting < 0.01
    assert path.by_kind[StepKind.COMPUTE] + posting == pytest.approx(prediction.iteration_s - moving, abs=1e-3 * moving)


FORTH_AND_BACK = """
schedule chain model=toy world=2 batch=1 microbatches=1 itemsize=4
group left 0
group right 1
a: forward x @left after_previous=back
aside: forward y @left lane=other after_previous=back
go: transfer act(x) left->right one-to-one nbytes=8 after=a
b: forward z @right after=go
back: transfer act(z) right->left one-to-one nbytes=8 after=b
"""


def test_a_chain_with_a_closed_form() -> None:
    """`a` takes 4 s, its message 2 s; half a second later `b` takes 3 s, its message 1 s. `aside` hides behind `a`."""
    spans = []
    for i in range(5):

        def span(op: str, rank: int, side: str, start: float, end: float, at: float = 10.5 * i, i: int = i) -> Span:
            return Span(op=op, rank=rank, iteration=i, lane="", side=side, start_s=at + start, end_s=at + end)

        spans += [span("a", 0, "", 0, 4), span("aside", 0, "", 0, 1), span("b", 1, "", 6.5, 9.5)]
        spans += [span("go", 0, "sent", 4, 6), span("go", 1, "recv", 4, 6)]
        spans += [span("back", 1, "sent", 9.5, 10.5), span("back", 0, "recv", 9.5, 10.5)]
    ends = {rank: tuple(10.5 * (i + 1) for i in range(5)) for rank in (0, 1)}
    timeline = Timeline(spans=tuple(spans), iteration_end_s=ends)
    path = critical_path(parse(FORTH_AND_BACK), timeline, (2, 3))
    assert path.closed
    assert path.iterations == 1
    assert [(step.kind, step.op, step.rank, step.iteration, step.seconds) for step in path] == [
        (StepKind.COMPUTE, "a", 0, 3, 4.0),
        (StepKind.TRANSFER, "go", 1, 3, 2.0),
        (StepKind.WAIT, "b", 1, 3, 0.5),
        (StepKind.COMPUTE, "b", 1, 3, 3.0),
        (StepKind.TRANSFER, "back", 0, 3, 1.0),
    ]
    assert path.iteration_s == 10.5
    # Cut short, the circle cannot close: the path is then the last period.
    short = Timeline(spans=tuple(s for s in spans if s.iteration > 2), iteration_end_s=ends, first_iteration=3)
    cut = critical_path(parse(FORTH_AND_BACK), short, (2, 3))
    assert not cut.closed
    assert cut.seconds == 10.5


def test_messages_that_a_queue_holds_up_follow_each_other() -> None:
    text = """
schedule queue model=toy world=2 batch=1 microbatches=1 itemsize=4
group left 0
group right 1
a: forward x @left
one: transfer act(x) left->right one-to-one nbytes=8 after=a
two: transfer act(y) left->right one-to-one nbytes=8 after=a
"""
    spans = []
    for i in range(6):
        computed = Span(op="a", rank=0, iteration=i, lane="main", side="", start_s=8.0 * i, end_s=8.0 * i + 0.5)
        spans.append(computed)
        for op, start in (("one", 8.0 * i + 1), ("two", 8.0 * i + 5)):
            for rank, side in ((0, "sent"), (1, "recv")):
                spans.append(Span(op=op, rank=rank, iteration=i, lane="", side=side, start_s=start, end_s=start + 4))
    ends = {rank: tuple(8.0 * (i + 1) + 1 for i in range(6)) for rank in (0, 1)}
    path = critical_path(parse(text), Timeline(spans=tuple(spans), iteration_end_s=ends), (3, 4))
    assert path.iteration_s == 8.0
    assert {step.op: step.seconds for step in path} == {"one": 4.0, "two": 4.0}
