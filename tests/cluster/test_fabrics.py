"""Every kind of fabric: who is joined to whom, with which rates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import networkx as nx
import pytest

from stanza_sim.base.errors import InputError
from stanza_sim.cluster import Cluster, IntraKind, LinkKind, load_cluster
from tests.cluster.fabric_files import CUBE, FAT_TREE, LEAF_SPINE, RING, TORUS, fabric_text, load_text


def _link(cluster: Cluster, name: str) -> float:
    return next(link.bandwidth_Bps for link in cluster.links if link.name == name)


def _named(cluster: Cluster, usage: tuple[tuple[int, float], ...]) -> dict[str, float]:
    return {cluster.links[link].name: share for link, share in usage}


@pytest.mark.parametrize("over", [0.5, 1, 3, 4])
@pytest.mark.parametrize("spines", [1, 2, 3])
def test_oversubscription_is_what_nics_could_send_over_what_links_up_carry(
    tmp_path: Path, over: float, spines: int
) -> None:
    fabric = f"{{kind: leaf-spine, leaves: 3, hosts_per_leaf: 6, spines: {spines}, oversubscription: {over}}}"
    cluster = load_text(tmp_path, fabric_text(fabric))
    up = sum(_link(cluster, f"leaf-1->spine-{s}") for s in range(spines))
    nics = sum(host.nic.goodput_Bps for host in cluster.hosts[6:12])
    assert nics / up == pytest.approx(over)
    assert sum(_link(cluster, f"spine-{s}->leaf-1") for s in range(spines)) == pytest.approx(up)
    # The ratio also holds at another rate, and an override of one host leaves the fabric as it is.
    faster = load_text(tmp_path, fabric_text(fabric), rate_Bps=5e9)
    assert _link(faster, "leaf-1->spine-0") == pytest.approx(4 * up / spines)
    slow = load_text(tmp_path, fabric_text(fabric, more="overrides: {n-0: {nic: {rate: 1Gbps}}}"))
    assert _link(slow, "leaf-0->spine-0") == pytest.approx(up / spines)


def test_leaf_spine_with_stated_rates_and_backplanes(tmp_path: Path) -> None:
    fabric = (
        "{kind: leaf-spine, leaves: 2, hosts_per_leaf: 2, spines: 2, rate: 8Gbps, efficiency: 0.25, latency: 3us,"
        " spine_backplane: 4Gbps, leaf_backplane: 2Gbps}"
    )
    cluster = load_text(tmp_path, fabric_text(fabric))
    assert _link(cluster, "leaf-0->spine-1") == 1e9 * 0.25
    usage, latency_s = cluster.usage(0, 3)
    assert _named(cluster, usage) == {
        "n-0.tx": 1.0,
        "leaf-0.backplane": 1.0,
        "leaf-0->spine-0": 0.5,
        "leaf-0->spine-1": 0.5,
        "spine-0.backplane": 0.5,
        "spine-1.backplane": 0.5,
        "spine-0->leaf-1": 0.5,
        "spine-1->leaf-1": 0.5,
        "leaf-1.backplane": 1.0,
        "n-3.rx": 1.0,
    }
    assert latency_s == pytest.approx(26e-6)
    assert _named(cluster, cluster.usage(0, 1)[0]) == {"n-0.tx": 1.0, "leaf-0.backplane": 1.0, "n-1.rx": 1.0}
    assert (_link(cluster, "spine-0.backplane"), _link(cluster, "leaf-0.backplane")) == (5e8, 2.5e8)
    assert [link.kind for link in cluster.links].count(LinkKind.BACKPLANE) == 4


def test_star_with_a_backplane_is_no_longer_only_nics(tmp_path: Path) -> None:
    plain = load_text(tmp_path, fabric_text("{kind: star}", host=", count: 3"))
    assert plain.hosts_on_one_switch
    assert plain.route(0, 2) == (0, 5)
    limited = load_text(tmp_path, fabric_text("{kind: star, backplane: 20Gbps}", host=", count: 3"))
    assert not limited.hosts_on_one_switch
    assert [limited.links[k].label for k in limited.route(0, 2)][1] == "switch backplane"
    text = "name: t\nhosts: [{name: n, count: 3, cores: 1, nic: {rate: 1Gbps}}]\n"
    text += "switches: [{name: s, backplane: 1Gbps}]"
    assert len(load_text(tmp_path, text).route(1, 0)) == 3


def test_fat_tree_is_that_of_the_paper(tmp_path: Path) -> None:
    for k in (2, 4, 6):
        cluster = load_text(tmp_path, fabric_text(f"{{kind: fat-tree, k: {k}}}"))
        assert len(cluster.hosts) == k**3 // 4
        assert len(cluster.switches) == k * k + (k // 2) ** 2
        graph = cluster.graph().to_undirected()
        assert {graph.degree(switch) for switch in cluster.switches} == {k}
        assert {graph.degree(host.name) for host in cluster.hosts} == {1}
        last = len(cluster.hosts) - 1
        ways = list(nx.all_shortest_paths(graph, "n-0", cluster.hosts[last].name))
        assert len(ways) == (k // 2) ** 2
        assert {len(way) for way in ways} == {7}


@pytest.mark.parametrize(("fabric", "dims"), [(TORUS, [3, 4]), (CUBE, [2, 3, 3])])
def test_torus_is_a_periodic_grid_of_hosts(tmp_path: Path, fabric: str, dims: list[int]) -> None:
    cluster = load_text(tmp_path, fabric_text(fabric))
    graph = cluster.graph().to_undirected()
    assert nx.is_isomorphic(graph, nx.grid_graph(dims, periodic=[n > 2 for n in dims]))
    # What a host sends may use all its ports.
    for h, host in enumerate(cluster.hosts):
        assert cluster.links[2 * h].bandwidth_Bps == pytest.approx(graph.degree(host.name) * host.nic.goodput_Bps)
    assert len(cluster.usage(0, len(cluster.hosts) - 1)[0]) > 3


def test_a_torus_routes_one_dimension_after_the_other(tmp_path: Path) -> None:
    cluster = load_text(tmp_path, fabric_text(TORUS, routing="shortest"))
    names = [cluster.links[k].name for k in cluster.route(0, 5)]
    assert names == ["n-0.tx", "n-0->n-4", "n-4->n-5", "n-5.rx"]
    assert cluster.latency_s(0, 5) == pytest.approx(22e-6)


def test_ring_passes_through_hosts(tmp_path: Path) -> None:
    cluster = load_text(tmp_path, fabric_text(RING, host=", count: 6"))
    usage, latency_s = cluster.usage(0, 2)
    assert _named(cluster, usage) == {"n-0.tx": 1, "n-0->n-1": 1, "n-1->n-2": 1, "n-2.rx": 1}
    assert latency_s == pytest.approx(22e-6)
    half = _named(cluster, cluster.usage(0, 3)[0])
    assert half["n-0->n-1"] == half["n-0->n-5"] == 0.5
    assert load_text(tmp_path, fabric_text(RING, host=", count: 2")).route(0, 1)[1:2] != ()
    slow = load_text(tmp_path, fabric_text(RING, host=", count: 6", more="overrides: {n-1: {nic: {rate: 1Gbps}}}"))
    cable = slow.links[slow.route(0, 1)[1]]
    assert cable.bandwidth_Bps == pytest.approx(1.25e8 * 0.5)


def test_directions_may_differ(tmp_path: Path) -> None:
    text = """
        name: t
        hosts:
          - name: n
            count: 3
            cores: 2
            nic: {rate: {send: 10Gbps, receive: 4Gbps}, latency: {send: 1us, receive: 2us}, efficiency: 0.5}
        forwarding: true
        links:
          - {from: n-0, to: n-1, rate: {forward: 8Gbps, backward: 1Gbps}, latency: {forward: 3us, backward: 5us}}
          - {from: n-1, to: n-2}
    """
    cluster = load_text(tmp_path, text)
    assert _link(cluster, "n-0->n-1") == 1e9
    assert _link(cluster, "n-1->n-0") == 1.25e8
    assert _link(cluster, "n-1->n-2") == pytest.approx(0.5 * 5e8)
    assert cluster.usage(0, 2)[1] == pytest.approx(6e-6)
    assert cluster.usage(2, 0)[1] == pytest.approx(8e-6)
    star = load_text(tmp_path, text[: text.index("        forwarding")] + "        switches: [{name: s}]\n")
    assert (_link(star, "n-0.tx"), _link(star, "n-0.rx")) == (6.25e8, 2.5e8)


def test_multi_gpu() -> None:
    cluster = load_cluster("multi-gpu")
    assert (cluster.world_size, len(cluster.hosts), cluster.hosts_on_one_switch) == (32, 4, False)
    host = cluster.hosts[1]
    assert [host.nic_of(d) for d in range(8)] == [0, 0, 1, 1, 2, 2, 3, 3]
    usage, latency_s = cluster.usage(1, 1, src_device=2, dst_device=7)
    assert [cluster.links[k].label for k, _ in usage] == ["node-1 A100 2 nvlink out", "node-1 A100 7 nvlink in"]
    assert latency_s == pytest.approx(4e-6)
    assert cluster.usage(1, 1) == ((), 0.0)
    usage, _ = cluster.usage(1, 2, src_device=2, dst_device=7)
    assert [cluster.links[k].label for k, _ in usage] == ["node-1 NIC 1 transmit side", "node-2 NIC 3 receive side"]
    assert [cluster.nic_host(link) for link in range(8 * 4)] == [h for h in range(4) for _ in range(8)]
    assert cluster.nic_host(32) is None
    assert cluster.nic_links_of(1) == ((8, 9), (10, 11), (12, 13), (14, 15))


def test_one_host_of_several_nics_is_a_cluster() -> None:
    assert load_cluster("multi-gpu", nodes=1).world_size == 8


def test_pcie_is_also_the_way_to_the_nic() -> None:
    nvlink = load_cluster("multi-gpu")
    hosts = []
    for host in nvlink.hosts:
        assert host.intra is not None
        hosts.append(replace(host, intra=replace(host.intra, kind=IntraKind.PCIE)))
    cluster = replace(nvlink, hosts=tuple(hosts))
    usage, latency_s = cluster.usage(0, 3, src_device=4, dst_device=0)
    assert [cluster.links[k].kind for k, _ in usage] == ["device-out", "send", "receive", "device-in"]
    assert latency_s == pytest.approx(20e-6)
    assert len(cluster.usage(0, 3)[0]) == 2


def test_a_nic_for_each_rail(tmp_path: Path) -> None:
    text = """
        name: t
        hosts:
          - {name: n, count: 2, cores: 8, devices: [V100, V100], nics: [{rate: 10Gbps}, {rate: 20Gbps}]}
        switches: [{name: rail-0}, {name: rail-1}, {name: spine}]
        links:
          - {from: n, to: rail-0, nic: 0}
          - {from: n, to: rail-1, nic: 1}
          - {from: rail-0, to: spine, rate: 40Gbps}
          - {from: rail-1, to: spine, rate: 40Gbps}
    """
    cluster = load_text(tmp_path, text)
    assert _named(cluster, cluster.usage(0, 1, src_device=1, dst_device=1)[0]) == {"n-0.nic1.tx": 1, "n-1.nic1.rx": 1}
    crossing = _named(cluster, cluster.usage(0, 1, src_device=0, dst_device=1)[0])
    assert list(crossing) == ["n-0.nic0.tx", "rail-0->spine", "spine->rail-1", "n-1.nic1.rx"]
    assert cluster.route(0, 1) == (0, 5)
    with pytest.raises(InputError, match="n-0 and n-1 are not connected"):
        load_text(tmp_path, text.replace("          - {from: rail-1, to: spine, rate: 40Gbps}\n", ""))


def test_one_host_with_a_fabric_inside(tmp_path: Path) -> None:
    text = "name: t\nhosts: [{name: n, cores: 8, devices: [V100, V100], intra: {kind: pcie, rate: 16GB/s}}]"
    cluster = load_text(tmp_path, text)
    assert not cluster.hosts_on_one_switch
    assert cluster.nic_links_of(0) == ()
    assert [cluster.links[k].bandwidth_Bps for k, _ in cluster.usage(0, 0, 0, 0, 1)[0]] == [16e9, 16e9]
    assert [cluster.nic_host(link) for link in range(len(cluster.links))] == [None] * 4


@pytest.mark.parametrize(
    ("name", "nodes", "fits"),
    [
        ("leaf-spine", 64, True),
        ("leaf-spine", 8, True),
        ("leaf-spine", 20, False),
        ("fat-tree", 54, True),
        ("fat-tree", 20, False),
        ("torus", 16, True),
        ("torus", 20, False),
        ("ring", 5, True),
        ("multi-gpu", 6, True),
    ],
)
def test_nodes_scale_what_scales(name: str, nodes: int, fits: bool) -> None:
    if fits:
        cluster = load_cluster(name, nodes=nodes)
        assert len(cluster.hosts) == nodes
        assert cluster.route(0, nodes - 1)
    else:
        with pytest.raises(InputError, match=f"{name}: nodes={nodes} (does not|is not)"):
            load_cluster(name, nodes=nodes)


def test_link_numbers_of_nics_stay_where_they_were() -> None:
    for name in ("star", "leaf-spine", "fat-tree", "torus", "ring", "ec2-p3-10"):
        cluster = load_cluster(name)
        for h in range(len(cluster.hosts)):
            assert cluster.nic_links_of(h) == ((2 * h, 2 * h + 1),)
            assert cluster.nic_host(2 * h) == cluster.nic_host(2 * h + 1) == h
        assert all(cluster.nic_host(k) is None for k in range(2 * len(cluster.hosts), len(cluster.links)))


def test_leaf_spine_and_fat_tree_texts_are_what_the_tests_think(tmp_path: Path) -> None:
    assert len(load_text(tmp_path, fabric_text(LEAF_SPINE)).hosts) == 16
    assert len(load_text(tmp_path, fabric_text(FAT_TREE)).hosts) == 16
