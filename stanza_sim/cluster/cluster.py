"""What a schedule runs on: hosts, their NICs, the switches between them, and the links of every route.

A NIC is two directed links, since a port is full duplex: its transmit side and its receive side. Between two hosts
a message crosses the sender's transmit side, the links (and backplanes) of the switches on its way, and the
receiver's receive side; each adds its latency. Hosts forward for others only where the topology says so. Ranks on
one host talk over its internal fabric, where their devices have one, and otherwise over its loopback, which is not
a link: it has a single-stream cap and costs core time.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TYPE_CHECKING, TypeVar, cast

from stanza_sim.base.errors import InputError
from stanza_sim.base.tables import shortened
from stanza_sim.cluster.hardware import (
    DirectedLink,
    Fabric,
    Host,
    Intra,
    IntraKind,
    LinkKind,
    Loopback,
    Nic,
    Placement,
    Routing,
    RoutingKind,
)
from stanza_sim.cluster.inside import Spot, way
from stanza_sim.cluster.routing import Core, RouteCore, Usage, flow_key
from stanza_sim.cluster.wiring import Wiring

if TYPE_CHECKING:
    import networkx as nx

    from stanza_sim.cluster.orbits import Orbits

__all__ = [
    "Cluster",
    "DirectedLink",
    "Fabric",
    "Host",
    "Intra",
    "IntraKind",
    "LinkKind",
    "Loopback",
    "Nic",
    "Placement",
    "Routing",
    "RoutingKind",
    "Usage",
    "flow_key",
    "place",
    "star",
    "with_loopback",
]

_T = TypeVar("_T")


@dataclass(slots=True)
class _Found:
    """What has been worked out so far; a cache, so no part of a cluster's value."""

    ranks: list[tuple[int, ...]] | None = None
    core: Core | None = None
    first_port: Sequence[int] | None = None
    ports: Sequence[tuple[int, ...]] | None = None
    cables: dict[tuple[int, int], tuple[int, ...]] | None = None
    inside: dict[tuple[int, Spot, Spot], Usage] = field(default_factory=dict)
    remembered: dict[object, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Cluster:
    """Hosts, links and the place of each rank.

    NIC number p, counted host by host, has the links 2p (transmit side) and 2p + 1 (receive side), unless there is
    one host only; so these are 2h and 2h + 1 where all hosts have one NIC. Links between switches, cables between
    hosts, backplanes of switches and links of devices follow. `nodes_are_ranks` says that a node in the sense of the
    comparison at equal node count is a rank (ranks that share a host) and not a host. `wakeup_latency_s` is how long a
    lane takes to wake up for a computation that waited for a message or a collective. With `uses_nccl` collectives
    between devices that need no staging are NCCL's, else gloo's.
    """

    name: str
    hosts: tuple[Host, ...]
    switches: tuple[str, ...]
    links: tuple[DirectedLink, ...]
    placement: tuple[Placement, ...]
    fabric: Fabric
    description: str = ""
    nodes_are_ranks: bool = False
    wakeup_latency_s: float = 0.0
    uses_nccl: bool = True
    _found: _Found = field(default_factory=_Found, init=False, repr=False, compare=False)

    def __repr__(self) -> str:
        size = f"{self.world_size:,} ranks on {len(self.hosts):,} hosts, {len(self.links):,} links"
        return f"<Cluster {shortened(self.name)}: {size}>"

    def remember(self, key: Hashable, work_out: Callable[[], _T]) -> _T:
        """What `work_out` returned when it was first asked for by this `key`.

        It may depend on the cluster and on what the key says, and on nothing else.
        """
        known = self._found.remembered
        if key not in known:
            known[key] = work_out()
        return cast("_T", known[key])

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return len(self.placement)

    @property
    def nodes(self) -> int:
        """Number of nodes at which strategies are compared."""
        return self.world_size if self.nodes_are_ranks else len(self.hosts)

    @property
    def hosts_on_one_switch(self) -> bool:
        """Whether the two sides of NICs, one for each host, are the only links that any route uses."""
        fabric = self.fabric
        if fabric.cables or fabric.ports or fabric.backplanes or fabric.inside:
            return False
        shared = set(fabric.attached[0]).intersection(*set(fabric.attached))
        return bool(shared) or len(self.hosts) == 1

    @property
    def varies(self) -> bool:
        """Whether background traffic comes and goes by chance."""
        return any(link.background is not None and link.background.on_s is not None for link in self.links)

    def host_of(self, rank: int) -> Host:
        """Return the host of `rank`."""
        return self.hosts[self.placement[rank].host]

    def device_of(self, rank: int) -> str:
        """Return the name of the device that `rank` computes on: `cpu` for a host's cores."""
        place = self.placement[rank]
        return "cpu" if place.device is None else self.hosts[place.host].devices[place.device]

    def on_cores(self, rank: int) -> bool:
        """Return whether `rank` computes on its host's cores."""
        return self.placement[rank].device is None

    def ranks_on(self, host: int) -> tuple[int, ...]:
        """Return the ranks placed on host number `host`, in rank order."""
        ranks = self._found.ranks
        if ranks is None:
            ranks = self._found.ranks = [() for _ in self.hosts]
            for rank, at in enumerate(self.placement):
                ranks[at.host] = (*ranks[at.host], rank)
        return ranks[host]

    def same_host(self, a: int, b: int) -> bool:
        """Return whether ranks `a` and `b` are on one host."""
        return self.placement[a].host == self.placement[b].host

    # --- routes ------------------------------------------------------------------------------------------------------

    def nic_host(self, link: int) -> int | None:
        """Return the host whose NIC has `link` as one of its sides; None for every other link."""
        found = self.links[link]
        return found.host if found.kind in (LinkKind.SEND, LinkKind.RECEIVE) else None

    def nic_links_of(self, host: int) -> tuple[tuple[int, int], ...]:
        """Return (transmit side, receive side) of each NIC of `host`; nothing where there is one host only."""
        if len(self.hosts) == 1 and not (self.links and self.links[0].kind is LinkKind.SEND):
            return ()
        first = self._port(host, None)
        return tuple((2 * p, 2 * p + 1) for p in range(first, first + len(self.hosts[host].nics)))

    def route(self, src_host: int, dst_host: int) -> tuple[int, ...]:
        """Return the indices of the links from one host to another, in order; () on the same host.

        The route is that of a message between the hosts' first devices, without the links inside the hosts. With
        routing `spread`, which has no single route, it is the one that `shortest` would take.
        Raises `InputError` if the hosts are not connected (`load_cluster` has checked that they are).
        """
        if src_host == dst_host:
            return ()
        src, dst = self._port(src_host, None), self._port(dst_host, None)
        spread = self.fabric.routing.kind is RoutingKind.SPREAD
        part = self._route_core(src_host, dst_host, src, dst, 0, RoutingKind.SHORTEST if spread else None)
        return 2 * src, *(link for link, _ in part.usage), 2 * dst + 1

    def latency_s(self, src_host: int, dst_host: int) -> float:
        """Return the sum of the latencies of the route's links; 0 on the same host (see `Loopback.latency_s`)."""
        return sum(self.links[link].latency_s for link in self.route(src_host, dst_host))

    def usage(
        self,
        src_host: int,
        dst_host: int,
        key: int = 0,
        src_device: int | None = None,
        dst_device: int | None = None,
    ) -> tuple[Usage, float]:
        """Return what a message uses, as (link, share of its bytes), and its latency (the largest over its ways).

        `key` is what ECMP's hash takes beside the two ends; see `flow_key`. A device uses the NIC that
        `Host.nic_of` says; None (a rank on its host's cores) uses the first NIC. On one host the links are those of
        two devices in its internal fabric (or of a device and the host's memory); without such a fabric there are none,
        since the loopback is no link.
        Raises `InputError` if the hosts are not connected (`load_cluster` has checked that they are).
        """
        links = self.links
        if src_host == dst_host:
            inner = self._inside(src_host, Spot(device=src_device), Spot(device=dst_device))
            return inner, sum(links[link].latency_s for link, _ in inner)
        src, dst = self._port(src_host, src_device), self._port(dst_host, dst_device)
        part = self._route_core(src_host, dst_host, src, dst, key, None)
        tx, rx = 2 * src, 2 * dst + 1
        latency_s = links[tx].latency_s + part.latency_s + links[rx].latency_s
        usage = ((tx, 1.0), *part.usage, (rx, 1.0))
        if self.fabric.inside:
            nics = self.hosts[src_host].nic_of(src_device), self.hosts[dst_host].nic_of(dst_device)
            out = self._inside(src_host, Spot(device=src_device), Spot(nic=nics[0]))
            into = self._inside(dst_host, Spot(nic=nics[1]), Spot(device=dst_device))
            usage = (*out, *usage, *into)
            latency_s += sum(links[link].latency_s for link, _ in out) + sum(links[link].latency_s for link, _ in into)
        return usage, latency_s

    def _inside(self, host: int, src: Spot, dst: Spot) -> Usage:
        """Return what a message uses inside `host`."""
        if not self.fabric.inside:
            return ()
        inside = self._found.inside
        if (host, src, dst) not in inside:
            inside[host, src, dst] = way(self.hosts[host], self.fabric.inside[host], src, dst)
        return inside[host, src, dst]

    def host_orbits(
        self,
        colour: Sequence[int] | None = None,
        pairs: Iterable[Iterable[tuple[int, int]]] | None = None,
        marks: Mapping[int, Hashable] | None = None,
    ) -> Orbits | None:
        """Return classes of hosts and of links that no flow can tell apart; None where no symmetry is proved.

        See `stanza_sim.cluster.orbits`, which says what is proved. `colour` tells hosts apart that play different
        roles; `pairs` limits who sends to whom: one collection of (source host, destination host) for each pattern.
        Left out, every host may send to every other. `marks` tell links apart that are used for other things too.
        """
        from stanza_sim.cluster.orbits import find_orbits  # numpy
        from stanza_sim.cluster.tree_orbits import tree_orbits

        found = tree_orbits(self, colour, marks or {}) if pairs is None else None
        return found or find_orbits(self, colour, pairs, marks or {})

    def graph(self) -> nx.DiGraph:
        """Return hosts, switches and the links between them as a networkx graph.

        Nodes are names with `kind` (host or switch) and `index`; edges have `links`, indices into `self.links`.
        """
        import networkx as nx  # takes longer to import than a star to build

        graph = nx.DiGraph(name=self.name)
        graph.add_nodes_from((host.name, {"kind": "host", "index": i}) for i, host in enumerate(self.hosts))
        graph.add_nodes_from((name, {"kind": "switch", "index": i}) for i, name in enumerate(self.switches))
        for h, host in enumerate(self.hosts):
            for tx, rx in self.nic_links_of(h):
                for s in self.ports()[tx // 2] if not self.fabric.forwarding else ():
                    for start, end, link in ((host.name, self.switches[s], tx), (self.switches[s], host.name, rx)):
                        others = graph.get_edge_data(start, end, {"links": ()})["links"]
                        graph.add_edge(start, end, links=(*others, link))
        for a, b, trunk in self.fabric.trunks:
            graph.add_edge(self.switches[a], self.switches[b], links=(trunk,))
        for a, b, links in self.fabric.cables:
            graph.add_edge(self.hosts[a].name, self.hosts[b].name, links=links)
        return graph

    def _port(self, host: int, device: int | None) -> int:
        """Return the number, among all NICs, of the one that a device uses."""
        if not self.fabric.ports:
            return host
        first = self._found.first_port
        if first is None:
            first = self._found.first_port = [0, *accumulate(len(nics) for nics in self.fabric.ports)]
        return first[host] + self.hosts[host].nic_of(device)

    def ports(self) -> Sequence[tuple[int, ...]]:
        """Return the vertices of the core to which each NIC is attached."""
        ports = self._found.ports
        if ports is None:
            fabric = self.fabric
            if fabric.forwarding:
                ports = [(h,) for h in range(len(self.hosts))]
            else:
                ports = [nic for nics in fabric.ports for nic in nics] if fabric.ports else fabric.attached
            self._found.ports = ports
        return ports

    def core(self) -> Core:
        """Return what finds ways between switches (or, where hosts forward, between hosts)."""
        core = self._found.core
        if core is None:
            size = len(self.hosts) if self.fabric.forwarding else len(self.switches)
            core = self._found.core = Core(links=self.links, fabric=self.fabric, size=size)
        return core

    def route_core_between(self, src_host: int, src_nic: int, dst_host: int, dst_nic: int) -> RouteCore:
        """Return what a message between two NICs of different hosts uses beside the NICs' own sides (key 0)."""
        src, dst = self._port(src_host, None) + src_nic, self._port(dst_host, None) + dst_nic
        return self._route_core(src_host, dst_host, src, dst, 0, None)

    def _route_core(
        self, src_host: int, dst_host: int, src_port: int, dst_port: int, key: int, kind: RoutingKind | None
    ) -> RouteCore:
        """Return the part of a route between a transmit and a receive side."""
        fabric = self.fabric
        if fabric.cables and not fabric.forwarding:
            cables = self._found.cables
            if cables is None:
                cables = self._found.cables = {(a, b): links for a, b, links in fabric.cables}
            if (direct := cables.get((src_host, dst_host))) is not None:
                latency_s = sum(self.links[link].latency_s for link in direct)
                return RouteCore(usage=tuple((link, 1.0) for link in direct), latency_s=latency_s)
        ports = self.ports()
        try:
            return self.core().part(
                ports[src_port],
                ports[dst_port],
                hosts=(src_host, dst_host),
                ports=(src_port, dst_port),
                key=key,
                kind=kind,
            )
        except InputError as error:
            names = f"{self.hosts[src_host].name} and {self.hosts[dst_host].name}"
            raise InputError(f"{names} are not connected", where=self.name, hint=error.hint) from None


def place(
    hosts: Iterable[Host],
    ranks_per_host: int | None,
    cpu_ranks_per_host: int | None = None,
    ranks_per_device: int | None = None,
) -> tuple[Placement, ...]:
    """Return the placement of ranks host by host, in host order.

    A host gets `ranks_per_host` ranks or, if that is None, `ranks_per_device` for each of its devices (None: one) and
    at least one; where several share a device, they take the devices in turn. Behind all of them come, for each host
    with devices, `cpu_ranks_per_host` ranks on its cores.
    """
    hosts = tuple(hosts)
    placed = []
    for index, host in enumerate(hosts):
        for number in range(ranks_per_host or max(1, (ranks_per_device or 1) * len(host.devices))):
            device = number % len(host.devices) if ranks_per_device and host.devices else number
            placed.append(Placement(host=index, device=device if host.devices else None))
    for index, host in enumerate(hosts):
        placed += [Placement(host=index)] * (cpu_ranks_per_host or 0 if host.devices else 0)
    return tuple(placed)


def star(hosts: Iterable[Host], *, name: str = "star", ranks_per_host: int | None = None) -> Cluster:
    """Return the cluster of `hosts` around one switch, a rank on each device or, without devices, on each host."""
    hosts = tuple(hosts)
    links, fabric = Wiring(switches=["switch"], default=(0,)).lay_out(hosts)
    return Cluster(
        name=name,
        hosts=hosts,
        switches=("switch",),
        links=tuple(links),
        placement=place(hosts, ranks_per_host),
        fabric=fabric,
    )


def with_loopback(cluster: Cluster, loopback: Loopback) -> Cluster:
    """Return `cluster` with `loopback` on every host."""
    return replace(cluster, hosts=tuple(replace(host, loopback=loopback) for host in cluster.hosts))
