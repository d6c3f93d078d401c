"""Draws a cluster: as text for a terminal of 80 columns, and (see `picture`) as PNG or SVG.

Hosts, and switches, that are alike share a line: alike in themselves and, layer by layer, in what they are linked to.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stanza_sim.base.units import format_rate
from stanza_sim.cluster import Cluster
from stanza_sim.report.classes import Classes
from stanza_sim.report.drawing import Utilisation, about_host, about_link, busy

WIDTH = 80
_BAR = 20
_ASCII = str.maketrans({"│": "|", "├": "+", "└": "`", "─": "-", "█": "#", "░": ".", "…": "~"})


def draw_text(cluster: Cluster, utilisation: Utilisation | None = None, *, plain: bool = False) -> str:
    """Return a drawing of `cluster` in lines of at most 80 characters, from the top switches down to the devices.

    With `utilisation`, each kind of link has a bar: the mean over the links that are known and, beside it, the
    busiest. `plain` draws with ASCII characters only, for terminals that have no others.
    """
    drawing = _Drawing(cluster=cluster, utilisation=utilisation or {})
    text = "\n".join(_cut(line) for line in drawing.lines()) + "\n"
    return text.translate(_ASCII) if plain else text


def draw_picture(cluster: Cluster, path: Path, utilisation: Utilisation | None = None) -> None:
    """Draw `cluster` into `path`, a `.png` or `.svg`; links are coloured by `utilisation` if it is given.

    Raises `InputError` where matplotlib is not installed, for another suffix, and where `path` cannot be written.
    """
    from stanza_sim.report.picture import save_picture

    save_picture(cluster, path, utilisation or {})


def _cut(line: str) -> str:
    return line if len(line) <= WIDTH else line[: WIDTH - 1] + "…"


@dataclass(slots=True, kw_only=True)
class _Drawing(Classes):
    """Collects the lines."""

    utilisation: Utilisation
    drawn: set[int] = field(default_factory=set)

    def lines(self) -> Iterable[str]:
        """Yield the lines."""
        cluster = self.cluster
        hosts, switches = len(cluster.hosts), len(cluster.switches)
        facts = [f"{hosts} host{'s' if hosts > 1 else ''}", f"{cluster.world_size} ranks"]
        if switches and hosts > 1:
            facts.append(f"{switches} switch{'es' if switches > 1 else ''}")
        several = bool(cluster.fabric.trunks) or cluster.fabric.forwarding
        routing = f"; routing {cluster.fabric.routing.kind}" if several else ""
        yield f"{cluster.name}: {', '.join(facts)}{routing}"
        yield ""
        if hosts == 1:
            switches = 0
        order = sorted(self.members, key=lambda c: (-self.level[self.members[c][0]], self.members[c][0]))
        for c in order:
            if c not in self.drawn and (switches or self.level[self.members[c][0]] == 0):
                yield from self._vertex(c, "", "")
        if cables := [k for ends, k in self.joint.items() if max(ends) < hosts]:
            yield from self._cables([pair for found in cables for pair in found])

    def _vertex(self, c: int, first: str, rest: str) -> Iterable[str]:
        """Yield the class `c` and all that hangs below it."""
        self.drawn.add(c)
        cluster, members = self.cluster, self.members[c]
        hosts, several = len(cluster.hosts), len(members) > 1
        if members[0] < hosts:
            host = cluster.hosts[members[0]]
            count = f"{len(members)} hosts, each " if several else ""
            yield f"{first}{self.names(c)}  {count}{about_host(host)}"
            yield from self._inside(members, rest)
            return
        names = self.names(c)
        noun = f"{len(members)} switches" if several else "switch"
        yield first + (names if names == noun else f"{names}  {noun}")
        planes = [link for s, link in cluster.fabric.backplanes if s + hosts in members]
        if planes:
            yield f"{rest}   backplane {format_rate(cluster.links[planes[0]].bandwidth_Bps)}{' each' * several}"
            yield from self._bars(rest + "   ", [("all", planes)])
        mine = self.level[members[0]]
        below = dict.fromkeys(self.class_of[j] for i in members for _, j in self.near[i] if self.level[j] < mine)
        todo = [d for d in below if d not in self.drawn]
        for d in below:
            if d in self.drawn:
                yield f"{rest}├─ also {self.names(d)}, drawn above"
                yield from self._between(d, c, rest + "│  ")
        for n, d in enumerate(todo):
            last = n == len(todo) - 1
            yield f"{rest}│"
            yield from self._between(d, c, rest + "│  ")
            yield from self._vertex(d, rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  "))

    def _between(self, low: int, high: int, indent: str) -> Iterable[str]:
        """Yield the links between two classes, bars included."""
        pairs = self.between(low, high)
        if not pairs:
            return
        yield f"{indent}{self.about(low, pairs)}"
        yield from self._bars(indent, [("up", [x for x, _ in pairs]), ("down", [y for _, y in pairs])])

    def _inside(self, members: Sequence[int], indent: str) -> Iterable[str]:
        """Yield the fabric inside hosts."""
        cluster = self.cluster
        intra = cluster.hosts[members[0]].intra
        if intra is None:
            return
        found = [pair for h in members for pair in cluster.fabric.device_links[h]]
        yield f"{indent}   inside: {intra.kind} for each device, {about_link(cluster.links[found[0][0]])}"
        yield from self._bars(indent + "   ", [("out", [a for a, _ in found]), ("in", [b for _, b in found])])

    def _cables(self, pairs: Sequence[tuple[int, int]]) -> Iterable[str]:
        """Yield the cables between hosts, those alike on one line."""
        links = self.cluster.links
        kinds: dict[str, list[tuple[int, int]]] = {}
        for x, y in pairs:
            kinds.setdefault(about_link(links[x], links[y]), []).append((x, y))
        yield ""
        for text, found in kinds.items():
            which = f" ({links[found[0][0]].name})" if len(found) == 1 else ""
            yield f"{len(found)} cable{'s' if len(found) > 1 else ''} between hosts{which}: {text}"
            yield from self._bars("", [("there", [x for x, _ in found]), ("back", [y for _, y in found])])

    def _bars(self, indent: str, rows: Iterable[tuple[str, Sequence[int]]]) -> Iterable[str]:
        """Yield a bar for each row of links, if any of them is known."""
        for name, numbers in rows:
            found = [(b, k) for k in numbers if (b := busy(self.cluster.links[k], self.utilisation)) is not None]
            if not found:
                continue
            mean = sum(b for b, _ in found) / len(found)
            most, link = max(found, key=lambda f: (f[0], -f[1]))
            full = round(min(mean, 1.0) * _BAR)
            text = f"{indent}{name:<5} {'█' * full}{'░' * (_BAR - full)} {mean:4.0%}"
            yield text + (f", most {most:.0%}: {self.cluster.links[link].label}" if len(found) > 1 else "")
