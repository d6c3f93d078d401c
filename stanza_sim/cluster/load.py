"""Reads a topology file and builds the cluster that it describes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from stanza_sim.cluster.cluster import Cluster, DirectedLink, Fabric, Host, Loopback, Nic, Placement, nic_links, place
from stanza_sim.cluster.topology import HostOverride, LinkSection, LoopbackSection, NicSection, TopologySection
from stanza_sim.config import Kind, Source, find, load_located, near
from stanza_sim.errors import InputError

NO_NIC = Nic(bandwidth_Bps=1.0)
"""Stands in for the NIC of a host that has none; no route uses it."""


def load_cluster(
    name_or_path: str | Path, *, nodes: int | None = None, rate_Bps: float | None = None, beside: Path | None = None
) -> Cluster:
    """Return the cluster of a topology, given by name or path (also relative to the folder of the file `beside`).

    `nodes` replaces the count of the only host group or, where the file says `scales: ranks`, the number of ranks
    on the only host; `rate_Bps` replaces the raw rate of every NIC. Raises `InputError` for a file that is wrong, and
    for a `nodes` or `rate_Bps` that this topology cannot take.
    """
    loaded = load_located(find(Kind.TOPOLOGIES, name_or_path, beside=beside), TopologySection)
    return _Builder(topology=loaded.value, source=loaded.source, path=loaded.path).build(nodes, rate_Bps)


def _nic(section: NicSection | None, rate_Bps: float | None) -> Nic:
    """Return the NIC of a host group, with `rate_Bps` in the place of its rate."""
    if section is None:
        return NO_NIC
    return Nic(
        bandwidth_Bps=rate_Bps or section.rate,
        latency_s=section.latency,
        overhead_s=section.overhead,
        efficiency=section.efficiency,
    )


def _loopback(section: LoopbackSection) -> Loopback:
    return Loopback(
        bandwidth_Bps=section.rate,
        latency_s=section.latency,
        message_core_s=section.message_core,
        byte_core_s=section.byte_core,
    )


def _cores(cores: int | str) -> int:
    """Return a number of cores; `this-machine` means those that this process may use."""
    return cores if isinstance(cores, int) else len(os.sched_getaffinity(0))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Builder:
    """Builds the cluster of one topology file."""

    topology: TopologySection
    source: Source
    path: Path

    def build(self, nodes: int | None, rate_Bps: float | None) -> Cluster:
        topology = self.topology
        counts, ranks_per_host = self._scaled(nodes)
        groups = self._groups(counts)
        hosts = self._hosts(groups, rate_Bps)
        index = {host.name: i for i, host in enumerate(hosts)}
        switches = {switch.name: i for i, switch in enumerate(topology.switches)}
        links: list[DirectedLink] = []
        if len(hosts) > 1:
            links.extend(link for host in hosts for link in nic_links(host.name, host.nic))
        fabric = self._fabric(hosts, groups, index, switches, links)
        cluster = Cluster(
            name=topology.name,
            description=topology.description,
            hosts=hosts,
            switches=tuple(switches),
            links=tuple(links),
            placement=self._placement(hosts, index, ranks_per_host),
            fabric=fabric,
            nodes_are_ranks=topology.scales == "ranks",
        )
        self._check_connected(cluster)
        return cluster

    # --- hosts -------------------------------------------------------------------------------------------------------

    def _scaled(self, nodes: int | None) -> tuple[list[int | None], int | None]:
        """Return the count of each host group and the ranks per host, with `nodes` in its place."""
        topology = self.topology
        counts = [group.count for group in topology.hosts]
        if nodes is None:
            return counts, topology.ranks_per_host
        name, hint = f"nodes={nodes} does not fit {topology.name}", "edit the topology, or write one of its own"
        if nodes < 1:
            raise InputError(f"nodes is {nodes}", where=self.source.file, hint="it must be at least 1")
        if topology.placement is not None:
            raise InputError(f"{name}: its placement names the host of each rank", where=self.source.file, hint=hint)
        if topology.scales == "ranks":
            if len(counts) != 1 or (counts[0] or 1) != 1:
                raise InputError(f"{name}: it has several hosts", where=self.source.file, hint=hint)
            return counts, nodes
        if len(counts) != 1 or counts[0] is None:
            what = f"{len(counts)} host groups" if len(counts) > 1 else "a single host without a count"
            raise InputError(f"{name}: it has {what}", where=self.source.file, hint=hint)
        return [nodes], topology.ranks_per_host

    def _groups(self, counts: list[int | None]) -> dict[str, range]:
        """Return the host indices of each group; refuse names that are used twice."""
        groups: dict[str, range] = {}
        start = 0
        for i, (group, count) in enumerate(zip(self.topology.hosts, counts, strict=True)):
            if group.name in groups:
                raise InputError(f"two hosts called {group.name!r}", where=self.source.where("hosts", i, "name"))
            groups[group.name] = range(start, start + (count or 1))
            start += count or 1
        return groups

    def _hosts(self, groups: dict[str, range], rate_Bps: float | None) -> tuple[Host, ...]:
        """Return every host, overrides and `rate_Bps` applied."""
        hosts: list[Host] = []
        only = sum(len(members) for members in groups.values()) == 1
        if only and rate_Bps is not None:
            what, hint = "network.rate has no use: there is one host", "set the loopback's rate in the topology"
            raise InputError(what, where=self.source.file, hint=hint)
        for i, (group, members) in enumerate(zip(self.topology.hosts, groups.values(), strict=True)):
            if group.nic is None and not only:
                hint = "write such as nic: {rate: 10Gbps, latency: 25us}"
                raise InputError("the key 'nic' is missing", where=self.source.where("hosts", i), hint=hint)
            nic, loopback, cores = _nic(group.nic, rate_Bps), _loopback(group.loopback), _cores(group.cores)
            devices = self._devices(group.devices, "hosts", i, "devices")
            names = [group.name] if group.count is None else [f"{group.name}-{k}" for k in range(len(members))]
            hosts.extend(
                Host(
                    name=name, cores=cores, nic=nic, devices=devices, device_speed=group.device_speed, loopback=loopback
                )
                for name in names
            )
        index = {host.name: i for i, host in enumerate(hosts)}
        self._check_names(hosts)
        for name, override in self.topology.overrides.items():
            if name not in index:
                where = self.source.where("overrides", name)
                raise InputError(f"there is no host {name!r}", where=where, hint=_known(name, index))
            hosts[index[name]] = self._overridden(hosts[index[name]], override, rate_Bps)
        return tuple(hosts)

    def _check_names(self, hosts: list[Host]) -> None:
        """Refuse a name that means two things."""
        names = {group.name for group in self.topology.hosts if group.count is not None}
        for host in hosts:
            if host.name in names:
                raise InputError(f"two hosts called {host.name!r}", where=self.source.where("hosts"))
            names.add(host.name)
        for i, switch in enumerate(self.topology.switches):
            if switch.name in names:
                where = self.source.where("switches", i, "name")
                raise InputError(f"the name {switch.name!r} is used twice", where=where)
            names.add(switch.name)

    def _devices(self, devices: tuple[str, ...], *key: str | int) -> tuple[str, ...]:
        """Return device names as `load_device` takes them; raise `InputError` for one that has no data."""
        names = []
        for device in devices:
            if device == "cpu":
                hint = "leave devices out: ranks then compute on the host's cores"
                raise InputError("cpu is not a device to list", where=self.source.where(*key), hint=hint)
            try:
                path = find(Kind.DEVICES, device, beside=self.path)
            except InputError as error:
                raise InputError(error.message, where=self.source.where(*key), hint=error.hint) from None
            is_path = "/" in device or device.endswith((".yaml", ".yml"))
            names.append(str(path.resolve()) if is_path else device)
        return tuple(names)

    def _overridden(self, host: Host, override: HostOverride, rate_Bps: float | None) -> Host:
        """Return `host` with what `override` states."""
        nic = host.nic
        if override.nic is not None:
            stated = override.nic
            if nic is NO_NIC:
                where = self.source.where("overrides", host.name, "nic")
                raise InputError("the only host has no NIC", where=where)
            nic = Nic(
                bandwidth_Bps=rate_Bps or stated.rate or nic.bandwidth_Bps,
                latency_s=nic.latency_s if stated.latency is None else stated.latency,
                overhead_s=nic.overhead_s if stated.overhead is None else stated.overhead,
                efficiency=nic.efficiency if stated.efficiency is None else stated.efficiency,
            )
        devices = host.devices
        if override.devices is not None:
            devices = self._devices(override.devices, "overrides", host.name, "devices")
        return replace(
            host,
            nic=nic,
            devices=devices,
            cores=host.cores if override.cores is None else override.cores,
            device_speed=host.device_speed if override.device_speed is None else override.device_speed,
            loopback=host.loopback if override.loopback is None else _loopback(override.loopback),
        )

    # --- links -------------------------------------------------------------------------------------------------------

    def _fabric(
        self,
        hosts: tuple[Host, ...],
        groups: dict[str, range],
        index: dict[str, int],
        switches: dict[str, int],
        links: list[DirectedLink],
    ) -> Fabric:
        """Return how the hosts hang together; appends the links between switches and between hosts to `links`."""
        attached: dict[int, tuple[int, ...]] = {}
        trunks: dict[tuple[int, int], int] = {}
        cables: dict[tuple[int, int], tuple[int, ...]] = {}
        for i, link in enumerate(self.topology.links):
            ends: list[int | range] = []
            for key, name in (("from", link.start), ("to", link.end)):
                if name in switches:
                    ends.append(switches[name])
                elif name in index:
                    ends.append(range(index[name], index[name] + 1))
                elif name in groups:
                    ends.append(groups[name])
                else:
                    where, hint = self.source.where("links", i, key), _known(name, [*switches, *groups, *index])
                    raise InputError(f"there is no host or switch {name!r}", where=where, hint=hint)
            match ends:
                case [int(a), int(b)]:
                    self._add_trunk(i, link, (a, b), trunks, links)
                case [int(switch), range() as members] | [range() as members, int(switch)]:
                    if link.model_fields_set - {"start", "end"}:
                        hint = "state them as the host's nic, under hosts or overrides"
                        where = self.source.where("links", i)
                        raise InputError("a host's link to a switch has the values of its NIC", where=where, hint=hint)
                    for host in members:
                        before = attached.get(host, ())
                        attached[host] = before if switch in before else (*before, switch)
                case [range() as a_hosts, range() as b_hosts]:
                    if len(a_hosts) != 1 or len(b_hosts) != 1 or a_hosts == b_hosts:
                        where = self.source.where("links", i)
                        raise InputError("a cable joins one host to another host", where=where)
                    self._add_cable(i, link, (a_hosts[0], b_hosts[0]), cables, links)
        default: tuple[int, ...] = (0,) if len(switches) == 1 else ()
        if len(hosts) > 1 and len(switches) > 1 and not self.topology.links:
            hint = "write such as links: [{from: node, to: leaf}, {from: leaf, to: spine, rate: 40Gbps}]"
            raise InputError("several switches, but no links", where=self.source.where("switches"), hint=hint)
        return Fabric(
            attached=tuple(attached.get(h, default) for h in range(len(hosts))),
            trunks=tuple((a, b, link) for (a, b), link in trunks.items()),
            cables=tuple((a, b, way) for (a, b), way in cables.items()),
        )

    def _add_trunk(
        self,
        i: int,
        link: LinkSection,
        ends: tuple[int, int],
        trunks: dict[tuple[int, int], int],
        links: list[DirectedLink],
    ) -> None:
        where = self.source.where("links", i)
        if link.rate is None:
            hint = "write such as {from: leaf, to: spine, rate: 40Gbps}"
            raise InputError("the rate of a link between switches is missing", where=where, hint=hint)
        if ends in trunks or ends[0] == ends[1]:
            raise InputError(f"{link.start} and {link.end} are linked twice, or one switch to itself", where=where)
        for (a, b), (x, y) in ((ends, (link.start, link.end)), (ends[::-1], (link.end, link.start))):
            trunks[a, b] = len(links)
            links.append(_directed(x, y, link.rate * link.efficiency, link.latency))

    def _add_cable(
        self,
        i: int,
        link: LinkSection,
        ends: tuple[int, int],
        cables: dict[tuple[int, int], tuple[int, ...]],
        links: list[DirectedLink],
    ) -> None:
        where = self.source.where("links", i)
        if ends in cables:
            raise InputError(f"{link.start} and {link.end} are linked twice", where=where)
        if link.rate is None and (link.latency or link.efficiency != 1.0):
            hint = "state its rate too, or state latency and efficiency as the NIC's"
            raise InputError("a cable without a rate has the values of the NICs", where=where, hint=hint)
        for (a, b), (x, y) in ((ends, (link.start, link.end)), (ends[::-1], (link.end, link.start))):
            cables[a, b] = () if link.rate is None else (len(links),)
            if link.rate is not None:
                links.append(_directed(x, y, link.rate * link.efficiency, link.latency))

    def _check_connected(self, cluster: Cluster) -> None:
        """Raise `InputError` if some host cannot reach another."""
        part = list(range(len(cluster.switches)))

        def root(switch: int) -> int:
            while part[switch] != switch:
                part[switch] = part[part[switch]]
                switch = part[switch]
            return switch

        for a, b, _ in cluster.fabric.trunks:
            part[root(a)] = root(b)
        first_with: dict[frozenset[int], list[int]] = {}
        roots = {attached: frozenset(root(s) for s in attached) for attached in set(cluster.fabric.attached)}
        for host, attached in enumerate(cluster.fabric.attached):
            first_with.setdefault(roots[attached], []).append(host)
        joined = {(a, b) for a, b, _ in cluster.fabric.cables}
        for mine, a_hosts in first_with.items():
            for yours, b_hosts in first_with.items():
                if mine & yours:
                    continue
                for a in a_hosts:
                    for b in b_hosts:
                        if a != b and (a, b) not in joined:
                            names = f"{cluster.hosts[a].name} and {cluster.hosts[b].name}"
                            hint = "add a switch, or a link between them (hosts do not forward for others)"
                            raise InputError(f"{names} are not connected", where=self.source.where("links"), hint=hint)

    # --- ranks -------------------------------------------------------------------------------------------------------

    def _placement(
        self, hosts: tuple[Host, ...], index: dict[str, int], ranks_per_host: int | None
    ) -> tuple[Placement, ...]:
        """Return the place of each rank, by `placement` or by `ranks_per_host`."""
        topology = self.topology
        if topology.placement is None:
            placed = place(hosts, ranks_per_host)
            key: tuple[str | int, ...] = ("ranks_per_host",)
        else:
            if topology.ranks_per_host is not None:
                where = self.source.where("ranks_per_host")
                raise InputError("ranks_per_host and placement exclude each other", where=where)
            if not topology.placement:
                raise InputError("names no host", where=self.source.where("placement"), hint="one host for each rank")
            used = [0] * len(hosts)
            ranks = []
            for rank, name in enumerate(topology.placement):
                if name not in index:
                    where, hint = self.source.where("placement", rank), _known(name, index)
                    raise InputError(f"rank {rank} is on a missing host {name!r}", where=where, hint=hint)
                host = index[name]
                ranks.append(Placement(host=host, device=used[host] if hosts[host].devices else None))
                used[host] += 1
            placed, key = tuple(ranks), ("placement",)
        for at in placed:
            has = len(hosts[at.host].devices)
            if at.device is not None and at.device >= has:
                what, hint = f"more ranks on {hosts[at.host].name} than its {has} devices", "a device takes one rank"
                raise InputError(what, where=self.source.where(*key), hint=hint)
        return placed


def _known(name: str, names: Iterable[str]) -> str:
    """Return a hint about what `name` may have meant that stays short, and quick, for thousands of `names`."""
    known = list(names)
    if len(known) > 100:
        return f"known: {known[0]} to {known[-1]} ({len(known)} names)"
    return near(name, known)


def _directed(start: str, end: str, bandwidth_Bps: float, latency_s: float) -> DirectedLink:
    return DirectedLink(
        name=f"{start}->{end}", label=f"link {start} to {end}", bandwidth_Bps=bandwidth_Bps, latency_s=latency_s
    )
