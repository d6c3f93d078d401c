"""What a plan may take of time and memory, and whether that will do, told before it is lowered.

Work is counted in parts (`part_count`), those of classes of ranks where ranks are folded. How many parts a second are
lowered and simulated is measured on the plans that were simulated before, in this very search; what a part takes of
memory does not depend on the machine.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from time import monotonic

from stanza_sim.base.limits import own_memory
from stanza_sim.base.units import format_bytes, format_time
from stanza_sim.schedule import Pattern, Schedule, Transfer
from stanza_sim.simulate.lowering.fold import Folding
from stanza_sim.simulate.run import part_count

PART_NBYTES = {True: 300, False: 1_700}
"""Bytes of memory for each part, by whether compiled code simulates (measured on 270 and 28 thousand parts)."""


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
class Room:
    """What a plan may take: until `deadline_s` of the monotonic clock and for `most_s`, and so much memory.

    `seconds_per_part` is what plans before it took, by whether compiled code simulated them; where there were none,
    nothing is estimated.
    """

    deadline_s: float | None = None
    most_s: float | None = None
    memory_nbytes: int | None = None
    seconds_per_part: dict[bool, float] = field(default_factory=dict)

    def until_s(self, now_s: float) -> float | None:
        """When a plan that begins now has to end."""
        ends = [self.deadline_s, None if self.most_s is None else now_s + self.most_s]
        return min((end for end in ends if end is not None), default=None)

    def admit(self, parts: int, compiled: bool, until_s: float | None) -> None:
        """Raise `NoRoom` for work of so many parts that will not be done by `until_s`, or needs too much memory."""
        needs = parts * PART_NBYTES[compiled]
        if self.memory_nbytes is not None and needs > (free := max(0, self.memory_nbytes - own_memory())):
            raise NoRoom("host_memory", f"simulating it takes about {format_bytes(needs)} of {format_bytes(free)} left")
        rate = self.seconds_per_part.get(compiled)
        if until_s is None or rate is None:
            return
        takes_s, left_s = parts * rate, max(0.0, until_s - monotonic())
        if takes_s > left_s:
            raise NoRoom("time", f"simulating it takes about {format_time(takes_s)} of {format_time(left_s)} left")


@dataclass(slots=True)
class Rates:
    """Seconds for each part, measured in this search: all seconds over all parts, so that long work counts most."""

    seconds: dict[bool, float] = field(default_factory=dict)
    parts: dict[bool, int] = field(default_factory=dict)

    def add(self, work: Work) -> None:
        """Count one more plan."""
        self.seconds[work.compiled] = self.seconds.get(work.compiled, 0.0) + work.seconds
        self.parts[work.compiled] = self.parts.get(work.compiled, 0) + work.parts

    def per_part(self) -> dict[bool, float]:
        """Seconds for each part so far."""
        return {compiled: self.seconds[compiled] / max(1, parts) for compiled, parts in self.parts.items()}


def folded_parts(schedule: Schedule, folding: Folding) -> int:
    """Parts of the ranks that stand for their classes, messages to each class counted once."""
    if len(folding.classes) == schedule.world_size:
        return part_count(schedule)
    sizes: dict[str, int] = {}

    def size(name: str) -> int:
        if name not in sizes:
            ranks = schedule.group(name)
            sizes[name] = sum(members[0] in ranks for members in folding.classes)
        return sizes[name]

    total = 0
    for op in schedule.ops:
        if isinstance(op, Transfer):
            n, k = size(op.src), size(op.dst)
            complete = op.pattern in (Pattern.FAN_IN, Pattern.FAN_OUT, Pattern.ALL_PAIRS)
            total += n + k + (n * k if complete else max(n, k))
        else:
            total += size(op.ranks)
    return total
