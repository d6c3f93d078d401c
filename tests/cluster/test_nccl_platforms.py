"""Platform files of NCCL: what the shipped ones say, which one a host takes, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from stanza_sim.base.config import Kind, available
from stanza_sim.base.errors import InputError
from stanza_sim.cluster import Intra, IntraKind, load_cluster
from stanza_sim.cluster.nccl import Protocol, load_nccl, platform_on

LEAST = "name: x\nsources: [a test]\noverhead: 10us\nramp: 1MiB\nlaunch: 1us\n"
TOPOLOGY = """\
name: t
hosts:
  - {name: n, count: 2, cores: 8, devices: [A100, A100], intra: {kind: nvlink, rate: 300GB/s}, nic: {rate: 10Gbps}%s}
switches: [{name: s}]
"""


@pytest.mark.parametrize("name", available(Kind.NCCL))
def test_shipped_platforms_say_where_they_are_from(name: str) -> None:
    platform = load_nccl(name)
    assert platform.name == name
    assert len(platform.sources) >= 2
    assert all(0 < share <= 1 for share in (platform.inside_share, platform.across_share, platform.memory_share))


def test_what_a_file_leaves_out_is_nccls_own(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(LEAST)
    platform = load_nccl(path)
    assert platform.base_s.ring[Protocol.LL] == pytest.approx(6.6e-6)
    assert platform.inside_s.tree[Protocol.LL128] == pytest.approx(1.25e-6)
    assert platform.across_s.ring[Protocol.SIMPLE] == pytest.approx(14e-6)
    assert (platform.inside_Bps, platform.across_Bps, platform.channels, platform.ll128) == (
        None,
        None,
        None,
        "nowhere",
    )
    path = tmp_path / "y.yaml"
    path.write_text(LEAST + "channels: {count: 8}\n")
    assert (load_nccl(path).channels, load_nccl(path).tree_channel_Bps) == (8, (24e9, 23.6e9, 17.8e9))


def test_a_host_takes_the_platform_of_what_joins_its_devices() -> None:
    host = load_cluster("dgx-a100-16", nodes=1).hosts[0]
    assert platform_on(host).name == platform_on(replace(host, nccl=None)).name == "a100-nvlink"
    assert platform_on(replace(host, nccl=None, devices=("V100",) * 8)).name == "nvlink"
    pcie = Intra(kind=IntraKind.PCIE, bandwidth_Bps=16e9)
    assert platform_on(replace(host, nccl=None, intra=pcie)).name == "pcie"
    assert platform_on(load_cluster("ec2-p3-10", nodes=2).hosts[0]).name == "pcie"
    assert platform_on(replace(host, nccl="pcie")).name == "pcie"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("overhead: 10", "overhead: 10 has no unit"),
        ("overhead: -1us", "overhead"),
        ("across_share: 1.2", "across_share"),
        ("across_share: 0", "across_share"),
        ("across: 10us", "across"),
        ("memory: -3GB/s", "memory"),
        ("ramp: 10us", "ramp"),
        ("launch: fast", "launch"),
        ("ll128: sometimes", "ll128"),
        ("channels: {count: 0}", "channels.count"),
        ("channels: {count: 8, tree: [1GB/s]}", "channels.tree"),
        ("latency: {base: {ring: {ll: 1us}}}", "latency.base"),
        ("latency: {outside: {}}", "outside"),
        ("speed: 3", "speed"),
    ],
)
def test_wrong_values_are_refused(tmp_path: Path, more: str, says: str) -> None:
    key = more.partition(":")[0]
    path = tmp_path / "x.yaml"
    path.write_text("".join(row + "\n" for row in LEAST.splitlines() if not row.startswith(key)) + more + "\n")
    with pytest.raises(InputError) as caught:
        load_nccl(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("missing", ["name", "sources", "overhead", "ramp", "launch"])
def test_what_must_be_stated(tmp_path: Path, missing: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("".join(row + "\n" for row in LEAST.splitlines() if not row.startswith(missing)))
    with pytest.raises(InputError, match=f"{missing}"):
        load_nccl(path)


def test_a_topology_names_a_platform_or_its_file(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(TOPOLOGY % ", nccl: pcie")
    assert {platform_on(h).name for h in load_cluster(path).hosts} == {"pcie"}
    (tmp_path / "x.json").write_text(
        json.dumps({"name": "x", "sources": ["s"], "overhead": "1us", "ramp": "1kB", "launch": "0us"})
    )
    path.write_text(TOPOLOGY % ", nccl: x.json")
    assert {platform_on(h).name for h in load_cluster(path).hosts} == {"x"}


def test_a_topology_with_a_wrong_platform_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    for stated, says in (
        (", nccl: a100-nvlnk", "hosts.0.nccl: unknown NCCL platform 'a100-nvlnk'"),
        (", nccl: q", "known: a100-nvlink, nvlink, pcie"),
        (", nccl: ./none.yaml", "no such file"),
        (", nccl: 3", "hosts.0.nccl"),
        (", nccl: pcie, staging: {rate: 12GB/s}", "staging is what gloo needs and NCCL does not"),
    ):
        path.write_text(TOPOLOGY % stated)
        with pytest.raises(InputError) as caught:
            load_cluster(path)
        assert says in str(caught.value)
    bare = TOPOLOGY.replace("devices: [A100, A100], intra: {kind: nvlink, rate: 300GB/s}, ", "")
    path.write_text(bare % ", nccl: pcie")
    with pytest.raises(InputError, match="nccl is for devices, and there is none"):
        load_cluster(path)
