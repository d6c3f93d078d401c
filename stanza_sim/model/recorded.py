"""The work of modules that a factory builds, recorded once on a machine and kept in the user's cache."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

from stanza_sim.base.errors import InputError
from stanza_sim.base.files import cache_folder, write_whole
from stanza_sim.base.version import __version__
from stanza_sim.model import zoo
from stanza_sim.model.module_work import FORMAT, ModuleWork, from_data, to_data
from stanza_sim.model.profile import ModelProfile
from stanza_sim.model.profile_json import from_json, to_json
from stanza_sim.model.shipped import Source

_T = TypeVar("_T")


def recorded(source: Source) -> ModuleWork:
    """Return the work of what a factory builds, from this machine's cache if it is there (needs torch if not).

    What is cached depends on the factory, its arguments, the input and the versions of torch, of the factory's package
    and of this one. A file that cannot be read counts as missing; one that cannot be written is left out. Raises
    `InputError` for a module that cannot be built or run.
    """

    def make() -> ModuleWork:
        from stanza_sim.model.extract import module_work

        return module_work(source.factory, source.input_shape, source.factory_kwargs)

    path = cache_folder() / "work" / f"{_key(source)}.json"
    return _kept(path, make, lambda raw: from_data(json.loads(raw), str(path)), lambda w: json.dumps(to_data(w)) + "\n")


def extracted(source: Source) -> ModelProfile:
    """Return the profile of what a factory builds, cached as `recorded` caches work. Raises `InputError`."""

    def make() -> ModelProfile:
        return zoo.load_model(
            source.factory, input_shape=source.input_shape, factory_kwargs=dict(source.factory_kwargs)
        )

    path = cache_folder() / "models" / f"{_key(source)}.json"
    return _kept(path, make, lambda raw: from_json(raw, where=str(path)), to_json)


def _kept(path: Path, make: Callable[[], _T], read: Callable[[bytes], _T], write: Callable[[_T], str]) -> _T:
    """What is in a file of the cache or, where it is not there or cannot be read, what is made and written to it."""
    try:
        return read(path.read_bytes())
    except (OSError, ValueError, RecursionError, InputError):
        pass
    with redirect_stdout(sys.stderr):  # what packages print when they are imported is no part of our output
        found = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(write(found), path)
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
