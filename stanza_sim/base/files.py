"""Reading and writing files of JSON: whole or not at all, and errors that name the file."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from stanza_sim.base.errors import InputError


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number that JSON knows")


def read_json(path: Path, *, expected: str) -> object:
    """Return the data of a JSON file; raise `InputError`, which names what was `expected`, if it cannot be read."""
    try:
        return json.loads(path.read_bytes(), parse_constant=_no_constant)
    except FileNotFoundError:
        raise InputError("no such file", where=str(path)) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from None
    except (ValueError, RecursionError) as error:  # of which a decoding error is one
        raise InputError(f"is not JSON: {error}", where=str(path), hint=f"{expected} is expected") from None


def write_whole(text: str, path: Path) -> None:
    """Write a text file, whole or not at all; raise `InputError` if it cannot be written there."""
    write_bytes(text.encode("utf-8"), path)


def write_bytes(content: bytes, path: Path) -> None:
    """Write a file, whole or not at all; raise `InputError` if it cannot be written there."""
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            os.fchmod(handle, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise InputError(f"cannot be written: {error.strerror}", where=str(path)) from None
        raise


def check_target(path: Path) -> None:
    """Raise `InputError` if no file can be at `path`: a folder is, or a device, or it lies in no folder that exists."""
    if (path.exists() and not path.is_file()) or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else "is no file" if path.exists() else "lies in no folder that exists"
        raise InputError(what, where=str(path), hint="name a file in a folder that exists")


def cache_folder() -> Path:
    """Return the folder of this program in the user's cache (XDG Base Directory Specification, 0.8)."""
    stated = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(stated) if os.path.isabs(stated) else Path.home() / ".cache"
    return base / "stanza-sim"
