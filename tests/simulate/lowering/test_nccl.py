"""NCCL's collectives: the formulas by hand, what links they fill, and when they are NCCL's at all."""

from __future__ import annotations

from dataclasses import replace
from math import exp, inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stanza_sim.cluster import Cluster, Host, Intra, IntraKind, Nic, Staging, load_cluster, star
from stanza_sim.cluster.hardware import Losses, Transport
from stanza_sim.cluster.nccl import NcclPlatform, Protocol, load_nccl
from stanza_sim.schedule import Algorithm, CollectiveKind
from stanza_sim.simulate import Collectives, simulate
from stanza_sim.simulate.lowering.fold import unfolded
from stanza_sim.simulate.lowering.lower import Lowering
from stanza_sim.simulate.lowering.nccl import Layout, NcclAlgorithm, bus_Bps, price
from stanza_sim.simulate.lowering.quick_bound import quick_bound_s
from stanza_sim.simulate.lowering.rings import rings_of
from stanza_sim.simulate.one_collective import OneCollective
from tests.schedule.toys import ZERO, build
from tests.simulate.lowering.test_collectives import one_bucket

AR, RS, AG, BC = (
    CollectiveKind.ALL_REDUCE,
    CollectiveKind.REDUCE_SCATTER,
    CollectiveKind.ALL_GATHER,
    CollectiveKind.BROADCAST,
)
MIB = 1 << 20
US = 1e-6
A100 = load_nccl("a100-nvlink")
BARE = replace(A100, overhead_s=0.0, launch_s=0.0, across_share=1.0, memory_share=1.0)
"""NCCL's own terms alone; with a memory of no limit, nothing but latency and links."""
EIGHT = Layout(ranks=8, hosts=1, inside_Bps=200e9, across_Bps=inf, memory_Bps=inf)
SIXTEEN = Layout(ranks=16, hosts=2, inside_Bps=200e9, across_Bps=100e9, memory_Bps=inf)


def hosts(count: int, devices: int, *, nics: int = 1, intra: IntraKind | None = IntraKind.NVLINK) -> Cluster:
    """A star of hosts of A100s."""
    nic = Nic(bandwidth_Bps=10e9, latency_s=5e-6, overhead_s=2e-6)
    inside = None if intra is None else Intra(kind=intra, bandwidth_Bps=200e9, latency_s=1e-6)
    made = [
        Host(name=f"h{i}", cores=8, nic=nic, more_nics=(nic,) * (nics - 1), devices=("A100",) * devices, intra=inside)
        for i in range(count)
    ]
    return star(made)


def only(platform: NcclPlatform, layout: Layout, kind: CollectiveKind, nbytes: float) -> tuple[float, str]:
    found = price(platform, layout, kind, nbytes)
    return found.seconds, f"{found.algorithm} {found.protocol}"


# ---- formulas, by hand ---------------------------------------------------------------------------------------------


def test_a_large_all_reduce_inside_a_host_is_a_ring_of_whole_chunks() -> None:
    """8 GPUs, 1 GiB: 8.4 + 14 x 3.4 us and 2 x 7/8 of the bytes at 200 GB/s."""
    seconds, how = only(BARE, EIGHT, AR, 1024 * MIB)
    assert how == "ring simple"
    assert seconds == pytest.approx(8.4 * US + 14 * 3.4 * US + 1.75 * 1024 * MIB / 200e9)


def test_a_small_all_reduce_inside_a_host_has_flags_in_every_word() -> None:
    """8 GPUs, 1 KiB: 6.6 + 14 x 0.6 us, and the bytes at half the rate."""
    seconds, how = only(BARE, EIGHT, AR, 1024)
    assert how == "ring ll"
    assert seconds == pytest.approx(6.6 * US + 14 * 0.6 * US + 1.75 * 1024 / 100e9)


def test_an_all_reduce_across_hosts() -> None:
    """16 GPUs on two hosts: of 30 steps, 2 go across. LL128 of a ring: 14 + 28 x 1.9 + 2 x 4 us, 0.92 of 100 GB/s."""
    layout = replace(SIXTEEN, hop_s=3 * US)
    ring = 14 * US + 28 * 1.9 * US + 2 * (4 + 3) * US + 1.875 * 16 * MIB / 92e9
    assert only(BARE, layout, AR, 16 * MIB) == (pytest.approx(ring), "ring ll128")
    # The tree of 8 hosts, at 4 MiB: 14 + 2 (7 x 1.25 + 3 x 8.5) us, half of 0.92 x 0.9375 x 0.8 of 100 GB/s.
    tree = 14 * US + 2 * (7 * 1.25 + 3 * (8.5 + 3)) * US + 2 * 4 * MIB / (0.92 * 0.9375 * 0.8 * 100e9)
    assert only(BARE, replace(layout, ranks=64, hosts=8), AR, 4 * MIB) == (pytest.approx(tree), "tree ll128")


def test_a_tree_of_hosts_is_as_deep_as_it_is_built() -> None:
    """Five hosts of one GPU: three levels. A tree with LL: 6.8 + 2 x 3 x 5 us."""
    layout = Layout(ranks=5, hosts=5, inside_Bps=inf, across_Bps=10e9, memory_Bps=inf)
    seconds, how = only(BARE, layout, AR, 64)
    assert how == "tree ll"
    assert seconds == pytest.approx(6.8 * US + 30 * US + 2 * 64 / (0.92 / 3.8 * 10e9))


def test_a_ring_of_single_devices_pays_a_trees_hops() -> None:
    """NCCL: with one GPU a host, latencies of the network are fully exposed. Two hosts: 8.4 + 2 x 14 us (Simple)."""
    layout = Layout(ranks=2, hosts=2, inside_Bps=inf, across_Bps=10e9, memory_Bps=inf)
    nowhere = replace(BARE, ll128="nowhere")
    assert only(nowhere, layout, RS, 256 * MIB)[0] == pytest.approx((8.4 + 14) * US + 0.5 * 256 * MIB / 10e9)
    assert only(nowhere, layout, RS, 8)[0] == pytest.approx((6.6 + 5) * US + 0.5 * 8 / 5e9)


@pytest.mark.parametrize("kind", [RS, AG])
def test_half_an_all_reduce_takes_half_the_steps(kind: CollectiveKind) -> None:
    assert only(BARE, EIGHT, kind, 1024 * MIB) == (
        pytest.approx(8.4 * US + 7 * 3.4 * US + 0.875 * 1024 * MIB / 200e9),
        "ring simple",
    )
    assert only(BARE, SIXTEEN, kind, 8)[0] == pytest.approx((6.6 + 14 * 0.6 + 2.7) * US + 15 / 16 * 8 / 50e9)


def test_a_broadcast_is_a_chain() -> None:
    assert only(BARE, EIGHT, BC, 1024 * MIB) == (
        pytest.approx(8.4 * US + 7 * 3.4 * US + 1024 * MIB / 200e9),
        "ring simple",
    )


def test_what_was_measured_beside_nccls_own_terms() -> None:
    """The overhead is there in full for large messages; the pass through memory takes the bytes' time."""
    layout = replace(EIGHT, memory_Bps=1000e9)
    platform = replace(BARE, overhead_s=40 * US, ramp_bytes=100e3, memory_share=0.5)
    for nbytes in (1e3, 1e5, 1e9):
        bare, full = price(BARE, EIGHT, AR, nbytes).seconds, price(platform, layout, AR, nbytes).seconds
        assert full == pytest.approx(bare + 40 * US * (1 - exp(-nbytes / 100e3)) + nbytes / 500e9)
    half = price(platform, layout, RS, 1e9).seconds - price(BARE, EIGHT, RS, 1e9).seconds
    assert half == pytest.approx(40 * US + 0.5e9 / 500e9)
    measured = replace(platform, memory_Bps=250e9)
    assert price(measured, layout, AR, 1e9).seconds == pytest.approx(price(platform, layout, AR, 1e9).seconds + 2e-3)


def test_the_least_time_is_that_of_launching() -> None:
    platform = replace(BARE, launch_s=4 * US)
    one, eight = (price(platform, replace(EIGHT, gpus_per_process=n), AR, 8) for n in (1, 8))
    assert one.seconds == price(BARE, EIGHT, AR, 8).seconds > 4 * US
    assert eight.seconds == pytest.approx(32 * US)
    assert eight.latency_s < eight.seconds


def test_one_rank_and_no_bytes_take_no_time() -> None:
    assert price(A100, replace(EIGHT, ranks=1), AR, 1e6).seconds == 0
    assert price(A100, EIGHT, AR, 0).seconds == 0


@pytest.mark.parametrize(("where", "inside", "across"), [("nowhere", 0, 0), ("inside", 1, 0), ("everywhere", 1, 1)])
def test_where_ll128_is_used(where: str, inside: int, across: int) -> None:
    platform = replace(BARE, ll128=where)
    used = [
        any(price(platform, layout, AR, nbytes * 1024).protocol is Protocol.LL128 for nbytes in range(1, 32_000, 200))
        for layout in (EIGHT, SIXTEEN, replace(EIGHT, nvlink=False), replace(SIXTEEN, nvlink=False))
    ]
    assert used == [bool(inside), bool(across), False, False]


def test_channels_cap_trees_and_ll128() -> None:
    one = replace(BARE, channels=1)
    assert price(one, SIXTEEN, AR, 8 * MIB).seconds > price(BARE, SIXTEEN, AR, 8 * MIB).seconds
    assert price(one, SIXTEEN, AR, 2**30) == price(BARE, SIXTEEN, AR, 2**30)  # a ring of whole chunks
    assert price(replace(BARE, channels=24), SIXTEEN, AR, 8 * MIB) == price(BARE, SIXTEEN, AR, 8 * MIB)


def test_bus_rates_are_those_of_links_and_of_what_was_measured() -> None:
    assert bus_Bps(A100, EIGHT) == 200e9
    assert bus_Bps(A100, SIXTEEN) == pytest.approx(73e9)
    assert bus_Bps(replace(A100, inside_Bps=150e9), EIGHT) == 150e9
    assert bus_Bps(replace(A100, inside_Bps=300e9), EIGHT) == 200e9  # links bound it
    half = replace(SIXTEEN, nics_share=0.5, across_Bps=50e9)
    assert bus_Bps(replace(A100, across_share=1.0, across_Bps=60e9), half) == 30e9


@given(
    ranks=st.sampled_from([2, 3, 8, 16, 24, 64, 1024]),
    nbytes=st.integers(1, 1 << 34),
    kind=st.sampled_from(list(CollectiveKind)),
    more=st.integers(1, 1 << 30),
)
def test_more_bytes_and_more_hosts_take_no_less(ranks: int, nbytes: int, kind: CollectiveKind, more: int) -> None:
    """Not of a tree alone, whose correction is not monotonic; the least of all rises, but for its steps."""
    count = max(1, ranks // 8)
    layout = Layout(ranks=ranks, hosts=count, inside_Bps=250e9, across_Bps=150e9, memory_Bps=1.5e12)
    found = price(A100, layout, kind, nbytes)
    assert found.seconds >= found.latency_s > 0
    edge = 2 * (ranks - 1) / ranks if kind is AR else (ranks - 1) / ranks if kind in (RS, AG) else 1
    assert found.seconds - found.latency_s >= (1 - 1e-9) * edge * nbytes / 250e9 * (1 if count == 1 else 250 / 150)
    assert price(A100, layout, kind, 2 * nbytes + more).seconds >= found.seconds


# ---- links ---------------------------------------------------------------------------------------------------------


def test_rings_enter_a_host_at_the_device_of_each_nic() -> None:
    on = hosts(2, 4, nics=2)
    assert list(rings_of(on, {0: [0, 1, 2, 3], 1: [4, 5, 6, 7]})) == [
        (0, 1, 2, 3, 4, 5, 6, 7),
        (2, 3, 0, 1, 6, 7, 4, 5),
    ]
    assert list(rings_of(on, {0: [0, 1, 2, 3]})) == [(0, 1, 2, 3)]
    assert list(rings_of(on, {0: [2, 3], 1: [5]})) == [(2, 3, 5)]
    assert list(rings_of(on, {0: [0, 2], 1: [5]})) == [(0, 2, 5), (2, 0, 5)]


@pytest.mark.parametrize("kind", list(CollectiveKind))
def test_each_nic_of_a_host_carries_its_share(kind: CollectiveKind) -> None:
    """An all-reduce over 2 hosts of 8 devices and 4 NICs: all of them send 15/8 S together, and so receive."""
    alone = OneCollective(hosts(2, 8, nics=4), range(16))
    activity = alone.activity(kind, 8_000_000)
    sides = [demand for q, demand in activity.usage if "NIC" in alone.resources.made[q].label]
    assert len(sides) == (14 if kind is BC else 16)  # the edge into the root is none
    edge = {AR: 15 / 8, BC: 1.0}.get(kind, 15 / 16)
    assert activity.work == pytest.approx(edge * 8e6)
    assert sides == pytest.approx([1 / 4] * len(sides))
    devices = [demand for q, demand in activity.usage if "nvlink" in alone.resources.made[q].label]
    assert len(devices) == (30 if kind is BC else 32)
    assert max(devices) <= 1 + 1e-9
    assert sum(devices) == pytest.approx(2 * (14 - (0.75 if kind is BC else 0)))


def test_the_nics_of_a_host_together_make_it_faster() -> None:
    one, four = (OneCollective(hosts(2, 8, nics=n), range(16)).seconds(AR, 1 << 30) for n in (1, 4))
    assert one / four == pytest.approx(4, rel=0.05)


def test_devices_of_some_nics_only_use_those() -> None:
    """Two of eight devices on each of two hosts with four NICs, both of NIC 0."""
    on = hosts(2, 8, nics=4)
    near, apart = OneCollective(on, [0, 1, 8, 9]), OneCollective(on, [0, 2, 8, 10])
    assert near.layout is not None and apart.layout is not None
    assert (near.layout.across_Bps, apart.layout.across_Bps) == (pytest.approx(10e9), pytest.approx(20e9))
    assert (near.layout.nics_share, apart.layout.nics_share) == (0.25, 0.5)


def test_hosts_that_differ_are_as_slow_as_the_slower() -> None:
    on = hosts(2, 8, nics=4)
    layout = OneCollective(on, [*range(8), 8, 9]).layout
    assert layout is not None
    assert (layout.ranks, layout.hosts) == (10, 2)
    assert layout.across_Bps == pytest.approx(10e9)


def test_pcie_hosts_cross_their_devices_links_on_the_way_out() -> None:
    alone = OneCollective(hosts(2, 4, nics=1, intra=IntraKind.PCIE), range(8))
    used = {alone.resources.made[q].label: demand for q, demand in alone.activity(AR, MIB).usage}
    pcie = {label: demand for label, demand in used.items() if "pcie" in label}
    assert len(pcie) == 16
    assert set(pcie.values()) == {1.0}
    assert alone.layout is not None and not alone.layout.nvlink


@settings(deadline=None, max_examples=40)
@given(
    count=st.integers(1, 4),
    devices=st.sampled_from([1, 2, 4, 8]),
    nics=st.sampled_from([1, 2, 4, 8]),
    kind=st.sampled_from(list(CollectiveKind)),
    nbytes=st.sampled_from([4, 4096, 10**6, 10**8]),
    intra=st.sampled_from(list(IntraKind)),
)
def test_alone_it_takes_its_price_and_never_beats_its_links(
    count: int, devices: int, nics: int, kind: CollectiveKind, nbytes: int, intra: IntraKind
) -> None:
    on = hosts(count, devices, nics=min(nics, devices), intra=intra)
    if on.world_size == 1:
        return
    alone = OneCollective(on, range(on.world_size))
    activity = alone.activity(kind, nbytes)
    seconds = alone.seconds(kind, nbytes)
    assert seconds >= max(activity.work * d / alone.resources.made[q].capacity for q, d in activity.usage)
    assert seconds == pytest.approx(alone.price(kind, nbytes).seconds, rel=1e-9)
    assert 0 <= activity.delay_s <= seconds


# ---- simulated -----------------------------------------------------------------------------------------------------


def seconds(on: Cluster, how: Collectives = Collectives.ACTIVITY, *, engine: str = "auto", **more: object) -> float:
    model = one_bucket(24 * MIB)
    schedule = build("all_reduce", model, on.world_size, overlap=False, first_bucket="1GB", **more)
    return simulate(schedule, model, on, lambda _: ZERO, collectives=how, engine=engine).iteration_s


def test_an_iteration_of_one_all_reduce_takes_its_price() -> None:
    on = hosts(2, 4, nics=2)
    alone = OneCollective(on, range(8)).seconds(AR, 24 * MIB)
    posting_s = on.hosts[0].nic.overhead_s
    assert seconds(on) == pytest.approx(alone + posting_s)
    assert seconds(on, engine="compiled") == pytest.approx(alone + posting_s, rel=1e-9)
    assert seconds(on, engine="plain") == pytest.approx(alone + posting_s, rel=1e-9)


def test_no_iteration_beats_the_bounds() -> None:
    on = hosts(4, 4, nics=4)
    model = one_bucket(24 * MIB)
    schedule = build("all_reduce", model, 16, overlap=False, first_bucket="1GB")
    found = simulate(schedule, model, on, lambda _: ZERO)
    quick_s = quick_bound_s(schedule, model, on, lambda _: ZERO)
    assert 0 < quick_s <= found.bound_s * (1 + 1e-9) <= found.iteration_s * (1 + 1e-9)
    assert quick_s == pytest.approx(2 * 3 / 4 * 24 * MIB / 40e9)  # all four NICs of a host


def test_gloo_is_priced_as_before() -> None:
    """Ranks on cores, staging, and clusters that are told so: the ring's closed form, to the last digit."""
    on = hosts(4, 1, intra=None)
    gloo = seconds(replace(on, uses_nccl=False))
    size = 24 * MIB
    assert gloo == pytest.approx(6 * 10e-6 + 6 * 2e-6 + 1.5 * size / 10e9, rel=1e-9)
    assert seconds(on) != gloo
    staged = star([replace(h, staging=Staging(bandwidth_Bps=12e9)) for h in on.hosts])
    assert seconds(staged) == seconds(replace(staged, uses_nccl=False))
    cores = star([replace(h, devices=()) for h in on.hosts])
    assert seconds(cores) == seconds(replace(cores, uses_nccl=False)) == gloo


def test_what_a_schedule_carries_out_by_steps_is_not_nccls() -> None:
    on = hosts(4, 1, intra=None)
    by_steps = {"algorithm": Algorithm.RING}
    assert seconds(on, **by_steps) == seconds(replace(on, uses_nccl=False), **by_steps)


def test_devices_that_nothing_joins_are_not_nccls() -> None:
    """Ranks on one host whose devices talk over the loopback: nothing is known of NCCL there."""
    on = hosts(2, 4, intra=None)
    assert seconds(on) == seconds(replace(on, uses_nccl=False))
    assert OneCollective(on, range(8)).layout is None
    assert OneCollective(on, [0, 4]).layout is not None


def test_step_by_step_it_is_a_ring() -> None:
    on = hosts(4, 1, intra=None)
    steps = seconds(on, Collectives.STEPS)
    assert steps == pytest.approx(seconds(replace(on, uses_nccl=False)), rel=1e-3)


def test_on_ethernet_it_is_nearly_the_ring() -> None:
    """Hosts of one V100 on 10 Gb/s: an all-reduce of 25 MB takes within 2% of the ring's closed form."""
    for nodes in (2, 4, 10):
        on = load_cluster("ec2-p3-10", nodes=nodes)
        nccl, ring = (
            OneCollective(c, range(nodes)).seconds(AR, 25_000_000) for c in (on, replace(on, uses_nccl=False))
        )
        assert nccl == pytest.approx(ring, rel=0.02)
        assert OneCollective(on, range(nodes)).how(AR, 25_000_000) == "ring, simple"


def test_folded_and_unfolded_agree() -> None:
    for name, nodes in (("ec2-p3-10", 10), ("fat-tree", None)):
        on = load_cluster(name, nodes=nodes)
        if name == "fat-tree":
            on = star([replace(h, devices=("V100",)) for h in on.hosts])
        model = one_bucket(24 * MIB)
        schedule = build("all_reduce", model, on.world_size, overlap=False, first_bucket="1GB")
        folded, alone = (simulate(schedule, model, on, lambda _: ZERO, fold_ranks=f).iteration_s for f in (True, False))
        assert folded == pytest.approx(alone, rel=1e-9)


def test_unlike_platforms_are_as_slow_as_the_slowest() -> None:
    on = hosts(2, 8, nics=8)
    mixed = star([on.hosts[0], replace(on.hosts[1], nccl="nvlink")])
    took = [OneCollective(c, range(16)).seconds(AR, 1 << 30) for c in (on, mixed)]
    assert took[1] >= took[0]


def test_moved_bytes_are_those_of_the_closed_form() -> None:
    on = hosts(2, 4, nics=2)
    model = one_bucket(24 * MIB)
    schedule = build("all_reduce", model, 8, overlap=False, first_bucket="1GB")
    parts = Lowering(schedule, model, on, unfolded(on), lambda _: ZERO)
    op = next(op for op in schedule.ops if hasattr(op, "by"))
    assert parts.collectives.nccl.carries(op)
    assert set(parts.collectives.moved(op).values()) == {(2 * 7 * 24 * MIB // 8,) * 2}


def test_algorithms_have_names() -> None:
    assert [*NcclAlgorithm] == ["ring", "tree"]


# ---- ends ----------------------------------------------------------------------------------------------------------


def over_tcp(on: Cluster, transport: Transport) -> Cluster:
    made = [
        replace(
            h,
            nic=replace(h.nic, transport=transport),
            more_nics=tuple(replace(nic, transport=transport) for nic in h.more_nics),
        )
        for h in on.hosts
    ]
    return star(made)


@pytest.mark.parametrize(("devices", "nics", "streams"), [(1, 1, 1), (4, 1, 1), (4, 4, 4)])
def test_each_ring_has_a_stream_of_its_own(devices: int, nics: int, streams: int) -> None:
    on = over_tcp(hosts(2, devices, nics=nics), Transport(stream_Bps=1e9))
    alone = OneCollective(on, range(2 * devices))
    assert alone.layout is not None
    assert alone.layout.across_Bps == pytest.approx(streams * 1e9)
    n = 2 * devices
    seconds = alone.seconds(AR, 1 << 30)
    assert seconds == pytest.approx(2 * (n - 1) / n * 2**30 / (streams * A100.across_share * 1e9), rel=0.1)


def test_what_messages_cost_cores_and_processes_limits_it() -> None:
    on = hosts(2, 4, nics=1)
    cores = OneCollective(over_tcp(on, Transport(byte_core_s=1e-9)), range(8))
    assert any(cores.resources.made[q].kind == "cores" for q, _ in cores.activity(AR, MIB).usage)
    # One ring: a byte of an edge is sent once and received once at each host; one core moves 1 GB/s.
    assert cores.layout is not None
    assert cores.layout.across_Bps == pytest.approx(1e9)
    process = OneCollective(over_tcp(on, Transport(process_Bps=2e9)), range(8))
    assert process.layout is not None
    assert process.layout.across_Bps == pytest.approx(2e9)
    assert process.layout.inside_Bps == OneCollective(on, range(8)).layout.inside_Bps  # type: ignore[union-attr]


def test_messages_that_cost_cores_count_by_their_size() -> None:
    on = over_tcp(hosts(2, 1, intra=None), Transport(message_core_s=1e-3))
    alone = OneCollective(on, range(2))
    small, large = (alone.activity(AR, n) for n in (1000, 10**6))
    core = next(q for q, _ in small.usage if alone.resources.made[q].kind == "cores")
    assert dict(small.usage)[core] == pytest.approx(1000 * dict(large.usage)[core])


def test_it_takes_its_share_of_the_devices() -> None:
    on = hosts(2, 4, nics=4)
    lossy = star([replace(h, losses=Losses(collective_share=0.1)) for h in on.hosts])
    model = one_bucket(24 * MIB)
    schedule = build("all_reduce", model, 8, overlap=False, first_bucket="1GB")
    for cluster, devices in ((on, 0), (lossy, 8)):
        parts = Lowering(schedule, model, cluster, unfolded(cluster), lambda _: ZERO)
        activity = parts.collectives.every()[next(op.name for op in schedule.ops if hasattr(op, "by"))].activity
        assert sum(parts.resources.made[q].kind == "device" for q, _ in activity.usage) == devices
