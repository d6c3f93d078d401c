"""Pictures that compare rows: speed-ups, what an iteration goes to, predicted against measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from stanza_sim.report.colours import ACTIVITIES, HATCHES, REST
from stanza_sim.report.lanes import Activity, by_activity
from stanza_sim.report.pictures.style import Drawing, grid, look, plain_log, plain_text, told_apart
from stanza_sim.report.saved import SavedRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Models = Mapping[str, Sequence[SavedRow]]
WITHIN = 0.1
"""The dashed lines beside the one on which prediction and measurement agree."""


def speed_ups(models: Models) -> Drawing:
    """Samples/s of every row against those of the first of its model, predicted and, where it ran, measured."""
    return Drawing(name="speed-ups", size=_size(models, 0.3), draw=partial(_panels, models=models, one=_speed_ups))


def breakdown(models: Models) -> Drawing:
    """What an iteration of a rank that trains goes to."""
    some = {name: rows for name, rows in models.items() if any(row.details.predicted for row in rows)}
    return Drawing(name="breakdown", size=_size(some, 0.3, legend=True), draw=partial(_breakdowns, models=some))


def predicted_measured(rows: Sequence[SavedRow]) -> Drawing:
    """Predicted against measured time of an iteration, on logarithmic axes."""
    draw = partial(_scatter, rows=rows)
    return Drawing(name="predicted-measured", size=(6.4, 4.6), draw=draw)


def _size(models: Models, each: float, *, legend: bool = False) -> tuple[float, float]:
    """Panels in two columns; each is as high as its rows need."""
    bars = sum(max(map(_bars, some), default=0) for some in _in_twos(list(models.values())))
    lines = -(-len(models) // 2)
    return (5.4 if len(models) == 1 else 10.4), each * bars + 0.95 * lines + 0.4 * legend


def _in_twos(rows: Sequence[Sequence[SavedRow]]) -> list[Sequence[Sequence[SavedRow]]]:
    return [rows[i : i + 2] for i in range(0, len(rows), 2)]


def _bars(rows: Sequence[SavedRow]) -> int:
    return len(rows) + sum(row.run.measured is not None for row in rows)


def _panels(figure: Figure, models: Models, one: Callable[[Axes, Sequence[SavedRow]], None]) -> None:
    """A panel for each model."""
    lines = _in_twos(list(models.values()))
    heights = [max(map(_bars, some)) + 2 for some in lines]
    columns = min(2, len(models))
    made = figure.subplots(len(lines), columns, squeeze=False, gridspec_kw={"height_ratios": heights}).flat
    panels = list(made)
    for panel, (model, rows) in zip(panels, models.items(), strict=False):
        one(panel, rows)
        panel.set_title(plain_text(model), loc="left")
    for panel in panels[len(models) :]:
        panel.set_axis_off()


def _speed_ups(axes: Axes, rows: Sequence[SavedRow]) -> None:
    base = rows[0].run.predicted.samples_per_s
    first = rows[0].run.measured
    apart = told_apart([(r.run.label, r.run.strategy, r.run.predicted.samples_per_s) for r in rows])
    names: list[str] = []
    most = 0.0
    for row in rows:
        run, y = row.run, len(names)
        names.append(run.label)
        value = run.predicted.samples_per_s / base
        low, high = run.predicted.samples_per_s_low, run.predicted.samples_per_s_high
        colour = look(apart.index(run.label)).colour if run.label in apart else REST
        axes.barh(y, value, color=colour, height=0.7)
        end = value
        if low is not None and high is not None:
            axes.errorbar(
                value,
                y,
                xerr=[[max(0.0, value - low / base)], [max(0.0, high / base - value)]],
                fmt="none",
                ecolor="#333333",
                elinewidth=0.8,
                capsize=2,
            )
            end = max(value, high / base)
        most = max(most, _written(axes, end, y, f"{value:.2f}"))
        if run.measured is not None and first is not None:
            names.append("measured")
            seen = run.measured.samples_per_s / first.samples_per_s
            axes.barh(y + 1, seen, color="white", edgecolor=colour, hatch="////", height=0.7)
            most = max(most, _written(axes, seen, y + 1, f"{seen:.2f}"))
    _rows(axes, names)
    axes.axvline(1, color="#333333", linewidth=0.8)
    axes.set_xlim(0, most * 1.12)
    axes.set_xlabel("speed-up: samples/s over those of the first row")
    grid(axes, "x")


def _written(axes: Axes, x: float, y: float, text: str) -> float:
    axes.annotate(text, (x, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
    return x


def _rows(axes: Axes, names: Sequence[str]) -> None:
    """A name for each bar, the first on top."""
    axes.set_yticks(range(len(names)), [plain_text(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)


def _breakdowns(figure: Figure, models: Models) -> None:
    from matplotlib.patches import Patch

    _panels(figure, models, _breakdown)
    patches = [
        Patch(facecolor=ACTIVITIES[one], hatch=HATCHES[one], edgecolor="white", label=one.value) for one in Activity
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches))


def _breakdown(axes: Axes, rows: Sequence[SavedRow]) -> None:
    bars: list[tuple[str, dict[Activity, float]]] = []
    for row in rows:
        for which, name in (("predicted", row.run.label), ("measured", "measured")):
            typical = row.details.predicted if which == "predicted" else row.details.measured
            if typical is not None:
                bars.append((name, by_activity(typical.seconds, row.schedule)))
    longest = max((sum(parts.values()) for _, parts in bars), default=1.0)
    for y, (_, parts) in enumerate(bars):
        left, whole = 0.0, sum(parts.values())
        for activity, seconds in parts.items():
            axes.barh(
                y, seconds * 1e3, left=left * 1e3, color=ACTIVITIES[activity], hatch=HATCHES[activity],
                edgecolor="white", linewidth=0.5, height=0.7,
            )  # fmt: skip
            if seconds > 0.07 * longest:
                box = {"boxstyle": "round,pad=0.12", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
                middle = (left + seconds / 2) * 1e3
                axes.text(middle, y, f"{seconds / whole:.0%}", ha="center", va="center", fontsize=7, bbox=box)
            left += seconds
        axes.annotate(f"{whole * 1e3:,.4g}", (whole * 1e3, y), xytext=(4, 0), textcoords="offset points", va="center")
    _rows(axes, [name for name, _ in bars])
    axes.set_xlim(0, longest * 1e3 * 1.14)
    axes.set_xlabel("an iteration of a rank that trains, ms")
    grid(axes, "x")


def _scatter(figure: Figure, rows: Sequence[SavedRow]) -> None:
    axes = figure.subplots()
    done = [(row.run, row.run.measured) for row in rows if row.run.measured is not None]
    models = list(dict.fromkeys(run.model for run, _ in done))
    labels = list(dict.fromkeys(run.label for run, _ in done))
    apart = told_apart([(run.label, run.strategy, run.predicted.samples_per_s) for run, _ in done])
    if len(labels) <= len(apart):
        apart = labels
    for run, measured in done:
        style = look(apart.index(run.label)) if run.label in apart else None
        colour = REST if style is None else style.colour
        x, y = measured.iteration_s * 1e3, run.predicted.iteration_s * 1e3
        axes.plot([measured.iteration_s_min * 1e3, measured.iteration_s_max * 1e3], [y, y], color=colour, linewidth=1)
        filled = colour if models.index(run.model) % 2 == 0 else "white"
        axes.plot(x, y, marker="." if style is None else style.marker, color=colour, markerfacecolor=filled, ls="none")
    for label in apart:
        style = look(apart.index(label))
        axes.plot([], [], marker=style.marker, color=style.colour, ls="none", label=plain_text(label))
    values = [
        t
        for run, m in done
        for t in (m.iteration_s_min * 1e3, m.iteration_s_max * 1e3, run.predicted.iteration_s * 1e3)
    ]
    ends = [min(values) / 1.2, max(values) * 1.2]
    axes.plot(ends, ends, color="#333333", linewidth=0.8, label="prediction and measurement agree")
    for factor in (1 - WITHIN, 1 + WITHIN):
        label = f"{WITHIN:.0%} off" if factor < 1 else "_nolegend_"
        axes.plot(ends, [e * factor for e in ends], color="#333333", linewidth=0.6, linestyle="dashed", label=label)
    plain_log(axes)
    axes.set(xlim=ends, ylim=ends)
    axes.set_aspect("equal")
    axes.set_xlabel("measured iteration (median; line: least to most), ms")
    axes.set_ylabel("predicted iteration, ms")
    grid(axes)
    figure.legend(loc="outside right upper")
