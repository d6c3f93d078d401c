"""Devices of a user's own, in a `devices/` folder beside the topology, beside the experiment, or here."""

from __future__ import annotations

from pathlib import Path

import pytest

import stanza_sim
import stanza_sim as ss
from stanza_sim.base.errors import InputError
from stanza_sim.cluster import load_cluster
from stanza_sim.cluster.device import load_device

SHIPPED = Path(stanza_sim.__file__).parent / "data" / "devices" / "P100.yaml"
TOPOLOGY = """name: mine
hosts: [{name: node, count: 2, cores: 16, devices: [OWN], nic: {rate: 25Gbps}}]
switches: [{name: switch}]
"""
EXPERIMENT = """name: e
cluster: topologies/mine.yaml
batch_per_worker: 8
models: [alexnet]
strategies: [local]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("here", "topologies", "topologies/devices", "devices", "here/devices"):
        (tmp_path / name).mkdir()
    (tmp_path / "topologies" / "mine.yaml").write_text(TOPOLOGY.replace("OWN", "B999"))
    (tmp_path / "e.yaml").write_text(EXPERIMENT)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def put(folder: Path, memory: str = "16GB") -> Path:
    path = folder / "B999.yaml"
    text = SHIPPED.read_text().replace("name: P100", "name: B999")
    path.write_text(text.replace("memory: 16GB", f"memory: {memory}"))
    return path


def test_a_device_beside_the_topology_is_found(folder: Path) -> None:
    path = put(folder / "topologies" / "devices")
    cluster = load_cluster(folder / "topologies" / "mine.yaml")
    assert cluster.hosts[0].devices == (str(path.resolve()),)  # it is found again from anywhere
    assert load_device(cluster.hosts[0].devices[0]).name == "B999"


def test_the_topology_is_nearer_than_the_experiment_and_that_than_here(folder: Path) -> None:
    topology = folder / "topologies" / "mine.yaml"
    for k, place in enumerate(("here/devices", "devices", "topologies/devices"), start=1):
        put(folder / place, memory=f"{k}GB")
        cluster = load_cluster(topology, experiment=folder / "e.yaml")
        assert load_device(cluster.hosts[0].devices[0]).memory_nbytes == k * 10**9


def test_a_run_finds_a_device_beside_its_experiment_and_calls_it_by_its_name(folder: Path) -> None:
    put(folder / "devices")
    (row,) = ss.load_experiment(folder / "e.yaml").run().rows
    assert row.prediction is not None and row.prediction.bottleneck.startswith("node-0 B999 (worker")


def test_a_device_that_is_nowhere_names_every_folder(folder: Path) -> None:
    put(folder / "devices").rename(folder / "devices" / "B998.yaml")
    expected = r"mine\.yaml:2: .*unknown device 'B999'\n  did you mean B998\?; looked in "
    with pytest.raises(InputError, match=expected) as caught:
        load_cluster(folder / "topologies" / "mine.yaml", experiment=folder / "e.yaml")
    for place in ("topologies/devices/, ", f"{folder}/devices/, ", " devices/ and among those shipped"):
        assert place in str(caught.value)


def test_a_path_is_tried_beside_the_topology_the_experiment_and_here(folder: Path) -> None:
    topology = folder / "topologies" / "mine.yaml"
    topology.write_text(TOPOLOGY.replace("OWN", "parts/B999.yaml"))
    with pytest.raises(InputError, match="no such file") as caught:
        load_cluster(topology, experiment=folder / "e.yaml")
    looked = f"looked for {folder}/topologies/parts/B999.yaml, {folder}/parts/B999.yaml, parts/B999.yaml"
    assert looked in str(caught.value)
    (folder / "parts").mkdir()
    put(folder / "parts")
    cluster = load_cluster(topology, experiment=folder / "e.yaml")
    assert cluster.hosts[0].devices == (str((folder / "parts" / "B999.yaml").resolve()),)
