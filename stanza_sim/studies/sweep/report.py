"""What `stanza-sim sweep` prints: who wins at each point and the crossovers, or one JSON object."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence

from rich.console import Console

from stanza_sim.report.result import Json
from stanza_sim.report.table import WIDTH, Column, fixed, low_high, print_basis, print_grid, tied_note, write_line
from stanza_sim.studies.sweep.crossover import Crossover
from stanza_sim.studies.sweep.crossover_file import crossover_cells, crossovers_path
from stanza_sim.studies.sweep.points import BETWEEN, best_of
from stanza_sim.studies.sweep.session import SweepFindings
from stanza_sim.studies.sweep.table import FIELDS
from stanza_sim.studies.sweep.vary import Axis, Point, scale_of, shown

MOST_CURVES = 200
"""After so many lines of curves no more are printed."""
MOST_LINES = 60
"""Of more crossovers than this only so many are printed."""
MOST_REASONS = 20
"""Of more reasons why lines are infeasible only so many are printed."""


def print_sweep(sweep_result: SweepFindings, console: Console) -> None:
    """Print who wins at each point and the curves of all rows, unless a file has all of it, the crossovers, and what is
    amiss."""
    lines, bad = sweep_result.lines, sum(sweep_result.reasons.values())
    text = f"{sweep_result.experiment}: {len(sweep_result.points)} points, "
    text += f"{sweep_result.computed} of them computed now, {len(lines)} lines"
    text += f", {bad} of them infeasible" if bad else ""
    write_line(console, text, "bold")
    if sweep_result.table.path is None:
        _print_winners(sweep_result, console)
    else:
        path = sweep_result.table.path
        _paragraph(console, f"written to {path}, the crossovers to {crossovers_path(path)}")
    write_line(console, "")
    for text in _sentences(sweep_result):
        _paragraph(console, text)
    if any(line.feasible for line in lines):
        write_line(console, "")
        print_basis(console, (line.basis for line in lines))
    if bad:
        write_line(console, "")
        write_line(console, "infeasible", "bold")
        for reason, count in list(sweep_result.reasons.items())[:MOST_REASONS]:
            _paragraph(console, f"{count} {'line' if count == 1 else 'lines'}: {reason}")
        if (more := len(sweep_result.reasons) - MOST_REASONS) > 0:
            _paragraph(console, f"and for {more} more reasons: see --json" + _or_file(sweep_result))


def _sentences(sweep_result: SweepFindings) -> list[str]:
    """The crossovers, and where none was found or could be looked for."""
    told = [in_words(one, sweep_result.axes) for one in sweep_result.crossovers[:MOST_LINES]]
    if (more := len(sweep_result.crossovers) - MOST_LINES) > 0:
        told.append(f"and {more} more crossovers: see --json")
    not_at_all = {one.key for one in sweep_result.unlooked if not one.models}
    looked = [axis.key for axis in sweep_result.axes if axis.key not in not_at_all]
    if looked and not sweep_result.crossovers:
        told.append(f"no crossover: between no two neighbouring values of {' or '.join(looked)} does the winner change")
    for one in sweep_result.unlooked:
        which = f" for {', '.join(one.models)}" if one.models else ""
        told.append(f"no crossover looked for along {one.key}{which}: {one.reason}")
    return told


def _or_file(sweep_result: SweepFindings) -> str:
    return "" if sweep_result.table.path is None else f" or {sweep_result.table.path}"


def _paragraph(console: Console, text: str) -> None:
    for line in textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False):
        write_line(console, line)


def _print_winners(sweep_result: SweepFindings, console: Console) -> None:
    for model in dict.fromkeys(line.model for line in sweep_result.lines if line.label):
        write_line(console, "")
        write_line(console, model, "bold cyan")
        # A varied key may give a model another name; a point that cannot be loaded knows no names.
        points = [
            p
            for p in sweep_result.points
            if any(one.model == model or not one.label for one in sweep_result.table.lines[p])
        ]
        best = [best_of(sweep_result.table.lines[point], model) for point in points]
        rates = iter(fixed(one.samples_per_s or 0.0 for one in best if one is not None))
        columns = [
            Column(heading="samples/s", unit="", cells=["-" if one is None else next(rates) for one in best]),
            *low_high(best),
            Column(heading="winner", unit="", cells=["none is feasible" if one is None else one.label for one in best]),
        ]
        labels = [where(sweep_result.axes, point) for point in points]
        notes = [tied_note(one.tied_with.split(BETWEEN)) if one is not None and one.tied_with else [] for one in best]
        print_grid(console, labels, columns, notes, heading="point")
        if len(points) > 1:
            _print_curves(sweep_result, console, model, points)


def _print_curves(sweep_result: SweepFindings, console: Console, model: str, points: Sequence[Point]) -> None:
    """Print samples/s of every row at each point, side by side as far as there is room; what never changes, once."""
    rows = {line.label: line.strategy for line in sweep_result.lines if line.model == model and line.label}
    curves: dict[str, list[float | None]] = {}
    for label in rows:
        curves[label] = []
        for point in points:
            there = [one for one in sweep_result.table.lines[point] if (one.model, one.label) == (model, label)]
            curves[label].append(there[0].samples_per_s if there else None)
    varied = {label: rates for label, rates in curves.items() if len(set(rates)) > 1}
    if len(rows) < 2 and not varied:
        return
    columns = [Column(heading=label, unit="", cells=_rates(rates)) for label, rates in varied.items()]
    labels = [where(sweep_result.axes, point) for point in points]
    room = WIDTH - max(len("samples/s"), *map(len, labels))
    side_by_side: list[list[Column]] = []
    for column in columns:
        if not side_by_side or sum(2 + c.width for c in [*side_by_side[-1], column]) > room:
            side_by_side.append([])
        side_by_side[-1].append(column)
    most = max(1, MOST_CURVES // len(labels))
    for some in side_by_side[:most]:
        write_line(console, "")
        print_grid(console, labels, some, [[]] * len(labels), heading="samples/s")
    if more := sum(map(len, side_by_side[most:])):
        _paragraph(console, f"and {more} more rows: see --json")
    for label in rows:
        if label not in varied and curves[label][0] is not None:
            _paragraph(console, f"{label}: {fixed([curves[label][0] or 0.0])[0]} samples/s at all of these points")


def _rates(rates: Sequence[float | None]) -> list[str]:
    texts = iter(fixed(rate for rate in rates if rate is not None))
    return ["-" if rate is None else next(texts) for rate in rates]


def where(axes: tuple[Axis, ...], point: Point, but: int | None = None) -> str:
    """`network.rate=1Gbps nodes=4`: a point in words, without the axis of that number."""
    return " ".join(axis.override(value) for i, (axis, value) in enumerate(zip(axes, point, strict=True)) if i != but)


def in_words(one: Crossover, axes: tuple[Axis, ...]) -> str:
    """`vgg16: Stanza wins up to 18.2 Gbps (network.rate), then all-reduce; they are tied from 15.1 to 22.4 Gbps`.

    The bracket where the place is not close.
    """
    axis = axes[one.place.axis]
    scale = scale_of(axis)
    low, high, wins_to, wins_from = (
        f"{value}" if scale is None else shown(value, scale)
        for value in (one.low, one.high, one.wins_to, one.wins_from)
    )
    rest = where(axes, one.place.point, one.place.axis)
    place = f"{one.place.model}, {rest}" if rest else one.place.model
    if one.reason:
        text = f"{one.below} gives way to {one.above} somewhere between {wins_to} and {wins_from} ({axis.key})"
        return f"{place}: {text}; {one.reason}"
    text = f"{place}: {one.below} wins up to {wins_to} ({axis.key}), then {one.above}"
    if (one.low, one.high) == (one.wins_to, one.wins_from):
        return text
    ends = f"{low}{' or less' if one.open_low else ''} to {high}{' or more' if one.open_high else ''}"
    return f"{text}; they are tied from {ends}"


def sweep_json(sweep_result: SweepFindings) -> str:
    """The sweep as one JSON object, equal bytes for equal results; sizes in bytes, rates in bytes/s, times in s."""
    keys = [axis.key for axis in sweep_result.axes]
    lines: list[dict[str, Json]] = [
        {
            "at": dict(zip(keys, point, strict=True)),
            "feasible": line.feasible,
            **{name: getattr(line, name) for name in FIELDS},
            "tied_with": line.tied_with.split(BETWEEN) if line.tied_with else [],
        }
        for point in sweep_result.points
        for line in sweep_result.table.lines[point]
    ]
    data: dict[str, Json] = {
        "experiment": sweep_result.experiment,
        "vary": {axis.key: list(axis.values) for axis in sweep_result.axes},
        "points": lines,
        "crossovers": [_crossover(one, sweep_result.axes) for one in sweep_result.crossovers],
        "no_crossover_looked_for": [
            {"key": one.key, "models": list(one.models), "reason": one.reason} for one in sweep_result.unlooked
        ],
        "infeasible": [{"reason": reason, "lines": count} for reason, count in sweep_result.reasons.items()],
    }
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


def _crossover(one: Crossover, axes: tuple[Axis, ...]) -> dict[str, Json]:
    others = {a.key: v for i, (a, v) in enumerate(zip(axes, one.place.point, strict=True)) if i != one.place.axis}
    return {"at": others, **crossover_cells(one, axes)}
