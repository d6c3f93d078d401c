"""Hosts and switches of a cluster that are alike: in themselves and, layer by layer, in what they are linked to."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from stanza_sim.cluster import Cluster, LinkKind
from stanza_sim.report.drawing import about_link, alike, levels, span_of

Pair = tuple[int, int]
"""The links of both directions."""


@dataclass(slots=True, kw_only=True)
class Classes:
    """The classes of `cluster`. Vertices are hosts from 0, then switches.

    `near[v]` are the kind of link to each neighbour, and that neighbour; `joint` the links between two vertices;
    `members[c]` the vertices of class c, `class_of[v]` the class of each and `level[v]` its layer, 0 for hosts.
    """

    cluster: Cluster
    near: list[list[tuple[Hashable, int]]] = field(init=False)
    joint: dict[tuple[int, int], list[Pair]] = field(default_factory=dict)
    members: dict[int, list[int]] = field(default_factory=dict)
    class_of: list[int] = field(init=False)
    level: list[int] = field(init=False)

    def __post_init__(self) -> None:
        cluster = self.cluster
        hosts, fabric = len(cluster.hosts), cluster.fabric
        self.near = [[] for _ in range(hosts + len(cluster.switches))]
        for h in range(hosts):
            for tx, rx in cluster.nic_links_of(h):
                for s in cluster.ports()[tx // 2] if not fabric.forwarding else ():
                    self._link(h, hosts + s, tx, rx)
        trunks = {(a, b): link for a, b, link in fabric.trunks}
        for (a, b), link in trunks.items():
            if a < b:
                self._link(hosts + a, hosts + b, link, trunks[b, a])
        cables = {(a, b): links for a, b, links in fabric.cables}
        for (a, b), links in cables.items():
            if a < b and links:
                self._link(a, b, links[0], cables[b, a][0])
        planes = {s: cluster.links[link].bandwidth_Bps for s, link in fabric.backplanes}
        ranks = [0] * hosts
        for at in cluster.placement:
            ranks[at.host] += 1

        def looks(i: int) -> Hashable:
            if i >= hosts:
                return "switch", planes.get(i - hosts)
            host = cluster.hosts[i]
            return host.cores, host.devices, host.device_speed, host.intra, host.nics, ranks[i]

        self.class_of = alike(len(self.near), looks, self.near)
        self.level = [0] * hosts + levels(cluster)
        for i, c in enumerate(self.class_of):
            self.members.setdefault(c, []).append(i)

    def _link(self, a: int, b: int, there: int, back: int) -> None:
        """Note that `a` and `b` are joined."""
        links = self.cluster.links
        ways = [(links[k].bandwidth_Bps, links[k].latency_s) for k in (there, back)]
        self.near[a].append((tuple(ways), b))
        self.near[b].append((tuple(reversed(ways)), a))
        self.joint.setdefault((a, b), []).append((there, back))

    def names(self, c: int) -> str:
        """The names of a class in short."""
        named = [*(host.name for host in self.cluster.hosts), *self.cluster.switches]
        return span_of([named[i] for i in self.members[c]])

    def between(self, low: int, high: int) -> list[Pair]:
        """The links between two classes, those towards `high` first."""
        high_members = set(self.members[high])
        pairs: list[Pair] = []
        for a in self.members[low]:
            for b in sorted({j for _, j in self.near[a] if j in high_members}):
                pairs += self.joint.get((a, b), []) + [(x, y) for y, x in self.joint.get((b, a), [])]
        return pairs

    def about(self, low: int, pairs: Sequence[Pair]) -> str:
        """`8 NICs each: 194 Gbps goodput, 3 us`: the links of a class to one above."""
        links, size = self.cluster.links, len(self.members[low])
        each = len(pairs) / size
        noun = "NIC" if links[pairs[0][0]].kind is LinkKind.SEND else "link"
        number = f"{each:g} {noun}{'s' if each != 1 else ''}{' each' if size > 1 else ''}"
        return f"{number}: {about_link(links[pairs[0][0]], links[pairs[0][1]])}"
