"""Who has a machine's cores during a run: its ranks, other processes, or the host of a virtual machine. No torch."""

from __future__ import annotations

import os
import time
from pathlib import Path

MOST_STOLEN = 0.01
"""Share of the cores that may be taken away during a measurement; beyond it is done again."""
TRIES = 3
"""How often a measurement is done at most; the one of which least was taken away counts."""
SHORT_S = 30.0
"""What takes longer than this is not done again."""


STEAL, BUSY, IDLE = (7,), (0, 1, 2, 5, 6), (3, 4)
"""Which fields of the first line of `/proc/stat` are steal, work (user, nice, system, irq, softirq), and rest."""


def stolen_s(stat: Path = Path("/proc/stat")) -> float:
    """Core seconds since boot in which a virtual machine's cores wanted to run and its host ran something else.

    0 where that is not told (`steal` of `man 5 proc_stat`).
    """
    return _core_s(STEAL, stat)


def busy_s(stat: Path = Path("/proc/stat")) -> float:
    """Core seconds since boot in which this machine's cores, all of them, worked for any process; 0 if not told."""
    return _core_s(BUSY, stat)


def idle_s(stat: Path = Path("/proc/stat")) -> float:
    """Core seconds since boot in which this machine's cores, all of them, had nothing to do; 0 if not told."""
    return _core_s(IDLE, stat)


def _core_s(fields: tuple[int, ...], stat: Path) -> float:
    try:
        counts = stat.read_text(encoding="utf-8").splitlines()[0].split()[1:]
        return sum(int(counts[i]) for i in fields) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0


class CoreUse:
    """How this machine's cores, all of them, are used from now on."""

    def __init__(self) -> None:
        self._begin_s, self._own_s = time.monotonic(), time.process_time()
        self._stolen_s, self._busy_s = stolen_s(), busy_s()

    def stolen(self) -> float:
        """The share of the cores that a virtual machine's host has taken away up to now."""
        return (stolen_s() - self._stolen_s) / self._available_s()

    def busy(self) -> float:
        """The share of the cores on which any process has run up to now."""
        return (busy_s() - self._busy_s) / self._available_s()

    def own(self) -> float:
        """The share of the cores on which this process has run up to now, all of its threads."""
        return (time.process_time() - self._own_s) / self._available_s()

    def elapsed_s(self) -> float:
        """Seconds up to now."""
        return time.monotonic() - self._begin_s

    def _available_s(self) -> float:
        return max(self.elapsed_s() * (os.cpu_count() or 1), 1e-9)
