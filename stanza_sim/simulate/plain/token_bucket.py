"""Token buckets: links that a shaper holds to a rate, but for the first bytes after an idle time.

A bucket holds at most `TokenBucket.nbytes` of credit. It fills at the link's rate r and empties as fast as bytes pass,
so while there is credit the link passes `TokenBucket.peak_Bps`, and without any it passes r. As a fluid: with credit c
and bytes passing at u, dc/dt = r - u; c lasts c / (u - r) where u > r, which is one more event of the simulation, exact
as all others are. Flows share the peak as they share the rate, max-min fairly, and so use up the credit alike. One
message of n bytes alone takes (n - c) / r where nothing limits the peak (and nothing for n <= c).

Domain of validity: shapers that queue what exceeds the rate (as `tc tbf` does) and not those that drop it, and messages
much longer than a packet. A bucket is empty when the simulation begins, since what counts is the steady state: credit
that was saved before training is soon gone. Credits of a provider that last for minutes are not meant: no idle time
within an iteration fills those.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from stanza_sim.cluster.hardware import TokenBucket
from stanza_sim.simulate.plain.fluid import TIE, FluidShare

if TYPE_CHECKING:
    from stanza_sim.simulate.plain.clock import SimClock

UNLIMITED = 1e6
"""A peak without a limit is so many times the link's rate."""
EMPTY = 1e-9
"""A credit of less than this share of the bucket is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A shaped link: its resource and rate, its bucket's size and peak."""

    resource: int
    rate_Bps: float
    nbytes: float
    peak_Bps: float

    @staticmethod
    def of(resource: int, rate_Bps: float, bucket: TokenBucket) -> Shape:
        """The shape of a resource of this rate."""
        peak_Bps = min(bucket.peak_Bps, UNLIMITED * rate_Bps)
        return Shape(resource=resource, rate_Bps=rate_Bps, nbytes=bucket.nbytes, peak_Bps=peak_Bps)

    @property
    def matters(self) -> bool:
        """Whether the link ever passes more than its rate."""
        return self.peak_Bps > self.rate_Bps


@dataclass(slots=True, eq=False)
class _Shaped:
    """A shaped link: the credit at `since_s`, falling by `drain_Bps`, and when it will be gone."""

    shape: Shape
    credit: float = 0.0
    since_s: float = 0.0
    drain_Bps: float = 0.0
    empty_s: float = inf


class TokenBuckets:
    """The buckets of the links of a fabric. `refill` goes before every solve, `drain` after it."""

    def __init__(self, token_buckets: Iterable[tuple[int, TokenBucket]], share: FluidShare, clock: SimClock) -> None:
        self.share, self.clock = share, clock
        self._shaped = []
        for resource, bucket in token_buckets:
            shape = Shape.of(resource, share.capacities[resource], bucket)
            if shape.matters:
                self._shaped.append(_Shaped(shape, drain_Bps=-shape.rate_Bps))

    def refill(self) -> None:
        """Set what each link passes from now on."""
        if not self._shaped:
            return
        now = self.clock.now
        for s in self._shaped:
            if s.empty_s <= now + TIE * now:
                s.credit = 0.0
            else:
                s.credit = min(s.shape.nbytes, max(0.0, s.credit - s.drain_Bps * (now - s.since_s)))
            s.since_s = now
            full = s.credit > EMPTY * s.shape.nbytes
            self.share.set_capacity(s.shape.resource, s.shape.peak_Bps if full else s.shape.rate_Bps)

    def drain(self) -> float:
        """Note what passes now; return when the next bucket will be empty."""
        if not self._shaped:
            return inf
        for s in self._shaped:
            s.drain_Bps = self.share.used(s.shape.resource) - s.shape.rate_Bps
            full = self.share.capacities[s.shape.resource] == s.shape.peak_Bps
            s.empty_s = self.clock.now + s.credit / s.drain_Bps if full and s.drain_Bps > 0 else inf
        return min(s.empty_s for s in self._shaped)
