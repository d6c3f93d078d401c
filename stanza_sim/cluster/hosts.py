"""What hosts are made of, for every way of describing a cluster."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from stanza_sim.base import processes
from stanza_sim.base.config import Kind, find
from stanza_sim.base.errors import InputError, at
from stanza_sim.cluster.cluster import Cluster, Host, Loopback, Nic, Placement
from stanza_sim.cluster.hardware import Intra, Staging
from stanza_sim.cluster.nccl import load_nccl, nccl_path
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

NO_NIC = Nic(bandwidth_Bps=1.0)
"""Stands in for the NIC of a host that has none; no route uses it."""


_NO_STAGING = "leave staging out, or nccl"

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

    Raises `InputError` for background and bursts that do not fit.
    """
    rate, back = (rate_Bps, None) if rate_Bps else _sides(section.rate)
    latency, late_back = _sides(section.latency)
    return Nic(
        bandwidth_Bps=rate,
        latency_s=latency,
        overhead_s=section.overhead,
        efficiency=section.efficiency,
        receive_bandwidth_Bps=back,
        receive_latency_s=late_back,
        background=make_traffic(section),
        bucket=make_token_bucket(section),
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
    if stated.latency is not None:
        latency, late_back = _sides(stated.latency)
        nic = replace(nic, latency_s=latency, receive_latency_s=late_back)
    if stated.overhead is not None:
        nic = replace(nic, overhead_s=stated.overhead)
    if stated.efficiency is not None:
        nic = replace(nic, efficiency=stated.efficiency)
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


def check_nccl(
    stated: str | None, devices: tuple[str, ...], beside: Path, where: str, *, staged: bool = False
) -> str | None:
    """Return the path of the platform file that a topology states; raise `InputError` (at `where`) for a wrong one."""
    if stated is None:
        return None
    if not devices:
        raise InputError("nccl is for devices, and there is none", where=where, hint="list devices, or leave nccl out")
    if staged:
        raise InputError("staging is what gloo needs and NCCL does not", where=where, hint=_NO_STAGING)
    with at(where):
        path = nccl_path(stated, beside=beside)
    load_nccl(path)
    return str(path.resolve())


def with_nccl(cluster: Cluster, name_or_path: str | Path, *, beside: Path | None = None) -> Cluster:
    """Return `cluster` with this NCCL platform on every host that has devices.

    Raises `InputError` for one that is unknown or wrong, and for a cluster without devices.
    """
    if not any(host.devices for host in cluster.hosts):
        hint = "leave nccl out: its ranks compute on cores"
        raise InputError(f"{cluster.name} has no devices, which NCCL is for", hint=hint)
    if any(host.staging is not None for host in cluster.hosts):
        raise InputError(f"{cluster.name} stages what devices send, as gloo needs and NCCL does not", hint=_NO_STAGING)
    path = nccl_path(name_or_path, beside=beside)
    load_nccl(path)
    hosts = (replace(host, nccl=str(path.resolve())) if host.devices else host for host in cluster.hosts)
    return replace(cluster, hosts=tuple(hosts))


def too_many_ranks(placement: Iterable[Placement], hosts: Sequence[Host], where: str) -> None:
    """Raise `InputError` if more ranks are placed on a host than it has devices."""
    for placed in placement:
        has = len(hosts[placed.host].devices)
        if placed.device is not None and placed.device >= has:
            what, hint = f"more ranks on {hosts[placed.host].name} than its {has} devices", "a device takes one rank"
            raise InputError(what, where=where, hint=hint)
