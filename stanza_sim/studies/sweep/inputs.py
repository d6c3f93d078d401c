"""What a point of a sweep is predicted from: digests of all that is read for it, by name.

They stand beside every line of a sweep's file, so that a sweep does not go on with lines of what is no longer there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from stanza_sim.base import config
from stanza_sim.base.config import Loaded
from stanza_sim.base.errors import InputError
from stanza_sim.cluster import load_cluster
from stanza_sim.cluster.device import device_path
from stanza_sim.experiment.file import Experiment, load_experiment
from stanza_sim.experiment.rows import model_of
from stanza_sim.model.profile_json import to_json

KEYS = ("cluster", "models", "profile")
"""What is read depends on these keys of an experiment only, and on what stands below them."""
NONE = "none"
"""In the place of the digest of what is not there."""


def inputs_of(experiment: str, overrides: Sequence[str], profiles: Sequence[Path]) -> str:
    """Return `name:digest;name:digest` of what is read for an experiment with `overrides`.

    That is the experiment, its topology, the devices in that, models by import path (as they were extracted), and
    `profiles` or else its own; shipped models belong to the version. What cannot be read has the digest `NONE`.
    Raises `InputError` for the experiment itself.
    """
    loaded = load_experiment(experiment, overrides)
    found = {f"experiment {loaded.value.name}": _of_file(loaded.path)}
    found |= _of_cluster(loaded)
    for i, entry in enumerate(loaded.value.models):
        if ":" in entry.model:
            found[f"model {entry.title}"] = _of_model(loaded, i)
    own = [] if loaded.value.profile is None else [loaded.path.parent / loaded.value.profile]
    for i, path in enumerate(profiles or own, 1):
        found[f"profile {path.name}" + (f" ({i})" if len(profiles) > 1 else "")] = _of_file(path)
    return ";".join(f"{name.replace(';', ',')}:{digest}" for name, digest in found.items())


def changes(then: str, now: str) -> list[str]:
    """What differs between two answers of `inputs_of`, in words; empty if nothing does."""
    old, new = _parts(then), _parts(now)
    told = [f"{name} has changed" for name in new if name in old and old[name] != new[name]]
    told += [f"{name} was added" for name in new if name not in old]
    return told + [f"{name} is gone" for name in old if name not in new]


def _parts(text: str) -> Mapping[str, str]:
    return {name: digest for name, _, digest in (part.rpartition(":") for part in text.split(";") if part)}


def _of_cluster(loaded: Loaded[Experiment]) -> dict[str, str]:
    """The topology's file and those of its devices."""
    name = loaded.value.cluster
    try:
        path = config.find("topologies", name, beside=loaded.path)
    except InputError:
        return {f"cluster {name}": NONE}
    found = {f"cluster {name}": _of_file(path)}
    try:
        hosts = load_cluster(path, experiment=loaded.path).hosts
        devices = dict.fromkeys(device for host in hosts for device in host.devices)
        found |= {f"device {Path(device).stem}": _of_file(device_path(device)) for device in devices}
    except InputError:  # such a topology has no lines with figures
        pass
    return found


def _of_model(loaded: Loaded[Experiment], index: int) -> str:
    try:
        return _digest(to_json(model_of(loaded, index)).encode())
    except InputError:
        return NONE


def _of_file(path: Path) -> str:
    try:
        return _digest(path.read_bytes())
    except OSError:
        return NONE


def _digest(contents: bytes) -> str:
    return hashlib.sha256(contents).hexdigest()[:8]
