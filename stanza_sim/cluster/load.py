"""Reads a topology file and builds the cluster that it describes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from stanza_sim.base.config import Kind, Source, find, load_located
from stanza_sim.base.errors import InputError, at
from stanza_sim.cluster import fabrics
from stanza_sim.cluster.cluster import Cluster, Host, Nic, Placement, place
from stanza_sim.cluster.freeform import Joiner, PathReader, check_connected, known_names
from stanza_sim.cluster.hardware import IntraKind, kinds_of
from stanza_sim.cluster.hosts import (
    MOST_RANKS,
    NO_NIC,
    changed_nic,
    check_devices,
    check_nccl,
    check_nic,
    count_cores,
    make_intra,
    make_loopback,
    make_losses,
    make_nic,
    make_staging,
    too_many_ranks,
)
from stanza_sim.cluster.topology import (
    FabricSection,
    HostOverride,
    HostSection,
    IntraSection,
    TopologySection,
)
from stanza_sim.cluster.wiring import Wiring


class NoNetworkError(InputError):
    """A rate was given for the network of a cluster of one host, which has none."""


GRAPH_SUFFIXES = (".graphml", ".json")


def load_cluster(
    name_or_path: str | Path, *, nodes: int | None = None, rate_Bps: float | None = None, beside: Path | None = None
) -> Cluster:
    """Return the cluster of a topology, given by name or path (also relative to the folder of the file `beside`).

    `nodes` replaces the count of the only host group (a fabric that a file describes by its kind is scaled with it) or,
    where the file says `scales: ranks`, the number of ranks on the only host; `rate_Bps` replaces the raw rate of
    every NIC. A path that ends in `.graphml` or `.json` is a graph, see `stanza_sim.cluster.graph_file`.
    Raises `InputError` for a file that is wrong, and for a `nodes` or `rate_Bps` that this topology cannot take
    (`NoNetworkError` for a rate where there is one host).
    """
    if str(name_or_path).endswith(GRAPH_SUFFIXES):
        name_or_path = Path(name_or_path)
    path = find(Kind.TOPOLOGIES, name_or_path, beside=beside)
    if nodes is not None and nodes > MOST_RANKS:
        raise InputError(f"{nodes:,} nodes are too many", hint=f"{MOST_RANKS:,} are the most")
    if path.suffix in GRAPH_SUFFIXES:
        from stanza_sim.cluster.graph_file import load_graph  # networkx

        return load_graph(path, nodes=nodes, rate_Bps=rate_Bps)
    loaded = load_located(path, TopologySection)
    return Builder(topology=loaded.value, source=loaded.source, path=loaded.path).build(nodes, rate_Bps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Builder:
    """Builds the cluster of one topology: of the file at `path`, or of a mapping that says what a file would."""

    topology: TopologySection
    source: Source
    path: Path

    def build(self, nodes: int | None, rate_Bps: float | None) -> Cluster:
        """Return the cluster; see `load_cluster`."""
        topology = self.topology
        counts, ranks_per_host, fabric_section = self._scaled(nodes)
        of_host = ranks_per_host or (topology.ranks_per_device or 1) * max(len(g.devices) or 1 for g in topology.hosts)
        if (most := sum(count or 1 for count in counts) * of_host) > MOST_RANKS:
            what, hint = f"{most:,} hosts or ranks are too many", f"{MOST_RANKS:,} are the most"
            raise InputError(what, where=self.source.where("hosts"), hint=hint)
        groups = self._groups(counts)
        hosts = self._hosts(groups, counts, rate_Bps)
        index = {host.name: i for i, host in enumerate(hosts)}
        wiring = self._wiring(hosts, groups, index, fabric_section, rate_Bps)
        wiring.routing = PathReader(source=self.source, hosts=hosts, wiring=wiring).routing(topology)
        links, fabric = wiring.lay_out(hosts)
        check_connected(hosts, len(wiring.switches), fabric, self.source.where("links"))
        return Cluster(
            name=topology.name,
            description=topology.description,
            hosts=hosts,
            switches=tuple(wiring.switches),
            links=tuple(links),
            placement=self._placement(hosts, index, ranks_per_host),
            fabric=fabric,
            nodes_are_ranks=topology.scales == "ranks",
        )

    def _wiring(
        self,
        hosts: tuple[Host, ...],
        groups: dict[str, range],
        index: dict[str, int],
        section: FabricSection | None,
        rate_Bps: float | None,
    ) -> Wiring:
        """Return what is joined to what, from `fabric:` or from `switches:` and `links:`."""
        topology, source = self.topology, self.source
        if section is None:
            self._check_switch_names([switch.name for switch in topology.switches], groups, index)
            wiring = Wiring(forwarding=topology.forwarding)
            Joiner(source=source, hosts=hosts, groups=groups, index=index, wiring=wiring).join(
                topology.switches, topology.links
            )
        else:
            for key in ("switches", "links", "forwarding"):
                if key in topology.model_fields_set:
                    raise InputError(f"fabric and {key} exclude each other", where=source.where(key))
            nics = (NO_NIC,) if len(hosts) == 1 else self._nics(0, topology.hosts[0], rate_Bps)
            with at(source.where("fabric")):
                wiring = fabrics.Generator(hosts=hosts, nics=nics).wire(section)
            self._check_switch_names(wiring.switches, groups, index)
        if wiring.forwarding:
            if any(nic.background or nic.bucket for host in hosts for nic in host.nics):
                hint = "hosts that forward have one port for each cable: state it in links"
                raise InputError("background and burst of a NIC", where=source.where("hosts"), hint=hint)
            several = next((host.name for host in hosts if host.more_nics), None)
            if several is not None:
                hint = "a host that forwards has one port like its NIC for each cable"
                raise InputError(f"{several} has several NICs", where=source.where("hosts"), hint=hint)
        return wiring

    # --- hosts -------------------------------------------------------------------------------------------------------

    def _scaled(self, nodes: int | None) -> tuple[list[int | None], int | None, FabricSection | None]:
        """Return the count of each host group, the ranks per host and the fabric, with `nodes` in its place."""
        topology = self.topology
        counts = [group.count for group in topology.hosts]
        fabric = topology.fabric
        if nodes is None:
            return self._fitting(counts, fabric), topology.ranks_per_host, fabric
        name, hint = f"nodes={nodes} does not fit {topology.name}", "edit the topology, or write one of its own"
        if nodes < 1:
            raise InputError(f"nodes is {nodes}", where=self.source.file, hint="it must be at least 1")
        if topology.placement is not None:
            raise InputError(f"{name}: its placement names the host of each rank", where=self.source.file, hint=hint)
        if topology.scales == "ranks":
            if len(counts) != 1 or (counts[0] or 1) != 1:
                raise InputError(f"{name}: it has several hosts", where=self.source.file, hint=hint)
            return self._fitting(counts, fabric), nodes, fabric
        if len(counts) != 1 or (counts[0] is None and fabric is None):
            what = f"{len(counts)} host groups" if len(counts) > 1 else "a single host without a count"
            raise InputError(f"{name}: it has {what}", where=self.source.file, hint=hint)
        if fabric is not None:
            try:
                fabric = fabrics.scaled(fabric, nodes)
            except InputError as error:
                raise InputError(f"{name}: {error.message}", where=self.source.file, hint=error.hint) from None
        return [nodes], topology.ranks_per_host, fabric

    def _fitting(self, counts: list[int | None], fabric: FabricSection | None) -> list[int | None]:
        """Return `counts`, that of an only group without one as the fabric needs; refuse those that do not fit."""
        needed = None if fabric is None else fabrics.capacity(fabric)
        if needed is None:
            return counts
        if counts == [None]:
            return [needed]
        if (total := sum(count or 1 for count in counts)) != needed:
            what = f"a fabric for {needed} hosts, but there are {total}"
            raise InputError(what, where=self.source.where("fabric"), hint="leave count out: the fabric sets it")
        return counts

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

    def _hosts(self, groups: dict[str, range], counts: list[int | None], rate_Bps: float | None) -> tuple[Host, ...]:
        """Return every host, overrides and `rate_Bps` applied."""
        hosts: list[Host] = []
        intra_of: dict[str, IntraSection | None] = {}
        only = sum(len(members) for members in groups.values()) == 1
        if only and rate_Bps is not None:
            what, hint = "network.rate has no use: there is one host", "set the loopback's rate in the topology"
            raise NoNetworkError(what, where=self.source.file, hint=hint)
        for i, (group, members) in enumerate(zip(self.topology.hosts, groups.values(), strict=True)):
            nics = (NO_NIC,) if only and group.nic is None and group.nics is None else self._nics(i, group, rate_Bps)
            devices = self._devices(group.devices, "hosts", i, "devices")
            names = [group.name] if counts[i] is None else [f"{group.name}-{k}" for k in range(len(members))]
            cores, loopback, losses = count_cores(group.cores), make_loopback(group.loopback), make_losses(group.losses)
            with at(self._at(i, "intra")):
                intra = make_intra(group.intra, len(devices))
            staging = make_staging(group.staging)
            nccl = check_nccl(group.nccl, devices, self.path, self._at(i, "nccl"), staged=staging is not None)
            intra_of |= dict.fromkeys(names, group.intra)
            hosts.extend(
                Host(
                    name=name,
                    cores=cores,
                    nic=nics[0],
                    devices=devices,
                    device_speed=group.device_speed,
                    device_spread=group.device_spread,
                    loopback=loopback,
                    more_nics=nics[1:],
                    intra=intra,
                    staging=staging,
                    nccl=nccl,
                    reduce_Bps=group.reduce_rate,
                    losses=losses,
                )
                for name in names
            )
        index = {host.name: i for i, host in enumerate(hosts)}
        self._check_names(hosts, counts)
        for name, override in self.topology.overrides.items():
            if name not in index:
                where = self.source.where("overrides", name)
                raise InputError(f"there is no host {name!r}", where=where, hint=known_names(name, index))
            hosts[index[name]] = self._overridden(hosts[index[name]], override, rate_Bps, intra_of[name])
        self._check_extras(hosts)
        return tuple(hosts)

    def _check_extras(self, hosts: list[Host]) -> None:
        """Refuse what contradicts a host's other values."""
        where = self.source.where("hosts")
        for host in dict(zip(kinds_of(hosts), hosts, strict=True)).values():
            for nic in host.nics:
                with at(where):
                    check_nic(nic)
            if host.staging is not None:
                if not host.devices:
                    hint = "list devices, or leave staging out"
                    raise InputError("staging is for devices, and there is none", where=where, hint=hint)
                if host.intra is not None and host.intra.kind is IntraKind.PCIE:
                    hint = "with intra: pcie devices reach NICs themselves; state one of the two"
                    raise InputError("staging and intra: pcie exclude each other", where=where, hint=hint)

    def _at(self, i: int, *key: str | int) -> str:
        return self.source.where("hosts", i, *key)

    def _nics(self, i: int, group: HostSection, rate_Bps: float | None) -> tuple[Nic, ...]:
        """Return the NICs of each host of a group."""
        if isinstance(group.nics, tuple):
            if group.nic is not None:
                hint = "write each NIC in the list, or nics as their number"
                raise InputError("nic and a list of nics exclude each other", where=self._at(i, "nics"), hint=hint)
            with at(self._at(i, "nics")):
                return tuple(make_nic(section, rate_Bps) for section in group.nics)
        if group.nic is None:
            hint = "write such as nic: {rate: 10Gbps, latency: 25us}"
            raise InputError("the key 'nic' is missing", where=self._at(i), hint=hint)
        with at(self._at(i, "nic")):
            return (make_nic(group.nic, rate_Bps),) * (group.nics or 1)

    def _check_names(self, hosts: list[Host], counts: list[int | None]) -> None:
        """Refuse a name that means two things."""
        names = {group.name for group, count in zip(self.topology.hosts, counts, strict=True) if count is not None}
        for host in hosts:
            if host.name in names:
                raise InputError(f"two hosts called {host.name!r}", where=self.source.where("hosts"))
            names.add(host.name)

    def _check_switch_names(self, switches: list[str], groups: dict[str, range], index: dict[str, int]) -> None:
        names = {*groups, *index}
        for i, switch in enumerate(switches):
            if switch in names:
                key = ("switches", i, "name") if self.topology.fabric is None else ("hosts",)
                raise InputError(f"the name {switch!r} is used twice", where=self.source.where(*key))
            names.add(switch)

    def _devices(self, devices: tuple[str, ...], *key: str | int) -> tuple[str, ...]:
        return check_devices(devices, self.path, self.source.where(*key))

    def _overridden(
        self, host: Host, override: HostOverride, rate_Bps: float | None, of_group: IntraSection | None
    ) -> Host:
        """Return `host`, whose group has `of_group` inside, with what `override` states."""
        nics = host.nics
        if override.nic is not None:
            if host.nic is NO_NIC:
                where = self.source.where("overrides", host.name, "nic")
                raise InputError("the only host has no NIC", where=where)
            with at(self.source.where("overrides", host.name, "nic")):
                nics = tuple(changed_nic(nic, override.nic, rate_Bps) for nic in nics)
        devices = host.devices
        if override.devices is not None:
            devices = self._devices(override.devices, "overrides", host.name, "devices")
        with at(self.source.where("overrides", host.name)):
            intra = make_intra(override.intra or of_group, len(devices))
        return replace(
            host,
            nic=nics[0],
            more_nics=nics[1:],
            intra=intra,
            staging=host.staging if override.staging is None else make_staging(override.staging),
            devices=devices,
            cores=host.cores if override.cores is None else override.cores,
            device_speed=host.device_speed if override.device_speed is None else override.device_speed,
            loopback=host.loopback if override.loopback is None else make_loopback(override.loopback),
            reduce_Bps=host.reduce_Bps if override.reduce_rate is None else override.reduce_rate,
            losses=host.losses if override.losses is None else make_losses(override.losses),
        )

    # --- ranks -------------------------------------------------------------------------------------------------------

    def _placement(
        self, hosts: tuple[Host, ...], index: dict[str, int], ranks_per_host: int | None
    ) -> tuple[Placement, ...]:
        """Return the place of each rank, by `placement` or by `ranks_per_host`."""
        topology = self.topology
        if topology.cpu_ranks_per_host is not None and not any(host.devices for host in hosts):
            where, hint = self.source.where("cpu_ranks_per_host"), "ranks are on cores anyway: state ranks_per_host"
            raise InputError("cpu_ranks_per_host, but no host has devices", where=where, hint=hint)
        per_device = self._per_device(hosts, ranks_per_host)
        if topology.placement is None:
            on_host = ranks_per_host if per_device is None else None
            placed = place(hosts, on_host, topology.cpu_ranks_per_host, per_device)
            key: tuple[str | int, ...] = ("ranks_per_host",)
        else:
            if topology.ranks_per_host is not None:
                where = self.source.where("ranks_per_host")
                raise InputError("ranks_per_host and placement exclude each other", where=where)
            if topology.cpu_ranks_per_host is not None:
                where, hint = self.source.where("cpu_ranks_per_host"), "write HOST/cpu in placement"
                raise InputError("cpu_ranks_per_host and placement exclude each other", where=where, hint=hint)
            if not topology.placement:
                raise InputError("names no host", where=self.source.where("placement"), hint="one host for each rank")
            used = [0] * len(hosts)
            ranks = []
            for rank, stated in enumerate(topology.placement):
                name, device = self._spot(stated, index)
                if name not in index:
                    where, hint = self.source.where("placement", rank), known_names(name, index)
                    raise InputError(f"rank {rank} is on a missing host {name!r}", where=where, hint=hint)
                host = index[name]
                if device == "cpu":
                    ranks.append(Placement(host=host))
                    continue
                if device is not None:
                    if int(device) >= len(hosts[host].devices):
                        where = self.source.where("placement", rank)
                        hint = f"{name} has {len(hosts[host].devices)} devices, numbered from 0"
                        raise InputError(f"rank {rank} is on a missing device {stated!r}", where=where, hint=hint)
                    ranks.append(Placement(host=host, device=int(device)))
                    continue
                ranks.append(Placement(host=host, device=used[host] if hosts[host].devices else None))
                used[host] += 1
            placed, key = tuple(ranks), ("placement",)
        too_many_ranks(placed, hosts, self.source.where(*key))
        return placed

    @staticmethod
    def _spot(stated: str, index: dict[str, int]) -> tuple[str, str | None]:
        """Return the host of an entry of `placement:` and, where it is stated, `cpu` or the number of the device."""
        name, _, device = stated.rpartition("/")
        if stated not in index and (device == "cpu" or (device.isascii() and device.isdigit())):
            return name, device
        return stated, None

    def _per_device(self, hosts: tuple[Host, ...], ranks_per_host: int | None) -> int | None:
        """Return how many ranks share each device, by `ranks_per_device` or so that there are `ranks_per_host`."""
        per_device = self.topology.ranks_per_device
        if per_device is None:
            return None
        where = self.source.where("ranks_per_device")
        for key in ("ranks_per_host", "placement"):
            if getattr(self.topology, key) is not None:
                raise InputError(f"ranks_per_device and {key} exclude each other", where=where)
        if any(not host.devices for host in hosts):
            hint = "list devices, or state ranks_per_host"
            raise InputError("ranks_per_device, but a host has no devices", where=where, hint=hint)
        if ranks_per_host is None:
            return per_device
        if ranks_per_host % (devices := len(hosts[0].devices)):
            hint = f"use a multiple of {devices}: its devices are shared by equal numbers of ranks"
            raise InputError(f"nodes={ranks_per_host} does not fit {devices} devices", where=where, hint=hint)
        return ranks_per_host // devices
