"""Draws a large cluster with matplotlib: what is alike is one box with its count, and one line with its count."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stanza_sim.base.units import format_rate
from stanza_sim.report.classes import Classes, Pair
from stanza_sim.report.drawing import about_host, about_link, busy
from stanza_sim.report.painting import HOST, LINE, SWITCH, Point, box, colour_of, width_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_CLASSES = 30
"""Of more kinds of hosts and switches than this, nothing is gained by drawing each once."""
_ACROSS, _UP = 4.2, 1.5
"""Inches between boxes of a layer, and between layers."""


@dataclass(slots=True, kw_only=True)
class AlikePicture(Classes):
    """Each class of hosts and switches once, in layers."""

    utilisation: Mapping[str, float]
    at: dict[int, Point] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super(AlikePicture, self).__post_init__()
        layers: dict[int, list[int]] = {}
        for c, members in self.members.items():
            layers.setdefault(self.level[members[0]], []).append(c)
        for height, (_, row) in enumerate(sorted(layers.items())):
            for i, c in enumerate(sorted(row, key=lambda c: self.members[c][0])):
                self.at[c] = (i - (len(row) - 1) / 2, float(height))

    def size(self) -> tuple[float, float]:
        """Width and height in inches."""
        xs, ys = zip(*self.at.values(), strict=True)
        return _ACROSS * (max(xs) - min(xs) + 1) + 1.0, _UP * (max(ys) + 1) + 1.0

    def draw(self, axes: Axes) -> None:
        """Draw everything on `axes`."""
        drawn = [(low, high, pairs) for low in self.at for high in self.at if (pairs := self._pairs(low, high))]
        rates = [self.cluster.links[pairs[0][0]].bandwidth_Bps for _, _, pairs in drawn]
        for (low, high, pairs), rate_Bps in zip(drawn, rates, strict=True):
            (x, y), (x2, y2) = self.at[low], self.at[high]
            colour, told = self._seen(pairs)
            axes.plot([x, x2], [y, y2], color=colour, linewidth=width_of(rate_Bps, min(rates)), zorder=1)
            # Beside the line, and nearer to its lower end, so that those that cross do not write over each other.
            at = (x + 0.45 * (x2 - x), y + 0.45 * (y2 - y))
            box(axes, at, self.about(low, pairs) + told, "white", bare=True)
        for c, at in self.at.items():
            host = self.members[c][0] < len(self.cluster.hosts)
            box(axes, at, self._words(c), HOST if host else SWITCH, stacked=len(self.members[c]) > 1)
        axes.margins(0.35 if len({x for x, _ in self.at.values()}) > 1 else 1.0, 0.25)

    def notes(self) -> list[str]:
        """What is not drawn, in words: links among what is alike."""
        found = []
        for c in self.at:
            if pairs := self.between(c, c):
                link = about_link(self.cluster.links[pairs[0][0]], self.cluster.links[pairs[0][1]])
                found.append(f"among {self.names(c)}: {len(pairs) // 2} links of {link}{self._seen(pairs)[1]}")
        return found

    def _pairs(self, low: int, high: int) -> list[Pair]:
        """The links from a class to one above it or, of the same layer, later."""
        ends = [(self.level[self.members[c][0]], c) for c in (low, high)]
        return self.between(low, high) if ends[0] < ends[1] else []

    def _seen(self, pairs: list[Pair]) -> tuple[tuple[float, ...] | str, str]:
        """The colour of the busiest of these links, and in words how busy they are."""
        known = [b for pair in pairs for k in pair if (b := busy(self.cluster.links[k], self.utilisation)) is not None]
        if not known:
            return LINE, ""
        mean = math.fsum(known) / len(known)
        return colour_of(max(known)), f"\nbusy: mean {mean:.0%}, most {max(known):.0%}"

    def _words(self, c: int) -> str:
        members, cluster = self.members[c], self.cluster
        several = len(members) > 1
        if members[0] >= len(cluster.hosts):
            text = f"{self.names(c)}\n{len(members):,} switches" if several else self.names(c)
            planes = [link for s, link in cluster.fabric.backplanes if s + len(cluster.hosts) == members[0]]
            return text + "".join(f"\n{format_rate(cluster.links[k].bandwidth_Bps)} backplane" for k in planes)
        host = cluster.hosts[members[0]]
        ranks = len(cluster.ranks_on(members[0]))
        each = " each" if several else ""
        lines = [self.names(c), *([f"{len(members):,} hosts"] if several else []), f"{about_host(host)}{each}"]
        lines.append(f"{ranks} rank{'s' if ranks != 1 else ''}{each}")
        if host.intra is not None:
            inner = [pair for h in members for pair in cluster.fabric.device_links[h]]
            lines.append(f"{host.intra.kind} inside: {about_link(cluster.links[inner[0][0]])}")
            lines += self._seen(inner)[1].splitlines()[1:]
        return "\n".join(lines)
