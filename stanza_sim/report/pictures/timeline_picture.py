"""Timelines as a picture: an iteration of each row of a model, one above the other, over one axis of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from stanza_sim.base.units import format_time
from stanza_sim.report.colours import ACTIVITIES, HATCHES
from stanza_sim.report.lanes import Activity, LaneRow, lane_rows
from stanza_sim.report.pictures.style import Drawing, grid, plain_text, told_apart
from stanza_sim.report.saved import SavedRow, Which

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_RANKS = 3
"""Of each row so many ranks are drawn: the first of each group, then, where ranks are folded, of the largest class."""
MOST_TIMES = 4
"""Where the longest iteration takes more than so many times the shortest, each row has an axis of its own."""
_LINE = 0.17


@dataclass(frozen=True, slots=True, kw_only=True)
class _Panel:
    title: str
    rows: Sequence[LaneRow]
    iteration_s: float


def timelines(name: str, rows: Sequence[SavedRow], which: Which) -> Drawing | None:
    """One iteration of each row of a model, or of the best of each strategy; None where there are no spans."""
    apart = told_apart([(r.run.label, r.run.strategy, r.run.predicted.samples_per_s) for r in rows])
    panels = [panel for row in rows if row.run.label in apart and (panel := _panel(row, which))]
    if not panels:
        return None
    height = sum(_LINE * len(panel.rows) + (0.42 if _shared(panels) else 0.6) for panel in panels) + 0.9
    return Drawing(name=name, size=(10.0, height), draw=partial(_draw, panels=panels, which=which))


def _panel(row: SavedRow, which: Which) -> _Panel | None:
    typical, timeline = row.typical(which), row.timeline(which)
    if typical is None or timeline is None:
        return None
    whole = typical.window_s[1] - typical.window_s[0]
    iteration_s = whole / typical.iterations
    sizes = {rank: timeline.multiplicity.get(rank, 1) for rank in sorted({s.rank for s in timeline.spans})}
    ranks = sorted(sizes, key=lambda r: (-sizes[r], r))
    # The first rank of each role, where ranks are not folded.
    roles = [group.ranks for group in row.schedule.groups]
    firsts = dict.fromkeys(
        r for group in roles if (r := next((x for x in sorted(sizes) if x in group), None)) is not None
    )
    if len(sizes) > MOST_RANKS:
        ranks = list(dict.fromkeys([*sorted(firsts, key=lambda r: (-sizes[r], r)), *ranks]))[:MOST_RANKS]
    found = lane_rows(timeline, row.schedule, whole, ranks=ranks, packed=False)
    return _Panel(title=f"{row.run.label}, {format_time(iteration_s)}", rows=found, iteration_s=iteration_s)


def _shared(panels: Sequence[_Panel]) -> bool:
    """Whether all rows are drawn over one axis."""
    times = [panel.iteration_s for panel in panels]
    return max(times) <= MOST_TIMES * min(times)


def _draw(figure: Figure, panels: Sequence[_Panel], which: Which) -> None:
    from matplotlib.patches import Patch

    heights = [len(panel.rows) + 1 for panel in panels]
    shared = _shared(panels)
    made = figure.subplots(len(panels), 1, squeeze=False, sharex=shared, gridspec_kw={"height_ratios": heights})
    longest = max(panel.iteration_s for panel in panels)
    for axes, panel in zip(made.flat, panels, strict=True):
        _bars(axes, panel)
        axes.set_xlim(0, (longest if shared else panel.iteration_s) * 1e3 * 1.02)
    scale = "" if shared else "; each row has its own axis"
    made.flat[-1].set_xlabel(f"time within one {which} iteration, ms (dashed: its end{scale})")
    patches = [
        Patch(facecolor=ACTIVITIES[one], hatch=HATCHES[one], edgecolor="white", label=one.value) for one in Activity
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches))


def _bars(axes: Axes, panel: _Panel) -> None:
    names = []
    for y, row in enumerate(panel.rows):
        many = f" (and {row.size - 1} like it)" if row.size > 1 else ""
        first = y == 0 or panel.rows[y - 1].rank != row.rank
        names.append(f"rank {row.rank}{many}: {row.name}" if first else row.name)
        for activity in Activity:
            spans = [
                (b.start_s * 1e3, (min(b.end_s, panel.iteration_s) - b.start_s) * 1e3)
                for b in row.bars
                if b.activity is activity and b.start_s < panel.iteration_s
            ]
            if spans:
                axes.broken_barh(
                    spans, (y - 0.4, 0.8), facecolor=ACTIVITIES[activity], hatch=HATCHES[activity],
                    edgecolor="white", linewidth=0,
                )  # fmt: skip
    axes.axvline(panel.iteration_s * 1e3, color="#333333", linewidth=0.9, linestyle="dashed")
    axes.set_yticks(range(len(names)), [plain_text(name) for name in names], fontsize=7)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_title(plain_text(panel.title), loc="left", fontsize=9, pad=3)
    grid(axes, "x")
