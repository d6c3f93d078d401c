"""What the host of a virtual machine takes away of its cores. Knows nothing of torch."""

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


def stolen_s(stat: Path = Path("/proc/stat")) -> float:
    """Core seconds since boot in which a virtual machine's cores wanted to run and its host ran something else.

    0 where that is not told (`steal` of `man 5 proc_stat`).
    """
    try:
        fields = stat.read_text(encoding="utf-8").splitlines()[0].split()
        return int(fields[8]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0


class Stolen:
    """What share of this machine's cores, all of them, its host takes away from now on."""

    def __init__(self) -> None:
        self._begin_s, self._before_s = time.monotonic(), stolen_s()

    def share(self) -> float:
        """That share up to now."""
        return (stolen_s() - self._before_s) / max(self.elapsed_s() * (os.cpu_count() or 1), 1e-9)

    def elapsed_s(self) -> float:
        """Seconds up to now."""
        return time.monotonic() - self._begin_s
