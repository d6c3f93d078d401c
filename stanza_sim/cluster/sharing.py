"""Reads what a shaped or shared link states beside its rate: `background`, `burst` and `peak`."""

from __future__ import annotations

from math import inf

from stanza_sim.base.errors import InputError
from stanza_sim.cluster.hardware import TokenBucket, Traffic
from stanza_sim.cluster.topology import Shared, TrafficSection
from stanza_sim.cluster.wiring import LinkDirection


def make_traffic(section: Shared) -> Traffic | None:
    """Return the background traffic that a section states. Raises `InputError` for one that is half stated."""
    stated = section.background
    if stated is None:
        return None
    if not isinstance(stated, TrafficSection):
        return Traffic(bandwidth_Bps=stated)
    if stated.on is None and stated.off is None:
        if stated.seed is not None:
            raise InputError("background that is always there takes no seed", hint="state on and off too")
    elif stated.on is None or stated.off is None:
        raise InputError("background needs both on and off", hint="such as {rate: 2Gbps, on: 10ms, off: 30ms, seed: 1}")
    return Traffic(bandwidth_Bps=stated.rate, on_s=stated.on, off_s=stated.off, seed=stated.seed or 0)


def make_token_bucket(section: Shared) -> TokenBucket | None:
    """Return the token bucket that a section states. Raises `InputError` for a peak without a burst."""
    if section.burst is None:
        if section.peak is not None:
            raise InputError("peak without burst", hint="such as burst: 64KiB, the bytes that pass at the peak rate")
        return None
    return TokenBucket(nbytes=section.burst, peak_Bps=inf if section.peak is None else section.peak)


def make_line(section: Shared, raw_Bps: float, latency_s: float, efficiency: float) -> LinkDirection:
    """Return one direction of a link. Raises `InputError` for background and bursts that do not fit its rate."""
    background, bucket = make_traffic(section), make_token_bucket(section)
    check_fits(raw_Bps, background, bucket)
    return LinkDirection(
        bandwidth_Bps=raw_Bps * efficiency,
        latency_s=latency_s,
        background=background and background.scaled(efficiency),
        bucket=bucket and bucket.scaled(efficiency),
    )


def check_fits(raw_Bps: float, background: Traffic | None, bucket: TokenBucket | None) -> None:
    """Raise `InputError` for background, or a peak, that contradicts the rate of the link."""
    if background is not None and background.bandwidth_Bps > raw_Bps:
        raise InputError("more background than the link carries", hint="it takes no more than the link's own rate")
    if bucket is not None and bucket.peak_Bps < raw_Bps:
        raise InputError("a peak below the rate", hint="peak is the physical rate, at which a burst passes")
