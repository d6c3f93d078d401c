"""Ends commands at random instants: `python -m tests.kill --trials 60 --seed 1`.

After each there must be no process 5 s later, no half-written file, and at the next start no temporary folder. A
command that was not killed outright ends with the status of the signal and without a traceback. Linux only.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.kill.trials import trial


def main() -> int:
    """Run the trials one after another, and say what each left."""
    parser = argparse.ArgumentParser(prog="python -m tests.kill", description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    wrong = 0
    for number in range(chosen.trials):
        with tempfile.TemporaryDirectory(prefix="kill-") as folder:
            left = trial(number, chosen.seed, Path(folder))
        wrong += bool(left.faults)
        what = "; ".join(left.faults) or "nothing left"
        when = f"{number:3} signal {left.number_of_signal:2} after {left.after_s:5.1f} s"
        sys.stdout.write(f"{when}: {' '.join(left.command[:3])}: {what}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{chosen.trials} trials, seed {chosen.seed}: {wrong} left something behind\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
