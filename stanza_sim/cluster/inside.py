"""What is inside a host: links of its devices, its PCIe tree, its memory, and the ways of messages over them.

A PCIe tree: devices hang under switches, switches (and devices under none) at the root complex of a socket, sockets
are joined by a link each way. NICs hang at root complexes or at switches. Traffic between two devices under one switch
stays there; other traffic crosses the switches' uplinks and, between sockets, the socket link. Devices of two sockets
cannot read each other's memory: what they exchange is written to host memory and read again, as NCCL's shared-memory
transport does. Host memory is interleaved over the sockets, so what starts or ends there crosses each socket's root
complex in equal parts.

Domain of validity: a switch by itself never limits, its links do; what a root complex passes on, and what memory reads
and writes, is limited in total.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stanza_sim.cluster.hardware import DirectedLink, Host, InnerLinks, IntraKind, LinkKind, PcieTree
from stanza_sim.cluster.routing import Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """Where a message starts or ends inside a host: a device, a NIC or, with neither, host memory."""

    device: int | None = None
    nic: int | None = None

    @property
    def in_memory(self) -> bool:
        """Whether it is host memory."""
        return self.device is None and self.nic is None


def switch_of(host: Host, tree: PcieTree, spot: Spot) -> int | None:
    """Return the number of the switch under which a device or NIC hangs."""
    if spot.device is not None:
        return next((w for w, devices in enumerate(tree.switches) if spot.device in devices), None)
    if spot.nic is not None and tree.nics_at_switches:
        return spot.nic * len(tree.switches) // len(host.nics)
    return None


def socket_of(host: Host, tree: PcieTree, spot: Spot) -> int:
    """Return the number of the socket of a device or NIC: its share of its switches (or of its like) in order."""
    if (switch := switch_of(host, tree, spot)) is not None:
        return switch * tree.sockets // len(tree.switches)
    if spot.device is not None:
        return spot.device * tree.sockets // len(host.devices)
    return (spot.nic or 0) * tree.sockets // len(host.nics)


def way(host: Host, found: InnerLinks, src: Spot, dst: Spot) -> Usage:
    """Return what a message from `src` to `dst` uses inside `host`; () where that is no link of it."""
    intra = host.intra
    if intra is None or src == dst:
        return ()
    if intra.tree is not None:
        return _over_tree(host, intra.tree, found, src, dst)
    used: list[tuple[int, float]] = []
    for spot, other, side in ((src, dst, 0), (dst, src, 1)):
        if spot.device is None:
            continue
        if intra.kind is IntraKind.PCIE or other.device is not None:
            used.append((found.devices[spot.device][side], 1.0))
        elif other.in_memory and found.host_links:
            used.append((found.host_links[spot.device][side], 1.0))
    return tuple(used)


def _over_tree(host: Host, tree: PcieTree, found: InnerLinks, src: Spot, dst: Spot) -> Usage:
    used: dict[int, float] = {}

    def use(link: int, share: float = 1.0) -> None:
        used[link] = used.get(link, 0.0) + share

    if src.device is not None:
        use(found.devices[src.device][0])
    switches = switch_of(host, tree, src), switch_of(host, tree, dst)
    if switches[0] is None or switches[0] != switches[1]:
        if switches[0] is not None:
            use(found.uplinks[switches[0]][0])
        starts = _sockets(host, tree, src)
        stops = _sockets(host, tree, dst)
        even = 1.0 / (len(starts) * len(stops))
        for a in starts:
            for b in stops:
                for socket in dict.fromkeys((a, b)) if found.roots else ():
                    use(found.roots[socket], even)
                if a != b and found.sockets:
                    use(found.sockets[a][b], even)
                for socket, spot in ((a, src), (b, dst)) if found.memories else ():
                    if spot.in_memory:
                        use(found.memories[socket], even)
                if a != b and found.memories and src.device is not None and dst.device is not None:
                    use(found.memories[a], 2.0)  # written and read again
        if switches[1] is not None:
            use(found.uplinks[switches[1]][1])
    if dst.device is not None:
        use(found.devices[dst.device][1])
    return tuple(used.items())


def _sockets(host: Host, tree: PcieTree, spot: Spot) -> Sequence[int]:
    return range(tree.sockets) if spot.in_memory else (socket_of(host, tree, spot),)


def lay_inside(hosts: Sequence[Host], links: list[DirectedLink]) -> tuple[InnerLinks, ...]:
    """Append the links inside hosts to `links`; return them by host, or () where there are none."""
    if not any(host.intra for host in hosts):
        return ()
    return tuple(_lay(h, host, links) for h, host in enumerate(hosts))


def _lay(h: int, host: Host, links: list[DirectedLink]) -> InnerLinks:
    intra = host.intra
    if intra is None:
        return InnerLinks()

    def add(name: str, label: str, rate_Bps: float, latency_s: float = 0.0, kind: LinkKind = LinkKind.INSIDE) -> int:
        links.append(
            DirectedLink(
                name=f"{host.name}.{name}",
                label=f"{host.name} {label}",
                bandwidth_Bps=rate_Bps,
                latency_s=latency_s,
                kind=kind,
                host=h,
            )
        )
        return len(links) - 1

    def pair(name: str, label: str, rate_Bps: float, sides: tuple[str, str] = ("up", "down")) -> tuple[int, int]:
        first, second = (add(f"{name}.{side}", f"{label} {side}", rate_Bps) for side in sides)
        return first, second

    devices = []
    for d, device in enumerate(host.devices):
        rate_Bps, label = intra.bandwidth_Bps * intra.efficiency, f"{device.rpartition('/')[2]} {d} {intra.kind}"
        out = add(f"device{d}.out", f"{label} out", rate_Bps, intra.latency_s, LinkKind.DEVICE_OUT)
        into = add(f"device{d}.in", f"{label} in", rate_Bps, intra.latency_s, LinkKind.DEVICE_IN)
        devices.append((out, into))
    host_links = []
    if (rate_Bps := intra.host_link_Bps or 0.0) > 0:
        for d, device in enumerate(host.devices):
            label = f"{device.rpartition('/')[2]} {d} host link"
            host_links.append(pair(f"device{d}.host", label, rate_Bps, ("out", "in")))
    tree = intra.tree
    if tree is None:
        return InnerLinks(devices=tuple(devices), host_links=tuple(host_links))
    of_switch_Bps = intra.bandwidth_Bps if tree.switch_Bps is None else tree.switch_Bps
    sockets = range(tree.sockets)
    uplinks = [
        pair(f"pcie{w}", f"PCIe switch {w}", of_switch_Bps * intra.efficiency) for w in range(len(tree.switches))
    ]
    roots, memories, between = [], [], []
    if tree.root_Bps is not None:
        roots = [add(f"root{s}", f"root complex {s}", tree.root_Bps) for s in sockets]
    if tree.memory_Bps is not None:
        memories = [add(f"memory{s}", f"memory of socket {s}", tree.memory_Bps) for s in sockets]
    if tree.socket_Bps is not None:
        for a in sockets:
            limit_Bps = tree.socket_Bps
            between.append(
                tuple(-1 if a == b else add(f"socket{a}-{b}", f"socket {a} to {b}", limit_Bps) for b in sockets)
            )
    return InnerLinks(
        devices=tuple(devices),
        uplinks=tuple(uplinks),
        roots=tuple(roots),
        memories=tuple(memories),
        sockets=tuple(between),
    )
