"""Which NIC each device of a host uses: the nearest, as NCCL chooses; and how a native file can say so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stanza_sim.importers.assumed import PRESET
from stanza_sim.importers.host_file import Port
from stanza_sim.importers.native import Note


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundNic:
    """A NIC of a host: its name, its line, its rate each way, its transport's preset."""

    name: str
    line: int
    rate_Bps: float
    preset: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """The NICs of the native file; `used` are, for each, the numbers of those found that it stands for."""

    ports: tuple[Port, ...]
    used: tuple[tuple[int, ...], ...]
    notes: tuple[Note, ...]


def added_nic(rate_Bps: float, comment: str) -> Ports:
    """The only NIC of a host whose file names none."""
    return Ports(ports=(Port(rate_Bps=rate_Bps, preset=PRESET, comment=comment),), used=(), notes=())


def share_out(nics: Sequence[FoundNic], near: Sequence[Sequence[int]]) -> Ports:
    """Give each device its NIC of the `nics`, of which `near[d]` are nearest to device d.

    Devices with the same NICs nearest share them out in order. Where they are more than the devices, each device has
    several, which the native file states as one of their rate together. The native rule is that device d of D uses NIC
    d * N // D of N; where that is not so here, all NICs that are nearest to any device are stated, and a note says it.
    """
    if not nics:
        return Ports(ports=(), used=(), notes=())
    groups: dict[tuple[int, ...], list[int]] = {}
    for device, found in enumerate(near):
        groups.setdefault(tuple(sorted(found)), []).append(device)
    of: list[tuple[int, ...]] = [()] * len(near)
    for nearest, devices in groups.items():
        each = max(1, len(nearest) // len(devices))
        for j, device in enumerate(devices):
            first = j * each if len(nearest) >= len(devices) else j * len(nearest) // len(devices)
            of[device] = nearest[first : first + each]
    bundles = list(dict.fromkeys(of))
    n, devices_in_all = len(bundles), len(of)
    notes = []
    if any(bundles[d * n // devices_in_all] != of[d] for d in range(devices_in_all)):
        what = "devices are not shared out over NICs evenly: in the native file each NIC serves as many, in order"
        notes.append(Note(what=what, lines=tuple(nics[i].line for bundle in bundles for i in bundle)))
    used = {i for bundle in bundles for i in bundle}
    if left := [nic for i, nic in enumerate(nics) if i not in used]:
        what = f"not used: {', '.join(nic.name for nic in left[:8])}, which no GPU has nearest"
        notes.append(Note(what=what, lines=tuple(nic.line for nic in left)))
    return Ports(ports=tuple(_port([nics[i] for i in b]) for b in bundles), used=tuple(bundles), notes=tuple(notes))


def _port(nics: Sequence[FoundNic]) -> Port:
    rate_Bps = sum(nic.rate_Bps for nic in nics)
    names = " + ".join(nic.name for nic in nics)
    comment = f"{names}, line {nics[0].line}" if len(nics) == 1 else f"{names} together"
    return Port(rate_Bps=rate_Bps, preset=nics[0].preset, comment=comment)
