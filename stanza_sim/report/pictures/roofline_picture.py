"""The roofline of a model on a device: what each block's forward pass reaches, and what bounds it.

S. Williams, A. Waterman, D. Patterson: Roofline: an insightful visual performance model, CACM 2009. The roof is the
data sheet's: min(peak FLOP/s, memory bandwidth x FLOPs per byte).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from stanza_sim.report.colours import SERIES
from stanza_sim.report.pictures.style import Drawing, grid, plain_log, plain_text
from stanza_sim.report.saved import BlockWork, Device, SavedRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAMED = 5
"""So many blocks are named: those that take longest."""


def roofline(name: str, rows: Sequence[SavedRow]) -> Drawing | None:
    """The roofline of the row that tells of most blocks; None where nothing is known of the device or of blocks."""
    known = [row for row in rows if row.details.device is not None and any(b.flops for b in row.details.blocks)]
    if not known:
        return None
    row = max(known, key=lambda r: (len(r.details.blocks), r.run.measured is not None))
    assert row.details.device is not None
    blocks = [b for b in row.details.blocks if b.flops and b.nbytes]
    title = f"{row.run.model}, {row.run.batch_per_worker} samples, on {row.details.device.name}"
    draw = partial(_draw, device=row.details.device, blocks=blocks, title=title)
    return Drawing(name=name, size=(6.6, 4.6), draw=draw)


def _draw(figure: Figure, device: Device, blocks: Sequence[BlockWork], title: str) -> None:
    axes = figure.subplots()
    ridge = device.peak_flops / device.memory_Bps
    at = [b.flops / b.nbytes for b in blocks]
    ends = [min(*at, ridge) / 3, max(*at, ridge) * 3]
    roof = [min(device.peak_flops, device.memory_Bps * x) / 1e12 for x in (ends[0], ridge, ends[1])]
    label = (
        f"data sheet: {device.peak_flops / 1e12:.3g} TFLOP/s ({device.precision}), {device.memory_Bps / 1e9:.4g} GB/s"
    )
    axes.plot([ends[0], ridge, ends[1]], roof, color="#333333", linewidth=1.2, label=label)
    axes.axvline(ridge, color="#333333", linewidth=0.6, linestyle="dotted")
    looks = {"conv": (SERIES[0], "o"), "fc": (SERIES[1], "s")}
    for kind, (colour, marker) in looks.items():
        some = [b for b in blocks if b.kind == kind]
        if not some:
            continue
        xs = [b.flops / b.nbytes for b in some]
        ys = [b.flops / b.predicted_s / 1e12 for b in some]
        axes.scatter(xs, ys, color=colour, marker=marker, s=30, label=f"{kind} block, predicted", zorder=3)
        seen = [(b.flops / b.nbytes, b.flops / b.measured_s / 1e12) for b in some if b.measured_s]
        if seen:
            xs, ys = [x for x, _ in seen], [y for _, y in seen]
            label = f"{kind} block, measured"
            axes.scatter(xs, ys, facecolors="none", edgecolors=colour, marker=marker, s=44, label=label, zorder=3)
    _name(axes, blocks)
    plain_log(axes)
    axes.set_xlim(ends[0], ends[1])
    axes.set_title(plain_text(title), loc="left")
    axes.set_xlabel("arithmetic intensity of the forward pass, FLOP per byte of memory traffic")
    axes.set_ylabel("reached, TFLOP/s")
    grid(axes)
    axes.legend(loc="best")


def _name(axes: Axes, blocks: Sequence[BlockWork]) -> None:
    """Name the blocks that take longest; of those at one point the first, with how many there are."""
    points: dict[tuple[str, str], list[BlockWork]] = {}
    for b in blocks:
        points.setdefault((f"{b.flops / b.nbytes:.2g}", f"{b.flops / b.predicted_s:.2g}"), []).append(b)
    longest = sorted(points.values(), key=lambda some: -sum(b.predicted_s for b in some))[:_NAMED]
    for i, some in enumerate(longest):
        where = some[0].flops / some[0].nbytes, some[0].flops / some[0].predicted_s / 1e12
        name = some[0].name if len(some) == 1 else f"{some[0].name} and {len(some) - 1} more"
        beside, side = ((6, -9), "left") if i % 2 == 0 else ((-6, 5), "right")
        axes.annotate(plain_text(name), where, xytext=beside, textcoords="offset points", fontsize=7, ha=side)
