"""A fabric, a routing or a host that cannot be is named, with what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest

from stanza_sim.base.errors import InputError
from tests.cluster.fabric_files import LEAF_SPINE, fabric_text, load_text

FREE = """\
name: t
hosts: [{name: n, count: 3, cores: 8, nic: {rate: 1Gbps}}]
switches: [{name: a}, {name: b}]
links: [{from: n-0, to: a}, {from: n-1, to: a}, {from: n-2, to: b}, {from: a, to: b, rate: 1Gbps}]
"""
CABLES = """\
name: t
hosts: [{name: n, count: 3, cores: 8, nic: {rate: 1Gbps}}]
forwarding: true
links: [{from: n-0, to: n-1}, {from: n-1, to: n-2}]
"""


def _says(folder: Path, text: str, *parts: str) -> None:
    with pytest.raises(InputError) as caught:
        load_text(folder, text)
    message = str(caught.value)
    assert "t.yaml" in message
    for part in parts:
        assert part in message


def test_the_good_ones_load(tmp_path: Path) -> None:
    for text in (FREE, CABLES, fabric_text(LEAF_SPINE)):
        load_text(tmp_path, text)


@pytest.mark.parametrize(
    ("fabric", "says"),
    [
        ("{kind: mesh}", ["t.yaml:3: fabric.kind: unknown kind 'mesh'", "'torus'"]),
        ("{leaves: 3}", ["fabric: the key 'kind' is missing", "'leaf-spine'"]),
        ("7", ["fabric: is a number", "should be a mapping"]),
        ("{kind: leaf-spine, leaves: 2, spines: 1}", ["'hosts_per_leaf' is missing"]),
        (LEAF_SPINE.replace("spines", "spine"), ["unknown key", "did you mean spines"]),
        (LEAF_SPINE.replace("leaves: 4", "leaves: 0"), ["fabric.leaves", "greater than or equal to 1"]),
        (LEAF_SPINE.replace("oversubscription: 4", "oversubscription: 0"), ["fabric.oversubscription"]),
        (LEAF_SPINE.replace("oversubscription: 4", "oversubscription: -1"), ["fabric.oversubscription"]),
        (LEAF_SPINE.replace("oversubscription: 4", "oversubscription: .inf"), ["fabric.oversubscription"]),
        (LEAF_SPINE.replace("latency", "rate: 0Gbps, latency"), ["fabric.rate: '0Gbps' is zero"]),
        (LEAF_SPINE.replace("latency", "rate: 1Gbps, latency"), ["fabric: rate and oversubscription exclude"]),
        (LEAF_SPINE.replace("latency: 1us", "latency: 1"), ["fabric.latency: 1 has no unit"]),
        (LEAF_SPINE.replace("latency", "spine_backplane: 0bps, latency"), ["fabric.spine_backplane", "zero"]),
        ("{kind: fat-tree, k: 3}", ["fabric: k is 3", "even"]),
        ("{kind: fat-tree, k: 4.5}", ["fabric.k"]),
        ("{kind: fat-tree, k: 0}", ["fabric.k"]),
        ("{kind: torus, dims: [4]}", ["fabric.dims", "too short"]),
        ("{kind: torus, dims: [2, 2, 2, 2]}", ["fabric.dims"]),
        ("{kind: torus, dims: [1, 4]}", ["fabric.dims.0", "greater than or equal to 2"]),
        ("{kind: torus, dims: [-4, 4]}", ["fabric.dims.0"]),
        ("{kind: torus, dims: 4}", ["fabric.dims: is a number", "should be a list"]),
        ("{kind: torus, dims: [a, 4]}", ["fabric.dims.0", "whole number"]),
        ("{kind: ring, efficiency: 0.5}", ["fabric: efficiency without rate"]),
        ("{kind: ring, spines: 2}", ["fabric.spines: unknown key"]),
    ],
)
def test_fabrics_that_cannot_be(tmp_path: Path, fabric: str, says: list[str]) -> None:
    _says(tmp_path, fabric_text(fabric, host=", count: 4" if "ring" in fabric else ""), *says)


@pytest.mark.parametrize(
    ("host", "more", "says"),
    [
        (", count: 5", "", ["fabric: a fabric for 16 hosts, but there are 5", "leave count out"]),
        (", nics: 0", "", ["hosts.0.nics"]),
        (", nics: []", "", ["hosts.0.nics"]),
        (", nics: [{rate: 1Gbps}]", "", ["hosts.0.nics: nic and a list of nics exclude each other"]),
        (", intra: {kind: nvlink, rate: 1GB/s}", "", ["hosts.0.intra: intra joins devices, and there is none"]),
        (", devices: [V100], intra: {kind: pci, rate: 1GB/s}", "", ["hosts.0.intra.kind", "'nvlink' or 'pcie'"]),
        (", devices: [V100], intra: {kind: pcie}", "", ["'rate' is missing"]),
        ("", "switches: [{name: s}]", ["switches: fabric and switches exclude each other"]),
        ("", "links: []", ["links: fabric and links exclude each other"]),
        ("", "forwarding: true", ["forwarding: fabric and forwarding exclude each other"]),
        ("", "overrides: {n-0: {intra: {kind: nvlink, rate: 1GB/s}}}", ["overrides.n-0: intra joins devices"]),
    ],
)
def test_hosts_that_do_not_fit(tmp_path: Path, host: str, more: str, says: list[str]) -> None:
    _says(tmp_path, fabric_text(LEAF_SPINE, host=host, more=more), *says)


def test_names_of_switches_are_taken(tmp_path: Path) -> None:
    _says(tmp_path, fabric_text(LEAF_SPINE).replace("name: n,", "name: leaf,"), "the name 'leaf-0' is used twice")
    ring = fabric_text("{kind: ring}", host=", count: 3, nics: 2")
    _says(tmp_path, ring, "n-0 has several NICs")


@pytest.mark.parametrize(
    ("text", "old", "new", "says"),
    [
        (FREE, "rate: 1Gbps}]\n", "rate: 1Gbps, nic: 0}]\n", ["links.3.nic: nic is for a host's link to a switch"]),
        (FREE, "{from: n-0, to: a}", "{from: n-0, to: a, nic: 1}", ["links.0.nic: n-0 has no NIC 1", "NIC 0 only"]),
        (FREE, "{from: n-2, to: b}, ", "", ["n-0 and n-2 are not connected"]),
        (FREE, ", {from: a, to: b, rate: 1Gbps}", "", ["n-0 and n-2 are not connected", "forwarding"]),
        (FREE, "to: b, rate: 1Gbps", "to: b, rate: {forward: 1Gbps}", ["links.3.rate", "'backward' is missing"]),
        (FREE, "to: b, rate: 1Gbps", "to: b, rate: 0Gbps", ["links.3.rate: '0Gbps' is zero"]),
        (FREE, "nic: {rate: 1Gbps}", "nic: {rate: {send: 1Gbps, receive: 0Gbps}}", ["hosts.0.nic.rate", "zero"]),
        (FREE, "{name: b}", "{name: b, backplane: -1Gbps}", ["switches.1.backplane: '-1Gbps' is negative"]),
        (FREE, "links:", "forwarding: true\nlinks:", ["hosts forward only where there is no switch"]),
        (CABLES, ", {from: n-1, to: n-2}", "", ["n-0 and n-2 are not connected"]),
        (CABLES, "to: n-2}", "to: n-2, efficiency: 0.5}", ["a cable without a rate"]),
        (CABLES, "forwarding: true", "forwarding: maybe", ["forwarding: is a text", "true or false"]),
    ],
)
def test_links_that_cannot_be(tmp_path: Path, text: str, old: str, new: str, says: list[str]) -> None:
    assert old in text
    _says(tmp_path, text.replace(old, new, 1), *says)


@pytest.mark.parametrize(
    ("routing", "says"),
    [
        ("fastest", ["routing: is a text ('fastest')", "'spread'"]),
        ("7", ["routing: is a number", "a mapping"]),
        ("{kind: spread, seed: 3}", ["routing.seed: spread routing takes no seed"]),
        ("{kind: ecmp, seed: -3}", ["routing.seed"]),
        ("{kind: ecmp, sed: 3}", ["routing.sed: unknown key", "did you mean seed"]),
        ("explicit", ["explicit routing without paths"]),
        ("{paths: [{from: a, to: b}]}", ["shortest routing takes no paths"]),
        ("{kind: explicit, paths: [{from: c, to: b}]}", ["routing.paths.0.from: there is no host or switch 'c'"]),
        ("{kind: explicit, paths: [{from: a, to: n-0}]}", ["routing.paths.0.to"]),
        ("{kind: explicit, paths: [{from: a, to: a}]}", ["has one end only"]),
        ("{kind: explicit, paths: [{from: a, to: b, via: [n-0]}]}", ["'n-0' is no part of a path"]),
        ("{kind: explicit, paths: [{from: n-0, to: n-2}]}", ["passes no switch"]),
        ("{kind: explicit, paths: [{from: n-0, to: n-2, via: [a]}]}", ["n-2 is not attached to a"]),
        ("{kind: explicit, paths: [{from: n-0, to: n-2, via: [b]}]}", ["n-0 is not attached to b"]),
        ("{kind: explicit, paths: [{from: n-0, to: n-2, via: [a, a, b]}]}", ["does not connect: no link from a to a"]),
        ("{kind: explicit, paths: [{from: n-0, to: n-2, via: [a, b, a, b]}]}", ["comes to one place twice"]),
        ("{kind: explicit, paths: [{from: a, to: b}, {from: a, to: b}]}", ["a to b is stated twice"]),
    ],
)
def test_routing_that_cannot_be(tmp_path: Path, routing: str, says: list[str]) -> None:
    _says(tmp_path, f"{FREE}routing: {routing}\n", *says)
