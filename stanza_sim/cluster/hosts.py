"""What hosts are made of, for every way of describing a cluster."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from stanza_sim.base import processes
from stanza_sim.base.config import Kind, find
from stanza_sim.base.errors import InputError, at
from stanza_sim.cluster.cluster import Host, Loopback, Nic, Placement
from stanza_sim.cluster.hardware import Intra, Staging, Transport
from stanza_sim.cluster.sharing import check_fits, make_token_bucket, make_traffic
from stanza_sim.cluster.topology import (
    IntraSection,
    LatencySides,
    LoopbackSection,
    NicOverride,
    NicSection,
    RateSides,
    StagingSection,
)
from stanza_sim.cluster.transports import first, make_transport, preset_of

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


def _sides(value: float | RateSides | LatencySides) -> tuple[float, float | None]:
    """Return what a NIC's sides have: (send, receive), the latter None where it is the same."""
    return (value, None) if isinstance(value, float | int) else (value.send, value.receive)


def make_nic(section: NicSection, rate_Bps: float | None) -> Nic:
    """Return the NIC that a section states, with `rate_Bps` in the place of its rate.

    Raises `InputError` for background, bursts and limits that do not fit, and for an unknown preset.
    """
    stated_Bps = max(r for r in _sides(section.rate) if r)
    rate, back = (rate_Bps, None) if rate_Bps else _sides(section.rate)
    preset, stated = preset_of(section), section.model_fields_set
    latency, late_back = _sides(section.latency)
    overhead_s, efficiency = section.overhead, section.efficiency
    if preset is not None:
        latency = latency if "latency" in stated else first(preset.latency, default=latency)
        overhead_s = overhead_s if "overhead" in stated else first(preset.overhead, default=overhead_s)
        efficiency = efficiency if "efficiency" in stated else first(preset.efficiency, default=efficiency)
    transport = make_transport(section, stated_Bps, Transport())
    return Nic(
        bandwidth_Bps=rate,
        latency_s=latency,
        overhead_s=overhead_s,
        efficiency=efficiency,
        receive_bandwidth_Bps=back,
        receive_latency_s=late_back,
        background=make_traffic(section),
        bucket=make_token_bucket(section),
        transport=transport,
    )


def check_nic(nic: Nic) -> None:
    """Raise `InputError` for background, or a peak, that contradicts the rate of either side."""
    for raw_Bps in (nic.bandwidth_Bps, nic.receive_bandwidth_Bps or nic.bandwidth_Bps):
        check_fits(raw_Bps, nic.background, nic.bucket)


def changed_nic(nic: Nic, stated: NicOverride, rate_Bps: float | None) -> Nic:
    """Return `nic` with what an override states, except the rate where `rate_Bps` replaces it."""
    if stated.rate is not None and not rate_Bps:
        rate, back = _sides(stated.rate)
        nic = replace(nic, bandwidth_Bps=rate, receive_bandwidth_Bps=back)
    preset = preset_of(stated)
    if preset is not None and preset.latency is not None:
        nic = replace(nic, latency_s=preset.latency, receive_latency_s=None)
    if stated.latency is not None:
        latency, late_back = _sides(stated.latency)
        nic = replace(nic, latency_s=latency, receive_latency_s=late_back)
    nic = replace(
        nic,
        overhead_s=first(stated.overhead, None if preset is None else preset.overhead, default=nic.overhead_s),
        efficiency=first(stated.efficiency, None if preset is None else preset.efficiency, default=nic.efficiency),
        transport=make_transport(stated, max(nic.bandwidth_Bps, nic.receive_bandwidth_Bps or 0.0), nic.transport),
    )
    if stated.background is not None:
        nic = replace(nic, background=make_traffic(stated))
    if (bucket := make_token_bucket(stated)) is not None:
        nic = replace(nic, bucket=bucket)
    return nic


def make_staging(section: StagingSection | None) -> Staging | None:
    """Return the copies through a host's memory that a section states."""
    return None if section is None else Staging(bandwidth_Bps=section.rate, latency_s=section.latency)


def count_cores(cores: int | str) -> int:
    """Return a number of cores; `this-machine` means those that this process may use."""
    return cores if isinstance(cores, int) else processes.cores()


def check_devices(devices: tuple[str, ...], beside: Path, where: str) -> tuple[str, ...]:
    """Return device names as `load_device` takes them; raise `InputError` (at `where`) for one that has no data."""
    names: dict[str, str] = {}
    for device in dict.fromkeys(devices):
        if device == "cpu":
            hint = "leave devices out: ranks then compute on the host's cores"
            raise InputError("cpu is not a device to list", where=where, hint=hint)
        with at(where):
            path = find(Kind.DEVICES, device, beside=beside)
        is_path = "/" in device or device.endswith((".yaml", ".yml"))
        names[device] = str(path.resolve()) if is_path else device
    return tuple(names[device] for device in devices)


def too_many_ranks(placement: Iterable[Placement], hosts: Sequence[Host], where: str) -> None:
    """Raise `InputError` if more ranks are placed on a host than it has devices."""
    for placed in placement:
        has = len(hosts[placed.host].devices)
        if placed.device is not None and placed.device >= has:
            what, hint = f"more ranks on {hosts[placed.host].name} than its {has} devices", "a device takes one rank"
            raise InputError(what, where=where, hint=hint)
