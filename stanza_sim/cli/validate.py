"""`stanza-sim validate`: predict and measure the cases of a suite, and report how far apart the two are."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stanza_sim.cli.console import errors_for_people, printing, say, stdout
from stanza_sim.cli.options import AsJsonOfTables, Dilate
from stanza_sim.cli.progress import terminal

if TYPE_CHECKING:
    from stanza_sim.base.telling import Say, Tell

EXAMPLES = """Examples:\n
[bold]stanza-sim validate --dry-run[/]\n
[bold]sudo stanza-sim validate -o results[/]\n
[bold]sudo stanza-sim validate --resume -o results[/]\n
[bold]sudo stanza-sim validate --only star-4-500 --repeats 5[/]\n
[bold]sudo stanza-sim validate --only star-4-500 --dilate 4[/]\n
[bold]stanza-sim validate real[/]\n
[bold]stanza-sim validate published --rows mine.csv[/]
"""


def validate(
    suite: Annotated[
        str | None,
        typer.Argument(
            help="Name in experiments/validation/, or path of a file; default: emulated.", show_default=False
        ),
    ] = None,
    compute: Annotated[
        str | None,
        typer.Option(
            "--compute",
            metavar="real|emulated",
            help="Train, or wait in the place of each computation; default: what the suite says.",
            show_default=False,
        ),
    ] = None,
    dilate: Dilate = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="WORD", help="Only cases with this in their name.", show_default=False),
    ] = None,
    repeats: Annotated[
        int | None,
        typer.Option("--repeats", min=1, help="How often each case is measured.", show_default=False),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Of the order of the cases.", show_default=False)
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change a key of the suite, by dotted path.", show_default=False
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="DIR", help="Write there; default: validation-SUITE.", show_default=False
        ),
    ] = None,
    as_json: AsJsonOfTables = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what an interrupted run left in DIR.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only predict, as the topologies are; measure and write nothing.")
    ] = False,
    rows: Annotated[
        Path | None,
        typer.Option("--rows", metavar="FILE.csv", help="published: training rows.", show_default=False),
    ] = None,
    nccl: Annotated[
        Path | None,
        typer.Option("--nccl", metavar="FILE.csv", help="published: rows of nccl-tests.", show_default=False),
    ] = None,
    single: Annotated[
        Path | None,
        typer.Option("--single", metavar="FILE.csv", help="published: rows of one GPU.", show_default=False),
    ] = None,
) -> None:
    """Predict many cases, then measure them in random order, and report how far apart the two are.

    Calibrates every network with single messages first. Writes report.md, results.json, results.csv and a scatter plot.
    The suite published measures nothing: it holds predictions against what others measured on clusters of GPUs; its
    --dry-run prints the rules.
    The exit status is 0, 1 if the suite's bounds are missed or a run failed, 2 for bad input.
    """
    with errors_for_people():
        from stanza_sim.base.errors import InputError
        from stanza_sim.base.processes import cores
        from stanza_sim.studies.validate import machine
        from stanza_sim.studies.validate.chosen import predicted_suite
        from stanza_sim.studies.validate.published.suite import is_published
        from stanza_sim.studies.validate.report import report_json
        from stanza_sim.studies.validate.session import predictions_json, print_predictions, print_report
        from stanza_sim.studies.validate.suite import DEFAULT

        files = {"rows": rows, "nccl": nccl, "single": single}
        if is_published(suite or DEFAULT):
            measuring = {
                "--only": only,
                "--compute": compute,
                "--dilate": dilate,
                "--repeats": repeats,
                "--seed": seed,
                "--resume": resume,
            }
            _published(str(suite), settings or [], files, measuring, output, as_json=as_json, dry_run=dry_run)
            return
        if given_file := next((name for name, path in files.items() if path is not None), None):
            hint = "as in stanza-sim validate published"
            raise InputError("is for suites of published measurements", where=f"--{given_file}", hint=hint)
        given = {"execute.compute": compute, "execute.dilate": dilate, "repeats": repeats, "seed": seed}
        given = {key: value for key, value in given.items() if value is not None}
        changes = [*(settings or []), *(f"{key}={value}" for key, value in given.items())]
        found = predicted_suite(suite or DEFAULT, changes, only or [])
        if dry_run:
            with printing():
                if as_json:
                    sys.stdout.write(predictions_json(found.predictions))
                else:
                    print_predictions(found.cases, found.predictions, stdout())
            return
        if (load := machine.load()) > machine.BUSY * cores():
            say(
                f"warning: other programs are running here (load average {load:.1f}); measurements need an idle machine"
            )
        folder = output or Path(f"validation-{found.loaded.value.name}")
        with _progress() as (tell, remark), _kept(folder):
            command = _command(suite, only or [], settings or [], given)
            report = found.measured(folder, command=command, resume=resume, tell=tell, say=remark)
        with printing():
            if as_json:
                sys.stdout.write(report_json(report))
            else:
                print_report(report, folder, stdout())
        if not report.held:
            raise typer.Exit(1)


def _published(
    suite: str,
    settings: Sequence[str],
    files: Mapping[str, Path | None],
    measuring: Mapping[str, object],
    output: Path | None,
    *,
    as_json: bool,
    dry_run: bool,
) -> None:
    """Hold predictions against published measurements; `measuring` are options that have no use here."""
    from stanza_sim.base.errors import InputError
    from stanza_sim.studies.validate.published import session
    from stanza_sim.studies.validate.published.report import report_json
    from stanza_sim.studies.validate.published.suite import load_published

    if used := next((name for name, value in measuring.items() if value), None):
        raise InputError("is for suites that are measured", where=used, hint=f"{suite} only predicts; leave it out")
    loaded = load_published(suite, settings)
    if dry_run:
        found = session.setups(loaded, rows=files["rows"], nccl=files["nccl"], single=files["single"])
        with printing():
            if as_json:
                sys.stdout.write(session.rules_json(found))
            else:
                session.print_rules(found, stdout())
        return
    with _progress() as (tell, _):
        report = session.judge_published(
            loaded, rows=files["rows"], nccl=files["nccl"], single=files["single"], tell=tell
        )
    folder = output or (None if as_json else Path(f"validation-{loaded.value.name}"))
    if folder is not None:
        session.write_published(report, folder)
    with printing():
        if as_json:
            sys.stdout.write(report_json(report))
        else:
            session.print_published(report, stdout())
            say(f"written to {folder}")
    if not report.held:
        raise typer.Exit(1)


def _command(
    suite: str | None, only: Sequence[str], settings: Sequence[str], given: Mapping[str, str | int | None]
) -> str:
    """The command that repeats this run; `given` are options by the key of the suite that each sets."""
    words = ["stanza-sim", "validate", *([suite] if suite is not None else [])]
    words += [word for name in only for word in ("--only", name)]
    words += [word for change in settings for word in ("--set", change)]
    words += [word for key, value in given.items() for word in (f"--{key.rpartition('.')[2]}", str(value))]
    return shlex.join(words)


@contextmanager
def _kept(folder: Path) -> Iterator[None]:
    """Say, where a run ends early, how to go on with it."""
    from stanza_sim.base.errors import RunError
    from stanza_sim.studies.validate.journal import NAME, measurements_in

    try:
        yield
    except (KeyboardInterrupt, SystemExit, RunError):
        if (count := measurements_in(folder / NAME)) is not None:
            say(f"{count} measurements are kept in {folder / NAME}; add --resume to go on")
        raise


@contextmanager
def _progress() -> Iterator[tuple[Tell, Say]]:
    """Show how far a run is, and what it remarks: above a bar on a terminal, else line by line; both on stderr."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    if (console := terminal()) is None:
        yield lambda text, step, total: say(f"[{step}/{total}] {text}"), say
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)

        def remark(text: str) -> None:
            bar.console.print(text, soft_wrap=True)

        def tell(text: str, step: int, total: int) -> None:
            remark(text)
            bar.update(task, completed=step, total=total)

        yield tell, remark
