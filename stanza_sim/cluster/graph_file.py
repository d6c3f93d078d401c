"""Reads a cluster from a graph: GraphML, or node-link JSON whose edges are called `links` or `edges`.

Every node has `kind: host` or `kind: switch`; a host has `cores` and, if it likes, `devices` (a list or, in GraphML, a
text such as `V100,V100`), `device_speed`, `device_spread`, `reduce_rate`, `intra`, `losses` and `loopback` as in
YAML (the last three in JSON only), a switch `backplane`. A node is called what its `name` says, or else its id. Every
edge has `rate`, may have `latency` and `efficiency`; values are texts with units, as in YAML. An edge between a host
and a switch is one NIC of the host and may have `overhead` and what a NIC states of its transport (`preset`,
`stream_rate` and so on; in a directed graph at the edge from the host); one between two switches is a trunk, between
two hosts a cable. An undirected edge is alike in both directions; in a directed graph each edge is one direction, and
none may be without its opposite. The graph itself may have `name`, `description`, `routing`, `seed` (of ECMP),
`forwarding`, `ranks_per_host` and `cpu_ranks_per_host`.
Attributes that drawing programs add to nodes and edges (`label`, `x`, `y`, `weight`, an edge's `id` and `key`) are
allowed, and have no effect. Reading is by networkx.
"""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal
from xml.etree.ElementTree import ParseError

import networkx as nx
from pydantic import BeforeValidator, Field

from stanza_sim.base.config import Count, Factor, Fraction, Section, Source, validate
from stanza_sim.base.errors import InputError, at
from stanza_sim.base.files import LARGEST_TEXT, read_bytes, read_json
from stanza_sim.base.units import Rate, Seconds
from stanza_sim.cluster.cluster import Cluster, Host, Nic, place
from stanza_sim.cluster.freeform import check_connected
from stanza_sim.cluster.hardware import Routing, RoutingKind, Transport
from stanza_sim.cluster.hosts import (
    NO_NIC,
    check_devices,
    count_cores,
    make_intra,
    make_loopback,
    make_losses,
    too_many_ranks,
)
from stanza_sim.cluster.topology import IntraSection, LoopbackSection, LossesSection, Price, Spread, TransportKeys
from stanza_sim.cluster.transports import make_transport, preset_of
from stanza_sim.cluster.wiring import LinkDirection, Wiring

_DRAWN = frozenset({"label", "x", "y", "weight"})


def _listed(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


class GraphSection(Section):
    """Attributes of the graph itself. Routing is never explicit here: write YAML for that."""

    name: str | None = None
    description: str = ""
    routing: Literal["shortest", "ecmp", "spread"] = "shortest"
    seed: Annotated[int, Field(strict=True, ge=0)] = 0
    forwarding: bool = False
    ranks_per_host: Count | None = None
    cpu_ranks_per_host: Count | None = None


class HostNode(Section):
    """A node of kind host."""

    kind: Literal["host"]
    name: str | None = Field(None, min_length=1)
    cores: Count | Literal["this-machine"]
    devices: Annotated[tuple[str, ...], BeforeValidator(_listed)] = ()
    device_speed: Factor = 1.0
    device_spread: Spread = 0.0
    intra: IntraSection | None = None
    reduce_rate: Rate | None = None
    losses: LossesSection = LossesSection()
    loopback: LoopbackSection = LoopbackSection()
    price_per_hour: Price | None = None


class SwitchNode(Section):
    """A node of kind switch."""

    kind: Literal["switch"]
    name: str | None = Field(None, min_length=1)
    backplane: Rate | None = None


class EdgeSection(TransportKeys):
    """An edge, whatever it joins; only one between a host and a switch may state a transport."""

    rate: Rate
    latency: Seconds = 0.0
    overhead: Seconds = 0.0
    efficiency: Fraction = 1.0


def load_graph(path: Path, *, nodes: int | None, rate_Bps: float | None, experiment: Path | None = None) -> Cluster:
    """Return the cluster of a graph file; `rate_Bps` replaces every NIC's rate.

    Raises `InputError` for a file that is no graph, or not one of a cluster, and for `nodes`, which would need a
    graph of its own.
    """
    if nodes is not None:
        hint = "draw another graph, or write a topology with a fabric that scales"
        raise InputError(f"nodes={nodes}: a graph has the hosts that it has", where=str(path), hint=hint)
    graph = _read_graphml(path) if path.suffix == ".graphml" else _read_json(path)
    return _Reader(path=path, graph=graph, experiment=experiment).cluster(rate_Bps)


def _read_graphml(path: Path) -> nx.Graph:
    raw = read_bytes(path, at_most=LARGEST_TEXT)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # networkx reads on where a key is not declared
            return nx.read_graphml(io.BytesIO(raw))
    except ParseError as error:
        raise InputError(f"is not valid XML: {error}", where=str(path)) from None
    except (nx.NetworkXError, LookupError, ValueError, TypeError, AttributeError, UserWarning) as error:
        raise InputError(f"is not valid GraphML: {error}".rstrip(": "), where=str(path)) from None


def _read_json(path: Path) -> nx.Graph:
    """Return the graph of node-link data, by hand: networkx itself knows one name of the edges at a time."""
    where = str(path)
    data = read_json(path, expected="node-link data")
    if not isinstance(data, dict) or not isinstance(data.get("nodes"), list):
        hint = 'node-link data is expected: {"nodes": [{"id": ...}], "edges": [{"source": ..., "target": ...}]}'
        raise InputError("holds no list of nodes", where=where, hint=hint)
    named = [key for key in ("edges", "links") if key in data]
    if len(named) != 1 or not isinstance(data[named[0]], list):
        raise InputError("needs a list `edges` or `links`, and one of the two only", where=where)
    for flag in ("directed", "multigraph"):
        if not isinstance(data.get(flag, False), bool):
            raise InputError(f"{flag} is neither true nor false", where=where)
    about = data.get("graph", {})
    if not isinstance(about, dict):
        raise InputError("graph is not a mapping", where=where)
    graph = nx.MultiDiGraph() if data.get("directed", False) else nx.MultiGraph()
    graph.graph.update(about)
    for i, node in enumerate(data["nodes"]):
        if not isinstance(node, dict) or not isinstance(node.get("id"), str | int):
            raise InputError("a node needs an id (a text or a number)", where=f"{where}: nodes.{i}")
        if node["id"] in graph:
            raise InputError(f"two nodes with the id {node['id']!r}", where=f"{where}: nodes.{i}")
        graph.add_node(node["id"], **{str(k): v for k, v in node.items() if k != "id"})
    for i, edge in enumerate(data[named[0]]):
        at = f"{where}: {named[0]}.{i}"
        if not isinstance(edge, dict):
            raise InputError("an edge is a mapping", where=at)
        ends = [edge.get("source"), edge.get("target")]
        for key, end in zip(("source", "target"), ends, strict=True):
            if not isinstance(end, str | int) or end not in graph:
                raise InputError(f"{key} is no node: {end!r}", where=at)
        graph.add_edges_from([(*ends, {str(k): v for k, v in edge.items() if k not in ("source", "target", "key")})])
    return graph


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reader:
    """Makes a cluster of a graph."""

    path: Path
    experiment: Path | None
    graph: nx.Graph

    def cluster(self, rate_Bps: float | None) -> Cluster:
        """Return the cluster."""
        about = validate(self._plain(self.graph.graph), GraphSection, self._source("graph"))
        nodes = {node: self._node(node, data) for node, data in self.graph.nodes(data=True)}
        names = {node: section.name or str(node) for node, section in nodes.items()}
        uses = Counter(names.values())
        for node, name in names.items():
            if uses[name] > 1:
                raise InputError(f"the name {name!r} is used twice", where=self._at("node", node))
        host_number = {n: i for i, n in enumerate(n for n in nodes if isinstance(nodes[n], HostNode))}
        switch_number = {n: i for i, n in enumerate(n for n in nodes if isinstance(nodes[n], SwitchNode))}
        if not host_number:
            raise InputError("has no host", where=str(self.path), hint="give a node the attribute kind: host")
        wiring = Wiring(switches=[names[n] for n in switch_number], forwarding=about.forwarding)
        if about.forwarding and switch_number:
            raise InputError("hosts forward only where there is no switch", where=f"{self.path}: graph.forwarding")
        for node, s in switch_number.items():
            section = nodes[node]
            if isinstance(section, SwitchNode) and section.backplane is not None:
                wiring.backplanes[s] = section.backplane
        nics = self._join(wiring, host_number, switch_number, rate_Bps)
        hosts = []
        for node, h in host_number.items():
            section = nodes[node]
            if isinstance(section, HostNode):
                hosts.append(self._host(section, names[node], nics[h], self._at("node", node)))
        if about.seed and about.routing != "ecmp":
            raise InputError(f"{about.routing} routing takes no seed", where=f"{self.path}: graph.seed")
        wiring.routing = Routing(kind=RoutingKind(about.routing), seed=about.seed)
        links, fabric = wiring.lay_out(hosts)
        check_connected(hosts, len(wiring.switches), fabric, str(self.path))
        placement = place(hosts, about.ranks_per_host, about.cpu_ranks_per_host)
        too_many_ranks(placement, hosts, f"{self.path}: graph.ranks_per_host")
        return Cluster(
            name=about.name or self.path.stem,
            description=about.description,
            hosts=tuple(hosts),
            switches=tuple(wiring.switches),
            links=tuple(links),
            placement=placement,
            fabric=fabric,
        )

    def _at(self, *what: object) -> str:
        return f"{self.path}: {' '.join(map(str, what))}"

    def _source(self, *what: object) -> Source:
        return Source(file=self._at(*what), lines={})

    def _plain(self, data: Mapping[str, object], *more: str) -> dict[str, object]:
        """Return attributes without those that drawing programs add."""
        skip = _DRAWN.union(more, {"node_default", "edge_default"})
        return {str(key): value for key, value in data.items() if key not in skip}

    def _node(self, node: object, data: Mapping[str, object]) -> HostNode | SwitchNode:
        source, plain = self._source("node", node), self._plain(data)
        match plain.get("kind"):
            case "host":
                return validate(plain, HostNode, source)
            case "switch":
                return validate(plain, SwitchNode, source)
            case None:
                hint = "write host or switch"
                raise InputError("the attribute 'kind' is missing", where=source.file, hint=hint)
            case other:
                raise InputError(f"unknown kind {other!r}", where=source.file, hint="write host or switch")

    def _join(
        self,
        wiring: Wiring,
        host_number: Mapping[object, int],
        switch_number: Mapping[object, int],
        rate_Bps: float | None,
    ) -> dict[int, list[Nic]]:
        """Add every edge to `wiring`; return the NICs of each host."""
        nics: dict[int, list[Nic]] = {h: [] for h in host_number.values()}
        for a, b, there, back, where in self._pairs():
            if a == b:
                raise InputError("joins a node to itself", where=where)
            lines = tuple(
                LinkDirection(bandwidth_Bps=e.rate * e.efficiency, latency_s=e.latency) for e in (there, back)
            )
            if a in host_number and b in host_number:
                ends: tuple[int, int] = host_number[a], host_number[b]
                joined: dict[tuple[int, int], LinkDirection] | dict[tuple[int, int], LinkDirection | None] = (
                    wiring.cables
                )
            elif a in switch_number and b in switch_number:
                ends, joined = (switch_number[a], switch_number[b]), wiring.trunks
            else:
                if a in switch_number:
                    a, b, there, back = b, a, back, there
                if there.efficiency != back.efficiency:
                    raise InputError("a NIC has one efficiency", where=where)
                if back.overhead not in (0.0, there.overhead):
                    raise InputError("overhead is of the direction from the host", where=where)
                if back is not there and _states_transport(back):
                    raise InputError("a transport is stated at the edge from the host", where=where)
                h = host_number[a]
                wiring.attached.setdefault(h, []).append((switch_number[b],))
                with at(where):
                    nics[h].append(_nic(there, back, rate_Bps))
                continue
            if _states_transport(there) or _states_transport(back):
                raise InputError("a transport is for an edge between a host and a switch", where=where)
            if there.overhead or back.overhead:
                raise InputError("overhead is for an edge between a host and a switch", where=where)
            if ends in joined:
                raise InputError(f"{a} and {b} are linked twice", where=where)
            joined[ends], joined[ends[::-1]] = lines
        for h, found in nics.items():
            if not found:
                found.append(self._port(wiring, h))
        return nics

    def _port(self, wiring: Wiring, host: int) -> Nic:
        """Return the NIC of a host without a switch: as fast as all its cables together."""
        out_Bps = sum(line.bandwidth_Bps for (a, _), line in wiring.cables.items() if a == host and line)
        in_Bps = sum(line.bandwidth_Bps for (_, b), line in wiring.cables.items() if b == host and line)
        return Nic(bandwidth_Bps=out_Bps, receive_bandwidth_Bps=in_Bps) if out_Bps and in_Bps else NO_NIC

    def _pairs(self) -> list[tuple[object, object, EdgeSection, EdgeSection, str]]:
        """Return every link with its two directions."""
        found: list[tuple[object, object, EdgeSection, EdgeSection, str]] = []
        waiting: dict[tuple[object, object], list[EdgeSection]] = {}
        for a, b, data in self.graph.edges(data=True):
            where = self._at("edge", a, "-", b)
            plain = self._plain(data, "id", "key")
            edge = validate(plain, EdgeSection, Source(file=where, lines={}))
            if not self.graph.is_directed():
                found.append((a, b, edge, edge, where))
            elif opposite := waiting.get((b, a)):
                found.append((b, a, opposite.pop(0), edge, where))
            else:
                waiting.setdefault((a, b), []).append(edge)
        for (a, b), left in waiting.items():
            if left:
                hint = "links are full duplex: add the edge of the other direction, or draw an undirected graph"
                raise InputError("has no opposite", where=self._at("edge", a, "->", b), hint=hint)
        return found

    def _host(self, section: HostNode, name: str, nics: list[Nic], where: str) -> Host:
        with at(where):
            intra = make_intra(section.intra, len(section.devices))
        return Host(
            name=name,
            cores=count_cores(section.cores),
            nic=nics[0],
            more_nics=tuple(nics[1:]),
            devices=check_devices(section.devices, self.path, where, experiment=self.experiment),
            device_speed=section.device_speed,
            device_spread=section.device_spread,
            loopback=make_loopback(section.loopback),
            intra=intra,
            reduce_Bps=section.reduce_rate,
            losses=make_losses(section.losses),
            price_per_hour=section.price_per_hour,
        )


def _states_transport(edge: EdgeSection) -> bool:
    return bool(set(TransportKeys.model_fields) & edge.model_fields_set)


def _nic(there: EdgeSection, back: EdgeSection, rate_Bps: float | None) -> Nic:
    preset, stated = preset_of(there), there.model_fields_set
    if preset is not None:
        found = {key: getattr(preset, key) for key in ("latency", "overhead", "efficiency") if key not in stated}
        found = {key: value for key, value in found.items() if value is not None}
        same = back is there
        there = there.model_copy(update=found)
        back = there if same else back
    return Nic(
        bandwidth_Bps=rate_Bps or there.rate,
        receive_bandwidth_Bps=None if rate_Bps or back.rate == there.rate else back.rate,
        latency_s=there.latency,
        receive_latency_s=None if back.latency == there.latency else back.latency,
        overhead_s=there.overhead,
        efficiency=there.efficiency,
        transport=make_transport(there, max(there.rate, back.rate), Transport()),
    )
