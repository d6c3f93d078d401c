"""Which pairs of ranks exchange messages over links alike: what is measured for one of a kind holds for all."""

from __future__ import annotations

from dataclasses import dataclass

from stanza_sim.cluster.cluster import Cluster, flow_key
from stanza_sim.cluster.hardware import LinkKind

_PER_LOOK = 2
_INSIDE = (LinkKind.SEND, LinkKind.RECEIVE, LinkKind.DEVICE_OUT, LinkKind.DEVICE_IN, LinkKind.INSIDE)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairKind:
    """What a message between two hosts crosses, as raw rates: both NICs and the bottleneck between the switches.

    `between_Bps` is None where there is nothing between the NICs that could limit a message.
    """

    sender_Bps: float
    receiver_Bps: float
    between_Bps: float | None = None

    @property
    def bottleneck_Bps(self) -> float:
        """The rate that limits a message."""
        ends_Bps = min(self.sender_Bps, self.receiver_Bps)
        return ends_Bps if self.between_Bps is None else min(ends_Bps, self.between_Bps)


def raw_Bps(cluster: Cluster, link: int) -> float:
    """Return the rate of a link before its efficiency, in whole bytes per second.

    A link between switches keeps its goodput only; its efficiency is taken to be that of the first host's NIC, which
    is the default of generated fabrics.
    """
    host = cluster.nic_host(link)
    efficiency = cluster.hosts[0].nic.efficiency
    if host is not None:
        numbers = [n for n, sides in enumerate(cluster.nic_links_of(host)) if link in sides]
        efficiency = cluster.hosts[host].nics[numbers[0]].efficiency
    return float(round(cluster.links[link].bandwidth_Bps / efficiency))


def pair_kind(cluster: Cluster, src: int, dst: int, channel: str = "") -> PairKind:
    """Return the kind of a message from rank `src` to rank `dst`, which must be on another host."""
    a, b = cluster.placement[src], cluster.placement[dst]
    usage, _ = cluster.usage(a.host, b.host, flow_key(src, dst, channel), a.device, b.device)
    kinds = {q: cluster.links[q].kind for q, _ in usage}
    between = [raw_Bps(cluster, q) / share for q, share in usage if kinds[q] not in _INSIDE]
    return PairKind(
        sender_Bps=next(raw_Bps(cluster, q) for q in kinds if kinds[q] is LinkKind.SEND),
        receiver_Bps=next(raw_Bps(cluster, q) for q in kinds if kinds[q] is LinkKind.RECEIVE),
        between_Bps=min(between, default=None),
    )


def pair_kinds(cluster: Cluster) -> dict[PairKind, tuple[int, int]]:
    """Return every kind of pair of ranks on different hosts, with the first pair (source, destination) of it.

    Of hosts that look alike (rates of NICs, switches) two are looked at: all others have pairs of the same kinds.
    Where hosts are joined by cables, pairs further apart than these two are taken to be like them.
    """
    looks: dict[object, list[int]] = {}
    for rank, at in enumerate(cluster.placement):
        sides = tuple(cluster.links[k].bandwidth_Bps for nic in cluster.nic_links_of(at.host) for k in nic)
        nic = cluster.hosts[at.host].nic_of(at.device)
        alike = looks.setdefault((sides, nic, cluster.fabric.attached[at.host]), [])
        if len(alike) < _PER_LOOK and all(cluster.placement[r].host != at.host for r in alike):
            alike.append(rank)
    ranks = sorted(rank for alike in looks.values() for rank in alike)
    found: dict[PairKind, tuple[int, int]] = {}
    for src in ranks:
        for dst in ranks:
            if not cluster.same_host(src, dst):
                found.setdefault(pair_kind(cluster, src, dst), (src, dst))
    return found


def pairs_to_measure(cluster: Cluster) -> tuple[tuple[int, int], ...]:
    """Return pairs of ranks such that every kind is that of one of them, in one direction or the other."""
    kinds = pair_kinds(cluster)
    chosen: list[tuple[int, int]] = []
    covered: set[PairKind] = set()
    for kind, (src, dst) in kinds.items():
        if kind not in covered:
            chosen.append((src, dst))
            covered |= {kind, pair_kind(cluster, dst, src)}
    return tuple(chosen)
