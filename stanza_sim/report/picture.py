"""Draws a cluster with matplotlib: switches in layers above their hosts, or hosts that forward around each other.

A line's width grows with the link's rate, and links of one rate between the same two ends are one line with their
count. With utilisation its colour shows the busiest direction of any of them; links that are not known stay grey.
Devices are small squares below their host. Of a cluster in which all that could not be read, what is alike is drawn
once (see `alike_picture`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import networkx as nx

from stanza_sim.base.errors import InputError
from stanza_sim.base.files import write_bytes
from stanza_sim.cluster import Cluster
from stanza_sim.report.alike_picture import MOST_CLASSES, AlikePicture
from stanza_sim.report.drawing import about_host, about_link, busy, levels, span_of
from stanza_sim.report.painting import COLOURS, DEVICE, HOST, LINE, SWITCH, Point, box, colour_of, width_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".svg")
_NAMED = 80
"""Of more hosts than this only the spans below each switch are named."""

_MOST = {"hosts": 48, "switches": 24, "devices": 64}
"""Of more than these, what is alike is drawn once with its count."""

_APART = 3.0
"""Least distance between switches of a layer: a name's length, in units of 0.42 inches."""


def save_picture(cluster: Cluster, path: Path, utilisation: Mapping[str, float]) -> None:
    """See `stanza_sim.report.draw.draw_picture`."""
    if path.suffix not in SUFFIXES:
        what = f"cannot draw a {path.suffix or 'file without a suffix'}"
        raise InputError(what, where=str(path), hint="write such as cluster.png or cluster.svg")
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("pictures need matplotlib", hint="pip install 'stanza-sim[plot]'") from None
    drawing: _Picture | AlikePicture = _Picture(cluster=cluster, utilisation=utilisation)
    if _cannot_be_read(cluster):
        once = AlikePicture(cluster=cluster, utilisation=utilisation)
        drawing = once if len(once.members) <= MOST_CLASSES else drawing
    width, height = drawing.size()
    # The same cluster gives the same bytes: no date, and ids that do not change.
    with rc_context({"svg.hashsalt": cluster.name, "font.size": 8}):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        _frame(axes, cluster, drawing.notes(), utilisation)
        drawing.draw(axes)
        metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
        out = BytesIO()
        figure.savefig(out, format=path.suffix[1:], dpi=150, metadata=metadata)
    write_bytes(out.getvalue(), path)


def _cannot_be_read(cluster: Cluster) -> bool:
    """Whether there is too much to draw all of it."""
    devices = sum(len(host.devices) for host in cluster.hosts if host.intra is not None)
    counts = {"hosts": len(cluster.hosts), "switches": len(cluster.switches), "devices": devices}
    return len(cluster.hosts) > 1 and any(counts[what] > most for what, most in _MOST.items())


def _frame(axes: Axes, cluster: Cluster, notes: Sequence[str], utilisation: Mapping[str, float]) -> None:
    """The title, the notes below, and what colours mean."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    axes.set_axis_off()
    hosts = f"{len(cluster.hosts):,} host{'s' if len(cluster.hosts) > 1 else ''}"
    axes.set_title(f"{cluster.name}: {hosts}, {cluster.world_size:,} ranks", fontsize=10)
    text = "\n".join(notes)
    axes.text(0.0, -0.02, text, transform=axes.transAxes, va="top", ha="left", fontsize=7, color="#333333")
    if utilisation:
        scale = ScalarMappable(norm=Normalize(0, 1), cmap=COLOURS)
        bar = axes.figure.colorbar(scale, ax=axes, shrink=0.6 if len(cluster.hosts) > 1 else 0.9, aspect=25, pad=0.01)
        bar.set_label("share of time busy,\nthe busier direction")


@dataclass(slots=True, kw_only=True)
class _Picture:
    """Positions of hosts (by number) and switches (by name), and how to draw them."""

    cluster: Cluster
    utilisation: Mapping[str, float]
    at: dict[int | str, Point] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.cluster.hosts) > 1 and self.cluster.switches:
            self._layers()
        else:
            self._around()

    def size(self) -> tuple[float, float]:
        """Return width and height in inches."""
        xs, ys = zip(*self.at.values(), strict=True)
        width = min(max(6.0, 0.42 * (max(xs) - min(xs)) + 1.5), 40.0)
        if not self.cluster.switches and len(self.cluster.hosts) > 1:
            side = min(max(4.5, 1.4 * math.sqrt(len(self.at))), 16.0)
            return side * 1.1, side
        if len(self.cluster.hosts) == 1:
            return 6.0, 2.4
        return width, max(3.2, 1.5 * (max(ys) - min(ys)) + 2.4)

    # --- positions ---------------------------------------------------------------------------------------------------

    def _wide(self) -> float:
        """Return the room that a host needs: its devices' squares, or its name."""
        devices = max(len(host.devices) for host in self.cluster.hosts)
        upright = len(self.cluster.hosts) > 12
        return max(1.0 if upright else 2.6, 0.62 * devices)

    def _layers(self) -> None:
        """Hosts in a row by their switches; every layer of switches above, in the order of what is below."""
        cluster, level = self.cluster, levels(self.cluster)
        attached = cluster.fabric.attached
        order = sorted(range(len(cluster.hosts)), key=lambda h: (attached[h][:1], h))
        groups: dict[tuple[int, ...], list[int]] = {}
        for h in order:
            groups.setdefault(attached[h], []).append(h)
        wide = self._wide() if len(order) <= _NAMED else min(1.0, 0.55 * _APART * len(groups) / len(order))
        x = left = 0.0
        for members in groups.values():
            # The group's middle is where its switch will be, and switches need their room too.
            left += max((_APART - wide * len(members)) / 2, 0.0)
            for n, h in enumerate(members):
                self.at[h] = (left + n * wide, 0.0)
            x = left + (len(members) - 1) * wide
            left += wide * len(members) + max((_APART - wide * len(members)) / 2, 0.8)
        below: dict[int, list[float]] = {s: [] for s in range(len(cluster.switches))}
        for h, switches in enumerate(attached):
            for s in switches:
                below[s].append(self.at[h][0])
        last: list[float] = []
        for layer in range(1, max(level) + 1):
            row = [s for s, at in enumerate(level) if at == layer]
            means = {s: sum(below[s]) / len(below[s]) if below[s] else x / 2 for s in row}
            row.sort(key=lambda s: (round(means[s], 6), s))
            # A layer as wide as the one below, such as those of a pod, stands right above it.
            places = last if len(last) == len(row) > 1 else _apart([means[s] for s in row], _APART, x)
            last = places
            for s, place in zip(row, places, strict=True):
                self.at[cluster.switches[s]] = (place, float(layer))
            for a, b, _ in cluster.fabric.trunks:
                if level[a] == layer and level[b] == layer + 1:
                    below[b].append(self.at[cluster.switches[a]][0])

    def _around(self) -> None:
        """Hosts joined directly: a ring as a circle, anything else by a spring layout with a fixed seed."""
        graph = nx.Graph()
        graph.add_nodes_from(range(len(self.cluster.hosts)))
        graph.add_edges_from((a, b) for a, b, _ in self.cluster.fabric.cables)
        if all(degree <= 2 for _, degree in graph.degree):
            found = nx.circular_layout(graph)
        else:
            found = nx.spring_layout(graph, seed=1, iterations=300, pos=nx.spectral_layout(graph))
        self.at = {h: (float(p[0]), float(p[1])) for h, p in found.items()}

    # --- drawing -----------------------------------------------------------------------------------------------------

    def draw(self, axes: Axes) -> None:
        """Draw everything on `axes`."""
        cluster = self.cluster
        if cluster.fabric.forwarding:
            axes.set_aspect("equal")
        self._links(axes)
        for i, name in enumerate(cluster.switches if len(cluster.hosts) > 1 else ()):
            text = name
            for s, link in cluster.fabric.backplanes:
                if s == i:
                    text += f"\n{about_link(cluster.links[link]).partition(' goodput')[0]} backplane"
            box(axes, self.at[name], text, SWITCH)
        if len(cluster.hosts) <= _NAMED or not cluster.switches:
            upright = len(cluster.hosts) > 12 and bool(cluster.switches) and self._wide() <= 1.0
            for h, host in enumerate(cluster.hosts):
                box(axes, self.at[h], host.name, HOST, upright=upright)
                self._devices(axes, h)
        else:
            self._spans(axes)
        axes.margins(0.06, 0.16)

    def _links(self, axes: Axes) -> None:
        """Draw the links between the same two ends as one line, with their count; those of other rates beside it."""
        cluster = self.cluster
        lines: dict[tuple[int | str, int | str], list[tuple[int, ...]]] = {}
        for h in range(len(cluster.hosts)):
            for tx, rx in cluster.nic_links_of(h):
                for s in cluster.ports()[tx // 2] if not cluster.fabric.forwarding else ():
                    lines.setdefault((h, cluster.switches[s]), []).append((tx, rx))
        trunks = {(a, b): link for a, b, link in cluster.fabric.trunks}
        for (a, b), link in trunks.items():
            if a < b:
                lines.setdefault((cluster.switches[a], cluster.switches[b]), []).append((link, trunks[b, a]))
        cables = {(a, b): links for a, b, links in cluster.fabric.cables}
        for (a, b), links in cables.items():
            if a < b:
                lines.setdefault((a, b), []).append((*links, *cables[b, a]))
        rates = [cluster.links[k].bandwidth_Bps for found in lines.values() for pair in found for k in pair]
        slowest = min(rates, default=1.0)
        for (start, end), found in lines.items():
            kinds: dict[float, list[tuple[int, ...]]] = {}
            for pair in found:
                kinds.setdefault(max((cluster.links[k].bandwidth_Bps for k in pair), default=slowest), []).append(pair)
            for n, (rate_Bps, pairs) in enumerate(kinds.items()):
                shift = (n - (len(kinds) - 1) / 2) * min(0.3, 0.8 / len(kinds))  # so that it ends at the box
                (x, y), (x2, y2) = self.at[start], self.at[end]
                every = [k for pair in pairs for k in pair]
                known = [seen for k in every if (seen := busy(cluster.links[k], self.utilisation)) is not None]
                colour = colour_of(max(known)) if known else LINE
                width = width_of(rate_Bps, slowest)
                axes.plot([x + shift, x2 + shift * 0.4], [y, y2], color=colour, linewidth=width, zorder=1)
                if len(pairs) > 1:
                    at = (x + shift + 0.35 * (x2 - x - 0.6 * shift), y + 0.35 * (y2 - y))
                    box(axes, at, f"{len(pairs)} x", "white", bare=True)

    def _devices(self, axes: Axes, host: int) -> None:
        """Draw the devices of a host with a fabric inside as squares on a line below it."""
        found = self.cluster.hosts[host]
        if found.intra is None or (len(self.cluster.hosts) > 1 and not self.cluster.switches):
            return
        x, y = self.at[host][0], self.at[host][1] - 0.42
        xs = [x + (d - (len(found.devices) - 1) / 2) * 0.5 for d in range(len(found.devices))]
        known = [
            b
            for pair in self.cluster.fabric.device_links[host]
            for k in pair
            if (b := busy(self.cluster.links[k], self.utilisation)) is not None
        ]
        colour = colour_of(max(known)) if known else LINE
        axes.plot([x, x], [y, self.at[host][1]], color=colour, linewidth=1.2, zorder=1)
        axes.plot([xs[0], xs[-1]], [y, y], color=colour, linewidth=3, zorder=1)
        axes.scatter(xs, [y] * len(xs), marker="s", s=34, color=DEVICE, edgecolors="#333333", linewidths=0.5, zorder=3)

    def _spans(self, axes: Axes) -> None:
        """Draw many hosts as one box for those on the same switches."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for h, attached in enumerate(self.cluster.fabric.attached):
            groups.setdefault(attached, []).append(h)
        for members in groups.values():
            x = sum(self.at[h][0] for h in members) / len(members)
            box(axes, (x, 0.0), span_of([self.cluster.hosts[h].name for h in members]), HOST)

    def notes(self) -> list[str]:
        """Say in words what the links carry, each kind once."""
        cluster, found = self.cluster, dict[str, None]()
        for h, host in enumerate(cluster.hosts):
            nics = cluster.nic_links_of(h)
            words = f"host: {about_host(host)}"
            if nics and not cluster.fabric.forwarding:
                tx, rx = (cluster.links[k] for k in nics[0])
                words += f"; {len(nics)} NIC{'s' if len(nics) > 1 else ''} of {about_link(tx, rx)}"
            if host.intra is not None:
                out, _ = cluster.fabric.device_links[h][0]
                words += f"; {host.intra.kind} inside, {about_link(cluster.links[out])}"
            found[words] = None
        for _, _, link in cluster.fabric.trunks:
            found[f"between switches: {about_link(cluster.links[link])}"] = None
        for _, _, links in cluster.fabric.cables:
            for link in links:
                found[f"between hosts: {about_link(cluster.links[link])}"] = None
        notes = list(found)
        return notes[:6] + ([f"and {len(notes) - 6} more kinds"] if len(notes) > 6 else [])


def _apart(wanted: list[float], least: float, width: float) -> list[float]:
    """Return ascending positions near `wanted`, at least `least` apart, centred on the middle of `width`."""
    if len(wanted) == 1:
        return wanted
    gaps = [b - a for a, b in pairwise(wanted)]
    if min(gaps) >= least:
        return wanted
    step = max(least, width / len(wanted))
    start = width / 2 - step * (len(wanted) - 1) / 2
    return [start + step * i for i in range(len(wanted))]
