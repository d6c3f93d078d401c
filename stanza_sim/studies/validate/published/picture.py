"""The scatter plot of published rows: predicted against measured, and errors against the measured efficiency."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

from stanza_sim.base.errors import InputError
from stanza_sim.studies.validate.published.report import PublishedReport
from stanza_sim.studies.validate.published.scores import Outcome, RowKind

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GREY = "#8a8a8a"


def picture_png(report: PublishedReport) -> bytes:
    """Return the plot as a PNG. Raises `InputError` where matplotlib is not installed."""
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("pictures need matplotlib", hint="pip install 'stanza-sim[plot]'") from None
    with rc_context({"font.size": 9}):
        figure = Figure(figsize=(13, 4.6), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, 3)
        rows = [o for o in report.outcomes if o.scored and o.predicted]
        training = [o for o in rows if o.kind is RowKind.TRAINING]
        _efficiency(axes[0], training)
        _against(axes[1], [o for o in rows if o.kind is RowKind.NCCL], "GPUs", "NCCL's all-reduce, us")
        _against(axes[2], [o for o in rows if o.kind is RowKind.SINGLE], "GPU", "one GPU, samples/s")
        out = BytesIO()
        figure.savefig(out, format="png", dpi=120, metadata={"Software": None})
    return out.getvalue()


def _colours(names: list[str]) -> dict[str, tuple[float, float, float, float]]:
    from matplotlib import colormaps

    table = colormaps["tab10"]
    return {name: table(i % table.N) for i, name in enumerate(dict.fromkeys(names))}


def _efficiency(axes: Axes, rows: list[Outcome]) -> None:
    """Predicted against measured scaling efficiency, by source; linear scaling would be the line at 1."""
    colours = _colours([dict(o.groups)["source"] for o in rows])
    for name, colour in colours.items():
        of = [o for o in rows if dict(o.groups)["source"] == name and o.linear and o.predicted and o.measured]
        x = [o.measured / o.linear for o in of if o.measured and o.linear]
        y = [o.predicted / o.linear for o in of if o.predicted and o.linear]
        axes.scatter(x, y, s=18, linewidths=0, alpha=0.8, color=[colour], label=name, zorder=3)
    shares = [v / o.linear for o in rows if o.linear for v in (o.measured, o.predicted) if v]
    ends = [min([0.5, *shares]) / 1.2, 1.2]
    axes.plot(ends, ends, color=_GREY, linewidth=0.8, zorder=1)
    axes.axhline(1.0, color=_GREY, linewidth=0.8, linestyle=":", zorder=1)
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, aspect="equal")
    _plain_log(axes)
    axes.set(xlabel="measured efficiency", ylabel="predicted", title=f"{len(rows)} training rows (dotted: linear)")
    if rows:
        axes.legend(loc="upper left", frameon=False, fontsize=7)


def _against(axes: Axes, rows: list[Outcome], key: str, what: str) -> None:
    """Predicted against measured values, coloured by a group."""
    colours = _colours([dict(o.groups)[key] for o in rows])
    for name, colour in colours.items():
        of = [o for o in rows if dict(o.groups)[key] == name]
        label = f"{name} GPUs" if key == "GPUs" else name
        x, y = [o.measured for o in of if o.measured], [o.predicted for o in of if o.predicted]
        axes.scatter(x, y, s=18, linewidths=0, alpha=0.8, color=[colour], label=label, zorder=3)
    axes.set(xscale="log", yscale="log", xlabel="measured", ylabel="predicted", title=f"{what} ({len(rows)} rows)")
    if rows:
        values = [v for o in rows for v in (o.measured, o.predicted) if v]
        ends = [min(values) / 1.2, max(values) * 1.2]
        axes.plot(ends, ends, color=_GREY, linewidth=0.8, zorder=1)
        axes.set(xlim=ends, ylim=ends, aspect="equal")
        _plain_log(axes)
        axes.legend(loc="upper left", frameon=False, fontsize=7)


def _plain_log(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0,)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.grid(color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
