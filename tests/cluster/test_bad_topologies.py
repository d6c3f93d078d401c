"""A topology that is wrong says where, and what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest

from stanza_sim.base.errors import InputError
from stanza_sim.cluster import load_cluster

GOOD = """\
name: t
hosts:
  - name: n
    count: 3
    cores: 8
    devices: [V100]
    nic: {rate: 10Gbps, latency: 25us}
switches: [{name: s}]
overrides:
  n-1: {cores: 4}
placement: [n-0, n-1, n-2]
"""
HOSTS = """\
hosts:
  - name: n
    count: 3
    cores: 8
    devices: [V100]
    nic: {rate: 10Gbps, latency: 25us}
"""
TWO = "hosts: [{name: n, count: 3, cores: 8, nic: {rate: 1Gbps}}, {name: m, cores: 8, nic: {rate: 1Gbps}}]\n"


def _error(folder: Path, text: str, **given: float) -> str:
    path = folder / "t.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_cluster(path, **given)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "t.yaml" in message
    return message


def test_the_good_one_loads(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(GOOD)
    assert load_cluster(path).world_size == 3


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("[n-0, n-1, n-2]", "[n-0, n-1, n-7]", ["t.yaml:11: placement.2: rank 2 is on a missing host 'n-7'", "n-0"]),
        ("[n-0, n-1, n-2]", "[n-0, n-0]", ["t.yaml:11: placement: more ranks on n-0 than its 1 devices"]),
        ("[n-0, n-1, n-2]", "[]", ["placement: names no host"]),
        ("[n-0, n-1, n-2]", "[n-0]\nranks_per_host: 1", ["exclude each other"]),
        ("placement: [n-0, n-1, n-2]", "ranks_per_host: 2", ["more ranks on n-0"]),
        ("[n-0, n-1, n-2]", "[n-0/0, n-1, n-2/1]", ["t.yaml:11: placement.2", "'n-2/1'", "n-2 has 1 devices"]),
        ("[n-0, n-1, n-2]", "[n-0/x]", ["missing host 'n-0/x'"]),
        ("[n-0, n-1, n-2]", "[n-0/-1]", ["missing host 'n-0/-1'"]),
        ("[n-0, n-1, n-2]", "[n-7/0]", ["missing host 'n-7'"]),
        ("[n-0, n-1, n-2]", "[n-0]\nranks_per_device: 2", ["ranks_per_device and placement exclude each other"]),
        (
            "placement: [n-0, n-1, n-2]",
            "ranks_per_host: 1\nranks_per_device: 2",
            ["ranks_per_device and ranks_per_host exclude each other"],
        ),
        ("placement: [n-0, n-1, n-2]", "ranks_per_device: 0", ["ranks_per_device", "greater than or equal to 1"]),
        ("placement: [n-0, n-1, n-2]", "ranks_per_device: two", ["ranks_per_device"]),
        ("placement: [n-0, n-1, n-2]", "ranks_per_device: 50000", ["150,000 hosts or ranks are too many"]),
        ("placement: [n-0, n-1, n-2]", "ranks_per_host: 0", ["ranks_per_host", "greater than or equal to 1"]),
        ("n-1: {cores: 4}", "n-9: {cores: 4}", ["t.yaml:10: overrides.n-9: there is no host 'n-9'", "did you mean"]),
        ("n-1: {cores: 4}", "n-1: {devices: [V1000]}", ["overrides.n-1.devices: unknown device", "V100"]),
        ("n-1: {cores: 4}", "n-1: {speed: 4}", ["overrides.n-1.speed: unknown key"]),
        ("n-1: {cores: 4}", "n-1: {nic: {rate: 10GB}}", ["overrides.n-1.nic.rate: '10GB' is not a rate", "GB/s"]),
        ("[V100]", "[W100]", ["t.yaml:6: hosts.0.devices: unknown device 'W100'", "did you mean"]),
        ("[V100]", "[cpu]", ["leave devices out"]),
        ("[{name: s}]", "[{name: s}, {name: s}]", ["switches.1.name: the name 's' is used twice"]),
        ("[{name: s}]", "[{name: n-0}]", ["the name 'n-0' is used twice"]),
        ("[{name: s}]", "[{name: n}]", ["the name 'n' is used twice"]),
        ("[{name: s}]", "[]", ["n-0 and n-1 are not connected", "add a switch"]),
        ("[{name: s}]", "[{name: s}, {name: z}]", ["several switches, but no links"]),
        ("[{name: s}]", "[{name: s}]\nlinks: [{from: n, to: x}]", ["links.0.to: there is no host or switch 'x'"]),
        ("[{name: s}]", "[{name: s}]\nlinks: [{from: n, to: s, rate: 1Gbps}]", ["the values of its NIC"]),
        ("[{name: s}]", "[{name: s}]\nlinks: [{from: n, to: n-0}]", ["a cable joins one host to another"]),
        ("[{name: s}]", "[{name: s}]\nlinks: [{from: n-0, to: n-0}]", ["a cable joins one host to another"]),
        ("[{name: s}]", "[{name: s}]\nlinks: [{from: n-0, to: n-1, latency: 1us}]", ["a cable without a rate"]),
        (
            "[{name: s}]",
            "[{name: s}]\nlinks: [{from: n-0, to: n-1}, {from: n-1, to: n-0}]",
            ["links.1: n-1 and n-0 are linked twice"],
        ),
        ("[{name: s}]", "[{name: s}, {name: z}]\nlinks: [{from: s, to: z}]", ["the rate of a link between switches"]),
        (
            "[{name: s}]",
            "[{name: s}, {name: z}]\nlinks: [{from: s, to: z, rate: 1Gbps}, {from: z, to: s, rate: 1Gbps}]",
            ["links.1: z and s are linked twice"],
        ),
        (
            "[{name: s}]",
            "[{name: s}, {name: z}]\nlinks: [{from: n-0, to: s}, {from: n-1, to: s}, {from: n-2, to: z}]",
            ["n-0 and n-2 are not connected"],
        ),
        ("cores: 8", "cores: many", ["hosts.0.cores: is a text", "should be a whole number or 'this-machine'"]),
        ("cores: 8", "cores: -1", ["hosts.0.cores"]),
        ("    cores: 8\n", "", ["'cores' is missing"]),
        ("rate: 10Gbps", "rate: 10GB", ["t.yaml:7: hosts.0.nic.rate: '10GB' is not a rate", "GB/s"]),
        ("rate: 10Gbps, ", "", ["t.yaml:7: hosts.0.nic: the key 'rate' is missing"]),
        ("    nic: {rate: 10Gbps, latency: 25us}\n", "", ["hosts.0: the key 'nic' is missing"]),
        ("latency: 25us", "latency: -25us", ["negative"]),
        ("latency: 25us", "efficiency: 1.2", ["hosts.0.nic.efficiency", "less than or equal to 1"]),
        ("count: 3", "count: 0", ["hosts.0.count"]),
        ("count: 3", "count: 3000000000000", ["t.yaml:2: hosts: 3,000,000,000,000 hosts or ranks are too many"]),
        ("[{name: s}]", "[{name: s}]\nlinks: [{form: n, to: s}]", ["links.0.form: unknown key", "did you mean from?"]),
        (HOSTS, "hosts: []\n", ["t.yaml:2: hosts", "at least 1 entry"]),
        (HOSTS, TWO.replace("name: m", "name: n"), ["hosts.1.name: two hosts called 'n'"]),
        (HOSTS, TWO.replace("name: m", "name: n-1"), ["hosts: two hosts called 'n-1'"]),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, says: list[str]) -> None:
    assert old in GOOD
    message = _error(tmp_path, GOOD.replace(old, new, 1))
    for part in says:
        assert part in message


def test_nodes_and_rate_that_do_not_fit(tmp_path: Path) -> None:
    assert "its placement names the host of each rank" in _error(tmp_path, GOOD, nodes=2)
    several = f"name: t\n{TWO}switches: [{{name: s}}]\n"
    assert "it has 2 host groups" in _error(tmp_path, several, nodes=2)
    single = "name: t\nhosts: [{name: n, cores: 8}]\n"
    assert "a single host without a count" in _error(tmp_path, single, nodes=2)
    assert "network.rate has no use" in _error(tmp_path, single, rate_Bps=1e9)
    with pytest.raises(InputError, match=r"9,000,000,000 nodes are too many\n  100,000 are the most"):
        load_cluster("star", nodes=9_000_000_000)
    assert "nodes is 0" in _error(tmp_path, several, nodes=0)
    assert "several hosts" in _error(tmp_path, several + "scales: ranks\n", nodes=2)
    assert "no NIC" in _error(tmp_path, single + "overrides: {n: {nic: {rate: 1Gbps}}}\n")
    unplaced = GOOD.replace("placement: [n-0, n-1, n-2]\n", "")
    assert "overrides.n-1: there is no host 'n-1'" in _error(tmp_path, unplaced, nodes=1)


def test_an_unknown_name_lists_near_ones() -> None:
    with pytest.raises(InputError, match=r"unknown topology 'ec2-p3'\n  did you mean ec2-p3-10"):
        load_cluster("ec2-p3")
