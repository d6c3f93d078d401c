"""`import simai`: a small topology of the format, written by hand, and everything that may be wrong with one."""

from __future__ import annotations

from pathlib import Path

import pytest

from stanza_sim.base.errors import InputError
from stanza_sim.cluster.cluster import Cluster
from stanza_sim.cluster.hardware import IntraKind
from stanza_sim.importers.looks_like import Foreign
from stanza_sim.importers.simai import import_simai
from tests.importers.foreign_files import imported

# Two servers of two GPUs (0-3), an NVSwitch each (4, 5), two leaves (6, 7: a rail each) under two spines (8, 9).
LINKS = [
    "0 4 2400Gbps 0.000025ms 0",
    "0 6 100Gbps 0.0005ms 0",
    "1 4 2400Gbps 0.000025ms 0",
    "1 7 100Gbps 0.0005ms 0",
    "2 5 2400Gbps 0.000025ms 0",
    "2 6 100Gbps 0.0005ms 0",
    "3 5 2400Gbps 0.000025ms 0",
    "3 7 100Gbps 0.0005ms 0",
    "6 8 400Gbps 0.0005ms 0",
    "6 9 400Gbps 0.0005ms 0",
    "7 8 400Gbps 0.0005ms 0",
    "7 9 400Gbps 0.0005ms 0",
]
RAILS = "10 2 2 4 12 A100\n4 5 6 7 8 9 \n" + "\n".join(LINKS) + "\n"
NS3 = "5 1 4\n4\n" + "".join(f"{k} 4 200Gbps 0.5us 0\n" for k in range(4))


def read(tmp_path: Path, text: str, **asked: object) -> tuple[Cluster, list[str], str]:
    return imported(tmp_path, text, Foreign.SIMAI_TOPOLOGY, import_simai, **asked)


def test_servers_nvswitches_rails_and_spines_are_as_in_the_file(tmp_path: Path) -> None:
    cluster, notes, text = read(tmp_path, RAILS)
    assert notes == []
    first, second = cluster.hosts
    assert (first.name, second.name, first.devices) == ("server-0", "server-1", ("A100", "A100"))
    assert first.intra is not None and first.intra.kind is IntraKind.NVLINK
    assert (first.intra.bandwidth_Bps, first.intra.latency_s) == (300e9, 2.5e-8)
    assert [(nic.bandwidth_Bps, nic.latency_s) for nic in first.nics] == [(12.5e9, 5e-7)] * 2
    assert {(nic.efficiency, nic.transport.preset) for nic in first.nics} == {(0.97, "rdma")}
    assert text.count("Assumed, for the file does not say it: NICs have `preset: rdma`") == 1
    assert cluster.switches == ("leaf-6", "leaf-7", "spine-8", "spine-9")
    assert "from: server, to: leaf-6, nic: 0" in text and "routing: ecmp" in text
    trunks = {(a, b): cluster.links[link].bandwidth_Bps for a, b, link in cluster.fabric.trunks}
    assert trunks == dict.fromkeys(
        ((0, 2), (2, 0), (0, 3), (3, 0), (1, 2), (2, 1), (1, 3), (3, 1)), 48.5e9
    )  # of payload, as for NICs


def test_ns3_topologies_are_hosts_of_one_gpu_each(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"foreign\.txt:1: does not name its GPU\n  state --device, one of A100, "):
        read(tmp_path, NS3)
    cluster, _, _ = read(tmp_path, NS3, device="H100", cores=32)
    assert [host.devices for host in cluster.hosts] == [("H100",)] * 4
    assert (cluster.hosts[0].nic.bandwidth_Bps, cluster.hosts[0].cores, cluster.hosts[0].intra) == (25e9, 32, None)


def test_what_is_not_used_is_said_by_line(tmp_path: Path) -> None:
    lossy = RAILS.replace("6 9 400Gbps 0.0005ms 0", "6 9 400Gbps 0.0005ms 0.01")
    doubled = lossy.replace(" 12 A100", " 13 A100") + "8 7 100Gbps 0.0005ms 0\n"
    cluster, notes, text = read(tmp_path, doubled)
    assert notes == [
        "F:12: links that lose packets: losses are not modelled",
        "F: parallel links between two switches are one, with the sum of their rates",
    ]
    assert "# - line 12: links that lose packets" in text
    (rate,) = (cluster.links[link].bandwidth_Bps for a, b, link in cluster.fabric.trunks if (a, b) == (1, 2))
    assert rate == 62.5e9 * 0.97
    alone = "4 2 1 1 5 A100\n2 3\n0 2 1GB/s 1us 0\n1 2 1GB/s 1us 0\n0 3 1Gbps 1us 0\n1 3 1Gbps 1us 0\n1 3 1Gbps 1us 0\n"
    cluster, notes, _ = read(tmp_path, alone)
    assert (len(cluster.hosts), cluster.switches) == (1, ())
    assert notes == ["F:1: there is one server: its 1 switches are left out"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("10 2 2 4 12 A100", "10 2 2 4 12 H9000", r":1: names the GPU 'H9000', of which nothing is known"),
        ("10 2 2 4 12 A100", "10 3 2 4 12 A100", r":1: 4 GPUs are not whole servers of 3"),
        ("10 2 2 4 12 A100", "6 2 2 4 12 A100", r":1: 6 nodes with 2 NVSwitches and 4 switches leave no GPU"),
        ("10 2 2 4 12 A100", "10 0 2 4 12 A100", r":1: a server has no GPU"),
        ("10 2 2 4 12 A100", "10 2 2 4 12000000 A100", r":1: 12,000,000 links are too many"),
        ("10 2 2 4 12 A100", "1000001 1 2 4 12 A100", r":1: 1,000,001 nodes are too many\n  1,000,000 are the most"),
        ("10 2 2 4 12 A100", "10 2 2 4 13 A100", r":14: is cut short: 12 of 13 links are there"),
        ("10 2 2 4 12 A100", "10 2 2 4 11 A100", r":14: a line after the last of the 11 links"),
        ("4 5 6 7 8 9", "4 5 6 7 8 8", r":2: switch 8 is listed twice"),
        ("4 5 6 7 8 9", "4 5\n6 5 8 9", r":3: switch 5 is listed twice"),
        ("4 5 6 7 8 9", "4 5 6 7 8 1", r":2: there is no switch 1"),
        ("4 5 6 7 8 9", "4 5 6 7 8", r":3: lists 7 switches|:3: there is no switch 0"),
        ("6 8 400Gbps", "6 10 400Gbps", r":11: there is no node '10'"),
        ("6 8 400Gbps", "6 6 400Gbps", r":11: joins node 6 to itself"),
        ("6 8 400Gbps", "6 8 400", r":11: '400' is no rate"),
        ("6 8 400Gbps", "6 8 0Gbps", r":11: '0Gbps' is no rate of a link"),
        ("6 8 400Gbps 0.0005ms 0", "6 8 400Gbps 5hours 0", r":11: '5hours' is no latency"),
        ("6 8 400Gbps 0.0005ms 0", "6 8 400Gbps 0.0005ms 2", r":11: '2' is no share of packets"),
        ("6 8 400Gbps 0.0005ms 0", "6 8 400Gbps", r":11: 3 values where a link has 5"),
        ("1 4 2400Gbps", "2 4 2400Gbps", r":5: joins NVSwitch 4 to a GPU of a second server of 2"),
        ("1 4 2400Gbps", "6 4 2400Gbps", r":5: joins NVSwitch 4 to a switch"),
        ("1 4 2400Gbps", "1 2 2400Gbps", r":5: joins GPUs of two servers of 2"),
        ("1 4 2400Gbps", "1 7 2400Gbps", r":1: GPU 1 has no link inside its server"),
        ("7 8 400Gbps 0.0005ms 0\n7 9", "6 8 400Gbps 0.0005ms 0\n6 9", r"are not connected"),
    ],
)
def test_what_is_wrong_is_refused_with_its_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in RAILS
    with pytest.raises(InputError, match=message):
        read(tmp_path, RAILS.replace(old, new))


def test_a_latency_of_nothing_is_kept(tmp_path: Path) -> None:
    """The format states it: the preset's does not take its place."""
    cluster, _, _ = read(tmp_path, NS3.replace("0.5us", "0us"), device="H100")
    assert [host.nic.latency_s for host in cluster.hosts] == [0.0] * 4


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    for size in (*range(20, len(RAILS) - 5, 37), len(RAILS) - 6):
        with pytest.raises(InputError):
            read(tmp_path, RAILS[:size])
