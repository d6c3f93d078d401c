"""NCCL's XML of a host: what becomes of GPUs, NICs, NVLink and the tree of PCI, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from stanza_sim import build_schedule, load_model, predict
from stanza_sim.base.errors import InputError
from stanza_sim.cluster.hardware import IntraKind
from stanza_sim.importers.asked import NONE
from stanza_sim.importers.looks_like import Foreign
from stanza_sim.importers.nccl_topo import import_nccl_topo
from tests.importers.foreign_files import VIRTUAL, bridge, cpu, gpu, imported, nic, system

GB = 1e9
DGX = system(
    cpu(0, bridge("00", gpu("01", 0) + gpu("02", 1) + nic("03", "mlx5_0") + nic("04", "mlx5_1")) + VIRTUAL),
    cpu(1, bridge("10", gpu("11", 2) + gpu("12", 3) + nic("13", "mlx5_2") + nic("14", "mlx5_3")) + VIRTUAL),
)
NO_LINKS = DGX.replace("nvlink", "xnvlink")


def read(tmp_path: Path, text: str, **asked: object):
    return imported(tmp_path, text, Foreign.NCCL_TOPO, import_nccl_topo, **asked)


def test_a_dump_with_nvlink_tells_devices_links_and_nics(tmp_path: Path) -> None:
    cluster, notes, text = read(tmp_path, DGX, hosts=4)
    host = cluster.hosts[0]
    assert len(cluster.hosts) == 4
    assert host.devices == ("A100",) * 4
    assert host.cores == 16
    assert host.intra is not None
    assert host.intra.kind is IntraKind.NVLINK
    assert host.intra.bandwidth_Bps == 12 * 20 * GB  # NCCL counts 20 GB/s a link of sm 80
    assert host.intra.host_link_Bps == 12 * GB  # two share an uplink of 24
    assert [nic.bandwidth_Bps for nic in host.nics] == [200e9 / 8] * 4
    assert host.nic.transport.preset == "rdma"
    assert "2 virtual NICs dropped, which are on no bus: docker0, calif00" in notes[0]
    assert notes[0].startswith("F:14-15,29-30: ")
    assert "mlx5_0, line 9;" in text
    schedule = build_schedule("all_reduce", load_model("alexnet"), cluster, batch_per_worker=8)
    assert predict(schedule, cluster).iteration_s > 0


def test_without_nvlink_the_tree_joins_the_devices(tmp_path: Path) -> None:
    host = read(tmp_path, NO_LINKS)[0].hosts[0]
    assert host.intra is not None
    tree = host.intra.tree
    assert tree is not None
    assert (host.intra.kind, host.intra.bandwidth_Bps) == (IntraKind.PCIE, 24 * GB)
    assert tree.switches == ((0, 1), (2, 3))
    assert (tree.switch_Bps, tree.sockets, tree.socket_Bps, tree.nics_at_switches) == (24 * GB, 2, 16 * GB, True)


def test_nvlink_between_some_gpus_only_is_said(tmp_path: Path) -> None:
    pair = ['<nvlink target="0000:%s:00.0" count="4" tclass="0x030200"/>' % bus for bus in ("02", "01")]  # noqa: UP031
    text = system(
        cpu(0, gpu("01", 0, links=pair[0]) + gpu("02", 1, links=pair[1]) + gpu("03", 2, links="")),
    )
    cluster, notes, _ = read(tmp_path, text, device="RTX3090")
    assert cluster.hosts[0].intra is not None
    assert cluster.hosts[0].intra.kind is IntraKind.PCIE
    assert any("NVLink, which does not join all GPUs, is not used" in note for note in notes)
    with pytest.raises(InputError, match=r"4 NVLinks to 0000:02:00\.0, which has 3 back"):
        read(tmp_path, text.replace('"0000:01:00.0" count="4"', '"0000:01:00.0" count="3"'))


def test_a_hint_needs_rates_and_the_device(tmp_path: Path) -> None:
    leaf = '<pci busid="000%d:00:00.0" class="%s" link_speed="16 GT/s" link_width="16"/>\n'
    inside = "".join(leaf % (i, "0x030200") for i in range(4)) + leaf % (9, "0x020700")
    text = f'<system version="1">\n<cpu numaid="0" affinity="000000ff" arch="x86_64">\n{inside}</cpu></system>'
    for asked, missing in (
        ({}, r"3: does not say which GPUs they are"),
        ({"device": "V100"}, r"3: does not say whether NVLink joins the GPUs"),
        ({"device": "V100", "rates": {"nvlink": 1e11}}, r"7: does not say how fast the NIC 0009:00:00.0 is"),
        ({"device": "V100", "rates": {"spine": 1.0}}, r"there is no level 'spine'"),
        ({"device": "V1000"}, r"unknown device 'V1000'"),
    ):
        with pytest.raises(InputError, match=missing) as error:
            read(tmp_path, text, **asked)
        assert error.value.hint
    rates = {"nvlink": 120 * GB, "nic": 100e9 / 8}
    host = read(tmp_path, text, device="V100", rates=rates)[0].hosts[0]
    assert host.intra is not None
    assert (host.intra.bandwidth_Bps, host.nic.bandwidth_Bps, host.cores) == (120 * GB, 100e9 / 8, 8)
    host = read(tmp_path, text, device="V100", rates=rates | {"nvlink": NONE})[0].hosts[0]
    assert host.intra is not None
    assert host.intra.kind is IntraKind.PCIE


@pytest.mark.parametrize(
    ("nics", "expected"),
    [
        (1, [100]),
        (2, [100, 100]),
        (3, [100] * 3),
        (8, [200] * 4),  # two for each device are one of the rate of both
    ],
)
def test_devices_share_out_the_nearest_nics(tmp_path: Path, nics: int, expected: list[int]) -> None:
    inside = "".join(gpu(f"0{i}", i) for i in range(1, 5))
    inside += "".join(nic(f"1{i}", f"mlx5_{i}", 100000) for i in range(nics))
    cluster, notes, _ = read(tmp_path, system(cpu(0, inside)))
    assert [round(nic.bandwidth_Bps * 8 / 1e9) for nic in cluster.hosts[0].nics] == expected
    assert not notes


def test_nics_that_serve_unequal_numbers_are_said(tmp_path: Path) -> None:
    most = bridge("00", "".join(gpu(f"0{i}", i) for i in range(1, 4)) + nic("10", "mlx5_0"))
    _, notes, _ = read(tmp_path, system(cpu(0, most + bridge("20", gpu("21", 4) + nic("22", "mlx5_1")))))
    assert any("devices are not shared out over NICs evenly" in note for note in notes)


def test_a_nic_that_no_gpu_has_nearest_is_left_out(tmp_path: Path) -> None:
    text = system(cpu(0, bridge("00", gpu("01", 0) + nic("03", "mlx5_0"))), cpu(1, nic("13", "storage", 25000)))
    cluster, notes, _ = read(tmp_path, text)
    assert len(cluster.hosts[0].nics) == 1
    assert any("not used: storage" in note for note in notes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (DGX[:900], r"foreign.txt:\d+: is cut short: <\w+> of line \d+ does not end"),
        (DGX.replace("</cpu>", "", 1), "is not valid XML: mismatched tag"),
        ("<system/>", "foreign.txt:1: has no <cpu>"),
        (system(cpu(0, "")), "foreign.txt:1: has no GPU"),
        (DGX.replace("0000:12:", "0000:11:"), "foreign.txt:21: has the device 0000:11:00.0 twice, also on line 19"),
        (DGX.replace('dev="3"', 'dev="2"'), "has GPU 2 twice, also on line 20"),
        (DGX.replace('sm="80"', 'sm="eighty"'), "sm of <gpu> is 'eighty', not a whole number"),
        (DGX.replace('speed="200000"', 'speed="fast"'), "speed of <net> is 'fast'"),
        (DGX.replace('speed="200000"', 'speed="-1"'), "does not say how fast the NIC mlx5_0 is"),
        (DGX.replace('count="6"', ""), "an <nvlink> needs a count"),
        (DGX.replace('affinity="0', 'affinity="0x'), "affinity is '0x"),
        (DGX.replace("16.0 GT/s PCIe", "Unknown speed"), "the link of a GPU has the speed 'Unknown speed'"),
        (DGX.replace("0x20b0", "0x9999"), "does not know GPUs of the number 0x9999"),
        (DGX.replace("0x20b0", "0x2684"), "the GPUs are RTX4090, of which there is no device file"),
        ('<!DOCTYPE s [<!ENTITY a "aaaa">]>' + DGX, "declares a document type s of its own"),
        ("<system><cpu>" + '<pci busid="0">' * 200, "nests more than 100 deep"),
    ],
    ids=range(16),
)
def test_what_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, text)


def test_of_several_hosts_in_one_dump_the_first_is_taken(tmp_path: Path) -> None:
    one = cpu(0, gpu("01", 0) + nic("03", "mlx5_0")).replace("<cpu", '<cpu host_hash="%s"')
    text = system(one % "0xa", one % "0xb")
    cluster, notes, _ = read(tmp_path, text)
    assert len(cluster.hosts) == 2
    assert "the other 1 hosts of the dump are taken to be like the first" in notes[0]
