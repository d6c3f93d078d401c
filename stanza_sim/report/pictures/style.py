"""What all pictures have in common: size, type, colours, and that equal data gives equal bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from math import log10
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stanza_sim.base.errors import InputError
from stanza_sim.base.files import write_bytes
from stanza_sim.base.telling import Tell
from stanza_sim.report.colours import SERIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg")
MOST_ROWS = 8
"""Of more rows the best of each strategy is told apart, and the rest is grey."""
LINES = ("solid", "dashed", "dotted", "dashdot")
MARKERS = "osD^vP*X"
GRID = "#E0E0E0"
NAME_PT = 9.0
"""From one name at the end of lines to the next."""
_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "hatch.linewidth": 0.5,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A picture to be: the name of its files, its size in inches, and what draws it."""

    name: str
    size: tuple[float, float]
    draw: Callable[[Figure], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How a line or bar of a series is told apart: by colour, and in grey by line and marker."""

    colour: str
    line: str
    marker: str


def look(place: int) -> Look:
    """The look of the series at a place."""
    return Look(
        colour=SERIES[place % len(SERIES)], line=LINES[place % len(LINES)], marker=MARKERS[place % len(MARKERS)]
    )


def told_apart(rows: Sequence[tuple[str, str, float]]) -> list[str]:
    """Which of rows (label, strategy, samples/s) are told apart: all, or the best of each strategy; see `MOST_ROWS`."""
    if len(rows) <= MOST_ROWS:
        return [label for label, _, _ in rows]
    best: dict[str, tuple[float, str]] = {}
    for label, strategy, rate in rows:
        if strategy not in best or rate > best[strategy][0]:
            best[strategy] = rate, label
    wanted = {label for _, label in best.values()}
    return [label for label, _, _ in rows if label in wanted]


def save(drawings: Sequence[Drawing], folder: Path, tell: Tell = lambda what, done, total: None) -> list[Path]:
    """Write every picture to `folder` as PNG and SVG, each whole or not at all, and return the files.

    Raises `InputError` where matplotlib is not installed or a file cannot be written.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("pictures need matplotlib", hint="pip install 'stanza-sim[plot]'") from None
    written: list[Path] = []
    for done, one in enumerate(drawings):
        tell("pictures", done, len(drawings))
        with rc_context({**_STYLE, "svg.hashsalt": one.name}):
            figure = Figure(figsize=one.size, layout="constrained")
            FigureCanvasAgg(figure)
            one.draw(figure)
            for suffix in SUFFIXES:
                out = BytesIO()
                metadata = {"Date": None} if suffix == ".svg" else {"Software": None}
                figure.savefig(out, format=suffix[1:], dpi=150, metadata=metadata)
                written.append(folder / f"{one.name}{suffix}")
                write_bytes(out.getvalue(), written[-1])
    return written


def grid(axes: Axes, which: str = "both") -> None:
    """Thin lines behind."""
    if which in ("x", "both"):
        axes.xaxis.grid(True, color=GRID, linewidth=0.6)
    if which in ("y", "both"):
        axes.yaxis.grid(True, color=GRID, linewidth=0.6)


def plain_text(text: str) -> str:
    """`text` as it is: matplotlib would read what stands between two dollar signs as a formula."""
    return text.replace("$", r"\$")


def plain_log(axes: Axes, which: str = "xy") -> None:
    """Logarithmic axes whose numbers are written out, at 1, 2 and 5."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    for name in which:
        getattr(axes, f"set_{name}scale")("log")
        axis = axes.xaxis if name == "x" else axes.yaxis
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())


def named_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]], *, log: bool) -> None:
    """Write names (x, y, name, colour) at the ends of lines, moved apart where they would lie over each other."""
    if not ends:
        return
    low, high = axes.get_ylim()

    def share(y: float) -> float:
        return (log10(y) - log10(low)) / (log10(high) - log10(low)) if log else (y - low) / (high - low)

    step = NAME_PT / (axes.get_window_extent().height / axes.figure.dpi * 72)
    placed: list[float] = []
    order = sorted(range(len(ends)), key=lambda i: share(ends[i][1]))
    wanted = [share(ends[i][1]) for i in order]
    for at in wanted:
        placed.append(max(at, placed[-1] + step) if placed else at)
    over = max(0.0, placed[-1] - 1.02)
    placed = [p - over for p in placed]
    for k in range(len(placed) - 2, -1, -1):
        placed[k] = min(placed[k], placed[k + 1] - step) if over else placed[k]
    for i, at in zip(order, placed, strict=True):
        x, y, name, colour = ends[i]
        axes.annotate(
            plain_text(name),
            (x, y),
            xytext=(1.02, at),
            textcoords="axes fraction",
            color=colour,
            fontsize=7.5,
            va="center",
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.5,
                "shrinkA": 0,
                "shrinkB": 2,
                "relpos": (0, 0.5),
            },
            annotation_clip=False,
        )
