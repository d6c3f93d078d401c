"""GraphML and node-link JSON: the same cluster as in YAML, or a clear error."""

from __future__ import annotations

import json
from pathlib import Path

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stanza_sim.base.errors import InputError
from stanza_sim.cluster import Cluster, load_cluster

YAML = """
name: t
hosts:
  - {name: h, count: 2, cores: 4, devices: [V100], nic: {rate: 10Gbps, latency: 5us, overhead: 2us, efficiency: 0.5}}
  - {name: slow, cores: 2, nic: {rate: 1Gbps}}
switches: [{name: a, backplane: 50Gbps}, {name: b}]
links:
  - {from: h, to: a}
  - {from: slow, to: b}
  - {from: a, to: b, rate: 20Gbps, latency: 1us}
routing: spread
"""


def _graph() -> nx.Graph:
    graph = nx.Graph(name="t", routing="spread")
    for i in range(2):
        graph.add_node(f"h-{i}", kind="host", cores=4, devices="V100")
    graph.add_node("slow", kind="host", cores=2)
    graph.add_node("a", kind="switch", backplane="50Gbps", label="drawn", x=1.5)
    graph.add_node("b", kind="switch")
    for i in range(2):
        graph.add_edge(f"h-{i}", "a", rate="10Gbps", latency="5us", overhead="2us", efficiency=0.5)
    graph.add_edge("b", "slow", rate="1Gbps")
    graph.add_edge("a", "b", rate="20Gbps", latency="1us")
    return graph


def _write(folder: Path, data: object) -> Path:
    path = folder / "t.json"
    path.write_text(json.dumps(data))
    return path


def _same(a: Cluster, b: Cluster) -> None:
    assert (a.name, a.hosts, a.switches, a.links, a.placement) == (b.name, b.hosts, b.switches, b.links, b.placement)
    assert a.fabric == b.fabric


@pytest.mark.parametrize("form", ["graphml", "edges", "links"])
def test_a_graph_is_the_cluster_that_yaml_is(tmp_path: Path, form: str) -> None:
    (tmp_path / "t.yaml").write_text(YAML)
    wanted = load_cluster(tmp_path / "t.yaml")
    if form == "graphml":
        path = tmp_path / "t.graphml"
        nx.write_graphml(_graph(), path)
    else:
        path = _write(tmp_path, nx.node_link_data(_graph(), edges=form))
    _same(load_cluster(path), wanted)
    _same(load_cluster(str(path), rate_Bps=3e9), load_cluster(tmp_path / "t.yaml", rate_Bps=3e9))
    assert load_cluster(path.name, beside=tmp_path / "experiment.yaml").world_size == 3


def test_directed_graphs_and_several_nics(tmp_path: Path) -> None:
    graph = nx.MultiDiGraph(routing="ecmp", seed=3)
    graph.add_node(1, kind="host", name="one", cores=1, devices=["V100", "V100"])
    graph.add_node(2, kind="host", name="two", cores=1)
    graph.add_node(3, kind="switch", name="s")
    for rate in ("4Gbps", "8Gbps"):
        graph.add_edge(1, 3, rate=rate, overhead="1us")
        graph.add_edge(3, 1, rate="2Gbps", latency="1us")
    graph.add_edge(3, 2, rate="16Gbps")
    graph.add_edge(2, 3, rate="16Gbps")
    cluster = load_cluster(_write(tmp_path, nx.node_link_data(graph, edges="edges")))
    assert [host.name for host in cluster.hosts] == ["one", "two"]
    assert [link.bandwidth_Bps for link in cluster.links] == [5e8, 2.5e8, 1e9, 2.5e8, 2e9, 2e9]
    assert [k for k, _ in cluster.usage(0, 1, src_device=1)[0]] == [2, 5]
    assert cluster.hosts[0].nic.overhead_s == 1e-6
    assert (cluster.usage(1, 0)[1], cluster.usage(0, 1)[1]) == (1e-6, 0.0)
    assert cluster.fabric.routing.seed == 3


def test_hosts_that_forward(tmp_path: Path) -> None:
    graph = nx.cycle_graph(5)
    nx.set_node_attributes(graph, "host", "kind")
    nx.set_node_attributes(graph, 1, "cores")
    nx.set_edge_attributes(graph, "8Gbps", "rate")
    graph.graph["forwarding"] = True
    nx.write_graphml(graph, tmp_path / "t.graphml")
    cluster = load_cluster(tmp_path / "t.graphml")
    assert [cluster.links[k].name for k in cluster.route(0, 2)] == ["0.tx", "0->1", "1->2", "2.rx"]
    assert cluster.links[0].bandwidth_Bps == 2e9
    orbits = cluster.host_orbits()
    assert orbits is not None
    assert set(orbits.host_class) == {0}


def _changed(change: dict[str, object]) -> dict[str, object]:
    data = nx.node_link_data(_graph(), edges="edges")
    for key, value in change.items():
        *path, last = key.split(".")
        here = data
        for part in path:
            here = here[int(part)] if part.isdigit() else here[part]
        if value is None:
            del here[last]
        else:
            here[int(last) if last.isdigit() else last] = value
    return data


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"nodes.0.kind": None}, "node h-0: the attribute 'kind' is missing"),
        ({"nodes.0.kind": "router"}, "node h-0: unknown kind 'router'"),
        ({"nodes.0.kind": ["x"]}, "node h-0: unknown kind"),
        ({"nodes.0.cores": None}, "node h-0: the key 'cores' is missing"),
        ({"nodes.0.cores": "many"}, "node h-0: cores: is a text"),
        ({"nodes.0.core": 3}, "node h-0: core: unknown key"),
        ({"nodes.0.devices": "V1000"}, "node h-0: unknown device 'V1000'"),
        ({"nodes.0.intra": {"kind": "nvlink", "rate": "1GB/s"}, "nodes.0.devices": ""}, "intra joins devices"),
        ({"nodes.0.name": "slow"}, "the name 'slow' is used twice"),
        ({"nodes.0.id": "h-1"}, "two nodes with the id 'h-1'"),
        ({"nodes.0.id": None}, "nodes.0: a node needs an id"),
        ({"nodes.0": 3}, "nodes.0: a node needs an id"),
        ({"nodes": 3}, "holds no list of nodes"),
        ({"edges": None}, "needs a list `edges` or `links`"),
        ({"links": []}, "one of the two only"),
        ({"edges.0.source": "q"}, "edges.0: source is no node: 'q'"),
        ({"edges.0.target": None}, "edges.0: target is no node: None"),
        ({"edges.0.target": "h-0"}, "joins a node to itself"),
        ({"edges.0": 3}, "edges.0: an edge is a mapping"),
        ({"edges.0.rate": None}, "edge h-0 - a: the key 'rate' is missing"),
        ({"edges.0.rate": "0Gbps"}, "edge h-0 - a: rate: '0Gbps' is zero"),
        ({"edges.0.rate": 7}, "rate: 7 has no unit"),
        ({"edges.0.efficiency": 2}, "edge h-0 - a: efficiency"),
        ({"edges.1.speed": 2}, "speed: unknown key"),
        ({"edges.3.overhead": "1us"}, "overhead is for an edge between a host and a switch"),
        ({"edges.3.target": "h-0", "edges.3.source": "h-1"}, "are not connected"),
        ({"graph.routing": "explicit"}, "graph: routing"),
        ({"graph.seed": 3}, "graph.seed: spread routing takes no seed"),
        ({"graph.forwarding": True}, "hosts forward only where there is no switch"),
        ({"graph.ranks_per_host": 2}, "more ranks on h-0 than its 1 devices"),
        ({"graph": 3}, "graph is not a mapping"),
        ({"directed": "yes"}, "directed is neither true nor false"),
        ({"directed": True}, "has no opposite"),
    ],
)
def test_graphs_that_are_wrong(tmp_path: Path, change: dict[str, object], says: str) -> None:
    with pytest.raises(InputError) as caught:
        load_cluster(_write(tmp_path, _changed(change)))
    assert says in str(caught.value)
    assert "t.json" in str(caught.value)


def test_edges_that_repeat_or_lead_nowhere(tmp_path: Path) -> None:
    data = nx.node_link_data(_graph(), edges="edges")
    data["edges"].append(dict(data["edges"][-1]))
    with pytest.raises(InputError, match="linked twice"):
        load_cluster(_write(tmp_path, data))
    with pytest.raises(InputError, match="has no host"):
        load_cluster(_write(tmp_path, {"nodes": [{"id": 1, "kind": "switch"}], "edges": []}))
    with pytest.raises(InputError, match="nodes=3: a graph has the hosts that it has"):
        load_cluster(_write(tmp_path, nx.node_link_data(_graph(), edges="edges")), nodes=3)
    with pytest.raises(InputError, match="no such file"):
        load_cluster(tmp_path / "none.graphml")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.graphml", b""),
        ("t.graphml", b"\x00\xff\xfe"),
        ("t.graphml", b"<graphml>"),
        ("t.graphml", b"<html></html>"),
        ("t.graphml", b'<graphml xmlns="http://graphml.graphdrawing.org/xmlns"></graphml>'),
        ("t.json", b""),
        ("t.json", b"[1, 2"),
        ("t.json", b"\xff\xfe\x00"),
        ("t.json", b"[]"),
        ("t.json", b'"text"'),
        ("t.json", b"[" * 100_000),
    ],
)
def test_garbage_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=name):
        load_cluster(tmp_path / name)


@given(where=st.integers(0, 5000), cut=st.integers(0, 40), add=st.text(max_size=8))
@settings(max_examples=150)
def test_damaged_files_load_or_are_refused(
    tmp_path_factory: pytest.TempPathFactory, where: int, cut: int, add: str
) -> None:
    folder = tmp_path_factory.mktemp("t")
    nx.write_graphml(_graph(), folder / "t.graphml")
    _write(folder, nx.node_link_data(_graph(), edges="edges"))
    for path in (folder / "t.graphml", folder / "t.json"):
        text = path.read_text()
        at = where % len(text)
        path.write_text(text[:at] + add + text[at + cut :], encoding="utf-8", errors="surrogatepass")
        try:
            load_cluster(path)
        except InputError as error:
            assert path.name in str(error)
