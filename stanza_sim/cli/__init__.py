"""The command line: one file a command. What commands need is imported when they need it."""


def main() -> None:
    """Run `stanza-sim` with the arguments of this process."""
    from stanza_sim.cli.app import main as run

    run()
