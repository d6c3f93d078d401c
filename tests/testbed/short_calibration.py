"""`stanza-sim` whose calibrations send large messages for SECONDS in all: what follows from them is then less exact.

python -m tests.testbed.short_calibration SECONDS COMMAND...
"""

import sys

from stanza_sim.cli import main
from stanza_sim.execute.calibrate import single

SHORT = (sys.executable, "-m", "tests.testbed.short_calibration", "1.5")
"""Long enough for a goodput within 3% (`test_calibrate.py`)."""

if __name__ == "__main__":
    single.BUDGET_S = float(sys.argv.pop(1))
    main()
