"""Slurm's topology.conf: what becomes of it, what is asked for, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from stanza_sim.base.errors import InputError
from stanza_sim.importers.asked import NONE
from stanza_sim.importers.looks_like import Foreign
from stanza_sim.importers.slurm import import_slurm
from tests.importers.foreign_files import imported

GB = 1e9
TREE = """\
# A cluster of six
switchname=leaf1 nodes=n[01-03] LinkSpeed=4 # comment
SwitchName=leaf2  Nodes=n04,\\
n05
SWITCHNAME=leaf3 Nodes=login
SwitchName=spine1 Switches=leaf[1-2]
SwitchName=core Switches=spine1,leaf3
"""
RATES = {"nic": 25 * GB, "level1": 50 * GB, "level2": 100 * GB}
HOSTS = {"device": "A100", "devices_per_host": 4}


def read(tmp_path: Path, text: str, **asked: object):
    return imported(tmp_path, text, Foreign.SLURM, import_slurm, **{"rates": RATES, **HOSTS, **asked})


def test_a_tree(tmp_path: Path) -> None:
    cluster, notes, text = read(tmp_path, TREE, nics=2, cores=96)
    assert [host.name for host in cluster.hosts] == [
        *(f"leaf1-node-{i}" for i in range(3)),
        "leaf2-node-0",
        "leaf2-node-1",
        "login",
    ]
    assert cluster.switches == ("leaf1", "leaf2", "leaf3", "spine1", "core")
    rates = {link.name: round(link.bandwidth_Bps / GB, 6) for link in cluster.links if "spine1" in link.name}
    assert set(rates.values()) == {48.5, 97}  # of payload
    host = cluster.hosts[-1]
    assert (host.cores, host.devices, len(host.nics)) == (96, ("A100",) * 4, 2)
    assert host.intra is not None
    assert host.intra.bandwidth_Bps == 240 * GB
    assert any(note.startswith("F:2: LinkSpeed is not used") for note in notes)
    assert any("NVLink is taken to join" in note for note in notes)
    assert "# n[01-03]" in text
    assert text.count("The efficiency of links between switches is an assumption") == 1


def test_hosts_without_nvlink_and_without_devices(tmp_path: Path) -> None:
    cluster, notes, _ = read(tmp_path, TREE, rates=RATES | {"nvlink": NONE}, nics=1)
    assert cluster.hosts[0].intra is not None
    assert (cluster.hosts[0].intra.kind, cluster.hosts[0].intra.bandwidth_Bps) == ("pcie", 24 * GB)
    assert len(notes) == 1
    cluster, _, _ = read(tmp_path, TREE, device=None, devices_per_host=None, cores=32)
    assert (cluster.hosts[0].cores, cluster.hosts[0].devices) == (32, ())


def test_switches_that_nothing_joins(tmp_path: Path) -> None:
    text = "SwitchName=top Nodes=a[1-2]\nSwitchName=s1 Nodes=a[3-4]\n"
    with pytest.raises(InputError, match="2: no switch joins top,s1") as error:
        read(tmp_path, text, rates={})
    assert "--rate nic=RATE --rate level1=RATE" in str(error.value.hint)
    cluster, notes, _ = read(tmp_path, text, rates={"nic": 1e9, "level1": 2e9})
    assert cluster.switches == ("top", "s1", "top0")
    assert any("top0 is added above them" in note for note in notes)


def test_what_is_included(tmp_path: Path) -> None:
    (tmp_path / "more.conf").write_text("SwitchName=s1 Nodes=b[1-2]\n")
    text = "SwitchName=s0 Nodes=a[1-2]\nInclude more.conf\nSwitchName=t Switches=s[0-1]\n"
    rates = {"nic": 1e9, "level1": 1e9}
    cluster, _, native = read(tmp_path, text, rates=rates)
    assert len(cluster.hosts) == 4
    assert "line 1 of more.conf" in native
    for name, message in (("none.conf", "2: includes none.conf: no such file"), ("foreign.txt", "goes on without end")):
        with pytest.raises(InputError, match=message):
            read(tmp_path, text.replace("more.conf", name))
    with pytest.raises(InputError, match=r"more\.conf:1: the host b1 is under s1 and under s0 \(line 1\)"):
        read(tmp_path, text.replace("=a", "=b"))
    (tmp_path / "more.conf").write_text("<system/>")
    with pytest.raises(InputError, match=r"2: includes more\.conf: looks like an NCCL topology"):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TREE.replace("login", "n02"), r"5: the host n02 is under leaf3 and under leaf1 \(line 2\)"),
        (TREE.replace("n04,", "x-n[04,06-20],"), "3: the host n05 seems to lack its prefix: x-n05"),
        (TREE.replace("n[01-03]", "[01-03]"), r"2: Nodes: '\[01-03\]' has no name in front of its range"),
        (TREE.replace("n[01-03]", "n[01-03"), "2: Nodes: 'n.01-03' is cut short: a bracket does not end"),
        (TREE.replace("spine1,leaf3", "spine1,leaf4"), "7: there is no switch leaf4, which core has below it"),
        (
            TREE.replace("spine1,leaf3", "spine1,leaf[2-3]"),
            r"7: the switch leaf2 is under core and under spine1 \(line 6\)",
        ),
        (TREE.replace("Switches=leaf[1-2]", "Switches=leaf[1-2],core"), "6: the switch spine1 is above itself"),
        (TREE.replace("=leaf3", "=leaf2", 1), "5: the switch leaf2 is stated twice, also on line 3"),
        (TREE.replace("Nodes=login", ""), "5: nothing is under the switch leaf3"),
        (TREE.replace("Nodes=login", "Node=login"), "5: 'Node' is not known"),
        (TREE.replace("Nodes=login", "Nodes login"), "5: 'Nodes' is not Key=value"),
        (TREE.replace("Nodes=login", "Nodes=ALL"), "5: Nodes=ALL: what these are is not in the file"),
        (TREE.replace("Nodes=login", "Nodes=login,login"), "5: login is twice under leaf3"),
        ("BlockName=b0 Nodes=n[0-17]\nBlockSizes=18\n", "1: BlockName is of topology/block"),
        (TREE[:-1] + "\\", "7: is cut short: the last line is to be continued"),
        ("# nothing\n", "has no line SwitchName"),
        (
            "".join(f"SwitchName=s{i} Nodes=a{i}n[1-60000]\n" for i in range(3)),
            "2: hosts up to here are more than 100,000",
        ),
    ],
    ids=range(17),
)
def test_what_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"rates": {}},
            "does not say how fast a host's NIC and what a switch of level 1 has up and what a switch of level 2",
        ),
        ({"rates": RATES | {"level3": 1.0}}, "there is no level 'level3'"),
        ({"device": None}, "--devices-per-host without --device"),
        ({"rates": RATES | {"pcie": 1e9}}, "--rate pcie=...: has no use: NVLink joins the devices"),
        ({"devices_per_host": 1, "rates": RATES | {"nvlink": 1e9}}, "has no use: a host has one device"),
        ({"device": None, "devices_per_host": None}, "does not say what its hosts have"),
        ({"device": None, "devices_per_host": None, "rates": RATES | {"pcie": 1.0}}, "--rate pcie without --device"),
    ],
)
def test_what_is_asked_for(tmp_path: Path, asked: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, TREE, **asked)
