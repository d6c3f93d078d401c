"""A validation from beginning to end: the header, the journal, the run, the report, and what of it is printed."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from stanza_sim.base.config import Loaded
from stanza_sim.base.telling import Tell
from stanza_sim.report.table import Column, print_grid
from stanza_sim.studies.validate import budget, machine
from stanza_sim.studies.validate.folder import PICTURE, open_journal, write_report
from stanza_sim.studies.validate.journal import Header
from stanza_sim.studies.validate.records import Predicted
from stanza_sim.studies.validate.report import Report
from stanza_sim.studies.validate.runner import Bench, run
from stanza_sim.studies.validate.statistics import Errors, mixture, require_rules
from stanza_sim.studies.validate.suite import Case, Suite


def check_rules(suite: Loaded[Suite], predictions: dict[str, Predicted]) -> None:
    """Raise `InputError` unless the suite's cases are as its rules, if it has any, want them."""
    if (rules := suite.value.rules) is not None:
        require_rules(mixture(predictions, rules.exposed_share), rules, suite.source.where("rules"))


def header_of(suite: Suite) -> Header:
    """What a run of `suite` that begins here and now is about."""
    conditions = {**machine.versions(), "compute": suite.execute.compute}
    if suite.execute.dilate != 1:
        conditions["dilate"] = f"{suite.execute.dilate:g}"
    return Header(
        suite=suite.name,
        digest=suite.digest(),
        machine=machine.describe(),
        conditions=conditions,
        date=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    )


def validate_suite(
    suite: Suite,
    cases: Sequence[Case],
    bench: Bench,
    folder: Path,
    *,
    command: str,
    resume: bool = False,
    chosen: bool = False,
    tell: Tell = lambda *_: None,
) -> Report:
    """Run `cases` on `bench` and write the report to `folder`; see `stanza_sim.studies.validate.folder`.

    `command` is what repeats it, `chosen` says that these are not all cases. Raises `InputError` and `RunError`, and
    `KeyboardInterrupt`: the folder then keeps the journal, to `resume` with.
    """
    with open_journal(folder, header_of(suite), resume=resume) as journal:
        results = run(cases, bench, journal, repeats=suite.repeats, seed=suite.seed, tell=tell)
        header, notes = journal.done.header, journal.done.notes
    report = Report(
        suite=suite,
        results=results,
        machine=header.machine,
        conditions=header.conditions,
        notes=notes,
        date=header.date,
        command=command,
        chosen=chosen,
    )
    write_report(report, folder, picture=_picture(report))
    return report


def _picture(report: Report) -> bytes | None:
    """The scatter plot; none where matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        return None
    from stanza_sim.studies.validate.scatter import scatter_png

    return scatter_png(report)


# --- printing --------------------------------------------------------------------------------------------------------


def print_report(report: Report, folder: Path, console: Console) -> None:
    """Print every case, the errors, and where they come from, in lines of some 80 characters."""
    results = report.results
    columns = [
        Column(heading="predicted", unit="ms", cells=[f"{r.predicted.iteration_s * 1e3:9.1f}" for r in results]),
        Column(heading="measured", unit="median, ms", cells=[f"{r.measured_s * 1e3:10.1f}" for r in results]),
        Column(heading="spread", unit="%", cells=[f"{r.spread_pct:6.1f}" for r in results]),
        Column(heading="error", unit="%", cells=[f"{r.error_pct:+6.1f}" for r in results]),
    ]
    if report.small_errors is not None:
        cells = ["-" if (e := r.small_error_pct) is None else f"{e:+6.1f}" for r in results]
        columns.append(Column(heading=f"on {report.suite.calibrate_on}", unit="%", cells=cells))
    print_grid(console, [r.case.name for r in results], columns, [()] * len(results), heading="case")
    _print(console, "")
    _print(console, "absolute errors, %                cases  median    p90    max    mean, signed", "bold")
    _errors(console, "of the iteration", report.errors)
    if report.small_errors is not None:
        _errors(console, f"the same, {report.small}", report.small_errors)
    if (comm := report.comm_errors) is not None:
        _errors(console, "of exposed communication", comm)
    for group in budget.by_group(report.results, lambda r: r.case.strategy):
        _errors(console, f"  {group.name}", group.errors)
    _print(console, "")
    _print(console, "predicted less measured, % of it  cases  absolute  signed  (means)", "bold")
    for line in budget.lines(report.results):
        _print(console, f"  {line.kind:<32}{line.cases:5}  {line.size_pct:8.2f}  {line.bias_pct:+6.2f}")
    _print(console, "")
    for verdict in report.verdicts:
        words = "held" if verdict.held else "MISSED"
        _print(console, f"{verdict.name} {verdict.value_pct:.2f}%, bound {verdict.bound_pct:g}%: {words}")
    _print(console, f"written to {folder}: report.md, results.json, results.csv{_and_picture(folder)}")


def print_predictions(cases: Sequence[Case], predictions: dict[str, Predicted], console: Console) -> None:
    """Print each case with its prediction."""
    shown = [predictions[case.name] for case in cases]
    columns = [
        Column(heading="iteration", unit="ms", cells=[f"{p.iteration_s * 1e3:9.1f}" for p in shown]),
        Column(heading="exposed", unit="%", cells=[f"{100 * p.exposed_share:7.0f}" for p in shown]),
    ]
    print_grid(console, [case.name for case in cases], columns, [()] * len(cases), heading="case")
    found = mixture(predictions, 0.3)
    _print(console, "")
    _print(
        console,
        f"{found.cases} cases; {found.exposed} with 30% or more of exposed communication, {found.single_server} with a "
        "single parameter server. Networks as their topologies state them, not calibrated.",
    )


def predictions_json(predictions: dict[str, Predicted]) -> str:
    """Predictions as one JSON object by case, times in seconds."""
    data = {
        name: {"iteration_s": p.iteration_s, "exposed_comm_s": p.exposed_comm_s, "nodes": p.nodes}
        for name, p in predictions.items()
    }
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


def _errors(console: Console, name: str, errors: Errors) -> None:
    numbers = f"{errors.median_pct:6.2f} {errors.p90_pct:6.2f} {errors.max_pct:6.2f}  {errors.bias_pct:+14.2f}"
    _print(console, f"{name:<34}{errors.count:5}  {numbers}")


def _and_picture(folder: Path) -> str:
    drawn = (folder / PICTURE).exists()
    return f", {PICTURE}" if drawn else " (a plot needs matplotlib: pip install 'stanza-sim[plot]')"


def _print(console: Console, line: str, style: str = "") -> None:
    console.print(line, style=style, soft_wrap=True)
