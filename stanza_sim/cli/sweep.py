"""`stanza-sim sweep`: the rows of an experiment over a grid of its keys, and where another row begins to win."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stanza_sim.cli.console import errors_for_people, printing, say, stdout
from stanza_sim.cli.options import AsJsonOfTables, ExperimentArgument, Jobs, Profiles, Scheduler, check_one_place
from stanza_sim.cli.progress import progress

if TYPE_CHECKING:
    from stanza_sim.studies.sweep.session import Sweep

SWEEP_EXAMPLES = """Examples:\n
[bold]stanza-sim sweep ec2_v100 --vary network.rate=1Gbps,10Gbps,25Gbps,100Gbps[/]\n
[bold]stanza-sim sweep ec2_v100 --vary network.rate=1Gbps,10Gbps --vary nodes=2..64 -o sweep.csv[/]\n
[bold]stanza-sim sweep ec2_v100 --vary nodes=4..64:4 --scheduler tcp://host:8786 -o sweep.csv[/]
"""


def sweep(
    experiment: ExperimentArgument,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            "--vary",
            metavar="KEY=VALUES",
            help="A key that --set takes, with values a,b,c or a range a..b or a..b:step. May be given several times.",
            show_default=False,
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key for all points.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE.csv",
            help="Write every point as it is known; what the file holds already is not computed again.",
            show_default=False,
        ),
    ] = None,
    scheduler: Scheduler = None,
    as_json: AsJsonOfTables = False,
    profile: Profiles = None,
    jobs: Jobs = None,
) -> None:
    """Predict every row of an experiment at every combination of the values of its varied keys.

    Where the winner differs between two neighbouring values of a number, the place at which it changes is found by
    bisection. A row that cannot be built at a point gets a line that says why. The exit status is 0, 2 for bad input
    or if no line could be predicted, 1 where a worker was lost, 130 after Ctrl-C: the same command then goes on with
    what is in FILE.csv.
    """
    with errors_for_people():
        from stanza_sim.base.errors import InputError
        from stanza_sim.base.processes import cores
        from stanza_sim.studies.sweep.report import print_sweep, sweep_json
        from stanza_sim.studies.sweep.session import Sweep

        check_one_place(scheduler, jobs)
        made = Sweep(experiment, vary=vary or [], overrides=settings or [], profiles=profile or [], output=output)
        with progress() as tell, _kept(made):
            sweep_result = made.run(jobs=jobs or cores(), scheduler=scheduler, tell=tell)
        for warning in sweep_result.warnings:
            say(f"warning: {warning}")
        with printing():
            if as_json:
                sys.stdout.write(sweep_json(sweep_result))
            else:
                print_sweep(sweep_result, stdout())
        if not any(line.feasible for line in sweep_result.lines):
            what = f"none of {len(sweep_result.lines)} lines could be predicted"
            raise InputError(what, where=experiment, hint=f"the first says: {next(iter(sweep_result.reasons))}")


@contextmanager
def _kept(made: Sweep) -> Iterator[None]:
    """Say, where a sweep ends early, how to go on with it."""
    from stanza_sim.base.errors import RunError

    try:
        yield
    except (KeyboardInterrupt, RunError):
        if made.table.path is not None:
            known = sum(point in made.table.lines for point in made.points)
            say(f"{known} of {len(made.points)} points are in {made.table.path}; the same command goes on with them")
        raise
