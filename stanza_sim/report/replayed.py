"""Rows of a run that were replayed, beside what was predicted and measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.console import Console

from stanza_sim.report.table import Column, fixed, print_grid, print_paragraph, write_line

LEGEND = (
    "error: prediction against measured median; negative means that the prediction is too fast. replayed: simulated "
    "again with the computation times of the run, so the error left is the network's and the schedule's; what it "
    "differs by from the error, computations that took longer or less than predicted."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """A row: seconds per iteration as measured, as predicted then, and replayed from so many of its `iterations`."""

    label: str
    model: str
    measured_s: float
    predicted_s: float
    replayed_s: float
    iterations: int

    @property
    def error_pct(self) -> float:
        """The prediction against the measured median, in percent of the measured."""
        return 100 * (self.predicted_s / self.measured_s - 1)

    @property
    def left_pct(self) -> float:
        """The same of the replay: what is not due to computation times."""
        return 100 * (self.replayed_s / self.measured_s - 1)


def replayed_json(experiment: str, rows: Sequence[Replayed]) -> str:
    """The rows as one JSON object; times in seconds."""
    runs = [{**asdict(row), "error_pct": row.error_pct, "error_left_pct": row.left_pct} for row in rows]
    return json.dumps({"experiment": experiment, "runs": runs}, indent=1, allow_nan=False) + "\n"


def print_replayed(experiment: str, rows: Sequence[Replayed], console: Console) -> None:
    """Print a table for each model."""
    write_line(console, f"{experiment}, replayed", "bold")
    for model in dict.fromkeys(row.model for row in rows):
        mine = [row for row in rows if row.model == model]
        cells = fixed(1e3 * s for row in mine for s in (row.measured_s, row.predicted_s, row.replayed_s))
        columns = [
            Column(heading="measured", unit="median, ms", cells=cells[::3]),
            Column(heading="predicted", unit="ms", cells=cells[1::3]),
            Column(heading="error", unit="%", cells=[f"{row.error_pct:+.1f}" for row in mine]),
            Column(heading="replayed", unit="ms", cells=cells[2::3]),
            Column(heading="error left", unit="%", cells=[f"{row.left_pct:+.1f}" for row in mine]),
        ]
        write_line(console, "")
        write_line(console, model, "bold cyan")
        print_grid(console, [row.label for row in mine], columns, [[]] * len(mine))
    write_line(console, "")
    print_paragraph(console, LEGEND)
