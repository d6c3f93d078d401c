"""Slow hosts that serve or train the FC part, in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from stanza_sim.base.precision import Precision
from stanza_sim.base.units import format_rate
from stanza_sim.cluster import Cluster
from stanza_sim.cluster.hardware import kinds_of
from stanza_sim.schedule import Schedule
from stanza_sim.strategies._shared.places import network_Bps, peak_flops

ROLES = {"server": ("server", "serves"), "fc_worker": ("FC worker", "trains the FC part")}
"""Groups of ranks whose place `on` may choose, in words."""
SLOWER = 0.99
"""What reaches less than this share of the fastest is slower."""
MOST_NAMED = 3
"""Of more hosts than these, only their number is told."""


def slow_places(schedule: Schedule, cluster: Cluster, precision: Precision) -> tuple[str, ...]:
    """A sentence for each role that is on hosts with a slower network, or device, than others there have."""
    if len(set(kinds_of(cluster.hosts))) == 1:
        return ()
    everyone = _one_of_each(range(cluster.world_size), cluster)
    found: list[str] = []
    for group in schedule.groups:
        if group.name not in ROLES:
            continue
        ranks = _one_of_each(group.ranks, cluster)
        slow, why = _slower(ranks, everyone, cluster, precision)
        if not slow:
            continue
        who, does = ROLES[group.name]
        if len(group.ranks) == cluster.world_size:
            found.append(f"{_named(slow)} {does} like all others, but {why}")
        else:
            article = "the" if len(ranks) == 1 else "a"
            found.append(f"{article} {who} is on {_named(slow)}, but {why}; `on` chooses other places")
    return tuple(found)


def _slower(
    ranks: Sequence[int], everyone: Sequence[int], cluster: Cluster, precision: Precision
) -> tuple[list[str], str]:
    """The hosts of those `ranks` that are slower than the fastest of `everyone`, and in what."""
    if len(cluster.hosts) > 1:
        slow, best = _below(ranks, everyone, lambda rank: network_Bps(cluster, rank))
        if slow:
            rates = [format_rate(_port_Bps(cluster, rank)) for rank in (slow[0], best)]
            why = f"{cluster.host_of(best).name}'s network is faster ({rates[1]}, not {rates[0]})"
            return _hosts(slow, cluster), why
    like = [rank for rank in ranks if not cluster.on_cores(rank)]  # a server on cores may well be meant to be there
    others = [rank for rank in everyone if not cluster.on_cores(rank)]
    slow, best = _below(like, others, lambda rank: peak_flops(cluster, rank, precision))
    if not slow:
        return [], ""
    devices = [cluster.device_of(rank) for rank in (slow[0], best)]
    faster = f"{devices[1]} is faster than its {devices[0]}" if devices[0] != devices[1] else f"{devices[1]} is faster"
    return _hosts(slow, cluster), f"{cluster.host_of(best).name}'s {faster}"


def _port_Bps(cluster: Cluster, rank: int) -> float:
    """The raw rate of the NIC that `rank` uses, in its slower direction."""
    host = cluster.host_of(rank)
    nic = host.nics[host.nic_of(cluster.placement[rank].device)]
    return min(nic.bandwidth_Bps, nic.receive_bandwidth_Bps or nic.bandwidth_Bps)


def _below(ranks: Sequence[int], everyone: Sequence[int], speed: Callable[[int], float]) -> tuple[list[int], int]:
    """Those of `ranks` that stay below the fastest of `everyone`, which comes second."""
    if not everyone:
        return [], -1
    best = max(everyone, key=speed)
    return [rank for rank in ranks if speed(rank) < SLOWER * speed(best)], best


def _one_of_each(ranks: Iterable[int], cluster: Cluster) -> list[int]:
    """The first rank of each host, and of each device of it."""
    first: dict[tuple[int, int | None], int] = {}
    for rank in ranks:
        place = cluster.placement[rank]
        first.setdefault((place.host, place.device), rank)
    return list(first.values())


def _hosts(ranks: Sequence[int], cluster: Cluster) -> list[str]:
    return list(dict.fromkeys(cluster.host_of(rank).name for rank in ranks))


def _named(hosts: Sequence[str]) -> str:
    if len(hosts) > MOST_NAMED:
        return f"{hosts[0]} and {len(hosts) - 1} other hosts"
    return " and ".join(hosts)
