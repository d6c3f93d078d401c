"""Generators of regular fabrics, as networkx graphs of host numbers and switch names.

An edge stands for one direction; its `line` is what it carries. Edges without one join a host to a switch and have
the values of the host's NICs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import TYPE_CHECKING

from stanza_sim.base.errors import InputError
from stanza_sim.cluster.hardware import Host, Nic
from stanza_sim.cluster.sharing import make_line
from stanza_sim.cluster.topology import (
    FabricSection,
    FatTreeFabric,
    LeafSpineFabric,
    RingFabric,
    StarFabric,
    TorusFabric,
)
from stanza_sim.cluster.wiring import LinkDirection, Wiring, port_line

if TYPE_CHECKING:
    import networkx as nx

Coordinates = tuple[int, ...]


def capacity(fabric: FabricSection) -> int | None:
    """Return how many hosts `fabric` has; None if any number will do."""
    match fabric:
        case LeafSpineFabric():
            return fabric.leaves * fabric.hosts_per_leaf
        case FatTreeFabric():
            return fabric.k**3 // 4
        case TorusFabric():
            return prod(fabric.dims)
        case StarFabric() | RingFabric():
            return None


def scaled(fabric: FabricSection, nodes: int) -> FabricSection:
    """Return `fabric` for `nodes` hosts: other leaves, another k. Raises `InputError` where `nodes` does not fit."""
    match fabric:
        case LeafSpineFabric():
            each = fabric.hosts_per_leaf
            if nodes % each:
                lower = max(nodes // each, 1) * each
                hint = f"{lower} or {lower + each} would" if nodes > each else f"{each} would"
                raise InputError(f"nodes={nodes} does not fill leaves of {each} hosts", hint=hint)
            return fabric.model_copy(update={"leaves": nodes // each})
        case FatTreeFabric():
            k = 2
            while k**3 // 4 < nodes:
                k += 2
            if k**3 // 4 != nodes:
                hint = f"{(k - 2) ** 3 // 4} or {k**3 // 4} would" if k > 2 else "2 would"
                raise InputError(f"nodes={nodes} is not k³/4 for an even k", hint=hint)
            return fabric.model_copy(update={"k": k})
        case TorusFabric() if nodes != prod(fabric.dims):
            shape = "x".join(map(str, fabric.dims))
            raise InputError(f"nodes={nodes} does not fit a torus of {shape} hosts", hint="edit its dims")
        case _:
            return fabric


@dataclass(frozen=True, slots=True, kw_only=True)
class Generator:
    """Makes the graph of a fabric for `hosts`; `nics` are those of a host as the first group states them."""

    hosts: Sequence[Host]
    nics: tuple[Nic, ...]

    def wire(self, fabric: FabricSection) -> Wiring:
        """Return the hosts joined by `fabric`. Raises `InputError` for sizes that cannot be built."""
        match fabric:
            case StarFabric():
                planes = {} if fabric.backplane is None else {0: fabric.backplane}
                return Wiring(switches=["switch"], backplanes=planes, default=(0,))
            case LeafSpineFabric():
                return self._wired(self.leaf_spine(fabric))
            case FatTreeFabric():
                return self._wired(self.fat_tree(fabric))
            case TorusFabric():
                return self._forwarded(fabric, fabric.dims)
            case RingFabric():
                return self._forwarded(fabric, (len(self.hosts),))

    def leaf_spine(self, fabric: LeafSpineFabric) -> nx.DiGraph:
        """Return leaves and spines; host h is on leaf h // hosts_per_leaf."""
        graph = _empty(len(self.hosts))
        spines = [f"spine-{i}" for i in range(fabric.spines)]
        leaves = [f"leaf-{i}" for i in range(fabric.leaves)]
        graph.add_nodes_from(leaves, kind="switch", backplane=fabric.leaf_backplane)
        graph.add_nodes_from(spines, kind="switch", backplane=fabric.spine_backplane)
        if fabric.rate is None:
            raw_Bps = fabric.hosts_per_leaf * self._raw_Bps / (fabric.oversubscription or 1.0) / fabric.spines
        elif fabric.oversubscription is None:
            raw_Bps = fabric.rate
        else:
            raise InputError("rate and oversubscription exclude each other", hint="each follows from the other")
        line = self._shared(fabric, raw_Bps)
        for h in range(len(self.hosts)):
            graph.add_edge(h, leaves[h // fabric.hosts_per_leaf])
        for ends in product(leaves, spines):
            _join(graph, *ends, line)
        return graph

    def fat_tree(self, fabric: FatTreeFabric) -> nx.DiGraph:
        """Return k pods of k/2 edge and k/2 aggregation switches each, and (k/2)² core switches."""
        if fabric.k % 2:
            raise InputError(f"k is {fabric.k}", hint="the k of a fat-tree is even: half of the ports go up, half down")
        graph, half = _empty(len(self.hosts)), fabric.k // 2
        line = self._shared(fabric, self._raw_Bps if fabric.rate is None else fabric.rate)
        pods = [[[f"{layer}-{p}-{i}" for i in range(half)] for layer in ("edge", "agg")] for p in range(fabric.k)]
        for layer in (0, 1):
            for pod in pods:
                graph.add_nodes_from(pod[layer], kind="switch", backplane=fabric.backplane)
        graph.add_nodes_from((f"core-{i}" for i in range(half * half)), kind="switch", backplane=fabric.backplane)
        for h in range(len(self.hosts)):
            graph.add_edge(h, pods[h // (half * half)][0][h // half % half])
        for edges, aggs in pods:
            for ends in product(edges, aggs):
                _join(graph, *ends, line)
            for i, j in product(range(half), range(half)):
                _join(graph, aggs[i], f"core-{i * half + j}", line)
        return graph

    def torus(self, fabric: TorusFabric | RingFabric, dims: Coordinates) -> nx.DiGraph:
        """Return hosts joined to their neighbours, numbered with the last coordinate running fastest.

        A host's cables are in the order of the dimensions, the way up before the way down.
        """
        graph = _empty(len(self.hosts))
        places = list(product(*(range(n) for n in dims)))
        number = {at: h for h, at in enumerate(places)}
        for at, h in number.items():
            for d, n in enumerate(dims):
                for step in (1, -1):
                    there = number[*at[:d], (at[d] + step) % n, *at[d + 1 :]]
                    line = port_line(self.hosts[h], self.hosts[there], fabric.latency)
                    if fabric.rate is not None:
                        line = self._line(fabric.rate, fabric.latency, fabric.efficiency)
                    if h != there:
                        graph.add_edge(h, there, line=line)
        return graph

    def _wired(self, graph: nx.DiGraph) -> Wiring:
        wiring = Wiring()
        wiring.add_graph(graph, self.hosts)
        return wiring

    def _forwarded(self, fabric: TorusFabric | RingFabric, dims: Coordinates) -> Wiring:
        if fabric.rate is None and fabric.efficiency is not None:
            raise InputError("efficiency without rate", hint="state the rate too: cables are as the NICs otherwise")
        wiring = self._wired(self.torus(fabric, dims))
        wiring.forwarding = True
        return wiring

    @property
    def _raw_Bps(self) -> float:
        """The raw rate of all NICs of a host."""
        return sum(nic.bandwidth_Bps for nic in self.nics)

    def _shared(self, fabric: LeafSpineFabric | FatTreeFabric, raw_Bps: float) -> LinkDirection:
        """Return the line of each link between switches, with its background and burst."""
        share = self.nics[0].efficiency if fabric.efficiency is None else fabric.efficiency
        return make_line(fabric, raw_Bps, fabric.latency, share)

    def _line(self, raw_Bps: float, latency_s: float, efficiency: float | None) -> LinkDirection:
        share = self.nics[0].efficiency if efficiency is None else efficiency
        return LinkDirection(bandwidth_Bps=raw_Bps * share, latency_s=latency_s)


def _empty(hosts: int) -> nx.DiGraph:
    import networkx as nx  # a star never needs it, and it takes longer to import than a star to build

    graph = nx.DiGraph()
    graph.add_nodes_from(range(hosts), kind="host")
    return graph


def _join(graph: nx.DiGraph, a: str, b: str, line: LinkDirection) -> None:
    graph.add_edge(a, b, line=line)
    graph.add_edge(b, a, line=line)
