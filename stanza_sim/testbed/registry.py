"""The record of every testbed: what it is called, which namespaces are its own, and whose it is.

A record is a file in `/run/stanza-sim`, which lives as long as the names of namespaces in `/run/netns` do. It is
written before the first namespace is made and removed after the last is gone, so whatever a crash leaves behind is
known. A namespace is a testbed's own if its record names it and, once built, if it is still the same (its inode).
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from stanza_sim.base.errors import InputError
from stanza_sim.base.tables import shortened
from stanza_sim.testbed.processes import Ident, Process
from stanza_sim.testbed.shell import NAMESPACES

FOLDER = Path("/run/stanza-sim")
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRecord:
    """A host as `status` shows it. Rates are bits per second, as shaped."""

    name: str
    namespace: str
    address: str
    send_bps: int
    receive_bps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrunkRecord:
    """A direction between switches as `status` shows it."""

    label: str
    rate_bps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A testbed that is being built, up, or left behind.

    `source` is the topology as the user gave it, `digest` that of the plan. `owner` is the process for which it exists
    (None: it stays until it is taken down); `kept` says that it was there before its present owner and outlives it.
    `namespaces` has the identity of each, and None before it was built. It is `complete` once all is built.
    """

    name: str
    uid: int
    prefix: str
    source: str
    digest: str
    boot: str
    owner: Process | None
    kept: bool
    complete: bool
    namespaces: dict[str, Ident | None]
    hosts: tuple[HostRecord, ...]
    trunks: tuple[TrunkRecord, ...]
    notes: tuple[str, ...]

    def own(self) -> dict[Ident, str]:
        """Return the namespaces that exist and are this testbed's, by identity."""
        found = {}
        for name, known in self.namespaces.items():
            here = identity_of(name)
            if here is not None and (known is None or known == here) and self.boot == this_boot():
                found[here] = name
        return found

    def stale(self) -> list[Path]:
        """Return files that are left of names whose namespaces are gone: those of before a restart."""
        paths = (NAMESPACES / name for name in self.namespaces)
        return [path for path in paths if path.exists() and identity_of(path.name) is None]

    def intact(self) -> bool:
        """Return whether it was built and all of it is still there."""
        return self.complete and len(self.own()) == len(self.namespaces)

    def abandoned(self) -> bool:
        """Return whether the process for which it exists is gone."""
        return self.boot != this_boot() or (self.owner is not None and not self.owner.alive())


def this_boot() -> str:
    """Return a text that changes when the machine restarts."""
    return _BOOT.read_text().strip()


def identity_of(namespace: str) -> Ident | None:
    """Return the identity of a named namespace; None if there is none of this name."""
    try:
        found, kind = os.stat(NAMESPACES / namespace), os.stat("/proc/self/ns/net")
    except OSError:
        return None
    # A name is a mount; after a restart, or before it is mounted, it is an ordinary file of another file system.
    return (found.st_dev, found.st_ino) if found.st_dev == kind.st_dev else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """The records in a folder."""

    folder: Path = field(default_factory=lambda: FOLDER)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from changing anything within; waits for them. Records may be read without it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o755)
            self._check_folder()
            handle = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise InputError(f"cannot be written: {error.strerror}", where=str(self.folder)) from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _check_folder(self) -> None:
        """Let nobody else write here: what a record names is removed. Raises `InputError` for another's folder."""
        found = self.folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            what = "is not a folder of this user's"
            raise InputError(what, where=str(self.folder), hint="remove it: testbeds are recorded there")
        if found.st_mode & 0o022:  # the umask let it be made so, or somebody did
            self.folder.chmod(0o755)

    def records(self) -> list[Record]:
        """Return all records, by name."""
        found = [self._read(path) for path in self.folder.glob("stz-*.json")]
        return sorted((record for record in found if record is not None), key=lambda r: (r.name, r.prefix))

    def get(self, prefix: str) -> Record | None:
        """Return the record of the testbed with this prefix."""
        return self._read(self._path(prefix))

    def put(self, record: Record) -> None:
        """Write a record, all or nothing. Raises `InputError` where that cannot be done (a full disk)."""
        path = self._path(record.prefix)
        new = path.with_suffix(".new")
        try:
            new.write_text(json.dumps(asdict(record), indent=1) + "\n")
            new.replace(path)
        except OSError as error:
            new.unlink(missing_ok=True)
            raise InputError(f"cannot be written: {error.strerror}", where=str(path)) from None

    def forget(self, prefix: str) -> None:
        """Remove a record."""
        self._path(prefix).unlink(missing_ok=True)

    def _path(self, prefix: str) -> Path:
        return self.folder / f"{prefix}.json"

    def _read(self, path: Path) -> Record | None:
        from pydantic import TypeAdapter, ValidationError  # the guard waits without it

        try:
            text = path.read_text()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from None
        hint = f"remove it, and the namespaces that `ip netns list` shows as {path.stem}-…"
        try:
            found = TypeAdapter(Record).validate_json(text)
        except ValidationError as error:
            wrong = error.errors(include_url=False)[0]
            what = ".".join(map(str, wrong["loc"])) or "the file"
            raise InputError(f"is no record of a testbed: {what}: {wrong['msg']}", where=str(path), hint=hint) from None
        named = [*found.namespaces, *(h.namespace for h in found.hosts)]
        if other := [name for name in named if not re.fullmatch(rf"{re.escape(path.stem)}-[\w.-]+", name)]:
            what = f"is no record of a testbed: {shortened(other[0])} is not a name of its namespaces"
            raise InputError(what, where=str(path), hint=hint)
        if found.prefix != path.stem:
            raise InputError(f"is the record of {shortened(found.prefix)}", where=str(path), hint=hint)
        return found
