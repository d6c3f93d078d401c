"""The rings in which data goes round a group: that of its ranks, and those of NCCL over the NICs of its hosts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from stanza_sim.cluster.cluster import Cluster


def members_by_host(cluster: Cluster, group: Iterable[int]) -> dict[int, list[int]]:
    """The ranks of a group on each host, by device; hosts in the order of their first members."""
    hosts: dict[int, list[int]] = defaultdict(list)
    for r in group:
        hosts[cluster.placement[r].host].append(r)
    return {h: sorted(ranks, key=lambda r: cluster.placement[r].device or 0) for h, ranks in hosts.items()}


def nics_of(cluster: Cluster, ranks: Sequence[int]) -> dict[int, int]:
    """The first of `ranks`, of one host, that uses each NIC, by NIC."""
    found: dict[int, int] = {}
    for r in ranks:
        found.setdefault(cluster.host_of(r).nic_of(cluster.placement[r].device), r)
    return found


def rings_of(cluster: Cluster, hosts: Mapping[int, Sequence[int]]) -> Iterator[tuple[int, ...]]:
    """The rings of a group with these ranks on each host, each in order: one for each NIC of the host that uses most.

    Ring k enters a host at the device of its NIC k, counted round where there are fewer. On one host there is one ring.

    Example: two hosts of four devices and two NICs have the rings 0 1 2 3 4 5 6 7 and 2 3 0 1 6 7 4 5.
    """
    entries = {h: [ranks.index(r) for r in nics_of(cluster, ranks).values()] for h, ranks in hosts.items()}
    count = max(map(len, entries.values())) if len(hosts) > 1 else 1
    for k in range(count):
        ring: list[int] = []
        for h, ranks in hosts.items():
            first = entries[h][k % len(entries[h])]
            ring += [*ranks[first:], *ranks[:first]]
        yield tuple(ring)
