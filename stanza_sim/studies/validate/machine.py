"""What a validation ran on, in words."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from stanza_sim.base.processes import cores
from stanza_sim.base.units import format_bytes
from stanza_sim.base.version import __version__

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


def load() -> float:
    """The load average over the last minute; 0 on a system that has none."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


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
