"""Background traffic that comes and goes: when each of its flows is there.

The traffic on a link is one more flow in the solver, with a cap; see `stanza_sim.cluster.Traffic`. What
is constant needs nothing from here.

Domain of validity: it is elastic, as TCP is, and yields to the job's flows on a full link; traffic that does not yield
lowers the link's rate instead. Every link has traffic of its own: that of many links which rises and falls together
is not modelled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, log
from typing import Protocol
from zlib import crc32

from stanza_sim.cluster.hardware import Traffic
from stanza_sim.cluster.routing import mix


@dataclass(frozen=True, slots=True, kw_only=True)
class BackgroundFlow:
    """The background traffic of a link: the index of its resource, and the link's name, which is part of the draws.

    `weight` is that of every flow that uses links only.
    """

    resource: int
    name: str
    traffic: Traffic
    weight: float


class WakingClock(Protocol):
    """The clock of whoever simulates: `pending` says whether anything else is still to happen."""

    @property
    def now(self) -> float:
        """The time in seconds."""

    @property
    def pending(self) -> bool:
        """See the class."""

    def wake(self, at_s: float, then: Callable[[], None]) -> None:
        """Call `then` at `at_s`, a time that is not past."""


class OnOff:
    """Switches the flows that come and go: `switch(k, there)` is called for flow `k` when its phase ends."""

    def __init__(
        self, flows: Sequence[BackgroundFlow], clock: WakingClock, switch: Callable[[int, bool], None]
    ) -> None:
        self.flows, self.clock, self.switch = flows, clock, switch
        self._state = [mix(mix(f.traffic.seed) ^ crc32(f.name.encode())) for f in flows]
        self.there: list[bool] = []
        self._until: list[float] = []
        for k, flow in enumerate(flows):
            on_s, off_s = flow.traffic.on_s, flow.traffic.off_s
            if on_s is None or off_s is None:
                self.there.append(True)
                self._until.append(inf)
            else:
                self.there.append(self._draw(k) < on_s / (on_s + off_s))
                self._until.append(self._lasts(k))  # what is left of a phase is distributed as a whole one
        self._next_s = min(self._until, default=inf)
        self._armed = False

    def arm(self) -> None:
        """Have the next phase end in time, if anything else is still to happen; to be called after every solve."""
        if self._armed or self._next_s == inf or not self.clock.pending:
            return
        self._armed = True
        self.clock.wake(self._next_s, self._fire)

    def _fire(self) -> None:
        self._armed = False
        for k, until in enumerate(self._until):
            if until <= self.clock.now:
                self.there[k] = not self.there[k]
                self.switch(k, self.there[k])
                self._until[k] = self.clock.now + self._lasts(k)
        self._next_s = min(self._until)

    def _lasts(self, k: int) -> float:
        """Draw how long the phase of flow `k` lasts."""
        mean_s = self.flows[k].traffic.on_s if self.there[k] else self.flows[k].traffic.off_s
        return -log(self._draw(k)) * (mean_s or inf)

    def _draw(self, k: int) -> float:
        """Return a number between 0 and 1, neither included."""
        self._state[k] = mix(self._state[k])
        return ((self._state[k] >> 11) + 0.5) / (1 << 53)
