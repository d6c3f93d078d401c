"""The process of a group of checks.

`python -m stanza_sim.execute.selftest.one FD PARENT FUNCTION FOLDER LIMIT NAME...`; see `outcome.Here`. Ends with its
parent, whatever becomes of that. What the checks print goes where the parent has put stdout and stderr.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

from stanza_sim.base.processes import end_with_parent
from stanza_sim.execute.selftest.outcome import Here


def main(arguments: list[str]) -> None:
    """Carry out the checks that are named."""
    lines, parent, function, folder, limit_s, *names = arguments
    end_with_parent(int(parent))
    module, _, name = function.partition(":")
    getattr(importlib.import_module(module), name)(
        Here(names=tuple(names), folder=Path(folder), limit_s=float(limit_s), lines=int(lines))
    )
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # threads may wait for ever in torch


if __name__ == "__main__":
    main(sys.argv[1:])
