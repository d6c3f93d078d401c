"""Which GPU is what a device file means, and which topology fits the GPUs that are here."""

from __future__ import annotations

from pathlib import Path

import pytest

from stanza_sim.base.errors import InputError
from stanza_sim.cluster import load_cluster
from stanza_sim.cluster.device import load_device
from stanza_sim.execute.rank.devices import GpuInfo, form_factor
from stanza_sim.execute.start import fit, start
from stanza_sim.execute.start.environment import Place
from stanza_sim.execute.start.protocol import RankInfo
from tests.execute.start.worlds import ALL, PCIE, SXM, V100, gpu, gpus


@pytest.mark.parametrize(
    ("name", "form"),
    [
        (SXM, "SXM"),
        (PCIE, "PCIe"),
        ("NVIDIA H100 NVL", "NVL"),
        (f"{SXM} MIG 1g.10gb", "MIG 1g.10gb"),
        ("NVIDIA A100-SXM4-40GB", "SXM"),
        ("NVIDIA A100-PCIE-40GB", "PCIe"),
        ("NVIDIA A100 80GB PCIe", "PCIe"),
        (V100, "SXM"),
        ("Tesla K80", None),
        ("NVIDIA H200", None),
    ],
)
def test_the_form_of_a_part_follows_from_its_name(name: str, form: str | None) -> None:
    assert form_factor(name) == form


@pytest.mark.parametrize(
    ("device", "name", "called"),
    [
        ("H100", SXM, True),
        ("H100", PCIE, True),
        ("H100", "NVIDIA GH200 480GB", False),
        ("H100", "NVIDIA H200", False),
        ("A100", "NVIDIA A100-SXM4-40GB", True),
        ("A100", "NVIDIA RTX A1000", False),
        ("RTX3090", "NVIDIA GeForce RTX 3090", True),
        ("RTX3090", "NVIDIA GeForce RTX 3090 Ti", False),
        ("P100", "Tesla P100-SXM2-16GB", True),
        ("V100", V100, True),
    ],
)
def test_a_device_is_called_by_the_words_of_its_name(device: str, name: str, called: bool) -> None:
    assert fit.is_called(load_device(device), name) is called


def test_what_differs_is_named() -> None:
    spec = load_device("H100")
    assert fit.differences(spec, gpu("a")) == []
    assert fit.differences(spec, GpuInfo(index=0, uuid=None, name="H100")) == []
    assert fit.differences(spec, gpu("a", PCIE)) == [
        "it is a PCIe part, not SXM",
        "its memory moves 2039 GB/s, not 3350",
    ]
    nvl = GpuInfo(index=0, uuid="a", name="NVIDIA H100 NVL", memory_nbytes=100_484_644_864, bandwidth_Bps=3.938e12)
    assert fit.differences(spec, nvl) == [
        "it is a NVL part, not SXM",
        "it has 100 GB of memory, not 80",
        "its memory moves 3938 GB/s, not 3350",
    ]


def test_a_slice_needs_a_device_file_of_its_own(tmp_path: Path) -> None:
    part = gpu("a", f"{SXM} MIG 1g.10gb")
    with pytest.raises(InputError, match=r"rank 3 has MIG 1g.10gb, a slice.*; topology t says a whole H100"):
        fit.check_gpu(3, part, "H100", "t")
    text = Path("stanza_sim/data/devices/K80.yaml").read_text().partition("# Written by")[0]
    path = tmp_path / "slice.yaml"
    path.write_text(text.replace("name: K80", "name: slice\nreported: [MIG 1g.10gb]"))
    assert fit.check_gpu(3, part, str(path), "t") == []
    with pytest.raises(InputError, match="rank 3 has a Tesla V100-SXM2-16GB, topology t says slice"):
        fit.check_gpu(3, gpu("a", V100), str(path), "t")


@pytest.mark.parametrize(
    ("line", "message"), [("form: OAM", "form"), ("reported: ['']", "reported"), ("reported: 3", "reported")]
)
def test_a_device_file_that_states_them_wrongly_is_refused(tmp_path: Path, line: str, message: str) -> None:
    text = Path("stanza_sim/data/devices/K80.yaml").read_text().partition("# Written by")[0]
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace("name: K80", f"name: mine\n{line}"))
    with pytest.raises(InputError, match=message):
        load_device(str(path))


@pytest.mark.parametrize(
    ("hosts", "option"),
    [
        ([ALL[:1]], "--set cluster=hgx-h100-1"),
        ([ALL[:3]], "--set cluster=hgx-h100-8 --set nodes=3"),
        ([ALL], "--set cluster=hgx-h100-8"),
        ([ALL] * 2, "--set cluster=hgx-h100 --set nodes=2"),
        ([ALL] * 4, "--set cluster=hgx-h100"),
        ([gpus("a", name=V100)] * 3, "--set cluster=ec2-p3-10 --set nodes=3"),
        ([ALL, ALL[:3]], None),
        ([gpus("a", name="NVIDIA L4")], None),
        ([gpus("a", name=f"{SXM} MIG 1g.10gb")], None),
        ([], None),
    ],
)
def test_the_topology_that_fits_is_named_and_has_a_rank_on_each(hosts: list[tuple[GpuInfo, ...]], option: str) -> None:
    assert fit.fitting(hosts) == option
    if option is None:
        return
    words = dict(word.split("=") for word in option.split() if "=" in word)
    cluster = load_cluster(words["cluster"], nodes=int(words["nodes"]) if "nodes" in words else None)
    assert [len(cluster.ranks_on(h)) for h in range(len(cluster.hosts))] == [len(g) for g in hosts]


@pytest.mark.parametrize("hosts", [[gpus("a", "b", name=V100)], [ALL, ALL[:3]], [ALL[:2]] * 2])
def test_where_none_fits_the_lines_that_are_shown_load(tmp_path: Path, hosts: list[tuple[GpuInfo, ...]]) -> None:
    hint = fit.fitting_hint(hosts)
    assert hint.startswith("no shipped topology fits; write one")
    path = tmp_path / "mine.yaml"
    path.write_text("\n".join(line.strip() for line in hint.splitlines()[1:]))
    cluster = load_cluster(path)
    assert [len(cluster.ranks_on(h)) for h in range(len(cluster.hosts))] == [len(g) for g in hosts]


def test_a_gpu_without_data_is_named() -> None:
    hint = fit.fitting_hint([gpus("a", name="NVIDIA L4")])
    assert "the data of NVIDIA L4 as NAME in devices/NAME.yaml" in hint
    assert "devices: [NAME]" in hint


def test_a_machine_with_gpus_is_told_where_only_cores_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "on_machine", lambda: ALL[:1])
    assert fit.note_on_cores(load_cluster("laptop")) == (
        f"laptop computes on cores only; this machine has 1 x {SXM}. To compute on it, use --set cluster=hgx-h100-1"
    )
    assert fit.note_on_cores(load_cluster("hgx-h100-1")) is None
    monkeypatch.setattr(fit, "on_machine", lambda: ())
    assert fit.note_on_cores(load_cluster("laptop")) is None


def test_one_machine_with_gpus_is_told_its_topology(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "on_machine", lambda: ALL)
    with pytest.raises(
        InputError, match=r"(?s)32 ranks on 4 hosts, this is one machine.*use --set cluster=hgx-h100-8 h"
    ):
        start.check_ranks(load_cluster("hgx-h100"), None)
    with pytest.raises(InputError, match=r"cluster=laptop --set nodes=4"):
        start.check_ranks(load_cluster("examples/cluster.yaml", nodes=4), None)


@pytest.mark.parametrize(
    ("cluster", "nodes", "started", "hint"),
    [
        ("laptop", 4, 3, "use --set nodes=3, or start 4 ranks"),
        ("hgx-h100-8", None, 4, "use --set nodes=4, or start 8 ranks"),
        ("hgx-h100", 4, 16, r"use --set nodes=2 \(hosts, of 8 ranks each\), or start 32 ranks"),
        ("hgx-h100", 1, 4, "start 8 ranks: it has 8 on each host, and `nodes` counts hosts"),
    ],
)
def test_a_wrong_number_of_ranks_is_told_what_nodes_counts(cluster: str, nodes: int, started: int, hint: str) -> None:
    here = Place(launcher="torchrun", rank=0, world_size=started, local_rank=0, address="a", port=1)
    with pytest.raises(InputError, match=hint):
        start.check_ranks(load_cluster(cluster, nodes=nodes), here)


def test_ranks_on_other_hosts_are_told_which_topology_has_them_so() -> None:
    infos = [RankInfo(host=h, device=f"cuda {SXM}", gpu=gpu(f"{i}")) for i, h in enumerate("aaaaaaaabbbbbbbb")]
    with pytest.raises(InputError, match=r"(?s)16 ranks run on 2 hosts \(a, b\).*--set cluster=hgx-h100 --set nodes=2"):
        start.check_hosts(load_cluster("one-gpu-shared", nodes=16), infos)
