"""What a plan may take of time and memory, and whether that will do, told before it is lowered.

Work is counted in parts (`part_count`), those of classes of ranks where ranks are folded. How many parts a second are
lowered and simulated is measured on the plans that were simulated before, in this very search; what a part takes of
memory does not depend on the machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import monotonic

from stanza_sim.base.limits import own_memory
from stanza_sim.base.units import format_bytes, format_time

PART_NBYTES = {True: 300, False: 1_700}
"""Bytes of memory for each part, by whether compiled code simulates (measured on 270 and 28 thousand parts)."""
LEAST_PART_S = 0.5e-6
"""No machine is quicker with a part than this, be it ever so much of the same (measured: 2.7 us on a core of 2024)."""


class NoRoom(Exception):
    """A plan would take more than it may: `kind` is `time` or `host_memory`."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(kind, reason)
        self.kind, self.reason = kind, reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What simulating a plan took: parts, by compiled code or not, and seconds from lowering to the end."""

    parts: int
    compiled: bool
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Seconds that a plan takes: `least_s` and `part_s` for each part."""

    least_s: float
    part_s: float

    @classmethod
    def of(cls, works: Sequence[Work]) -> Estimate:
        """The line from the least that any of `works` took, through what they all took together."""
        least_s = min(work.seconds for work in works)
        above_s = sum(work.seconds - least_s for work in works)
        return cls(least_s=least_s, part_s=max(LEAST_PART_S, above_s / max(1, sum(work.parts for work in works))))

    def seconds(self, parts: int) -> float:
        """Seconds for so many parts."""
        return self.least_s + parts * self.part_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What a plan may take: until `deadline_s` of the monotonic clock and for `most_s`, and so much memory.

    `estimates` are from plans before it, by whether compiled code simulated them; where there were none, time is not
    estimated. On another machine, with another clock, `left_s` from the beginning of its work stands for the deadline.
    Where a process is not `alone` with this work, the system is not told to hold it to its memory.
    """

    deadline_s: float | None = None
    most_s: float | None = None
    memory_nbytes: int | None = None
    left_s: float | None = None
    alone: bool = True
    estimates: Mapping[bool, Estimate] = field(default_factory=dict)

    def until_s(self, now_s: float) -> float | None:
        """When a plan that begins now has to end."""
        ends = [now_s + span for span in (self.most_s, self.left_s) if span is not None]
        return min([*ends, *([] if self.deadline_s is None else [self.deadline_s])], default=None)

    def patience_s(self, grace_s: float) -> float | None:
        """How long to wait for work that begins now: a little longer than it may take."""
        return None if self.deadline_s is None else max(0.0, self.deadline_s - monotonic()) + grace_s

    def elsewhere(self) -> Room:
        """The same for work on another machine that begins about now."""
        left_s = None if self.deadline_s is None else max(0.0, self.deadline_s - monotonic())
        return replace(self, deadline_s=None, left_s=left_s, alone=False)

    def admit(self, parts: int, compiled: bool, until_s: float | None) -> None:
        """Raise `NoRoom` for work of so many parts that will not be done by `until_s`, or needs too much memory."""
        needs = parts * PART_NBYTES[compiled]
        if self.memory_nbytes is not None and needs > (free := max(0, self.memory_nbytes - own_memory())):
            raise NoRoom("host_memory", f"simulating it takes about {format_bytes(needs)} of {format_bytes(free)} left")
        estimate = self.estimates.get(compiled)
        if until_s is None or estimate is None:
            return
        takes_s, left_s = estimate.seconds(parts), max(0.0, until_s - monotonic())
        if takes_s > left_s:
            raise NoRoom("time", f"simulating it takes about {format_time(takes_s)} of {format_time(left_s)} left")


@dataclass(slots=True)
class Rates:
    """What plans of this search took: in one line, the least that any took and, above that, seconds for each part."""

    works: dict[bool, list[Work]] = field(default_factory=dict)

    def add(self, work: Work) -> None:
        """Count one more plan."""
        self.works.setdefault(work.compiled, []).append(work)

    def estimates(self) -> dict[bool, Estimate]:
        """What to expect, by whether compiled code simulates; nothing where none has been simulated."""
        return {compiled: Estimate.of(works) for compiled, works in self.works.items()}
