"""Writes what other programs say of hosts, switches and links as a topology file that a person can edit."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from stanza_sim.importers.assumed import CORES, EFFICIENCY, PRESET
from stanza_sim.importers.native import WIDTH, rate_text, scalar, wrapped

_ASSUMED = (
    f"Assumed, for the file does not say it: NICs have `preset: {PRESET}`, with its overhead, its efficiency and, where"
    " none is stated, its latency; links with a rate of their own have the same efficiency."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundNic:
    """A NIC: its raw rate in bytes per second, its latency in seconds, and the switches that it is joined to.

    A latency is None where the file has none: then a NIC has that of its preset.
    """

    rate_Bps: float
    latency_s: float | None = None
    switches: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Inside:
    """What joins the devices of a host: `nvlink` or `pcie`, in bytes per second each way of a device, and seconds."""

    kind: str
    rate_Bps: float
    latency_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundHost:
    """A host: the names of its devices, what joins them, and its NICs in the order in which devices use them."""

    devices: tuple[str, ...]
    inside: Inside | None = None
    nics: tuple[FoundNic, ...] = ()

    @property
    def alike(self) -> tuple[object, ...]:
        """Equal for hosts that one entry can describe: all but the switches."""
        return self.devices, self.inside, tuple((nic.rate_Bps, nic.latency_s) for nic in self.nics)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundLink:
    """A link between two switches, or a cable between two hosts, by their names in the topology; each way."""

    start: str
    end: str
    rate_Bps: float
    latency_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundCluster:
    """All that was found. `groups` are hosts by the name of their group, in order; a lone one has the group's name.

    `comments` are the lines at the head of the file, `remarks` what stands beside a key of every host (such as `cores`
    or `nic`).
    """

    name: str
    description: str
    comments: tuple[str, ...]
    groups: Mapping[str, Sequence[FoundHost]]
    switches: tuple[str, ...] = ()
    links: tuple[FoundLink, ...] = ()
    cables: tuple[FoundLink, ...] = ()
    cores: int = CORES
    remarks: Mapping[str, str] = field(default_factory=dict)


def host_names(group: str, hosts: Sequence[FoundHost]) -> list[str]:
    """Return what the hosts of a group are called in the topology."""
    return [group] if len(hosts) == 1 else [f"{group}-{k}" for k in range(len(hosts))]


def topology_text(found: FoundCluster) -> str:
    """Return the topology file, with comments."""
    lines = [*found.comments]
    lines += [f"name: {scalar(found.name)}", f"description: {scalar(found.description)}", "hosts:"]
    if found.links or found.cables or any(host.nics for hosts in found.groups.values() for host in hosts):
        lines += wrapped(_ASSUMED, "  # ", "  # ")
    joins: list[str] = []
    for group, hosts in found.groups.items():
        lines += _group(found, group, hosts)
        joins += _joins(group, hosts)
    if found.switches:
        lines.append("switches:")
        lines += [f"  - {{name: {scalar(name)}}}" for name in found.switches]
    trunks = [_link(link) for link in (*found.links, *found.cables)]
    if joins or trunks:
        lines.append("links:")
        if joins:
            lines.append("  # Hosts to switches: these have the rates of the hosts' NICs.")
        lines += joins
        if trunks:
            lines.append(f"  # Between {'switches' if found.links else 'hosts'}; a rate is that of each direction.")
        lines += trunks
    if found.cables and not found.switches:
        lines.append("forwarding: true  # hosts pass on what is for others")
    return "\n".join(lines) + "\n"


def _group(found: FoundCluster, group: str, hosts: Sequence[FoundHost]) -> list[str]:
    """The entries of a group: one with a count where its hosts are alike, else one a host."""
    if len(hosts) > 1 and len({host.alike for host in hosts}) > 1:
        names = host_names(group, hosts)
        return [line for name, host in zip(names, hosts, strict=True) for line in _host(found, name, host, None)]
    return _host(found, group, hosts[0], len(hosts) if len(hosts) > 1 else None)


def _host(found: FoundCluster, name: str, host: FoundHost, count: int | None) -> list[str]:
    def remark(key: str) -> str:
        return f"  # {found.remarks[key]}" if key in found.remarks else ""

    lines = [f"  - name: {scalar(name)}"]
    if count is not None:
        lines.append(f"    count: {count}")
    lines.append(f"    cores: {found.cores}{remark('cores')}")
    listed = f"    devices: [{', '.join(map(scalar, host.devices))}]"
    lines += textwrap.wrap(listed, WIDTH, subsequent_indent=" " * 14, break_long_words=False, break_on_hyphens=False)
    if host.inside is not None:
        inside = host.inside
        stated = f"{{kind: {inside.kind}, rate: {rate_text(inside.rate_Bps)}{_latency(inside.latency_s)}}}"
        lines.append(f"    intra: {stated}{remark('intra')}")
    if host.nics:
        values = [
            f"{{preset: {PRESET}, rate: {rate_text(nic.rate_Bps, bits=True)}{_latency(nic.latency_s)}}}"
            for nic in host.nics
        ]
        if len(set(values)) == 1:
            lines += [f"    nics: {len(values)}"] if len(values) > 1 else []
            lines.append(f"    nic: {values[0]}{remark('nic')}")
        else:
            lines += [f"    nics:{remark('nic')}", *(f"      - {value}" for value in values)]
    return lines


def _joins(group: str, hosts: Sequence[FoundHost]) -> list[str]:
    """The links of hosts to switches: of the whole group where it can be."""
    shared = len(hosts) > 1 and len({host.alike for host in hosts}) == 1
    if shared and len({tuple(nic.switches for nic in host.nics) for host in hosts}) == 1:
        return _joins_of(group, hosts[0].nics)
    return [line for name, h in zip(host_names(group, hosts), hosts, strict=True) for line in _joins_of(name, h.nics)]


def _joins_of(name: str, nics: Sequence[FoundNic]) -> list[str]:
    if len({nic.switches for nic in nics}) == 1:
        return [f"  - {{from: {scalar(name)}, to: {scalar(switch)}}}" for switch in nics[0].switches]
    return [
        f"  - {{from: {scalar(name)}, to: {scalar(switch)}, nic: {k}}}"
        for k, nic in enumerate(nics)
        for switch in nic.switches
    ]


def _link(link: FoundLink) -> str:
    rate = f"rate: {rate_text(link.rate_Bps, bits=True)}{_latency(link.latency_s)}, efficiency: {EFFICIENCY}"
    return f"  - {{from: {scalar(link.start)}, to: {scalar(link.end)}, {rate}}}"


def _latency(seconds: float | None) -> str:
    return "" if seconds is None else f", latency: {seconds * 1e6:.12f}".rstrip("0").rstrip(".") + "us"


def latest(latencies: Iterable[float | None]) -> float | None:
    """Return the largest of those latencies that are known; None where none is."""
    return max((seconds for seconds in latencies if seconds is not None), default=None)


def summed(links: Iterable[FoundLink]) -> tuple[FoundLink, ...]:
    """Join links between the same two ends into one with the sum of their rates and the largest latency."""
    found: dict[frozenset[str], FoundLink] = {}
    for link in links:
        ends = frozenset((link.start, link.end))
        had = found.get(ends)
        found[ends] = (
            link
            if had is None
            else FoundLink(
                start=had.start,
                end=had.end,
                rate_Bps=had.rate_Bps + link.rate_Bps,
                latency_s=latest((had.latency_s, link.latency_s)),
            )
        )
    return tuple(found.values())
