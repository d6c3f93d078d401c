"""Slower links, and a slower clock: what is divided, what is multiplied, and that predictions scale exactly."""

from dataclasses import replace
from math import inf
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stanza_sim import strategies
from stanza_sim.cluster import Cluster, Loopback, Staging, TokenBucket, Traffic, load_cluster
from stanza_sim.cluster.dilation import dilated, perceived
from stanza_sim.cluster.hardware import Intra, IntraKind, LinkKind, Losses, PcieTree, Transport
from stanza_sim.model.zoo import load_model
from stanza_sim.simulate import simulate
from stanza_sim.simulate.costs import costs_for

TWO_LEVELS = """\
name: two
hosts:
  - name: n
    cores: 2
    devices: [V100]
    nic: {rate: 10Gbps, latency: 20us, overhead: 5us, efficiency: 0.95, burst: 64KiB, peak: 20Gbps}
fabric: {kind: leaf-spine, leaves: 2, hosts_per_leaf: 2, spines: 1, oversubscription: 2, latency: 3us}
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    path = tmp_path / "two.yaml"
    path.write_text(TWO_LEVELS)
    return replace(load_cluster(path), wakeup_latency_s=40e-6)


def test_without_a_dilation_nothing_changes(cluster: Cluster) -> None:
    assert dilated(cluster, 1.0) is cluster
    assert perceived(cluster, 1.0) is cluster


def test_links_are_slower_and_hold_as_many_bytes(cluster: Cluster) -> None:
    slow = dilated(cluster, 40.0)
    for before, after in zip(cluster.links, slow.links, strict=True):
        assert after.bandwidth_Bps == before.bandwidth_Bps / 40
        assert after.latency_s == before.latency_s
    before, after = cluster.hosts[0].nic, slow.hosts[0].nic
    assert (before.bucket, after.bucket) == (
        TokenBucket(nbytes=65536, peak_Bps=2.5e9),
        TokenBucket(nbytes=65536, peak_Bps=62.5e6),
    )
    assert after.bandwidth_Bps == 31.25e6
    assert (after.latency_s, after.overhead_s, after.efficiency) == (20e-6, 5e-6, 0.95)
    assert (slow.wakeup_latency_s, slow.hosts[0].loopback) == (40e-6, cluster.hosts[0].loopback)


def test_both_sides_of_a_nic_background_and_what_is_inside_a_host(cluster: Cluster) -> None:
    host = cluster.hosts[0]
    traffic = Traffic(bandwidth_Bps=1e8, on_s=0.01, off_s=0.03, seed=7)
    nic = replace(
        host.nic, receive_bandwidth_Bps=5e8, receive_latency_s=8e-6, background=traffic, bucket=TokenBucket(nbytes=9.0)
    )
    host = replace(host, nic=nic, more_nics=(nic,), staging=Staging(bandwidth_Bps=1e9, latency_s=4e-6))
    changed = replace(cluster, hosts=(host, *cluster.hosts[1:]))
    slow = dilated(changed, 4.0).hosts[0]
    assert slow.nic == slow.more_nics[0]
    assert slow.nic.receive_bandwidth_Bps == 1.25e8
    assert slow.nic.background == Traffic(bandwidth_Bps=2.5e7, on_s=0.04, off_s=0.12, seed=7)
    assert slow.nic.bucket == TokenBucket(nbytes=9.0, peak_Bps=inf)
    assert (slow.staging, slow.loopback) == (host.staging, host.loopback)
    seen = perceived(changed, 4.0).hosts[0]
    assert seen.nic.receive_bandwidth_Bps == 2e9
    assert (seen.nic.receive_latency_s, seen.nic.latency_s, seen.nic.overhead_s) == (2e-6, 5e-6, 1.25e-6)
    assert seen.staging == Staging(bandwidth_Bps=4e9, latency_s=1e-6)
    real = host.loopback
    assert seen.loopback == Loopback(
        bandwidth_Bps=4 * real.bandwidth_Bps,
        latency_s=real.latency_s / 4,
        message_core_s=real.message_core_s / 4,
        byte_core_s=real.byte_core_s / 4,
    )


def test_what_software_allows_and_costs_is_real(cluster: Cluster) -> None:
    stated = Transport(preset="tcp", stream_Bps=2e9, process_inside=True, message_core_s=4e-6, byte_core_s=1e-9)
    host = replace(cluster.hosts[0], nic=replace(cluster.hosts[0].nic, transport=stated))
    changed = replace(cluster, hosts=(host, *cluster.hosts[1:]))
    assert dilated(changed, 4.0).hosts[0].nic.transport == stated
    assert perceived(changed, 4.0).hosts[0].nic.transport == replace(
        stated, stream_Bps=8e9, message_core_s=1e-6, byte_core_s=0.25e-9
    )


def test_what_is_inside_a_host_and_what_it_loses_is_real(tmp_path: Path) -> None:
    tree = PcieTree(switches=((0, 1),), switch_Bps=8e9, root_Bps=None, memory_Bps=2e10)
    stated = replace(
        load_cluster("multi-gpu", nodes=2).hosts[0],
        intra=Intra(kind=IntraKind.PCIE, bandwidth_Bps=1e10, latency_s=4e-6, tree=tree, host_link_Bps=6e9),
        losses=Losses(collective_share=0.1, iteration_overhead_s=2e-3, overhead_per_device_s=4e-4, barrier=True),
    )
    two = load_cluster("multi-gpu", nodes=2)
    slow = dilated(two, 4.0)
    kinds = {(a.kind, b.bandwidth_Bps / a.bandwidth_Bps) for a, b in zip(two.links, slow.links, strict=True)}
    assert (LinkKind.DEVICE_OUT, 1.0) in kinds
    assert (LinkKind.SEND, 0.25) in kinds
    seen = perceived(replace(two, hosts=(stated, *two.hosts[1:])), 4.0).hosts[0]
    assert seen.intra == Intra(
        kind=IntraKind.PCIE,
        bandwidth_Bps=4e10,
        latency_s=1e-6,
        tree=replace(tree, switch_Bps=3.2e10, memory_Bps=8e10),
        host_link_Bps=2.4e10,
    )
    assert seen.losses == replace(stated.losses, iteration_overhead_s=5e-4, overhead_per_device_s=1e-4)


@settings(max_examples=6, deadline=None)
@given(
    dilation=st.floats(1.0, 100.0),
    name=st.sampled_from(["parameter_server", "all_reduce", "stanza"]),
)
def test_predicting_by_the_slow_clock_is_predicting_the_slow_run_and_dividing(dilation: float, name: str) -> None:
    """Rates divided, computations longer, latencies and costs of messages as they are: then all times divided."""
    model = load_model("alexnet")
    stated = replace(load_cluster("ec2-p3-10", nodes=4), uses_nccl=False)  # as wherever computations are emulated
    found = strategies.get(name)
    schedule = found.build(model, world_size=4, batch_per_worker=32, settings=found.Settings())
    slow = dilated(stated, dilation)
    longer = replace(slow, hosts=tuple(replace(host, device_speed=1 / dilation) for host in slow.hosts))
    in_real_time = simulate(schedule, model, longer, costs_for(longer, model))
    seen = perceived(slow, dilation)
    by_the_clock = simulate(schedule, model, seen, costs_for(seen, model))
    for key in ("iteration_s", "exposed_comm_s", "bound_s"):
        assert getattr(by_the_clock, key) == pytest.approx(getattr(in_real_time, key) / dilation, rel=1e-9, abs=1e-12)
    assert by_the_clock.utilisation == pytest.approx(in_real_time.utilisation, rel=1e-6, abs=1e-9)
    spans = zip(in_real_time.timeline.spans, by_the_clock.timeline.spans, strict=True)
    assert all(b.end_s == pytest.approx(a.end_s / dilation, rel=1e-9, abs=1e-12) for a, b in spans)


def test_what_does_not_scale_shows_beside_small_messages_only() -> None:
    """A latency is 40 times less by the clock, so small messages come out faster than undilated."""
    model, stated = load_model("vgg16"), replace(load_cluster("ec2-p3-10", nodes=4), uses_nccl=False)
    found = strategies.get("all_reduce")
    seen = perceived(dilated(stated, 40.0), 40.0)
    schedule = found.build(model, world_size=4, batch_per_worker=32, settings=found.Settings())
    one, other = (simulate(schedule, model, c, costs_for(c, model)).iteration_s for c in (stated, seen))
    assert 0.99 < other / one < 1
