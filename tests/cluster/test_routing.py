"""Routing: ways connect, shares are those of all shortest ways, ECMP is seeded, explicit paths are taken."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from tempfile import mkdtemp

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stanza_sim.base.errors import InputError
from stanza_sim.cluster import Cluster, Fabric, LinkKind, Routing, RoutingKind, flow_key, load_cluster
from stanza_sim.cluster.routing import mix
from tests.cluster.fabric_files import CUBE, FAT_TREE, LEAF_SPINE, RING, TORUS, fabric_text, load_text

FABRICS = {"leaf-spine": LEAF_SPINE, "fat-tree": FAT_TREE, "torus": TORUS, "cube": CUBE, "ring": RING}
IRREGULAR = """
name: t
hosts: [{name: n, count: 6, cores: 8, nic: {rate: 10Gbps, latency: 10us}}]
switches: [{name: a}, {name: b}, {name: c}, {name: d, backplane: 5Gbps}, {name: e}]
links:
  - {from: n-0, to: a}
  - {from: n-1, to: a}
  - {from: n-1, to: b}
  - {from: n-2, to: b}
  - {from: n-3, to: e}
  - {from: n-4, to: e}
  - {from: n-4, to: d}
  - {from: n-5, to: c}
  - {from: a, to: b, rate: 1Gbps}
  - {from: a, to: c, rate: 2Gbps, latency: 3us}
  - {from: b, to: d, rate: 3Gbps, latency: 1us}
  - {from: c, to: e, rate: 4Gbps, latency: 1us}
  - {from: d, to: e, rate: 5Gbps, latency: 7us}
  - {from: b, to: c, rate: 6Gbps}
routing: spread
"""


@lru_cache
def _cluster(name: str, kind: str, seed: int = 0) -> Cluster:
    count = ", count: 7" if name == "ring" else ""
    text = IRREGULAR if name == "irregular" else fabric_text(FABRICS[name], host=count)
    cluster = load_text(Path(mkdtemp()), text)
    return replace(cluster, fabric=replace(cluster.fabric, routing=Routing(kind=RoutingKind(kind), seed=seed)))


names = st.sampled_from([*FABRICS, "irregular"])
number = st.integers(0, 10_000)


def _pair(cluster: Cluster, a: int, b: int) -> tuple[int, int]:
    n = len(cluster.hosts)
    return a % n, (a % n + 1 + b % (n - 1)) % n


def _flows(cluster: Cluster, src: int, dst: int, key: int = 0) -> dict[tuple[str, str], float]:
    """Return the share on each edge between vertices; a host's side joins it to whatever it is attached to."""
    usage, _ = cluster.usage(src, dst, key)
    flows = {}
    for link, share in usage:
        made = cluster.links[link]
        if made.kind in (LinkKind.TRUNK, LinkKind.CABLE):
            start, _, end = made.name.partition("->")
            flows[start, end] = share
    return flows


@given(name=names, a=number, b=number, kind=st.sampled_from(["spread", "ecmp", "shortest"]), key=number)
@settings(max_examples=150)
def test_shares_are_kept_at_every_hop(name: str, a: int, b: int, kind: str, key: int) -> None:
    cluster = _cluster(name, kind)
    src, dst = _pair(cluster, a, b)
    usage, latency_s = cluster.usage(src, dst, key)
    assert usage[0] == (2 * src, 1.0)
    assert usage[-1] == (2 * dst + 1, 1.0)
    assert len({link for link, _ in usage}) == len(usage)
    balance: dict[str, float] = defaultdict(float)
    flows = _flows(cluster, src, dst, key)
    for (start, end), share in flows.items():
        assert 0 < share <= 1 + 1e-12
        balance[start] += share
        balance[end] -= share
    # What enters a vertex leaves it, except at the ends: one whole message leaves there, and one arrives.
    if cluster.fabric.forwarding:
        starts, stops = {cluster.hosts[src].name}, {cluster.hosts[dst].name}
    else:
        starts = {cluster.switches[s] for s in cluster.fabric.attached[src]}
        stops = {cluster.switches[s] for s in cluster.fabric.attached[dst]}
    if flows:
        assert sum(balance[v] for v in starts - stops) == pytest.approx(1 if not starts & stops else 0)
        assert sum(balance[v] for v in stops - starts) == pytest.approx(-1 if not starts & stops else 0)
    assert all(abs(x) < 1e-9 for v, x in balance.items() if v not in starts | stops)
    assert latency_s >= cluster.links[2 * src].latency_s + cluster.links[2 * dst + 1].latency_s
    if kind != "spread":
        assert {share for _, share in usage} == {1.0}


@given(name=names, a=number, b=number)
@settings(max_examples=100)
def test_spread_is_even_over_all_shortest_ways(name: str, a: int, b: int) -> None:
    cluster = _cluster(name, "spread")
    src, dst = _pair(cluster, a, b)
    graph = cluster.graph()
    inner = graph if cluster.fabric.forwarding else graph.copy()
    others = [h.name for i, h in enumerate(cluster.hosts) if i not in (src, dst)]
    if not cluster.fabric.forwarding:
        inner.remove_nodes_from(others)
    ways = list(nx.all_shortest_paths(inner, cluster.hosts[src].name, cluster.hosts[dst].name))
    wanted: Counter[tuple[str, str]] = Counter()
    hosts = {host.name for host in cluster.hosts}
    for way in ways:
        for hop in pairwise(way):
            if cluster.fabric.forwarding or not hosts & set(hop):
                wanted[hop] += 1
    flows = _flows(cluster, src, dst)
    assert flows == pytest.approx({hop: n / len(ways) for hop, n in wanted.items()})
    through = sum("d" in way for way in ways) / len(ways)
    planes = [share for link, share in cluster.usage(src, dst)[0] if cluster.links[link].kind is LinkKind.BACKPLANE]
    assert planes == pytest.approx([through] if through and cluster.fabric.backplanes else [])


@given(name=names, a=number, b=number)
@settings(max_examples=60)
def test_spread_is_the_same_there_and_back(name: str, a: int, b: int) -> None:
    cluster = _cluster(name, "spread")
    src, dst = _pair(cluster, a, b)
    back = {(end, start): share for (start, end), share in _flows(cluster, dst, src).items()}
    assert _flows(cluster, src, dst) == pytest.approx(back)
    assert cluster.usage(src, dst)[1] == pytest.approx(cluster.usage(dst, src)[1])


@given(name=names, a=number, b=number)
@settings(max_examples=60)
def test_route_is_one_of_the_shortest_ways(name: str, a: int, b: int) -> None:
    cluster = _cluster(name, "shortest")
    src, dst = _pair(cluster, a, b)
    route = cluster.route(src, dst)
    assert route == tuple(link for link, _ in cluster.usage(src, dst, 77)[0])
    spread = {link for link, _ in _cluster(name, "spread").usage(src, dst)[0]}
    assert set(route) <= spread
    assert _cluster(name, "spread").route(src, dst) == route
    assert cluster.latency_s(src, dst) == pytest.approx(cluster.usage(src, dst)[1])


def test_latency_of_spread_is_the_largest_of_its_ways() -> None:
    # From a to e there is a, c, e only; from n-0 to n-4 (on d and e) also a, b, d: of two ways 3 + 1 and 0 + 1 us.
    cluster = _cluster("irregular", "spread")
    assert cluster.usage(0, 4)[1] == pytest.approx(24e-6)


def test_ecmp_is_seeded_and_even() -> None:
    cluster = _cluster("fat-tree", "ecmp")
    ways = Counter(tuple(link for link, _ in cluster.usage(0, 15, flow_key(0, 15, str(i)))[0]) for i in range(2000))
    assert len(ways) == 4
    assert all(400 < count < 600 for count in ways.values())
    again = _cluster("fat-tree", "ecmp", 1)
    keys = range(200)
    assert [cluster.usage(0, 15, k) for k in keys] == [cluster.usage(0, 15, k) for k in keys]
    assert [cluster.usage(0, 15, k) for k in keys] != [again.usage(0, 15, k) for k in keys]
    # Different pairs do not share their luck: with one key, those from pod 0 to pod 3 still take all four ways.
    assert len({cluster.usage(a, b, 0)[0][3] for a in range(4) for b in range(12, 16)}) == 4


def test_flow_keys_are_fixed_numbers() -> None:
    assert flow_key(0, 1, "push") == flow_key(0, 1, "push")
    assert len({flow_key(a, b, c) for a in range(8) for b in range(8) for c in ("push", "pull")}) == 128
    assert flow_key(3, 5, "pull") == 14455929284558301618  # the same in every process, so the same predictions
    assert mix(0) == 0xE220A8397B1DCDAF  # the first output of SplitMix64 seeded with 0, as published


EXPLICIT = """
name: t
hosts: [{name: n, count: 4, cores: 8, nic: {rate: 10Gbps}}]
switches: [{name: l0}, {name: l1}, {name: s0}, {name: s1}]
links:
  - {from: n-0, to: l0}
  - {from: n-1, to: l0}
  - {from: n-2, to: l1}
  - {from: n-3, to: l1}
  - {from: l0, to: s0, rate: 1Gbps}
  - {from: l0, to: s1, rate: 1Gbps}
  - {from: l1, to: s0, rate: 1Gbps}
  - {from: l1, to: s1, rate: 1Gbps}
  - {from: s0, to: s1, rate: 1Gbps}
routing:
  kind: explicit
  paths:
    - {from: l0, to: l1, via: [s1]}
    - {from: n-0, to: n-3, via: [l0, s0, s1, l1]}
"""


def test_explicit_paths(tmp_path: Path) -> None:
    cluster = load_text(tmp_path, EXPLICIT)

    def names(src: int, dst: int) -> list[str]:
        return [cluster.links[k].name for k in cluster.route(src, dst)][1:-1]

    assert names(0, 3) == ["l0->s0", "s0->s1", "s1->l1"]
    assert names(3, 0) == ["l1->s1", "s1->s0", "s0->l0"]
    assert {tuple(names(a, b)) for a in (0, 1) for b in (2, 3) if (a, b) != (0, 3)} == {("l0->s1", "s1->l1")}
    assert names(2, 1) == ["l1->s1", "s1->l0"]
    assert names(0, 1) == []
    assert [k for k, _ in cluster.usage(0, 3)[0]] == list(cluster.route(0, 3))
    ring = """
name: t
hosts: [{name: n, count: 4, cores: 8, nic: {rate: 10Gbps}}]
fabric: {kind: ring}
routing: {kind: explicit, paths: [{from: n-0, to: n-1, via: [n-3, n-2]}]}
"""
    cluster = load_text(tmp_path, ring)
    assert names(0, 1) == ["n-0->n-3", "n-3->n-2", "n-2->n-1"]
    assert names(1, 2) == ["n-1->n-2"]


def test_many_pairs() -> None:
    for name, nodes in (("leaf-spine", 256), ("star", 300)):
        cluster = load_cluster(name, nodes=nodes)
        count = sum(len(cluster.usage(a, b)[0]) > 1 for a in range(nodes) for b in range(nodes))
        assert count == nodes * (nodes - 1)


def test_a_fabric_without_a_way_says_who(tmp_path: Path) -> None:
    cluster = _cluster("irregular", "shortest")
    broken = replace(cluster, fabric=Fabric(attached=cluster.fabric.attached))
    with pytest.raises(InputError, match="n-0 and n-3 are not connected"):
        broken.usage(0, 3)
