"""The data of a page as plain JSON values: rows as in `result.json`, and what its charts are made of."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from stanza_sim.base.errors import InputError
from stanza_sim.base.files import LARGEST_JSON, read_text
from stanza_sim.base.tables import of_csv_cell, reading_csv
from stanza_sim.base.telling import Tell
from stanza_sim.report.colours import ACTIVITIES, CRITICAL, SERIES
from stanza_sim.report.lanes import Activity, LaneRow, by_activity, lane_rows
from stanza_sim.report.pictures.style import told_apart
from stanza_sim.report.result import Json
from stanza_sim.report.saved import Saved, SavedRow, Typical, Which

MOST_SPANS = 12_000
"""A timeline has at most so many bars: of more, fewer iterations are shown, then fewer ranks."""
MOST_LINES = 400
"""So many lines of a schedule are on the page."""
MOST_BUSY = 24
"""So many links and devices are named: the busiest."""
_ACTIVITIES = tuple(Activity)


def page_data(saved: Saved, tell: Tell = lambda what, done, total: None) -> dict[str, Json]:
    """What the scripts of a page are given; times in seconds but for bars, which are in nanoseconds."""
    rows: list[Json] = []
    colours: list[Json] = [{"name": a.value, "colour": ACTIVITIES[a]} for a in _ACTIVITIES]
    for i, row in enumerate(saved.rows):
        tell("timelines", i, len(saved.rows))
        rows.append(_row(row))
    return {
        "experiment": saved.experiment,
        "models": list(saved.by_model()),
        "activities": colours,
        "series": list(SERIES),
        "critical": CRITICAL,
        "cluster": None if saved.cluster is None else saved.cluster.model_dump(by_alias=True),
        "runs": [row.run.model_dump(mode="json") for row in saved.rows],
        "apart": [label for rows in saved.by_model().values() for label in _apart(rows)],
        "rows": rows,
    }


def _apart(rows: Sequence[SavedRow]) -> list[Json]:
    found = told_apart([(r.run.label, r.run.strategy, r.run.predicted.samples_per_s) for r in rows])
    return [[rows[0].run.model, label] for label in found]


def _row(row: SavedRow) -> dict[str, Json]:
    lines = row.schedule_text.splitlines()
    shares: list[tuple[str, float]] = sorted(row.details.utilisation.items(), key=lambda item: (-item[1], item[0]))
    return {
        "files": row.details.files,
        "predicted": _typical(row.details.predicted, row),
        "measured": _typical(row.details.measured, row),
        "timelines": [found for which in ("predicted", "measured") if (found := _timeline(row, which)) is not None],
        "traffic": None if row.details.traffic is None else row.details.traffic.model_dump(),
        "busiest": [list(one) for one in shares[:MOST_BUSY]],
        "schedule": "\n".join(lines[:MOST_LINES]),
        "more_lines": max(0, len(lines) - MOST_LINES),
    }


def _typical(typical: Typical | None, row: SavedRow) -> Json:
    """What an iteration goes to: by activity, and by kind of op."""
    if typical is None:
        return None
    kinds: list[tuple[str, float]] = sorted(typical.seconds.items(), key=lambda item: -item[1])
    return {"activities": list(by_activity(typical.seconds, row.schedule).values()), "kinds": dict(kinds)}


# --- timelines -------------------------------------------------------------------------------------------------------


def _timeline(row: SavedRow, which: Which) -> dict[str, Json] | None:
    """A timeline in columns; bars of a lane follow each other."""
    typical, timeline = row.typical(which), row.timeline(which)
    if typical is None or timeline is None or not timeline.spans:
        return None
    whole_s = typical.window_s[1] - typical.window_s[0]
    iteration_s = whole_s / typical.iterations
    lanes = lane_rows(timeline, row.schedule, whole_s)
    length_s, told = whole_s, []
    if (count := _bars(lanes)) > MOST_SPANS and typical.iterations > 1:
        shown = max(1, int(typical.iterations * MOST_SPANS / count))
        length_s = shown * iteration_s
        lanes = [cut for lane in lanes if (cut := _cut(lane, length_s)).bars]
        told.append(f"{shown} of {typical.iterations} iterations")
    ranks = list(dict.fromkeys(lane.rank for lane in lanes))
    if _bars(lanes) > MOST_SPANS:
        kept: list[LaneRow] = []
        for rank in ranks:
            mine = [lane for lane in lanes if lane.rank == rank]
            if kept and _bars(kept) + _bars(mine) > MOST_SPANS:
                break
            kept += mine
        lanes = kept
        told.append(f"{len({lane.rank for lane in lanes})} of {len(ranks)} ranks")
    critical = _path(row, typical.iterations) if which == "predicted" else set()
    ops: dict[str, int] = {}
    bars = [(i, bar) for i, lane in enumerate(lanes) for bar in lane.bars]
    return {
        "which": which,
        "length": round(length_s * 1e9),
        "iteration": round(iteration_s * 1e9),
        "shown": " and ".join(told),
        "lanes": [[lane.rank, lane.size, lane.name] for lane in lanes],
        "lane": [i for i, _ in bars],
        "start": [round(bar.start_s * 1e9) for _, bar in bars],
        "end": [round(bar.end_s * 1e9) for _, bar in bars],
        "activity": [_ACTIVITIES.index(bar.activity) for _, bar in bars],
        "op": [ops.setdefault(bar.op, len(ops)) for _, bar in bars],
        "number": [bar.iteration for _, bar in bars],
        "nbytes": [bar.nbytes for _, bar in bars],
        "critical": [int((bar.op, lanes[i].rank, bar.iteration % typical.iterations) in critical) for i, bar in bars],
        "ops": list(ops),
    }


def _bars(lanes: Sequence[LaneRow]) -> int:
    return sum(len(lane.bars) for lane in lanes)


def _cut(lane: LaneRow, length_s: float) -> LaneRow:
    bars = tuple(bar for bar in lane.bars if bar.start_s < length_s)
    return LaneRow(rank=lane.rank, size=lane.size, name=lane.name, bars=bars)


def _path(row: SavedRow, period: int) -> set[tuple[str, int, int]]:
    """The (op, rank, iteration) of the critical path, if the folder has it; iterations modulo their `period`.

    Waits are left out: they are no bars.
    """
    path: Path = row.folder / "paths" / f"{row.details.files}.csv"
    if not path.exists():
        return set()
    text = read_text(path, at_most=LARGEST_JSON, expected="a critical path")
    found: set[tuple[str, int, int]] = set()
    with reading_csv(path, "a critical path", "run again"):
        for number, line in enumerate(csv.DictReader(text.splitlines()), 2):
            try:
                if line["kind"] != "wait":
                    found.add((of_csv_cell(line["op"]), int(line["rank"]), int(line["iteration"]) % period))
            except (AttributeError, KeyError, TypeError, ValueError):
                raise InputError("is no step of a critical path", where=f"{path}:{number}", hint="run again") from None
    return found
