"""Single messages between pairs of ranks: how many of which sizes, and what their timings say. Pure; no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import inf
from statistics import median

from stanza_sim.base.errors import RunError
from stanza_sim.profiles.network import Estimate, estimate

MiB = 1024 * 1024
SMALL_BYTES, SMALL_REPEATS = 64, 100
MIDDLE_S, MIDDLE_BYTES, MIDDLE_REPEATS = 5e-3, (32 * 1024, 256 * 1024), 10
"""The shorter of two sizes takes about so long, within bounds. These are long enough to use up a burst and short enough
for it to show: an error of the goodput, times their length, would otherwise pass for one."""
LARGE_BYTES, LARGE_FACTORS = 4 * MiB, (1, 2, 4)
LARGE_REPEATS = (3, 8)
"""At least and at most."""
BUDGET_S = 7.0
"""What all large messages together may take. Where they would take longer, they are made smaller."""
LEAST_LARGE = 1 / 8
"""By so much, and no more."""
DROPPED = 2
"""First repeats of small messages, which connect, that are not used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Bytes of the messages of one pair of ranks, and how often each is sent in each direction."""

    small: int = SMALL_BYTES
    small_repeats: int = SMALL_REPEATS
    middle: tuple[int, ...]
    middle_repeats: int = MIDDLE_REPEATS
    large: tuple[int, ...]
    large_repeats: int

    @property
    def rounds(self) -> tuple[tuple[tuple[int, ...], int], ...]:
        """(sizes, repeats), in the order in which they are sent."""
        every = (
            ((self.small,), self.small_repeats),
            (self.middle, self.middle_repeats),
            (self.large, self.large_repeats),
        )
        return tuple((sizes, repeats) for sizes, repeats in every if repeats)

    @property
    def again(self) -> Sizes:
        """The large messages only."""
        return replace(self, small_repeats=0, middle_repeats=0)


def sizes_for(bottlenecks_Bps: Sequence[float]) -> list[Sizes]:
    """Return what to send on each pair of ranks, whose messages are limited to these rates."""
    once_s = sum(2 * sum(LARGE_FACTORS) * LARGE_BYTES / rate for rate in bottlenecks_Bps)
    least, most = LARGE_REPEATS
    repeats = min(most, max(least, int(BUDGET_S / once_s))) if once_s else least
    scale = min(1.0, max(LEAST_LARGE, BUDGET_S / (repeats * once_s))) if once_s else 1.0
    base = max(64, int(LARGE_BYTES * scale) // 64 * 64)
    found = []
    for rate_Bps in bottlenecks_Bps:
        low, high = MIDDLE_BYTES
        middle = min(high, max(low, int(rate_Bps * MIDDLE_S) // 64 * 64))
        large = tuple(base * factor for factor in LARGE_FACTORS)
        found.append(Sizes(middle=(middle, 2 * middle), large=large, large_repeats=repeats))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """One message: from the begin of posting to the mark at the receiver, and how long posting took.

    `series` tells apart directions, and passes.
    """

    nbytes: int
    series: tuple[int, int]
    repeat: int
    seconds: float
    posting_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What timings of single messages say; see `stanza_sim.profiles.network.PairTimes`."""

    latency_s: Estimate
    overhead_s: Estimate
    posting_s: Estimate
    goodput_Bps: Estimate
    burst_bytes: Estimate


def fit(timings: Iterable[Timing], sizes: Sizes) -> Fit:
    """Return latency, overhead, goodput and burst of messages of one kind of pair.

    T(n) = overhead + latency + (n - burst) / goodput. The goodput is the median of the slopes between the least times
    of large messages (Theil 1950, Sen 1968), since other programs only ever make messages slower; its range is that of
    the slopes of single repeats. Overhead and latency are medians of the smallest messages, and the burst follows from
    the least times of the middle ones and of these. Raises `RunError` if long messages take no longer than short ones.
    """
    by_size: dict[int, list[Timing]] = {}
    for t in timings:
        if t.nbytes != sizes.small or t.repeat >= DROPPED:
            by_size.setdefault(t.nbytes, []).append(t)
    small = by_size[sizes.small]
    overhead_s = estimate(t.posting_s for t in small)
    latency_s = estimate(max(t.seconds - overhead_s.value, 0.0) for t in small)
    least = {n: min(t.seconds for t in by_size[n]) for n in sizes.large}
    slopes = [(least[b] - least[a]) / (b - a) for a, b in combinations(sizes.large, 2)]
    if (slope := median(slopes)) <= 0:
        raise RunError("longer messages took no longer than short ones: this machine is too busy to measure a network")
    goodput_Bps = 1 / slope
    singles = _single_slopes(by_size, min(sizes.large), max(sizes.large))
    spread = estimate([1 / s for s in singles if s > 0] or [goodput_Bps])
    first_s = _least_by_series(small)
    burst = estimate(
        n - goodput_Bps * (least_s - first_s[series])
        for n in sizes.middle
        for series, least_s in _least_by_series(by_size[n]).items()
    )
    return Fit(
        latency_s=latency_s,
        overhead_s=overhead_s,
        posting_s=estimate(t.posting_s for n in sizes.large for t in by_size[n]),
        goodput_Bps=Estimate(value=goodput_Bps, low=min(spread.low, goodput_Bps), high=max(spread.high, goodput_Bps)),
        burst_bytes=burst,
    )


def _least_by_series(timings: Iterable[Timing]) -> dict[tuple[int, int], float]:
    """The least time of each series."""
    found: dict[tuple[int, int], float] = {}
    for t in timings:
        found[t.series] = min(t.seconds, found.get(t.series, inf))
    return found


def _single_slopes(by_size: dict[int, list[Timing]], least: int, most: int) -> list[float]:
    """Seconds per byte, by the smallest and the largest of the large messages of each repeat."""
    short = {(t.series, t.repeat): t.seconds for t in by_size[least]}
    return [(t.seconds - short[t.series, t.repeat]) / (most - least) for t in by_size[most]]
