"""The compiled engine gives what the one in Python gives, repeat by repeat, whatever runs beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stanza_sim.base.errors import RunError
from stanza_sim.cluster import Cluster, Intra, IntraKind, Nic, Staging, TokenBucket, Traffic, star
from stanza_sim.experiment.run import run_experiment
from stanza_sim.model import zoo
from stanza_sim.schedule import Schedule, Transfer, parse
from stanza_sim.schedule.progress import Issue
from stanza_sim.simulate import Collectives, Prediction, simulate
from stanza_sim.simulate import run as run_module
from stanza_sim.simulate.lowering.arrays import lower_to_arrays
from stanza_sim.simulate.lowering.fold import unfolded
from stanza_sim.simulate.lowering.lower import lower
from stanza_sim.simulate.plain.engine import Engine
from stanza_sim.simulate.repeats import simulate_repeats
from stanza_sim.simulate.run import SimulationCase, SimulationOutcome
from stanza_sim.simulate.variation import JitterKind, Variation
from tests.cluster.fabric_files import LEAF_SPINE, TORUS, fabric_text, load_text
from tests.schedule.random_schedules import legal_schedules
from tests.schedule.toys import SOME, ZERO, build, cluster, predict, toy
from tests.simulate.lowering.test_fold import CLUSTERS, MODEL, STRATEGIES

pytest.importorskip("numba")

from stanza_sim.simulate.compiled.engine import CompiledEngine
from stanza_sim.simulate.compiled.graph import graph_of

# In one worker, which compiles what others then find in numba's cache: in a new checkout that takes half a minute.
pytestmark = pytest.mark.xdist_group("compiled")

JITTER = Variation(seed=2, jitter=JitterKind.LOGNORMAL, spread=0.2, straggler_probability=0.1, straggler_slowdown=3.0)
TIMES = 2


def both(schedule: Schedule, on: Cluster, drawn: Variation = JITTER) -> None:
    """Simulate in Python and in compiled code, and compare."""
    made = {h.device_speed: SOME.at_speed(h.device_speed) for h in on.hosts}
    found: list[Prediction] = []
    for engine in ("plain", "compiled"):
        found.append(
            simulate_repeats(
                schedule,
                MODEL,
                on,
                lambda r: made[on.host_of(r).device_speed],
                variation=drawn,
                repeats=TIMES,
                engine=engine,
            )
        )
    plain, fast = found
    assert plain.repeats is not None
    assert fast.repeats is not None
    for name in ("p5_s", "median_s", "p95_s"):
        assert getattr(fast.repeats, name) == pytest.approx(getattr(plain.repeats, name), rel=1e-9), name
    for name in ("iteration_s", "exposed_comm_s", "idle_s", "bound_s"):
        assert getattr(fast, name) == pytest.approx(getattr(plain, name), rel=1e-6, abs=1e-12), name
    assert fast.bottleneck == plain.bottleneck
    if len(on.placement) == len(on.hosts):  # else devices of one host have one label
        assert fast.utilisation == pytest.approx(plain.utilisation, rel=1e-6)
    assert (fast.sent_bytes, fast.received_bytes) == (plain.sent_bytes, plain.received_bytes)
    spans = [{(s.op, s.rank, s.iteration, s.side): s for s in p.timeline.spans if s.iteration < 7} for p in found]
    assert spans[0].keys() == spans[1].keys()
    for key, span in spans[0].items():
        assert (spans[1][key].lane, spans[1][key].nbytes) == (span.lane, span.nbytes)
        assert spans[1][key].start_s == pytest.approx(span.start_s, rel=1e-9, abs=1e-12), key
        assert spans[1][key].end_s == pytest.approx(span.end_s, rel=1e-9, abs=1e-12), key


@pytest.mark.parametrize("where", ["latency and overhead", "two ranks per host"])
@pytest.mark.parametrize("name", list(STRATEGIES))
def test_repeats_are_those_in_python(name: str, where: str) -> None:
    strategy, options = STRATEGIES[name]
    both(build(strategy, MODEL, 5, **options), CLUSTERS[where](5))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_schedules_with_jitter(data: st.DataObject) -> None:
    schedule: Schedule = data.draw(legal_schedules(MODEL))
    where = data.draw(st.sampled_from(list(CLUSTERS)))
    both(schedule, CLUSTERS[where](schedule.world_size))


# ---- folded ---------------------------------------------------------------------------------------------------------


def both_folded(schedule: Schedule, on: Cluster, issue: Issue = Issue.EAGER) -> int:
    """Simulate folded ranks in Python and in compiled code, and compare; return how many ranks folding saves."""
    costs = {h.device_speed: SOME.at_speed(h.device_speed) for h in on.hosts}
    of = (schedule, MODEL, on, lambda r: costs[on.host_of(r).device_speed])
    plain, fast = (simulate(*of, engine=engine, issue=issue) for engine in ("plain", "compiled"))
    assert fast.timeline.multiplicity == plain.timeline.multiplicity
    assert (fast.iterations, fast.steady, fast.bottleneck) == (plain.iterations, plain.steady, plain.bottleneck)
    for name in ("iteration_s", "exposed_comm_s", "idle_s", "bound_s"):
        assert getattr(fast, name) == pytest.approx(getattr(plain, name), rel=1e-9, abs=1e-12), name
    for name in ("utilisation", "op_seconds", "sent_bytes", "received_bytes"):
        assert getattr(fast, name) == pytest.approx(getattr(plain, name), rel=1e-9, abs=1e-12), name
    spans = [{(s.op, s.rank, s.iteration, s.side): s for s in p.timeline.spans} for p in (plain, fast)]
    assert {key for key in spans[0] if key[2] < plain.iterations} <= spans[1].keys()
    for key in spans[0].keys() & spans[1].keys():
        assert (spans[1][key].lane, spans[1][key].nbytes) == (spans[0][key].lane, spans[0][key].nbytes)
        for end in ("start_s", "end_s"):
            assert getattr(spans[1][key], end) == pytest.approx(getattr(spans[0][key], end), rel=1e-9, abs=1e-12), key
    return on.world_size - len(plain.timeline.multiplicity)


@pytest.mark.parametrize("issue", [Issue.EAGER, Issue.IN_ORDER])
@pytest.mark.parametrize("where", CLUSTERS)
def test_folded_ranks(where: str, issue: Issue) -> None:
    saved = 0
    for index, (name, options) in enumerate(STRATEGIES.values()):
        if (index + len(where)) % 3 == (issue is Issue.EAGER):
            saved += both_folded(build(name, MODEL, 6, **options), CLUSTERS[where](6), issue)
    assert saved or where == "alternating latency"


@pytest.mark.parametrize(
    ("name", "fabric"),
    [
        ("co-located", LEAF_SPINE),
        ("co-located, cut", LEAF_SPINE),
        ("all-reduce", TORUS),
        ("Stanza, servers", LEAF_SPINE),
        ("Stanza, servers", TORUS),
    ],
)
def test_folded_ranks_on_a_fabric_with_shared_links(name: str, fabric: str, tmp_path: Path) -> None:
    strategy, options = STRATEGIES[name]
    on = load_text(tmp_path, fabric_text(fabric, host=""))
    assert both_folded(build(strategy, MODEL, on.world_size, **options), on)


@pytest.mark.parametrize("name", ["co-located, cut", "one server", "all-reduce"])
def test_folded_ranks_on_staged_devices(name: str) -> None:
    strategy, options = STRATEGIES[name]
    on = CLUSTERS["two ranks per host"](6)
    staging = Staging(bandwidth_Bps=4e6, latency_s=2e-5)
    assert both_folded(
        build(strategy, MODEL, 6, **options), star([replace(h, staging=staging) for h in on.hosts], ranks_per_host=2)
    )


@settings(max_examples=15, deadline=None)
@given(schedule=legal_schedules(MODEL), where=st.sampled_from(list(CLUSTERS)), issue=st.sampled_from(list(Issue)))
def test_random_folded_schedules(schedule: Schedule, where: str, issue: Issue) -> None:
    both_folded(schedule, CLUSTERS[where](schedule.world_size), issue)


# ---- what varies otherwise ------------------------------------------------------------------------------------------


def test_traffic_that_comes_and_goes() -> None:
    traffic = Traffic(bandwidth_Bps=5e5, on_s=0.02, off_s=0.03, seed=3)
    on = cluster(4, nic=Nic(bandwidth_Bps=1e6, overhead_s=1e-5, background=traffic))
    schedule = build("parameter_server", MODEL, 4, placement="colocated", assignment="cut")
    both(schedule, on)
    both(schedule, on, Variation(seed=1))  # nothing but the traffic is drawn


@pytest.mark.parametrize("name", ["co-located, cut", "one server", "all-reduce", "Stanza, servers"])
@pytest.mark.parametrize("hosts", [(0, 1, 2), (1,)])
def test_staged_devices(name: str, hosts: tuple[int, ...]) -> None:
    """Two ranks on each of three hosts, over their own links or over the loopback, which is staged as well."""
    strategy, options = STRATEGIES[name]
    schedule = build(strategy, MODEL, 6, **options)
    for intra in (None, Intra(kind=IntraKind.NVLINK, bandwidth_Bps=5e6, latency_s=1e-6)):
        on = CLUSTERS["two ranks per host"](6)
        staging = Staging(bandwidth_Bps=4e6, latency_s=2e-5)
        made = (replace(h, intra=intra, staging=staging if i in hosts else None) for i, h in enumerate(on.hosts))
        both(schedule, star(list(made), ranks_per_host=2))


@pytest.mark.parametrize("name", ["co-located, cut", "one server", "all-reduce"])
@pytest.mark.parametrize("peak_Bps", [2e6, float("inf")])
def test_token_buckets(name: str, peak_Bps: float) -> None:
    strategy, options = STRATEGIES[name]
    traffic = Traffic(bandwidth_Bps=2e5, on_s=0.02, off_s=0.03, seed=3)
    nic = Nic(bandwidth_Bps=1e6, overhead_s=2e-5, bucket=TokenBucket(nbytes=3e4, peak_Bps=peak_Bps), background=traffic)
    other = replace(nic, bucket=TokenBucket(nbytes=100.0, peak_Bps=4e6), background=None)
    both(build(strategy, MODEL, 4, **options), cluster(4, nic=nic, nics={2: other}))


# ---- side by side ---------------------------------------------------------------------------------------------------


def a_case(schedule: Schedule, on: Cluster, times: int = 20, engine: str = "compiled") -> SimulationCase:
    return SimulationCase(
        schedule,
        MODEL,
        on,
        lambda r: SOME,
        by_chance=True,
        fold_ranks=True,
        collectives=Collectives.ACTIVITY,
        times=times,
        engine=engine,
    )


def test_the_answer_does_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = build("parameter_server", MODEL, 5, placement="colocated", assignment="cut")
    on = CLUSTERS["latency and overhead"](5)
    found = []
    for cores in (1, 2, 7):
        monkeypatch.setattr(run_module, "available_cores", lambda cores=cores: cores)
        assert a_case(schedule, on).side_by_side == cores
        found.append(
            simulate_repeats(schedule, MODEL, on, lambda r: SOME, variation=JITTER, repeats=9, engine="compiled")
        )
    assert found[0].timeline.spans
    assert found[0] == found[1] == found[2]


def test_memory_limits_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "available_cores", lambda: 64)
    case = a_case(build("parameter_server", MODEL, 5), cluster(5))
    assert case.graph is not None
    monkeypatch.setattr(run_module, "MOST_NODES", 7 * case.graph.size)
    assert case.side_by_side == 3
    monkeypatch.setattr(run_module, "MOST_NODES", 1)
    assert case.side_by_side == 1
    assert a_case(case.schedule, cluster(5), engine="plain").side_by_side == 1  # Python lets only one thread on


def test_an_interrupt_ends_the_other_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "available_cores", lambda: 2)
    begun: list[int] = []
    simulated = SimulationCase.run

    def run(
        self: SimulationCase, drawn: Variation, *arguments: object, stop: Event, **options: object
    ) -> SimulationOutcome:
        begun.append(drawn.repeat)
        if drawn.repeat == 0:
            raise KeyboardInterrupt
        assert stop.wait(60), "nobody was told to stop"
        return simulated(self, drawn, *arguments, stop=stop, **options)

    monkeypatch.setattr(SimulationCase, "run", run)
    with pytest.raises(KeyboardInterrupt):
        simulate_repeats(
            build("all_reduce", MODEL, 3),
            MODEL,
            cluster(3),
            lambda r: SOME,
            variation=JITTER,
            repeats=50,
            engine="compiled",
        )
    assert len(begun) < 5


def test_what_is_told_to_stop_stops() -> None:
    case, stop = a_case(build("all_reduce", MODEL, 3), cluster(3)), Event()
    assert case.run(JITTER, stop=stop).iteration_s > 0
    stop.set()
    with pytest.raises(RunError, match="stopped"):
        case.run(JITTER, stop=stop)


def test_an_outcome_does_not_depend_on_what_ran_before() -> None:
    case = a_case(build("stanza", MODEL, 5), CLUSTERS["latency and overhead"](5))
    first = case.run(JITTER)
    other = case.run(replace(JITTER, repeat=1))
    again = case.run(JITTER)
    assert first.ends == again.ends != other.ends
    assert first.spans() == again.spans()


# ---- what does not happen every day ---------------------------------------------------------------------------------


def test_a_rank_may_run_far_ahead() -> None:
    """What it does then needs more room than there is at first, for iterations as for spans."""
    schedule = parse("""\
schedule apart model=toy world=2 batch=1
group a 0
group b 1
f: forward c1 @a
g: forward c1 @b
h: forward pool @b after=g
""")
    on = cluster(2, speeds={1: 0.001})
    costs = {r: SOME.at_speed(on.host_of(r).device_speed) for r in (0, 1)}
    arrays = lower_to_arrays(schedule, toy(1), on, unfolded(on), costs.__getitem__)
    engine = Engine(schedule, lower(schedule, toy(1), on, unfolded(on), costs.__getitem__))
    fast = CompiledEngine(graph_of(schedule, arrays), arrays, (), JITTER)
    engine.variation = JITTER
    ends = []
    for each in (engine, fast):
        each.run(lambda known: len(known[0]) == 3 and not ends.append(known))
    assert ends[0] == [pytest.approx(e, rel=1e-9) for e in ends[1]]
    ahead = [s for s in fast.log().spans() if s.rank == 0]
    assert len(ahead) > 500
    assert np.diff([s.start_s for s in ahead]).min() > 0
    plain = {(s.op, s.iteration): s.end_s for s in engine.spans}
    for span in ahead[:-1]:
        assert span.end_s == pytest.approx(plain[span.op, span.iteration], rel=1e-9)


def test_slices_of_more_bytes_than_32_bits_hold() -> None:
    model, on = zoo.get("vgg16"), cluster(6)
    schedule = build("stanza", model, 6, batch=400_000, fc_workers=2, fc_parallel="model")
    found = lower_to_arrays(schedule, model, on, unfolded(on), lambda r: SOME).messages.nbytes
    sent = [op for op in schedule.ops if isinstance(op, Transfer)]
    assert any(op.slices for op in sent)
    expected = [schedule.message_bytes(op, a, b) for op in sent for a, b in schedule.pairs(op)]
    assert found.tolist() == [n for n in expected if n]


def test_what_is_ready_at_one_instant_is_posted_by_priority() -> None:
    """`low` comes after an op that takes no time, but before it is too late: `high` is not posted before it."""
    schedule = parse("""\
schedule choice model=toy world=2 batch=1
group a 0
group b 1
f: forward f2 @a
high: transfer act(c1)+labels a->b one-to-one nbytes=32 channel=h priority=2 after=f
none: loss f2 @a after=f
low: transfer act(pool) a->b one-to-one nbytes=32 channel=l priority=1 after=none
""")
    on, costs = cluster(2, nic=Nic(bandwidth_Bps=1e6, overhead_s=1e-3)), replace(SOME, loss=0.0)
    arrays = lower_to_arrays(schedule, toy(1), on, unfolded(on), lambda r: costs)
    plain = Engine(schedule, lower(schedule, toy(1), on, unfolded(on), lambda r: costs))
    fast = CompiledEngine(graph_of(schedule, arrays), arrays, ())
    for engine in (plain, fast):
        engine.run(lambda known: len(known[0]) == 1)
    for found in (plain.spans, fast.log().spans()):
        start_s = {s.op: s.start_s for s in found if s.side == "sent" and s.iteration == 0}
        (ready_s,) = (s.end_s for s in found if s.op == "f" and s.iteration == 0)
        assert start_s["low"] == pytest.approx(ready_s + 1e-3)
        assert start_s["high"] > start_s["low"]


@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_costs_of_zero_do_not_hang(world_size: int) -> None:
    for name, given_settings in (("all_reduce", {}), ("parameter_server", {"placement": "colocated"})):
        schedule = build(name, MODEL, world_size, **given_settings)
        found = predict(schedule, MODEL, cluster(world_size), ZERO, engine="compiled")
        assert (found.iteration_s == 0.0) == (world_size == 1)


# ---- how far it is --------------------------------------------------------------------------------------------------


def test_what_takes_long_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(
        "name: small\ncluster: star\nnodes: 3\nmodels: [{model: alexnet, batch_per_worker: 8}]\n"
        "strategies: [parameter_server, all_reduce, stanza]\n"
    )
    said: list[str] = []
    run_experiment(str(path), say=said.append)
    assert said == []
    monkeypatch.setattr("stanza_sim.experiment.run.PROGRESS_S", 0.0)
    run_experiment(str(path), say=said.append)
    assert [text.partition(":")[0] for text in said] == ["simulated 1 of 3", "simulated 2 of 3"]
    assert "alexnet, parameter_server" in said[0]


def test_percentiles_are_of_all_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left out where repeats run in threads."""
    monkeypatch.setattr(run_module, "available_cores", lambda: 3)
    schedule, on = build("all_reduce", MODEL, 3), cluster(3)
    case = a_case(schedule, on)
    single = sorted(case.run(replace(JITTER, repeat=k)).iteration_s for k in range(8))
    found = simulate_repeats(schedule, MODEL, on, lambda r: SOME, variation=JITTER, repeats=8, engine="compiled")
    assert found.repeats is not None
    assert found.repeats.p5_s == pytest.approx(np.quantile(single, 0.05), rel=1e-12)
    assert found.repeats.median_s == pytest.approx(np.quantile(single, 0.5), rel=1e-12)
    assert found.repeats.p95_s == pytest.approx(np.quantile(single, 0.95), rel=1e-12)
