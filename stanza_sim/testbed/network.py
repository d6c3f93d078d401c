"""What a cluster comes down to when it is emulated: nodes, wires with their rates, and the way of every pair of hosts.

Each direction of each link is a *wire*: it has one rate, and one queue for each pair of hosts whose messages cross it,
so that pairs share it equally, as flows share a link in the simulator. Ways are those of the simulator. With routing
`spread` every flow uses all equal ways with the same share; on leaves that are all joined to all spines that is the
same as one spine whose links carry what those of all spines carry together, and so it is emulated. Whatever cannot be
emulated as the simulator takes it is refused; what is merely another value on this machine (latency) is noted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, permutations
from math import ceil, floor

from stanza_sim.base.errors import InputError
from stanza_sim.base.units import format_rate, format_time
from stanza_sim.cluster import Cluster, RoutingKind, TokenBucket

GOODPUT_SHARE = 1448 / 1514
"""Share of a shaped rate that TCP's payload gets: of 1500 bytes of IP 52 are headers, and `tc` counts Ethernet's 14."""
MOST_HOSTS = 64
MOST_SWITCHES = 64
LIGHT_Bps, MOST_Bps = 0.25e9, 0.5e9
"""What all hosts together may send per core: 8 hosts at 500 Mbit/s took a third of 2 cores, 8 at 1 Gbit/s two thirds.
Up to the first nothing is said, beyond the second the machine would be measured and not the network."""
FASTEST_Bps = 0.25e9
"""The rate of a port up to which one connection reached it; at 4 Gbit/s it got a third to two thirds."""
SLOWEST_Bps = 125e3
"""The rate of a wire from which TCP's timers are not what is measured: the largest packet passes in 36 ms there, and
an acknowledgement is delayed by 40 ms at least. With many pairs it also leaves each class of `htb` some kbit/s."""
NEAR = 0.005
"""Efficiencies that differ by no more are taken as equal."""

Pair = tuple[int, int]
"""Source host, destination host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """An end of a wire: a host or a switch, by its number among these."""

    switch: bool
    index: int

    @property
    def tag(self) -> str:
        """A short name, such as h0 or s1."""
        return f"{'s' if self.switch else 'h'}{self.index}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """One direction between two nodes.

    `links` are the links of the cluster that it stands for, several where spines are merged; `rate_Bps` counts bytes
    as `tc` does, and so does `bucket`. `pairs` are those whose messages cross it, in order.
    """

    label: str
    links: tuple[int, ...]
    start: Node
    end: Node
    rate_Bps: float
    bucket: TokenBucket | None
    pairs: tuple[Pair, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Hosts, switches and wires. `home[h]` is the switch of host h; `ways` are the switches that a pair passes."""

    name: str
    hosts: tuple[str, ...]
    switches: tuple[str, ...]
    home: tuple[int, ...]
    wires: tuple[Wire, ...]
    ways: dict[Pair, tuple[int, ...]]
    notes: tuple[str, ...]

    @property
    def sent_Bps(self) -> float:
        """What all hosts can send together."""
        return sum(wire.rate_Bps for wire in self.wires if not wire.start.switch)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trunk:
    """One direction between two switches, before it is known who uses it."""

    ends: tuple[int, int]
    label: str
    links: tuple[int, ...]
    rate_Bps: float
    bucket: TokenBucket | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Core:
    """Switches, the one of each host, what joins them, and the switches that each pair passes."""

    switches: tuple[str, ...]
    home: tuple[int, ...]
    trunks: tuple[_Trunk, ...]
    ways: dict[Pair, tuple[int, ...]]
    notes: tuple[str, ...] = ()


def network_of(cluster: Cluster) -> Network:
    """Return what `cluster` comes down to. Raises `InputError` for what cannot be emulated."""
    _check_parts(cluster)
    core = _as_it_is(cluster) if _one_way_each(cluster) else _merged(cluster)
    crossing: dict[tuple[int, int], list[Pair]] = {trunk.ends: [] for trunk in core.trunks}
    for pair, way in core.ways.items():
        for hop in pairwise(way):
            crossing[hop].append(pair)
    wires = [*_port_wires(cluster, core.home)]
    for trunk in core.trunks:
        start, end = (Node(switch=True, index=s) for s in trunk.ends)
        wires.append(
            Wire(
                label=trunk.label,
                links=trunk.links,
                start=start,
                end=end,
                rate_Bps=trunk.rate_Bps,
                bucket=trunk.bucket,
                pairs=tuple(crossing[trunk.ends]),
            )
        )
    return Network(
        name=cluster.name,
        hosts=tuple(host.name for host in cluster.hosts),
        switches=core.switches,
        home=core.home,
        wires=tuple(wires),
        ways=core.ways,
        notes=(*_notes(cluster), *core.notes),
    )


def check_machine(network: Network, cores: int, dilation: float = 1.0) -> tuple[str, ...]:
    """Return what to note about the rates on a machine with `cores` cores.

    `dilation` is what the rates of `network` were divided by. Raises `InputError` for rates that the machine would not
    reach, so that it would be measured in place of the network, and for those that are too low to be shaped.
    """
    hosts, total_Bps = len(network.hosts), network.sent_Bps
    fastest = max((wire for wire in network.wires if not (wire.start.switch and wire.end.switch)), key=_rate_Bps)
    slowest = min(network.wires, key=_rate_Bps)
    if slowest.rate_Bps < SLOWEST_Bps:
        what = f"{slowest.label}: {format_rate(slowest.rate_Bps)} is less than can be shaped here"
        hint = f"at least {format_rate(SLOWEST_Bps)}"
        if dilation > 1:
            what = f"{what} (dilated {dilation:g} times)"
            hint += f": dilate by {max(1, floor(dilation * slowest.rate_Bps / SLOWEST_Bps)):g} at most"
        raise InputError(what, where=network.name, hint=hint)
    most_Bps = min(FASTEST_Bps, MOST_Bps * cores / hosts)
    least = ceil(dilation * max(fastest.rate_Bps / FASTEST_Bps, total_Bps / (MOST_Bps * cores)))
    hint = (
        f"at most {format_rate(most_Bps)} for each of {hosts} hosts here: set network.rate, or --rate of testbed up; "
        f"or, with emulated compute, --dilate {least:g} or more"
    )
    if fastest.rate_Bps > FASTEST_Bps:
        what = f"{fastest.label}: {format_rate(fastest.rate_Bps)} is more than a port can be given here"
        raise InputError(what, where=network.name, hint=hint)
    have = f"{hosts} hosts that send {format_rate(total_Bps)} together"
    if total_Bps > MOST_Bps * cores:
        what = f"{have} are more than the {cores} cores of this machine can emulate"
        raise InputError(what, where=network.name, hint=hint)
    if total_Bps > LIGHT_Bps * cores:
        return (f"{have} may keep the {cores} cores of this machine busy: rates are reached only if nothing else runs",)
    return ()


def _rate_Bps(wire: Wire) -> float:
    return wire.rate_Bps


def _check_parts(cluster: Cluster) -> None:
    """Raise `InputError` for parts of a cluster that have no counterpart."""
    fabric, hosts = cluster.fabric, cluster.hosts
    star_or_tree = "a testbed has hosts with one NIC each, on switches"

    def refuse(what: str, hint: str) -> InputError:
        return InputError(f"{what} cannot be emulated", where=cluster.name, hint=hint)

    if len(hosts) == 1:
        raise refuse("a single host", "there is no network to emulate: use a topology of two hosts or more")
    if len(hosts) > MOST_HOSTS or len(cluster.switches) > MOST_SWITCHES:
        what = f"{len(hosts)} hosts and {len(cluster.switches)} switches"
        raise refuse(what, f"at most {MOST_HOSTS} of either; set the number of hosts with --nodes")
    if fabric.forwarding or fabric.cables:
        raise refuse("cables between hosts (ring, torus)", star_or_tree)
    if several := next((host.name for host in hosts if host.more_nics), None):
        raise refuse(f"{several}, which has several NICs,", star_or_tree)
    if inner := next((host for host in hosts if host.intra is not None), None):
        kind = inner.intra.kind.value if inner.intra is not None else ""
        raise refuse(f"{kind} inside {inner.name}", "leave intra out: ranks of one host then talk over its loopback")
    if limited := next((host.name for host in hosts if not host.nic.transport.ideal), None):
        what, hint = (
            f"the transport of {limited} (what streams and processes move, and cost)",
            "leave it out of the nic",
        )
        raise refuse(what, hint)
    if fabric.backplanes:
        raise refuse(f"a backplane ({cluster.switches[fabric.backplanes[0][0]]})", "state the rates of links only")
    for host, switches in zip(hosts, fabric.attached, strict=True):
        if len(switches) != 1:
            raise refuse(f"one NIC of {host.name} on {len(switches)} switches", star_or_tree)
    if busy := next((link.label for link in cluster.links if link.background is not None), None):
        raise refuse(f"background traffic ({busy})", "leave background out")


def _notes(cluster: Cluster) -> Iterator[str]:
    """What is another value here than the topology says, in words."""
    late = max(link.latency_s for link in cluster.links)
    overhead = max(host.nic.overhead_s for host in cluster.hosts)
    stated = [f"latency (up to {format_time(late)} a link)"] * (late > 0)
    stated += [f"overhead per message (up to {format_time(overhead)})"] * (overhead > 0)
    if stated:
        yield f"the topology's {' and '.join(stated)} cannot be emulated: here both are what this machine takes"
    off = {host.nic.efficiency for host in cluster.hosts if abs(host.nic.efficiency - GOODPUT_SHARE) > NEAR}
    if off:
        values = ", ".join(f"{value:g}" for value in sorted(off))
        yield f"payload gets {GOODPUT_SHARE:.3f} of a rate here; the topology says {values} (efficiency of NICs)"
    if any(host.devices for host in cluster.hosts):
        yield "a testbed emulates the network only; devices and their speeds are for --compute emulated"
    if cluster.world_size > len(cluster.hosts):
        yield "pairs of hosts share a link equally, however many ranks and connections they have"


# --- wires -----------------------------------------------------------------------------------------------------------


def _port_wires(cluster: Cluster, home: tuple[int, ...]) -> Iterator[Wire]:
    """Both sides of every NIC."""
    everyone = range(len(cluster.hosts))
    for h, host in enumerate(cluster.hosts):
        (sides,) = cluster.nic_links_of(h)
        here, switch = Node(switch=False, index=h), Node(switch=True, index=home[h])
        nic = host.nic
        back_Bps = nic.bandwidth_Bps if nic.receive_bandwidth_Bps is None else nic.receive_bandwidth_Bps
        for out, link in enumerate(sides[::-1]):
            yield Wire(
                label=cluster.links[link].label,
                links=(link,),
                start=here if out else switch,
                end=switch if out else here,
                rate_Bps=nic.bandwidth_Bps if out else back_Bps,
                bucket=nic.bucket,
                pairs=tuple((h, k) if out else (k, h) for k in everyone if k != h),
            )


def _trunk_of(cluster: Cluster, ends: tuple[int, int], links: tuple[int, ...]) -> _Trunk:
    """The wire in the place of parallel `links`; a share of a flow crosses each, so the slowest limits all of them.

    A link keeps its goodput only; the efficiency that leads back to its rate is that of NICs, which is also the
    default of generated fabrics. With one of its own the rate is such that payload gets what the simulator assumes.
    """
    share, found = cluster.hosts[0].nic.efficiency, [cluster.links[link] for link in links]
    bucket = found[0].bucket
    if bucket is not None and len(links) > 1:
        raise _not_mergeable(cluster, "their links have bursts")
    return _Trunk(
        ends=ends,
        label=found[0].label if len(found) == 1 else f"{found[0].label} and {len(found) - 1} more",
        links=links,
        rate_Bps=len(links) * min(link.bandwidth_Bps for link in found) / share,
        bucket=bucket and bucket.scaled(1 / share),
    )


# --- ways ------------------------------------------------------------------------------------------------------------


def _one_way_each(cluster: Cluster) -> bool:
    """Whether every message takes a single way that its two hosts determine.

    Raises `InputError` for ECMP with a choice: its hash takes the ranks and the channel, which no switch sees.
    """
    kind = cluster.fabric.routing.kind
    if kind in (RoutingKind.SHORTEST, RoutingKind.EXPLICIT):
        return True
    leaves = sorted(set(cluster.fabric.attached))
    core = cluster.core()
    if all(core.single(a, b) for a, b in permutations(leaves, 2)):
        return True
    if kind is RoutingKind.ECMP:
        raise InputError(
            "ECMP over several ways cannot be emulated: it goes by rank and channel, which packets do not show",
            where=cluster.name,
            hint="use routing: shortest, explicit or spread, or one spine",
        )
    return False


def _as_it_is(cluster: Cluster) -> _Core:
    """The switches that there are, and those that the route of each pair passes."""
    home = tuple(switches[0] for switches in cluster.fabric.attached)
    end_of = {link: b for _, b, link in cluster.fabric.trunks}
    return _Core(
        switches=cluster.switches,
        home=home,
        trunks=tuple(_trunk_of(cluster, (a, b), (link,)) for a, b, link in cluster.fabric.trunks),
        ways={
            (src, dst): (home[src], *(end_of[link] for link in cluster.route(src, dst)[1:-1]))
            for src, dst in permutations(range(len(home)), 2)
        },
    )


def _merged(cluster: Cluster) -> _Core:
    """One spine in the place of several, over which every flow is spread alike.

    Of k spines each carries 1/k of every flow between leaves, so a link of rate C limits their sum to k x C.
    """
    attached = [switches[0] for switches in cluster.fabric.attached]
    leaves = sorted(set(attached))
    spines = [s for s in range(len(cluster.switches)) if s not in leaves]
    link_of = {(a, b): link for a, b, link in cluster.fabric.trunks}
    if set(link_of) != {hop for leaf in leaves for spine in spines for hop in ((leaf, spine), (spine, leaf))}:
        raise _not_mergeable(cluster, "not every leaf is joined to every spine, and to nothing else")
    top, home = len(leaves), tuple(leaves.index(switch) for switch in attached)
    trunks = []
    for i, leaf in enumerate(leaves):
        trunks.append(_trunk_of(cluster, (i, top), tuple(link_of[leaf, spine] for spine in spines)))
        trunks.append(_trunk_of(cluster, (top, i), tuple(link_of[spine, leaf] for spine in spines)))
    k = len(spines)
    return _Core(
        switches=(*(cluster.switches[leaf] for leaf in leaves), f"{k} spines"),
        home=home,
        trunks=tuple(trunks),
        ways={
            (src, dst): (home[src],) if home[src] == home[dst] else (home[src], top, home[dst])
            for src, dst in permutations(range(len(home)), 2)
        },
        notes=(f"spreading over {k} spines is emulated as one spine whose links carry {k} times as much: the same",),
    )


def _not_mergeable(cluster: Cluster, why: str) -> InputError:
    return InputError(
        f"spreading over several ways cannot be emulated here: {why}",
        where=cluster.name,
        hint="use routing: shortest, or leaves that are each joined to every spine",
    )
