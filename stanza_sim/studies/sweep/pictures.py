"""Pictures of a sweep's file: samples/s over a key that is varied, and which row wins where."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from stanza_sim.base.config import near
from stanza_sim.base.errors import InputError
from stanza_sim.base.files import LARGEST_TEXT, read_text
from stanza_sim.base.tables import of_csv_cell, reading_csv
from stanza_sim.base.telling import Tell
from stanza_sim.report.colours import REST
from stanza_sim.report.folder import slug
from stanza_sim.report.pictures.style import (
    MOST_ROWS,
    Drawing,
    Look,
    grid,
    look,
    named_ends,
    plain_log,
    plain_text,
    save,
    told_apart,
)
from stanza_sim.studies.sweep.crossover_file import crossovers_path
from stanza_sim.studies.sweep.vary import Axis, Scale, scale_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_PICTURES = 24
UNITS = {"B/s": (8e-9, "Gb/s"), "s": (1e3, "ms"), "B": (2**-20, "MiB"), "FLOPS": (1e-12, "TFLOP/s")}
"""What numbers of an axis are multiplied by, and the unit that they have then."""
HINT = "name a file that `stanza-sim sweep -o FILE.csv` wrote"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Dot:
    x: float
    rate: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Turn:
    """Where a row ceases to win, and between which values it is tied with the one that wins from there."""

    at: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Curves:
    """The curves of a model: dots of each row by label, the strategy of each, and the crossovers."""

    model: str
    dots: Mapping[str, Sequence[_Dot]]
    strategies: Mapping[str, str]
    turns: Sequence[_Turn]

    def apart(self) -> list[str]:
        """The rows that are told apart: all, or of each strategy the one that is its best at most points."""
        best: Counter[str] = Counter()
        for x in sorted({d.x for dots in self.dots.values() for d in dots}):
            there = {label: d.rate for label, dots in self.dots.items() for d in dots if d.x == x}
            for strategy in set(self.strategies.values()):
                mine = [label for label in there if self.strategies[label] == strategy]
                if mine:
                    best[max(mine, key=lambda label: there[label])] += 1
        return told_apart([(label, self.strategies[label], float(best[label])) for label in self.dots])

    def winners(self) -> list[tuple[float, float, str]]:
        """From where to where each row wins, in order."""
        xs = sorted({d.x for dots in self.dots.values() for d in dots})
        won: list[str] = []
        for x in xs:
            there = {label: d.rate for label, dots in self.dots.items() for d in dots if d.x == x}
            won.append(max(there, key=lambda label: there[label]))
        found: list[tuple[float, float, str]] = []
        begin = xs[0]
        for (a, first), (b, second) in pairwise(zip(xs, won, strict=True)):
            if first != second:
                inside = [t.at for t in self.turns if a <= t.at <= b]
                end = inside[0] if inside else (math.sqrt(a * b) if a > 0 else (a + b) / 2)
                found.append((begin, end, first))
                begin = end
        return [*found, (begin, xs[-1], won[-1])]


def draw_sweep(
    path: Path,
    *,
    over: str | None = None,
    where: Sequence[str] = (),
    tell: Tell = lambda what, done, total: None,
) -> list[Path]:
    """Draw the sweep in the file `path` beside it, and return the files, PNG and SVG of each picture.

    `over` is the key on the axis; left out, the one with most values that are numbers. There is a picture for each
    combination of the values of all others; `where` has `KEY=VALUE` that keep some. Raises `InputError` for a file of
    something else, for keys that it does not vary, and where nothing is left to draw.
    """
    lines, keys = _read(path)
    for text in where:
        key, _, value = text.partition("=")
        _check_key(key, keys, "--where")
        lines = [line for line in lines if line[key] == value]
        if not lines:
            raise InputError(f"no line has {text}", where=str(path), hint="give a value as the file has it")
    axes = [Axis(key=key, values=tuple(dict.fromkeys(line[key] for line in lines))) for key in keys]
    axis, scale = _axis(axes, over, path)
    feasible = [line for line in lines if line["samples_per_s"]]
    if not feasible:
        raise InputError("no line could be predicted", where=str(path), hint="there is nothing to draw")
    crossovers = _crossovers(path)
    others = [one.key for one in axes if one is not axis and len(one.values) > 1]
    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for line in feasible:
        groups.setdefault(tuple(line[key] for key in others), []).append(line)
    if len(groups) > MOST_PICTURES:
        what = f"would be {len(groups)} pictures, one for each combination of {' and '.join(others)}"
        raise InputError(what, where=str(path), hint=f"keep at most {MOST_PICTURES} with --where KEY=VALUE")
    drawings: list[Drawing] = []
    for values, some in groups.items():
        name = "-".join([path.stem, *(slug(value) for value in values)])
        title = ", ".join(f"{key}={value}" for key, value in zip(others, values, strict=True))
        curves = list(_curves(some, axis, scale, crossovers, keys))
        x = f"{axis.key}, {UNITS[scale.unit][1]}" if scale.unit in UNITS else axis.key
        columns = _columns(curves)
        size = 4.6 * columns + 0.3, 3.4 * -(-len(curves) // columns) + 0.5
        drawings.append(Drawing(name=name, size=size, draw=partial(_draw, curves=curves, x=x, title=title)))
        height = 0.55 * len(curves) + 1.3
        bands = partial(_draw_bands, curves=curves, x=x, title=title)
        drawings.append(Drawing(name=f"{name}-crossovers", size=(8.6, height), draw=bands))
    return save(drawings, path.parent, tell)


# --- reading ---------------------------------------------------------------------------------------------------------


def _read(path: Path) -> tuple[list[dict[str, str]], list[str]]:
    """The lines of a sweep, and the keys that it varies."""
    text = read_text(path, at_most=LARGEST_TEXT, expected="a table of a sweep")
    reader = csv.DictReader(text.splitlines(), strict=True)
    with reading_csv(path, "a table of a sweep", HINT):
        names = list(reader.fieldnames or ())
    if names[:1] != ["sweep"] or not {"model", "label", "strategy", "samples_per_s"} <= set(names):
        raise InputError("is not a table of a sweep", where=str(path), hint=HINT)
    keys = names[1 : names.index("model")]
    lines: list[dict[str, str]] = []
    with reading_csv(path, "a table of a sweep", HINT):
        for number, line in enumerate(reader, 2):
            if None in line or None in line.values():
                raise InputError("is no line of a sweep", where=f"{path}:{number}", hint=HINT)
            lines.append({key: of_csv_cell(cell) for key, cell in line.items()})
    if not lines:
        raise InputError("has no lines", where=str(path), hint=HINT)
    return lines, keys


def _check_key(key: str, keys: Sequence[str], option: str) -> None:
    if key not in keys:
        raise InputError(f"{key!r} is no key that the sweep varies", where=option, hint=near(key, keys))


def _axis(axes: Sequence[Axis], over: str | None, path: Path) -> tuple[Axis, Scale]:
    """The axis that is drawn over, and how its values are numbers."""
    if over is not None:
        _check_key(over, [one.key for one in axes], "--over")
    known = [(one, scale) for one in axes if over in (None, one.key) and (scale := scale_of(one)) is not None]
    if not known:
        which = f"the values of {over} are" if over is not None else "no key that it varies has values that are"
        raise InputError(f"{which} not numbers of one kind", where=str(path), hint="there is no axis to draw over")
    return max(known, key=lambda found: len(found[0].values))


def _crossovers(path: Path) -> list[dict[str, str]]:
    beside = crossovers_path(path)
    if not beside.exists():
        return []
    text = read_text(beside, at_most=LARGEST_TEXT, expected="a table of crossovers")
    with reading_csv(beside, "a table of crossovers"):
        return [
            {key: of_csv_cell(cell) for key, cell in line.items() if isinstance(key, str) and isinstance(cell, str)}
            for line in csv.DictReader(text.splitlines())
        ]


def _curves(
    lines: Sequence[Mapping[str, str]],
    axis: Axis,
    scale: Scale,
    crossovers: Sequence[Mapping[str, str]],
    keys: Sequence[str],
) -> Iterator[_Curves]:
    factor = UNITS.get(scale.unit, (1.0, ""))[0]
    there = " ".join(f"{key}={lines[0][key]}" for key in keys if key != axis.key)
    for model in dict.fromkeys(line["model"] for line in lines):
        dots: dict[str, list[_Dot]] = {}
        strategies: dict[str, str] = {}
        for line in lines:
            if line["model"] != model:
                continue
            strategies[line["label"]] = line["strategy"]
            try:
                dot = _Dot(
                    x=scale.number(line[axis.key]) * factor,
                    rate=float(line["samples_per_s"]),
                    low=_number(line.get("samples_per_s_low", "")),
                    high=_number(line.get("samples_per_s_high", "")),
                )
            except ValueError:
                raise InputError("has samples/s that are no number", where=line["label"], hint=HINT) from None
            if not 0 < dot.rate < math.inf:
                continue
            dots.setdefault(line["label"], []).append(dot)
        turns = [
            turn
            for one in crossovers
            if (one.get("model"), one.get("key"), one.get("at")) == (model, axis.key, there)
            and (turn := _turn(one, factor)) is not None
        ]
        if dots:
            ordered = {label: sorted(some, key=lambda d: d.x) for label, some in dots.items()}
            yield _Curves(model=model, dots=ordered, strategies=strategies, turns=turns)


def _number(text: str) -> float | None:
    return float(text) if text else None


def _turn(one: Mapping[str, str], factor: float) -> _Turn | None:
    try:
        low, high, to, since = (float(one[key]) * factor for key in ("low", "high", "wins_to", "wins_from"))
    except (KeyError, ValueError):
        return None
    return _Turn(at=(to + since) / 2, low=low, high=high)


# --- drawing ---------------------------------------------------------------------------------------------------------


def _looks(curves: Sequence[_Curves]) -> dict[str, Look]:
    """The look of each row, or of those of each strategy alike where a panel does not tell all rows apart."""
    strategies = {label: strategy for one in curves for label, strategy in one.strategies.items()}
    alone = all(len(one.dots) <= MOST_ROWS for one in curves)
    looks = {name: look(i) for i, name in enumerate(dict.fromkeys(strategies if alone else strategies.values()))}
    return {label: looks[label if alone else strategy] for label, strategy in strategies.items()}


def _columns(curves: Sequence[_Curves]) -> int:
    """Panels of a line."""
    return 2 if len(curves) in (2, 4) else min(3, len(curves))


def _draw(figure: Figure, curves: Sequence[_Curves], x: str, title: str) -> None:
    columns = _columns(curves)
    panels = list(figure.subplots(-(-len(curves) // columns), columns, squeeze=False).flat)
    looks = _looks(curves)
    if title:
        figure.suptitle(plain_text(title))
    for panel, one in zip(panels, curves, strict=False):
        apart = one.apart()
        for label, dots in one.dots.items():
            xs, ys = [d.x for d in dots], [d.rate for d in dots]
            if label not in apart:
                panel.plot(xs, ys, color=REST, linewidth=0.7, zorder=1)
                continue
            style = looks[label]
            panel.plot(xs, ys, color=style.colour, linestyle=style.line, marker=style.marker, markersize=3, zorder=2)
        for turn in one.turns:
            panel.axvline(turn.at, color="#333333", linewidth=0.7, linestyle="dotted", zorder=1)
        _scaled(panel, one)
        panel.set_title(plain_text(one.model), loc="left")
        panel.set_xlabel(x)
        if panel in panels[::columns]:
            panel.set_ylabel("samples/s")
        grid(panel)
    for panel in panels[len(curves) :]:
        panel.set_axis_off()
    ends = [
        [(one.dots[label][-1].x, one.dots[label][-1].rate, label, looks[label].colour) for label in one.apart()]
        for one in curves
    ]
    # Names are wide: room for them first, then where each goes within that.
    for panel, some in zip(panels, ends, strict=False):
        longest = max((name for _, _, name, _ in some), key=len)
        panel.annotate(plain_text(longest), (1, 1), xytext=(1.05, 1), textcoords="axes fraction", fontsize=7.5, alpha=0)
    figure.draw_without_rendering()
    for panel, some in zip(panels, ends, strict=False):
        named_ends(panel, some, log=True)
    if any(one.turns for one in curves):
        figure.supxlabel("dotted: where another row begins to win", fontsize=8)


def _scaled(panel: Axes, one: _Curves) -> None:
    xs = sorted({d.x for dots in one.dots.values() for d in dots})
    plain_log(panel, "xy" if xs[0] > 0 and xs[-1] >= 4 * xs[0] else "y")
    if 1 < len(xs) <= 8:
        panel.set_xticks(xs, [f"{x:,.6g}" for x in xs])


def _draw_bands(figure: Figure, curves: Sequence[_Curves], x: str, title: str) -> None:
    """For each model a bar of who wins from where to where; hatched where the two are tied."""
    from matplotlib.patches import Patch

    axes = figure.subplots()
    looks = _looks(curves)
    bands = [one.winners() for one in curves]
    labels = list(dict.fromkeys(label for some in bands for _, _, label in some))
    for y, (one, some) in enumerate(zip(curves, bands, strict=True)):
        for begin, end, label in some:
            axes.barh(y, end - begin, left=begin, color=looks[label].colour, edgecolor="white", height=0.62)
        for turn in one.turns:
            axes.barh(
                y, turn.high - turn.low, left=turn.low, color="none", edgecolor="white", hatch="////", height=0.62,
                linewidth=0,
            )  # fmt: skip
    xs = sorted({d.x for one in curves for dots in one.dots.values() for d in dots})
    if xs[0] > 0 and xs[-1] >= 4 * xs[0]:
        plain_log(axes, "x")
    if 1 < len(xs) <= 12:
        axes.set_xticks(xs, [f"{value:,.6g}" for value in xs])
    axes.set_xlim(xs[0], xs[-1])
    axes.set_yticks(range(len(curves)), [plain_text(one.model) for one in curves])
    axes.set_ylim(len(curves) - 0.4, -0.6)
    for y, some in enumerate(bands):
        _name_bands(axes, y, some)
    axes.set_xlabel(x)
    what = "which row has the most samples/s (hatched: tied with its neighbour)"
    axes.set_title(plain_text(f"{title}: {what}" if title else what), loc="left")
    patches = [Patch(color=looks[label].colour, label=plain_text(label)) for label in labels]
    figure.legend(handles=patches, loc="outside lower center", ncols=min(4, len(patches)))


def _name_bands(axes: Axes, y: int, bands: Sequence[tuple[float, float, str]]) -> None:
    """Write the row's name into each bar that is long enough: told apart in grey too."""
    low, high = (
        axes.transData.transform((axes.get_xlim()[0], 0))[0],
        axes.transData.transform((axes.get_xlim()[1], 0))[0],
    )
    for begin, end, label in bands:
        a, b = (axes.transData.transform((value, 0))[0] for value in (begin, end))
        if (b - a) / (high - low) * 68 > len(label):
            middle = axes.transData.inverted().transform(((a + b) / 2, 0))[0]
            box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
            axes.text(middle, y, plain_text(label), ha="center", va="center", fontsize=7.5, bbox=box)
