"""Makes a cluster of an InfraGraph.

An instance whose device has XPUs is a host; its NICs are the ends, at its side, of edges that lead to other instances.
What joins XPUs inside, directly or through components that are no CPU, is NVLink unless it calls itself PCI. Every
other instance is a switch, whatever it is made of, or an adapter where all it is joined to is one host from within.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from stanza_sim.base.config import Kind, available
from stanza_sim.base.errors import InputError
from stanza_sim.importers.asked import Asked, device_name, devices_known
from stanza_sim.importers.assumed import CORES
from stanza_sim.importers.infragraph import MOST_EDGES, read_graph
from stanza_sim.importers.infragraph_graph import Device, Edge, Graph, Link, Node
from stanza_sim.importers.native import Imported, Note, heading
from stanza_sim.importers.reading import ForeignFile
from stanza_sim.importers.wired_hosts import (
    FoundCluster,
    FoundHost,
    FoundLink,
    FoundNic,
    Inside,
    host_names,
    latest,
    summed,
    topology_text,
)

NIC = "nic"
"""The level of NICs that the file joins to nothing, for `--rate nic=...`."""

Element = tuple[str, int]
"""One of the copies of an instance."""


def import_infragraph(file: ForeignFile, asked: Asked) -> Imported:
    """Return the topology of an InfraGraph file, with `asked.rates` by link for those links that have none.

    Raises `InputError`, with the line, for a file that contradicts itself, has no XPU, or lacks a rate that matters.
    """
    return _Maker(file=file, asked=asked, graph=read_graph(file)).imported()


@dataclass(slots=True, kw_only=True)
class _Maker:
    file: ForeignFile
    asked: Asked
    graph: Graph
    notes: list[Note] = field(default_factory=list)
    missing: dict[str, int] = field(default_factory=dict)
    """Links that need a rate and have none, with the line of an edge of each."""
    levels: dict[str, None] = field(default_factory=dict)
    """Links whose rates matter, and `NIC` where its rate does."""

    def imported(self) -> Imported:
        """Make the cluster."""
        graph = self.graph
        self.notes += graph.notes
        devices = {name: self._xpus(device) for name, device in graph.devices.items()}
        self._check_some(devices)
        copies = {n: i.total for n, i in graph.instances.items()} or {d: 1 for d, xpus in devices.items() if xpus}
        of = {n: graph.instances[n].device if n in graph.instances else graph.devices[n] for n in copies}
        hosts = [(n, k) for n, count in copies.items() if devices.get(of[n].name) for k in range(count)]
        if not hosts:
            hint = "its hosts are instances of such a device"
            raise self.file.wrong("has no instance of a device with XPUs", None, hint)
        ends, trunks, cables, adapters = self._joined(set(hosts), of)
        inside = {d.name: self._inside(d, devices[d.name]) for d in {id(of[n]): of[n] for n, _ in hosts}.values()}
        names = self._names(hosts, trunks, ends, copies)
        lone = len(hosts) == 1
        if self.asked.hosts is not None and not lone:
            what, hint = f"the file has {len(hosts)} hosts", "leave --hosts out: it repeats a host that is alone"
            raise InputError(what, where=f"--hosts {self.asked.hosts}", hint=hint)
        groups: dict[str, list[FoundHost]] = {}
        for name, k in hosts:
            device = of[name]
            nics = self._nics(ends.get((name, k), []), names) or self._idle(device, adapters.get((name, k), 0), lone)
            nics = nics or self._of_cables([e for e in cables if (name, k) in (_element(e.a), _element(e.b))])
            if not nics and not lone:
                what = f"no edge joins {(f'{name}-{k}' if copies[name] > 1 else name)!r} to another instance"
                line = graph.instances[name].line if name in graph.instances else device.line
                raise self.file.wrong(what, line, "hosts are joined by the edges of the infrastructure")
            made = FoundHost(devices=self._gpus(device, devices[device.name]), inside=inside[device.name], nics=nics)
            groups.setdefault(name, []).append(made)
        links = summed(self._trunks(trunks, names))
        wires = summed(self._cables(cables, groups))
        if NIC not in self.levels:
            self.asked.check_used([NIC], "the file's links join the NICs")
        self._refuse_missing()
        self.asked.check_levels([*self.levels, NIC], self.file.path)
        return Imported(text=self._text(groups, names, links, wires), notes=tuple(self.notes))

    def _text(
        self,
        groups: Mapping[str, Sequence[FoundHost]],
        names: Mapping[Element, str],
        links: tuple[FoundLink, ...],
        wires: tuple[FoundLink, ...],
    ) -> str:
        asked, switches = self.asked, tuple(names.values())
        if asked.hosts is not None and asked.hosts > 1:
            (only,) = groups.values()
            groups = {next(iter(groups)): [only[0]] * asked.hosts}
            switches = ("switch",)
        cores = asked.cores or CORES
        found = FoundCluster(
            name=asked.name or re.sub(r"\s+", "-", self.graph.name) or "cluster",
            description=" ".join(self.graph.about.split()) or "From an InfraGraph.",
            comments=tuple(heading(self.file.path, "an InfraGraph", self.notes)),
            groups=groups,
            switches=switches,
            links=links,
            cables=wires,
            cores=cores,
            remarks={} if asked.cores else {"cores": "not in the file: assumed"},
        )
        return topology_text(found)

    # ---- what there is ----------------------------------------------------------------------------------------------

    def _check_some(self, devices: Mapping[str, Sequence[Node]]) -> None:
        if not any(devices.values()):
            hint = "a component with choice (or type) xpu makes a device a host"
            raise self.file.wrong("has no device with XPUs", None, hint)

    def _xpus(self, device: Device) -> list[Node]:
        return [node for node, kind, _ in self._nodes(device) if kind == "xpu"]

    def _nodes(self, device: Device) -> Iterator[tuple[Node, str, str]]:
        """All components of a device and of devices within it: where, of what kind, and what is said of them."""
        for c in device.components.values():
            nested = self.graph.devices.get(c.name) if c.kind == "device" else None
            for i in range(c.total):
                if nested is None:
                    yield (c.name, i), c.kind, f"{c.name} {c.about}"
                else:
                    yield from (((c.name, i, *node), kind, about) for node, kind, about in self._nodes(nested))

    def _edges(self, device: Device) -> Iterator[Edge]:
        """All edges of a device and of devices within it."""
        yield from device.edges
        for c in device.components.values():
            nested = self.graph.devices.get(c.name) if c.kind == "device" else None
            if nested is not None:
                below = [*self._edges(nested)]
                if len(below) * c.total > MOST_EDGES:
                    raise self.file.wrong(f"device {device.name!r} has more than {MOST_EDGES:,} edges", c.line)
                for i in range(c.total):
                    for e in below:
                        yield Edge(a=(c.name, i, *e.a), b=(c.name, i, *e.b), link=e.link, line=e.line)

    def _gpus(self, device: Device, xpus: Sequence[Node]) -> tuple[str, ...]:
        """The devices of a host: as asked for, else the known one that the description of its XPUs names."""
        if self.asked.device is not None:
            return (device_name(self.asked.device, self.asked.target),) * len(xpus)
        about = {node: text for node, kind, text in self._nodes(device) if kind == "xpu"}
        known = [name for name in available(Kind.DEVICES, self.asked.target) if name != "cpu"]
        found = []
        for node in xpus:
            words = re.findall(r"[A-Za-z0-9]+", f"{about[node]} {device.name} {device.about}")
            fit = [name for word in words for name in known if name.lower() == word.lower()]
            if not fit:
                what = f"the XPUs of {device.name!r} are of no kind that is known ({about[node].strip()[:60]!r})"
                hint = f"state --device, one of {devices_known(self.asked.target)}, or the path of a file of your own"
                raise self.file.wrong(what, device.components[str(node[0])].line, hint)
            found.append(fit[0])
        return tuple(found)

    # ---- rates ------------------------------------------------------------------------------------------------------

    def _rate(self, link: Link, line: int) -> float:
        """A link's rate: the file's, else what was asked; a stand-in where it is missing, which is refused later."""
        self.levels[link.name] = None
        if link.name in self.asked.rates:
            return self.asked.rates[link.name]
        if link.rate_Bps is None:
            self.missing.setdefault(link.name, line)
            return 1.0
        if link.rate_Bps == 0:
            raise self.file.wrong(f"link {link.name!r} has no bandwidth", line, f"or state --rate {link.name}=100Gbps")
        return link.rate_Bps

    def _refuse_missing(self) -> None:
        if self.missing:
            names = list(self.missing)
            what = f"does not say how fast {' and '.join(map(repr, names))} {'is' if len(names) == 1 else 'are'}"
            hint = "state what one link carries each way: " + " ".join(f"--rate {n}=25GB/s" for n in names)
            raise self.file.wrong(what, self.missing[names[0]], hint)

    def _inside(self, device: Device, xpus: Sequence[Node]) -> Inside | None:
        """What joins the XPUs of a device."""
        if len(xpus) < 2:
            return None
        kinds = {node: (kind, about) for node, kind, about in self._nodes(device)}
        mine = {*xpus}
        touching: defaultdict[Node, list[tuple[Node, Edge]]] = defaultdict(list)
        for edge in self._edges(device):
            for a, b in ((edge.a, edge.b), (edge.b, edge.a)):
                if a in mine:
                    touching[b].append((a, edge))
        direct: defaultdict[bool, defaultdict[Node, list[Edge]]] = defaultdict(lambda: defaultdict(list))
        for node, joined in touching.items():
            kind, about = kinds.get(node, ("", ""))
            if kind in ("cpu", "nic", "memory", "port") or (node not in mine and len({x for x, _ in joined}) < 2):
                continue
            for xpu, edge in joined:
                pci = re.search("pci", f"{edge.link.name} {edge.link.about} {about}", re.IGNORECASE) is not None
                direct[pci][xpu].append(edge)
        for pci, kind in ((False, "nvlink"), (True, "pcie")):
            edges = [edge for per in direct[pci].values() for edge in per]
            if not edges or (not pci and len(direct[pci]) < len(xpus)):
                continue
            rates = [sum(self._rate(e.link, e.line) for e in direct[pci].get(xpu, [])) for xpu in xpus]
            least = min((rate for rate in rates if rate), default=0.0)
            if least < max(rates):
                what = f"XPUs of {device.name!r} differ in what joins them: the least, of all, is written"
                self.notes.append(Note(what=what, lines=(device.line,)))
            partners = {x: {e.b if e.a == x else e.a for e in per} for x, per in direct[pci].items()}
            if any(to <= mine and len(to) < len(xpus) - 1 for to in partners.values()):
                what = f"XPUs of {device.name!r} are not all joined to each other: as if a switch did, with these rates"
                self.notes.append(Note(what=what, lines=(device.line,)))
            return Inside(kind=kind, rate_Bps=least, latency_s=latest(edge.link.latency_s for edge in edges))
        what = f"nothing joins the {len(xpus)} XPUs of {device.name!r}: that is left out, state intra"
        self.notes.append(Note(what=what, lines=(device.line,)))
        return None

    # ---- what is joined ---------------------------------------------------------------------------------------------

    def _joined(
        self, hosts: set[Element], of: Mapping[str, Device]
    ) -> tuple[dict[Element, list[tuple[Node, Element, Edge]]], list[Edge], list[Edge], dict[Element, int]]:
        """Sort the edges: those of hosts to switches, between switches, between hosts; and each host's adapters."""
        kinds = {d.name: {node[:2]: kind for node, kind, _ in self._nodes(d)} for d in of.values()}
        meets: defaultdict[Element, set[Element]] = defaultdict(set)
        within: dict[Element, bool] = {}
        for edge in self.graph.edges:
            for a, b in ((edge.a, edge.b), (edge.b, edge.a)):
                here, there = _element(a), _element(b)
                meets[here].add(there)
                if there in hosts and here not in hosts:
                    kind = kinds[of[there[0]].name].get(b[2:4], "")
                    inner = kind not in ("nic", "port", "xpu", "device") and "nic" not in f"{kind} {b[2]}".lower()
                    within[here] = within.get(here, True) and inner
        adapters = {e: next(iter(meets[e])) for e, inner in within.items() if inner and len(meets[e]) == 1}
        ends: defaultdict[Element, list[tuple[Node, Element, Edge]]] = defaultdict(list)
        trunks, cables = [], []
        for edge in self.graph.edges:
            a, b = _element(edge.a), _element(edge.b)
            if a in adapters or b in adapters or a == b:
                continue
            if a in hosts and b in hosts:
                cables.append(edge)
            elif a in hosts:
                ends[a].append((edge.a[2:], b, edge))
            elif b in hosts:
                ends[b].append((edge.b[2:], a, edge))
            else:
                trunks.append(edge)
        count: defaultdict[Element, int] = defaultdict(int)
        for host in adapters.values():
            count[host] += 1
        self._scale_up(ends, kinds, of)
        return ends, trunks, cables, count

    def _scale_up(
        self,
        ends: dict[Element, list[tuple[Node, Element, Edge]]],
        kinds: Mapping[str, Mapping[Node, str]],
        of: Mapping[str, Device],
    ) -> None:
        """Leave out edges of XPUs themselves to a switch where the host has NICs as well: a cluster has one network."""
        unused: list[int] = []
        for host, mine in ends.items():
            is_xpu = [kinds[of[host[0]].name].get(end[:2]) == "xpu" for end, _, _ in mine]
            if any(is_xpu) and not all(is_xpu):
                unused += [edge.line for own, (_, _, edge) in zip(is_xpu, mine, strict=True) if own]
                ends[host] = [entry for own, entry in zip(is_xpu, mine, strict=True) if not own]
        if unused:
            what = "links of XPUs to a switch outside their host, beside those of NICs, are not used"
            self.notes.append(Note(what=what, lines=tuple(unused)))

    def _names(
        self,
        hosts: Sequence[Element],
        trunks: Iterable[Edge],
        ends: Mapping[Element, Sequence[tuple[Node, Element, Edge]]],
        copies: Mapping[str, int],
    ) -> dict[Element, str]:
        """The names of the switches that lead to hosts, in the order of the file; none for a lone host."""
        beside: defaultdict[Element, set[Element]] = defaultdict(set)
        for edge in trunks:
            a, b = _element(edge.a), _element(edge.b)
            beside[a].add(b)
            beside[b].add(a)
        reached = {to for mine in ends.values() for _, to, _ in mine}
        todo = [*reached]
        while todo:
            for other in beside[todo.pop()] - reached:
                reached.add(other)
                todo.append(other)
        unused = {e for e in beside if e not in reached}
        if len(hosts) == 1:
            unused, reached = unused | reached, set()
        if unused:
            lines = {self.graph.instances[name].line for name, _ in unused}
            what = f"{len(unused)} switches that join no hosts are left out"
            self.notes.append(Note(what=what, lines=tuple(lines)))
        order = {name: k for k, name in enumerate(copies)}
        taken = {name for name, _ in hosts}
        return {
            (n, k): f"{'switch-' if n in taken else ''}{n}-{k}" if copies[n] > 1 or n in taken else n
            for n, k in sorted(reached, key=lambda e: (order[e[0]], e[1]))
        }

    def _nics(self, ends: Sequence[tuple[Node, Element, Edge]], names: Mapping[Element, str]) -> tuple[FoundNic, ...]:
        """The NICs of a host: one for each component from which edges lead out, in the order of the components."""
        by_nic: dict[Node, list[tuple[Element, Edge]]] = {}
        for end, to, edge in ends:
            by_nic.setdefault(end[:2], []).append((to, edge))
        found = []
        for nic in sorted(by_nic, key=lambda node: (str(node[0]), int(node[1]))):
            edges = by_nic[nic]
            found.append(
                FoundNic(
                    rate_Bps=sum(self._rate(edge.link, edge.line) for _, edge in edges),
                    latency_s=latest(edge.link.latency_s for _, edge in edges),
                    switches=tuple(dict.fromkeys(names[to] for to, _ in edges if to in names)),
                )
            )
        return tuple(found)

    def _idle(self, device: Device, adapters: int, lone: bool) -> tuple[FoundNic, ...]:
        """The NICs of a lone host that the file joins to nothing: with `--rate nic=...`, else none."""
        own = sum(1 for _, kind, _ in self._nodes(device) if kind == "nic")
        count = adapters or own or sum(c.total for c in device.components.values() if c.kind == "device")
        rate = self.asked.rates.get(NIC)
        if rate is None and self.asked.hosts is not None and self.asked.hosts > 1:
            hint = "state --rate nic=200Gbps"
            raise self.file.wrong(f"does not say how fast the NICs of {device.name!r} are", device.line, hint)
        if not lone or rate is None:
            if lone and count:
                what = f"{count} NICs are joined to nothing: left out, unless --rate nic=... states their rate"
                self.notes.append(Note(what=what, lines=(device.line,)))
            return ()
        self.levels[NIC] = None
        return (FoundNic(rate_Bps=rate),) * max(count, 1)

    def _of_cables(self, cables: Sequence[Edge]) -> tuple[FoundNic, ...]:
        """The NIC of a host that is joined to other hosts directly: as fast as its fastest cable."""
        rates = [self._rate(edge.link, edge.line) for edge in cables]
        return (FoundNic(rate_Bps=max(rates)),) if rates else ()

    def _trunks(self, trunks: Iterable[Edge], names: Mapping[Element, str]) -> Iterator[FoundLink]:
        for edge in trunks:
            a, b = _element(edge.a), _element(edge.b)
            if a in names and b in names:
                yield self._between(names[a], names[b], edge)

    def _cables(self, cables: Iterable[Edge], groups: Mapping[str, Sequence[FoundHost]]) -> Iterator[FoundLink]:
        names = {group: host_names(group, hosts) for group, hosts in groups.items()}
        for edge in cables:
            (a, i), (b, j) = _element(edge.a), _element(edge.b)
            yield self._between(names[a][i], names[b][j], edge)

    def _between(self, a: str, b: str, edge: Edge) -> FoundLink:
        rate_Bps = self._rate(edge.link, edge.line)
        return FoundLink(start=a, end=b, rate_Bps=rate_Bps, latency_s=edge.link.latency_s)


def _element(node: Node) -> Element:
    """Which copy of which instance a component of the infrastructure belongs to."""
    return str(node[0]), int(node[1])
