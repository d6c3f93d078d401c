"""Reads a foreign file: whole, bounded in size, as text with numbered lines, and of the kind that was asked for."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from stanza_sim.base.errors import InputError
from stanza_sim.importers.looks_like import Foreign, looks_like

MOST_BYTES = 64 * 2**20
"""Files of topologies are not larger; what is, is refused before it is read."""
MOST_LINE = 1_000_000
"""Nor has one of their lines more characters."""
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class ForeignFile:
    """A file of another program: its path as the user gave it, and its text."""

    path: str
    text: str

    @cached_property
    def lines(self) -> Sequence[str]:
        """Its lines, the first of which is line 1 in messages."""
        return self.text.split("\n")

    @property
    def name(self) -> str:
        """The file's name without its folder and suffix."""
        return Path(Path(self.path).name.removesuffix(".gz")).stem or "cluster"

    def at(self, line: int | None) -> str:
        """The file and a line of it, for a message."""
        return self.path if line is None else f"{self.path}:{line}"

    def wrong(self, what: str, line: int | None = None, hint: str | None = None) -> InputError:
        """An error that names this file and the line, to be raised."""
        return InputError(what, where=self.at(line), hint=hint)


def read_bytes(path: Path, *, most: int = MOST_BYTES) -> bytes:
    """Return what a file holds, unpacked if it is packed by gzip.

    Raises `InputError` where it cannot be read, is empty, or holds (packed or not) more than `most` bytes.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(most + 1)
    except FileNotFoundError:
        raise InputError("no such file", where=str(path)) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from None
    if raw.startswith(_GZIP) and len(raw) <= most:
        raw = _unpacked(raw, path, most)
    if len(raw) > most:
        raise InputError(f"has more than {most // 2**20} MiB, too much for such a file", where=str(path))
    if not raw.strip():
        raise InputError("is empty", where=str(path))
    return raw


def _unpacked(raw: bytes, path: Path, most: int) -> bytes:
    unpacker = zlib.decompressobj(wbits=31)
    try:
        text = unpacker.decompress(raw, most + 1)
    except zlib.error as error:
        raise InputError(f"is a broken gzip file: {error}", where=str(path)) from None
    if not unpacker.eof and len(text) <= most:
        raise InputError("is a gzip file that is cut short", where=str(path))
    return text


def read_foreign(path: Path, wanted: Foreign, *, most: int = MOST_BYTES) -> ForeignFile:
    """Return a file that looks like the `wanted` kind, or like none that is known: then its reader has the last word.

    Raises `InputError` for one that cannot be read, is too large, or looks like another kind, which the message names.
    """
    raw = read_bytes(path, most=most)
    found = looks_like(raw)
    if found is not None and found is not wanted:
        what = f"looks like {found.what}, not {wanted.what}"
        raise InputError(what, where=str(path), hint=_other(found, path))
    text = decoded(raw, path, wanted)
    longest = max(map(len, text.split("\n")))
    if longest > MOST_LINE:
        raise InputError(f"has a line of {longest:,} characters", where=str(path), hint=f"{wanted.what} is expected")
    return ForeignFile(path=str(path), text=text)


def _other(found: Foreign, path: Path) -> str:
    """What can be done with a file of a kind that was not asked for."""
    match found:
        case Foreign.CLUSTER | Foreign.NODE_LINK | Foreign.GRAPHML:
            return f"what is a cluster already needs no import: stanza-sim show cluster {path}"
        case Foreign.EXPERIMENT:
            return f"try: stanza-sim run {path}"
        case Foreign.DEVICE | Foreign.NCCL_PROFILE:
            return "name it in a cluster file"
    return f"try: stanza-sim import {found.command} {path}" if found.command else "no import reads such files"


def decoded(raw: bytes, path: Path, wanted: Foreign) -> str:
    """Return text with `\\n` at the end of lines; raise `InputError` for what is no text."""
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):  # as PowerShell redirects the output of a program
        text = raw.decode("utf-16", errors="replace")
    else:
        text = raw.decode("utf-8-sig", errors="replace")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InputError("is not text", where=f"{path}:{line}", hint=f"{wanted.what} is expected")
    return text.replace("\r\n", "\n").replace("\r", "\n")
