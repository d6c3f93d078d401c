"""Collects what is joined to what, and lays out the directed links of a cluster."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stanza_sim.cluster.hardware import DirectedLink, Fabric, Host, LinkKind, Routing, TokenBucket, Traffic
from stanza_sim.cluster.inside import lay_inside

if TYPE_CHECKING:
    import networkx as nx


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkDirection:
    """One direction of a link to be: its goodput and latency, background traffic and token bucket."""

    bandwidth_Bps: float
    latency_s: float = 0.0
    background: Traffic | None = None
    bucket: TokenBucket | None = None


@dataclass(slots=True, kw_only=True)
class Wiring:
    """What is joined to what: switches by name, their backplanes, and who is linked to whom.

    `attached[h][n]` are the switches of NIC n of host h; a host that is not in it hangs on `default`. A cable of None
    is limited by the two NICs only.
    """

    switches: list[str] = field(default_factory=list)
    backplanes: dict[int, float] = field(default_factory=dict)
    attached: dict[int, list[tuple[int, ...]]] = field(default_factory=dict)
    default: tuple[int, ...] = ()
    trunks: dict[tuple[int, int], LinkDirection] = field(default_factory=dict)
    cables: dict[tuple[int, int], LinkDirection | None] = field(default_factory=dict)
    forwarding: bool = False
    routing: Routing = field(default_factory=Routing)

    def attach(self, host: int, nics: int, switch: int, nic: int | None = None) -> None:
        """Join `nic`, or all `nics` NICs of `host`, to `switch`."""
        ports = self.attached.setdefault(host, [()] * nics)
        for n in range(nics) if nic is None else (nic,):
            if switch not in ports[n]:
                ports[n] = (*ports[n], switch)

    def add_graph(self, graph: nx.DiGraph, hosts: Sequence[Host]) -> None:
        """Add a graph whose nodes are host numbers and switch names.

        A node that is a switch may have a `backplane`; an edge may have a `line`, and stands for one direction.
        """
        index = {name: i for i, name in enumerate(n for n in graph if isinstance(n, str))}
        self.switches.extend(index)
        for name, i in index.items():
            if (backplane_Bps := graph.nodes[name].get("backplane")) is not None:
                self.backplanes[i] = backplane_Bps
        for a, b, line in graph.edges(data="line"):
            match isinstance(a, str), isinstance(b, str):
                case True, True:
                    self.trunks[index[a], index[b]] = line
                case False, True:
                    self.attach(a, len(hosts[a].nics), index[b])
                case False, False:
                    self.cables[a, b] = line

    def lay_out(self, hosts: Sequence[Host]) -> tuple[list[DirectedLink], Fabric]:
        """Return all links and how they hang together: NICs, then trunks, cables, backplanes and devices."""
        several = len(hosts) > 1
        links = nic_links(hosts, self._port_sums(hosts) if self.forwarding else None) if several else []
        trunks = []
        for (a, b), line in self.trunks.items():
            trunks.append((a, b, len(links)))
            links.append(_directed(self.switches[a], self.switches[b], line, LinkKind.TRUNK))
        ways = []
        for (a, b), cable in self.cables.items():
            ways.append((a, b, () if cable is None else (len(links),)))
            if cable is not None:
                links.append(_directed(hosts[a].name, hosts[b].name, cable, LinkKind.CABLE))
        planes = []
        for s, backplane_Bps in self.backplanes.items():
            planes.append((s, len(links)))
            name = self.switches[s]
            links.append(
                DirectedLink(
                    name=f"{name}.backplane",
                    label=f"{name} backplane",
                    bandwidth_Bps=backplane_Bps,
                    latency_s=0.0,
                    kind=LinkKind.BACKPLANE,
                )
            )
        ports: tuple[tuple[tuple[int, ...], ...], ...] = ()
        if several and any(host.more_nics for host in hosts):
            ports = tuple(
                tuple(self.attached[h]) if h in self.attached else (self.default,) * len(host.nics)
                for h, host in enumerate(hosts)
            )
            attached = tuple(tuple(dict.fromkeys(s for nic in nics for s in nic)) for nics in ports)
        else:
            attached = tuple(self.attached[h][0] if h in self.attached else self.default for h in range(len(hosts)))
        fabric = Fabric(
            attached=attached,
            trunks=tuple(trunks),
            cables=tuple(ways),
            ports=ports,
            backplanes=tuple(planes),
            inside=lay_inside(hosts, links),
            forwarding=self.forwarding,
            routing=self.routing,
        )
        return links, fabric

    def _port_sums(self, hosts: Sequence[Host]) -> list[tuple[float, float]]:
        """Return what the ports of each host carry together, out and in: its own traffic may use all of them."""
        sums = [[0.0, 0.0] for _ in hosts]
        for (a, b), cable in self.cables.items():
            if cable is not None:
                sums[a][0] += cable.bandwidth_Bps
                sums[b][1] += cable.bandwidth_Bps
        return [(out_Bps, in_Bps) for out_Bps, in_Bps in sums]


def port_line(a: Host, b: Host, latency_s: float = 0.0) -> LinkDirection:
    """Return the cable from `a` to `b` that carries what the slower of its two ports does."""
    return LinkDirection(bandwidth_Bps=min(a.nic.goodput_Bps, b.nic.receive_goodput_Bps), latency_s=latency_s)


def nic_links(hosts: Iterable[Host], goodputs: Sequence[tuple[float, float]] | None = None) -> list[DirectedLink]:
    """Return the transmit and the receive side of every NIC, host by host; `goodputs` replaces each host's."""
    links = []
    for h, host in enumerate(hosts):
        name = label = host.name
        for n, nic in enumerate(host.nics):
            if host.more_nics:
                name, label = f"{host.name}.nic{n}", f"{host.name} NIC {n}"
            background = nic.background and nic.background.scaled(nic.efficiency)
            bucket = nic.bucket and nic.bucket.scaled(nic.efficiency)
            out_Bps, in_Bps = goodputs[h] if goodputs else (nic.goodput_Bps, nic.receive_goodput_Bps)
            links.append(
                DirectedLink(
                    name=f"{name}.tx",
                    label=f"{label} transmit side",
                    bandwidth_Bps=out_Bps,
                    latency_s=nic.latency_s,
                    kind=LinkKind.SEND,
                    host=h,
                    background=background,
                    bucket=bucket,
                )
            )
            links.append(
                DirectedLink(
                    name=f"{name}.rx",
                    label=f"{label} receive side",
                    bandwidth_Bps=in_Bps,
                    latency_s=nic.latency_s if nic.receive_latency_s is None else nic.receive_latency_s,
                    kind=LinkKind.RECEIVE,
                    host=h,
                    background=background,
                    bucket=bucket,
                )
            )
    return links


def _directed(start: str, end: str, line: LinkDirection, kind: LinkKind) -> DirectedLink:
    return DirectedLink(
        name=f"{start}->{end}",
        label=f"link {start} to {end}",
        bandwidth_Bps=line.bandwidth_Bps,
        latency_s=line.latency_s,
        kind=kind,
        background=line.background,
        bucket=line.bucket,
    )
