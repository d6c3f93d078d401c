"""What pictures of a cluster have in common: boxes, colours, widths of lines."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HOST, SWITCH, DEVICE, LINE = "#dbe9f6", "#fde7c8", "#7ba05b", "#8a8a8a"
COLOURS = "viridis_r"
"""From idle to busy: lighter to darker, also in grey."""
Point = tuple[float, float]


def box(
    axes: Axes, at: Point, text: str, colour: str, *, upright: bool = False, stacked: bool = False, bare: bool = False
) -> None:
    """A text in a box around `at`; `stacked` stands for several, `bare` has no border."""
    from matplotlib.transforms import ScaledTranslation

    around = {
        "boxstyle": "round,pad=0.3" if not bare else "round,pad=0.15",
        "facecolor": colour,
        "edgecolor": "none" if bare else "#555555",
        "linewidth": 0.7,
    }
    figure = axes.figure
    for points in (6, 3, 0) if stacked else (0,):
        shift = ScaledTranslation(points / 72, points / 72, figure.dpi_scale_trans)
        axes.text(
            *at,
            text,
            ha="center",
            va="center",
            rotation=90 if upright else 0,
            fontsize=7,
            zorder=3 if not bare else 2,
            color="none" if points else "black",
            transform=axes.transData + shift,
            bbox=around,
        )


def colour_of(share: float) -> tuple[float, float, float, float]:
    """The colour of a link that is busy for a share of the time."""
    from matplotlib import colormaps

    red, green, blue, alpha = colormaps[COLOURS](min(share, 1.0))
    return red, green, blue, alpha


def width_of(rate_Bps: float, slowest_Bps: float) -> float:
    """The width of a link's line in points, of the slowest 0.9."""
    return min(0.9 + 0.7 * math.log2(rate_Bps / slowest_Bps), 5.0)
