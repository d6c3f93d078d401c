"""Kinds of pairs: which messages cross links alike, and which few pairs stand for all."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import pytest

from stanza_sim.cluster import Cluster, load_cluster
from stanza_sim.cluster.pair_kinds import PairKind, pair_kind, pair_kinds, pairs_to_measure, raw_Bps
from tests.cluster.fabric_files import LEAF_SPINE, RING, fabric_text, load_text

GB = 1.25e9
"""10 Gbit/s."""


def test_a_star_of_equal_hosts_has_one_kind() -> None:
    star = load_cluster("star", nodes=5)
    assert pair_kinds(star) == {PairKind(sender_Bps=GB, receiver_Bps=GB): (0, 1)}
    assert pairs_to_measure(star) == ((0, 1),)


def test_rates_are_those_that_the_topology_states_whatever_the_efficiency(tmp_path: Path) -> None:
    text = (
        "name: t\nhosts: [{name: n, count: 3, cores: 1, nic: {rate: {send: 1Gbps, receive: 3Gbps}, efficiency: 0.7}}]\n"
        "switches: [{name: s}]\n"
    )
    cluster = load_text(tmp_path, text)
    assert [raw_Bps(cluster, q) for q in range(2)] == [125e6, 375e6]
    (kind,) = pair_kinds(cluster)
    assert kind == PairKind(sender_Bps=125e6, receiver_Bps=375e6)
    assert kind.bottleneck_Bps == 125e6


def test_hosts_of_other_rates_and_ways_over_switches_are_kinds_of_their_own(tmp_path: Path) -> None:
    cluster = load_text(
        tmp_path, fabric_text(LEAF_SPINE, more="overrides: {n-5: {nic: {rate: 1Gbps, efficiency: 0.5}}}")
    )
    kinds = pair_kinds(cluster)
    assert kinds.keys() == every_kind(cluster)
    over = {kind.between_Bps for kind in kinds}
    assert over == {None, GB}  # 4 x 10 Gbit/s below, a quarter of it above, over two spines together
    assert {kind.bottleneck_Bps for kind in kinds} == {GB, GB / 10}
    covered = {pair_kind(cluster, *ends) for a, b in pairs_to_measure(cluster) for ends in ((a, b), (b, a))}
    assert covered == set(kinds)
    assert len(pairs_to_measure(cluster)) < len(kinds)


def every_kind(cluster: Cluster) -> set[PairKind]:
    ranks = permutations(range(cluster.world_size), 2)
    return {pair_kind(cluster, a, b) for a, b in ranks if not cluster.same_host(a, b)}


@pytest.mark.parametrize("spines", [1, 2, 3])
@pytest.mark.parametrize("over", [1, 4])
def test_looking_at_two_hosts_of_each_look_finds_every_kind(tmp_path: Path, spines: int, over: int) -> None:
    fabric = f"{{kind: leaf-spine, leaves: 3, hosts_per_leaf: 4, spines: {spines}, oversubscription: {over}}}"
    cluster = load_text(tmp_path, fabric_text(fabric, more="overrides: {n-0: {nic: {rate: 5Gbps}}}"))
    assert pair_kinds(cluster).keys() == every_kind(cluster)


def test_ranks_of_one_host_are_no_pair(tmp_path: Path) -> None:
    assert pair_kinds(load_cluster("laptop", nodes=4)) == {}
    text = fabric_text("{kind: leaf-spine, leaves: 1, hosts_per_leaf: 2, spines: 1, oversubscription: 1}")
    shared = load_text(tmp_path, text + "ranks_per_host: 2\n")
    assert list(pair_kinds(shared).values()) == [(0, 2)]


def test_cables_limit_messages_between_hosts(tmp_path: Path) -> None:
    kinds = pair_kinds(load_text(tmp_path, fabric_text(RING, routing="shortest"), nodes=4))
    assert {kind.between_Bps for kind in kinds} == {GB}
