"""Reads `switches:`, `links:` and the paths of `routing:`, and checks that all hosts are connected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from stanza_sim.base.config import Source, near
from stanza_sim.base.errors import InputError, at
from stanza_sim.cluster.hardware import Fabric, Host, Routing, RoutingKind, Way
from stanza_sim.cluster.sharing import make_line
from stanza_sim.cluster.topology import LatencyWays, LinkSection, PathSection, RateWays, SwitchSection, TopologySection
from stanza_sim.cluster.wiring import LinkDirection, Wiring, port_line


@dataclass(frozen=True, slots=True, kw_only=True)
class Joiner:
    """Adds the `links:` of a topology to a wiring. `groups` and `index` are the numbers of hosts by name."""

    source: Source
    hosts: Sequence[Host]
    groups: Mapping[str, range]
    index: Mapping[str, int]
    wiring: Wiring

    def join(self, switches: Sequence[SwitchSection], links: Sequence[LinkSection]) -> None:
        """Add switches and links. Raises `InputError` for a link that joins what is not there or cannot be joined."""
        wiring = self.wiring
        wiring.switches.extend(section.name for section in switches)
        wiring.backplanes.update({i: s.backplane for i, s in enumerate(switches) if s.backplane is not None})
        number = {name: i for i, name in enumerate(wiring.switches)}
        if wiring.forwarding and switches:
            hint = "write cables between hosts only, or leave forwarding out"
            raise InputError("hosts forward only where there is no switch", where=self._at("forwarding"), hint=hint)
        wiring.default = (0,) if len(switches) == 1 else ()
        if len(self.hosts) > 1 and len(switches) > 1 and not links:
            hint = "write such as links: [{from: node, to: leaf}, {from: leaf, to: spine, rate: 40Gbps}]"
            raise InputError("several switches, but no links", where=self._at("switches"), hint=hint)
        for i, link in enumerate(links):
            match self._end(i, "from", link.start, number), self._end(i, "to", link.end, number):
                case int(a), int(b):
                    self._add_trunk(i, link, a, b)
                case (int(switch), range() as members) | (range() as members, int(switch)):
                    self._attach(i, link, members, switch)
                case range() as a_hosts, range() as b_hosts:
                    if len(a_hosts) != 1 or len(b_hosts) != 1 or a_hosts == b_hosts:
                        raise InputError("a cable joins one host to another host", where=self._at("links", i))
                    self._add_cable(i, link, a_hosts[0], b_hosts[0])

    def _at(self, *key: str | int) -> str:
        return self.source.where(*key)

    def _end(self, i: int, key: str, name: str, switches: Mapping[str, int]) -> int | range:
        """Return the number of a switch or the numbers of hosts that an end of a link means."""
        if name in switches:
            return switches[name]
        if name in self.index:
            return range(self.index[name], self.index[name] + 1)
        if name in self.groups:
            return self.groups[name]
        hint = known_names(name, [*switches, *self.groups, *self.index])
        raise InputError(f"there is no host or switch {name!r}", where=self._at("links", i, key), hint=hint)

    def _attach(self, i: int, link: LinkSection, members: range, switch: int) -> None:
        if link.model_fields_set - {"start", "end", "nic"}:
            hint = "state them as the host's nic, under hosts or overrides"
            raise InputError(
                "a host's link to a switch has the values of its NIC", where=self._at("links", i), hint=hint
            )
        for h in members:
            nics = len(self.hosts[h].nics)
            if link.nic is not None and link.nic >= nics:
                have = f"NICs are numbered from 0 to {nics - 1}" if nics > 1 else "it has NIC 0 only"
                where = self._at("links", i, "nic")
                raise InputError(f"{self.hosts[h].name} has no NIC {link.nic}", where=where, hint=have)
            self.wiring.attach(h, nics, switch, link.nic)

    def _lines(self, link: LinkSection, i: int) -> tuple[LinkDirection, LinkDirection] | None:
        """Return what both directions of a link carry; None without a rate."""
        rate, latency = link.rate, link.latency
        if rate is None:
            if {"background", "burst", "peak"} & link.model_fields_set:
                hint = "state the rate of the link too"
                raise InputError("background and burst need a rate", where=self._at("links", i), hint=hint)
            return None
        rates = (rate.forward, rate.backward) if isinstance(rate, RateWays) else (rate, rate)
        late = (latency.forward, latency.backward) if isinstance(latency, LatencyWays) else (latency, latency)
        with at(self._at("links", i)):
            there, back = (make_line(link, rates[k], late[k], link.efficiency) for k in (0, 1))
        return there, back

    def _no_nic(self, i: int, link: LinkSection) -> None:
        if link.nic is not None:
            raise InputError("nic is for a host's link to a switch", where=self._at("links", i, "nic"))

    def _add_trunk(self, i: int, link: LinkSection, a: int, b: int) -> None:
        where, lines, trunks = self._at("links", i), self._lines(link, i), self.wiring.trunks
        self._no_nic(i, link)
        if lines is None:
            hint = "write such as {from: leaf, to: spine, rate: 40Gbps}"
            raise InputError("the rate of a link between switches is missing", where=where, hint=hint)
        if (a, b) in trunks or a == b:
            raise InputError(f"{link.start} and {link.end} are linked twice, or one switch to itself", where=where)
        trunks[a, b], trunks[b, a] = lines

    def _add_cable(self, i: int, link: LinkSection, a: int, b: int) -> None:
        where, lines, cables = self._at("links", i), self._lines(link, i), self.wiring.cables
        self._no_nic(i, link)
        if (a, b) in cables:
            raise InputError(f"{link.start} and {link.end} are linked twice", where=where)
        if lines is not None:
            cables[a, b], cables[b, a] = lines
            return
        if link.efficiency != 1.0 or (link.latency and not self.wiring.forwarding):
            hint = "state its rate too, or state latency and efficiency as the NIC's"
            raise InputError("a cable without a rate has the values of the NICs", where=where, hint=hint)
        if not self.wiring.forwarding:
            cables[a, b] = cables[b, a] = None
            return
        late = link.latency
        there, back = (late.forward, late.backward) if isinstance(late, LatencyWays) else (late, late)
        cables[a, b] = port_line(self.hosts[a], self.hosts[b], there)
        cables[b, a] = port_line(self.hosts[b], self.hosts[a], back)


@dataclass(frozen=True, slots=True, kw_only=True)
class PathReader:
    """Reads the paths of explicit routing for hosts that are wired."""

    source: Source
    hosts: Sequence[Host]
    wiring: Wiring

    def routing(self, topology: TopologySection) -> Routing:
        """Return the routing. Raises `InputError` for a path that does not connect."""
        stated = topology.routing
        explicit = stated.kind is RoutingKind.EXPLICIT
        if bool(stated.paths) != explicit:
            what = "explicit routing without paths" if explicit else f"{stated.kind} routing takes no paths"
            hint = "write such as {kind: explicit, paths: [{from: node-0, to: node-1, via: [leaf-0]}]}"
            raise InputError(what, where=self.source.where("routing"), hint=hint)
        if stated.seed and stated.kind is not RoutingKind.ECMP:
            raise InputError(f"{stated.kind} routing takes no seed", where=self.source.where("routing", "seed"))
        hosts = {host.name: h for h, host in enumerate(self.hosts)}
        vertices = hosts if self.wiring.forwarding else {name: s for s, name in enumerate(self.wiring.switches)}
        host_ways: dict[tuple[int, int], Way] = {}
        switch_ways: dict[tuple[int, int], Way] = {}
        for i, path in enumerate(stated.paths):
            between_hosts = path.start in hosts
            ends = self._number(i, "from", path.start, hosts if between_hosts else vertices)
            stop = self._number(i, "to", path.end, hosts if between_hosts else vertices)
            way = tuple(self._number(i, "via", name, vertices) for name in path.via)
            if self.wiring.forwarding or not between_hosts:
                way = (ends, *way, stop)
            ways = host_ways if between_hosts else switch_ways
            self._check(i, path, (ends, stop), way, vertices=list(vertices), between_hosts=between_hosts)
            if (ends, stop) in ways:
                raise InputError(f"{path.start} to {path.end} is stated twice", where=self._at(i))
            ways[ends, stop] = way
        for ways in (host_ways, switch_ways):
            ways |= {(b, a): way[::-1] for (a, b), way in ways.items() if (b, a) not in ways}
        return Routing(
            kind=stated.kind,
            seed=stated.seed,
            host_ways=tuple((a, b, way) for (a, b), way in host_ways.items()),
            switch_ways=tuple((a, b, way) for (a, b), way in switch_ways.items()),
        )

    def _at(self, i: int, *key: str | int) -> str:
        return self.source.where("routing", "paths", i, *key)

    def _number(self, i: int, key: str, name: str, known: Mapping[str, int]) -> int:
        if name not in known:
            noun = "host" if self.wiring.forwarding else "host or switch" if key == "from" else "such end"
            what = f"there is no {noun} {name!r}" if key != "via" else f"{name!r} is no part of a path"
            raise InputError(what, where=self._at(i, key), hint=known_names(name, known))
        return known[name]

    def _check(
        self, i: int, path: PathSection, ends: tuple[int, int], way: Way, *, vertices: list[str], between_hosts: bool
    ) -> None:
        """Refuse a path that does not connect."""
        wiring, what = self.wiring, f"the path from {path.start} to {path.end}"
        if ends[0] == ends[1]:
            raise InputError(f"{what} has one end only", where=self._at(i))
        if between_hosts and not wiring.forwarding:
            if ends in wiring.cables:
                raise InputError(f"{path.start} and {path.end} have a cable of their own", where=self._at(i))
            if not way:
                raise InputError(f"{what} passes no switch", where=self._at(i), hint="name its switches under via")
            for host, switch in zip(ends, (way[0], way[-1]), strict=True):
                ports = wiring.attached.get(host, [wiring.default])
                if not all(switch in port for port in ports):
                    where = self._at(i, "via")
                    raise InputError(f"{self.hosts[host].name} is not attached to {vertices[switch]}", where=where)
        joined: Iterable[tuple[int, int]] = wiring.cables if wiring.forwarding else wiring.trunks
        for hop in pairwise(way):
            if hop not in joined:
                names = " to ".join(vertices[v] for v in hop)
                raise InputError(f"{what} does not connect: no link from {names}", where=self._at(i, "via"))
        if len(set(way)) != len(way):
            raise InputError(f"{what} comes to one place twice", where=self._at(i, "via"))


def check_connected(hosts: Sequence[Host], switches: int, fabric: Fabric, where: str) -> None:
    """Raise `InputError` if some host cannot reach another by the NICs that their devices use."""
    part = list(range(len(hosts) if fabric.forwarding else switches))

    def root(v: int) -> int:
        while part[v] != v:
            part[v] = part[part[v]]
            v = part[v]
        return v

    joints = [(a, b) for a, b, _ in (fabric.cables if fabric.forwarding else fabric.trunks)]
    for a, b in joints:
        part[root(a)] = root(b)
    if fabric.forwarding:
        for h in range(len(hosts)):
            if root(h) != root(0):
                names = f"{hosts[0].name} and {hosts[h].name}"
                raise InputError(f"{names} are not connected", where=where, hint="add a cable on the way between them")
        return
    if len(hosts) == 1:
        return
    first_with: dict[frozenset[int], list[int]] = {}
    ports = set(fabric.attached).union(nic for nics in fabric.ports for nic in nics)
    roots = {port: frozenset(root(s) for s in port) for port in ports}
    for h, host in enumerate(hosts):
        used = ({host.nic_of(d) for d in range(len(host.devices))} if host.more_nics else None) or {0}
        nics = fabric.ports[h] if fabric.ports else fabric.attached[h : h + 1]
        for reach in dict.fromkeys(roots[nics[n]] for n in sorted(used)):
            first_with.setdefault(reach, []).append(h)
    joined = {(a, b) for a, b, _ in fabric.cables}
    for mine, a_hosts in first_with.items():
        for yours, b_hosts in first_with.items():
            if mine & yours:
                continue
            for a in a_hosts:
                for b in b_hosts:
                    if a != b and (a, b) not in joined:
                        names = f"{hosts[a].name} and {hosts[b].name}"
                        hint = "add a switch, or a link between them (hosts forward only with `forwarding: true`)"
                        raise InputError(f"{names} are not connected", where=where, hint=hint)


def known_names(name: str, names: Iterable[str]) -> str:
    """Return a hint about what `name` may have meant that stays short, and quick, for thousands of `names`."""
    known = list(names)
    if len(known) > 100:
        return f"known: {known[0]} to {known[-1]} ({len(known)} names)"
    return near(name, known)
