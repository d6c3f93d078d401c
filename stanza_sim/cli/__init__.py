"""The command line: one file a command. What commands need is imported when they need it."""

import gc

COLLECT_FROM = 50_000
"""Objects made, and not freed, between two walks of Python's collector; with the usual few hundred it is busy while
modules are imported, which leave hardly anything behind."""


def main() -> None:
    """Run `stanza-sim` with the arguments of this process."""
    gc.set_threshold(COLLECT_FROM)
    from stanza_sim.cli.app import main as run

    run()
