"""Writes a network of switches as a native cluster file: groups of hosts that are alike, switches, links."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stanza_sim.importers import gpus as known
from stanza_sim.importers.asked import Asked, device_name, said_rate
from stanza_sim.importers.assumed import CORES, EFFICIENCY, PRESET
from stanza_sim.importers.hostlist import fold
from stanza_sim.importers.native import Note, aligned, heading, rate_text, scalar
from stanza_sim.importers.reading import ForeignFile

HOST_LEVELS = ("nic", "nvlink", "pcie")


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """A host: its lines, and for each of its NICs the switch that it is on, with the rate in bytes per second."""

    name: str
    lines: tuple[int, ...]
    nics: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """A switch: its name in the native file, its level (1 where hosts are), and what its comment says."""

    name: str
    level: int
    comment: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Trunk:
    """What joins two switches: the rate of all cables together, in bytes per second each way, and its comment."""

    lower: str
    upper: str
    rate_Bps: float
    comment: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Inside:
    """What is in a host, which no file of a network says: lines of YAML with comments, and notes."""

    rows: tuple[tuple[str, str, str], ...]
    """Key, value in one line, comment."""
    notes: tuple[Note, ...]
    description: str


def inside(file: ForeignFile, asked: Asked) -> Inside:
    """Return what options say of hosts. Raises `InputError` where they contradict each other or too little is said."""
    notes: list[Note] = []
    cores, comment = (asked.cores, "--cores") if asked.cores else (CORES, "assumption; --cores states them")
    rows = [("cores", str(cores), comment)]
    if asked.device is None:
        if asked.devices_per_host is not None:
            raise file.wrong("--devices-per-host without --device", hint="state --device too, such as --device A100")
        if levels := [level for level in ("nvlink", "pcie") if level in asked.rates]:
            raise file.wrong(f"--rate {levels[0]} without --device", hint="state --device too, such as --device A100")
        if asked.cores is None:
            hint = "state --device and --devices-per-host or, for hosts without devices, --cores"
            raise file.wrong("does not say what its hosts have", hint=hint)
        return Inside(rows=tuple(rows), notes=(), description=f"{cores} cores a host")
    device, count = device_name(asked.device, asked.target), asked.devices_per_host or 1
    rows.append(("devices", f"[{', '.join([scalar(device)] * count)}]", "--device and --devices-per-host"))
    if count > 1:
        rows.append(_intra(file, asked, device, notes))
    else:
        asked.check_used(["nvlink", "pcie"], "a host has one device")
    return Inside(rows=tuple(rows), notes=tuple(notes), description=f"{count} {device.rpartition('/')[2]} a host")


def _intra(file: ForeignFile, asked: Asked, device: str, notes: list[Note]) -> tuple[str, str, str]:
    generation = known.generation_of(device)
    nvlink, comment = asked.rates.get("nvlink"), said_rate("nvlink", asked.rates.get("nvlink", 0.0))
    if nvlink is None and generation is not None and (links := known.most_nvlinks(generation.sm)) > 4:
        link_Bps = known.nvlink_Bps(generation.sm) or 0.0
        nvlink = links * link_Bps
        comment = f"assumption: {links} NVLinks of {rate_text(link_Bps)}, {known.NVLINK_SOURCE}"
        notes.append(Note(what="NVLink is taken to join the devices of a host; --rate nvlink=none if PCI does"))
    if nvlink:
        asked.check_used(["pcie"], "NVLink joins the devices of a host (--rate nvlink=none if it does not)")
        return "intra", f"{{kind: nvlink, rate: {rate_text(nvlink)}, latency: 2us}}", comment
    pci, comment = asked.rates.get("pcie"), said_rate("pcie", asked.rates.get("pcie", 0.0))
    if pci is None:
        pci = known.pci_Bps(generation.pci, 16) if generation is not None else None
        if generation is None or pci is None:
            hint = "state --rate nvlink=RATE or --rate pcie=RATE, of all links of a device each way"
            raise file.wrong(f"what joins several {asked.device} in a host is not known", hint=hint)
        comment = f"assumption: {generation.pci:g} GT/s x16, {known.PCI_SOURCE}"
    return "intra", f"{{kind: pcie, rate: {rate_text(pci)}, latency: 2us}}", comment


def fabric_file(
    *,
    hosts: Sequence[Attached],
    switches: Sequence[Switch],
    trunks: Sequence[Trunk],
    inside: Inside,
    name: str,
    source: str,
    program: str,
    notes: Sequence[Note],
    levels: Mapping[int, str],
) -> str:
    """Return the text of the native file. Hosts with NICs of the same rates on the same switches become one group."""
    groups: dict[tuple[tuple[str, float], ...], list[Attached]] = {}
    for host in hosts:
        groups.setdefault(host.nics, []).append(host)
    taken = {switch.name for switch in switches}
    stems = {_stem(name) for name in taken}
    named: list[tuple[str, list[Attached]]] = []
    for nics, members in groups.items():
        title = members[0].name if len(members) == 1 else f"{nics[0][0]}-node"
        named.append((_unique(title, taken, stems), members))
    lines = heading(source, program, notes)
    lines += [
        f"name: {scalar(name)}",
        f"description: {scalar(f'{len(hosts)} hosts, {inside.description}, on {len(switches)} switches.')}",
        "hosts:",
        *_hosts(named, inside),
        "switches:",
        *aligned((f"  - name: {scalar(switch.name)}", switch.comment) for switch in switches),
        "links:",
    ]
    rows: list[tuple[str, str]] = []
    for group, members in named:
        rows += _attachments(group, [switch for switch, _ in members[0].nics])
    lines += aligned(rows)
    if trunks:
        lines.append("  # The efficiency of links between switches is an assumption: that of the NICs' preset.")
    for level in sorted({switch.level for switch in switches}):
        below = {switch.name for switch in switches if switch.level == level}
        of_level = [trunk for trunk in trunks if trunk.lower in below]
        if of_level:
            lines.append(f"  # {levels[level]}")
        lines += aligned(
            (
                f"  - {{from: {scalar(trunk.lower)}, to: {scalar(trunk.upper)},"
                f" rate: {rate_text(trunk.rate_Bps, bits=True)}, efficiency: {EFFICIENCY}}}",
                trunk.comment,
            )
            for trunk in of_level
        )
    if len(trunks) >= len(switches):
        lines += aligned(
            [("routing: spread", "assumption: all shortest ways alike; `shortest`: one, by the destination")]
        )
    return "\n".join(lines) + "\n"


def _stem(name: str) -> str:
    return re.sub(r"-\d+$", "", name)


def _unique(title: str, taken: set[str], stems: set[str]) -> str:
    """A name for a group that nothing has, and whose hosts (`name-0`) nothing has either."""
    name, i = title, 1
    while name in taken or name in stems or _stem(name) in taken:
        i += 1
        name = f"{title}-host{i}"
    taken.add(name)
    stems.add(_stem(name))
    return name


def _hosts(named: Sequence[tuple[str, Sequence[Attached]]], inside: Inside) -> list[str]:
    """The groups. What is inside is stated by the first, NICs by the first that has such: the others refer to it."""
    lines: list[str] = []
    anchors: dict[tuple[float, ...], str] = {}
    for g, (group, members) in enumerate(named):
        rates = tuple(rate for _, rate in members[0].nics)
        rows = [(f"  - name: {scalar(group)}", _members(members))]
        if len(members) > 1:
            rows.append((f"    count: {len(members)}", ""))
        for key, value, comment in inside.rows:
            rows.append((f"    {key}: &{key} {value}", comment) if g == 0 else (f"    {key}: *{key}", ""))
        rows += _nics(rates, anchors)
        lines += aligned(rows) if any("&" in text for text, _ in rows) else aligned([_in_one_line(rows)])
    return lines


def _in_one_line(rows: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """A group that states nothing of its own, with the comment of its first row."""
    inner = ", ".join(text.strip().removeprefix("- ") for text, _ in rows)
    return f"  - {{{inner}}}", rows[0][1]


def _nics(rates: tuple[float, ...], anchors: dict[tuple[float, ...], str]) -> list[tuple[str, str]]:
    """The NICs of a group, or a reference to those of another."""
    alike = len(set(rates)) == 1
    if (anchor := anchors.get(rates)) is not None:
        of_several = [(f"    nics: {len(rates)}", "")] if alike and len(rates) > 1 else []
        return [*of_several, (f"    {'nic' if alike else 'nics'}: *{anchor}", "")]
    anchor = anchors[rates] = f"nic{len(anchors) + 1}" if anchors else "nic"
    comment = "the preset is an assumption: latency and overhead are not in the file"
    each = [f"{{preset: {PRESET}, rate: {rate_text(rate, bits=True)}}}" for rate in rates]
    if not alike:
        return [(f"    nics: &{anchor}", comment), *((f"      - {one}", "") for one in each)]
    of_several = [(f"    nics: {len(rates)}", "")] if len(rates) > 1 else []
    return [*of_several, (f"    nic: &{anchor} {each[0]}", comment)]


def _members(members: Sequence[Attached]) -> str:
    names = fold(host.name for host in members)
    return names if len(names) <= 2000 else f"{names[:2000]}..."


def _attachments(group: str, switches: Sequence[str]) -> list[tuple[str, str]]:
    if len(set(switches)) == 1:
        return [(f"  - {{from: {scalar(group)}, to: {scalar(switches[0])}}}", "")]
    return [(f"  - {{from: {scalar(group)}, to: {scalar(switch)}, nic: {i}}}", "") for i, switch in enumerate(switches)]
