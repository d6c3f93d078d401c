"""The scatter plot of a validation: measured against predicted times, and errors against exposed communication."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

from stanza_sim.base.errors import InputError
from stanza_sim.studies.validate.report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = "osD^vP*X<>hp"
_GREY = "#8a8a8a"
_NAMED = 6


def scatter_png(report: Report) -> bytes:
    """Return the plot as a PNG; colours are strategies, shapes are topologies.

    Raises `InputError` where matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("pictures need matplotlib", hint="pip install 'stanza-sim[plot]'") from None
    with rc_context({"font.size": 9}):
        figure = Figure(figsize=(11, 5.2), layout="constrained")
        FigureCanvasAgg(figure)
        times, errors = figure.subplots(1, 2)
        _times(times, report)
        _errors(errors, report)
        handles, labels = errors.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False)
        out = BytesIO()
        figure.savefig(out, format="png", dpi=130, metadata={"Software": None})
    return out.getvalue()


def _colours(report: Report) -> dict[str, tuple[float, float, float, float]]:
    from matplotlib import colormaps

    names = list(dict.fromkeys(r.case.strategy for r in report.results))
    table = colormaps["tab20" if len(names) > 10 else "tab10"]
    return {name: table(i % table.N) for i, name in enumerate(names)}


def _shapes(report: Report) -> dict[str, str]:
    clusters = dict.fromkeys(report.suite.networks[r.case.network].cluster for r in report.results)
    return {cluster: _MARKERS[i % len(_MARKERS)] for i, cluster in enumerate(clusters)}


def _times(axes: Axes, report: Report) -> None:
    """Predicted against measured iteration times, both in ms on logarithmic axes, with the line where they agree."""
    colours, shapes = _colours(report), _shapes(report)
    for r in report.results:
        times = [m.iteration_s * 1e3 for m in r.measured]
        middle, y = r.measured_s * 1e3, r.predicted.iteration_s * 1e3
        colour = colours[r.case.strategy]
        axes.plot([min(times), max(times)], [y, y], color=colour, linewidth=1, zorder=2)
        marker = shapes[report.suite.networks[r.case.network].cluster]
        axes.scatter([middle], [y], color=[colour], marker=marker, s=26, linewidths=0, alpha=0.85, zorder=3)
    values = [t for r in report.results for t in (r.measured_s * 1e3, r.predicted.iteration_s * 1e3)]
    ends = [min(values) / 1.15, max(values) * 1.15]
    axes.plot(ends, ends, color=_GREY, linewidth=0.8, zorder=1)
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, aspect="equal")
    axes.set(xlabel="measured iteration (median; bar: all repeats), ms", ylabel="predicted iteration, ms")
    axes.set_title(f"{report.suite.name}: {len(report.results)} cases")
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.grid(color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)


def _name_the_worst(axes: Axes, report: Report) -> None:
    """Write the names of the cases that miss the suite's greatest bound beside them, if there are a few."""
    most = report.suite.bounds.max
    missed = [r for r in report.results if most is not None and abs(r.error_pct) > most]
    for r in missed if len(missed) <= _NAMED else []:
        x = 100 * r.predicted.exposed_share
        left = x > 50
        axes.annotate(
            r.case.name,
            (x, r.error_pct),
            xytext=(-5 if left else 5, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            va="center",
            fontsize=7,
        )


def _errors(axes: Axes, report: Report) -> None:
    """Errors against the share of exposed communication, with the bounds of the suite."""
    colours, shapes = _colours(report), _shapes(report)
    for strategy, colour in colours.items():
        axes.scatter([], [], color=[colour], marker="o", s=26, label=strategy)
    for cluster, marker in shapes.items():
        axes.scatter([], [], color=[_GREY], marker=marker, s=26, label=cluster)
    for r in report.results:
        x = 100 * r.predicted.exposed_share
        found = [100 * ((m.predicted or r.predicted).iteration_s / m.iteration_s - 1) for m in r.measured]
        colour, marker = colours[r.case.strategy], shapes[report.suite.networks[r.case.network].cluster]
        axes.plot([x, x], [min(found), max(found)], color=colour, linewidth=1, zorder=2)
        axes.scatter([x], [r.error_pct], color=[colour], marker=marker, s=26, linewidths=0, alpha=0.85, zorder=3)
    _name_the_worst(axes, report)
    axes.axhline(0, color=_GREY, linewidth=0.8, zorder=1)
    bounds = report.suite.bounds
    for bound, style in ((bounds.median, (0, (1, 2))), (bounds.p90, (0, (4, 2))), (bounds.max, "solid")):
        if bound is not None:
            for y in (-bound, bound):
                axes.axhline(y, color="#c44e52", linewidth=0.7, linestyle=style, zorder=1)
    axes.set(xlabel="exposed communication, % of the predicted iteration", ylabel="error, %", xlim=(-2, 102))
    errors = report.errors
    axes.set_title(
        f"|error|: median {errors.median_pct:.1f}%, p90 {errors.p90_pct:.1f}%, max {errors.max_pct:.1f}%"
        + ("  (red: bounds)" if report.verdicts else "")
    )
    axes.grid(color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
