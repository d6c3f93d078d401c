"""Checked files that still know on which line each of their keys stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel

Key = tuple[str | int, ...]
"""A path into the data of a file: mapping keys and list indices."""

_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where data came from: the file, the line of each key, and the keys that `--set` has given."""

    file: str
    lines: Mapping[Key, int]
    overridden: Mapping[Key, str] = field(default_factory=dict)

    def line(self, key: Key) -> int | None:
        """Return the line (from 1) of `key` or, where it is absent, of what it would stand in."""
        for length in range(len(key), -1, -1):
            if (line := self.lines.get(key[:length])) is not None:
                return line
        return None

    def where(self, *key: str | int) -> str:
        """Return `file:line: dotted.key`, or `--set dotted.key=value` for what an override gave."""
        dotted = ".".join(str(k) for k in key)
        for path, text in self.overridden.items():
            if key[: len(path)] == path:
                return f"--set {text}" + (f": {dotted}" if len(key) > len(path) else "")
            if key and path[: len(key)] == key and key not in self.lines:  # the override made what it is in
                return f"--set {text}: {dotted}"
        line = self.line(key)
        place = f"{self.file}:{line}" if line is not None and key else self.file
        return f"{place}: {dotted}" if dotted else place


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded(Generic[_Model]):
    """A checked file: its contents, and where each key of it stands."""

    value: _Model
    source: Source
    path: Path
