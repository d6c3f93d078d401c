"""What a validation ran on, in words."""

from __future__ import annotations

import os
import platform
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from stanza_sim import __version__
from stanza_sim.units import format_bytes

MOST_STOLEN = 0.01
"""Share of the cores that a virtual machine's host may take away during a measurement; beyond it is done again."""
TRIES = 3
"""How often a measurement is done at most; the one of which least was taken away counts."""
BUSY = 0.25
"""Load average per core from which a machine does not count as idle."""


def describe() -> dict[str, str]:
    """The processor, how many of its cores this process may use, memory, and the kernel; by the name of each."""
    found = {
        "processor": _processor(),
        "cores": str(cores()),
        "memory": _memory(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }
    return {key: value for key, value in found.items() if value}


def versions() -> dict[str, str]:
    """Versions of what decides how long a run takes."""
    found = {"stanza_sim": __version__, "python": platform.python_version()}
    with suppress(PackageNotFoundError):
        found["torch"] = version("torch").partition("+")[0]
    return found


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load() -> float:
    """The load average over the last minute; 0 on a system that has none."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


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
        took_s = time.monotonic() - self._begin_s
        return (stolen_s() - self._before_s) / max(took_s * (os.cpu_count() or 1), 1e-9)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _memory() -> str:
    try:
        return format_bytes(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return ""
