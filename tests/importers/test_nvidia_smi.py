"""The matrix of `nvidia-smi topo -m`: what becomes of it, what is asked for, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from stanza_sim.base.errors import InputError
from stanza_sim.cluster.hardware import IntraKind
from stanza_sim.importers.looks_like import Foreign
from stanza_sim.importers.nvidia_smi import import_nvidia_smi
from tests.importers.foreign_files import imported

GB = 1e9
TAIL = "\nLegend:\n\n  X    = Self\n  NV#  = Connection traversing a bonded set of # NVLinks\n\nNIC Legend:\n\n"


def matrix(cells: str, *, nics: int = 0, numa: str = "", tabs: bool = False) -> str:
    """A matrix of rows of cells; a digit of `numa` for each GPU is its node, which has 8 threads."""
    rows = [row.split() for row in cells.strip().split("\n")]
    names = [f"GPU{i}" for i in range(len(rows) - nics)] + [f"NIC{i}" for i in range(nics)]
    gap = "\t" if tabs else "   "
    lines = [gap + gap.join(names) + (f"{gap}CPU Affinity{gap}NUMA Affinity{gap}GPU NUMA ID" if numa else "")]
    for i, row in enumerate(rows):
        after = [f"{8 * int(numa[i])}-{8 * int(numa[i]) + 7}", numa[i], "N/A"] if i < len(numa) else []
        lines.append(gap.join([names[i], *row, *after]))
    legend = "".join(f"  NIC{i}: mlx5_{i}\n" for i in range(nics))
    return "\n".join(lines) + "\n" + TAIL + legend


SWITCHED = matrix("X NV12 NV12 NV12\nNV12 X NV12 NV12\nNV12 NV12 X NV12\nNV12 NV12 NV12 X", numa="0011")
PAIRS = matrix("X NV4 SYS SYS\nNV4 X SYS SYS\nSYS SYS X NV4\nSYS SYS NV4 X")
PCI = """
 X   PIX SYS SYS PIX SYS
 PIX X   SYS SYS PIX SYS
 SYS SYS X   PXB SYS PXB
 SYS SYS PXB X   SYS PXB
 PIX PIX SYS SYS X   SYS
 SYS SYS PXB PXB SYS X
"""


def read(tmp_path: Path, text: str, **asked: object):
    return imported(tmp_path, text, Foreign.NVIDIA_SMI, import_nvidia_smi, **{"device": "A100", **asked})


def test_nvlinks_over_a_switch(tmp_path: Path) -> None:
    cluster, notes, text = read(tmp_path, SWITCHED)
    host = cluster.hosts[0]
    assert host.intra is not None
    assert host.devices == ("A100",) * 4
    assert (host.cores, host.intra.kind, host.intra.bandwidth_Bps) == (16, IntraKind.NVLINK, 12 * 20 * GB)
    assert host.intra.host_link_Bps == 24 * GB
    assert "12 NVLinks of 20GB/s over a switch" in text
    assert not notes


def test_nvlinks_from_gpu_to_gpu_add_up(tmp_path: Path) -> None:
    """As in a DGX-1: each GPU has six links in all, to some of the others."""
    text = matrix("X NV2 NV2 SYS\nNV2 X SYS NV2\nNV2 SYS X NV2\nSYS NV2 NV2 X")
    cluster, notes, text = read(tmp_path, text, device="V100")
    assert cluster.hosts[0].intra is not None
    assert cluster.hosts[0].intra.bandwidth_Bps == 4 * 20 * GB
    assert any("not all of which have one" in note for note in notes)
    assert "assumption: the file does not say; --cores" in text


def test_nvlinks_that_join_only_pairs_are_not_used(tmp_path: Path) -> None:
    for rates in ({}, {"nvlink": 0.0}):
        cluster, notes, _ = read(tmp_path, PAIRS, rates=rates)
        assert cluster.hosts[0].intra is not None and cluster.hosts[0].intra.kind is IntraKind.PCIE
        assert any("NVLink, which does not join all GPUs, is not used" in note for note in notes)


@pytest.mark.parametrize("tabs", [False, True])
def test_a_host_with_pci_has_switches_sockets_and_nics(tmp_path: Path, tabs: bool) -> None:
    text = matrix(PCI, nics=2, numa="0011", tabs=tabs)
    rates = {"nic": 100e9 / 8, "socket": 20 * GB}
    cluster, notes, text = read(tmp_path, text, rates=rates, hosts=3)
    host = cluster.hosts[2]
    assert host.intra is not None
    tree = host.intra.tree
    assert tree is not None
    assert tree.switches == ((0, 1), (2, 3))
    assert (tree.sockets, tree.socket_Bps, tree.nics_at_switches) == (2, 20 * GB, True)
    assert (host.cores, len(host.nics), host.nic.bandwidth_Bps) == (16, 2, 100e9 / 8)
    assert "mlx5_1" in text
    assert not notes


def test_without_numa_nodes_sys_tells_sockets(tmp_path: Path) -> None:
    cluster, notes, _ = read(tmp_path, matrix(PCI, nics=2), rates={"nic": 1e9})
    assert cluster.hosts[0].intra is not None
    assert cluster.hosts[0].intra.tree is not None
    assert cluster.hosts[0].intra.tree.sockets == 2
    assert any("nothing limits what passes between sockets" in note for note in notes)


def test_underlined_headers_old_words_and_several_equal_matrices(tmp_path: Path) -> None:
    text = "$ nvidia-smi topo -m\n\t\x1b[4mGPU0\tGPU1\tmlx5_0\tCPU Affinity\x1b[0m\n"
    text += "GPU0\t X \tSOC\tPHB\t0-3,8-11\nGPU1\tSOC\t X \tSOC\t\nmlx5_0\tPHB\tSOC\t X \t\n"
    cluster, _, _ = read(tmp_path, text + TAIL + text, rates={"nic": 1e9}, device="K80")
    host = cluster.hosts[0]
    assert host.intra is not None
    assert (host.cores, host.intra.kind, host.intra.bandwidth_Bps) == (8, IntraKind.PCIE, 12 * GB)


@pytest.mark.parametrize(
    ("text", "message", "asked"),
    [
        (SWITCHED, "foreign.txt:1: does not say which GPUs they are", {"device": None}),
        (SWITCHED, "foreign.txt:2: 12 NVLinks, but V100 has no more than 6", {"device": "V100"}),
        (SWITCHED, "there is no level 'leaf'", {"rates": {"leaf": 1.0}}),
        (SWITCHED, "has no NIC, and 2 hosts need one", {"hosts": 2}),
        (
            SWITCHED.replace("GPU3   NV12   NV12   NV12", "GPU3   NV12   NV12   NV6"),
            r"NV12 from GPU2 to GPU3, but NV6",
            {},
        ),
        (
            SWITCHED.replace("NV12", "FAST", 1),
            "foreign.txt:2: 'FAST' is not what `topo -m` prints between GPU0 and GPU1",
            {},
        ),
        (SWITCHED.replace("GPU1   NV12   X", "GPU1   X   NV12"), "foreign.txt:3: has X between GPU1 and GPU0", {}),
        (SWITCHED.replace("GPU3   NV12", "GPU2   NV12"), "foreign.txt:5: has two rows GPU2, the other on line 4", {}),
        (SWITCHED.replace("\nGPU3", "\nGPU9"), "foreign.txt:5: has a row GPU9 without a column", {}),
        (SWITCHED[: SWITCHED.index("GPU3   NV")], "foreign.txt:4: is cut short: there is no row for GPU3", {}),
        (SWITCHED[: SWITCHED.index("NV12   X   8")], "the row of GPU3 ends before GPU2", {}),
        (SWITCHED.replace("0-7", "0-x"), "CPU Affinity of GPU0 is '0-x'", {}),
        (SWITCHED + SWITCHED.replace("NV12", "NV6"), r"14: has 2 matrices \(lines 1, 14\) that differ", {}),
        (SWITCHED, "there is no matrix 2: the file has 1", {"matrix": 2}),
        (SWITCHED, "has no use: NVLink joins the GPUs", {"rates": {"socket": 1e9}}),
        (matrix(PCI, nics=2), "foreign.txt:6: does not say how fast the NICs are: mlx5_0, mlx5_1", {}),
        (matrix("X SYS\nSYS X"), "has no NVLink between GPUs", {"rates": {"nvlink": 1e9}}),
        (PAIRS, "foreign.txt:2: has NVLink that does not join all GPUs", {"rates": {"nvlink": 1e9}}),
    ],
    ids=range(18),
)
def test_what_is_refused(tmp_path: Path, text: str, message: str, asked: dict[str, object]) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, text, **asked)
