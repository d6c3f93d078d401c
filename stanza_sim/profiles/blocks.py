"""Measured block times of a model on one device: what the executor's timer writes and the cost model reads.

A profile is a JSON file. Every time in it is what one rank needs on a device, or on one core, of its own *while the
other ranks of its host compute as well*: the timer divides the wall time by `ranks_at_once / host_cores` where more
ranks than cores were busy, so that the sharing of cores is not counted twice (the simulator models it), while what
ranks cost each other through caches and memory stays in.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from stanza_sim.base.config import Count, Factor, Section, Source, validate
from stanza_sim.base.errors import InputError
from stanza_sim.base.files import read_json, write_whole
from stanza_sim.cluster.cluster import Cluster, Loopback, with_loopback
from stanza_sim.model.profile import ModelProfile
from stanza_sim.model.profile_json import fingerprint

FORMAT = "stanza-sim-profile/1"

Time = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]


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


class Profile(Section):
    """A profile file.

    `device` begins with its kind (`cpu` or `cuda`), then the name that the system reports. `reduce_Bps` is bytes of
    contributions read per second when gradients are summed, `update_Bps` parameter bytes updated per second, and
    `op_overhead_s` what running any computation op costs on top of the work itself. `wakeup_s` is a lane's wake-up on
    cores that ranks share: for how long a core has nothing to do when all ranks wait for each other once, since threads
    sleep and ranks do not finish together (None: the cluster's own is used).
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
    op_overhead_s: Time = 0.0
    wakeup_s: Time | None = None
    loopback: LoopbackTimes | None = None


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
    data = profile.model_dump()
    blocks = ",\n".join(f"    {json.dumps(row)}" for row in data.pop("blocks"))
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in data.items())
    write_whole(f'{{\n{lines},\n  "blocks": [\n{blocks}\n  ]\n}}\n', path)


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
) -> list[str]:
    """Return a warning for each way in which a profile comes from another place than the one described.

    What is None, or a package that only one side knows, is not compared.
    """
    pairs: list[tuple[str, object, object]] = [
        ("device", profile.device, device),
        ("driver", profile.driver, driver),
        ("cores", profile.host_cores, host_cores),
        ("ranks at once", profile.ranks_at_once, ranks_at_once),
        *((name, profile.versions.get(name), version) for name, version in (versions or {}).items()),
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
    """Return `cluster` with the profile's loopback on every host and its wake-up, as far as the profile has them."""
    if profile.wakeup_s is not None:
        cluster = replace(cluster, wakeup_latency_s=profile.wakeup_s)
    return cluster if profile.loopback is None else with_loopback(cluster, loopback_of(profile.loopback))


def loopback_of(measured: LoopbackTimes) -> Loopback:
    """Return what was measured as a part of a host."""
    return Loopback(
        bandwidth_Bps=measured.bandwidth_Bps,
        latency_s=measured.latency_s,
        message_core_s=measured.message_core_s,
        byte_core_s=measured.byte_core_s,
    )
