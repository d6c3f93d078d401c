"""`stanza-sim plan`: which strategy, with which settings, is fastest on a cluster."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated

import typer

from stanza_sim.cli.console import INTERRUPTED, errors_for_people, printing, say, stdout, warning_once
from stanza_sim.cli.options import AsJsonOfTables, ExperimentArgument, Jobs, Profiles

if TYPE_CHECKING:
    from rich.progress import TaskID

    from stanza_sim.studies.plan.session import Planned, Tell

DEFAULT_BUDGET_S = 100.0

PLAN_EXAMPLES = """Examples:\n
[bold]stanza-sim plan ec2_v100[/]\n
[bold]stanza-sim plan ec2_v100 --set nodes=16 --set network.rate=25Gbps --budget 300s[/]\n
[bold]stanza-sim plan ec2_v100 --max-evaluations 200 --json[/]\n
[bold]stanza-sim plan laptop --execute[/]
"""


def plan(
    experiment: ExperimentArgument,
    top: Annotated[int, typer.Option("--top", min=1, help="How many plans to show for each model.")] = 10,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            metavar="TIME",
            help="For the whole command, shared by the models. [default: 100s, none with --max-evaluations]",
            show_default=False,
        ),
    ] = None,
    max_evaluations: Annotated[
        int | None,
        typer.Option(
            "--max-evaluations",
            metavar="N",
            min=1,
            help="Simulate at most so many plans of each model; the answer is then reproducible.",
            show_default=False,
        ),
    ] = None,
    execute: Annotated[bool, typer.Option("--execute", help="Also run the best plan of each model for real.")] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the experiment.", show_default=False),
    ] = None,
    as_json: AsJsonOfTables = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="DIR",
            help="Write the answer, and the best plans' schedules and spans.",
            show_default=False,
        ),
    ] = None,
    compute: Annotated[
        str | None,
        typer.Option("--compute", metavar="real|emulated", help="With --execute, as for run.", show_default=False),
    ] = None,
    testbed: Annotated[bool, typer.Option("--testbed", help="With --execute, as for run (root).")] = False,
    profile: Profiles = None,
    jobs: Jobs = None,
) -> None:
    """Search all strategies and their settings for the most samples/s at the experiment's number of nodes.

    Bounds prune, simulation decides; rows of the experiment are among the plans. Ctrl-C prints the best so far (exit
    status 130). The exit status is 0, 2 for bad input or if no plan can be made, 1 for a run that failed.
    """
    began_s = monotonic()
    with errors_for_people():
        from stanza_sim.base.errors import InputError, StanzaError
        from stanza_sim.base.processes import cores
        from stanza_sim.base.units import seconds
        from stanza_sim.report.folder import check_writable
        from stanza_sim.studies.plan.answer import planned_json, print_planned
        from stanza_sim.studies.plan.session import check_not_launched, execute_best, plan_experiment

        for option, given in (("--compute", compute is not None), ("--testbed", testbed)):
            if given and not execute:
                raise InputError("nothing is run without --execute", where=option, hint="add --execute")
        check_not_launched()
        if execute:
            from stanza_sim.execute import require_torch

            require_torch()
        budget_s = None if budget is None else seconds(budget, where="--budget", zero=False)
        if budget_s is None and max_evaluations is None:
            budget_s = DEFAULT_BUDGET_S
        if output is not None:
            check_writable(output)
        tell_once = warning_once(say)
        overrides = [*(settings or []), *([f"execute.compute={compute}"] if compute is not None else [])]
        with _progress() as tell:
            planned = plan_experiment(
                experiment,
                overrides=overrides,
                budget_s=None if budget_s is None else max(0.0, budget_s - (monotonic() - began_s)),
                max_evaluations=max_evaluations,
                profiles=profile or [],
                jobs=jobs or cores(),
                tell=tell,
                say=tell_once,
            )
        failure: StanzaError | KeyboardInterrupt | None = None
        if execute and not planned.interrupted:
            try:
                planned = execute_best(planned, profiles=profile or [], testbed=testbed, say=tell_once)
            except (StanzaError, KeyboardInterrupt) as error:  # what was searched for is printed first
                failure = error
        if output is not None:
            _write(planned, output, top)
        with printing():
            if as_json:
                sys.stdout.write(planned_json(planned, top=top))
            else:
                print_planned(planned, stdout(), top=top)
        if failure is not None:
            raise failure
        if planned.interrupted:
            say("interrupted: the best plans so far")
            raise typer.Exit(INTERRUPTED)
        without = [a for a in planned.answers if a.best is None and a.found.left_out]
        if without and len(without) == len(planned.answers):
            first = without[0].found.left_out[0]
            raise InputError(
                f"no plan could be made for {', '.join(a.problem.entry.title for a in without)}",
                where=experiment,
                hint=f"the first that was left out, {first.choice.label}: {first.reason}",
            )


def _write(planned: Planned, folder: Path, top: int) -> None:
    """Write the answer as `result.json`, and the schedule and the spans of every best plan beside it."""
    from stanza_sim.report.folder import write_result
    from stanza_sim.report.result import Result
    from stanza_sim.studies.plan.answer import planned_json

    rows = tuple(answer.best for answer in planned.answers if answer.best is not None)
    write_result(Result(experiment=planned.experiment, rows=rows), folder, planned_json(planned, top=top))


@contextmanager
def _progress() -> Iterator[Tell]:
    """Show how far the search of each model is, by bars on stderr if that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, highlight=False, markup=False)
    if not console.is_terminal:
        yield lambda model, done, total: None
        return
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console, transient=True
    ) as bar:
        tasks: dict[str, TaskID] = {}

        def tell(model: str, done: int, total: int) -> None:
            if model not in tasks:
                tasks[model] = bar.add_task(model, total=total)
            bar.update(tasks[model], completed=done, total=total)

        yield tell
