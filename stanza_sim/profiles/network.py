"""What single messages cost on a network, and the cores behind it: what `stanza-sim calibrate` writes.

A network profile is a JSON file. A message of n bytes between two hosts takes, from the moment at which its sender
begins to post it to the moment at which its receiver marks it as arrived,

    overhead_s + latency_s + (n - burst_bytes) / goodput_Bps

in which `burst_bytes` pass at once, as a shaper lets them after a pause. The figures are those of one pair of ranks of
each kind (see `stanza_sim.cluster.pair_kinds`), one message at a time; no schedule is run to find them.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import inf, log
from pathlib import Path
from statistics import median
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from stanza_sim.base.config import Count, Factor, Section, Source, validate
from stanza_sim.base.errors import InputError
from stanza_sim.base.files import read_json, write_whole
from stanza_sim.base.tables import shortened
from stanza_sim.base.units import format_rate
from stanza_sim.base.version import __version__
from stanza_sim.cluster.cluster import Cluster, Host, Nic, with_loopback
from stanza_sim.cluster.hardware import DirectedLink, LinkKind, TokenBucket
from stanza_sim.cluster.pair_kinds import PairKind, pair_kinds, raw_Bps
from stanza_sim.profiles.blocks import FORMAT as PROFILE_FORMAT
from stanza_sim.profiles.blocks import (
    DeviceLinkTimes,
    LoopbackTimes,
    Profile,
    StagingTimes,
    Time,
    check_blocks,
    differing,
    loopback_of,
    profile_of,
    with_devices,
)

FORMAT = "stanza-sim-network/1"
SAME = 0.001
"""Rates that differ by no more, relatively, are one rate."""

Number = Annotated[float, Field(strict=True, ge=-1e18, le=1e18, allow_inf_nan=False)]


class Estimate(Section):
    """A median, and between which values the middle 80% of the repetitions lie."""

    value: Number
    low: Number
    high: Number

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.low > self.high:
            raise ValueError("low is more than high")
        return self


def estimate(values: Iterable[float]) -> Estimate:
    """Return the median of `values` with their 10th and 90th percentile (linear between values)."""
    ordered = sorted(values)
    low, high = np.quantile(ordered, (0.1, 0.9)).tolist()
    return Estimate(value=median(ordered), low=low, high=high)


class PairTimes(Section):
    """Single messages of one kind of pair, measured from rank `source` to rank `destination`.

    Rates are those that the topology states. `overhead_s` is how long posting the smallest message occupies its sender,
    `posting_s` a long one (of which the system takes some bytes at once); `latency_s` is from the end of the former to
    the mark at the receiver. A negative `burst_bytes` is a late start.
    """

    sender_Bps: Factor
    receiver_Bps: Factor
    between_Bps: Factor | None = None
    source: int = Field(ge=0, strict=True)
    destination: int = Field(ge=0, strict=True)
    messages: Count
    latency_s: Estimate
    overhead_s: Estimate
    posting_s: Estimate
    goodput_Bps: Estimate
    burst_bytes: Estimate

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.goodput_Bps.value <= 0:
            raise ValueError("a goodput must be positive")
        if min(self.latency_s.value, self.overhead_s.value) < 0:
            raise ValueError("a latency and an overhead cannot be negative")
        return self

    @property
    def kind(self) -> PairKind:
        """The kind of pair."""
        return PairKind(sender_Bps=self.sender_Bps, receiver_Bps=self.receiver_Bps, between_Bps=self.between_Bps)

    @property
    def efficiency(self) -> float:
        """The share of the bottleneck's rate that payload gets."""
        return self.goodput_Bps.value / self.kind.bottleneck_Bps

    @property
    def delay_s(self) -> float:
        """Latency of a long message: with the late start, where there is one."""
        return self.latency_s.value + max(0.0, -self.burst_bytes.value) / self.goodput_Bps.value

    @property
    def credit_bytes(self) -> float:
        """Burst credit; none where it cannot be told from chance."""
        return self.burst_bytes.value if self.burst_bytes.low > 0 else 0.0


class Stretch(Section):
    """How many times as long a computation takes while `busy` processes of one machine compute at once."""

    busy: Count
    factor: Estimate


class Machine(Section):
    """Where it was measured. `device` begins with its kind; `load` is the load average before, of the last minute."""

    device: str = Field(min_length=1)
    driver: str | None = None
    cores: Count
    kernel: str
    versions: dict[str, str] = Field(default_factory=dict)
    load: Time = 0.0


def machine_of(device: str, driver: str | None, *, cores: int, kernel: str, torch: str, load: float = 0.0) -> Machine:
    """Return a machine with the versions of what runs here."""
    versions = {"torch": torch, "python": platform.python_version(), "stanza_sim": __version__}
    return Machine(device=device, driver=driver, cores=cores, kernel=kernel, versions=versions, load=load)


class NetworkProfile(Section):
    """A network profile.

    `testbed` says that the network was emulated on this machine, `realtime` that ranks ran under real-time scheduling.
    `hop_s` is from marking a dependency as met to the lane's thread running, `reduce_Bps` and `update_Bps` as in a
    `Profile`, of which there is one for each of `models` that was timed. `loopback` is there where ranks share a host;
    `staging`, `device_link` and `collective_share` are as in a `Profile`.
    """

    format: Literal["stanza-sim-network/1"] = "stanza-sim-network/1"
    cluster: str
    date: str
    testbed: bool
    realtime: bool = False
    ranks: Count
    machine: Machine
    pairs: tuple[PairTimes, ...]
    loopback: LoopbackTimes | None = None
    staging: StagingTimes | None = None
    device_link: DeviceLinkTimes | None = None
    collective_share: Annotated[float, Field(strict=True, ge=0, lt=1)] | None = None
    stretches: tuple[Stretch, ...] = ()
    hop_s: Estimate
    reduce_Bps: Estimate
    update_Bps: Estimate
    models: tuple[Profile, ...] = ()

    def __repr__(self) -> str:
        return f"<NetworkProfile of {shortened(self.cluster)}, {self.ranks:,} ranks, {self.date}>"

    @property
    def source(self) -> str:
        """What a prediction that uses it says of its network."""
        return f"network: calibrated with single messages ({self.date})"


# --- files -----------------------------------------------------------------------------------------------------------


def read_network(path: Path) -> NetworkProfile:
    """Return the network profile in a file; raise `InputError` if it cannot be read or holds anything else."""
    return _network_of(read_json(path, expected=f"a file of the format {FORMAT}"), path)


def read_either(path: Path) -> Profile | NetworkProfile:
    """Return the profile in a file, of block times or of a network. Raises `InputError`."""
    data = read_json(path, expected=f"a file of the format {PROFILE_FORMAT} or {FORMAT}")
    network = isinstance(data, dict) and str(data.get("format", "")).startswith("stanza-sim-network/")
    return _network_of(data, path) if network else profile_of(data, path)


def _network_of(data: object, path: Path) -> NetworkProfile:
    profile = validate(data, NetworkProfile, Source(file=str(path), lines={}))
    kinds = [pair.kind for pair in profile.pairs]
    for index, kind in enumerate(kinds):
        if kind in kinds[:index]:
            raise InputError("this kind of pair is given twice", where=f"{path}: pairs.{index}")
    for index, model in enumerate(profile.models):
        check_blocks(model.blocks, f"{path}: models.{index}.blocks")
    return profile


def write_network(profile: NetworkProfile, path: Path) -> None:
    """Write a network profile, whole or not at all; raise `InputError` if it cannot be written there."""
    write_whole(json.dumps(profile.model_dump(), indent=2) + "\n", path)


# --- does it fit? ----------------------------------------------------------------------------------------------------


def mismatches(
    profile: NetworkProfile,
    cluster: Cluster | None = None,
    *,
    machine: Machine | None = None,
    testbed: bool | None = None,
    realtime: bool | None = None,
) -> list[str]:
    """Return a warning for each way in which a network profile is of something else than what is given.

    `cluster` is what it is applied to, `machine` where the ranks run, in a `testbed` and under `realtime` scheduling or
    not. What is None, or a package that only one side knows, is not compared.
    """
    what, then = f"the network profile of {profile.date}", profile.machine
    found: list[str] = []
    if machine is not None:
        pairs: list[tuple[str, object, object]] = [
            ("device", then.device, machine.device),
            ("driver", then.driver, machine.driver),
            ("cores", then.cores, machine.cores),
            ("kernel", then.kernel, machine.kernel),
            *((name, then.versions.get(name), version) for name, version in machine.versions.items()),
        ]
        found += differing(what, pairs)
    for name, was, now in (("in a testbed", profile.testbed, testbed), ("in real time", profile.realtime, realtime)):
        if now is not None and was != now:
            found.append(f"{what} was measured {name if was else f'not {name}'}, here ranks run otherwise")
    if then.load > then.cores:
        found.append(f"{what} was measured on a busy machine (load {then.load:.1f} on {then.cores} cores)")
    for kind in pair_kinds(cluster) if cluster is not None else ():
        if not any(_same_kind(pair.kind, kind) for pair in profile.pairs):
            found.append(f"{what} has no messages {in_words(kind)}: those of the nearest kind are used")
    return found


def in_words(kind: PairKind) -> str:
    """Say between which NICs messages of a kind go."""
    text = f"from a NIC of {format_rate(kind.sender_Bps)} to one of {format_rate(kind.receiver_Bps)}"
    return text if kind.between_Bps is None else f"{text} over {format_rate(kind.between_Bps)} between switches"


def _same(a_Bps: float | None, b_Bps: float | None) -> bool:
    if a_Bps is None or b_Bps is None:
        return a_Bps is b_Bps
    return abs(a_Bps - b_Bps) <= SAME * max(a_Bps, b_Bps)


def _same_kind(a: PairKind, b: PairKind) -> bool:
    ends = _same(a.sender_Bps, b.sender_Bps) and _same(a.receiver_Bps, b.receiver_Bps)
    return ends and _same(a.between_Bps, b.between_Bps)


# --- from what was measured to links ---------------------------------------------------------------------------------


def with_network(cluster: Cluster, profile: NetworkProfile) -> Cluster:
    """Return `cluster` with the efficiency, latency, overhead and burst of its links, and its wake-ups, as measured.

    A link takes the efficiency of messages that a link of its rate limits, or of the nearest rate that there is; burst
    credit scales with the rate. A message's latency is split between its two NICs; what messages between switches need
    beyond that is split between their links. `mismatches` says where there was no kind of its own.
    """
    if profile.loopback is not None:
        cluster = with_loopback(cluster, loopback_of(profile.loopback))
    cluster = with_devices(cluster, profile.staging, profile.device_link, profile.collective_share)
    if profile.pairs and len(cluster.hosts) > 1:
        cluster = _Applied(cluster, profile.pairs).cluster()
    return replace(cluster, wakeup_latency_s=profile.hop_s.value)


@dataclass(frozen=True, slots=True)
class _Applied:
    """A cluster, and what is to be applied to it."""

    before: Cluster
    pairs: Sequence[PairTimes]

    def cluster(self) -> Cluster:
        """Return the cluster with all of it."""
        hosts = tuple(self.host(host) for host in self.before.hosts)
        beyond_s = self.beyond_s()
        links = tuple(self.link(q, hosts, beyond_s) for q in range(len(self.before.links)))
        return replace(self.before, hosts=hosts, links=links)

    def host(self, host: Host) -> Host:
        """Return a host with its NICs as measured."""
        first, *more = map(self.nic, host.nics)
        return replace(host, nic=first, more_nics=tuple(more))

    def nic(self, nic: Nic) -> Nic:
        """Return a NIC with the figures of its rate."""
        back_Bps = nic.receive_bandwidth_Bps or nic.bandwidth_Bps
        efficiency, credit = self.efficiency(nic.bandwidth_Bps), self.credit(nic.bandwidth_Bps)
        peak_Bps = inf if nic.bucket is None else nic.bucket.peak_Bps
        send_s, receive_s = self.half_s(nic.bandwidth_Bps, _sender), self.half_s(back_Bps, _receiver)
        return replace(
            nic,
            efficiency=efficiency,
            latency_s=send_s,
            receive_latency_s=None if receive_s == send_s else receive_s,
            overhead_s=median(p.overhead_s.value for p in _nearest(self.pairs, nic.bandwidth_Bps, _sender)),
            bucket=TokenBucket(nbytes=credit / efficiency, peak_Bps=peak_Bps) if credit > 0 else None,
        )

    def link(self, q: int, hosts: Sequence[Host], beyond_s: float | None) -> DirectedLink:
        """Return a link as measured; those inside hosts, and backplanes, as they are."""
        cluster, link = self.before, self.before.links[q]
        if link.kind in (LinkKind.SEND, LinkKind.RECEIVE) and link.host is not None:
            number = next(n for n, sides in enumerate(cluster.nic_links_of(link.host)) if q in sides)
            nic, sends = hosts[link.host].nics[number], link.kind is LinkKind.SEND
            efficiency = self.efficiency(raw_Bps(cluster, q))
            late_s = nic.latency_s if sends or nic.receive_latency_s is None else nic.receive_latency_s
            bucket = nic.bucket and nic.bucket.scaled(nic.efficiency)
        elif link.kind in (LinkKind.TRUNK, LinkKind.CABLE):
            efficiency = self.efficiency(raw_Bps(cluster, q))
            late_s = link.latency_s if beyond_s is None else beyond_s
            bucket = self.trunk_bucket(link, raw_Bps(cluster, q))
        else:
            return link
        rate_Bps = raw_Bps(cluster, q) * efficiency
        background = link.background and link.background.scaled(rate_Bps / link.bandwidth_Bps)
        return replace(link, bandwidth_Bps=rate_Bps, latency_s=late_s, bucket=bucket, background=background)

    def efficiency(self, rate_Bps: float) -> float:
        """Share of a link's rate that payload gets."""
        return median(p.efficiency for p in _nearest(self.pairs, rate_Bps, _bottleneck))

    def credit(self, rate_Bps: float) -> float:
        """Burst credit, in payload bytes, of a NIC's side."""
        near = _nearest(self.pairs, rate_Bps, _bottleneck)
        scales = [1.0 if _same(p.kind.bottleneck_Bps, rate_Bps) else rate_Bps / p.kind.bottleneck_Bps for p in near]
        return median(p.credit_bytes * scale for p, scale in zip(near, scales, strict=True))

    def half_s(self, rate_Bps: float, side: Callable[[PairTimes], float]) -> float:
        """One NIC's part of the latency: half of that of messages which cross nothing but NICs, where there are any."""
        direct = [p for p in self.pairs if p.between_Bps is None] or self.pairs
        return median(p.delay_s for p in _nearest(direct, rate_Bps, side)) / 2

    def beyond_s(self) -> float | None:
        """Latency of one link between switches; None if nothing was measured over any."""
        over = [p for p in self.pairs if p.between_Bps is not None]
        if not over:
            return None
        beyond_s = [
            p.delay_s - self.half_s(p.sender_Bps, _sender) - self.half_s(p.receiver_Bps, _receiver) for p in over
        ]
        ways = [self.before.route(*(self.before.placement[r].host for r in pair)) for pair in _far(self.before)]
        return max(0.0, median(beyond_s)) / max((len(way) - 2 for way in ways), default=1)

    def trunk_bucket(self, link: DirectedLink, rate_Bps: float) -> TokenBucket | None:
        """Burst credit of a link between switches: measured only where it was the bottleneck, else as stated."""
        limiting = [p for p in self.pairs if p.between_Bps is not None and _same(p.between_Bps, rate_Bps)]
        limiting = [p for p in limiting if p.kind.bottleneck_Bps < min(p.sender_Bps, p.receiver_Bps)]
        if not limiting:
            return link.bucket
        credit = median(p.credit_bytes for p in limiting)
        peak_Bps = inf if link.bucket is None else link.bucket.peak_Bps
        return TokenBucket(nbytes=credit, peak_Bps=peak_Bps) if credit > 0 else None


def _far(cluster: Cluster) -> list[tuple[int, int]]:
    """A pair of ranks of each kind that has something between its NICs."""
    return [pair for kind, pair in pair_kinds(cluster).items() if kind.between_Bps is not None]


def _bottleneck(pair: PairTimes) -> float:
    return pair.kind.bottleneck_Bps


def _sender(pair: PairTimes) -> float:
    return pair.sender_Bps


def _receiver(pair: PairTimes) -> float:
    return pair.receiver_Bps


def _nearest(pairs: Sequence[PairTimes], rate_Bps: float, of: Callable[[PairTimes], float]) -> list[PairTimes]:
    """Those whose rate is nearest to `rate_Bps`, as a ratio."""
    least = min(abs(log(of(p) / rate_Bps)) for p in pairs)
    return [p for p in pairs if abs(log(of(p) / rate_Bps)) <= least + SAME]
