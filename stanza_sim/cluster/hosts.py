"""What hosts are made of, for every way of describing a cluster."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from stanza_sim.base.config import Kind, find
from stanza_sim.base.errors import InputError
from stanza_sim.cluster.cluster import Host, Loopback, Nic, Placement
from stanza_sim.cluster.parts import Intra
from stanza_sim.cluster.topology import IntraSection, LoopbackSection

NO_NIC = Nic(bandwidth_Bps=1.0)
"""Stands in for the NIC of a host that has none; no route uses it."""


MOST_RANKS = 100_000
"""A cluster has no more hosts than this, nor ranks: more do not fit into memory, and nobody has them."""


def make_loopback(section: LoopbackSection) -> Loopback:
    """Return the loopback that a section states."""
    return Loopback(
        bandwidth_Bps=section.rate,
        latency_s=section.latency,
        message_core_s=section.message_core,
        byte_core_s=section.byte_core,
    )


def make_intra(section: IntraSection | None) -> Intra | None:
    """Return the fabric inside a host that a section states."""
    if section is None:
        return None
    return Intra(
        kind=section.kind, bandwidth_Bps=section.rate, latency_s=section.latency, efficiency=section.efficiency
    )


def count_cores(cores: int | str) -> int:
    """Return a number of cores; `this-machine` means those that this process may use."""
    return cores if isinstance(cores, int) else len(os.sched_getaffinity(0))


def check_devices(devices: tuple[str, ...], beside: Path, where: str) -> tuple[str, ...]:
    """Return device names as `load_device` takes them; raise `InputError` (at `where`) for one that has no data."""
    names: dict[str, str] = {}
    for device in dict.fromkeys(devices):
        if device == "cpu":
            hint = "leave devices out: ranks then compute on the host's cores"
            raise InputError("cpu is not a device to list", where=where, hint=hint)
        try:
            path = find(Kind.DEVICES, device, beside=beside)
        except InputError as error:
            raise InputError(error.message, where=where, hint=error.hint) from None
        is_path = "/" in device or device.endswith((".yaml", ".yml"))
        names[device] = str(path.resolve()) if is_path else device
    return tuple(names[device] for device in devices)


def too_many_ranks(placement: Iterable[Placement], hosts: Sequence[Host], where: str) -> None:
    """Raise `InputError` if more ranks are placed on a host than it has devices."""
    for at in placement:
        has = len(hosts[at.host].devices)
        if at.device is not None and at.device >= has:
            what, hint = f"more ranks on {hosts[at.host].name} than its {has} devices", "a device takes one rank"
            raise InputError(what, where=where, hint=hint)
