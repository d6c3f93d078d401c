"""What an importer hands back, and how it becomes a file: valid before it is there.

The file is YAML that a person can edit, written as text so that every part can say in a comment where it comes from.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stanza_sim.base.errors import InputError
from stanza_sim.base.version import __version__
from stanza_sim.cluster import load_cluster

WIDTH = 120
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null", "inf", "nan"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Something in a foreign file that was not used, or was taken in a way that a person should know, and its lines."""

    what: str
    lines: tuple[int, ...] = ()

    def at(self, path: str) -> str:
        """The note as it is told: file, lines, what."""
        return f"{path}:{lines_text(self.lines)}: {self.what}" if self.lines else f"{path}: {self.what}"

    @property
    def remark(self) -> str:
        """The note as a comment in the native file."""
        where = f"line {self.lines[0]}" if len(set(self.lines)) == 1 else f"lines {lines_text(self.lines)}"
        return f"{where}: {self.what}" if self.lines else self.what


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """The text of a native file, and what to tell about how it came about."""

    text: str
    notes: tuple[Note, ...] = ()


def lines_text(lines: Iterable[int]) -> str:
    """Line numbers, shortened: `6-20,24,30 and 45 more`."""
    ranges: list[list[int]] = []
    for line in sorted(set(lines)):
        if ranges and line == ranges[-1][1] + 1:
            ranges[-1][1] = line
        else:
            ranges.append([line, line])
    shown = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges[:4])
    rest = sum(b - a + 1 for a, b in ranges[4:])
    return f"{shown} and {rest} more" if rest else shown


def scalar(value: str) -> str:
    """A text as YAML reads it back: plain where that is safe, else quoted."""
    return value if _PLAIN.fullmatch(value) and value.lower() not in _WORDS else json.dumps(value, ensure_ascii=False)


def rate_text(bandwidth_Bps: float, *, bits: bool = False) -> str:
    """A rate as a user writes it, in bytes or bits per second: `24GB/s`, `200Gbps`."""
    value = bandwidth_Bps * 8 if bits else bandwidth_Bps
    unit = "bps" if bits else "B/s"
    for prefix, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= (10 if prefix == "T" else 1) * factor:
            return f"{_digits(value / factor)}{prefix}{unit}"
    return f"{_digits(value)}{unit}"


def _digits(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".") if value < 1e6 else f"{value:.0f}"


def heading(source: str, program: str, notes: Sequence[Note] = ()) -> list[str]:
    """The comment at the top of a native file: where it comes from, and what was assumed or not used."""
    lines = wrapped(f"Written by stanza-sim {__version__} from {_comment(Path(source).name)}, {program}.")
    lines.append("# It is yours to edit: `stanza-sim show cluster FILE` prints what is in force.")
    if notes:
        lines.append("# Of that file:")
    for text in (note.remark for note in notes):
        lines += wrapped(_comment(text), "# - ", "#   ")
    return lines


def wrapped(text: str, first: str = "# ", further: str = "# ") -> list[str]:
    """A comment in lines of at most `WIDTH`, which begin with `first` and `further`."""
    lines, line = [], first
    for word in text.split():
        if line.strip() not in (first.strip(), further.strip()) and len(line) + len(word) > WIDTH:
            lines.append(line.rstrip())
            line = further
        line += f"{word} "
    return [*lines, line.rstrip()]


def aligned(rows: Iterable[tuple[str, str]]) -> list[str]:
    """Lines of YAML with comments behind them in one column; a comment that does not fit stands above its line."""
    rows = list(rows)
    column = max((len(text) for text, comment in rows if comment and len(text) <= 40), default=0) + 2
    lines: list[str] = []
    for text, comment in rows:
        comment = _comment(comment)
        indent = len(text) - len(text.lstrip(" "))
        if comment and max(column, len(text) + 2) + 2 + len(comment) > WIDTH:
            lines += [*wrapped(comment, before := " " * indent + "# ", before), text]
        else:
            lines.append(
                f"{text.ljust(column)}# {comment}" if comment and len(text) < column else _behind(text, comment)
            )
    return lines


def _behind(text: str, comment: str) -> str:
    return f"{text}  # {comment}" if comment else text


def _comment(text: str) -> str:
    """A text that stays within its comment, whatever a foreign file put into it."""
    return "".join(c if c.isprintable() else " " for c in text)


def check_native(text: str, source: str, target: Path | None) -> None:
    """Raise `InputError`, which names the foreign file `source`, where `text` is no cluster; nothing is left behind."""
    folder = tempfile.gettempdir() if target is None else str(target.parent)
    try:
        handle, name = tempfile.mkstemp(dir=folder, prefix=".import-", suffix=".yaml")
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", where=str(target or folder)) from None
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        load_cluster(Path(name))
    except InputError as error:
        raise InputError(f"what it describes is no cluster: {error.message}", where=source, hint=error.hint) from None
    finally:
        Path(name).unlink(missing_ok=True)
