"""Folding is exact: a folded simulation gives what an unfolded one gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stanza_sim.cluster import Cluster, Host, Loopback, Nic, Placement, Transport, load_cluster, star
from stanza_sim.schedule import Schedule, parse
from stanza_sim.simulate import Prediction, simulate
from stanza_sim.simulate.lowering.fold import fold
from stanza_sim.simulate.run import Collectives, SimulationCase
from tests.schedule.random_schedules import legal_schedules
from tests.schedule.toys import FREE, SOME, build, cluster, predict, toy

MODEL = toy(200)
SLOW = Nic(bandwidth_Bps=3e5, latency_s=4e-4, overhead_s=2e-4)
FAST = Nic(bandwidth_Bps=1e6, latency_s=5e-5, overhead_s=3e-5)
SHORT = Transport(stream_Bps=2.5e5, process_Bps=4e5)
COSTLY = Transport(process_Bps=5e5, process_inside=True, message_core_s=5e-5, byte_core_s=1e-6)
BUSY = Loopback(bandwidth_Bps=5e6, latency_s=2e-5, message_core_s=1e-4, byte_core_s=2e-7)

STRATEGIES: dict[str, tuple[str, dict[str, object]]] = {
    "one server": ("parameter_server", {}),
    "one server, no overlap": ("parameter_server", {"overlap": False}),
    "two servers": ("parameter_server", {"servers": 2}),
    "two servers, cut": ("parameter_server", {"servers": 2, "assignment": "cut"}),
    "co-located": ("parameter_server", {"placement": "colocated"}),
    "co-located, cut": ("parameter_server", {"placement": "colocated", "assignment": "cut"}),
    "co-located, cut, no overlap": (
        "parameter_server",
        {"placement": "colocated", "assignment": "cut", "overlap": False},
    ),
    "two servers, MXNet": ("parameter_server", {"servers": 2, "assignment": "mxnet", "bigarray_bound": 1000}),
    "co-located, BytePS": ("parameter_server", {"placement": "colocated", "assignment": "byteps", "partition": "4kB"}),
    "co-located, slices": ("parameter_server", {"placement": "colocated", "assignment": "sliced", "slice": 2000}),
    "two servers, slices": ("parameter_server", {"servers": 2, "assignment": "sliced", "slice": 900, "credit": 2}),
    "one server, by host": ("parameter_server", {"local": 2}),
    "co-located, cut, by host": ("parameter_server", {"placement": "colocated", "assignment": "cut", "local": 2}),
    "co-located, slices, by host": (
        "parameter_server",
        {"placement": "colocated", "assignment": "sliced", "slice": 2000, "local": 2},
    ),
    "all-reduce": ("all_reduce", {"first_bucket": "1kB", "bucket": "10kB"}),
    "all-reduce, no overlap": ("all_reduce", {"overlap": False}),
    "Stanza": ("stanza", {"bucket": "10kB"}),
    "Stanza, servers": ("stanza", {"conv_exchange": "parameter_server"}),
    "factors": ("sufficient_factors", {}),
    "all layers by factors, all-reduce": (
        "sufficient_factors",
        {"fc_exchange": "factors", "conv_exchange": "all_reduce", "reconstruct": "behind"},
    ),
    "two FC workers": ("stanza", {"fc_workers": 2}),
    "two FC workers, sliced": ("stanza", {"fc_workers": 2, "fc_parallel": "model", "microbatches": 2}),
    "three FC workers, sliced, co-located": (
        "stanza",
        {"fc_workers": 3, "fc_parallel": "model", "placement": "colocated", "fc_compute": "arrival"},
    ),
    "two FC workers, servers": ("stanza", {"fc_workers": 2, "conv_exchange": "parameter_server", "overlap": False}),
    "Stanza, micro-batches": ("stanza", {"microbatches": 4, "eager_backward": 1, "activations": "bf16"}),
    "two FC workers, arrival": ("stanza", {"fc_workers": 2, "fc_compute": "arrival", "microbatches": 2}),
    "Stanza, co-located, shards": (
        "stanza",
        {
            "placement": "colocated",
            "conv_exchange": "parameter_server",
            "conv_servers": "sharded",
            "microbatches": 2,
            "eager_backward": 2,
        },
    ),
    "two co-located FC workers": ("stanza", {"placement": "colocated", "fc_workers": 2}),
    "one node alone": ("local", {}),
}

CLUSTERS: dict[str, Callable[[int], Cluster]] = {
    "plain": lambda n: cluster(n),
    "latency and overhead": lambda n: cluster(n, nic=FAST),
    "slow host": lambda n: cluster(n, nic=FAST, speeds={1: 0.4}),
    "slow NIC": lambda n: cluster(n, nic=FAST, nics={0: SLOW}),
    "alternating latency": lambda n: cluster(n, nic=FAST, nics=dict.fromkeys((1, 3, 4), SLOW)),
    "two ranks per host": lambda n: cluster(-(-n // 2), nic=FAST, loopback=BUSY, placement=[r // 2 for r in range(n)]),
    "round robin over two hosts, on cores": lambda n: cluster(
        2, nic=FAST, loopback=BUSY, on_cores=True, placement=[r % 2 for r in range(n)]
    ),
    "short streams": lambda n: cluster(n, nic=replace(FAST, transport=SHORT)),
    "costly processes, two ranks per host": lambda n: cluster(
        -(-n // 2), nic=replace(FAST, transport=COSTLY), loopback=BUSY, placement=[r // 2 for r in range(n)]
    ),
    "costly processes, round robin over three hosts, on cores": lambda n: cluster(
        min(n, 3),
        nic=replace(FAST, transport=COSTLY),
        loopback=BUSY,
        on_cores=True,
        placement=[r % 3 for r in range(n)],
    ),
    "one host's cores": lambda n: cluster(1, ranks_per_host=n, on_cores=True, loopback=BUSY),
}


def same(a: Prediction, b: Prediction, within: float = 1e-9) -> None:
    """`a` is folded, `b` is not."""
    assert a.steady == b.steady
    for name in ("iteration_s", "exposed_comm_s", "idle_s", "bound_s", "samples_per_s"):
        assert getattr(a, name) == pytest.approx(getattr(b, name), rel=within, abs=within * b.iteration_s), name
    assert a.op_seconds == pytest.approx(b.op_seconds, rel=within, abs=within * b.iteration_s)
    assert a.sent_bytes.items() <= b.sent_bytes.items()
    assert a.received_bytes.items() <= b.received_bytes.items()


def test_ranks_that_are_alike_are_folded() -> None:
    schedule = build("parameter_server", MODEL, 9)
    classes = fold(schedule, cluster(9)).classes
    assert [str(c) for c in classes] == ["0-7", "8"]
    slow = fold(schedule, cluster(9, speeds={2: 0.5})).classes
    assert [str(c) for c in slow] == ["0-1,3-7", "2", "8"]
    assert [str(c) for c in fold(schedule, cluster(9, nics={4: SLOW})).classes] == ["0-3,5-7", "4", "8"]


def test_why_nothing_is_folded_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule, tree = build("all_reduce", MODEL, 9), build("all_reduce", MODEL, 9, algorithm="tree")
    assert fold(schedule, cluster(9)).reason == ""
    assert "by tree" in fold(tree, cluster(9)).reason
    several = load_cluster("multi-gpu")
    assert len(fold(build("all_reduce", MODEL, several.world_size), several).classes) == 8  # a host has 8 devices
    assert "several ranks" in fold(build("stanza", MODEL, several.world_size, fc_workers=2), several).reason
    chain = build("stanza", MODEL, 2)
    assert "no two ranks are alike" in fold(chain, cluster(2)).reason
    monkeypatch.setattr("stanza_sim.simulate.run.LONG", 0)
    one_by_one = "all 9 ranks"
    for found, by_chance, words in (
        (schedule, False, []),
        (schedule, True, [(one_by_one, "by chance")]),
        (tree, False, [(one_by_one, "by tree"), ("by tree", "18 messages")]),
    ):
        said: list[str] = []
        SimulationCase(
            found,
            MODEL,
            cluster(9),
            lambda rank: SOME,
            by_chance=by_chance,
            fold_ranks=True,
            collectives=Collectives.ACTIVITY,
            times=1,
            say=said.append,
        )
        assert len(said) == len(words)
        assert all(word in text for text, several in zip(said, words, strict=True) for word in several)


def test_uneven_shares_of_fc_workers_are_told_apart() -> None:
    folding = fold(build("stanza", MODEL, 7, fc_workers=2), cluster(7))
    assert [str(c) for c in folding.classes] == ["0-2", "3-4", "5", "6"]
    # Cut parameters: the shares of the last owners are smaller.
    cut = fold(build("parameter_server", MODEL, 6, placement="colocated", assignment="cut"), cluster(6))
    assert len(cut.classes) > 1


@pytest.mark.parametrize("world_size", [2, 3, 5, 9])
@pytest.mark.parametrize("where", CLUSTERS)
def test_folded_is_unfolded(where: str, world_size: int) -> None:
    on = CLUSTERS[where](world_size)
    folded = 0
    for index, (name, given_settings) in enumerate(STRATEGIES.values()):
        if world_size > 3 and index % 3 != (len(where) + world_size) % 3:
            continue  # many ranks unfolded take their time: a third of the strategies on each cluster
        need = 2 * max(int(str(given_settings.get("fc_workers", 0))), 1)
        if world_size < max(need, 1 + int(str(given_settings.get("servers", 1)))):
            continue
        schedule = build(name, MODEL, world_size, **given_settings)
        folded += len(fold(schedule, on).classes) < world_size
        same(predict(schedule, MODEL, on), predict(schedule, MODEL, on, fold_ranks=False))
    assert folded or world_size != 3 or where.startswith(("alter", "two ranks"))


@st.composite
def clusters(draw: st.DrawFn, ranks: int) -> Cluster:
    """Hosts of two kinds, with one or more ranks on devices or on cores."""
    hosts = draw(st.integers(1, ranks))
    kinds = [
        Host(
            name="kind",
            cores=draw(st.integers(1, 3)),
            nic=Nic(
                bandwidth_Bps=draw(st.sampled_from([2e5, 1e6])),
                latency_s=draw(st.sampled_from([0.0, 1e-4])),
                overhead_s=draw(st.sampled_from([0.0, 5e-5])),
            ),
            device_speed=draw(st.sampled_from([0.5, 1.0])),
            loopback=draw(st.sampled_from([FREE, BUSY])),
            devices=draw(st.sampled_from([(), ("V100",) * ranks])),
        )
        for _ in range(2)
    ]
    made = [replace(kinds[draw(st.integers(0, 1))], name=f"h{i}") for i in range(hosts)]
    used = [0] * hosts
    places = []
    for _ in range(ranks):
        h = draw(st.integers(0, hosts - 1))
        places.append(Placement(host=h, device=used[h] if made[h].devices else None))
        used[h] += 1
    return replace(star(made, ranks_per_host=1), placement=tuple(places), uses_nccl=draw(st.booleans()))


@st.composite
def jobs(draw: st.DrawFn) -> tuple[Schedule, Cluster]:
    schedule = draw(legal_schedules(MODEL))
    return schedule, draw(clusters(schedule.world_size))


@settings(max_examples=35, deadline=None)
@given(jobs())
def test_random_schedules_on_random_clusters(job: tuple[Schedule, Cluster]) -> None:
    schedule, on = job
    folded = predict(schedule, MODEL, on)
    unfolded = predict(schedule, MODEL, on, fold_ranks=False)
    if folded.steady and unfolded.steady:
        same(folded, unfolded)
    for p in (folded, unfolded):
        assert p.iteration_s >= p.bound_s * (1 - 1e-9)
        assert p.exposed_comm_s >= 0 <= p.idle_s
        assert p.exposed_comm_s + p.idle_s <= p.iteration_s * (1 + 1e-9)
        assert all(0 <= u <= 1 for u in p.utilisation.values())


def test_devices_of_two_kinds_on_one_host() -> None:
    """The ranks of one host are not alike when their devices are not."""
    host = Host(name="h", cores=8, nic=FAST, devices=("fast", "slow"))
    on = star([replace(host, name=f"h{i}") for i in range(3)])
    schedule = build("all_reduce", MODEL, 6, overlap=False)
    speeds = {"fast": SOME, "slow": SOME.at_speed(0.25)}

    def run(fold_ranks: bool) -> Prediction:
        return simulate(schedule, MODEL, on, lambda r: speeds[on.device_of(r)], fold_ranks=fold_ranks)

    same(run(True), run(False))


def test_ranks_that_share_a_device() -> None:
    """Ranks 0 and 1 share a device with each other, rank 2 shares one with the server."""
    host = Host(name="h", cores=8, nic=FAST, devices=("V100", "V100"), loopback=FREE)
    on = replace(star([host]), placement=tuple(Placement(host=0, device=d) for d in (0, 0, 1, 1)))
    schedule = build("parameter_server", MODEL, 4)
    same(predict(schedule, MODEL, on), predict(schedule, MODEL, on, fold_ranks=False))


def test_a_broadcast_on_a_folded_cluster() -> None:
    text = """\
schedule b model=toy world=6 batch=4
group worker 0-5
group root 2
bundle w numel={n} owners=root tensors=c1.t0
f: forward c1 @worker after_previous=bc
g: forward pool @worker after=f
h: forward c2 @worker after=g
i: forward f1 @worker after=h
j: forward f2 @worker after=i
l: loss f2 @worker after=j
k: backward f2 @worker after=l
m: backward f1 @worker after=k
n: backward c2 @worker after=m
o: backward pool @worker after=n
p: backward c1 @worker after=o
push: transfer grad(w) worker->root fan-in nbytes={b} after=p
red: reduce w @root after=push
upd: update w @root after=red
bc: broadcast param(w) @worker nbytes={b} algorithm=ring root=2 after=upd
"""
    schedule = parse(text.format(n=9 * 200, b=9 * 200 * 4))
    for on in (cluster(6, nic=FAST), cluster(3, ranks_per_host=2, nic=FAST, loopback=BUSY)):
        folded, unfolded = predict(schedule, MODEL, on), predict(schedule, MODEL, on, fold_ranks=False)
        same(folded, unfolded)
        # Each but the last of the chain 2, 3, 4, 5, 0, 1 passes the parameters on; all but the owner push.
        sent = {r: 7200 * (r != 2) + 7200 * (r != 1) for r in range(6)}
        assert unfolded.sent_bytes == sent
