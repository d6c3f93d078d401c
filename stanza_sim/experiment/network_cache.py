"""The network profile of a run: the given one, one that was kept from before, or one that is measured now."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Sequence
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from stanza_sim.base.errors import InputError
from stanza_sim.base.files import cache_folder
from stanza_sim.base.processes import cores
from stanza_sim.base.telling import Say
from stanza_sim.cluster import Cluster
from stanza_sim.execute.calibrate.network import calibrate_network
from stanza_sim.execute.start.tasks import DescribeTask
from stanza_sim.profiles.blocks import LoopbackTimes, Profile
from stanza_sim.profiles.network import (
    FORMAT,
    Machine,
    NetworkProfile,
    machine_of,
    mismatches,
    read_network,
    write_network,
)

if TYPE_CHECKING:
    from stanza_sim.execute import Backend, Workers


def network_for(
    workers: Workers,
    cluster: Cluster,
    *,
    given: NetworkProfile | None,
    testbed: bool,
    realtime: bool,
    backend: Backend,
    say: Say,
) -> NetworkProfile | None:
    """Return the network profile with which a run of `workers` as `cluster` is to be predicted; None if there is none.

    It is the `given` one or, in a testbed, that which an earlier run of the same on this machine has kept, or else one
    that is measured now. What it does not fit is said. Raises `RunError` if measuring fails.
    """
    here = machine_here(workers)
    if given is None and not testbed:
        return None
    found, path = given, None
    if found is None:
        path = kept_path(cluster, here, realtime=realtime)
        found = _kept(path, say)
    if found is None:
        say("calibrating the network with single messages between pairs of ranks; this takes less than 20 s")
        found = calibrate_network(workers, cluster, testbed=testbed, realtime=realtime, backend=backend)
        if path is not None:
            _keep(found, path, say)
    how = {} if given is None else {"testbed": testbed, "realtime": realtime}
    warn(mismatches(found, cluster, machine=here, **how), say)
    return found


def loopback_for(
    workers: Workers, cluster: Cluster, profiles: Sequence[Profile | None], say: Say
) -> LoopbackTimes | None:
    """The loopback of this machine, where ranks share a host and a profile is missing, or does not bring it along."""
    if workers.world_size < 2 or not cluster.same_host(0, 1) or all(p is not None and p.loopback for p in profiles):
        return None
    from stanza_sim.execute import measure_loopback

    say("measuring single messages between two ranks of one host")
    return measure_loopback(workers)


def warn(lines: list[str], say: Say) -> None:
    """Say each of `lines` as a warning."""
    for line in lines:
        say(f"warning: {line}")


def machine_here(workers: Workers) -> Machine:
    """What the first of the ranks runs on."""
    first = workers.run(DescribeTask())[0]
    torch = version("torch").partition("+")[0]
    return machine_of(first.device, first.driver, cores=cores(), kernel=platform.release(), torch=torch)


# --- kept from before ------------------------------------------------------------------------------------------------


def kept_path(cluster: Cluster, machine: Machine, *, realtime: bool) -> Path:
    """Return where the profile of a testbed of `cluster` on `machine` is kept.

    In the user's cache folder, by all that it depends on: what is joined to what at which rates, where ranks are, the
    machine and its versions, and how ranks are scheduled.
    """
    network = repr(([host.nics for host in cluster.hosts], cluster.links, cluster.fabric, cluster.placement))
    here = machine.model_dump(exclude={"load"})
    scheduling = "real-time, crowds on a core each" if realtime else "as others"
    key = sha256(json.dumps([FORMAT, network, here, scheduling], sort_keys=True).encode()).hexdigest()[:16]
    name = re.sub(r"[^A-Za-z0-9.]+", "-", cluster.name).strip("-.") or "network"
    return cache_folder() / "networks" / f"{name}-{key}.json"


def _kept(path: Path, say: Say) -> NetworkProfile | None:
    """The profile that is kept at `path`, unless it was measured on a busy machine that is busy no longer."""
    if not path.is_file():
        return None
    try:
        found = read_network(path)
    except InputError as error:
        say(f"warning: {error.message} ({path})")
        return None
    if _busy(found.machine.load, found.machine) and not _busy(os.getloadavg()[0], found.machine):
        return None
    say(f"network as calibrated on {found.date} ({path})")
    return found


def _busy(load: float, machine: Machine) -> bool:
    return load > machine.cores


def _keep(profile: NetworkProfile, path: Path, say: Say) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_network(profile, path)
    except (OSError, InputError) as error:
        what = error.message if isinstance(error, InputError) else error.strerror
        say(f"warning: the calibration is not kept for the next run: {what} ({path})")
