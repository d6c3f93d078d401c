"""Writes what a format says of one host as a native cluster file: one host group with a count, on one switch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stanza_sim.importers.native import Note, aligned, heading, rate_text, scalar, wrapped


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """A value of the native file, and what its comment says of where it comes from."""

    value: float
    comment: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """A NIC: its rate in bytes per second each way, the preset of its transport, and where it comes from."""

    rate_Bps: float
    preset: str
    comment: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """The PCI tree of a host whose devices talk over it; see `stanza_sim.cluster.PcieTree`."""

    switches: tuple[tuple[int, ...], ...] = ()
    switches_comment: str = ""
    switch: Said | None = None
    sockets: int = 1
    sockets_comment: str = ""
    socket: Said | None = None
    nics_at_switch: bool = False


def spread_evenly(near: Sequence[object], of_switch: Sequence[object], under: Sequence[bool]) -> bool:
    """Whether devices (or their switches) lie at sockets as a native file shares them out: in equal parts, in order.

    `near` are the sockets of devices, `of_switch` those of switches, and `under` says which devices are under one.
    """
    sockets = list(dict.fromkeys(near))
    n = len(sockets)
    by_switch = [sockets.index(socket) for socket in of_switch]
    if by_switch and len(by_switch) < n:
        return False
    good = all(by_switch[w] == w * n // len(by_switch) for w in range(len(by_switch)))
    return good and all(u or sockets.index(near[d]) == d * n // len(near) for d, u in enumerate(under))


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRead:
    """What a file says of a host. `nvlink` is all links of a device, each way; without it `pci` joins the devices."""

    device: str
    devices: int
    devices_comment: str
    cores: Said
    nvlink: Said | None = None
    pci: Said | None = None
    tree: Tree = Tree()
    host_link: Said | None = None
    ports: tuple[Port, ...] = ()


def host_file(
    read: HostRead, *, name: str, description: str, source: str, program: str, notes: Sequence[Note], hosts: int
) -> str:
    """Return the text of the native file."""
    lines = heading(source, program, notes)
    lines += [f"name: {scalar(name)}", f"description: {scalar(description)}", "hosts:"]
    rows = [
        ("  - name: node", ""),
        (f"    count: {hosts}", "`nodes` of an experiment changes it"),
        (f"    cores: {read.cores.value:.0f}", read.cores.comment),
    ]
    if read.devices:
        rows.append((f"    devices: [{', '.join([scalar(read.device)] * read.devices)}]", read.devices_comment))
        rows += _intra(read)
    rows += _nics(read.ports)
    lines += aligned(rows)
    lines += wrapped("One switch joins the hosts: the file that was read holds no network.")
    lines += ["switches:", "  - name: switch"]
    return "\n".join(lines) + "\n"


def _intra(read: HostRead) -> list[tuple[str, str]]:
    if read.nvlink is not None:
        rows = [
            ("    intra:", ""),
            ("      kind: nvlink", ""),
            (f"      rate: {rate_text(read.nvlink.value)}", read.nvlink.comment),
            ("      latency: 2us", "assumption, as in the shipped topologies"),
        ]
        if read.host_link is not None:
            rows.append((f"      host_link: {rate_text(read.host_link.value)}", read.host_link.comment))
        return rows
    if read.pci is None:
        return []
    tree = read.tree
    rows = [
        ("    intra:", ""),
        ("      kind: pcie", ""),
        (f"      rate: {rate_text(read.pci.value)}", read.pci.comment),
        ("      latency: 2us", "assumption, as in the shipped topologies"),
    ]
    if tree.switches:
        listed = ", ".join(f"[{', '.join(map(str, under))}]" for under in tree.switches)
        rows.append((f"      switches: [{listed}]", tree.switches_comment))
        if tree.switch is not None:
            rows.append((f"      switch_rate: {rate_text(tree.switch.value)}", tree.switch.comment))
        if tree.nics_at_switch:
            rows.append(("      nics_at: switch", ""))
    if tree.sockets > 1:
        rows.append((f"      sockets: {tree.sockets}", tree.sockets_comment))
        if tree.socket is not None:
            rows.append((f"      socket_rate: {rate_text(tree.socket.value)}", tree.socket.comment))
    return rows


def _nics(ports: Sequence[Port]) -> list[tuple[str, str]]:
    if not ports:
        return []
    comments = list(dict.fromkeys(port.comment for port in ports))
    if len({(port.rate_Bps, port.preset) for port in ports}) == 1:
        first = ports[0]
        rows = [] if len(ports) == 1 else [(f"    nics: {len(ports)}", _joined(comments))]
        return [
            *rows,
            ("    nic:", "" if rows else comments[0]),
            (f"      preset: {first.preset}", "assumption: latency, overhead and efficiency are not in the file"),
            (f"      rate: {rate_text(first.rate_Bps, bits=True)}", ""),
        ]
    return [
        ("    nics:", "presets are an assumption: latency, overhead and efficiency are not in the file"),
        *(
            (f"      - {{preset: {port.preset}, rate: {rate_text(port.rate_Bps, bits=True)}}}", port.comment)
            for port in ports
        ),
    ]


def _joined(comments: Sequence[str]) -> str:
    return "; ".join(comments) if len(comments) <= 8 else f"{'; '.join(comments[:7])}; and {len(comments) - 7} more"
