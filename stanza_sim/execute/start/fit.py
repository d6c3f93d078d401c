"""Whether a GPU is what a topology names, and which shipped topology fits the GPUs that are here. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from stanza_sim.base.config import Kind, available
from stanza_sim.base.errors import InputError
from stanza_sim.base.processes import cores
from stanza_sim.cluster import Cluster, load_cluster
from stanza_sim.cluster.device import DeviceSpec, load_device
from stanza_sim.execute.rank.devices import GpuInfo, on_machine, words_of

SAME_MEMORY, SAME_BANDWIDTH = 0.12, 0.05
"""Relative differences that the same part may show. Memory: a data sheet's GB are GiB (7% more), less what ECC and the
driver keep. Bandwidth: a data sheet rounds clock times width of the bus."""


def is_called(spec: DeviceSpec, name: str) -> bool:
    """Whether the driver's `name` of a GPU is one for the device of `spec`: its words follow each other there.

    Words that tell another part (Ti, Super) must not come next. `RTX3090` is also `RTX 3090`.
    """
    words = words_of(name)
    for known in spec.reported or (spec.name,):
        wanted = "".join(words_of(known))
        for begin in range(len(words)):
            for end in range(begin + 1, len(words) + 1):
                if "".join(words[begin:end]) == wanted:
                    return not {"ti", "super", "laptop", "mobile"} & set(words[end : end + 2])
    return False


def differences(spec: DeviceSpec, gpu: GpuInfo) -> list[str]:
    """In what `gpu`, which has the right name, differs from the data of its device: form, memory and bandwidth."""
    found = []
    if spec.form is not None and gpu.form is not None and gpu.form.lower() != spec.form.lower():
        found.append(f"it is a {gpu.form} part, not {spec.form}")
    if gpu.memory_nbytes is not None and _apart(gpu.memory_nbytes, spec.memory_nbytes) > SAME_MEMORY:
        found.append(f"it has {gpu.memory_nbytes / 1e9:.0f} GB of memory, not {spec.memory_nbytes / 1e9:.0f}")
    here_Bps = gpu.bandwidth_Bps
    if here_Bps is not None and _apart(here_Bps, spec.memory_bandwidth_Bps) > SAME_BANDWIDTH:
        found.append(f"its memory moves {here_Bps / 1e9:.0f} GB/s, not {spec.memory_bandwidth_Bps / 1e9:.0f}")
    return found


def _apart(here: float, stated: float) -> float:
    return abs(here / stated - 1)


def check_gpu(rank: int, gpu: GpuInfo, device: str, topology: str) -> list[str]:
    """Return what the GPU of `rank` differs in from the `device` that `topology` says, as warnings.

    Raises `InputError` for another device, and for a slice of one, whose rates no device file states.
    """
    spec = load_device(device)
    if not is_called(spec, gpu.name):
        raise InputError(
            f"rank {rank} has a {gpu.name}, topology {topology} says {spec.name}",
            where="--execute",
            hint=f"use a topology whose hosts have devices like {gpu.name}",
        )
    if gpu.is_slice and not any("mig" in words_of(known) for known in spec.reported):
        raise InputError(
            f"rank {rank} has {gpu.form}, a slice of a GPU ({gpu.name}); topology {topology} says a whole {spec.name}",
            where="--execute",
            hint="use GPUs that are not divided, or describe the slice as a device of its own "
            f"(devices/NAME.yaml with `reported: [{gpu.form}]`)",
        )
    found = differences(spec, gpu)
    return [f"{gpu.name} is not quite what the data of {spec.name} are for: {'; '.join(found)}"] if found else []


# --- which topology fits ---------------------------------------------------------------------------------------------


def _shipped() -> list[tuple[str, Cluster]]:
    """Every topology with devices that can be found by name; one that is wrong (a user's own) is left out."""
    found = []
    for name in available(Kind.TOPOLOGIES):
        try:
            cluster = load_cluster(name)
        except InputError:
            continue
        if all(host.devices for host in cluster.hosts):
            found.append((name, cluster))
    return found


def fitting(hosts: Sequence[Sequence[GpuInfo]]) -> str | None:
    """The options that choose a topology for hosts with these GPUs, a rank on each; None if none is shipped.

    A topology without differences in the devices is preferred, then one of just so many hosts.
    """
    numbers = {len(gpus) for gpus in hosts}
    names = {g.name for gpus in hosts for g in gpus}
    if len(numbers) != 1 or len(names) != 1 or 0 in numbers:
        return None
    (count,), gpu = numbers, hosts[0][0]
    found: list[tuple[int, int, str]] = []
    for name, cluster in _shipped():
        host = cluster.hosts[0]
        if any(h.devices != host.devices for h in cluster.hosts) or len(set(host.devices)) > 1:
            continue
        if any(len(cluster.ranks_on(h)) != len(host.devices) for h in range(len(cluster.hosts))):
            continue
        spec = load_device(host.devices[0])
        if gpu.is_slice or not is_called(spec, gpu.name):
            continue
        option = _sized(name, cluster, len(hosts), count)
        if option is not None:
            found.append((len(differences(spec, gpu)), int("nodes" in option), option))
    return min(found)[2] if found else None


def _sized(name: str, cluster: Cluster, hosts: int, count: int) -> str | None:
    """The options that make `cluster` one of `hosts` hosts with `count` devices each; None if it cannot be."""
    if cluster.nodes_are_ranks and hosts == 1 < count < len(cluster.hosts[0].devices):
        return f"--set cluster={name} --set nodes={count}"
    if cluster.nodes_are_ranks and hosts == 1 < count < len(cluster.hosts[0].devices):
        return f"--set cluster={name} --set nodes={count}"
    if len(cluster.hosts[0].devices) != count:
        return None
    if len(cluster.hosts) == hosts:
        return f"--set cluster={name}"
    if cluster.nodes_are_ranks or hosts == 1:
        return None  # a host of a network keeps its NIC, which nothing would use: what is shipped for one host has none
    try:
        load_cluster(name, nodes=hosts)
    except InputError:
        return None
    return f"--set cluster={name} --set nodes={hosts}"


def fitting_hint(hosts: Sequence[Sequence[GpuInfo]]) -> str:
    """What to use on hosts with these GPUs: a shipped topology, or how to write one in three lines."""
    if (option := fitting(hosts)) is not None:
        return f"use {option}"
    kinds: dict[tuple[str, ...], int] = {}
    unknown: dict[str, None] = {}
    for gpus in hosts:
        devices = [device_for(g) for g in gpus]
        unknown |= {g.name: None for g, device in zip(gpus, devices, strict=True) if device is None}
        listed = tuple(device or "NAME" for device in devices) or ("NAME",)
        kinds[listed] = kinds.get(listed, 0) + 1
    groups = []
    for number, (listed, count) in enumerate((kinds or {("NAME",): 1}).items()):
        name = "node" if len(kinds) < 2 else f"node{'abcdefghijklmnopqrstuvwxyz'[number % 26]}"
        size = f", count: {count}" if count > 1 else ""
        nic = ", nic: {rate: 100Gbps}" if len(hosts) > 1 else ""
        inside = ", intra: {kind: pcie, rate: 25GB/s}" if len(listed) > 1 else ""
        groups.append(f"{{name: {name}{size}, cores: {cores()}, devices: [{', '.join(listed)}]{inside}{nic}}}")
    lines = ["name: mine", f"hosts: [{', '.join(groups)}]"]
    lines += ["switches: [{name: switch}]"] if len(hosts) > 1 else []
    data = f", and the data of {' and '.join(unknown)} as NAME in devices/NAME.yaml" if unknown else ""
    return (
        f"no shipped topology fits; write one with your own rates, such as topologies/mine.yaml{data}, "
        "and use --set cluster=mine:" + "".join(f"\n    {line}" for line in lines)
    )


def device_for(gpu: GpuInfo) -> str | None:
    """The device whose data are for `gpu`; the one with the fewest differences, None if there is none."""
    found = []
    for name in available(Kind.DEVICES):
        try:
            spec = load_device(name)
        except InputError:
            continue
        if is_called(spec, gpu.name):
            found.append((len(differences(spec, gpu)), name))
    return min(found)[1] if found else None


def note_on_cores(cluster: Cluster) -> str | None:
    """What to say where `cluster` has no devices and this machine has GPUs; None where there is nothing to say."""
    gpus = on_machine() if not any(host.devices for host in cluster.hosts) else ()
    if not gpus:
        return None
    names = " and ".join(dict.fromkeys(g.name for g in gpus))
    return (
        f"{cluster.name} computes on cores only; this machine has {len(gpus)} x {names}. "
        f"To compute on {'it' if len(gpus) == 1 else 'them'}, {fitting_hint([gpus])}"
    )
