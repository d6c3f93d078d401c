"""Reads topologies of SimAI (`Spectrum-X_128g_8gps_400Gbps_H100` and the like), and those of ASTRA-sim's ns-3 backend.

The first line of SimAI's counts nodes, GPUs a server, NVSwitches, switches and links, and names the GPU; ns-3's has
nodes, switches and links only. The numbers of the NVSwitches and switches follow, then one line a link: two nodes, its
rate, its latency, and how often a packet is lost. GPUs have the numbers from 0, those of a server one after another.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite

from stanza_sim.base.config import Kind, available
from stanza_sim.importers.asked import Asked, device_name, devices_known
from stanza_sim.importers.assumed import CORES
from stanza_sim.importers.native import Imported, Note, heading, wrapped
from stanza_sim.importers.reading import ForeignFile
from stanza_sim.importers.wired_hosts import (
    FoundCluster,
    FoundHost,
    FoundLink,
    FoundNic,
    Inside,
    summed,
    topology_text,
)

MOST_LINKS = 100_000
"""More links are more than a topology file can list."""
MOST_NODES = 1_000_000

_HINT = "a link is: node node rate latency errors, such as 0 18 100Gbps 0.0005ms 0"
_RATE = re.compile(r"(\d+\.?\d*(?:[eE][+-]?\d+)?)([kKMGTP]i?)?(bps|b/s|Bps|B/s)")
_TIME = re.compile(r"(\d+\.?\d*(?:[eE][+-]?\d+)?)(s|ms|us|ns|ps|fs)?")
_FACTORS = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_BINARY = {"Ki": 2**10, "ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50}
_SECONDS = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9, "ps": 1e-12, "fs": 1e-15}
_TIERS = ("leaf", "spine", "core")


@dataclass(frozen=True, slots=True)
class _Header:
    nodes: int
    per_server: int
    nvswitches: int
    switches: int
    links: int
    gpu: str
    line: int

    @property
    def gpus(self) -> int:
        return self.nodes - self.nvswitches - self.switches


@dataclass(frozen=True, slots=True)
class _Link:
    a: int
    b: int
    rate_Bps: float
    latency_s: float
    line: int

    def other(self, node: int) -> int:
        return self.b if node == self.a else self.a


def import_simai(file: ForeignFile, asked: Asked) -> Imported:
    """Return the topology of a file.

    Raises `InputError`, with the line, for what contradicts itself, is cut short or cannot be a cluster of servers, and
    for a GPU of which nothing is known unless `asked` names another.
    """
    header, after = _header(file)
    asked.check_levels([], file.path)
    device = _device(file, header, asked)
    special, after = _switches(file, header, after)
    links, lossy = _links(file, header, after)
    notes: list[Note] = []
    if lossy:
        notes.append(Note(what="links that lose packets: losses are not modelled", lines=tuple(lossy)))
    nvswitches = set(special[: header.nvswitches])
    tiers = _tiers(file, header, special, links)
    names = {node: f"{tier}-{node}" for node, tier in tiers.items()}
    hosts = _servers(file, header, nvswitches, names, links, device, notes)
    trunks = [
        FoundLink(start=names[x.a], end=names[x.b], rate_Bps=x.rate_Bps, latency_s=x.latency_s)
        for x in links
        if x.a in names and x.b in names
    ]
    one = len(hosts) == 1
    if one and names:
        notes.append(Note(what=f"there is one server: its {len(names)} switches are left out", lines=(header.line,)))
    joined = summed(trunks)
    if len(joined) < len(trunks):
        notes.append(Note(what="parallel links between two switches are one, with the sum of their rates"))
    cores = asked.cores or CORES
    comments = heading(file.path, "a SimAI topology", notes)
    if len(names) > 1 and not one:
        comments += wrapped("Of equal ways a message takes one by its destination. SimAI hashes: add `routing: ecmp`.")
    found = FoundCluster(
        name=asked.name or file.name,
        description=f"{header.gpus} GPUs, {len(hosts)} servers, {len(names)} switches, from a SimAI topology.",
        comments=tuple(comments),
        groups={"server": hosts},
        switches=() if one else tuple(names.values()),
        links=() if one else joined,
        cores=cores,
        remarks={} if asked.cores else {"cores": "not in the file: assumed"},
    )
    return Imported(text=topology_text(found), notes=tuple(notes))


def _device(file: ForeignFile, header: _Header, asked: Asked) -> str:
    if asked.device is not None:
        return device_name(asked.device, asked.target)
    known = {name.lower(): name for name in available(Kind.DEVICES, asked.target) if name != "cpu"}
    if header.gpu.lower() in known:
        return known[header.gpu.lower()]
    what = f"names the GPU {header.gpu[:40]!r}, of which nothing is known" if header.gpu else "does not name its GPU"
    hint = f"state --device, one of {devices_known(asked.target)}, or the path of a file of your own"
    raise file.wrong(what, header.line, hint)


# ---- lines ---------------------------------------------------------------------------------------------------------


def _words(file: ForeignFile, after: int) -> Iterator[tuple[int, list[str]]]:
    """The words of every line that has some, from the line number `after` (from 0) on, with the line (from 1)."""
    for i in range(after, len(file.lines)):
        if words := file.lines[i].split():
            yield i + 1, words


def _header(file: ForeignFile) -> tuple[_Header, int]:
    """The header, and the index of the line after it."""
    line, words = next(_words(file, 0), (1, []))
    kind = "nodes, GPUs a server, NVSwitches, switches, links and the GPU's name, or nodes, switches and links"
    numbers = [int(word) for word in words if re.fullmatch(r"[0-9]{1,9}", word)]
    gpu = words[-1] if len(words) == 6 and len(numbers) == 5 else ""
    match numbers:
        case [nodes, per_server, nvswitches, switches, links] if len(words) in (5, 6):
            found = _Header(nodes, per_server, nvswitches, switches, links, gpu, line)
        case [nodes, switches, links] if len(words) == 3:
            found = _Header(nodes, 1, 0, switches, links, "", line)
        case _:
            raise file.wrong("has no header of a SimAI topology", line, f"its first line counts {kind}")
    if found.gpus < 1 or found.per_server < 1:
        what = f"{found.nodes} nodes with {found.nvswitches} NVSwitches and {found.switches} switches leave no GPU"
        raise file.wrong(what if found.gpus < 1 else "a server has no GPU", line, f"the header counts {kind}")
    if found.gpus % found.per_server:
        what = f"{found.gpus} GPUs are not whole servers of {found.per_server}"
        raise file.wrong(what, line, "GPUs are the nodes that are neither NVSwitches nor switches")
    if found.nodes > MOST_NODES:
        raise file.wrong(f"{found.nodes:,} nodes are too many", line, f"{MOST_NODES:,} are the most")
    if found.links > MOST_LINKS:
        raise file.wrong(f"{found.links:,} links are too many", line, f"{MOST_LINKS:,} are the most")
    return found, line


def _switches(file: ForeignFile, header: _Header, after: int) -> tuple[list[int], int]:
    """The numbers of NVSwitches and switches, in the file's order, and the index of the line after them."""
    wanted = header.nvswitches + header.switches
    found: list[int] = []
    seen: set[int] = set()
    if wanted == 0:
        return found, after
    for line, words in _words(file, after):
        for word in words:
            if not re.fullmatch(r"[0-9]{1,9}", word):
                what = f"{word[:40]!r} where the number of a switch should be: the header counts {wanted}"
                raise file.wrong(what, line, f"{len(found)} came before it")
            number = int(word)
            if not header.gpus <= number < header.nodes:
                between = f"numbers from {header.gpus} to {header.nodes - 1} are switches"
                raise file.wrong(f"there is no switch {number}", line, f"GPUs have the first numbers; {between}")
            if number in seen:
                raise file.wrong(f"switch {number} is listed twice", line)
            found.append(number)
            seen.add(number)
        if len(found) > wanted:
            raise file.wrong(f"lists {len(found)} switches, but the header counts {wanted}", line)
        if len(found) == wanted:
            return found, line
    raise file.wrong(f"is cut short: {len(found)} of {wanted} switches are listed", len(file.lines))


def _links(file: ForeignFile, header: _Header, after: int) -> tuple[list[_Link], list[int]]:
    """The links, and the lines of those that lose packets."""
    links: list[_Link] = []
    lossy: list[int] = []
    last = header.line
    for line, words in _words(file, after):
        if len(links) == header.links:
            raise file.wrong(f"a line after the last of the {header.links} links that the header counts", line)
        cut = " (the file is cut short)" if line >= len(file.lines) else ""
        if len(words) != 5:
            raise file.wrong(f"{len(words)} values where a link has 5{cut}", line, _HINT)
        ends = [int(word) if re.fullmatch(r"[0-9]{1,9}", word) else -1 for word in words[:2]]
        for word, node in zip(words, ends, strict=False):  # of the first two
            if not 0 <= node < header.nodes:
                hint = f"nodes are numbered from 0 to {header.nodes - 1}"
                raise file.wrong(f"there is no node {word[:40]!r}", line, hint)
        if ends[0] == ends[1]:
            raise file.wrong(f"joins node {ends[0]} to itself", line)
        links.append(_Link(ends[0], ends[1], _rate(file, line, words[2]), _seconds(file, line, words[3]), line))
        if _loss(file, line, words[4]):
            lossy.append(line)
        last = line
    if len(links) < header.links:
        raise file.wrong(f"is cut short: {len(links)} of {header.links} links are there", last)
    return links, lossy


def _rate(file: ForeignFile, line: int, word: str) -> float:
    match = _RATE.fullmatch(word)
    if match is None:
        raise file.wrong(f"{word[:40]!r} is no rate", line, "such as 100Gbps")
    prefix, unit = match[2] or "", match[3]
    value = float(match[1]) * (_BINARY.get(prefix) or _FACTORS[prefix]) / (8 if unit[0] == "b" else 1)
    if not 1e-3 <= value <= 1e18:
        raise file.wrong(f"{word[:40]!r} is no rate of a link", line, "such as 100Gbps")
    return value


def _seconds(file: ForeignFile, line: int, word: str) -> float:
    match = _TIME.fullmatch(word)
    value = float(match[1]) * _SECONDS[match[2] or ""] if match else -1.0
    if not 0 <= value <= 10:
        raise file.wrong(f"{word[:40]!r} is no latency", line, "such as 0.0005ms")
    return value


def _loss(file: ForeignFile, line: int, word: str) -> bool:
    try:
        value = float(word)
    except ValueError:
        value = -1.0
    if not (isfinite(value) and 0 <= value <= 1):
        raise file.wrong(f"{word[:40]!r} is no share of packets that are lost", line, "a number from 0 to 1")
    return value > 0


# ---- what is joined ------------------------------------------------------------------------------------------------


def _tiers(file: ForeignFile, header: _Header, special: Sequence[int], links: Sequence[_Link]) -> dict[int, str]:
    """What a switch is called by how far it is from GPUs. Raises `InputError` for one that leads nowhere."""
    nvswitches = set(special[: header.nvswitches])
    beside: defaultdict[int, set[int]] = defaultdict(set)
    for link in links:
        if link.a not in nvswitches and link.b not in nvswitches:
            beside[link.a].add(link.b)
            beside[link.b].add(link.a)
    tiers: dict[int, str] = {}
    reached, depth = set(range(header.gpus)), 0
    while reached:
        reached = {n for node in reached for n in beside[node] if n >= header.gpus} - tiers.keys() - reached
        tiers |= dict.fromkeys(sorted(reached), _TIERS[min(depth, len(_TIERS) - 1)])
        depth += 1
    alone = [node for node in special if node not in tiers and node not in nvswitches]
    if alone:
        what = f"switch {alone[0]} is joined to nothing that leads to a GPU"
        raise file.wrong(what, header.line, "the file lists its links, one a line")
    return {node: tiers[node] for node in special if node in tiers}


def _servers(
    file: ForeignFile,
    header: _Header,
    nvswitches: set[int],
    names: dict[int, str],
    links: Sequence[_Link],
    device: str,
    notes: list[Note],
) -> list[FoundHost]:
    """The servers: what joins their GPUs inside, and a NIC for each GPU that has links to switches."""
    per = header.per_server
    inside: defaultdict[int, list[_Link]] = defaultdict(list)
    outside: defaultdict[int, list[_Link]] = defaultdict(list)
    server_of: dict[int, int] = {}
    for link in links:
        gpus = [node for node in (link.a, link.b) if node < header.gpus]
        switches = [node for node in (link.a, link.b) if node in nvswitches]
        if len(gpus) == 2 and gpus[0] // per != gpus[1] // per:
            raise file.wrong(f"joins GPUs of two servers of {per}", link.line, "GPUs of servers are joined by switches")
        if switches and len(gpus) != 1:
            raise file.wrong(f"joins NVSwitch {switches[0]} to a switch", link.line, "an NVSwitch is inside a server")
        if switches and server_of.setdefault(switches[0], gpus[0] // per) != gpus[0] // per:
            raise file.wrong(f"joins NVSwitch {switches[0]} to a GPU of a second server of {per}", link.line)
        for gpu in gpus:
            (inside if switches or len(gpus) == 2 else outside)[gpu].append(link)
    servers = range(header.gpus // per)
    return [
        _server(file, header, [*range(s * per, (s + 1) * per)], inside, outside, names, device, notes) for s in servers
    ]


def _server(
    file: ForeignFile,
    header: _Header,
    gpus: Sequence[int],
    inside: defaultdict[int, list[_Link]],
    outside: defaultdict[int, list[_Link]],
    names: dict[int, str],
    device: str,
    notes: list[Note],
) -> FoundHost:
    joined = None
    if len(gpus) > 1 and any(inside[gpu] for gpu in gpus):
        rates = [sum(link.rate_Bps for link in inside[gpu]) for gpu in gpus]
        if (least := min(rates)) == 0:
            what = f"GPU {gpus[rates.index(0)]} has no link inside its server, others of it have"
            raise file.wrong(what, header.line, f"the header says {header.per_server} GPUs a server")
        if least < max(rates):
            what = f"GPUs {gpus[0]} to {gpus[-1]} differ in their rates inside: the least, of all, is written"
            notes.append(Note(what=what))
        late = max(link.latency_s for gpu in gpus for link in inside[gpu])
        joined = Inside(kind="nvlink", rate_Bps=least, latency_s=late)
    nics = []
    for gpu in gpus:
        if mine := outside[gpu]:
            rate_Bps, late = sum(link.rate_Bps for link in mine), max(link.latency_s for link in mine)
            to = tuple(dict.fromkeys(names[link.other(gpu)] for link in mine))
            nics.append(FoundNic(rate_Bps=rate_Bps, latency_s=late, switches=to))
    several = header.gpus > len(gpus)
    if several and not nics:
        raise file.wrong(f"GPUs {gpus[0]} to {gpus[-1]} have no link to a switch", header.line)
    if several and len(gpus) % len(nics):
        what = f"{len(nics)} of the {len(gpus)} GPUs {gpus[0]} to {gpus[-1]} have links to switches: all share these"
        notes.append(Note(what=what))
    nics = nics if several else [FoundNic(rate_Bps=nic.rate_Bps, latency_s=nic.latency_s) for nic in nics]
    return FoundHost(devices=(device,) * len(gpus), inside=joined, nics=tuple(nics))
