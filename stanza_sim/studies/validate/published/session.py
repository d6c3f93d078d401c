"""From a suite of published measurements and files to a report: read, predict, write and print."""

from __future__ import annotations

import json
import time
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.text import Text

from stanza_sim.base.config import Loaded
from stanza_sim.base.errors import InputError
from stanza_sim.base.files import write_bytes, write_whole
from stanza_sim.base.telling import Tell
from stanza_sim.report.table import print_paragraph
from stanza_sim.studies.validate.published.others import nccl_outcomes, nccl_words, single_outcomes, single_words
from stanza_sim.studies.validate.published.report import (
    UNITS,
    PublishedReport,
    report_csv,
    report_json,
    report_markdown,
)
from stanza_sim.studies.validate.published.rules import RULES, setup_of
from stanza_sim.studies.validate.published.scores import GroupErrors, RowKind, unscored
from stanza_sim.studies.validate.published.suite import OWN, PublishedSuite, file_of
from stanza_sim.studies.validate.published.tables import TrainingRow, Usable, read_training
from stanza_sim.studies.validate.published.training import predict_training

PICTURE = "scatter.png"


def judge_published(
    loaded: Loaded[PublishedSuite],
    *,
    rows: Path | None = None,
    nccl: Path | None = None,
    single: Path | None = None,
    tell: Tell = lambda *_: None,
) -> PublishedReport:
    """Read the files, predict every row that can be predicted, and compare. Raises `InputError` for a wrong file."""
    begun = time.monotonic()
    paths = {
        RowKind.TRAINING: file_of(loaded, "rows", rows),
        RowKind.NCCL: file_of(loaded, "nccl", nccl),
        RowKind.SINGLE: file_of(loaded, "single", single),
    }
    training = read_training(paths[RowKind.TRAINING])
    outcomes = nccl_outcomes(paths[RowKind.NCCL])
    outcomes += single_outcomes(paths[RowKind.SINGLE], tell)
    outcomes = predict_training(training, loaded.value, tell) + outcomes
    return PublishedReport(
        suite=loaded.value,
        outcomes=tuple(outcomes),
        own=frozenset(kind for kind, path in paths.items() if path in OWN.values()),
        seconds=time.monotonic() - begun,
    )


def write_published(report: PublishedReport, folder: Path) -> None:
    """Write report.md, results.json, results.csv and, where matplotlib is installed, a plot to `folder`.

    Raises `InputError` if they cannot be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot be made: {error.strerror}", where=str(folder)) from None
    picture = None
    if find_spec("matplotlib") is not None:
        from stanza_sim.studies.validate.published.picture import picture_png

        picture = PICTURE
        write_bytes(picture_png(report), folder / PICTURE)
    write_whole(report_csv(report), folder / "results.csv")
    write_whole(report_markdown(report, picture=picture), folder / "report.md")
    write_whole(report_json(report), folder / "results.json")


# ---- printing -------------------------------------------------------------------------------------------------------


def setups(
    loaded: Loaded[PublishedSuite], *, rows: Path | None = None, nccl: Path | None = None, single: Path | None = None
) -> dict[RowKind, dict[str, str]]:
    """What each row of the files is predicted with, in words, by its id. Raises `InputError` for a wrong file."""
    training = read_training(file_of(loaded, "rows", rows))
    return {
        RowKind.TRAINING: {row.id: _setup_words(row, loaded.value) for row in training},
        RowKind.NCCL: nccl_words(file_of(loaded, "nccl", nccl)),
        RowKind.SINGLE: single_words(file_of(loaded, "single", single)),
    }


def rules_json(found: dict[RowKind, dict[str, str]]) -> str:
    """The rules, and by kind and id what each row is predicted with, as one JSON object."""
    rules = [" ".join(paragraph.split()) for paragraph in RULES.split("\n\n")]
    data = {"rules": rules, "rows": {kind.value: words for kind, words in found.items()}}
    return json.dumps(data, indent=1) + "\n"


def print_rules(found: dict[RowKind, dict[str, str]], console: Console) -> None:
    """Print the rules, and what each row is predicted with."""
    _line(console, "Rules", "bold")
    for paragraph in RULES.split("\n\n"):
        print_paragraph(console, paragraph)
    for kind, words in found.items():
        _line(console, "")
        _line(console, f"Rows: {kind}", "bold")
        for name, text in words.items():
            _line(console, f"{name}: {text}")


def _setup_words(row: TrainingRow, suite: PublishedSuite) -> str:
    if row.usable is Usable.NO:
        return f"not predicted: {row.notes or 'too little is stated'}"
    try:
        return setup_of(row, suite).words()
    except InputError as error:
        return f"not predicted: {error.message}"


def print_published(report: PublishedReport, console: Console) -> None:
    """Print errors by group beside those of the baselines, the worst rows, what is not scored, and the bounds."""
    for kind in RowKind:
        groups = report.groups(kind)
        if not groups:
            continue
        _line(console, "")
        if kind is RowKind.TRAINING:
            constant = f"x {report.constant:.3f}" if report.constant is not None else "fitted"
            _line(console, f"{'':40}ours           linear         {constant}", "bold")
            _line(console, f"{'training: |error|, %':34}rows  median   p90  median   p90  median   p90", "bold")
        else:
            _line(console, f"{kind + ': |error|, %':34}rows  median   p90", "bold")
        for group in groups:
            _line(console, _group_line(group))
        worst = sorted(
            (o for o in report.outcomes if o.kind is kind and o.scored), key=lambda o: -abs(o.error_pct or 0)
        )
        _line(console, f"furthest off ({UNITS[kind]})", "bold")
        for o in worst[:5]:
            _line(console, f"  {o.error_pct:+8.1f}%  {o.label}"[:80])
    _line(console, "")
    count = sum(o.scored for o in report.outcomes)
    _line(
        console, f"{count} rows scored in {report.seconds:.0f} s; {len(report.outcomes) - count} listed in the report."
    )
    unknown: dict[str, int] = {}
    for o, why in unscored(report.outcomes):
        if o.reason:
            unknown[why] = unknown.get(why, 0) + 1
    for why, times in unknown.items():
        print_paragraph(console, f"not predicted ({times}): {why}")
    for verdict in report.verdicts:
        words = "held" if verdict.held else "MISSED"
        _line(console, f"{verdict.name} {verdict.value_pct:.1f}%, bound {verdict.bound_pct:g}%: {words}")


def _group_line(group: GroupErrors) -> str:
    cells = [f"{group.ours.median_pct:8.1f}{_p90(group.ours.p90_pct)}"]
    for errors in (group.linear, group.fitted):
        if errors is not None:
            cells.append(f"{errors.median_pct:8.1f}{_p90(errors.p90_pct)}")
    return f"  {group.name[:31]:<31}{group.ours.count:5}{''.join(cells)}"


def _p90(value: float) -> str:
    return f"{value:6.1f}" if value < 1000 else f"{value:6.0f}"


def _line(console: Console, line: str, style: str = "") -> None:
    console.print(Text(line.rstrip(), style=style), soft_wrap=True)
