"""A process that gives up a testbed when the process that owns it has ended without doing so.

It waits for the owner's end, which takes neither time nor a connection that children of the owner could keep open.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from stanza_sim.testbed.processes import Process, wait_for_end
from stanza_sim.testbed.registry import Registry
from stanza_sim.testbed.remove import release
from stanza_sim.testbed.shell import find_tools

_ROOT = Path(__file__).parents[2]


def start_guard(registry: Registry, prefix: str, owner: Process) -> subprocess.Popen[bytes]:
    """Start the guard of `owner`'s testbed, in a session of its own: signals for the owner's group do not reach it."""
    values = (str(registry.folder), prefix, str(owner.pid), str(owner.started))
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "stanza_sim.testbed.guard", *values],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    )


def main(folder: str, prefix: str, pid: str, started: str) -> None:
    """Wait for the end of the owner; then give up its testbed, if it still is its own."""
    registry, owner = Registry(folder=Path(folder)), Process(pid=int(pid), started=int(started))
    wait_for_end(owner)
    with registry.lock():
        record = registry.get(prefix)
        if record is not None and record.owner == owner:
            release(record, registry, find_tools())


if __name__ == "__main__":
    main(*sys.argv[1:])
