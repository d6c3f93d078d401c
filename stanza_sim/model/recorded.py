"""The work of modules that a factory builds, recorded once on a machine and kept in the user's cache."""

from __future__ import annotations

import json
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version

from stanza_sim.base.errors import InputError
from stanza_sim.base.files import cache_folder, write_whole
from stanza_sim.base.version import __version__
from stanza_sim.model.module_work import FORMAT, ModuleWork, from_data, to_data
from stanza_sim.model.shipped import Source


def recorded(source: Source) -> ModuleWork:
    """Return the work of what a factory builds, from this machine's cache if it is there (needs torch if not).

    What is cached depends on the factory, its arguments, the input and the versions of torch, of the factory's package
    and of this one. A file that cannot be read counts as missing; one that cannot be written is left out. Raises
    `InputError` for a module that cannot be built or run.
    """
    path = cache_folder() / "work" / f"{_key(source)}.json"
    try:
        return from_data(json.loads(path.read_bytes()), str(path))
    except (OSError, ValueError, RecursionError, InputError):
        pass
    from stanza_sim.model.extract import module_work

    found = module_work(source.factory, source.input_shape, source.factory_kwargs)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(json.dumps(to_data(found)) + "\n", path)
    except (OSError, InputError):
        pass
    return found


def _key(source: Source) -> str:
    package = source.factory.partition(":")[0].partition(".")[0]
    versions = [FORMAT, __version__, *(f"{name} {_version(name)}" for name in ("torch", package))]
    known = [source.factory, sorted(source.factory_kwargs.items()), list(source.input_shape), versions]
    return sha256(json.dumps(known).encode()).hexdigest()[:24]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
