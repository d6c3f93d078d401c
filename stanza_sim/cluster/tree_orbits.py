"""Orbits of fabrics that are trees once parallel switches count as one: fat-trees, leaves and spines, plain trees.

Switches with hosts are told apart; all others are refined into *cells*, as in colour refinement of graphs: switches of
one cell have as many links of each kind to each other cell as each other. So there are as many walks of one length from
a switch with hosts to each switch of a cell, and back, and where messages are spread over all shortest ways, all links
between two cells carry the same share of each. If the cells form a tree, there is one way through it, and hosts, links
and pairs of hosts are alike where an automorphism of the tree maps one on the other. Labels of subtrees find those
(Aho, Hopcroft, Ullman: The Design and Analysis of Computer Algorithms, 1974, section 3.2), in time that is linear in
hosts and links: pairs are alike if their hosts are and if they meet at the same depth.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from stanza_sim.cluster.hardware import RoutingKind
from stanza_sim.cluster.orbits import Network, Orbits, host_looks, link_classes, link_looks

_Path = tuple[int, ...]
"""Cells, each next to the one before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeOrbits(Orbits):
    """Classes where cells of switches form a tree."""

    _paths: tuple[_Path, ...] = field(repr=False)
    """For each host, the cells from the root down to it."""

    @property
    def of_tree(self) -> bool:
        """See `Orbits.of_tree`: whatever is on one host goes with it."""
        return True

    def pair_class(self, src_host: int, dst_host: int, src_nic: int = 0, dst_nic: int = 0) -> int:
        """Return the class of the flow between two different hosts."""
        number = 0
        for a, b in zip(self._paths[src_host], self._paths[dst_host], strict=False):
            if a != b:
                break
            number += 1
        for digit in (self.host_class[src_host], self.host_class[dst_host], src_nic, dst_nic):
            number = number * len(self.host_class) + digit
        return number


def tree_orbits(cluster: Network, colour: Sequence[int] | None, marks: Mapping[int, Hashable]) -> TreeOrbits | None:
    """Return the classes, if every host may send to every other; None where cells are no tree.

    `colour` tells hosts apart and `marks` links. Hosts must have all their NICs at one switch.
    """
    fabric, ports = cluster.fabric, cluster.ports()
    if fabric.forwarding or fabric.cables or fabric.routing.host_ways or fabric.routing.switch_ways:
        return None
    attached = [{s for tx, _ in cluster.nic_links_of(h) for s in ports[tx // 2]} for h in range(len(cluster.hosts))]
    if any(len(switches) != 1 for switches in attached):
        return None
    at = [min(switches) for switches in attached]
    looks = link_looks(cluster, marks)
    cells = _Cells(cluster, looks, set(at))
    if fabric.routing.kind is not RoutingKind.SPREAD and any(len(links) > 1 for links in cells.ways.values()):
        return None
    paths = cells.tree()
    if paths is None:
        return None
    owns = list(zip(host_looks(cluster, looks), colour or [0] * len(at), strict=True))
    return _labelled(cluster, owns, [paths[cells.of[s]] for s in at], cells, paths)


class _Cells:
    """Cells of switches: `of[switch]`, their backplanes, and the links from each cell to each other."""

    def __init__(self, cluster: Network, looks: Sequence[int], with_hosts: set[int]) -> None:
        fabric = cluster.fabric
        planes = dict(fabric.backplanes)
        size = 1 + max([*with_hosts, *planes, *(s for a, b, _ in fabric.trunks for s in (a, b))])
        of = _numbers((s if s in with_hosts else -1, looks[planes[s]] if s in planes else -1) for s in range(size))
        count = 0
        while count != (count := max(of)):
            near: list[list[tuple[int, int, int]]] = [[] for _ in range(size)]
            for a, b, link in fabric.trunks:
                near[a].append((0, looks[link], of[b]))
                near[b].append((1, looks[link], of[a]))
            of = _numbers((own, *sorted(found)) for own, found in zip(of, near, strict=True))
        self.of, self.count, self.looks = of, count + 1, looks
        self.planes: list[list[int]] = [[] for _ in range(self.count)]
        for s, plane in planes.items():
            self.planes[of[s]].append(plane)
        self.ways: dict[tuple[int, int], list[int]] = defaultdict(list)
        for a, b, link in fabric.trunks:
            if of[a] != of[b]:
                self.ways[of[a], of[b]].append(link)

    def tree(self) -> list[_Path] | None:
        """Return the path from the middle of the tree to each cell; None if cells and links are no tree.

        Where the middle is between two cells, -1 stands for it. Links between two cells must be alike.
        """
        alike = all(len({self.looks[k] for k in links}) == 1 for links in self.ways.values())
        if not alike or len(self.ways) != 2 * (self.count - 1) or any((b, a) not in self.ways for a, b in self.ways):
            return None
        near: list[list[int]] = [[] for _ in range(self.count)]
        for a, b in self.ways:
            near[a].append(b)
        end = max(_paths([(0,)], near), key=len)[-1]
        paths = _paths([(end,)], near)
        if not all(paths):
            return None
        longest = max(paths, key=len)
        half = len(longest) // 2
        return _paths(
            [longest[half : half + 1]] if len(longest) % 2 else [(-1, c) for c in longest[half - 1 : half + 1]], near
        )


def _paths(starts: Iterable[_Path], near: Sequence[Sequence[int]]) -> list[_Path]:
    """The path to each cell that `starts` lead to; () to no cell that they do not."""
    found: list[_Path] = [()] * len(near)
    queue = list(starts)
    for path in queue:
        found[path[-1]] = path
    for path in queue:
        for c in near[path[-1]]:
            if not found[c]:
                found[c] = (*path, c)
                queue.append(found[c])
    return found


def _labelled(
    cluster: Network, owns: Sequence[Hashable], at: Sequence[_Path], cells: _Cells, paths: Sequence[_Path]
) -> TreeOrbits:
    """Return the classes; `owns` is what tells each host apart, `at` the path to its cell, `paths` those to cells."""
    looks = cells.looks
    below: list[list[int]] = [[] for _ in paths]
    """What is right below each cell: labels of hosts, and of cells with the links to them."""
    own = _numbers(owns)
    for h, path in enumerate(at):
        below[path[-1]].append(own[h])
    ids: dict[Hashable, int] = {}
    label = [0] * len(paths)
    downward = sorted(range(len(paths)), key=lambda c: len(paths[c]))
    parent = [path[-2] if len(path) > 1 else -1 for path in paths]
    between = [c for c in downward if len(paths[c]) == 2 and paths[c][0] == -1]
    if len(between) == 2:  # the middle of the tree is the link between these
        parent[between[0]], parent[between[1]] = between[1], between[0]
    for c in reversed(downward):
        sides = [cells.ways.get(ends, []) for ends in ((c, parent[c]), (parent[c], c))]
        joined = [(len(side), looks[side[0]]) for side in sides if side]
        planes = (len(cells.planes[c]), *{looks[k] for k in cells.planes[c]})
        label[c] = -1 - ids.setdefault((*joined, planes, *sorted(below[c])), len(ids))
        if len(paths[c]) > 1 and paths[c][-2] >= 0:
            below[parent[c]].append(label[c])
    ids.clear()
    orbit = [0] * len(paths)
    for c in downward:
        above = orbit[parent[c]] if len(paths[c]) > 1 and paths[c][-2] >= 0 else -1
        orbit[c] = ids.setdefault((above, label[c]), len(ids))
    hosts = tuple(_numbers((orbit[path[-1]], own[h]) for h, path in enumerate(at)))
    keys: dict[int, Hashable] = {}
    above_all = set(orbit).intersection(*({orbit[c] for c in path if c >= 0} for path in at))
    for (a, b), links in cells.ways.items():
        back = cells.ways[b, a]
        side, c = ("up", a) if parent[a] == b else ("down", b)
        if orbit[c] in above_all and len(links) == len(back) and looks[links[0]] == looks[back[0]]:
            side = "both"  # what crosses one of these links on its way up crosses another on its way down
        keys |= dict.fromkeys(links, (side, orbit[c]))
    for c, own_planes in enumerate(cells.planes):
        keys |= dict.fromkeys(own_planes, ("plane", orbit[c]))
    return TreeOrbits(
        host_class=hosts,
        link_class=link_classes(cluster, hosts, keys),
        _paths=tuple(at),
    )


def _numbers(keys: Iterable[Hashable]) -> list[int]:
    """Return the number of each key, from 0 in the order of first occurrence."""
    ids: dict[Hashable, int] = {}
    return [ids.setdefault(key, len(ids)) for key in keys]
