"""The clock of a rank, and how it is mapped onto rank 0's. No torch."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

now = time.perf_counter
"""The clock of every time in this package: monotonic, and one clock for all processes of a Linux host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockOffset:
    """The offset of rank 0's clock against a rank's own, estimated before and after the run.

    `before` and `after` are (time on the own clock, seconds to add). Times between are mapped by linear interpolation.
    """

    before: tuple[float, float] = (0.0, 0.0)
    after: tuple[float, float] = (1.0, 0.0)

    def to_rank0(self, time_s: float) -> float:
        """Return `time_s` of the own clock on rank 0's clock."""
        (t0, d0), (t1, d1) = self.before, self.after
        share = (time_s - t0) / (t1 - t0) if t1 > t0 else 0.0
        return time_s + d0 + (d1 - d0) * share


def boot_id() -> str:
    """What tells machines (and restarts of one) apart where the system says so; ranks with one share a clock."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
