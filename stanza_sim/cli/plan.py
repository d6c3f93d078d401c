"""`stanza-sim plan`: which strategy, with which settings, is fastest on a cluster."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated

import typer

from stanza_sim.cli.console import INTERRUPTED, errors_for_people, printing, say, stdout, warning_once
from stanza_sim.cli.options import AsJsonOfTables, ExperimentArgument, Jobs, Profiles, Scheduler, check_one_place
from stanza_sim.cli.progress import bars

if TYPE_CHECKING:
    from stanza_sim.base.errors import StanzaError
    from stanza_sim.base.telling import Say, Tell
    from stanza_sim.studies.plan.session import PlanAnswers

DEFAULT_BUDGET_S = 100.0

PLAN_EXAMPLES = """Examples:\n
[bold]stanza-sim plan ec2_v100[/]\n
[bold]stanza-sim plan ec2_v100 --set nodes=16 --set network.rate=25Gbps --budget 300s[/]\n
[bold]stanza-sim plan ec2_v100 --max-evaluations 200 --json[/]\n
[bold]stanza-sim plan ec2_v100 --scheduler tcp://host:8786[/]\n
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
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory",
            metavar="SIZE",
            help="For each process that simulates. [default: its part of what the machine has free]",
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
    scheduler: Scheduler = None,
    profile: Profiles = None,
    jobs: Jobs = None,
) -> None:
    """Search all strategies and their settings for the most samples/s at the experiment's number of nodes.

    Bounds prune, simulation decides; rows of the experiment are among the plans. Ctrl-C prints the best so far (exit
    status 130). The exit status is 0, 2 for bad input or if no plan can be made, 1 for a run that failed.
    """
    options = _Options(
        experiment=experiment,
        top=top,
        budget=budget,
        max_evaluations=max_evaluations,
        memory=memory,
        execute=execute,
        overrides=(*(settings or []), *([f"execute.compute={compute}"] if compute is not None else [])),
        as_json=as_json,
        output=output,
        given=(("--compute", compute is not None), ("--testbed", testbed)),
        testbed=testbed,
        profiles=tuple(profile or ()),
        jobs=jobs,
        scheduler=scheduler,
        began_s=monotonic(),
    )
    with errors_for_people():
        _check(options)
        tell_once = warning_once(say)
        plan_result = _search(options, tell_once)
        failure: StanzaError | KeyboardInterrupt | None = None
        if options.execute and not plan_result.interrupted:
            plan_result, failure = _executed(plan_result, options, tell_once)
        _show(plan_result, options)
        if failure is not None:
            raise failure
        if plan_result.interrupted:
            say("interrupted: the best plans so far")
            raise typer.Exit(INTERRUPTED)
        _require_a_plan(plan_result, options.experiment)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    """What the command line says; `given` are options that need `--execute`, and whether each was written."""

    experiment: str
    top: int
    budget: str | None
    max_evaluations: int | None
    memory: str | None
    execute: bool
    overrides: tuple[str, ...]
    as_json: bool
    output: Path | None
    given: tuple[tuple[str, bool], ...]
    testbed: bool
    profiles: tuple[Path, ...]
    jobs: int | None
    scheduler: str | None
    began_s: float
    """When the command began: the budget is counted from there."""

    def budget_s(self) -> float | None:
        """Seconds for the whole command; None without a limit. Raises `InputError`."""
        from stanza_sim.base.units import seconds

        if self.budget is not None:
            return seconds(self.budget, where="--budget", zero=False)
        return DEFAULT_BUDGET_S if self.max_evaluations is None else None

    def memory_nbytes(self) -> int | None:
        """Bytes for each process; None where none are stated. Raises `InputError`."""
        from stanza_sim.base.limits import check_memory
        from stanza_sim.base.units import nbytes

        if self.memory is None:
            return None
        found = nbytes(self.memory, where="--memory")
        check_memory(found, "--memory")
        return found


def _check(options: _Options) -> None:
    """Raise `InputError` for what can be told to be wrong before anything is searched for."""
    from stanza_sim.base.errors import InputError
    from stanza_sim.report.folder import check_writable
    from stanza_sim.studies.plan.session import check_not_launched

    check_one_place(options.scheduler, options.jobs)
    for option, given in options.given:
        if given and not options.execute:
            raise InputError("nothing is run without --execute", where=option, hint="add --execute")
    check_not_launched()
    if options.execute:
        from stanza_sim.execute import require_torch

        require_torch()
    options.budget_s()
    options.memory_nbytes()
    if options.output is not None:
        check_writable(options.output)


def _search(options: _Options, say: Say) -> PlanAnswers:
    from stanza_sim.base.processes import cores
    from stanza_sim.studies.plan.session import plan_experiment

    budget_s = options.budget_s()
    with _progress() as tell:
        return plan_experiment(
            options.experiment,
            overrides=options.overrides,
            budget_s=None if budget_s is None else max(0.0, budget_s - (monotonic() - options.began_s)),
            max_evaluations=options.max_evaluations,
            memory_nbytes=options.memory_nbytes(),
            profiles=options.profiles,
            jobs=options.jobs or cores(),
            scheduler=options.scheduler,
            timelines=options.output is not None,
            tell=tell,
            say=say,
        )


def _executed(
    plan_result: PlanAnswers, options: _Options, say: Say
) -> tuple[PlanAnswers, StanzaError | KeyboardInterrupt | None]:
    """Run the best plans; what went wrong is returned, since what was searched for is to be printed first."""
    from stanza_sim.base.errors import StanzaError
    from stanza_sim.studies.plan.session import execute_best

    try:
        return execute_best(plan_result, profiles=options.profiles, testbed=options.testbed, say=say), None
    except (StanzaError, KeyboardInterrupt) as error:
        return plan_result, error


def _show(plan_result: PlanAnswers, options: _Options) -> None:
    from stanza_sim.studies.plan.answer import plan_json, print_plan

    if options.output is not None:
        _write(plan_result, options.output, options.top)
    with printing():
        if options.as_json:
            sys.stdout.write(plan_json(plan_result, top=options.top))
        else:
            print_plan(plan_result, stdout(), top=options.top)


def _require_a_plan(plan_result: PlanAnswers, experiment: str) -> None:
    """Raise `InputError` if no plan could be made for any model."""
    from stanza_sim.base.errors import InputError

    without = [a for a in plan_result.answers if a.best is None]
    if without and len(without) == len(plan_result.answers):
        hint = "allow more time: --budget"
        if out := without[0].found.left_out:
            hint = f"the first that was left out, {out[0].choice.label}: {out[0].reason}"
        names = ", ".join(a.problem.entry.title for a in without)
        raise InputError(f"no plan could be made for {names}", where=experiment, hint=hint)


def _write(plan_result: PlanAnswers, folder: Path, top: int) -> None:
    """Write the answer as `result.json`, and the schedule and the spans of every best plan beside it."""
    from stanza_sim.report.folder import write_result
    from stanza_sim.report.result import Result
    from stanza_sim.studies.plan.answer import plan_json

    rows = tuple(answer.best for answer in plan_result.answers if answer.best is not None)
    write_result(Result(experiment=plan_result.experiment, rows=rows), folder, plan_json(plan_result, top=top))


def _progress() -> AbstractContextManager[Tell]:
    """Show how far the search of each model is."""
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    return bars(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
