"""`import infragraph`: small graphs written by hand, in both forms of the format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stanza_sim.base.config import parse_yaml
from stanza_sim.base.errors import InputError
from stanza_sim.cluster.cluster import Cluster
from stanza_sim.cluster.hardware import IntraKind
from stanza_sim.importers.infragraph_cluster import import_infragraph
from stanza_sim.importers.looks_like import Foreign
from tests.importers.foreign_files import imported

# Three servers of four XPUs on two NVSwitches and PCI Express, two NICs each, on two leaves under one spine.
EDGES = """name: clos
devices:
  - name: server
    description: four GPUs
    components:
      - {name: cpu, choice: cpu, count: 1}
      - {name: xpu, choice: xpu, count: 4, description: NVIDIA V100 SXM2}
      - {name: nvsw, choice: switch, count: 2}
      - {name: pciesw, choice: switch, count: 1}
      - {name: nic, choice: nic, count: 2}
      - {name: mgmt, choice: custom, count: 1, custom: {type: mgmt-nic}}
    links:
      - {name: nvlink, physical: {bandwidth: {gigabytes_per_second: 25}, latency: {ns: 300}}}
      - {name: pcie}
    edges:
      - {ep1: {component: xpu}, ep2: {component: nvsw}, scheme: many2many, link: nvlink}
      - {ep1: {component: "xpu[0:4]"}, ep2: {component: "pciesw[0]"}, scheme: many2many, link: pcie}
      - {ep1: {component: "nic[:]"}, ep2: {component: pciesw}, scheme: many2many, link: pcie}
      - {ep1: {component: mgmt}, ep2: {component: "cpu[0]"}, scheme: one2one, link: pcie}
  - name: switch
    components:
      - {name: asic, choice: cpu, count: 1}
      - {name: port, choice: port, count: 8}
    links: [{name: ic}]
    edges:
      - {ep1: {component: asic}, ep2: {component: port}, scheme: many2many, link: ic}
links:
  - {name: down, physical: {bandwidth: {choice: gigabits_per_second, gigabits_per_second: 100}, latency: {us: 1}}}
  - {name: up, physical: {bandwidth: {gigabits_per_second: 400}}}
instances:
  - {name: host, device: server, count: 3}
  - {name: leaf, device: switch, count: 2}
  - {name: spine, device: switch, count: 1}
edges:
  - {ep1: {instance: "host[0:2]", component: nic}, ep2: {instance: "leaf[0]", component: "port[0:4]"}, link: down}
  - {ep1: {instance: "host[-1]", component: nic}, ep2: {instance: "leaf[1]", component: port}, link: down}
  - {ep1: {instance: leaf, component: "port[6:8]"}, ep2: {instance: spine, component: "port[0:4]"}, link: up}
"""

# Two such servers on a switch, as earlier versions wrote it; nothing has a count, and one link no rate.
CONNECTIONS = """infrastructure:
  devices:
    - name: box
      components:
        - {name: npu, type: npu, description: Nvidia A100 GPU}
        - {name: nic, type: nic}
      links:
        - {name: pcie, description: PCIe 4.0, bandwidth: {choice: g_transfers_per_second, g_transfers_per_second: 16}}
        - {name: nvlink, description: NVLINK 3.0}
      connections:
        - npu.0.pcie.nic.0
        - npu.0.nvlink.npu.1
        - npu.1.pcie.nic.1
  links:
    - {name: eth, bandwidth: {gigabits_per_second: 200}}
  instances:
    - {name: node, device: box}
    - {name: tor, device: vendor-switch}
  connections:
    - node.0.nic.0.eth.tor.0.port.0
    - node.0.nic.1.eth.tor.0.port.1
    - node.1.nic.0.eth.tor.0.port.2
    - node.1.nic.1.eth.tor.0.port.3
"""


def read(tmp_path: Path, text: str, **asked: object) -> tuple[Cluster, list[str], str]:
    return imported(tmp_path, text, Foreign.INFRAGRAPH, import_infragraph, **asked)


def trunks(cluster: Cluster) -> dict[tuple[int, int], float]:
    return {(a, b): cluster.links[link].bandwidth_Bps for a, b, link in cluster.fabric.trunks if a < b}


def test_instances_with_xpus_are_hosts_and_the_others_switches(tmp_path: Path) -> None:
    cluster, notes, _ = read(tmp_path, EDGES)
    assert notes == []
    assert (cluster.name, cluster.switches) == ("clos", ("leaf-0", "leaf-1", "spine"))
    assert [host.name for host in cluster.hosts] == ["host-0", "host-1", "host-2"]
    host = cluster.hosts[0]
    assert host.devices == ("V100",) * 4  # the description's word
    assert host.intra is not None
    assert (host.intra.kind, host.intra.bandwidth_Bps, host.intra.latency_s) == (IntraKind.NVLINK, 50e9, 3e-7)
    assert [(nic.bandwidth_Bps, nic.latency_s) for nic in host.nics] == [(12.5e9, 1e-6)] * 2
    assert {(nic.efficiency, nic.transport.preset) for nic in host.nics} == {(0.97, "rdma")}
    assert trunks(cluster) == {(0, 2): 97e9, (1, 2): 97e9}  # payload of two cables of 400 Gb/s each
    assert [len({switch for port in ports for switch in port}) for ports in cluster.fabric.ports] == [1, 1, 1]


def test_json_is_read_like_yaml(tmp_path: Path) -> None:
    data, _ = parse_yaml(EDGES, "x")
    assert read(tmp_path, json.dumps(data, indent=1))[0] == read(tmp_path, EDGES)[0]


def test_a_rate_that_is_missing_is_asked_for_by_the_link_s_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"foreign\.txt:12: does not say how fast 'nvlink' is\n.*--rate nvlink=25GB/s"):
        read(tmp_path, CONNECTIONS)
    cluster, notes, _ = read(tmp_path, CONNECTIONS, rates={"nvlink": 300e9}, cores=32)
    assert [note.partition(": ")[2] for note in notes] == [
        "g_transfers_per_second: 16 lanes of PCI Express are taken",
        "instance 'tor' is of device 'vendor-switch', which is not described",
    ]
    assert [(host.name, host.devices, host.cores) for host in cluster.hosts] == [
        ("node-0", ("A100", "A100"), 32),
        ("node-1", ("A100", "A100"), 32),
    ]
    assert cluster.hosts[0].intra is not None and cluster.hosts[0].intra.bandwidth_Bps == 300e9
    nics = [(nic.bandwidth_Bps, nic.latency_s) for nic in cluster.hosts[0].nics]
    assert nics == [(25e9, 1e-6)] * 2  # the latency is the preset's: the file has none
    with pytest.raises(InputError, match=r"there is no level 'nvlnk'"):
        read(tmp_path, CONNECTIONS, rates={"nvlink": 300e9, "nvlnk": 1e9})


def test_xpus_on_pci_only_and_a_host_alone(tmp_path: Path) -> None:
    alone = CONNECTIONS.partition("  links:\n    - {name: eth")[0].replace("        - npu.0.nvlink.npu.1\n", "")
    alone = alone.replace("npu.1.pcie.nic.1", "npu.1.pcie.sw.0").replace("npu.0.pcie.nic.0", "npu.0.pcie.sw.0")
    alone = alone.replace("        - {name: nic", "        - {name: sw, type: custom}\n        - {name: nic")
    cluster, notes, _ = read(tmp_path, alone)
    assert (len(cluster.hosts), cluster.hosts[0].name) == (1, "box")
    assert cluster.hosts[0].intra is not None and cluster.hosts[0].intra.kind is IntraKind.PCIE
    assert round(cluster.hosts[0].intra.bandwidth_Bps / 1e9, 2) == 31.51  # 16 lanes of 16 GT/s
    assert "F:3: 1 NICs are joined to nothing: left out, unless --rate nic=... states their rate" in notes
    several, _, _ = read(tmp_path, alone, hosts=3, rates={"nic": 25e9})
    assert (len(several.hosts), several.hosts[2].nic.bandwidth_Bps) == (3, 25e9)
    with pytest.raises(InputError, match=r":3: does not say how fast the NICs of 'box' are"):
        read(tmp_path, alone, hosts=3)


def test_a_device_by_itself_is_a_host(tmp_path: Path) -> None:
    """As a device is written that is in no infrastructure; its XPUs are a ring of links, which is no switch."""
    text = """name: ring
components: [{name: xpu, choice: xpu, count: 40, description: V100}]
links: [{name: nvlink, physical: {bandwidth: {gigabytes_per_second: 25}}}]
edges: [{ep1: {component: xpu}, ep2: {component: xpu}, scheme: ring, link: nvlink}]
"""
    cluster, notes, _ = read(tmp_path, text)
    assert cluster.hosts[0].name == "ring" and cluster.hosts[0].devices == ("V100",) * 40
    assert cluster.hosts[0].intra is not None and cluster.hosts[0].intra.bandwidth_Bps == 50e9
    assert notes == ["F:1: XPUs of 'ring' are not all joined to each other: as if a switch did, with these rates"]


def test_options_without_use_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--hosts 4: the file has 3 hosts"):
        read(tmp_path, EDGES, hosts=4)
    with pytest.raises(InputError, match=r"--rate nic=\.\.\.: has no use"):
        read(tmp_path, EDGES, rates={"nic": 1e9})
    lone = EDGES.replace("{name: host, device: server, count: 3}", "{name: host, device: server, count: 1}")
    lone = lone.replace('"host[0:2]"', "host").replace(
        '  - {ep1: {instance: "host[-1]"', '  # {ep1: {instance: "host[-1]"'
    )
    host = read(tmp_path, lone)[0].hosts[0]
    assert [nic.bandwidth_Bps for nic in host.nics] == [12.5e9] * 2
    with pytest.raises(InputError, match=r"--rate nic=\.\.\.: has no use: the file's links join the NICs"):
        read(tmp_path, lone, rates={"nic": 1e9})


def test_adapters_outside_and_names_that_are_not_listed(tmp_path: Path) -> None:
    """As in the examples of the format: NICs are instances of their own, joined to a switch within the host."""
    text = CONNECTIONS.partition("  links:\n    - {name: eth")[0].replace("npu.0.pcie.nic.0", "npu.0.pcie.sw.0")
    text = text.replace("npu.1.pcie.nic.1", "npu.1.pcie.sw.0").replace(
        "{name: nic, type: nic}", "{name: sw, type: custom}"
    )
    text += "  instances: [{name: card, device: cx5}]\n  connections:\n"
    text += "    - node.0.sw.0.pcie.card.0.port.0\n    - node.0.sw.0.pcie.card.1.port.0\n"
    cluster, notes, _ = read(tmp_path, text, rates={"nvlink": 300e9, "nic": 12.5e9})
    assert [(host.name, len(host.nics)) for host in cluster.hosts] == [("node", 2)]
    told = [note.partition(": ")[2] for note in notes]
    assert "instance 'card' is of device 'cx5', which is not described" in told
    assert "'node' is not among the instances: taken to be of device 'box'" in told


def test_devices_within_devices_and_rings_of_hosts(tmp_path: Path) -> None:
    text = """devices:
  - name: card
    components: [{name: chip, choice: xpu, count: 1, description: P100}]
    links: [{name: x}]
    edges: []
  - name: box
    components:
      - {name: card, choice: device, count: 2}
      - {name: nic, choice: nic, count: 1}
    links: [{name: bridge, physical: {bandwidth: {gigabytes_per_second: 40}}}]
    edges: [{ep1: {component: "card[0].chip[0]"}, ep2: {device: "card[1]", component: chip}, link: bridge}]
links: [{name: wire, physical: {bandwidth: {gigabits_per_second: 10}}}]
instances: [{name: box, device: box, count: 3}]
edges: [{ep1: {instance: box, component: nic}, ep2: {instance: box, component: nic}, scheme: ring, link: wire}]
"""
    cluster, _, _ = read(tmp_path, text)
    assert [host.devices for host in cluster.hosts] == [("P100", "P100")] * 3
    assert cluster.hosts[0].intra is not None and cluster.hosts[0].intra.bandwidth_Bps == 40e9
    assert {(a, b) for a, b, _ in cluster.fabric.cables} == {(a, b) for a in range(3) for b in range(3) if a != b}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{name: xpu, choice: xpu", "{name: xpu, choice: memory", "has no device with XPUs"),
        ("description: NVIDIA V100 SXM2", "description: a chip", r":7: the XPUs of 'server' are of no kind"),
        ("count: 4, desc", "count: four, desc", r":7: count is four"),
        ("count: 4, desc", "count: 1000000000, desc", r":7: count is 1000000000"),
        ("component: nvsw}", "component: nvswitch}", r":16: server has no component 'nvswitch'\n  did you mean nvsw"),
        ('"xpu[0:4]"', '"xpu[0:5]"', r":17: 'xpu\[0:5\]': there are 4"),
        ('"pciesw[0]"', '"pciesw[1]"', r":17: there is no pciesw\[1\]\n  there are 1, numbered from 0"),
        ('"pciesw[0]"', '"pciesw[0"', r":17: 'pciesw\[0' is no component"),
        ("link: nvlink}", "link: nvlnk}", r":16: there is no link 'nvlnk'\n  did you mean nvlink"),
        ("scheme: one2one", "scheme: one2two", r":19: scheme is 'one2two'"),
        ('instance: "host[-1]"', 'instance: "hots[-1]"', r":36: there is no instance 'hots'"),
        ('instance: "leaf[1]"', 'instance: "leaf[2]"', r":36: there is no leaf\[2\]"),
        ("gigabytes_per_second: 25", "gigabytes_per_second: fast", r":13: gigabytes_per_second is fast"),
        ("gigabytes_per_second: 25", "furlongs: 25", r":13: bandwidth has no unit that is known"),
        (
            "gigabytes_per_second: 25",
            "gigabytes_per_second: 0",
            r"the bandwidth of 'nvlink' is no rate|has no bandwidth",
        ),
        ("  - {name: spine, device", "  - {name: leaf, device", r":33: there are two instances 'leaf'"),
        ("  - name: switch\n", "  - name: server\n", r":20: there are two devices 'server'"),
        ("{name: port, choice: port, count: 8}", "{name: port, components: []}", r"has components of its own"),
        (
            "{name: port, choice",
            "{name: switch, choice: device, count: 1}\n      - {name: port, choice",
            "contains itself",
        ),
        ("instances:", "instances: 5\nmore:", r"instances is no list"),
        (
            "edges:\n  - {ep1: {instance",
            "ages:\n  - {ep1: {instance",
            r":31: no edge joins 'host-0' to another instance",
        ),
        (
            "    edges:\n      - {ep1: {component: xpu}",
            "    edges:\n      - {ep0: {component: xpu}",
            r":16: ep1 is missing",
        ),
    ],
)
def test_what_is_wrong_is_refused_with_its_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in EDGES
    with pytest.raises(InputError, match=message):
        read(tmp_path, EDGES.replace(old, new, 1))


def test_a_connection_that_is_none_and_edges_without_number(tmp_path: Path) -> None:
    for old, new, message in (
        ("npu.0.nvlink.npu.1", "npu.0.nvlink", r":12: 'npu\.0\.nvlink' is no connection"),
        ("npu.0.nvlink.npu.1", "{a: b}", r":12: .* is no connection"),
    ):
        with pytest.raises(InputError, match=message):
            read(tmp_path, CONNECTIONS.replace(old, new), rates={"nvlink": 1e9})
    many = EDGES.replace("count: 3}", "count: 90000}").replace('instance: "host[0:2]"', "instance: host", 1)
    many = many.replace('port[0:4]"}, link: down', 'port"}, scheme: many2many, link: down')
    with pytest.raises(InputError, match=r":35: stands for more than 500,000 edges"):
        read(tmp_path, many)
