"""What `what_if` is told, by name, and clusters that are loaded at another rate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from stanza_sim.api._arguments import factor
from stanza_sim.base.config import near
from stanza_sim.base.errors import InputError
from stanza_sim.cluster.cluster import Cluster
from stanza_sim.cluster.hardware import Nic

FUNCTION = "what_if"


def with_rate(cluster: Cluster, rate_Bps: float) -> Cluster:
    """The cluster whose NICs all have this raw rate in both directions, as `load_cluster(..., rate=)` makes it."""
    links = list(cluster.links)
    for h, host in enumerate(cluster.hosts):
        for nic, sides in zip(host.nics, cluster.nic_links_of(h), strict=False):
            for link in sides:
                links[link] = replace(links[link], bandwidth_Bps=rate_Bps * nic.efficiency)

    def nic_of(one: Nic) -> Nic:
        return replace(one, bandwidth_Bps=rate_Bps, receive_bandwidth_Bps=None)

    hosts = [
        replace(host, nic=nic_of(host.nic), more_nics=tuple(map(nic_of, host.more_nics))) for host in cluster.hosts
    ]
    return replace(cluster, links=tuple(links), hosts=tuple(hosts))


# ---- by name ---------------------------------------------------------------------------------------------------------


def links_called(cluster: Cluster, given: object) -> dict[int, float]:
    """The factor of each link that `{name: factor}` names, by the link's name or label. Raises `InputError`."""
    found: dict[int, float] = {}
    for name, times in _named(given, "link"):
        mine = [q for q, link in enumerate(cluster.links) if name in (link.name, link.label)]
        if not mine:
            raise _unknown("link", name, [link.label for link in cluster.links])
        found |= dict.fromkeys(mine, times)
    return found


def nics_called(cluster: Cluster, given: object) -> dict[int, float]:
    """The factor of both sides of all NICs of the hosts that `{host: factor}` names. Raises `InputError`."""
    found: dict[int, float] = {}
    for name, times in _named(given, "nic"):
        for h in _hosts_called(cluster, name, "nic"):
            found |= {link: times for sides in cluster.nic_links_of(h) for link in sides}
    return found


def devices_called(cluster: Cluster, given: object) -> dict[int, float]:
    """The factor of each host that has a device (`cpu`: none) that `{device: factor}` names. Raises `InputError`."""
    found: dict[int, float] = {}
    for name, times in _named(given, "device"):
        names = [set(host.devices or ("cpu",)) for host in cluster.hosts]
        mine = [h for h, own in enumerate(names) if name in own]
        if not mine:
            raise _unknown("device", name, sorted(set().union(*names)))
        if (mixed := next((h for h in mine if len(names[h]) > 1), None)) is not None:
            what = f"{cluster.hosts[mixed].name} also has other devices than {name}"
            raise InputError(what, where=f"{FUNCTION}: device", hint="all devices of a host have one speed")
        found |= dict.fromkeys(mine, times)
    return found


def ranks_called(cluster: Cluster, given: object) -> dict[int, float]:
    """The factor of the host of each rank that `{rank: factor}` names. Raises `InputError`."""
    found: dict[int, float] = {}
    for rank, times in _named(given, "rank"):
        if isinstance(rank, bool) or not isinstance(rank, int) or not 0 <= rank < cluster.world_size:
            hint = f"the ranks are 0 to {cluster.world_size - 1}"
            raise InputError(f"there is no rank {rank!r:.60}", where=f"{FUNCTION}: rank", hint=hint)
        host = cluster.placement[rank].host
        if len(others := cluster.ranks_on(host)) > 1:
            what = f"rank {rank} shares {cluster.hosts[host].name} with {len(others) - 1} others"
            raise InputError(what, where=f"{FUNCTION}: rank", hint="all devices of a host have one speed")
        found[host] = times
    return found


def _hosts_called(cluster: Cluster, name: object, key: str) -> list[int]:
    mine = [h for h, host in enumerate(cluster.hosts) if host.name == name]
    if not mine:
        raise _unknown("host", name, [host.name for host in cluster.hosts], key)
    return mine


def _named(given: object, key: str) -> Iterable[tuple[object, float]]:
    if given is None:
        return
    if not isinstance(given, Mapping):
        what, hint = f"is a {type(given).__name__}", f"should be a mapping of each {key} to a factor"
        raise InputError(what, where=f"{FUNCTION}: {key}", hint=hint)
    for name, times in given.items():
        yield name, factor(times, FUNCTION, f"{key}[{name!r:.60}]")


def _unknown(what: str, name: object, known: list[str], key: str = "") -> InputError:
    hint = near(str(name), dict.fromkeys(known[:40]))
    return InputError(f"there is no {what} {name!r:.60}", where=f"{FUNCTION}: {key or what}", hint=hint)
