"""Reading and writing files of JSON: whole or not at all, and errors that name the file."""

from __future__ import annotations

import json
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from stanza_sim.base.errors import InputError
from stanza_sim.base.tables import shortened

_CONTROL = re.compile(r"(?<!\\)(?:\\\\)*(\\u00(?:[01][0-9a-fA-F]|7[fF]|[89][0-9a-fA-F])|[\x7f-\x9f])")
"""Control characters of JSON, escaped or not; those below a space are no JSON unless they are escaped."""


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number that JSON knows")


LARGEST_JSON = 64_000_000
"""Bytes of the largest JSON file that is read; its data takes up to ten times as much memory."""
LARGEST_TEXT = 20_000_000
"""Bytes of the largest log, table or graph that is read."""


def read_bytes(path: Path, *, at_most: int) -> bytes:
    """Return the content of a regular file of `at_most` so many bytes.

    Raises `InputError` for any other: one that is missing or too large, a folder, and a pipe or a device, which might
    never end.
    """
    try:
        with open(path, "rb", opener=open_at_once) as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise InputError("is not a regular file", where=str(path), hint="give a file that was written whole")
            content = file.read(min(about.st_size, at_most) + 1)  # takes as much memory as is asked for
            if about.st_size < len(content) <= at_most:  # it grows, or does not say its size, as in /proc
                content += file.read(at_most + 1 - len(content))
    except FileNotFoundError:
        raise InputError("no such file", where=str(path)) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from None
    except ValueError as error:  # a NUL in its name
        raise InputError(f"cannot be read: {error}", where=repr(str(path))) from None
    if len(content) > at_most:
        raise InputError(f"holds more than {at_most / 1e6:g} MB, the most that is read", where=str(path))
    return content


def open_at_once(path: str, flags: int) -> int:
    """Open without waiting for the writer of a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_text(path: Path, *, at_most: int, expected: str) -> str:
    """Return the text of a regular file in UTF-8, with or without a byte order mark, as `read_bytes` would."""
    try:
        return read_bytes(path, at_most=at_most).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError("is not text in UTF-8", where=str(path), hint=f"{expected} is expected here") from None


def read_json(path: Path, *, expected: str) -> object:
    """Return the data of a JSON file; raise `InputError`, which names what was `expected`, if it cannot be read."""
    text = read_text(path, at_most=LARGEST_JSON, expected=expected)
    if found := _CONTROL.search(text):
        line, shown = text.count("\n", 0, found.start()) + 1, ascii(found[1])[1:-1]
        raise InputError(f"has characters that cannot be printed: {shown}", where=f"{path}:{line}")
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # of which a decoding error is one
        raise InputError(f"is not JSON: {error}", where=str(path), hint=f"{expected} is expected") from None


def write_whole(text: str, path: Path) -> None:
    """Write a text file, whole or not at all; raise `InputError` if it cannot be written there."""
    write_bytes(text.encode("utf-8"), path)


def write_bytes(content: bytes, path: Path) -> None:
    """Write a file, whole or not at all; raise `InputError` if it cannot be written there."""
    write_parts([content], path)


def write_parts(content: Iterable[bytes | memoryview], path: Path) -> None:
    """As `write_bytes`, one part of the content after the other."""
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            for part in content:
                file.write(part)
            os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise InputError(f"cannot be written: {error.strerror}", where=str(path)) from None
        raise


def check_target(path: Path) -> None:
    """Raise `InputError` if no file can be at `path`: a folder is, or a device, or it lies in no folder that exists."""
    try:
        impossible = (path.exists() and not path.is_file()) or not path.parent.is_dir()
    except (OSError, ValueError) as error:  # a name that is too long, or has a NUL
        what = f"cannot be written: {getattr(error, 'strerror', error)}"
        raise InputError(what, where=shortened(repr(str(path))), hint="give it a shorter name") from None
    if impossible:
        what = "is a folder" if path.is_dir() else "is no file" if path.exists() else "lies in no folder that exists"
        raise InputError(what, where=str(path), hint="name a file in a folder that exists")


@contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Within the block no other process writes to `path` that asks for the same; raises `InputError` where one does."""
    from filelock import FileLock, Timeout

    lock = cache_folder() / "locks" / f"{sha256(os.fsencode(path.resolve())).hexdigest()[:16]}.lock"
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(lock, timeout=0)
        held.acquire()
    except Timeout:
        raise InputError("is being written by another process", where=str(path), hint="let that one end") from None
    except OSError:  # a home that cannot be written to: then there is nothing to lock
        yield
        return
    try:
        yield
    finally:
        held.release()


def cache_folder() -> Path:
    """Return the folder of this program in the user's cache (XDG Base Directory Specification, 0.8)."""
    stated = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(stated) if os.path.isabs(stated) else Path.home() / ".cache"
    return base / "stanza-sim"
