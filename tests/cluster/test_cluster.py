"""Routes, placement and the shipped topologies."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stanza_sim.base import config
from stanza_sim.base.errors import InputError
from stanza_sim.cluster import Cluster, Host, Loopback, Nic, load_cluster, star, with_loopback
from stanza_sim.cluster.device import load_device

NIC = Nic(bandwidth_Bps=1.25e9, latency_s=25e-6, overhead_s=5e-6, efficiency=0.96)


def _load(folder: Path, text: str, *, nodes: int | None = None, rate_Bps: float | None = None) -> Cluster:
    path = folder / "t.yaml"
    path.write_text(text)
    return load_cluster(path, nodes=nodes, rate_Bps=rate_Bps)


def _names(cluster: Cluster, src: int, dst: int) -> list[str]:
    return [cluster.links[link].name for link in cluster.route(src, dst)]


def test_a_star_route_is_two_sides_of_two_nics() -> None:
    cluster = star([Host(name=f"h{i}", cores=4, nic=NIC) for i in range(3)])
    assert cluster.route(1, 1) == ()
    assert _names(cluster, 2, 0) == ["h2.tx", "h0.rx"]
    assert cluster.links[cluster.route(2, 0)[0]].label == "h2 transmit side"
    assert cluster.links[cluster.route(2, 0)[1]].label == "h0 receive side"
    assert cluster.latency_s(2, 0) == pytest.approx(50e-6)
    assert cluster.latency_s(2, 2) == 0.0
    assert cluster.links[0].bandwidth_Bps == pytest.approx(1.2e9)
    assert cluster.hosts_on_one_switch
    assert cluster.world_size == cluster.nodes == 3


def test_shipped_topologies() -> None:
    assert {"laptop", "ec2-p3-10", "azure-nc6-10", "star"} <= set(config.available("topologies"))
    laptop = load_cluster("laptop")
    assert (laptop.world_size, len(laptop.hosts), laptop.links) == (4, 1, ())
    assert laptop.hosts[0].cores == len(os.sched_getaffinity(0))
    assert laptop.nodes == 4
    assert all(laptop.on_cores(r) and laptop.device_of(r) == "cpu" for r in range(4))
    assert laptop.same_host(0, 3)
    assert laptop.ranks_on(0) == (0, 1, 2, 3)
    assert laptop.hosts[0].loopback == Loopback()  # the file states what the code takes for typical

    ec2 = load_cluster("ec2-p3-10")
    assert (ec2.world_size, ec2.nodes, len(ec2.links)) == (10, 10, 20)
    assert ec2.hosts[3].nic.bandwidth_Bps == 1.25e9
    assert ec2.device_of(3) == "V100"
    assert not ec2.on_cores(3)
    assert ec2.ranks_on(3) == (3,)

    azure = load_cluster("azure-nc6-10")
    assert azure.device_of(0) == "K80"
    assert "assumption" in azure.description
    for name in config.available("topologies"):
        cluster = load_cluster(name)
        assert cluster.name == name
        assert cluster.description
        for rank in range(cluster.world_size):
            load_device(cluster.device_of(rank))


def test_nodes_and_rate() -> None:
    assert load_cluster("ec2-p3-10", nodes=4, rate_Bps=3.125e9).hosts[3].nic.bandwidth_Bps == 3.125e9
    assert load_cluster("ec2-p3-10", nodes=4).world_size == 4
    laptop = load_cluster("laptop", nodes=7)
    assert (laptop.world_size, len(laptop.hosts), laptop.nodes) == (7, 1, 7)


def test_one_node_of_a_star_still_loads() -> None:
    assert load_cluster("star", nodes=1).links == ()
    assert load_cluster("star", nodes=1).hosts_on_one_switch


def test_overrides_change_what_they_state_and_nothing_else(tmp_path: Path) -> None:
    cluster = _load(
        tmp_path,
        """
        name: t
        hosts: [{name: n, count: 4, cores: 8, devices: [V100], nic: {rate: 10Gbps, latency: 25us, efficiency: 0.9}}]
        switches: [{name: s}]
        overrides:
          n-1: {nic: {rate: 1Gbps}, device_speed: 0.5}
          n-2: {cores: 2, devices: [K80], loopback: {rate: 1GB/s}, nic: {latency: 0s, overhead: 9us, efficiency: 0.5}}
        """,
    )
    plain = cluster.hosts[0]
    assert cluster.hosts[3] == replace(plain, name="n-3")
    assert cluster.hosts[1] == replace(plain, name="n-1", nic=replace(plain.nic, bandwidth_Bps=125e6), device_speed=0.5)
    assert cluster.hosts[2] == replace(
        plain,
        name="n-2",
        cores=2,
        devices=("K80",),
        loopback=replace(Loopback(), bandwidth_Bps=1e9),
        nic=Nic(bandwidth_Bps=1.25e9, latency_s=0.0, overhead_s=9e-6, efficiency=0.5),
    )
    assert cluster.links[2].bandwidth_Bps == pytest.approx(125e6 * 0.9)
    again = load_cluster(tmp_path / "t.yaml", rate_Bps=2e9)
    assert {host.nic.bandwidth_Bps for host in again.hosts} == {2e9}


def test_placement_puts_ranks_on_devices_in_turn(tmp_path: Path) -> None:
    text = """
        name: t
        hosts:
          - {name: g, count: 2, cores: 8, devices: [V100, K80], nic: {rate: 10Gbps}}
          - {name: head, cores: 4, nic: {rate: 10Gbps}}
        switches: [{name: s}]
"""
    cluster = _load(tmp_path, text)
    assert [(p.host, p.device) for p in cluster.placement] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, None)]
    assert [cluster.device_of(r) for r in range(5)] == ["V100", "K80", "V100", "K80", "cpu"]
    assert cluster.nodes == 3
    cluster = _load(tmp_path, text + "        placement: [g-1, head, g-1, head]\n")
    assert [(p.host, p.device) for p in cluster.placement] == [(1, 0), (2, None), (1, 1), (2, None)]
    assert cluster.ranks_on(1) == (0, 2)
    assert cluster.host_of(3).name == "head"
    cluster = _load(tmp_path, text + "        ranks_per_host: 1\n")
    assert cluster.world_size == 3


LEAF_SPINE = """
name: leaf-spine
hosts:
  - {name: a, count: 4, cores: 8, nic: {rate: 10Gbps, latency: 10us}}
  - {name: b, count: 4, cores: 8, nic: {rate: 10Gbps, latency: 10us}}
switches: [{name: leaf-a}, {name: leaf-b}, {name: spine-0}, {name: spine-1}]
links:
  - {from: a, to: leaf-a}
  - {from: leaf-b, to: b}
  - {from: leaf-a, to: spine-0, rate: 40Gbps, latency: 1us, efficiency: 0.5}
  - {from: leaf-a, to: spine-1, rate: 40Gbps, latency: 1us}
  - {from: leaf-b, to: spine-0, rate: 40Gbps, latency: 1us}
  - {from: leaf-b, to: spine-1, rate: 40Gbps, latency: 1us}
"""


def test_leaf_and_spine(tmp_path: Path) -> None:
    cluster = _load(tmp_path, LEAF_SPINE)
    assert not cluster.hosts_on_one_switch
    assert _names(cluster, 0, 3) == ["a-0.tx", "a-3.rx"]
    assert _names(cluster, 0, 4) == ["a-0.tx", "leaf-a->spine-0", "spine-0->leaf-b", "b-0.rx"]
    assert cluster.latency_s(0, 4) == pytest.approx(22e-6)
    trunk = next(link for link in cluster.links if link.name == "leaf-a->spine-0")
    assert (trunk.bandwidth_Bps, trunk.label) == (2.5e9, "link leaf-a to spine-0")
    # A shift of all hosts by one leaf loads both spines alike, and the same way every time.
    spines = [_names(cluster, i, i + 4)[1] for i in range(4)]
    assert sorted(spines) == ["leaf-a->spine-0"] * 2 + ["leaf-a->spine-1"] * 2
    assert spines == [_names(load_cluster(tmp_path / "t.yaml"), i, i + 4)[1] for i in range(4)]


@given(src=st.integers(0, 7), dst=st.integers(0, 7))
@settings(max_examples=30)
def test_a_route_is_a_chain_of_links(tmp_path_factory: pytest.TempPathFactory, src: int, dst: int) -> None:
    cluster = _load(tmp_path_factory.mktemp("t"), LEAF_SPINE)
    names = _names(cluster, src, dst)
    if src == dst:
        assert names == []
        return
    assert names[0] == f"{cluster.hosts[src].name}.tx"
    assert names[-1] == f"{cluster.hosts[dst].name}.rx"
    inner = [name.split("->") for name in names[1:-1]]
    assert all(x[1] == y[0] for x, y in pairwise(inner))
    leaf = {"a": "leaf-a", "b": "leaf-b"}
    if inner:
        assert inner[0][0] == leaf[cluster.hosts[src].name[0]]
        assert inner[-1][1] == leaf[cluster.hosts[dst].name[0]]


def test_cables_between_hosts(tmp_path: Path) -> None:
    text = """
        name: t
        hosts: [{name: n, count: 3, cores: 2, nic: {rate: 10Gbps, latency: 2us}}]
        links:
          - {from: n-0, to: n-1}
          - {from: n-1, to: n-2, rate: 1Gbps, latency: 5us, efficiency: 0.5}
          - {from: n-0, to: n-2}
    """
    cluster = _load(tmp_path, text)
    assert _names(cluster, 1, 0) == ["n-1.tx", "n-0.rx"]
    assert _names(cluster, 2, 1) == ["n-2.tx", "n-2->n-1", "n-1.rx"]
    assert cluster.latency_s(2, 1) == pytest.approx(9e-6)
    assert not cluster.hosts_on_one_switch


def test_a_device_may_be_a_file_beside_the_topology(tmp_path: Path) -> None:
    text = config.find("devices", "K80").read_text().replace("name: K80", "name: Mine")
    (tmp_path / "mine.yaml").write_text(text)
    cluster = _load(tmp_path, "{name: t, hosts: [{name: n, cores: 2, devices: [./mine.yaml]}]}")
    assert load_device(cluster.device_of(0)).name == "Mine"
    experiment = tmp_path / "experiment.yaml"
    assert load_cluster("./t.yaml", beside=experiment).device_of(0) == cluster.device_of(0)


def test_ten_thousand_hosts() -> None:
    cluster = load_cluster("star", nodes=10_000, rate_Bps=1e9)
    assert cluster.world_size == 10_000
    assert sum(len(cluster.route(i, (i * 7 + 1) % 10_000)) for i in range(10_000)) > 19_000


def test_loopback_of_a_calibration() -> None:
    slow = Loopback(bandwidth_Bps=1e8)
    cluster = with_loopback(load_cluster("star"), slow)
    assert {host.loopback for host in cluster.hosts} == {slow}
    assert cluster.route(0, 1) == (0, 3)


SHARED = """\
name: t
{scales}
hosts:
  - {{name: n, cores: 8, devices: [V100, A100]}}
{placed}
"""


def test_ranks_share_devices_in_turn(tmp_path: Path) -> None:
    cluster = _load(tmp_path, SHARED.format(scales="", placed="ranks_per_device: 2"))
    assert [p.device for p in cluster.placement] == [0, 1, 0, 1]
    assert [cluster.device_of(r) for r in range(4)] == ["V100", "A100", "V100", "A100"]
    text = SHARED.format(scales="scales: ranks", placed="ranks_per_device: 2")
    assert [p.device for p in _load(tmp_path, text, nodes=6).placement] == [0, 1, 0, 1, 0, 1]
    with pytest.raises(InputError, match=r"nodes=3 does not fit 2 devices\n  use a multiple of 2"):
        _load(tmp_path, text, nodes=3)


def test_ranks_are_placed_on_devices_by_number(tmp_path: Path) -> None:
    cluster = _load(tmp_path, SHARED.format(scales="", placed="placement: [n/1, n/0, n/1]"))
    assert [p.device for p in cluster.placement] == [1, 0, 1]
    assert not any(cluster.on_cores(r) for r in range(3))


def test_devices_must_be_there_to_be_shared(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ranks_per_device, but a host has no devices"):
        _load(tmp_path, "name: t\nhosts: [{name: n, cores: 8}]\nranks_per_device: 2\n")


def test_one_host_of_h100() -> None:
    one, eight, shared = (load_cluster(name) for name in ("hgx-h100-1", "hgx-h100-8", "one-gpu-shared"))
    assert (one.world_size, eight.world_size, shared.world_size) == (1, 8, 2)
    assert [p.device for p in eight.placement] == list(range(8))
    assert [p.device for p in load_cluster("hgx-h100-8", nodes=3).placement] == [0, 1, 2]
    assert [p.device for p in load_cluster("one-gpu-shared", nodes=4).placement] == [0, 0, 0, 0]
    board = load_cluster("hgx-h100").hosts[0]
    assert (eight.hosts[0].intra, eight.hosts[0].cores) == (board.intra, board.cores)
    with pytest.raises(InputError, match="more ranks on local than its 8 devices"):
        load_cluster("hgx-h100-8", nodes=9)
