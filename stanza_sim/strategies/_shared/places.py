"""Where the ranks are that serve or train the FC part: the setting `on`.

A rank stays where the topology places it, and where torchrun or Slurm start it; `on` chooses which ranks have the role.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from stanza_sim.base.config import near
from stanza_sim.base.errors import InputError
from stanza_sim.base.precision import Precision
from stanza_sim.cluster.cluster import Cluster
from stanza_sim.cluster.device import load_device
from stanza_sim.cluster.hardware import kinds_of

MOST_KINDS = 4
"""Of more kinds of hosts than these, `plan` tries some."""
FASTEST: Literal["fastest"] = "fastest"


def _listed(value: object) -> object:
    """A place by its bare name stands for a list of one."""
    return [value] if isinstance(value, str) and value != FASTEST else value


Place = Annotated[str, Field(min_length=1)]
On = Annotated[Literal["fastest"] | Annotated[tuple[Place, ...], Field(min_length=1)], BeforeValidator(_listed)]
"""Where a role is: places by name, or the fastest that there are."""

ON = (
    "{who}: [HOST, ...], also HOST/2 (a rank on its device number 2) and HOST/cpu; or fastest: the hosts with the "
    "fastest network{then}. If {count} is left out, there is one at each place. Default: {default}."
)
"""Describes the setting; to be filled in."""


def network_Bps(cluster: Cluster, rank: int) -> float:
    """Payload bytes per second that `rank` sends and receives at least, beside others' traffic; see `Host.nic_of`."""
    place, host = cluster.placement[rank], cluster.host_of(rank)
    nic = host.nics[host.nic_of(place.device)]
    rate_Bps = min(nic.goodput_Bps, nic.receive_goodput_Bps)
    if (others := nic.background) is not None:
        there = 1.0 if others.on_s is None or not others.off_s else others.on_s / (others.on_s + others.off_s)
        rate_Bps = max(0.0, rate_Bps - there * others.bandwidth_Bps * nic.efficiency)
    return min(rate_Bps, nic.transport.process_Bps or rate_Bps)


def peak_flops(cluster: Cluster, rank: int, precision: Precision) -> float:
    """FLOP/s of what `rank` computes on, by its data sheet and the host's `device_speed`.

    At `precision`, or in fp32 where the device does not know it.
    """
    try:
        peaks = load_device(cluster.device_of(rank)).precisions
        known = peaks.get(precision) or peaks.get(Precision.FP32)
    except InputError:  # a device of which nothing is known but its name
        known = None
    return (known.peak_flops if known else 1.0) * cluster.host_of(rank).device_speed


def by_speed(cluster: Cluster, precision: Precision, *, computes: bool) -> list[int]:
    """Ranks, those with the fastest network first and then, if the role `computes`, those on the fastest devices.

    Of those that are alike the last come first, which is where a role is by default.
    """
    kinds = kinds_of(cluster.hosts)
    known: dict[tuple[int, int | None], tuple[float, float]] = {}

    def speed(rank: int) -> tuple[float, float]:
        place = cluster.placement[rank]
        key = kinds[place.host], place.device
        if key not in known:
            known[key] = network_Bps(cluster, rank), peak_flops(cluster, rank, precision) if computes else 0.0
        return known[key]

    return sorted(range(cluster.world_size), key=lambda rank: (*(-s for s in speed(rank)), -rank))


def kinds_of_places(cluster: Cluster) -> list[list[str]]:
    """The names of hosts that have ranks, by how fast their network and what they compute on are."""
    kinds: dict[tuple[tuple[float, float], ...], list[str]] = {}
    known: dict[tuple[int, tuple[int | None, ...]], tuple[tuple[float, float], ...]] = {}
    for number, kind in enumerate(kinds_of(cluster.hosts)):
        ranks = cluster.ranks_on(number)
        if not ranks:
            continue
        alike = kind, tuple(cluster.placement[r].device for r in ranks)
        if alike not in known:
            speeds = {(network_Bps(cluster, r), peak_flops(cluster, r, Precision.FP32)) for r in ranks}
            known[alike] = tuple(sorted(speeds))
        kinds.setdefault(known[alike], []).append(cluster.hosts[number].name)
    return list(kinds.values())


def worth_trying(kinds: Sequence[Sequence[str]], count: int) -> Iterator[On]:
    """Where `count` ranks with a role may be: the fastest places, and those of each of `kinds_of_places`.

    Nothing if all are alike.
    """
    if len(kinds) < 2:
        return
    yield FASTEST
    for names in kinds[:MOST_KINDS]:
        if len(names) >= count:
            yield tuple(names[-count:])


def named_places(on: On | None) -> int | None:
    """How many places are named; None where none is."""
    return len(on) if isinstance(on, tuple) else None


def ranks_on(
    on: On, cluster: Cluster | None, count: int, *, precision: Precision, computes: bool, where: str
) -> list[int]:
    """The `count` ranks that have a role, ascending: from each of the places in turn, or the fastest.

    `where` is the setting's place in messages. Raises `InputError` for places that are not there or are named twice,
    more places than ranks that are asked for, and fewer ranks there than that.
    """
    if cluster is None:
        raise InputError("names hosts, and this schedule is built for no cluster", where=where, hint="leave it out")
    if on == FASTEST:
        return sorted(by_speed(cluster, precision, computes=computes)[:count])
    found = [_ranks_at(name, cluster, where) for name in on]
    there = list(chain.from_iterable(found))
    if len(set(there)) < len(there):
        raise InputError(f"[{', '.join(on)}] names a rank twice", where=where, hint="name each place once")
    if len(on) > count:
        hint = f"name {count}, or set their number to {len(on)} or more"
        raise InputError(f"{len(on)} places for {count}", where=where, hint=hint)
    if len(there) < count:
        are = "is 1 rank" if len(there) == 1 else f"are {len(there)} ranks"
        hint = "name more places, or ask for fewer"
        raise InputError(f"there {are} at {', '.join(on)}, and {count} are asked for", where=where, hint=hint)
    turns = (rank for turn in zip_longest(*found) for rank in turn if rank is not None)
    return sorted(rank for rank, _ in zip(turns, range(count), strict=False))


def _ranks_at(name: str, cluster: Cluster, where: str) -> Sequence[int]:
    """The ranks on a host, or on one device or the cores of it."""
    names = [host.name for host in cluster.hosts]
    if name in names:
        if found := cluster.ranks_on(names.index(name)):
            return found
        raise InputError(f"there is no rank on {name}", where=where, hint="name a host that has one")
    host, _, device = name.rpartition("/")
    if host in names and (device == "cpu" or device.isdecimal()):
        wanted = None if device == "cpu" else int(device)
        here = cluster.ranks_on(names.index(host))
        if found := tuple(rank for rank in here if cluster.placement[rank].device == wanted):
            return found
        what = "the cores" if wanted is None else f"device {wanted}"
        raise InputError(f"there is no rank on {what} of {host}", where=where, hint=f"name {host} alone for any")
    some = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    hint = near(name, names)
    if not hint.startswith("did"):
        hint = f"its hosts are {some}"
    raise InputError(f"{cluster.name} has no host {name!r}", where=where, hint=hint)


def check_whole_hosts(ranks: Sequence[int], local: int, cluster: Cluster | None, *, where: str) -> None:
    """Raise `InputError` unless each `local` of `ranks` after one another are on one host."""
    if cluster is None:
        return
    for i in range(0, len(ranks), local):
        if len({cluster.placement[rank].host for rank in ranks[i : i + local]}) > 1:
            raise InputError(
                f"with local: {local}, ranks {', '.join(map(str, ranks[i : i + local]))} would have to share a host",
                where=where,
                hint="choose whole hosts, or leave local out",
            )
