"""Transports of NICs: presets, what overrides them, graphs, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import networkx as nx
import pytest
from typer.testing import CliRunner

from stanza_sim.base import config
from stanza_sim.base.errors import InputError
from stanza_sim.cli.app import app
from stanza_sim.cluster import Nic, Transport, load_cluster
from stanza_sim.cluster.transports import load_transport
from tests.cluster.fabric_files import load_text


def nic_of(folder: Path, keys: str, more: str = "", rate_Bps: float | None = None) -> Nic:
    text = f"name: t\nhosts: [{{name: n, count: 2, cores: 4, nic: {{{keys}}}}}]\nswitches: [{{name: s}}]\n{more}"
    return load_text(folder, text, rate_Bps=rate_Bps).hosts[0].nic


@pytest.mark.parametrize("name", config.available("transports"))
def test_presets_have_sources(name: str) -> None:
    preset = load_transport(name)
    assert preset.name == name
    stated = preset.model_fields_set - {"name", "description", "sources"}
    for key in stated:
        assert key == "process_inside" or any(key in source for source in preset.sources), key


def test_a_stated_value_overrides_that_of_the_preset(tmp_path: Path) -> None:
    nic = nic_of(tmp_path, "preset: tcp-ec2, rate: 25Gbps")
    assert (nic.transport.preset, nic.transport.stream_Bps, nic.efficiency) == ("tcp-ec2", 5e9 / 8, 0.99)
    assert (nic.latency_s, nic.overhead_s) == (25e-6, 15e-6)
    nic = nic_of(tmp_path, "preset: tcp-ec2, rate: 25Gbps, stream_rate: 8Gbps, latency: 3us, efficiency: 1.0")
    assert (nic.transport.stream_Bps, nic.latency_s, nic.efficiency, nic.overhead_s) == (1e9, 3e-6, 1.0, 15e-6)
    assert nic_of(tmp_path, "preset: mpi, rate: 25Gbps, process_inside: false").transport.process_inside is False
    assert nic_of(tmp_path, "rate: 25Gbps").transport.ideal


def test_a_slow_port_may_have_a_fast_preset(tmp_path: Path) -> None:
    assert nic_of(tmp_path, "preset: tcp, rate: 10Gbps").transport.stream_Bps == 2e9
    assert nic_of(tmp_path, "stream_rate: 5Gbps, rate: 10Gbps", rate_Bps=1e8).transport.stream_Bps == 5e9 / 8


def test_overrides(tmp_path: Path) -> None:
    more = "overrides: {n-0: {nic: {preset: grpc, overhead: 1us}}}\n"
    nic = nic_of(tmp_path, "preset: tcp, rate: 25Gbps", more)
    assert (nic.transport.stream_Bps, nic.transport.process_Bps, nic.overhead_s) == (
        None,
        load_transport("grpc").process_rate,
        1e-6,
    )
    nic = nic_of(tmp_path, "preset: tcp, rate: 25Gbps", "overrides: {n-0: {nic: {process_rate: 1GB/s}}}\n")
    assert (nic.transport.stream_Bps, nic.transport.process_Bps) == (2e9, 1e9)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ("preset: tpc", "unknown preset 'tpc'"),
        ("preset: tpc", "known: grpc, "),
        ("stream_rate: 26Gbps", "stream_rate of 26 Gbps is above the rate"),
        ("process_rate: 4GB/s", "process_rate of 32 Gbps is above the rate"),
        ("stream_rate: 5", "5 has no unit"),
        ("stream_rate: -5Gbps", "negative"),
        ("process_rate: 0GB/s", "zero"),
        ("process_rate: 5GB", "GB is a size"),
        ("process_inside: perhaps", "process_inside"),
        ("message_core: 20", "20 has no unit"),
        ("message_core: -20us", "negative"),
        ("byte_core: 0.3", "0.3 has no unit"),
        ("byte_core: -1ns", "negative"),
    ],
)
def test_bad_input(tmp_path: Path, keys: str, says: str) -> None:
    with pytest.raises(InputError, match=r"t\.yaml:2: hosts\.0\.nic") as error:
        nic_of(tmp_path, f"rate: 25Gbps, {keys}")
    assert says in str(error.value)


def graph(folder: Path, edge: dict[str, object], trunk: dict[str, object] | None = None) -> Path:
    nodes: list[dict[str, object]] = [{"id": h, "kind": "host", "cores": 4} for h in ("a", "b")]
    nodes += [{"id": s, "kind": "switch"} for s in ("s", "t")]
    edges = [
        {"source": "a", "target": "s", "rate": "25Gbps", **edge},
        {"source": "b", "target": "t", "rate": "25Gbps"},
        {"source": "s", "target": "t", "rate": "25Gbps", **(trunk or {})},
    ]
    path = folder / "g.json"
    path.write_text(json.dumps({"nodes": nodes, "edges": edges}))
    return path


def test_graphs_state_transports(tmp_path: Path) -> None:
    first, second = load_cluster(graph(tmp_path, {"preset": "tcp", "byte_core": "1ns", "overhead": "2us"})).hosts
    assert (first.nic.transport.stream_Bps, first.nic.transport.byte_core_s) == (2e9, 1e-9)
    assert (first.nic.latency_s, first.nic.receive_latency_s, first.nic.overhead_s) == (25e-6, None, 2e-6)
    assert second.nic.transport.ideal


def test_graphml_states_transports(tmp_path: Path) -> None:
    graph = nx.Graph()
    graph.add_nodes_from(["a", "b"], kind="host", cores=4)
    graph.add_node("s", kind="switch")
    graph.add_edge("a", "s", rate="25Gbps", process_rate="1GB/s", process_inside=True, message_core="5us")
    graph.add_edge("b", "s", rate="25Gbps")
    nx.write_graphml(graph, tmp_path / "g.graphml")
    first, second = load_cluster(tmp_path / "g.graphml").hosts
    assert first.nic.transport == Transport(process_Bps=1e9, process_inside=True, message_core_s=5e-6)
    assert second.nic.transport.ideal


@pytest.mark.parametrize(
    ("edge", "trunk", "says"),
    [
        ({"preset": "udp"}, {}, "unknown preset 'udp'"),
        ({"stream_rate": "30Gbps"}, {}, "above the rate"),
        ({}, {"preset": "tcp"}, "a transport is for an edge between a host and a switch"),
    ],
)
def test_bad_graphs(tmp_path: Path, edge: dict[str, object], trunk: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        load_cluster(graph(tmp_path, edge, trunk))


def test_the_documentation_lists_all_that_is_shipped() -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "clusters.md").read_text()
    for name in config.available("transports"):
        assert f"`{name}`" in page, name
    for path in (Path(__file__).parents[2] / "topologies").glob("*.yaml"):
        assert f"[{path.stem}](../../topologies/{path.name})" in page, path.stem


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ec2-p2-16xlarge", ["tcp-ec2: at most 10 Gbps a message", "between sockets 30 GB/s", "updates at 5 GB/s"]),
        ("dgx-1-v100", ["rdma", "6.1 GB/s between a device and host memory"]),
    ],
)
def test_show_cluster_says_what_is_in_force(name: str, says: list[str]) -> None:
    shown = CliRunner().invoke(app, ["show", "cluster", name], env={"COLUMNS": "300"})
    assert shown.exit_code == 0
    for text in says:
        assert text in shown.stdout
