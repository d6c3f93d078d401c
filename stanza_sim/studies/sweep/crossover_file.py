"""The crossovers of a sweep as a CSV file beside that of its points, written anew whenever these are looked for."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from stanza_sim.base.files import write_whole
from stanza_sim.base.tables import csv_cell
from stanza_sim.studies.sweep.crossover import Crossover
from stanza_sim.studies.sweep.vary import Axis, scale_of

COLUMNS = (
    *("model", "at", "key", "unit", "below", "above", "low", "high", "open_low", "open_high"),
    *("wins_to", "wins_from", "reason"),
)


def crossovers_path(points: Path) -> Path:
    """The file of crossovers that goes with one of points: `sweep.csv` and `sweep-crossovers.csv`."""
    return points.with_name(f"{points.stem}-crossovers{points.suffix}")


def crossover_cells(one: Crossover, axes: Sequence[Axis]) -> Mapping[str, str | float | bool]:
    """What is known of a crossover, by column but for the values of other axes: numbers in the `unit` of the key."""
    scale = scale_of(axes[one.place.axis])
    return {
        "model": one.place.model,
        "key": axes[one.place.axis].key,
        "unit": "" if scale is None else scale.unit,
        "below": one.below,
        "above": one.above,
        "low": one.low,
        "high": one.high,
        "open_low": one.open_low,
        "open_high": one.open_high,
        "wins_to": one.wins_to,
        "wins_from": one.wins_from,
        "reason": one.reason,
    }


def write_crossovers(points: Path, axes: Sequence[Axis], found: Sequence[Crossover]) -> None:
    """Write the crossovers of a sweep beside the file of its points. Raises `InputError` if they cannot be written.

    A line is a crossover; `at` has the values of the other axes, as `key=value`, separated by spaces.
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for one in found:
        others = [
            a.override(v) for i, (a, v) in enumerate(zip(axes, one.place.point, strict=True)) if i != one.place.axis
        ]
        cells = {key: csv_cell(_text(value)) for key, value in crossover_cells(one, axes).items()}
        writer.writerow({**cells, "at": csv_cell(" ".join(others))})
    write_whole(out.getvalue(), crossovers_path(points))


def _text(value: str | float | bool) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
