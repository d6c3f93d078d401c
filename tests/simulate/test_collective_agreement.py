"""Step by step and as one activity, collectives take equally long: 2 to 64 ranks, all algorithms, kinds and networks.

What counts is how long an iteration takes in the steady state. Where ranks leave a collective one after another, those
that leave first are in the next one first; then the first iteration and single spans say something else (a tree of few
chunks: up to 10% more).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stanza_sim.cluster import Cluster, Host, Intra, IntraKind, Loopback, Nic, load_cluster, star
from stanza_sim.model.profile import BlockKind, ModelProfile
from stanza_sim.schedule import Algorithm, Collective, CollectiveKind, Schedule, parse
from stanza_sim.simulate import Collectives, Prediction, simulate
from stanza_sim.simulate.lowered import Activity
from stanza_sim.simulate.lowering import collective_cost
from stanza_sim.simulate.lowering.fold import unfolded
from stanza_sim.simulate.lowering.lower import Lowering
from stanza_sim.simulate.lowering.resources import Resources
from tests.schedule.toys import ZERO, Costs, block, build, cluster, toy

B, LATENCY_S, OVERHEAD_S = 1e9, 2e-5, 5e-6
NIC = Nic(bandwidth_Bps=B, latency_s=LATENCY_S / 2, overhead_s=OVERHEAD_S)
KIB, MIB = 1 << 10, 1 << 20
WITHIN = 0.01
LEAVES = """\
name: leaves
hosts:
  - {{name: node, cores: 8, devices: [V100], nic: {{rate: 10Gbps, latency: 10us, overhead: 5us}}}}
fabric: {{kind: leaf-spine, leaves: {leaves}, hosts_per_leaf: {hosts}, spines: 2, oversubscription: 1, latency: 1us}}
routing: spread
"""


def devices(n: int, local: int, nics: int, kind: IntraKind) -> Cluster:
    """Hosts of `local` devices that share `nics` NICs."""
    fast = IntraKind.NVLINK is kind
    intra = Intra(kind=kind, bandwidth_Bps=240e9 if fast else 16e9, latency_s=2e-6)
    nic = Nic(bandwidth_Bps=12e9, latency_s=8e-6, overhead_s=3e-6)
    made = [
        Host(name=f"h{i}", cores=96, nic=nic, more_nics=(nic,) * (nics - 1), devices=("gpu",) * local, intra=intra)
        for i in range(n // local)
    ]
    return replace(star(made), uses_nccl=False)


def network(name: str, n: int, tmp_path: Path) -> tuple[Cluster, int]:
    """A network of `n` ranks on which all hosts are alike, and its ranks per host."""
    local = next((k for k in (8, 4, 2) if n % k == 0 and n > k), 1)
    match name:
        case "loopback" if local > 1:
            return cluster(n // local, nic=NIC, ranks_per_host=local, on_cores=True, loopback=Loopback()), local
        case "shared NIC" if local > 1:
            return devices(n, local, 1, IntraKind.NVLINK), local
        case "two NICs" if local > 1:
            return devices(n, local, 2, IntraKind.NVLINK), local
        case "pcie" if local > 1:
            return devices(n, local, 1, IntraKind.PCIE), local
        case "leaves" if local > 1:
            path = tmp_path / "leaves.yaml"
            path.write_text(LEAVES.format(leaves=n // local, hosts=local))
            return load_cluster(path), 1
        case _:
            return cluster(n, nic=NIC), 1


def one_tensor(nbytes: int) -> ModelProfile:
    blocks = (block("a", BlockKind.CONV, [(nbytes // 4,)], 4), block("b", BlockKind.FC, [], 4))
    return replace(toy(), blocks=blocks, boundary=1)


def schedule_of(kind: CollectiveKind, algorithm: Algorithm, n: int, nbytes: int, local: int) -> Schedule:
    """One all-reduce an iteration; or a reduce-scatter and an all-gather; or a fan-in and a broadcast."""
    way = f"nbytes={nbytes} algorithm={algorithm} by=steps" + (f" local={local}" * (algorithm == "hierarchical"))
    whose = {CollectiveKind.ALL_REDUCE: "w layout=replicated", CollectiveKind.BROADCAST: "root layout=replicated"}
    text = f"""\
schedule s model=toy world={n} batch=4
group w 0-{n - 1}
group root 1
bundle p numel={nbytes // 4} owners={whose.get(kind, "w layout=cut")} tensors=a.t0
f: forward a @w after_previous=last
g: forward b @w after=f
l: loss b @w after=g
h: backward b @w after=l
k: backward a @w after=h
"""
    match kind:
        case CollectiveKind.ALL_REDUCE:
            text += f"ar: all_reduce grad(p) @w {way} after=k\nlast: update p @w after=ar\n"
        case CollectiveKind.BROADCAST:
            text += f"push: transfer grad(p) w->root fan-in nbytes={nbytes} after=k\n"
            text += "red: reduce p @root after=push\nupd: update p @root after=red\n"
            text += f"last: broadcast param(p) @w {way} root=1 after=upd\n"
        case _:
            text += f"rs: reduce_scatter grad(p) @w {way} after=k\nupd: update p @w after=rs\n"
            text += f"last: all_gather param(p) @w {way} after=upd\n"
    return parse(text)


def seconds(p: Prediction, kind: CollectiveKind) -> float:
    """An iteration; of a broadcast, whose first ranks go on before the last have it, from its root's update to its end.

    Nobody sends anything in the meantime: see the costs in `agree`.
    """
    assert p.settled
    if kind is not CollectiveKind.BROADCAST:
        return p.iteration_s
    ends = {op: max(s.end_s for s in p.timeline.spans if s.op == op and s.iteration == 1) for op in ("upd", "last")}
    return ends["last"] - ends["upd"]


def agree(kind: CollectiveKind, algorithm: Algorithm, on: Cluster, nbytes: int, local: int) -> None:
    model = one_tensor(nbytes)
    schedule = schedule_of(kind, algorithm, on.world_size, nbytes, local)
    lasting = Costs(flops_s=1e-3) if kind is CollectiveKind.BROADCAST else ZERO
    steps, activity = (
        seconds(simulate(schedule, model, on, lambda _: lasting, collectives=how), kind)
        for how in (Collectives.STEPS, Collectives.ACTIVITY)
    )
    assert activity == pytest.approx(steps, rel=WITHIN), (on.name, kind, algorithm, on.world_size, nbytes)


NETWORKS = ("star", "loopback", "shared NIC", "two NICs", "pcie", "leaves")
SIZES = (64 * KIB, MIB, 4 * MIB, 12 * MIB)
KINDS = (CollectiveKind.ALL_REDUCE, CollectiveKind.REDUCE_SCATTER, CollectiveKind.BROADCAST)
GRID = [
    (n, algorithm, kind)
    for n in (2, 3, 4, 5, 6, 7, 8, 12, 15, 16, 23, 24, 32, 40, 63, 64)
    for algorithm in Algorithm
    for kind in KINDS  # that of the reduce-scatter has the all-gather as well
]


@pytest.mark.parametrize("part", range(8))
def test_agree_on_a_sample_of_the_grid(part: int, tmp_path: Path) -> None:
    """Every number of ranks with every algorithm and kind; networks and sizes in turn."""
    for i in range(part, len(GRID), 8):
        n, algorithm, kind = GRID[i]
        on, local = network(NETWORKS[(5 * i + i // 6) % len(NETWORKS)], n, tmp_path)
        if kind is CollectiveKind.BROADCAST and not on.hosts[0].devices:
            on, local = cluster(n, nic=NIC), 1  # on cores, computing ranks would slow it
        agree(kind, algorithm, on, SIZES[(i + i // 12) % (2 if n > 24 else len(SIZES))], local)


@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize("name", ["star", "shared NIC"])
def test_agree_with_64_ranks(name: str, algorithm: Algorithm, tmp_path: Path) -> None:
    on, local = network(name, 64, tmp_path)
    agree(CollectiveKind.ALL_REDUCE, algorithm, on, MIB, local)


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(2, 20),
    kind=st.sampled_from(KINDS),
    algorithm=st.sampled_from(Algorithm),
    kib=st.integers(64, 6000),
)
def test_agree_on_any_star(n: int, kind: CollectiveKind, algorithm: Algorithm, kib: int) -> None:
    agree(kind, algorithm, cluster(n, nic=NIC), kib * KIB, 1)


@pytest.mark.parametrize(
    ("kind", "algorithm", "n", "name", "nbytes"),
    [
        (CollectiveKind.ALL_REDUCE, Algorithm.TREE, 16, "star", 4 * MIB),
        (CollectiveKind.ALL_REDUCE, Algorithm.HIERARCHICAL, 64, "shared NIC", 24 * MIB),
        (CollectiveKind.ALL_REDUCE, Algorithm.RING, 32, "loopback", 4 * MIB),
        (CollectiveKind.REDUCE_SCATTER, Algorithm.TREE, 16, "star", 24 * MIB),
        (CollectiveKind.BROADCAST, Algorithm.TREE, 24, "shared NIC", 24 * MIB),
        (CollectiveKind.BROADCAST, Algorithm.HALVING_DOUBLING, 32, "two NICs", MIB),
    ],
)
def test_agree_where_ranks_are_not_in_step(
    kind: CollectiveKind, algorithm: Algorithm, n: int, name: str, nbytes: int, tmp_path: Path
) -> None:
    """Trees of few chunks, ranks that share a NIC, and edges of which one has more latency and one less bandwidth."""
    on, local = network(name, n, tmp_path)
    agree(kind, algorithm, on, nbytes, local)


@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize("overlap", [False, True])
def test_agree_in_training(algorithm: Algorithm, overlap: bool) -> None:
    """Several buckets of different sizes, with computation between and beside them."""
    extra = {"local": 4} if algorithm is Algorithm.HIERARCHICAL else {}
    model = toy(20_000)
    sizes = {"first_bucket": "256KiB", "bucket": "2MiB", "algorithm": algorithm, "overlap": overlap}
    schedule = build("all_reduce", model, 12, **sizes, **extra)
    costs = Costs(flops_s=1e-7, update_byte_s=1e-11)
    on = cluster(3, nic=NIC, ranks_per_host=4, loopback=Loopback(bandwidth_Bps=20e9, latency_s=2e-6, byte_core_s=0.0))
    steps, activity = (simulate(schedule, model, on, lambda _: costs, collectives=how) for how in Collectives)
    assert activity.iteration_s == pytest.approx(steps.iteration_s, rel=WITHIN)


def test_long_pipelines_are_not_carried_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every chunk after the first few adds as much: so much is found without carrying out all of them."""
    nbytes = 100 * MIB
    on = devices(16, 4, 1, IntraKind.NVLINK)
    for kind in (CollectiveKind.ALL_REDUCE, CollectiveKind.BROADCAST):
        schedule = schedule_of(kind, Algorithm.TREE, 16, nbytes, 1)
        op = next(o for o in schedule.ops if isinstance(o, Collective))
        found = []
        for most in (collective_cost.LONG, 1000):
            monkeypatch.setattr(collective_cost, "LONG", most)
            parts = Lowering(schedule, one_tensor(nbytes), on, unfolded(on), lambda _: ZERO)
            found.append(parts.collectives.steps.alone_s(op))
            monkeypatch.undo()
        assert found[0] == pytest.approx(found[1], rel=0.005)
        assert found[0] != found[1]


@pytest.mark.parametrize(("what", "least"), [("MOST_RANKS", 15), ("MOST_MESSAGES", 200)])
def test_large_collectives_are_not_carried_out(what: str, least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond so many ranks, and so many messages, the longest path is taken: on a star it is nearly right."""
    on, nbytes = cluster(16, nic=NIC), 4 * MIB
    schedule = schedule_of(CollectiveKind.ALL_REDUCE, Algorithm.TREE, 16, nbytes, 1)
    op = next(o for o in schedule.ops if isinstance(o, Collective))
    priced = []
    for limited in (False, True):
        if limited:
            monkeypatch.setattr(collective_cost, what, least)
            monkeypatch.setattr(collective_cost, "back_to_back_s", None)
        parts = Lowering(schedule, one_tensor(nbytes), on, unfolded(on), lambda _: ZERO)
        activity = parts.collectives.steps.priced(op).activity
        priced.append(activity.delay_s + activity.work / activity.cap)
    assert priced[1] == pytest.approx(priced[0], rel=0.05)
    assert priced[1] != priced[0]


@given(
    demand=st.floats(0.1, 10),
    nbytes=st.floats(1, 1e9),
    over=st.floats(1, 5),
    waiting=st.floats(0, 2),
)
def test_an_activity_takes_what_it_is_said_to_take(demand: float, nbytes: float, over: float, waiting: float) -> None:
    on = cluster(2, nic=NIC)
    resources = Resources(on, unfolded(on))
    activity = Activity(work=nbytes, usage=((resources.link(0), demand),))
    least_s = resources.busiest_s(activity)
    assert least_s == pytest.approx(nbytes * demand / B)
    found = collective_cost.taking(resources, activity, over * least_s, waiting * least_s)
    rate = min(found.cap, B / demand)
    assert found.delay_s + nbytes / rate == pytest.approx(over * least_s, rel=1e-9)
    assert 0 <= found.delay_s <= waiting * least_s * (1 + 1e-9)
