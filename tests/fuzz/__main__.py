"""Mutates files of every format and looks at what the commands say: `python -m tests.fuzz --count 10000 --seed 1`.

Each trial mutates a good file and runs a command that reads it. Its exit status must be 0, or 2 with one message that
names the file; 1 only where the message says what could not be simulated. A traceback, a control character on the
terminal, more than 5 s of this process, or more than 500 MB is a fault. Every fault is kept with what made it.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.fuzz.trials import fuzz


def main() -> int:
    """Run trials, say what came of them, and keep the faults."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--keep", type=Path, help="where faults are written (default: a new folder)")
    chosen = parser.parse_args()
    begin = time.monotonic()

    def tell(done: int, faults: int) -> None:
        sys.stderr.write(f"{done:,} of {chosen.count:,} done, {faults} faults\n")

    statuses, faults = fuzz(chosen.count, chosen.seed, chosen.jobs, tell)
    took_s = time.monotonic() - begin
    said = ", ".join(f"{n} {what}" for what, n in sorted(statuses.items()))
    sys.stdout.write(f"{chosen.count} trials, seed {chosen.seed}, {took_s:.0f} s: {said}; {len(faults)} faults\n")
    if faults:
        folder = chosen.keep or Path(tempfile.mkdtemp(prefix="fuzz-"))
        folder.mkdir(exist_ok=True)
        for fault in faults:
            stem = folder / f"{fault.number}-{fault.target.replace(' ', '-')}"
            stem.with_suffix(".input").write_bytes(fault.content)
            stem.with_suffix(".txt").write_text(f"{fault.kind}\n{' '.join(fault.command)}\n{fault.said}")
        for (kind, target), n in Counter((f.kind, f.target) for f in faults).most_common():
            sys.stdout.write(f"{n:6} {kind}: {target}\n")
        sys.stdout.write(f"kept in {folder}\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
