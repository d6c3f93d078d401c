"""What NCCL's tuning model says a collective takes: the least over algorithms and protocols.

The formulas are those of `src/graph/tuning.cc` of NVIDIA/nccl at commit 5067397. With n ranks on h hosts, S bytes, and
the bus rate B of the slowest part (a host's inside, or all NICs of a host together):

    time      = overhead + latency + S / (rate of the algorithm) + S / (memory rate)
    rates     ring, all-reduce  n / (2(n-1)) of LL B/2, LL128 0.92 B, Simple B
              ring, others      n / (n-1) of the same (broadcast: 1)
              tree, all-reduce  1/2 of 0.92 B x (LL 1/3.8, LL128 7/9 on one host, else 0.9375, Simple 1) x correction
    latency   ring  base + (steps - hops across) x inside + (hops across) x across
              tree  base + 2 ((n/h - 1) x inside + ceil(log2 h) x across)

A ring's all-reduce takes 2(n-1) steps, of which 2(h-1) go across hosts; the other kinds half of both. With one device a
host a ring's hops across take a tree's. The correction is NCCL's table of factors by size. To a hop across hosts the
cluster adds what its network takes of a message: the latency of the way, and the sender's overhead.

Here and there this is not NCCL's formula. The depth of a tree of hosts is rounded up, as it is built. A broadcast takes
all hops of a chain. What does not help with the measurements of the suite `published` is left out: the cap on LL
(`llMaxBw`), the plateau factor of rings (1.4), and the least latency of a step beside a network (`netOverhead`). Three
terms are measured, not NCCL's: the overhead, reached as exp(-S / ramp) dies out; the pass through memory (half of it
for kinds that do half of an all-reduce); and the launch floor.

Contract: pure. `price` knows nothing of clusters or schedules.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import ceil, exp, inf, log2

from stanza_sim.cluster.nccl import NcclPlatform, Protocol
from stanza_sim.schedule import CollectiveKind

LL_SHARE, LL128_SHARE, TREE_SHARE, TREE_LL = 0.5, 0.92, 0.92, 1 / 3.8
"""Shares of the bus rate: of rings with LL and LL128, of trees, and of trees with LL beside."""
TREE_LL128 = 7 / 9, 120 / 128
"""Shares of the tree's rate with LL128: on one host, and on more."""

CORRECTION = {
    Protocol.LL: (
        *(1.0, 1.0, 1.0, 1.0, 0.9, 0.8, 0.7, 0.7, 0.7, 0.7, 0.6, 0.5),
        *(0.4, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0, 1.0, 1.0, 1.0),
    ),
    Protocol.LL128: (
        *(1.0, 1.0, 1.0, 1.0, 1.0, 0.9, 0.8, 0.8, 0.8, 0.7, 0.6, 0.6),
        *(0.6, 0.6, 0.6, 0.6, 0.8, 0.9, 0.9, 0.9, 0.9, 1.0, 1.0, 1.0),
    ),
    Protocol.SIMPLE: (
        *(0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.8, 0.7, 0.6, 0.6, 0.5),
        *(0.5, 0.5, 0.5, 0.6, 0.7, 0.8, 0.7, 0.7, 0.8, 0.9, 0.9, 0.9),
    ),
}
"""`treeCorrectionFactor`: what a tree reaches of its rate, from 64 bytes on by powers of two."""


class NcclAlgorithm(StrEnum):
    """How NCCL carries out a collective."""

    RING = "ring"
    TREE = "tree"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A collective's group, as NCCL sees it.

    `inside_Bps` and `across_Bps` are bus rates: that at which rings that fill the links inside a host, or those across
    hosts, move the bytes of one edge; infinity where there are none. `hop_s` is what the network adds to a hop across
    hosts, `memory_Bps` the bandwidth of the slowest device's memory. `processes` is how many of the GPUs of a host one
    process drives. `nvlink` says whether NVLink joins the devices of every host (or there is one a host).
    """

    ranks: int
    hosts: int
    inside_Bps: float
    across_Bps: float
    memory_Bps: float
    nics_share: float = 1.0
    hop_s: float = 0.0
    gpus_per_process: int = 1
    nvlink: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What a collective takes alone, the part of that in which nothing moves, and how NCCL would carry it out."""

    seconds: float
    latency_s: float
    algorithm: NcclAlgorithm
    protocol: Protocol


def bus_Bps(platform: NcclPlatform, layout: Layout) -> float:
    """The bus rate of the slowest part. Links bound it; of a host's measured rate, its NICs in use have their share."""
    inside = min(platform.inside_share * layout.inside_Bps, platform.inside_Bps or inf)
    across = min(platform.across_share * layout.across_Bps, (platform.across_Bps or inf) * layout.nics_share)
    return inside if layout.hosts == 1 else min(inside, across) if layout.ranks > layout.hosts else across


def price(platform: NcclPlatform, layout: Layout, kind: CollectiveKind, nbytes: float) -> Price:
    """What a collective of `nbytes` takes: the least over algorithms and protocols. One rank takes no time."""
    if layout.ranks == 1 or nbytes <= 0:
        return Price(seconds=0.0, latency_s=0.0, algorithm=NcclAlgorithm.RING, protocol=Protocol.SIMPLE)
    overhead_s = platform.overhead_s * (1 - exp(-nbytes / platform.ramp_bytes))
    passes = 1.0 if kind is CollectiveKind.ALL_REDUCE else 0.5
    memory_s = passes * nbytes / (platform.memory_Bps or platform.memory_share * layout.memory_Bps)
    least: Price | None = None
    for algorithm in NcclAlgorithm:
        if algorithm is NcclAlgorithm.TREE and kind is not CollectiveKind.ALL_REDUCE:
            continue
        for protocol in Protocol:
            if protocol is Protocol.LL128 and not _with_ll128(platform, layout):
                continue
            latency_s = overhead_s + _latency_s(platform, layout, kind, algorithm, protocol)
            rate_Bps = _rate_Bps(platform, layout, kind, algorithm, protocol, nbytes)
            seconds = latency_s + nbytes / rate_Bps + memory_s
            if least is None or seconds < least.seconds:
                least = Price(seconds=seconds, latency_s=latency_s, algorithm=algorithm, protocol=protocol)
    assert least is not None
    floor_s = platform.launch_s * layout.gpus_per_process
    if least.seconds >= floor_s:
        return least
    return Price(
        seconds=floor_s,
        latency_s=least.latency_s + floor_s - least.seconds,
        algorithm=least.algorithm,
        protocol=least.protocol,
    )


def _with_ll128(platform: NcclPlatform, layout: Layout) -> bool:
    if platform.ll128 == "nowhere" or not layout.nvlink:
        return False
    return platform.ll128 == "everywhere" or layout.hosts == 1


def _rate_Bps(
    platform: NcclPlatform,
    layout: Layout,
    kind: CollectiveKind,
    algorithm: NcclAlgorithm,
    protocol: Protocol,
    nbytes: float,
) -> float:
    """Bytes of the collective per second, once it moves."""
    rate, n = bus_Bps(platform, layout), layout.ranks
    channels = platform.channels if platform.channels is not None else inf
    if algorithm is NcclAlgorithm.RING:
        share = {Protocol.LL: LL_SHARE, Protocol.LL128: LL128_SHARE, Protocol.SIMPLE: 1.0}[protocol]
        cap = channels * platform.ll128_channel_Bps if protocol is Protocol.LL128 else inf
        match kind:
            case CollectiveKind.ALL_REDUCE:
                edge = 2 * (n - 1) / n
            case CollectiveKind.REDUCE_SCATTER | CollectiveKind.ALL_GATHER:
                edge = (n - 1) / n
            case CollectiveKind.BROADCAST:
                edge = 1.0
        return min(share * rate, cap) / edge
    rate = min(TREE_SHARE * rate, channels * platform.tree_channel_Bps[min(layout.hosts, 3) - 1])
    if protocol is Protocol.LL:
        rate *= TREE_LL
    elif protocol is Protocol.LL128:
        rate = min(rate * TREE_LL128[layout.hosts > 1], channels * platform.ll128_channel_Bps)
    return rate * _correction(protocol, nbytes) / 2


def _correction(protocol: Protocol, nbytes: float) -> float:
    size = int(nbytes) >> 6
    place = size.bit_length() - 1
    return CORRECTION[protocol][place] if 0 <= place < 23 else 1.0


def _latency_s(
    platform: NcclPlatform, layout: Layout, kind: CollectiveKind, algorithm: NcclAlgorithm, protocol: Protocol
) -> float:
    """Seconds of hops and of the base."""
    n, h = layout.ranks, layout.hosts
    inside, across = platform.inside_s, platform.across_s
    if algorithm is NcclAlgorithm.TREE:
        base_s, inside_s, across_s = (x.tree[protocol] for x in (platform.base_s, inside, across))
        return base_s + 2 * ((n // h - 1) * inside_s + ceil(log2(h)) * (across_s + layout.hop_s))
    times = 2 if kind is CollectiveKind.ALL_REDUCE else 1
    hops = times * (h - 1)
    across_s = (across.tree if n == h else across.ring)[protocol] + layout.hop_s
    return platform.base_s.ring[protocol] + (times * (n - 1) - hops) * inside.ring[protocol] + hops * across_s
