"""What `stanza-sim sweep` prints: who wins at each point and the crossovers, or one JSON object."""

from __future__ import annotations

import json
from dataclasses import asdict

from rich.console import Console

from stanza_sim.report.result import Json
from stanza_sim.report.table import Column, fixed, print_grid, write_line
from stanza_sim.sweeps.crossover import Crossover
from stanza_sim.sweeps.points import best_of
from stanza_sim.sweeps.session import Swept
from stanza_sim.sweeps.vary import Axis, Point, scale_of, shown

MOST_LINES = 60
"""Of more crossovers than this only so many are printed."""


def print_swept(swept: Swept, console: Console) -> None:
    """Print the winner at each point, unless there is a file that has all of it, and the crossovers."""
    lines = [line for point in swept.points for line in swept.table.lines[point]]
    bad = sum(not line.feasible for line in lines)
    text = f"{swept.experiment}: {len(swept.points)} points, {swept.computed} of them computed now, {len(lines)} lines"
    text += f", {bad} of them infeasible" if bad else ""
    write_line(console, text, "bold")
    if swept.table.path is None:
        _print_winners(swept, console)
    else:
        write_line(console, f"written to {swept.table.path}")
    write_line(console, "")
    if not swept.crossovers:
        write_line(console, "no crossover: between no two neighbouring points does the winner change")
    for one in swept.crossovers[:MOST_LINES]:
        write_line(console, in_words(one, swept.axes))
    if (more := len(swept.crossovers) - MOST_LINES) > 0:
        write_line(console, f"and {more} more crossovers: see --json")


def _print_winners(swept: Swept, console: Console) -> None:
    models = dict.fromkeys(line.model for point in swept.points for line in swept.table.lines[point] if line.label)
    for model in models:
        write_line(console, "")
        write_line(console, model, "bold cyan")
        best = [best_of(swept.table.lines[point], model) for point in swept.points]
        rates = iter(fixed(one.samples_per_s or 0.0 for one in best if one is not None))
        columns = [
            Column(heading="samples/s", unit="", cells=["-" if one is None else next(rates) for one in best]),
            Column(heading="winner", unit="", cells=["none is feasible" if one is None else one.label for one in best]),
        ]
        labels = [where(swept.axes, point) for point in swept.points]
        print_grid(console, labels, columns, [()] * len(labels), heading="point")


def where(axes: tuple[Axis, ...], point: Point, but: int | None = None) -> str:
    """`network.rate=1Gbps nodes=4`: a point in words, without the axis of that number."""
    return " ".join(axis.override(value) for i, (axis, value) in enumerate(zip(axes, point, strict=True)) if i != but)


def in_words(one: Crossover, axes: tuple[Axis, ...]) -> str:
    """`vgg16: Stanza wins up to 18.2 Gbps (network.rate), then all-reduce`."""
    axis = axes[one.place.axis]
    scale = scale_of(axis)
    low = one.low if scale is None else shown(one.low, scale)
    rest = where(axes, one.place.point, one.place.axis)
    place = f"{one.place.model}, {rest}" if rest else one.place.model
    return f"{place}: {one.below} wins up to {low} ({axis.key}), then {one.above}"


def swept_json(swept: Swept) -> str:
    """The sweep as one JSON object, equal bytes for equal results; sizes in bytes, rates in bytes/s, times in s."""
    keys = [axis.key for axis in swept.axes]
    lines: list[dict[str, Json]] = [
        {"at": dict(zip(keys, point, strict=True)), "feasible": line.feasible, **asdict(line)}
        for point in swept.points
        for line in swept.table.lines[point]
    ]
    data: dict[str, Json] = {
        "experiment": swept.experiment,
        "vary": {axis.key: list(axis.values) for axis in swept.axes},
        "points": lines,
        "crossovers": [_crossover(one, swept.axes) for one in swept.crossovers],
    }
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


def _crossover(one: Crossover, axes: tuple[Axis, ...]) -> dict[str, Json]:
    axis = axes[one.place.axis]
    scale = scale_of(axis)
    others = {a.key: value for a, value in zip(axes, one.place.point, strict=True) if a is not axis}
    return {
        "model": one.place.model,
        "key": axis.key,
        "at": others,
        "unit": "" if scale is None else scale.unit,
        "low": one.low,
        "high": one.high,
        "below": one.below,
        "above": one.above,
    }
