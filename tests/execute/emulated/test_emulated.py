"""Runs whose computations are waits: every op kind, the same messages as in training, and spans as long as stated."""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from stanza_sim.base.precision import Precision
from stanza_sim.cluster import load_cluster
from stanza_sim.execute.emulated.emulate import core_of, unseen
from stanza_sim.execute.rank.job import ComputeMode, Emulation, Measurement, RunJob, Training
from stanza_sim.execute.start import launch
from stanza_sim.execute.start.launch import Pool, RankPlace
from stanza_sim.execute.start.measure import merge
from stanza_sim.execute.start.tasks import DescribeTask, RunTask
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Compute, Schedule, Wire, parse, project
from stanza_sim.schedule.progress import Issue
from stanza_sim.simulate.costs import costs_for
from stanza_sim.simulate.lowering.compute_times import compute_seconds
from stanza_sim.simulate.lowering.lower import lower
from stanza_sim.timeline.spans import Span
from tests.execute.execute_variants import VARIANTS, expected_bytes, schedule_of
from tests.execute.test_runs import every_kind

TRAINING = Training(iterations=6, warmup=1)


def emulation(schedule: Schedule, *, on_one: bool = False, capacity: float = 1.0) -> Emulation:
    """Durations that tell ops and ranks apart; each rank has a device, or `on_one` they all share."""
    names = [op.name for op in schedule.ops if isinstance(op, Compute)]
    ranks = range(schedule.world_size)
    return Emulation(
        seconds=tuple({name: 1e-3 * (1 + r) + 1e-4 * i for i, name in enumerate(names)} for r in ranks),
        device=(0,) * len(ranks) if on_one else tuple(ranks),
        capacity=(capacity,) * (1 if on_one else len(ranks)),
    )


def job_of(model: ModelProfile, schedule: Schedule, **more: object) -> RunJob:
    job = RunJob(schedule=schedule, model=model, training=TRAINING, timeout_s=15, emulation=emulation(schedule))
    return replace(job, **more)


def run(pool: Pool, job: RunJob) -> Measurement:
    return merge(job, [r for r in pool.run(RunTask(job)) if r is not None])


@pytest.mark.parametrize("issue", [Issue.EAGER, Issue.IN_ORDER])
def test_every_op_kind_lasts_as_long_as_stated(pool: Pool, tiny: ModelProfile, issue: Issue) -> None:
    schedule = every_kind()
    job = job_of(tiny, schedule, issue=issue)
    reports = [r for r in pool.run(RunTask(job)) if r is not None]
    measured = merge(job, reports)
    seconds = job.emulation.seconds
    computed = [s for s in measured.timeline.spans if isinstance(schedule.op(s.op), Compute)]
    assert {s.op for s in computed} == set(seconds[0])
    ends: dict[tuple[int, str], float] = defaultdict(float)
    for s in sorted(computed, key=lambda s: s.start_s):
        assert s.end_s - s.start_s >= seconds[s.rank][s.op] - 1e-7
        if s.rank == 2:  # ranks 0 and 1 have two lanes, which share their device
            assert s.end_s - s.start_s == pytest.approx(seconds[s.rank][s.op], abs=1e-7)
        assert s.start_s >= ends[s.rank, s.lane] - 1e-9
        ends[s.rank, s.lane] = s.end_s
    for report in reports:  # nothing is sent before what it waits for would have been computed
        names = [u.op.name for u in project(schedule, report.rank).units]
        ended = {(names[u], i): end for u, i, _, end in report.spans}
        for message in report.sends:
            for name in schedule.op(names[message.unit]).after:
                assert message.posted_s >= ended.get((name, message.iteration), 0.0)
    sent, received = expected_bytes(schedule, TRAINING.iterations)
    assert (list(measured.sent_bytes), list(measured.received_bytes)) == (sent, received)
    assert measured.compute is ComputeMode.EMULATED
    assert (measured.losses, measured.accuracy, measured.parameters) == ((), None, None)


@pytest.mark.parametrize(
    "name", ["ps-2-cut", "colocated-cut", "stanza-2-uneven-ps", "all-reduce-by-tree", "one-rank", "head", "factors"]
)
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_the_same_messages_travel_as_in_training(
    pool: Pool, tiny: ModelProfile, name: str, precision: Precision
) -> None:
    _, strategy, world, chosen = next(v for v in VARIANTS if v[0] == name)
    gradients = Wire.BF16 if precision.is_half else Wire.NATIVE
    schedule = schedule_of(tiny, strategy, world, chosen, precision=precision, gradients=gradients)
    measured = run(pool, job_of(tiny, schedule))
    sent, received = expected_bytes(schedule, TRAINING.iterations)
    assert (list(measured.sent_bytes), list(measured.received_bytes)) == (sent, received)


CHAIN = """
schedule chain model=m world=2 batch=1
group a 0
group b 1
f: forward x @a after_previous=pong
ping: transfer act(x) a->b one-to-one nbytes=64 channel=p after=f
g: forward y @b after=ping
pong: transfer actgrad(x) b->a one-to-one nbytes=64 channel=q after=g
"""


@pytest.mark.alone
def test_an_iteration_takes_what_its_computations_take(pool: Pool, tiny: ModelProfile) -> None:
    """Two ranks take turns; what is not computation is two small messages and waking up."""
    stated = Emulation(seconds=({"f": 0.02}, {"g": 0.03}), device=(0, 1), capacity=(1.0, 1.0))
    schedule = parse(CHAIN)
    reports = pool.run(RunTask(job_of(tiny, schedule, emulation=stated)))
    measured = merge(job_of(tiny, schedule, emulation=stated), [r for r in reports if r is not None])
    starts = sorted(s.start_s for s in measured.timeline.spans if s.op == "f")
    assert min(later - earlier for earlier, later in pairwise(starts)) >= 0.05 - 1e-9
    assert 0.048 < measured.iteration_s < 0.06  # ends are noted by threads that may wake up late


def test_a_long_run_tells_how_far_it_is(pool: Pool, tiny: ModelProfile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "MOVING_S", 0.3)
    stated = Emulation(seconds=({"f": 0.01}, {"g": 0.01}), device=(0, 1), capacity=(1.0, 1.0), dilation=10.0)
    told: list[int] = []
    job = job_of(tiny, parse(CHAIN), emulation=stated, training=Training(iterations=15, warmup=1))
    pool.run(RunTask(job), moving=told.append)  # 3 s
    assert told
    assert told == sorted(set(told) & set(range(1, 15)))


CHAINS = """
schedule chains model=m world=2 batch=1
group a 0
group b 1
f: forward x @a
g: forward y @a after=f
h: forward z @a after=g
push: transfer act(y) a->b one-to-one nbytes=64 channel=p after=g
e: forward x @b after=push
u: update y @a lane=other after=h
last: update z @a after=h after_previous=h
"""


def test_only_what_is_seen_from_outside_the_lane_is_waited_for(pool: Pool, tiny: ModelProfile) -> None:
    schedule = parse(CHAINS)
    assert unseen(project(schedule, 0)) == {"f"}  # g is sent, h is awaited by another lane, last ends the iteration
    assert unseen(project(schedule, 1)) == frozenset()
    seconds = {"f": 0.01, "g": 0.02, "h": 0.005, "u": 0.001, "last": 0.001}
    stated = Emulation(seconds=(seconds, {"e": 0.001}), device=(0, 1), capacity=(2.0, 1.0))
    (report, _, *_) = (r for r in pool.run(RunTask(job_of(tiny, schedule, emulation=stated))) if r is not None)
    names = [u.op.name for u in project(schedule, 0).units]
    ended = {(names[u], i): end for u, i, _, end in report.spans}
    for message in report.sends:
        assert message.posted_s >= ended["g", message.iteration] >= ended["f", message.iteration] + 0.02 - 1e-9


def test_many_ranks_of_a_machine_take_its_cores_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {3, 5})
    assert [core_of(r, ["a"] * 4) for r in range(4)] == [None] * 4
    boots = ["a", "b", "a", "a", "b", "a", "a"]
    assert [core_of(r, boots) for r in range(7)] == [3, None, 5, 3, None, 5, 3]


@pytest.mark.parametrize("credit", [0, 1, 2])
def test_with_credit_what_is_urgent_overtakes(pool: Pool, tiny: ModelProfile, credit: int) -> None:
    """Eight messages of 16 MB wait for each other when a small one of lower priority number gets ready."""
    to = f"a->b one-to-one channel=p credit={credit}"
    lines = ["schedule s model=m world=2 batch=1", "group a 0", "group b 1", "f: forward x @a"]
    lines += [f"low{i}: transfer act(x) {to} nbytes=16000000 priority=5 after=f" for i in range(8)]
    lines += ["g: forward y @a after=f", f"high: transfer act(x) {to} nbytes=64 priority=1 after=g"]
    schedule = parse("\n".join(lines))
    stated = Emulation(seconds=({"f": 1e-3, "g": 2e-3}, {}), device=(0, 1), capacity=(1.0, 1.0))
    reports = [r for r in pool.run(RunTask(job_of(tiny, schedule, emulation=stated))) if r is not None]
    for report, messages in ((r, r.sends or r.receives) for r in reports[:2]):
        names = [u.op.name for u in project(schedule, report.rank).units]
        for i in range(TRAINING.iterations):
            mine = [m for m in messages if m.iteration == i]
            order = sorted(mine, key=lambda m: m.posted_s if report.rank == 0 else m.arrived_s)
            assert len(order) == 9
            place = [names[m.unit] for m in order].index("high")
            assert place < 8 if credit else place == 8


@pytest.mark.alone
def test_ranks_on_one_device_take_turns(pool: Pool, tiny: ModelProfile) -> None:
    """Three ranks that compute all the time, on one device and on two cores: three and one and a half times as long."""
    schedule = parse("schedule s model=m world=3 batch=1\ngroup a 0-2\nf: forward x @a\n")
    folder = Path(tempfile.gettempdir())
    before = set(folder.glob("stanza-sim-*-0"))
    for capacity, longer in ((1.0, 3.0), (2.0, 1.5), (3.0, 1.0)):
        stated = Emulation(seconds=({"f": 0.02},) * 3, device=(0, 0, 0), capacity=(capacity,))
        measured = run(pool, job_of(tiny, schedule, emulation=stated))
        assert measured.iteration_s == pytest.approx(0.02 * longer, rel=0.15)  # other programs may make ranks late
    assert set(folder.glob("stanza-sim-*-0")) <= before


@pytest.mark.alone
def test_a_model_of_any_size_needs_no_more_than_its_longest_message(pool: Pool) -> None:
    """All of VGG-16 would be 550 MB at each rank, and its arithmetic minutes."""
    from stanza_sim import strategies
    from stanza_sim.model.zoo import load_model

    model = load_model("vgg16", name="vgg16")
    found = strategies.get("all_reduce")
    schedule = found.build(model, world_size=1, batch_per_worker=64, settings=found.Settings())
    cluster = load_cluster("star", nodes=2)
    costs = costs_for(cluster, model)
    alone = compute_seconds(schedule, model, costs)
    stated = Emulation(seconds=alone, device=(0,), capacity=(1.0,))
    job = RunJob(
        schedule=schedule,
        model=replace(model, factory=None),
        training=Training(iterations=3, warmup=1),
        emulation=stated,
    )
    begin = time.monotonic()
    measured = run(pool, job)
    assert time.monotonic() - begin < 10
    assert measured.iteration_s == pytest.approx(sum(alone[0].values()), rel=0.05)


def test_what_is_dilated_takes_longer_and_is_reported_as_stated(pool: Pool, tiny: ModelProfile) -> None:
    """Five times as long by our clock, and every reported time a fifth of what the ranks saw, of every kind of op."""
    schedule = every_kind()
    stated = replace(emulation(schedule), dilation=5.0)
    job = job_of(tiny, schedule, emulation=stated)
    reports = [r for r in pool.run(RunTask(job)) if r is not None]
    measured = merge(job, reports)
    undivided = merge(replace(job, emulation=replace(stated, dilation=1.0)), reports)
    assert (measured.dilation, undivided.dilation) == (5.0, 1.0)
    for key in ("iteration_s", "iteration_s_min", "iteration_s_max"):
        assert getattr(measured, key) == pytest.approx(getattr(undivided, key) / 5)
    assert measured.samples_per_s == pytest.approx(undivided.samples_per_s * 5)
    assert (measured.sent_bytes, measured.received_bytes) == (undivided.sent_bytes, undivided.received_bytes)
    for one, other in zip(measured.timeline.spans, undivided.timeline.spans, strict=True):
        assert replace(one, start_s=other.start_s, end_s=other.end_s) == other
        assert (one.start_s, one.end_s) == (other.start_s / 5, other.end_s / 5)
    ends = measured.timeline.iteration_end_s
    assert ends == {r: tuple(t / 5 for t in each) for r, each in undivided.timeline.iteration_end_s.items()}
    alone = [s for s in measured.timeline.spans if s.rank == 2 and isinstance(schedule.op(s.op), Compute)]
    for s in alone:  # ranks 0 and 1 have two lanes, which share their device
        assert s.duration_s == pytest.approx(stated.seconds[2][s.op], abs=1e-7)
        assert other_duration(undivided, s) == pytest.approx(5 * stated.seconds[2][s.op], abs=1e-6)


def other_duration(measurement: Measurement, span: Span) -> float:
    """How long what `span` is of took by `measurement`."""
    key = span.op, span.rank, span.iteration
    return next(s.duration_s for s in measurement.timeline.spans if (s.op, s.rank, s.iteration) == key)


def test_durations_are_those_of_the_prediction(tiny: ModelProfile) -> None:
    """Uneven slices, several owners, ranks with other numbers of samples and other speeds."""
    from stanza_sim.simulate.lowering.fold import fold

    cluster = load_cluster("star", nodes=5)
    cluster = replace(cluster, hosts=(replace(cluster.hosts[0], device_speed=0.5), *cluster.hosts[1:]))
    costs = costs_for(cluster, tiny)
    for name in ("ps-2-cut", "stanza-2-uneven-ps"):
        _, strategy, world, chosen = next(v for v in VARIANTS if v[0] == name)
        schedule = schedule_of(tiny, strategy, world, chosen)
        found = compute_seconds(schedule, tiny, costs)
        folding = fold(schedule, cluster)
        rank_classes = lower(schedule, tiny, cluster, folding, costs).rank_classes
        for rank in range(world):
            rank_class = rank_classes[folding.class_of[rank]]
            predicted = {
                u.op.name: rank_class.activities[u.index].work
                for u in rank_class.program.units
                if u.index in rank_class.activities
            }
            assert found[rank] == predicted


@pytest.mark.processes
def test_ranks_are_started_where_they_are_placed() -> None:
    """Two hosts that this machine has by name only; each with its environment, through a prefix of its own."""
    places = [
        RankPlace(host=f"h{r // 2}", prefix=("env", f"MARK={r}"), environment={"OTHER": str(r)}) for r in range(3)
    ]
    with Pool(3, places=places) as pool:
        assert [info.host for info in pool.run(DescribeTask())] == ["h0", "h0", "h1"]
        for rank, pid in enumerate(pool.process_ids):
            environment = Path(f"/proc/{pid}/environ").read_text().split("\0")
            assert {f"MARK={rank}", f"OTHER={rank}"} <= set(environment)
