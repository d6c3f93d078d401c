"""Reads what ibnetdiscover prints: a block for each switch and adapter, with a line for each port that is used."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from stanza_sim.importers.reading import ForeignFile

EXPECTED = 'the output of ibnetdiscover is expected, with lines such as: Switch 36 "S-..." # "name"'
LANE_GBPS = {
    "SDR": 2.0,
    "DDR": 4.0,
    "QDR": 8.0,
    "FDR10": 10.0,
    "FDR": 14.0625 * 64 / 66,
    "EDR": 25.0,
    "HDR": 50.0,
    "NDR": 100.0,
    "XDR": 200.0,
}
"""Data that a lane carries each way, after the code of its line: 8 of 10 bits up to QDR, 64 of 66 from FDR10 on
(InfiniBand Trade Association, roadmap)."""
_BEGIN = re.compile(r'(Switch|Ca|Rt)\s+(\d{1,4})\s+"([^"\s]{1,80})"\s*(?:#\s*"(.*?)"(.*))?$')
_PORT = re.compile(
    r"\[(\d{1,4})\](?:\[ext [^\]]*\])*(?:\((?:0x)?[0-9a-fA-F]+\))?\s+"
    r'"([^"\s]{1,80})"\[(\d{1,4})\](?:\[ext [^\]]*\])*(?:\((?:0x)?[0-9a-fA-F]+\))?\s*(?:#(.*))?$'
)
_RATE = re.compile(r"\b(\d{1,2})x(SDR|DDR|QDR|FDR10|FDR|EDR|HDR|NDR|XDR)\b")
_OTHER_RATE = re.compile(r"\b\d{1,2}x[A-Z]+\w*")
_AROUND = re.compile(
    r"(vendid|devid|sysimgguid|switchguid|caguid|rtguid|routerguid)=|Chassis |DR path|Spine |Line |Hca |\*"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """A port that is used: the line, the node and port at the other end, and the rate in bytes per second if known."""

    line: int
    other: str
    other_port: int
    rate_Bps: float | None
    rate: str


@dataclass(slots=True, eq=False)
class Node:
    """A switch (`kind` Switch), an adapter (Ca) or a router (Rt): its name in quotes, what it is called, its ports."""

    kind: str
    id: str
    line: int
    ports_in_all: int
    description: str
    ports: dict[int, Port] = field(default_factory=dict)


def read_nodes(file: ForeignFile) -> dict[str, Node]:
    """Return the nodes by their names. Raises `InputError` for what is cut short, or on whose ends two lines differ."""
    nodes: dict[str, Node] = {}
    here: Node | None = None
    for line, text in _lines(file):
        if begun := _BEGIN.match(text):
            here = _begin(file, line, begun, nodes)
        elif text.startswith("["):
            if here is None:
                raise file.wrong("a port before any Switch or Ca", line, EXPECTED)
            _port(file, line, text, here)
        elif _AROUND.match(text):
            here = None
        else:
            raise file.wrong(f"{text[:60]!r} is no line of ibnetdiscover", line, EXPECTED)
    if not nodes:
        raise file.wrong("has no Switch and no Ca", hint=EXPECTED)
    _check_ends(file, nodes)
    return nodes


def _lines(file: ForeignFile) -> Iterator[tuple[int, str]]:
    for i, raw in enumerate(file.lines):
        text = raw.strip()
        if text and not text.startswith("#"):
            yield i + 1, text


def _begin(file: ForeignFile, line: int, begun: re.Match[str], nodes: dict[str, Node]) -> Node:
    kind, ports, name, description = begun[1], int(begun[2]), begun[3], begun[4] or ""
    if (other := nodes.get(name)) is not None:
        raise file.wrong(f"{kind} {name} is there twice, also on line {other.line}", line, "each has one block")
    nodes[name] = Node(kind=kind, id=name, line=line, ports_in_all=ports, description=description.strip(" '"))
    return nodes[name]


def _port(file: ForeignFile, line: int, text: str, here: Node) -> None:
    found = _PORT.match(text)
    if found is None:
        hint = 'such as [1] "S-0001"[2] # "name" lid 4 4xHDR'
        raise file.wrong(f"{text[:60]!r} is no port, or is cut short", line, hint)
    number, after = int(found[1]), re.sub(r'"[^"]*"', "", found[4] or "")  # a name may look like a rate
    if number in here.ports:
        what = f"port {number} of {here.id} is there twice, also on line {here.ports[number].line}"
        raise file.wrong(what, line, "a port has one cable")
    if here.kind == "Switch" and number > here.ports_in_all:
        raise file.wrong(f"port {number} of {here.id}, which has {here.ports_in_all}", line)
    rate = _RATE.search(after)
    if rate is None and (odd := _OTHER_RATE.search(after)):
        raise file.wrong(f"{odd[0]} is not a rate that is known", line, f"known: 4x and {', '.join(LANE_GBPS)}")
    here.ports[number] = Port(
        line=line,
        other=found[2],
        other_port=int(found[3]),
        rate_Bps=int(rate[1]) * LANE_GBPS[rate[2]] * 1e9 / 8 if rate else None,
        rate=rate[0] if rate else "",
    )


def is_aggregation(node: Node) -> bool:
    """Whether an adapter is inside a switch, where it adds up for collectives (SHARP), and no host's."""
    return "Aggregation Node" in node.description


def _check_ends(file: ForeignFile, nodes: dict[str, Node]) -> None:
    """Refuse a cable whose ends do not say the same. An aggregation node needs no block of its own."""
    for node in nodes.values():
        for number, port in node.ports.items():
            other = nodes.get(port.other)
            if other is None:
                if "Aggregation Node" in file.lines[port.line - 1]:
                    continue
                what = f"{port.other}, at port {number} of {node.id}, has no block of its own: the file is cut short"
                raise file.wrong(what, port.line, EXPECTED)
            back = other.ports.get(port.other_port)
            if back is None:
                what = f"port {port.other_port} of {other.id} is not in its block (line {other.line})"
                raise file.wrong(f"{what}: the file is cut short, or was edited", port.line)
            if (back.other, back.other_port) != (node.id, number):
                what = f"leads to port {port.other_port} of {other.id}, which leads to {back.other} (line {back.line})"
                raise file.wrong(what, port.line, "both ends of a cable name each other")
            if back.rate_Bps is not None and port.rate_Bps is not None and back.rate_Bps != port.rate_Bps:
                raise file.wrong(f"{port.rate} here, but {back.rate} at the other end (line {back.line})", port.line)
            if port.other == node.id and port.other_port == number:
                raise file.wrong(f"port {number} of {node.id} leads to itself", port.line)
