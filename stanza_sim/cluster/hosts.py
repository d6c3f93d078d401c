"""What hosts are made of, for every way of describing a cluster."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from stanza_sim.base import processes
from stanza_sim.base.config import Kind, find, is_named
from stanza_sim.base.errors import InputError, at
from stanza_sim.cluster.cluster import Cluster, Host, Loopback, Nic, Placement
from stanza_sim.cluster.hardware import Intra, IntraKind, Losses, PcieTree, Staging, Transport
from stanza_sim.cluster.nccl import load_nccl, nccl_path
from stanza_sim.cluster.sharing import check_fits, make_token_bucket, make_traffic
from stanza_sim.cluster.topology import (
    IntraSection,
    LatencySides,
    LoopbackSection,
    LossesSection,
    NicOverride,
    NicSection,
    RateSides,
    StagingSection,
)
from stanza_sim.cluster.transports import first, make_transport, preset_of

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


_OF_TREES = (
    "switches",
    "per_switch",
    "switch_rate",
    "sockets",
    "root_rate",
    "socket_rate",
    "host_memory_rate",
    "nics_at",
)
"""Keys of `intra:` that describe a PCIe tree."""


def make_intra(section: IntraSection | None, devices: int) -> Intra | None:
    """Return the fabric inside a host with so many devices that a section states.

    Raises `InputError` where there is no device, and for a PCIe tree that contradicts itself.
    """
    if section is None:
        return None
    if not devices:
        hint = "list devices, or leave intra out"
        raise InputError("intra joins devices, and there is none", hint=hint)
    if section.host_link is not None and section.kind is IntraKind.PCIE:
        hint = "over PCIe the device's link leads to host memory; host_link is for nvlink"
        raise InputError("host_link with pcie", hint=hint)
    return Intra(
        kind=section.kind,
        bandwidth_Bps=section.rate,
        latency_s=section.latency,
        efficiency=section.efficiency,
        tree=_tree(section, devices),
        host_link_Bps=section.host_link,
    )


def _tree(section: IntraSection, devices: int) -> PcieTree | None:
    stated = [key for key in _OF_TREES if getattr(section, key) is not None]
    if not stated:
        return None
    if section.kind is not IntraKind.PCIE:
        raise InputError(f"{stated[0]} with {section.kind}", hint="only PCIe has a tree: kind: pcie")
    if section.switches is not None and section.per_switch is not None:
        raise InputError("switches and per_switch exclude each other", hint="per_switch: 2 is [[0, 1], [2, 3], ...]")
    switches = section.switches or ()
    if (each := section.per_switch) is not None:
        switches = tuple(tuple(range(d, min(d + each, devices))) for d in range(0, devices, each))
    listed = [d for under in switches for d in under]
    if wrong := [d for d in listed if d >= devices or listed.count(d) > 1]:
        what = f"there is no device {wrong[0]}" if wrong[0] >= devices else f"device {wrong[0]} is under two switches"
        raise InputError(what, hint=f"devices are numbered from 0 to {devices - 1}")
    if not switches and (section.switch_rate is not None or section.nics_at == "switch"):
        key = "switch_rate" if section.switch_rate is not None else "nics_at: switch"
        raise InputError(f"{key} without switches", hint="state switches, such as per_switch: 2")
    sockets = section.sockets or 1
    if section.socket_rate is not None and sockets == 1:
        raise InputError("socket_rate with one socket", hint="state sockets: 2")
    if sockets > max(len(switches), 1 if switches else devices):
        raise InputError(f"{sockets} sockets, but fewer switches or devices at them", hint="each socket needs one")
    return PcieTree(
        switches=switches,
        switch_Bps=section.switch_rate,
        sockets=sockets,
        root_Bps=section.root_rate,
        socket_Bps=section.socket_rate,
        memory_Bps=section.host_memory_rate,
        nics_at_switches=section.nics_at == "switch",
    )


def make_losses(section: LossesSection) -> Losses:
    """Return the losses that a section states."""
    return Losses(
        collective_share=section.collective_share,
        iteration_overhead_s=section.iteration_overhead,
        overhead_per_device_s=section.overhead_per_device,
        barrier=section.barrier,
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


def check_devices(
    devices: tuple[str, ...], beside: Path, where: str, *, experiment: Path | None = None
) -> tuple[str, ...]:
    """Return device names as `load_device` takes them; raise `InputError` (at `where`) for one that has no data.

    A device may lie in a `devices/` folder beside the topology (`beside`) or the experiment that names it.
    """
    names: dict[str, str] = {}
    for device in dict.fromkeys(devices):
        if device == "cpu":
            hint = "leave devices out: ranks then compute on the host's cores"
            raise InputError("cpu is not a device to list", where=where, hint=hint)
        with at(where):
            path = find(Kind.DEVICES, device, beside=beside, experiment=experiment)
        by_name = "/" not in device and not device.endswith((".yaml", ".yml")) and is_named(Kind.DEVICES, device, path)
        names[device] = device if by_name else str(path.resolve())
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
    """Raise `InputError` if more ranks are placed on a host than it has devices, or on cores without a rate."""
    for placed in placement:
        host = hosts[placed.host]
        if placed.device is None and host.devices and host.reduce_Bps is None:
            hint = "state at its host group how fast it adds up, such as reduce_rate: 5GB/s"
            raise InputError(f"a rank on the cores of {host.name}, which has devices", where=where, hint=hint)
        has = len(hosts[placed.host].devices)
        if placed.device is not None and placed.device >= has:
            what = f"more ranks on {hosts[placed.host].name} than its {has} devices"
            hint = "a device takes one rank; to let ranks share devices, state ranks_per_device, or HOST/0 in placement"
            raise InputError(what, where=where, hint=hint)
