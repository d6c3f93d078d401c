"""Finds the way of messages through the core of a fabric: its switches or, where hosts forward, its hosts.

A way has the fewest hops that are possible. Where several are equally short the kind of routing decides:

- `shortest`: one, the same every time. Between switches each hop takes its choice from the destination's number
  (D-mod-k: E. Zahavi, "Fat-tree routing and node ordering providing contention free traffic for MPI global
  collectives", 2012), so a shift of all hosts loads the ways evenly. Where hosts forward, each hop takes the first
  cable that leads nearer, in the order of the topology: on a torus that is dimension-order routing.
- `ecmp`: one, chosen at each hop by a hash of the seed, both ends and the flow's key, as switches do.
- `spread`: all of them, each with the same share of every message: what perfect packet spraying would reach.
- `explicit`: the one that the topology states and, for a pair without one, that of `shortest`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import fsum
from zlib import crc32

from stanza_sim.base.errors import InputError
from stanza_sim.cluster.hardware import DirectedLink, Fabric, RoutingKind, Way

Usage = tuple[tuple[int, float], ...]
"""(link, share of the message's bytes that crosses it), each link once."""

_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteCore:
    """The part of a route within the core: its links with shares, and its (largest) latency."""

    usage: Usage = ()
    latency_s: float = 0.0


_NOTHING = RouteCore()


def mix(x: int) -> int:
    """Return 64 well mixed bits of `x` (the finaliser of SplitMix64: Steele, Lea, Flood, OOPSLA 2014)."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def flow_key(src_rank: int, dst_rank: int, channel: str = "") -> int:
    """Return the key of the flow of messages between two ranks on one channel, the same in every run."""
    return mix(mix(src_rank << 32 | dst_rank) ^ crc32(channel.encode()))


@dataclass(slots=True)
class Core:
    """What connects the ports of hosts. Its vertices are switches or, where hosts forward, hosts.

    Distances, shares and ways are worked out when they are first asked for, and kept.
    """

    links: Sequence[DirectedLink]
    fabric: Fabric
    size: int
    out: list[list[int]] = field(init=False)
    into: list[list[int]] = field(init=False)
    hop: dict[tuple[int, int], int] = field(init=False)
    backplane: dict[int, int] = field(init=False)
    _nearer_to: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    _core_by_way: dict[Way, RouteCore] = field(default_factory=dict)
    _distance: dict[int, tuple[list[int], deque[int]]] = field(default_factory=dict)
    _spread: dict[tuple[tuple[int, ...], tuple[int, ...]], RouteCore] = field(default_factory=dict)
    _fixed: dict[tuple[tuple[int, ...], tuple[int, ...], int], RouteCore] = field(default_factory=dict)
    _host_ways: dict[tuple[int, int], Way] = field(default_factory=dict)
    _switch_ways: dict[tuple[int, int], Way] = field(default_factory=dict)

    def __post_init__(self) -> None:
        fabric = self.fabric
        self.out = [[] for _ in range(self.size)]
        self.into = [[] for _ in range(self.size)]
        hops = [(a, b, links[0]) for a, b, links in fabric.cables] if fabric.forwarding else sorted(fabric.trunks)
        for a, b, _ in hops:
            self.out[a].append(b)
            self.into[b].append(a)
        self.hop = {(a, b): link for a, b, link in hops}
        self.backplane = dict(fabric.backplanes)
        self._host_ways = {(a, b): way for a, b, way in fabric.routing.host_ways}
        self._switch_ways = {(a, b): way for a, b, way in fabric.routing.switch_ways}

    def part(
        self,
        starts: tuple[int, ...],
        stops: tuple[int, ...],
        *,
        hosts: tuple[int, int],
        ports: tuple[int, int],
        key: int,
        kind: RoutingKind | None = None,
    ) -> RouteCore:
        """Return the part of a route from a port on the switches `starts` to one on `stops`.

        `hosts` are the numbers of the hosts, `ports` those of the NICs among all NICs; `kind` overrules the fabric's.
        Raises `InputError` where there is no way.
        """
        if starts == stops and not self.backplane and not self._host_ways:
            return _NOTHING
        match kind or self.fabric.routing.kind:
            case RoutingKind.SPREAD:
                if (found := self._spread.get((starts, stops))) is None:
                    found = self._spread[starts, stops] = self._spread_core(starts, stops)
                return found
            case RoutingKind.ECMP:
                seed = mix(self.fabric.routing.seed ^ mix(key & _MASK))
                chance = mix(seed ^ mix(ports[0] << 32 | ports[1]))
                return self._route_core_of(self._hashed(starts, stops, chance))
            case RoutingKind.EXPLICIT if (way := self._stated(starts, stops, hosts)) is not None:
                return self._route_core_of(way)
            case _:
                fixed = (starts, stops, ports[1])
                if (found := self._fixed.get(fixed)) is None:
                    found = self._fixed[fixed] = self._route_core_of(self._shortest(starts, stops, ports[1]))
                return found

    def single(self, starts: tuple[int, ...], stops: tuple[int, ...]) -> bool:
        """Return whether there is one shortest way only."""
        ends = self._nearest(starts, stops)
        return sum(self._counts(a, b)[a] for a, b in ends) == 1

    def distance(self, stop: int, start: int) -> list[int]:
        """Return the number of hops to `stop` from every vertex that is no farther than `start`, -1 for others.

        `start` has -1 where there is no way. What is farther is looked at when it is asked for.
        """
        if (known := self._distance.get(stop)) is None:
            known = self._distance[stop] = [-1] * self.size, deque([stop])
            known[0][stop] = 0
        found, queue = known
        while queue and found[start] < 0:
            v = queue.popleft()
            for u in self.into[v]:
                if found[u] < 0:
                    found[u] = found[v] + 1
                    queue.append(u)
        return found

    # --- one way -----------------------------------------------------------------------------------------------------

    def _nearest(self, starts: tuple[int, ...], stops: tuple[int, ...]) -> list[tuple[int, int]]:
        """Return the pairs of a start and a stop that are the fewest hops apart."""
        best = -1
        ends: list[tuple[int, int]] = []
        for a in starts:
            for b in stops:
                hops = self.distance(b, a)[a]
                if hops < 0 or 0 <= best < hops:
                    continue
                if hops != best:
                    best, ends = hops, []
                ends.append((a, b))
        if not ends:
            raise InputError("hosts are not connected", hint="add a link between their switches")
        return ends

    def _nearer(self, v: int, stop: int) -> list[int]:
        """Return the neighbours of `v` that are one hop nearer to `stop`."""
        if (found := self._nearer_to.get((v, stop))) is None:
            distance = self.distance(stop, v)
            nearer = distance[v] - 1
            found = self._nearer_to[v, stop] = [w for w in self.out[v] if distance[w] == nearer]
        return found

    def _shortest(self, starts: tuple[int, ...], stops: tuple[int, ...], number: int) -> Way:
        """Return the way that the digits of `number`, the destination's, choose."""
        if self.fabric.forwarding:
            number = 0  # at every hop the first: dimension order
        ends = self._nearest(starts, stops)
        v, stop = ends[number % len(ends)]
        number //= len(ends)
        way = [v]
        while v != stop:
            choices = self._nearer(v, stop)
            v = choices[number % len(choices)]
            number //= len(choices)
            way.append(v)
        return tuple(way)

    def _hashed(self, starts: tuple[int, ...], stops: tuple[int, ...], chance: int) -> Way:
        ends = self._nearest(starts, stops)
        v, stop = ends[chance % len(ends)]
        way = [v]
        while v != stop:
            chance = mix(chance ^ v)
            choices = self._nearer(v, stop)
            v = choices[chance % len(choices)]
            way.append(v)
        return tuple(way)

    def _stated(self, starts: tuple[int, ...], stops: tuple[int, ...], hosts: tuple[int, int]) -> Way | None:
        if (way := self._host_ways.get(hosts)) is not None:
            return way
        if len(starts) == len(stops) == 1:
            return self._switch_ways.get((starts[0], stops[0]))
        return None

    def _route_core_of(self, way: Way) -> RouteCore:
        """Return the links of one way, backplanes included."""
        if (found := self._core_by_way.get(way)) is None:
            used: list[int] = []
            for i, v in enumerate(way):
                if i:
                    used.append(self.hop[way[i - 1], v])
                if (plane := self.backplane.get(v)) is not None:
                    used.append(plane)
            latency_s = fsum(self.links[k].latency_s for k in used)
            found = self._core_by_way[way] = RouteCore(usage=tuple((link, 1.0) for link in used), latency_s=latency_s)
        return found

    # --- all ways ----------------------------------------------------------------------------------------------------

    def _counts(self, start: int, stop: int) -> dict[int, int]:
        """Return the number of shortest ways to `stop` from each vertex on a shortest way from `start`."""
        layers = self._layers(start, stop)
        counts = {stop: 1}
        for layer in reversed(layers[:-1]):
            for v in layer:
                counts[v] = sum(counts[w] for w in self._nearer(v, stop))
        return counts

    def _layers(self, start: int, stop: int) -> list[list[int]]:
        """Return the vertices on shortest ways from `start` to `stop`, by hops from `start`."""
        layers = [[start]]
        while layers[-1] != [stop]:
            layers.append(list(dict.fromkeys(w for v in layers[-1] for w in self._nearer(v, stop))))
        return layers

    def _spread_core(self, starts: tuple[int, ...], stops: tuple[int, ...]) -> RouteCore:
        """Return every link of every shortest way, with the share of the ways that cross it."""
        crossing: dict[int, int] = {}
        total, slowest = 0, 0.0
        for start, stop in self._nearest(starts, stops):
            after = self._counts(start, stop)
            before = {start: 1}
            latest = {start: 0.0}
            for layer in self._layers(start, stop):
                for v in layer:
                    if (plane := self.backplane.get(v)) is not None:
                        crossing[plane] = crossing.get(plane, 0) + before[v] * after[v]
                    for w in self._nearer(v, stop) if v != stop else ():
                        link = self.hop[v, w]
                        crossing[link] = crossing.get(link, 0) + before[v] * after[w]
                        before[w] = before.get(w, 0) + before[v]
                        latest[w] = max(latest.get(w, 0.0), latest[v] + self.links[link].latency_s)
            total += after[start]
            slowest = max(slowest, latest[stop])
        return RouteCore(usage=tuple((link, ways / total) for link, ways in crossing.items()), latency_s=slowest)
