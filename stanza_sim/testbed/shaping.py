"""The shaper of one direction of a link, as lines for `tc -batch`.

An `htb` class has the rate of the link. Below it, small packets (ACKs, rendezvous messages) go first, so that a port
full of data does not throttle what its host sends; then one class for each pair of hosts whose messages cross the link,
with equal rates and the right to borrow all that is free: the packet counterpart of max-min sharing. A single queue
(`tbf`) is not: ACKs wait in it behind the data, and a host that receives from many then sent at 0.40 of its share.
Sharing needs no other qdisc than `htb` and `bfifo`, and no filter other than `u32`; many kernels lack the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import inf, isinf

from stanza_sim.cluster import TokenBucket

QUEUE_BYTES = 8_000_000
"""Limit of every queue: more than the connections of a pair have in flight (`tcp_wmem`), so that nothing is dropped."""
QUANTUM_BYTES = 34_000
"""What a class may send in its turn: the largest packet with all its headers."""
LEAF_BURST_BYTES = 1_600
"""Credit of a class at the rate that it need not borrow; one frame, as the credit of the link is the root's."""
SMALL_BELOW_BYTES = 256
_FIRST_CLASS = 0x10

_FAST_Bps = 93.75e6
_SIZES = (
    (2.5e6, 4_500, 6_000),
    (7.5e6, 8_000, 10_000),
    (31.25e6, 16_000, 18_000),
    (_FAST_Bps, 32_000, 34_000),
    (inf, 32_000, 64_000),
)
"""(up to this rate in bytes per second, largest packet, burst). The largest packet is what TCP hands down in one piece
(GSO): large ones cost less, but a turn takes longer. The burst covers the lateness of timers, some 0.3 ms; it is also
the credit that lets a message that follows a pause start faster, so it is not larger than needed."""
_BURST_S = 0.5e-3
"""What the burst covers at fast rates, which links between switches may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shaper:
    """How one direction is shaped. Rates are bits per second, as `tc` counts (Ethernet headers included).

    `burst_bytes` pass at `peak_bps` (None: as fast as they come) after a pause.
    """

    rate_bps: int
    burst_bytes: int
    peak_bps: int | None
    packet_bytes: int


def shaper_of(rate_Bps: float, bucket: TokenBucket | None = None) -> Shaper:
    """Return the shaper of a link of `rate_Bps`; `bucket` is the token bucket that the topology states for it."""
    packet_bytes, least_bytes = next((packet, burst) for most, packet, burst in _SIZES if rate_Bps <= most)
    burst_bytes, peak_bps = least_bytes, None
    if rate_Bps > _FAST_Bps:
        burst_bytes = max(least_bytes, round(rate_Bps * _BURST_S))
    if bucket is not None:
        burst_bytes = max(round(bucket.nbytes), LEAF_BURST_BYTES)
        peak_bps = None if isinf(bucket.peak_Bps) else round(bucket.peak_Bps * 8)
    return Shaper(rate_bps=round(rate_Bps * 8), burst_bytes=burst_bytes, peak_bps=peak_bps, packet_bytes=packet_bytes)


def shape_lines(device: str, shaper: Shaper, pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield the lines that shape `device` for the (source address, destination address) of `pairs`."""
    pairs = list(pairs)
    rate, ceil, burst = shaper.rate_bps, shaper.peak_bps or shaper.rate_bps, shaper.burst_bytes
    cburst = burst if shaper.peak_bps is None else LEAF_BURST_BYTES
    common = f"ceil {ceil}bit cburst {cburst} quantum {QUANTUM_BYTES}"
    yield f"qdisc add dev {device} root handle 1: htb default 2 r2q 1000"
    yield f"class add dev {device} parent 1: classid 1:1 htb rate {rate}bit burst {burst} {common}"
    yield f"class add dev {device} parent 1:1 classid 1:2 htb rate {rate // 10}bit burst {burst} {common} prio 0"
    yield f"qdisc add dev {device} parent 1:2 bfifo limit {QUEUE_BYTES}"
    mask = 0x10000 - SMALL_BELOW_BYTES
    yield f"filter add dev {device} parent 1: protocol ip prio 1 u32 match u16 0 {mask:#06x} at 2 flowid 1:2"
    for minor, (source, destination) in enumerate(pairs, _FIRST_CLASS):
        own = f"rate {rate * 9 // 10 // len(pairs)}bit burst {LEAF_BURST_BYTES}"
        yield f"class add dev {device} parent 1:1 classid 1:{minor:x} htb {own} {common} prio 1"
        yield f"qdisc add dev {device} parent 1:{minor:x} bfifo limit {QUEUE_BYTES}"
        match = f"match ip src {source}/32 match ip dst {destination}/32"
        yield f"filter add dev {device} parent 1: protocol ip prio 2 u32 {match} flowid 1:{minor:x}"
