"""The command line: one file a command. What commands need is imported when they need it."""

import gc
import os
import sys

COLLECT_FROM = 50_000
"""Objects made, and not freed, between two walks of Python's collector; with the usual few hundred it is busy while
modules are imported, which leave hardly anything behind."""
_BY_SIGNAL = {130: "interrupted", 143: "terminated", 129: "hung up"}


def main() -> None:
    """Run `stanza-sim` with the arguments of this process. SIGTERM and SIGHUP end it as Ctrl-C does, cleaned up."""
    gc.set_threshold(COLLECT_FROM)
    try:
        from stanza_sim.base.processes import ending_by_signal

        with ending_by_signal():
            from stanza_sim.cli.app import main as run

            run()
    except KeyboardInterrupt:
        _end(130)
    except SystemExit as end:
        if end.code in (129, 143) and isinstance(end.code, int):
            _end(end.code)
        raise


def _end(status: int) -> None:
    """Say in one line by which signal it ends."""
    if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0" and sys.stderr is not None:
        sys.stderr.write(f"{_BY_SIGNAL[status]}\n")
    sys.exit(status)
