"""Classes of hosts and links: found where the fabric is symmetric, and true wherever they are found."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stanza_sim.cluster import Cluster, Routing, RoutingKind, load_cluster
from stanza_sim.cluster.orbits import Orbits
from tests.cluster.fabric_files import CUBE, FAT_TREE, LEAF_SPINE, RING, TORUS, fabric_text, load_text

COUNT = ", count: 6"


def _orbits(cluster: Cluster, **given_: object) -> Orbits:
    found = cluster.host_orbits(**given_)  # type: ignore[arg-type]
    assert found is not None
    return found


def _check(cluster: Cluster, orbits: Orbits, pairs: list[tuple[int, int]], seed: int = 0) -> None:
    """Give every class of pairs a random weight: all links of a class must then carry the same, and all hosts send
    and receive the same."""
    chance = random.Random(seed)
    weight: dict[int, float] = defaultdict(chance.random)
    load: dict[int, float] = defaultdict(float)
    sent: dict[int, float] = defaultdict(float)
    received: dict[int, float] = defaultdict(float)
    latency: dict[int, float] = {}
    for a, b in pairs:
        c = orbits.pair_class(a, b)
        usage, latency_s = cluster.usage(a, b)
        for link, share in usage:
            load[link] += weight[c] * share
        sent[a] += weight[c]
        received[b] += weight[c]
        assert latency.setdefault(c, latency_s) == pytest.approx(latency_s)
    by_link: dict[int, list[float]] = defaultdict(list)
    for link, c in enumerate(orbits.link_class):
        by_link[c].append(load[link])
    for found in by_link.values():
        assert found == pytest.approx([found[0]] * len(found))
    for c in set(orbits.host_class):
        members = [h for h, own in enumerate(orbits.host_class) if own == c]
        assert [sent[h] for h in members] == pytest.approx([sent[members[0]]] * len(members))
        assert [received[h] for h in members] == pytest.approx([received[members[0]]] * len(members))
    for c in set(orbits.link_class):
        made = [cluster.links[k] for k, own in enumerate(orbits.link_class) if own == c]
        assert len({(link.bandwidth_Bps, link.latency_s, link.kind) for link in made}) == 1


def _all_pairs(cluster: Cluster) -> list[tuple[int, int]]:
    n = len(cluster.hosts)
    return [(a, b) for a in range(n) for b in range(n) if a != b]


@pytest.mark.parametrize(
    ("fabric", "host", "pair_classes"),
    [
        (LEAF_SPINE, "", 2),  # on one leaf, or not
        (FAT_TREE, "", 3),  # on one edge switch, in one pod, or not
        (TORUS, "", 7),  # (3 / 2 + 1) x (4 / 2 + 1) distances by dimension, less that of 0
        (RING, COUNT, 3),
        ("{kind: star}", COUNT, 1),
    ],
)
def test_symmetric_fabrics_have_one_class_of_hosts(tmp_path: Path, fabric: str, host: str, pair_classes: int) -> None:
    cluster = load_text(tmp_path, fabric_text(fabric, host=host))
    orbits = _orbits(cluster)
    assert set(orbits.host_class) == {0}
    assert len({orbits.pair_class(a, b) for a, b in _all_pairs(cluster)}) <= pair_classes
    _check(cluster, orbits, _all_pairs(cluster))


def test_classes_of_links_on_a_leaf_spine_and_a_torus(tmp_path: Path) -> None:
    # Transmit sides, receive sides, and the links between switches, which all carry the same.
    assert max(_orbits(load_text(tmp_path, fabric_text(LEAF_SPINE))).link_class) + 1 == 3
    # The two dimensions of a torus of 3 x 4 differ.
    assert max(_orbits(load_text(tmp_path, fabric_text(TORUS))).link_class) + 1 == 4


@pytest.mark.parametrize("fabric", [LEAF_SPINE, FAT_TREE, TORUS, CUBE, RING])
@pytest.mark.parametrize("slow", ["nic: {rate: 1Gbps}", "device_speed: 0.5"])
def test_one_slow_host_is_a_class_of_its_own(tmp_path: Path, fabric: str, slow: str) -> None:
    more = f"overrides: {{n-2: {{{slow}}}}}"
    cluster = load_text(tmp_path, fabric_text(fabric, host=COUNT if fabric == RING else "", more=more))
    orbits = _orbits(cluster)
    assert orbits.host_class.count(orbits.host_class[2]) == 1
    _check(cluster, orbits, _all_pairs(cluster))
    if fabric == LEAF_SPINE:
        # The slow one, the others on its leaf, and all the rest.
        assert orbits.host_class == (0, 0, 1, 0, *[2] * 12)
    if fabric == RING:
        assert len(set(orbits.host_class)) == 4


def test_a_host_without_a_network_is_one_class() -> None:
    cluster = load_cluster("hgx-h100-8", nodes=4)
    assert set(_orbits(cluster).host_class) == {0}


def test_roles_and_patterns_tell_hosts_apart(tmp_path: Path) -> None:
    cluster = load_text(tmp_path, fabric_text(RING, host=", count: 8"))
    assert _orbits(cluster, colour=[1, 0, 0, 0, 1, 0, 0, 0]).host_class == (0, 1, 2, 1, 0, 1, 2, 1)
    clockwise = [(h, (h + 1) % 8) for h in range(8)]
    orbits = _orbits(cluster, pairs=[clockwise])
    assert set(orbits.host_class) == {0}
    _check(cluster, orbits, clockwise)
    with pytest.raises(KeyError):
        orbits.pair_class(1, 0)
    leaves = load_text(tmp_path, fabric_text(LEAF_SPINE))
    ring = [(h, (h + 1) % 16) for h in range(16)]
    orbits = _orbits(leaves, pairs=[ring])
    # On each leaf the first receives from another leaf, and the last sends to one.
    assert orbits.host_class[:4] == orbits.host_class[4:8]
    assert orbits.host_class[0] != orbits.host_class[3]
    _check(leaves, orbits, ring)


def test_no_symmetry_is_claimed_where_a_hash_decides(tmp_path: Path) -> None:
    assert load_text(tmp_path, fabric_text(LEAF_SPINE, routing="ecmp")).host_orbits() is None
    one = LEAF_SPINE.replace("spines: 2", "spines: 1")
    for routing in ("ecmp", "shortest", "spread"):
        cluster = load_text(tmp_path, fabric_text(one, routing=routing))
        assert set(_orbits(cluster).host_class) == {0}


@pytest.mark.parametrize("fabric", [LEAF_SPINE, FAT_TREE, TORUS, RING])
def test_with_single_ways_classes_are_still_true(tmp_path: Path, fabric: str) -> None:
    cluster = load_text(tmp_path, fabric_text(fabric, routing="shortest", host=COUNT if fabric == RING else ""))
    orbits = _orbits(cluster)
    _check(cluster, orbits, _all_pairs(cluster))
    if fabric in (TORUS, RING):
        assert set(orbits.host_class) == {0}  # dimension order is the same from everywhere


def test_same_degrees_are_not_enough(tmp_path: Path) -> None:
    """Two cubic graphs of 8 switches, where colour refinement of the graph alone sees one class of vertices."""
    edges = [(0, 1), (1, 2), (2, 0), (0, 3), (1, 4), (2, 5), (3, 6), (3, 7), (4, 6), (4, 7), (5, 6), (5, 7)]
    text = "name: t\nhosts: [{name: n, count: 8, cores: 1, nic: {rate: 1Gbps}}]\nrouting: spread\n"
    text += f"switches: [{', '.join(f'{{name: s{i}}}' for i in range(8))}]\nlinks:\n"
    text += "".join(f"  - {{from: n-{i}, to: s{i}}}\n" for i in range(8))
    text += "".join(f"  - {{from: s{a}, to: s{b}, rate: 1Gbps}}\n" for a, b in edges)
    cluster = load_text(tmp_path, text)
    orbits = _orbits(cluster)
    _check(cluster, orbits, _all_pairs(cluster))
    # In a triangle, next to it, and beyond.
    assert orbits.host_class == (0, 0, 0, 1, 1, 1, 2, 2)


@given(data=st.data())
@settings(max_examples=40)
def test_classes_are_true_on_irregular_fabrics(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    switches = data.draw(st.integers(2, 6))
    tree = [(data.draw(st.integers(0, i - 1)), i) for i in range(1, switches)]
    free = [(a, b) for a in range(switches) for b in range(a + 1, switches) if (a, b) not in tree]
    extra = data.draw(st.lists(st.sampled_from(free), unique=True)) if free else []
    text = "name: t\nhosts: [{name: n, count: 7, cores: 1, nic: {rate: 1Gbps}}]\nswitches:\n"
    for i in range(switches):
        text += f"  - {{name: s{i}{data.draw(st.sampled_from(['', ', backplane: 1Gbps']))}}}\n"
    text += "links:\n"
    for i in range(7):
        text += f"  - {{from: n-{i}, to: s{data.draw(st.integers(0, switches - 1))}}}\n"
    for a, b in tree + extra:
        text += f"  - {{from: s{a}, to: s{b}, rate: {data.draw(st.sampled_from([1, 2]))}Gbps}}\n"
    kind = data.draw(st.sampled_from([RoutingKind.SPREAD, RoutingKind.SHORTEST]))
    cluster = load_text(tmp_path_factory.mktemp("t"), text)
    cluster = replace(cluster, fabric=replace(cluster.fabric, routing=Routing(kind=kind)))
    colour = data.draw(st.one_of(st.none(), st.lists(st.integers(0, 1), min_size=7, max_size=7)))
    orbits = _orbits(cluster, colour=colour)
    _check(cluster, orbits, _all_pairs(cluster), seed=data.draw(st.integers(0, 99)))
    if colour is not None:
        of = orbits.host_class
        assert all(colour[a] == colour[b] for a, b in _all_pairs(cluster) if of[a] == of[b])


def test_several_nics_and_devices_are_told_apart() -> None:
    cluster = load_cluster("multi-gpu")
    orbits = _orbits(cluster)
    assert set(orbits.host_class) == {0}
    # 4 NICs and 8 devices of 2 sides each: the same side of the same part on every host.
    assert max(orbits.link_class) + 1 == 24
    assert all(
        orbits.link_class[a] == orbits.link_class[b]
        for mine, yours in zip(cluster.nic_links_of(0), cluster.nic_links_of(3), strict=True)
        for a, b in zip(mine, yours, strict=True)
    )
