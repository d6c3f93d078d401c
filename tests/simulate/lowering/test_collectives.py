"""Collectives in the simulator: step by step and as one activity agree with each other and with formulas."""

from __future__ import annotations

from dataclasses import replace
from math import log2

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stanza_sim.cluster import Cluster, Loopback, Nic
from stanza_sim.model.profile import BlockKind, ModelProfile
from stanza_sim.schedule import Algorithm, Carrier, Collective, Schedule, parse
from stanza_sim.schedule.phases import Tree
from stanza_sim.simulate import Collectives, Prediction, simulate
from stanza_sim.simulate.lowering.collective_cost import shared_out
from stanza_sim.simulate.lowering.collective_steps import CollectiveInputs, Steps, even_ends
from stanza_sim.simulate.lowering.fold import unfolded
from stanza_sim.simulate.lowering.messages import MessageActivities
from stanza_sim.simulate.lowering.resources import Resources
from tests.schedule.random_schedules import legal_schedules
from tests.schedule.toys import SOME, ZERO, Costs, block, build, cluster, toy

B = 1e9
LATENCY, OVERHEAD = 2e-5, 5e-6
NIC = Nic(bandwidth_Bps=B, latency_s=LATENCY / 2, overhead_s=OVERHEAD)
MIB = 1 << 20
WORLDS = [2, 3, 4, 6, 8, 13, 16, 31, 32, 64]


def one_bucket(nbytes: int) -> ModelProfile:
    """A model whose parameters are all-reduced as one vector of `nbytes` bytes."""
    blocks = (block("a", BlockKind.CONV, [(nbytes // 4,)], 4), block("b", BlockKind.FC, [], 4))
    return replace(toy(), blocks=blocks, boundary=1)


def all_reduce(model: ModelProfile, n: int, algorithm: Algorithm, local: int = 0) -> Schedule:
    extra = {"local": local} if algorithm is Algorithm.HIERARCHICAL else {}
    return build("all_reduce", model, n, overlap=False, first_bucket="1GB", algorithm=algorithm, **extra)


def seconds(schedule: Schedule, model: ModelProfile, on: Cluster, how: Collectives, costs: Costs = ZERO) -> Prediction:
    p = simulate(schedule, model, on, lambda _: costs, collectives=how)
    assert p.steady
    return p


def closed_form(algorithm: Algorithm, n: int, nbytes: int) -> float:
    """Seconds on a star of equal hosts. Every step costs a latency and, but for the first, an overhead."""
    power = 1 << (n.bit_length() - 1)
    surplus = n > power
    match algorithm:
        case Algorithm.RING | Algorithm.HIERARCHICAL:  # one rank on each host
            steps, moved, posts = 2 * (n - 1), 2 * (n - 1) / n * nbytes, 1
        case Algorithm.HALVING_DOUBLING:
            steps = 2 * int(log2(power)) + 2 * surplus
            moved, posts = 2 * (power - 1) / power * nbytes + 2 * surplus * nbytes, 1
        case Algorithm.TREE:
            # While the pipeline is full, ports of inner ranks carry three chunks a step (that of a root alone, two).
            chunks = -(-nbytes // (MIB // 2))
            busiest = 1 if n == 2 else 2 if n <= 5 else 3
            steps, posts = 2 * Tree.of(n).depth + chunks - 1, busiest
            moved = steps * busiest * nbytes / chunks
    return steps * LATENCY + (steps * posts - 1) * OVERHEAD + moved / B


@pytest.mark.parametrize("n", WORLDS)
@pytest.mark.parametrize("algorithm", Algorithm)
def test_steps_activity_and_closed_form_agree(algorithm: Algorithm, n: int) -> None:
    model = one_bucket(24 * MIB)
    schedule = all_reduce(model, n, algorithm, local=1)
    on = cluster(n, nic=NIC)
    steps = seconds(schedule, model, on, Collectives.STEPS).iteration_s
    activity = seconds(schedule, model, on, Collectives.ACTIVITY).iteration_s
    assert activity == pytest.approx(steps, rel=0.01)
    # The pipeline of a tree is not full at its ends: up to two chunks for each level and direction are not there.
    depth = Tree.of(n).depth if algorithm is Algorithm.TREE else 0
    expected = closed_form(algorithm, n, 24 * MIB)
    assert steps <= expected * (1 + 1e-3)
    assert steps >= expected * (1 - 1e-3) - 2 * depth * (2 * (MIB // 2) / B + 2 * OVERHEAD)


def extent(p: Prediction, op: str) -> float:
    """From the first start to the last end at any rank, in one iteration."""
    spans = [s for s in p.timeline.spans if s.op == op and s.iteration == 2]
    return max(s.end_s for s in spans) - min(s.start_s for s in spans)


@pytest.mark.parametrize("kind", ["reduce_scatter", "all_gather", "broadcast"])
@pytest.mark.parametrize("algorithm", Algorithm)
def test_the_other_kinds_agree(algorithm: Algorithm, kind: str) -> None:
    """A schedule of reduce-scatter, update, all-gather, and a broadcast from one owner; 3 to 8 ranks."""
    numel = 24 * MIB
    model = one_bucket(4 * numel)
    for n in (3, 4, 8):
        way = f"algorithm={algorithm} by=steps" + (" local=1" if algorithm is Algorithm.HIERARCHICAL else "")
        owner, layout = ("root", "replicated") if kind == "broadcast" else ("w", "cut")
        text = f"""\
schedule s model=toy world={n} batch=4
group w 0-{n - 1}
group root 1
bundle p numel={numel} owners={owner} layout={layout} tensors=a.t0
f: forward a @w after_previous=last
g: forward b @w after=f
l: loss b @w after=g
h: backward b @w after=l
k: backward a @w after=h
"""
        if kind == "broadcast":
            text += f"push: transfer grad(p) w->root fan-in nbytes={4 * numel} after=k\n"
            text += "red: reduce p @root after=push\nupd: update p @root after=red\n"
            text += f"last: broadcast param(p) @w nbytes={4 * numel} {way} root=1 after=upd\n"
        else:
            text += f"rs: reduce_scatter grad(p) @w nbytes={4 * numel} {way} after=k\nupd: update p @w after=rs\n"
            text += f"last: all_gather param(p) @w nbytes={4 * numel} {way} after=upd\n"
        schedule = parse(text)
        steps = seconds(schedule, model, cluster(n, nic=NIC), Collectives.STEPS)
        activity = seconds(schedule, model, cluster(n, nic=NIC), Collectives.ACTIVITY)
        took = [extent(p, "rs" if kind == "reduce_scatter" else "last") for p in (steps, activity)]
        assert took[1] == pytest.approx(took[0], rel=0.01), n
        assert took[0] >= 4 * numel / B * (1 if kind == "broadcast" else (n - 1) / n)
        assert activity.sent_bytes.items() <= steps.sent_bytes.items()  # rings are folded


@pytest.mark.parametrize("algorithm", Algorithm)
def test_backend_and_ring_cost_the_same(algorithm: Algorithm) -> None:
    model = one_bucket(3 * MIB)
    on = cluster(4, nic=NIC)
    backend = build("all_reduce", model, 4, overlap=False, first_bucket="1GB")
    own = all_reduce(model, 4, algorithm, local=1)
    found = seconds(backend, model, on, Collectives.ACTIVITY), seconds(own, model, on, Collectives.ACTIVITY)
    if algorithm is Algorithm.RING:
        assert found[0].iteration_s == found[1].iteration_s
    stepwise = seconds(backend, model, on, Collectives.STEPS)
    assert stepwise.iteration_s == pytest.approx(found[0].iteration_s, rel=1e-3)


def test_a_hierarchy_uses_the_network_once_per_host() -> None:
    """Four hosts of four: inside at 20 GB/s, then 2 (H-1)/H S per NIC. Halving-doubling sends four times that."""
    fast = Loopback(bandwidth_Bps=20e9, latency_s=0.0, message_core_s=0.0, byte_core_s=0.0)
    on = cluster(4, ranks_per_host=4, nic=Nic(bandwidth_Bps=B), loopback=fast)
    size = 24 * MIB
    model = one_bucket(size)
    found = {
        a: [seconds(all_reduce(model, 16, a, local=4), model, on, how).iteration_s for how in Collectives]
        for a in (Algorithm.HIERARCHICAL, Algorithm.HALVING_DOUBLING)
    }
    inside = 2 * 3 / 4 * size / 20e9
    assert found[Algorithm.HIERARCHICAL] == pytest.approx([inside + 1.5 * size / B] * 2, rel=1e-3)
    across = 4 * (2 * (1 / 2 + 1 / 4)) * size / B
    assert found[Algorithm.HALVING_DOUBLING] == pytest.approx([across + 2 * (3 / 16) * size / 20e9] * 2, rel=1e-3)


def test_a_slow_host_slows_the_steps_that_it_takes_part_in() -> None:
    """One NIC at half the rate: every step of a ring passes it; of a hierarchy only those across hosts."""
    model = one_bucket(8 * MIB)
    slow = {2: Nic(bandwidth_Bps=B / 2, latency_s=LATENCY / 2, overhead_s=OVERHEAD)}
    for algorithm in (Algorithm.RING, Algorithm.HALVING_DOUBLING):
        schedule = all_reduce(model, 4, algorithm)
        even = seconds(schedule, model, cluster(4, nic=NIC), Collectives.STEPS).iteration_s
        for how in Collectives:
            uneven = seconds(schedule, model, cluster(4, nic=NIC, nics=slow), how).iteration_s
            assert uneven == pytest.approx(2 * even, rel=0.03)


@pytest.mark.parametrize("algorithm", [Algorithm.RING, Algorithm.HALVING_DOUBLING])
def test_reductions_take_time_on_cores(algorithm: Algorithm) -> None:
    """A rank's only core needs 1 ns for each byte that it adds to its own, as long as the network takes for it."""
    model = one_bucket(8 * MIB)
    costs = Costs(reduce_byte_s=1e-9)
    on = cluster(4, nic=Nic(bandwidth_Bps=B), on_cores=True, cores=1)
    schedule = all_reduce(model, 4, algorithm)
    for how in Collectives:
        p = seconds(schedule, model, on, how, costs)
        # Contributions are read twice: 2 ns a byte in the first half; the second is as fast as the network.
        assert p.iteration_s == pytest.approx((2 + 1) * 0.75 * 8 * MIB / B, rel=1e-3)


def test_only_rings_are_folded_and_nothing_step_by_step() -> None:
    model, on = toy(200), cluster(6, nic=NIC)
    schedules = {a: build("all_reduce", model, 6, algorithm=a) for a in ("backend", "ring", "tree")}
    sizes = {a: len(simulate(s, model, on, lambda _: SOME).sent_bytes) for a, s in schedules.items()}
    assert sizes == {"backend": 1, "ring": 1, "tree": 6}
    stepwise = simulate(schedules["ring"], model, on, lambda _: SOME, collectives=Collectives.STEPS)
    assert len(stepwise.sent_bytes) == 6
    servers = build("parameter_server", model, 6)
    assert len(simulate(servers, model, on, lambda _: SOME, collectives=Collectives.STEPS).sent_bytes) == 2


@settings(max_examples=25)
@given(schedule=legal_schedules(toy(40)), how=st.sampled_from(Collectives))
def test_legal_schedules_come_to_an_end(schedule: Schedule, how: Collectives) -> None:
    """Any mix of algorithms, channels and lanes: no deadlock, and each collective once per member and iteration."""
    on = cluster(3, ranks_per_host=-(-schedule.world_size // 3), nic=Nic(bandwidth_Bps=1e6, latency_s=1e-4))
    on = replace(on, placement=on.placement[: schedule.world_size])
    p = simulate(schedule, toy(40), on, lambda _: SOME, collectives=how, max_iterations=6)
    for op in schedule.ops:
        if isinstance(op, Collective):
            spans = [s for s in p.timeline.spans if s.op == op.name and s.iteration == 1]
            members = {s.rank for s in spans}
            assert len(spans) == len(members) == sum(r in p.sent_bytes for r in schedule.group(op.ranks))
            assert all(s.start_s <= s.end_s for s in spans)


@given(jobs=st.lists(st.tuples(st.floats(0, 10), st.floats(0.01, 5)), min_size=1, max_size=8))
def test_even_shares(jobs: list[tuple[float, float]]) -> None:
    ends = even_ends(jobs)
    for (begin, took), end in zip(jobs, ends, strict=True):
        assert begin + took * (1 - 1e-9) <= end <= max(b for b, _ in jobs) + sum(t for _, t in jobs) + 1e-9
    together = even_ends([(0.0, took) for _, took in jobs])
    assert max(together) == pytest.approx(sum(took for _, took in jobs))
    assert even_ends([(0.0, 2.0), (1.0, 0.5)]) == pytest.approx([2.5, 2.0])


def test_the_longest_path_of_two_ranks() -> None:
    """The example of `Steps.path`: two halves of 2 MB, each with a latency, the second with an overhead."""
    schedule = all_reduce(one_bucket(2_000_000), 2, Algorithm.HALVING_DOUBLING)
    on = cluster(2, nic=NIC)
    activities = MessageActivities(Resources(on, unfolded(on)))
    inputs = CollectiveInputs(schedule=schedule, activities=activities, cost_of=lambda _: ZERO)
    op = replace(next(o for o in schedule.ops if isinstance(o, Collective)), nbytes=2_000_000)
    steps = Steps(inputs, op)
    assert steps.path(moving=True) == (pytest.approx(2.045e-3), True)
    assert steps.path(moving=False) == (pytest.approx(45e-6), True)


def test_a_round_of_two_collectives_is_shared_out() -> None:
    """The example of `shared_out`: of 1 ms that no link needs, each gets its part."""
    a, b = ("A",), ("B",)
    assert shared_out(13.0, {a: 10.0, b: 6.0}, {a: 8.0, b: 4.0}) == {a: 8.5, b: 4.5}
    assert shared_out(12.0, {a: 8.0, b: 4.0}, {a: 8.0, b: 4.0}) == {a: 8.0, b: 4.0}


def test_a_carrier_is_part_of_the_schedule() -> None:
    backend, own = (build("all_reduce", toy(), 4, algorithm=a) for a in ("backend", "ring"))
    assert backend.text().count("algorithm=ring after") and "by=" not in backend.text()
    assert own.text() == backend.text().replace("algorithm=ring", "algorithm=ring by=steps")
    assert all(op.by is Carrier.STEPS for op in own.ops if isinstance(op, Collective))
