"""What a schedule runs on: hosts, their NICs, the switches between them, and the links of every route.

A NIC is two directed links, since a port is full duplex: its transmit side and its receive side. Between two hosts
a message crosses the sender's transmit side, the links between the switches on its way, and the receiver's receive
side; each adds its latency. Hosts do not forward for others. Ranks on one host talk over its loopback, which is
not a link: it has a single-stream cap and costs core time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise
from typing import TYPE_CHECKING

from stanza_sim.errors import InputError

if TYPE_CHECKING:
    import networkx as nx

MOST_EQUAL_PATHS = 64
"""Of more equally short paths between two switches than this, only so many are used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectedLink:
    """One direction of a cable. `bandwidth_Bps` is goodput (rate x efficiency); `label` is for tables."""

    name: str
    label: str
    bandwidth_Bps: float
    latency_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Nic:
    """A network port, full duplex.

    `bandwidth_Bps` is the raw rate of each direction and `efficiency` the share of it that payload gets;
    `latency_s` is one way from the host to the switch (or back), `overhead_s` the time that the sending side needs
    for each message before its first byte leaves.
    """

    bandwidth_Bps: float
    latency_s: float = 0.0
    overhead_s: float = 0.0
    efficiency: float = 1.0

    @property
    def goodput_Bps(self) -> float:
        """Payload bytes per second in each direction."""
        return self.bandwidth_Bps * self.efficiency


@dataclass(frozen=True, slots=True, kw_only=True)
class Loopback:
    """How ranks on one host exchange messages.

    `bandwidth_Bps` caps a single stream; `message_core_s` and `byte_core_s` are the core-seconds that a message and
    a byte cost, both sides together. The defaults are what gloo reached between two processes of a virtual machine
    with 2 cores (16 MB one way: 1.5 GB/s and 0.75 core-seconds per GB; 64 bytes: 140 us); they are calibrated before
    a run on this machine is predicted.
    """

    bandwidth_Bps: float = 1.5e9
    latency_s: float = 50e-6
    message_core_s: float = 100e-6
    byte_core_s: float = 0.8e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A machine. `devices` names its accelerators; without any, ranks compute on its cores (device `cpu`).

    `device_speed` scales how fast its devices (or cores) compute: 0.5 is half as fast as the device's data say.
    """

    name: str
    cores: int
    nic: Nic
    devices: tuple[str, ...] = ()
    device_speed: float = 1.0
    loopback: Loopback = field(default_factory=Loopback)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a rank runs: the index of its host and of its device there (None: on the host's cores)."""

    host: int
    device: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fabric:
    """How hosts hang together. All numbers are indices of hosts, of switches or into `Cluster.links`.

    `attached[h]` are the switches of host h; `trunks` are (switch, switch, link) and `cables` (host, host, links),
    each for one direction.
    """

    attached: tuple[tuple[int, ...], ...]
    trunks: tuple[tuple[int, int, int], ...] = ()
    cables: tuple[tuple[int, int, tuple[int, ...]], ...] = ()


@dataclass(slots=True)
class _Found:
    """What has been worked out so far; a cache, so no part of a cluster's value."""

    ranks: list[tuple[int, ...]] | None = None
    graph: nx.DiGraph | None = None
    trunks: dict[tuple[int, int], int] | None = None
    cables: dict[tuple[int, int], tuple[int, ...]] | None = None
    between: dict[tuple[int, int], tuple[tuple[int, ...], ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Hosts, links and the place of each rank.

    Host h has the links 2h (transmit side) and 2h + 1 (receive side), unless there is one host only; links between
    switches and cables between hosts follow. `nodes_are_ranks` says that a node in the sense of the comparison at
    equal node count is a rank (ranks that share a host) and not a host.
    """

    name: str
    hosts: tuple[Host, ...]
    switches: tuple[str, ...]
    links: tuple[DirectedLink, ...]
    placement: tuple[Placement, ...]
    fabric: Fabric
    description: str = ""
    nodes_are_ranks: bool = False
    _found: _Found = field(default_factory=_Found, init=False, repr=False, compare=False)

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
        """Whether the two sides of the NICs are the only links that any route uses."""
        if self.fabric.cables:
            return False
        shared = set(self.fabric.attached[0]).intersection(*set(self.fabric.attached))
        return bool(shared) or len(self.hosts) == 1

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

    def route(self, src_host: int, dst_host: int) -> tuple[int, ...]:
        """Return the indices of the links from one host to another, in order; () on the same host.

        The path has the fewest hops. Among n equally short paths the destination decides (dst modulo n), so that
        routes are the same every time and a shift of all hosts loads the paths evenly (D-mod-k routing, E. Zahavi,
        "Fat-tree routing and node ordering providing contention free traffic for MPI global collectives", 2012).
        Raises `InputError` if the hosts are not connected (`load_cluster` has checked that they are).
        """
        if src_host == dst_host:
            return ()
        tx, rx = 2 * src_host, 2 * dst_host + 1
        attached = self.fabric.attached
        if not self.fabric.cables and attached[src_host] and attached[src_host] == attached[dst_host]:
            return tx, rx
        cables = self._found.cables
        if cables is None:
            cables = self._found.cables = {(a, b): links for a, b, links in self.fabric.cables}
        if (direct := cables.get((src_host, dst_host))) is not None:
            return tx, *direct, rx
        paths = self._switch_paths(src_host, dst_host)
        if not paths:
            raise InputError(
                f"{self.hosts[src_host].name} and {self.hosts[dst_host].name} are not connected", where=self.name
            )
        return tx, *paths[dst_host % len(paths)], rx

    def latency_s(self, src_host: int, dst_host: int) -> float:
        """Return the sum of the latencies of the route's links; 0 on the same host (see `Loopback.latency_s`)."""
        return sum(self.links[link].latency_s for link in self.route(src_host, dst_host))

    def _switch_paths(self, src_host: int, dst_host: int) -> tuple[tuple[int, ...], ...]:
        """Return the shortest ways, as trunk links, from a switch of one host to a switch of another."""
        attached = self.fabric.attached
        best: list[tuple[int, ...]] = []
        for a in attached[src_host]:
            for b in attached[dst_host]:
                for path in self._between(a, b):
                    if not best or len(path) < len(best[0]):
                        best = [path]
                    elif len(path) == len(best[0]):
                        best.append(path)
        return tuple(best)

    def _between(self, a: int, b: int) -> tuple[tuple[int, ...], ...]:
        """Return the shortest paths between two switches, as trunk links; found once per pair."""
        if a == b:
            return ((),)
        cache = self._found.between
        if (a, b) not in cache:
            import networkx as nx  # a star never needs it, and it takes longer to import than a star to build

            trunks = self._found.trunks
            if trunks is None:
                trunks = self._found.trunks = {(x, y): link for x, y, link in self.fabric.trunks}
                self._found.graph = nx.DiGraph(sorted(trunks))
                self._found.graph.add_nodes_from(range(len(self.switches)))
            try:
                found = sorted(islice(nx.all_shortest_paths(self._found.graph, a, b), MOST_EQUAL_PATHS))
            except nx.NetworkXNoPath:
                found = []
            cache[a, b] = tuple(tuple(trunks[hop] for hop in pairwise(p)) for p in found)
        return cache[a, b]


def nic_links(name: str, nic: Nic) -> tuple[DirectedLink, DirectedLink]:
    """Return the transmit and the receive side of the NIC of host `name`."""
    goodput, latency = nic.goodput_Bps, nic.latency_s
    return (
        DirectedLink(name=f"{name}.tx", label=f"{name} transmit side", bandwidth_Bps=goodput, latency_s=latency),
        DirectedLink(name=f"{name}.rx", label=f"{name} receive side", bandwidth_Bps=goodput, latency_s=latency),
    )


def place(hosts: Iterable[Host], ranks_per_host: int | None) -> tuple[Placement, ...]:
    """Return the placement of ranks host by host, in host order.

    A host gets `ranks_per_host` ranks or, if that is None, one rank for each of its devices and at least one.
    """
    placed = []
    for index, host in enumerate(hosts):
        for device in range(ranks_per_host or max(1, len(host.devices))):
            placed.append(Placement(host=index, device=device if host.devices else None))
    return tuple(placed)


def star(hosts: Iterable[Host], *, name: str = "star", ranks_per_host: int | None = None) -> Cluster:
    """Return the cluster of `hosts` around one switch, a rank on each device or, without devices, on each host."""
    hosts = tuple(hosts)
    links = tuple(link for host in hosts for link in nic_links(host.name, host.nic))
    return Cluster(
        name=name,
        hosts=hosts,
        switches=("switch",),
        links=links,
        placement=place(hosts, ranks_per_host),
        fabric=Fabric(attached=((0,),) * len(hosts)),
    )


def with_loopback(cluster: Cluster, loopback: Loopback) -> Cluster:
    """Return `cluster` with `loopback` on every host."""
    return replace(cluster, hosts=tuple(replace(host, loopback=loopback) for host in cluster.hosts))
