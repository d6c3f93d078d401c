"""Which hosts, pairs of hosts and links no flow can tell apart.

Colour refinement of the graph of hosts and switches alone proves too little: two hosts of one colour may have
different numbers of shortest ways to others (in two different cubic graphs every vertex has the same colour). So what
is refined here is the incidence of hosts, of flows (ordered pairs of hosts, by NIC) and of links, with the shares of
each flow that the fabric's routing really puts on each link, until

- hosts of one class have the same cores, devices, NICs and fabric inside, send as many flows of each class as each
  other, and receive as many;
- flows of one class go from one class of hosts to another, have one latency, and put the same shares on the same
  numbers of links of each class;
- links of one class have one bandwidth, latency, kind, background traffic and token bucket, and carry the same shares
  of the same numbers of flows of each class.

What that proves: let every flow of one class have one weight and cap, and start together with the others of its
class. Averaging an allocation of rates over each class then gives an allocation that is feasible too (the three
conditions make what a link carries an average of what its class carries), and max-min fairness, which is unique and
prefers even rates, picks it. So at every moment all flows of a class have one rate, all links of a class are equally
busy, and all hosts of a class go on to do the same at the same time: one of each class can stand for it.
What it does not prove: anything for ECMP with several ways (a hash has no symmetry), for hosts with different roles
(tell them apart by `colour`), or for patterns in which only some hosts of a class exchange (state them as `pairs`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt

from stanza_sim.cluster.hardware import DirectedLink, Fabric, Host, LinkKind, RoutingKind, kinds_of
from stanza_sim.cluster.routing import Core, RouteCore

Classes = npt.NDArray[np.int64]
_Flow = tuple[int, int, int, int]  # place, its NIC, place, its NIC

MOST_CROSSINGS = 1_000_000
"""Fabrics in which flows cross links more often than this are not examined: it would take longer than it saves."""


class Network(Protocol):
    """What flows are carried by; `cluster.Cluster` is one, and says what each of these is."""

    @property
    def hosts(self) -> tuple[Host, ...]:
        """Hosts, by number."""
        ...

    @property
    def links(self) -> tuple[DirectedLink, ...]:
        """Directed links, by number."""
        ...

    @property
    def fabric(self) -> Fabric:
        """What joins the hosts."""
        ...

    def core(self) -> Core:
        """Return what finds ways between switches (or forwarding hosts)."""
        ...

    def ports(self) -> Sequence[tuple[int, ...]]:
        """Return the vertices of the core to which each NIC is attached."""
        ...

    def nic_links_of(self, host: int) -> tuple[tuple[int, int], ...]:
        """Return (transmit side, receive side) of each NIC of `host`."""
        ...

    def route_core_between(self, src_host: int, src_nic: int, dst_host: int, dst_nic: int) -> RouteCore:
        """Return what a message between two NICs uses beside their own sides."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Orbits(ABC):
    """Classes from 0, in the order in which they first occur: `host_class[h]` and `link_class[link]`."""

    host_class: tuple[int, ...]
    link_class: tuple[int, ...]

    @property
    def of_tree(self) -> bool:
        """Whether any permutation of hosts within the classes that keeps where they meet is a symmetry."""
        return False

    @abstractmethod
    def pair_class(self, src_host: int, dst_host: int, src_nic: int = 0, dst_nic: int = 0) -> int:
        """Return the class of the flow between two different hosts.

        Two hosts of one class may well be of different pair classes with a third: one on its leaf, one beyond.
        Raises `KeyError` for a pair that `pairs` did not have.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class _FlowOrbits(Orbits):
    """Classes for which every flow was looked at."""

    place_of: tuple[int, ...] = field(repr=False)
    flow_class: dict[_Flow, int] = field(repr=False)

    def pair_class(self, src_host: int, dst_host: int, src_nic: int = 0, dst_nic: int = 0) -> int:
        """See `Orbits.pair_class`."""
        return self.flow_class[self.place_of[src_host], src_nic, self.place_of[dst_host], dst_nic]


def find_orbits(
    cluster: Network,
    colour: Sequence[int] | None,
    pairs: Iterable[Iterable[tuple[int, int]]] | None,
    marks: Mapping[int, Hashable],
) -> Orbits | None:
    """Return the coarsest classes with the properties above; None where none are proved.

    That is with ECMP where there are several ways, and for fabrics beyond `MOST_CROSSINGS`. See
    `Cluster.host_orbits` for the parameters.
    """
    kind = cluster.fabric.routing.kind
    alone = pairs is not None or kind is RoutingKind.EXPLICIT
    if kind in (RoutingKind.SHORTEST, RoutingKind.ECMP) and not _single_ways(cluster):
        if kind is RoutingKind.ECMP:
            return None
        alone = True  # a destination's number decides, so hosts on one switch are not alike
    looks = link_looks(cluster, marks)
    places = _places(cluster, colour, looks, alone=alone)
    return _Refinement(cluster=cluster, looks=looks, places=places, relations=_relations(pairs)).run()


def link_looks(cluster: Network, marks: Mapping[int, Hashable]) -> list[int]:
    """Return what tells each link apart by itself, as a number."""
    ids: dict[Hashable, int] = {}
    keys = (
        (k.kind, k.bandwidth_Bps, k.latency_s, k.background, k.bucket, marks.get(i))
        for i, k in enumerate(cluster.links)
    )
    return [ids.setdefault(key, len(ids)) for key in keys]


def host_looks(cluster: Network, looks: Sequence[int]) -> list[tuple[int, ...]]:
    """Return what tells each host apart by itself: all but its name, and its links."""
    own: list[list[int]] = [[kind] for kind in kinds_of(cluster.hosts)]
    for link, look in zip(cluster.links, looks, strict=True):
        if link.host is not None:
            own[link.host].append(look)
    return [tuple(found) for found in own]


def _single_ways(cluster: Network) -> bool:
    """Whether there is one shortest way only between any two hosts."""
    core, ports = cluster.core(), [p for p in dict.fromkeys(cluster.ports()) if p]  # a host may have no network
    if len(ports) ** 2 > MOST_CROSSINGS:
        return False
    return all(core.single(a, b) for a in ports for b in ports)


def _relations(pairs: Iterable[Iterable[tuple[int, int]]] | None) -> dict[tuple[int, int], tuple[int, ...]] | None:
    """Return, for each pair of hosts that exchange, the numbers of the patterns that it is in."""
    if pairs is None:
        return None
    found: dict[tuple[int, int], tuple[int, ...]] = {}
    for number, pattern in enumerate(pairs):
        for pair in pattern:
            if pair[0] != pair[1]:
                found[pair] = (*found.get(pair, ()), number)
    return found


def _places(
    cluster: Network, colour: Sequence[int] | None, link_look: Sequence[int], *, alone: bool
) -> list[tuple[Hashable, list[int]]]:
    """Return what tells hosts apart by itself, and the hosts that are interchangeable: on the same switches."""
    found: dict[Hashable, list[int]] = {}
    looks: dict[Hashable, Hashable] = {}
    ports = cluster.ports()
    separate = alone or bool(cluster.fabric.cables)
    for h, own in enumerate(host_looks(cluster, link_look)):
        look = (own, None if colour is None else colour[h])
        at = h if separate else tuple(ports[tx // 2] for tx, _ in cluster.nic_links_of(h))
        found.setdefault((look, at), []).append(h)
        looks[look, at] = look
    return [(looks[key], members) for key, members in found.items()]


@dataclass(slots=True, kw_only=True)
class _Refinement:
    """Refines classes of places (interchangeable hosts), flows and links until they agree."""

    cluster: Network
    looks: list[int]
    places: list[tuple[Hashable, list[int]]]
    relations: dict[tuple[int, int], tuple[int, ...]] | None
    flows: dict[_Flow, int] = field(default_factory=dict)
    labels: list[Hashable] = field(default_factory=list)
    at_flow: array[int] = field(default_factory=lambda: array("q"))
    at_link: array[int] = field(default_factory=lambda: array("q"))
    share: array[int] = field(default_factory=lambda: array("q"))
    share_ids: dict[float, int] = field(default_factory=dict)

    def run(self) -> Orbits | None:
        """Return the classes."""
        if not self._collect():
            return None
        place = _numbers((look, len(members)) for look, members in self.places)
        link = np.array(self.looks, dtype=np.int64)
        flow = _numbers(self.labels)
        ends = np.array(list(self.flows), dtype=np.int64).reshape(-1, 4)
        src, dst = ends[:, 0], ends[:, 2]
        at_flow, at_link, share = (np.array(c, dtype=np.int64) for c in (self.at_flow, self.at_link, self.share))
        shares = len(self.share_ids)
        count = -1
        while count != (count := int(place.max() + link.max()) + int(flow.max() if len(flow) else 0)):
            over = _multisets(at_flow, link[at_link] * shares + share, len(flow))
            flow = _numbers(zip(flow.tolist(), place[src].tolist(), place[dst].tolist(), over, strict=True))
            under = _multisets(at_link, flow[at_flow] * shares + share, len(link))
            link = _numbers(zip(link.tolist(), under, strict=True))
            sent = _multisets(src, flow, len(place))
            received = _multisets(dst, flow, len(place))
            place = _numbers(zip(place.tolist(), sent, received, strict=True))
        return self._orbits(place, link, flow)

    def _collect(self) -> bool:
        """List all flows and the links that they cross; return False if there are too many."""
        cluster = self.cluster
        reps = [members[0] for _, members in self.places]
        number = {h: p for p, h in enumerate(reps)}
        if self.relations is None:
            wanted = ((p, q) for p in range(len(reps)) for q in range(len(reps)))
            if len(reps) ** 2 > MOST_CROSSINGS:
                return False
        else:
            wanted = ((number[a], number[b]) for a, b in self.relations)
        nics = [sorted({host.nic_of(d) for d in range(len(host.devices))} or {0}) for host in cluster.hosts]
        ids = self.share_ids
        for p, q in wanted:
            src, dst = reps[p], reps[q]
            if p == q:
                if len(self.places[p][1]) == 1:
                    continue
                dst = self.places[p][1][1]
            pattern = () if self.relations is None else self.relations[src, dst]
            for a in nics[src]:
                for b in nics[dst]:
                    part = cluster.route_core_between(src, a, dst, b)
                    index = self.flows[p, a, q, b] = len(self.flows)
                    self.labels.append((a, b, part.latency_s, pattern))
                    for link, share in part.usage:
                        self.at_flow.append(index)
                        self.at_link.append(link)
                        self.share.append(ids.setdefault(share, len(ids)))
            if len(self.share) > MOST_CROSSINGS:
                return False
        return True

    def _orbits(self, place: Classes, link: Classes, flow: Classes) -> Orbits:
        cluster = self.cluster
        place_of = [0] * len(cluster.hosts)
        for p, (_, members) in enumerate(self.places):
            for h in members:
                place_of[h] = p
        host_class = _numbers(int(place[p]) for p in place_of).tolist()
        return _FlowOrbits(
            host_class=tuple(host_class),
            link_class=link_classes(cluster, host_class, dict(enumerate(link.tolist()))),
            place_of=tuple(place_of),
            flow_class=dict(zip(self.flows, flow.tolist(), strict=True)),
        )


def link_classes(cluster: Network, host_class: Sequence[int], keys: Mapping[int, Hashable]) -> tuple[int, ...]:
    """Return the class of every link: of a host's by what it is there, of others by `keys`; without, it is alone."""
    first: dict[int, int] = {}
    position: dict[int, tuple[Hashable, ...]] = {}
    for i, found in enumerate(cluster.links):
        if found.host is not None:
            start = first.setdefault(found.host, i) if found.kind in (LinkKind.SEND, LinkKind.RECEIVE) else None
            if start is None:
                start = cluster.fabric.inside[found.host].devices[0][0]
            position[i] = (found.kind, host_class[found.host], i - start)
    found_keys = (
        position.get(i) or (("core", keys[i]) if i in keys else ("alone", i)) for i in range(len(cluster.links))
    )
    return tuple(_numbers(found_keys).tolist())


def _numbers(keys: Iterable[Hashable]) -> Classes:
    """Return the number of each key, from 0 in the order of first occurrence."""
    ids: dict[Hashable, int] = {}
    return np.fromiter((ids.setdefault(key, len(ids)) for key in keys), dtype=np.int64)


def _multisets(owner: Classes, item: Classes, owners: int) -> list[bytes]:
    """Return the items of each owner, sorted, as bytes that are equal where the multisets are."""
    order = np.lexsort((item, owner))
    items = item[order]
    bounds = np.searchsorted(owner[order], np.arange(owners + 1))
    return [items[a:b].tobytes() for a, b in pairwise(bounds.tolist())]
