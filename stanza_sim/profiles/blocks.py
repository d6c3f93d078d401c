"""Measured block times of a model on one device: what the executor's timer writes and the cost model reads.

A profile is a JSON file. Every time in it is what one rank needs on a device, or on one core, of its own *while the
other ranks of its host compute as well*: the timer divides the wall time by `ranks_at_once / host_cores` where more
ranks than cores were busy, so that the sharing of cores is not counted twice (the simulator models it), while what
ranks cost each other through caches and memory stays in.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from stanza_sim.base.config import Count, Factor, Section, Source, validate
from stanza_sim.base.errors import InputError
from stanza_sim.base.files import read_json, write_whole
from stanza_sim.base.units import MOST_TIME_S
from stanza_sim.cluster.cluster import Cluster, Host, Loopback, with_loopback
from stanza_sim.cluster.hardware import DirectedLink, LinkKind, Staging
from stanza_sim.model.profile import ModelProfile
from stanza_sim.model.profile_json import fingerprint

FORMAT = "stanza-sim-profile/1"

Time = Annotated[float, Field(strict=True, ge=0, le=MOST_TIME_S, allow_inf_nan=False)]


class BlockTime(Section):
    """Seconds of one block at one number of samples.

    `backward_s` is both gradients in one go, `backward_input_s` and `backward_weight_s` each on its own; `loss_s` is
    the loss and its gradient with respect to the block's output (last block only). `spread` is the largest minus the
    smallest of the repeated times, over their median.
    """

    block: str = Field(min_length=1)
    samples: Count
    forward_s: Time
    backward_s: Time
    backward_input_s: Time
    backward_weight_s: Time
    loss_s: Time | None = None
    spread: Time = 0.0


class ProfiledModel(Section):
    """Which model was timed: its name, and `fingerprint` of its blocks (see `stanza_sim.model.profile_json`)."""

    name: str
    fingerprint: str = Field(min_length=1)


class LoopbackTimes(Section):
    """Message costs between ranks of one host; see `stanza_sim.cluster.Loopback`.

    From probes with single messages; core times as they are while all ranks compute, where blocks were timed so.
    """

    latency_s: Time
    message_core_s: Time
    byte_core_s: Time
    bandwidth_Bps: Factor


class CopyTimes(Section):
    """A copy between a device and page-locked memory: n bytes take `latency_s + n / bandwidth_Bps`, alone."""

    latency_s: Time
    bandwidth_Bps: Factor


class StagingTimes(Section):
    """Copies from a device to its host's memory (`out`) and back (`back`); see `stanza_sim.cluster.Staging`."""

    out: CopyTimes
    back: CopyTimes


class DeviceLinkTimes(Section):
    """A message of NCCL between two devices of one host, over what joins them, as a pair of ranks sees it."""

    latency_s: Time
    bandwidth_Bps: Factor


class Profile(Section):
    """A profile file.

    `device` begins with its kind (`cpu` or `cuda`), then the name that the system reports. `reduce_Bps` is bytes of
    contributions read per second when gradients are summed, `update_Bps` parameter bytes updated per second
    by an optimiser that keeps `moments` vectors as long as they are (1: SGD with momentum, 2: Adam), and
    `op_overhead_s` what running any computation op costs on top of the work itself. `wakeup_s` is a lane's wake-up on
    cores that ranks share: for how long a core has nothing to do when all ranks wait for each other once, since threads
    sleep and ranks do not finish together (None: the cluster's own is used).

    Of ranks on GPUs: `staging` are copies between device and host, `device_link` is a message between two devices of
    one host, and `collective_share` what a collective takes of a device while it runs: 1 - 1/f where a computation
    beside it takes f times as long. `provenance` says on what it was measured, by name.
    """

    format: Literal["stanza-sim-profile/1"] = "stanza-sim-profile/1"
    device: str = Field(min_length=1)
    driver: str | None = None
    host_cores: Count
    versions: dict[str, str] = Field(default_factory=dict)
    date: str
    precision: str
    ranks_at_once: Count
    model: ProfiledModel
    blocks: tuple[BlockTime, ...] = Field(min_length=1)
    reduce_Bps: Factor
    update_Bps: Factor
    moments: Annotated[int, Field(strict=True, ge=0, le=2)] = 1
    op_overhead_s: Time = 0.0
    wakeup_s: Time | None = None
    loopback: LoopbackTimes | None = None
    staging: StagingTimes | None = None
    device_link: DeviceLinkTimes | None = None
    collective_share: Annotated[float, Field(strict=True, ge=0, lt=1)] | None = None
    provenance: dict[str, str] = Field(default_factory=dict)


def read_profile(path: Path) -> Profile:
    """Return the profile in a file; raise `InputError` if it cannot be read or holds anything else."""
    return profile_of(read_json(path, expected=f"a file of the format {FORMAT}"), path)


def profile_of(data: object, path: Path) -> Profile:
    """Return `data`, read from the file at `path`, as a profile; raise `InputError` if it is none."""
    profile = validate(data, Profile, Source(file=str(path), lines={}))
    check_blocks(profile.blocks, f"{path}: blocks")
    return profile


def check_blocks(blocks: Iterable[BlockTime], where: str) -> None:
    """Raise `InputError`, at `where` with the number of the row, for a block that is given twice."""
    seen: set[tuple[str, int]] = set()
    for index, row in enumerate(blocks):
        if (row.block, row.samples) in seen:
            what = f"block {row.block!r} is given twice at {row.samples} samples"
            raise InputError(what, where=f"{where}.{index}")
        seen.add((row.block, row.samples))


def write_profile(profile: Profile, path: Path) -> None:
    """Write a profile, whole or not at all; raise `InputError` if it cannot be written there."""
    data = profile.model_dump(exclude=_absent(profile))
    blocks = ",\n".join(f"    {json.dumps(row)}" for row in data.pop("blocks"))
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in data.items())
    write_whole(f'{{\n{lines},\n  "blocks": [\n{blocks}\n  ]\n}}\n', path)


def _absent(profile: Profile) -> set[str]:
    """What few profiles have, such as only those of GPUs, where it is as by default."""
    return {
        n
        for n in ("staging", "device_link", "collective_share", "provenance", "moments")
        if getattr(profile, n) == Profile.model_fields[n].get_default(call_default_factory=True)
    }


def differences(profile: Profile, model: ModelProfile, precision: str) -> list[str]:
    """Return why a profile cannot serve for a model at a precision; empty if it can."""
    found = []
    if profile.model.fingerprint != fingerprint(model):
        what = f"model {profile.model.name}" if profile.model.name != model.name else "another version of the model"
        found.append(f"it was measured for {what}, not for {model.name} as it is here")
    elif missing := [b.name for b in model.blocks if b.name not in {row.block for row in profile.blocks}]:
        found.append(f"it has no time for block {missing[0]!r}")
    if profile.precision != precision:
        found.append(f"it was measured at {profile.precision}, not at {precision}")
    return found


def require(profile: Profile, model: ModelProfile, precision: str, *, where: str | None = None) -> None:
    """Raise `InputError` (at `where`, the profile's file) unless the profile can serve for the model."""
    if found := differences(profile, model, precision):
        hint = "measure again with --execute --save-profile, or leave the profile out"
        raise InputError(f"the profile does not fit: {'; '.join(found)}", where=where, hint=hint)


def mismatches(
    profile: Profile,
    *,
    device: str | None = None,
    driver: str | None = None,
    host_cores: int | None = None,
    ranks_at_once: int | None = None,
    versions: Mapping[str, str] | None = None,
    provenance: Mapping[str, str] | None = None,
) -> list[str]:
    """Return a warning for each way in which a profile comes from another place than the one described.

    What is None, or a package that only one side knows, is not compared; of `provenance` the clocks are not, which
    change by themselves.
    """
    pairs: list[tuple[str, object, object]] = [
        ("device", profile.device, device),
        ("driver", profile.driver, driver),
        ("cores", profile.host_cores, host_cores),
        ("ranks at once", profile.ranks_at_once, ranks_at_once),
        *((name, profile.versions.get(name), version) for name, version in (versions or {}).items()),
        *(
            (name, profile.provenance.get(name), value)
            for name, value in (provenance or {}).items()
            if name not in ("device", "driver") and "clock" not in name
        ),
    ]
    return differing(f"the profile of {profile.date}", pairs)


def differing(profile: str, pairs: Iterable[tuple[str, object, object]]) -> list[str]:
    """Return a line for each (name, then, now) of `pairs` that differs; None is not compared."""
    return [
        f"{profile} was measured with {name} {then}, here it is {now}"
        for name, then, now in pairs
        if then is not None and now is not None and then != now
    ]


def with_profile(cluster: Cluster, profile: Profile) -> Cluster:
    """Return `cluster` with what the profile has: loopback, wake-up, and of GPUs the copies, links and losses.

    Copies are those of hosts that stage, links those inside hosts that have them, and a collective's share is that of
    all hosts with devices.
    """
    if profile.wakeup_s is not None:
        cluster = replace(cluster, wakeup_latency_s=profile.wakeup_s)
    if profile.loopback is not None:
        cluster = with_loopback(cluster, loopback_of(profile.loopback))
    return with_devices(cluster, profile.staging, profile.device_link, profile.collective_share)


def with_devices(
    cluster: Cluster, staging: StagingTimes | None, link: DeviceLinkTimes | None, collective_share: float | None
) -> Cluster:
    """Return `cluster` with what was measured of devices, as far as it was; see `with_profile`."""
    if staging is None and link is None and collective_share is None:
        return cluster
    hosts = tuple(_measured(host, staging, link, collective_share) for host in cluster.hosts)
    links = tuple(_measured_link(link, hosts) for link in cluster.links)
    return replace(cluster, hosts=hosts, links=links)


def _measured(
    host: Host, staging: StagingTimes | None, link: DeviceLinkTimes | None, collective_share: float | None
) -> Host:
    """`host` with what was measured of devices; a host without any stays."""
    if not host.devices:
        return host
    if staging is not None and host.staging is not None:
        copies = Staging(
            bandwidth_Bps=staging.out.bandwidth_Bps,
            latency_s=staging.out.latency_s,
            back_Bps=staging.back.bandwidth_Bps,
            back_latency_s=staging.back.latency_s,
        )
        host = replace(host, staging=copies)
    if collective_share is not None:
        host = replace(host, losses=replace(host.losses, collective_share=collective_share))
    if link is None or host.staging is not None:
        return host
    if host.intra is None:  # devices talk over what stands for the loopback; it costs no core
        there = replace(host.loopback, bandwidth_Bps=link.bandwidth_Bps, latency_s=link.latency_s)
        return replace(host, loopback=replace(there, message_core_s=0.0, byte_core_s=0.0))
    if host.intra.tree is not None:  # what is between the devices may have limited the pair
        return replace(host, intra=replace(host.intra, latency_s=link.latency_s / 2))
    inside = replace(host.intra, bandwidth_Bps=link.bandwidth_Bps, efficiency=1.0, latency_s=link.latency_s / 2)
    return replace(host, intra=inside)


def _measured_link(link: DirectedLink, hosts: Sequence[Host]) -> DirectedLink:
    """`link` as its host has it, if it is a device's."""
    if link.kind not in (LinkKind.DEVICE_OUT, LinkKind.DEVICE_IN) or link.host is None:
        return link
    intra = hosts[link.host].intra
    if intra is None:
        return link
    return replace(link, bandwidth_Bps=intra.bandwidth_Bps * intra.efficiency, latency_s=intra.latency_s)


def loopback_of(measured: LoopbackTimes) -> Loopback:
    """Return what was measured as a part of a host."""
    return Loopback(
        bandwidth_Bps=measured.bandwidth_Bps,
        latency_s=measured.latency_s,
        message_core_s=measured.message_core_s,
        byte_core_s=measured.byte_core_s,
    )
