"""`stanza-sim import nccl-topo` and its like as a user meets them: what goes where, and nothing half written."""

from __future__ import annotations

from pathlib import Path

import pytest

from stanza_sim import load_cluster
from tests.cli.test_cli import call, refused
from tests.importers.foreign_files import VIRTUAL, cpu, gpu, nic, system

DUMP = system(cpu(0, gpu("01", 0) + gpu("02", 1) + nic("03", "mlx5_0") + VIRTUAL))


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    path = tmp_path / "dump.xml"
    path.write_text(DUMP)
    return path


def test_the_cluster_goes_to_stdout_or_to_a_file_and_notes_to_stderr(dump: Path, tmp_path: Path) -> None:
    done = call("import", "nccl-topo", dump)
    assert done.exit_code == 0, done.output
    assert "\nname: dump\n" in done.stdout
    assert f"{dump}:10-11: 2 virtual NICs dropped" in done.stderr
    target = tmp_path / "mine.yaml"
    done = call("import", "nccl-topo", dump, "-o", target, "--hosts", 3, "--rate", "nic=50Gbps")
    assert (done.exit_code, done.stdout) == (0, "")
    cluster = load_cluster(target)
    assert (cluster.name, len(cluster.hosts), cluster.hosts[0].nic.bandwidth_Bps) == ("mine", 3, 50e9 / 8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dump.xml", "mine.yaml"]


def test_what_is_refused_leaves_the_old_file(dump: Path, tmp_path: Path) -> None:
    target = tmp_path / "mine.yaml"
    target.write_text("mine\n")
    for more, message in (
        (["--rate", "nic"], "'nic' is not LEVEL=RATE"),
        (["--rate", "nic=5"], "'5' has no unit"),
        (["--rate", "pcie=none"], "'none' is not a rate"),
        (["--rate", "nic=5Gbps", "--rate", "nic=6Gbps"], "nic is stated twice"),
        (["--rate", "leaf=5Gbps"], "there is no level 'leaf'"),
        (["--device", "A1000"], "unknown device 'A1000'"),
        (["--device", "cpu"], "cpu is not a device to list"),
        (["-o", tmp_path / "mine.json"], "is no name of a cluster file"),
        (["-o", tmp_path], "is a folder"),
    ):
        assert message in refused("import", "nccl-topo", dump, "-o", target, *more)
    dump.write_text(DUMP[:-20])
    assert "is cut short" in refused("import", "nccl-topo", dump, "-o", target)
    dump.write_text("SwitchName=s0 Nodes=n0\n")
    told = refused("import", "nccl-topo", dump, "-o", target)
    assert "looks like a Slurm topology.conf, not an NCCL topology" in told
    assert f"stanza-sim import slurm {dump}" in told
    assert target.read_text() == "mine\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dump.xml", "mine.yaml"]
