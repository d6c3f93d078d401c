"""Makes a network of what ibnetdiscover prints of an InfiniBand subnet: its switches, its cables and its hosts' ports.

Levels are counted from the hosts: switches that hosts are on have level 1, and the others have one more than the
lowest to which they have a cable.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from stanza_sim.importers.asked import Asked
from stanza_sim.importers.fabric_file import HOST_LEVELS, Attached, Switch, Trunk, fabric_file, inside
from stanza_sim.importers.hostlist import MOST_HOSTS
from stanza_sim.importers.ib_blocks import Node, Port, is_aggregation, read_nodes
from stanza_sim.importers.native import Imported, Note, lines_text
from stanza_sim.importers.reading import ForeignFile

_UNNAMED = re.compile(r"(MT\d+|Mellanox|ConnectX|localhost|HCA-|InfiniHost|hfi1|QLogic)\b", re.IGNORECASE)


def import_ibnetdiscover(file: ForeignFile, asked: Asked) -> Imported:
    """Return the native file of a subnet. Raises `InputError` for what is wrong, and for what has to be asked for."""
    nodes = read_nodes(file)
    notes: list[Note] = []
    switches = {node.id: node for node in nodes.values() if node.kind == "Switch"}
    if not switches:
        raise file.wrong("has no switch", next(iter(nodes.values())).line, "write a cable between two hosts by hand")
    adapters = _adapters(nodes, notes)
    levels = _levels(file, switches, adapters)
    known = [f"level{level}" for level in sorted(set(levels.values()))]
    asked.check_levels((*HOST_LEVELS, *known), file.path)
    names = _switch_names(switches.values())
    hosts = _hosts(file, adapters, switches, names, asked)
    trunks = _trunks(file, switches, levels, names, asked)
    of_hosts = inside(file, asked)
    notes += of_hosts.notes
    text = fabric_file(
        hosts=hosts,
        switches=[
            Switch(name=names[node.id], level=levels[node.id], comment=f"{node.id}, line {node.line}")
            for node in sorted(switches.values(), key=lambda node: levels[node.id])
        ],
        trunks=trunks,
        inside=of_hosts,
        name=asked.name or file.name,
        source=file.path,
        program="the output of ibnetdiscover",
        notes=notes,
        levels={level: f"level {level} and up; all cables between two switches together" for level in levels.values()},
    )
    return Imported(text=text, notes=tuple(notes))


def _adapters(nodes: Mapping[str, Node], notes: list[Note]) -> list[Node]:
    """The adapters of hosts; what is none is said."""
    found = [node for node in nodes.values() if node.kind == "Ca" and not is_aggregation(node)]
    aggregation = [node.line for node in nodes.values() if node.kind == "Ca" and is_aggregation(node)]
    aggregation += [port.line for node in nodes.values() for port in node.ports.values() if port.other not in nodes]
    if aggregation:
        what = "aggregation nodes (SHARP), which are in switches, are not used"
        notes.append(Note(what=what, lines=tuple(aggregation)))
    if routers := tuple(node.line for node in nodes.values() if node.kind == "Rt"):
        notes.append(Note(what="routers to other subnets are not used", lines=routers))
    return found


# ---- switches --------------------------------------------------------------------------------------------------------


def _levels(file: ForeignFile, switches: Mapping[str, Node], adapters: Sequence[Node]) -> dict[str, int]:
    """The level of each switch. Raises `InputError` where no host is."""
    near: dict[str, int] = {}
    for node in adapters:
        for port in node.ports.values():
            if port.other in switches:
                near[port.other] = 1
    if not near:
        raise file.wrong("has no Ca of a host on a switch", next(iter(switches.values())).line)
    ready = list(near)
    for name in ready:  # it grows meanwhile
        for port in switches[name].ports.values():
            if port.other in switches and port.other not in near:
                near[port.other] = near[name] + 1
                ready.append(port.other)
    apart = [node for name, node in switches.items() if name not in near]
    if apart:
        raise file.wrong(f"the switch {apart[0].id} is not joined to any host's", apart[0].line, "remove it")
    return near


def _switch_names(switches: Iterable[Node]) -> dict[str, str]:
    """What switches are called in the native file: as short as tells them apart."""
    switches = list(switches)
    found: dict[str, str] = {}
    taken: set[str] = set()
    left = switches
    for short in (_bare, _bare_with_chip, lambda node: node.description, lambda node: node.id):
        uses = Counter(short(node) for node in switches)
        for node in left:
            name = short(node)
            if name and uses[name] == 1 and name not in taken:
                found[node.id] = name
                taken.add(name)
        left = [node for node in left if node.id not in found]
    return found


def _bare(node: Node) -> str:
    """`MF0;name:MQM8700/U1` is `name`."""
    return node.description.rpartition(";")[2].partition(":")[0].strip()


def _bare_with_chip(node: Node) -> str:
    """`MF0;name:MCS8500/L01/U1`, a chip of a large switch, is `name/L01`."""
    chip = node.description.rpartition(":")[2].partition("/")[2].removesuffix("/U1")
    return f"{_bare(node)}/{chip}" if chip else ""


@dataclass(slots=True)
class _Cables:
    """The cables between two switches."""

    rates: list[float]
    said: list[str]
    lines: list[int]


def _trunks(
    file: ForeignFile,
    switches: Mapping[str, Node],
    levels: Mapping[str, int],
    names: Mapping[str, str],
    asked: Asked,
) -> list[Trunk]:
    """What joins switches, all cables of a pair together."""
    cables: dict[tuple[str, str], _Cables] = {}
    place = {name: i for i, name in enumerate(switches)}
    for node in switches.values():
        for number, port in node.ports.items():
            if port.other not in switches or (port.other, port.other_port) <= (node.id, number):
                continue
            if port.other == node.id:
                raise file.wrong(f"a cable from {node.id} to itself", port.line, "remove it")
            lower, upper = sorted((node.id, port.other), key=lambda name: (levels[name], place[name]))
            found = cables.setdefault((lower, upper), _Cables([], [], []))
            rate = _rate(file, port, switches[port.other].ports[port.other_port], f"level{levels[lower]}", asked)
            found.rates.append(rate)
            found.said.append(port.rate or f"--rate level{levels[lower]}")
            found.lines.append(port.line)
    return [
        Trunk(lower=names[lower], upper=names[upper], rate_Bps=sum(found.rates), comment=_said(found))
        for (lower, upper), found in cables.items()
    ]


def _said(cables: _Cables) -> str:
    counts = Counter(cables.said)
    said = " and ".join(rate if n == 1 else f"{n} cables of {rate}" for rate, n in counts.items())
    return f"{said}, line{'s' * (len(cables.lines) > 1)} {lines_text(cables.lines)}"


def _rate(file: ForeignFile, port: Port, back: Port | None, level: str, asked: Asked) -> float:
    """The rate of a cable: as asked for, else as either end says."""
    if level in asked.rates:
        return asked.rates[level]
    rate = port.rate_Bps if port.rate_Bps is not None else back.rate_Bps if back is not None else None
    if rate is None:
        what = "does not say how fast this cable is"
        raise file.wrong(what, port.line, f"state --rate {level}=RATE, of one cable each way, such as 200Gbps")
    return rate


# ---- hosts -----------------------------------------------------------------------------------------------------------


def _hosts(
    file: ForeignFile, adapters: Sequence[Node], switches: Mapping[str, Node], names: Mapping[str, str], asked: Asked
) -> list[Attached]:
    """The hosts: adapters whose descriptions begin with one name are of one host, in the order of what follows it."""
    by_host: dict[str, list[tuple[list[tuple[int, int, str]], Node]]] = {}
    for node in adapters:
        host, _, adapter = node.description.partition(" ")
        if not host or _UNNAMED.match(node.description):
            host, adapter = node.id, ""
        by_host.setdefault(host, []).append((_natural(adapter or node.id), node))
    if len(by_host) > MOST_HOSTS:
        raise file.wrong(f"has {len(by_host):,} hosts", hint=f"{MOST_HOSTS:,} are the most")
    hosts = []
    for host, found in by_host.items():
        nics: list[tuple[str, float]] = []
        for _, node in sorted(found, key=lambda pair: pair[0]):
            for _, port in sorted(node.ports.items()):
                if port.other not in switches:
                    raise file.wrong(f"a cable from {host} to what is no switch", port.line, "hosts are on switches")
                back = switches[port.other].ports[port.other_port]
                nics.append((names[port.other], _rate(file, port, back, "nic", asked)))
        if nics:
            lines = tuple(node.line for _, node in found)
            hosts.append(Attached(name=host, lines=lines, nics=tuple(nics)))
    return hosts


def _natural(text: str) -> list[tuple[int, int, str]]:
    """A key by which mlx5_10 comes after mlx5_2."""
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in re.split(r"(\d{1,9})", text)]
