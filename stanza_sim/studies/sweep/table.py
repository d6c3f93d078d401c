"""The file of a sweep: one tidy CSV, one line for each point and row, appended point by point.

The first column says which sweep the line is of: a digest of the version, of what was set, and of the keys that are
varied, but not of their values. So a sweep can be continued, also with more values. The column `inputs` says what a
line was predicted from (see `inputs`): where that has changed, the sweep is not continued.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from stanza_sim.base.errors import InputError
from stanza_sim.base.files import LARGEST_TEXT, check_target, read_bytes, write_whole
from stanza_sim.base.tables import csv_cell, of_csv_cell
from stanza_sim.base.version import __version__
from stanza_sim.studies.sweep.inputs import changes
from stanza_sim.studies.sweep.points import SweepRow
from stanza_sim.studies.sweep.vary import Axis, Point

_WHOLE, _FRACTIONS = (
    ("nodes", "batch_per_worker", "sent_bytes"),
    (
        "samples_per_s",
        "samples_per_s_low",
        "samples_per_s_high",
        "tokens_per_s",
        "mfu",
        "iteration_s",
        "exposed_comm_s",
        "bound_s",
    ),
)

FIELDS = tuple(f.name for f in fields(SweepRow) if f.name != "spread")
"""What a file keeps of a row."""


def digest_of(overrides: Sequence[str], axes: Sequence[Axis]) -> str:
    """Which sweep this is, in 12 hexadecimal digits."""
    what = {"version": __version__, "set": list(overrides), "vary": [axis.key for axis in axes]}
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]


class Table:
    """The lines of a sweep by point, and their file if there is a path; every point is written as it is added.

    `inputs` says what a point is predicted from now.
    """

    def __init__(
        self, digest: str, axes: Sequence[Axis], path: Path | None, inputs: Callable[[Point], str] = lambda point: ""
    ) -> None:
        self.digest, self.path, self.inputs = digest, path, inputs
        self.keys = tuple(axis.key for axis in axes)
        for axis in axes:
            if axis.key in _WHOLE and (odd := [value for value in axis.values if not value.isdecimal()]):
                hint = "give the number itself"
                raise InputError(f"{odd[0]!r} is not a whole number", where=f"--vary {axis.key}={odd[0]}", hint=hint)
        own = [name for name in FIELDS if name not in ("reason", *self.keys)]
        self.columns = ("sweep", *self.keys, *own[:3], "feasible", *own[3:], "inputs", "reason")
        self.lines: dict[Point, tuple[SweepRow, ...]] = {}

    def open(self) -> None:
        """Read what the file holds already.

        A last point that was cut short is dropped only if its last line is; see `complete`. Raises `InputError` for a
        file of another sweep or of something else, or whose lines were predicted from what has changed since, and where
        it cannot be written.
        """
        if self.path is None:
            return
        check_target(self.path)
        if self.path.exists():
            self._read(self.path)

    def begin(self) -> None:
        """Begin the file, or write it again without what was cut short. Raises `InputError` if it cannot be written."""
        if self.path is not None:
            self.rewrite()

    def drop(self, point: Point) -> None:
        """Forget a point."""
        self.lines.pop(point, None)

    @property
    def last(self) -> Point | None:
        """The point that was written last."""
        return next(reversed(self.lines), None)

    def add(self, point: Point, lines: Sequence[SweepRow]) -> None:
        """Keep the lines of a point. Raises `InputError` where they cannot be written."""
        self.lines[point] = tuple(lines)
        if self.path is None:
            return
        try:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                file.write(self._text([point]))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(f"cannot be written: {error.strerror}", where=str(self.path)) from None

    def finish(self, order: Iterable[Point]) -> None:
        """Put the points into order: those of `order`, then what the file held beside them."""
        known = [point for point in order if point in self.lines]
        arranged = list(dict.fromkeys([*known, *self.lines]))
        if arranged != list(self.lines):
            self.lines = {point: self.lines[point] for point in arranged}
            self.rewrite()

    def rewrite(self) -> None:
        """Write the whole file anew. Raises `InputError` where it cannot be written."""
        if self.path is not None:
            write_whole(self.text(), self.path)

    def text(self) -> str:
        """The whole table."""
        return self._head() + self._text(list(self.lines))

    # ---- the file --------------------------------------------------------------------------------------------

    def _head(self) -> str:
        return ",".join(self.columns) + "\n"

    def _text(self, some: Sequence[Point]) -> str:
        out = io.StringIO()
        writer = csv.DictWriter(out, self.columns, lineterminator="\n", extrasaction="ignore")
        for point in some:
            inputs = self.inputs(point)
            for line in self.lines[point]:
                cells = {name: getattr(line, name) for name in FIELDS}
                texts = {key: "" if value is None else csv_cell(str(value)) for key, value in cells.items()}
                texts |= {"sweep": self.digest, "feasible": "yes" if line.feasible else "no", "inputs": inputs}
                writer.writerow(texts | {key: csv_cell(value) for key, value in zip(self.keys, point, strict=True)})
        return out.getvalue()

    def _read(self, path: Path) -> None:
        try:
            raw = read_bytes(path, at_most=LARGEST_TEXT).decode("utf-8")
        except UnicodeDecodeError:
            raise self._foreign("is not a table of a sweep") from None
        text = raw[: raw.rfind("\n") + 1]  # a line that was cut short is dropped
        if not text:
            if raw and not self._head().startswith(raw):
                raise self._foreign("is not a table of a sweep")
            return
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        try:
            if tuple(reader.fieldnames or ()) != self.columns:
                ours = (reader.fieldnames or [""])[0] == "sweep"
                what = "is of a sweep that varied other keys, or of another version"
                raise self._foreign(what if ours else "is not a table of a sweep")
            found: dict[Point, list[SweepRow]] = {}
            for number, written in enumerate(reader, 2):
                cells = {key: of_csv_cell(cell) if isinstance(cell, str) else cell for key, cell in written.items()}
                if None in cells or None in cells.values():
                    raise self._foreign(f"has a line that is no line of a sweep: number {number}")
                if cells["sweep"] != self.digest:
                    raise self._foreign("is of another sweep: with other keys set or varied, or of another version")
                point = tuple(cells[key] for key in self.keys)
                if told := changes(cells["inputs"], self.inputs(point)):
                    raise self._foreign(f"cannot be continued: since it was begun, {', '.join(told)}")
                found.setdefault(point, []).append(self._line(cells, number))
        except csv.Error as error:
            raise self._foreign(f"is not a table of a sweep: {error}") from None
        self.lines = {point: tuple(lines) for point, lines in found.items()}

    def _line(self, cells: Mapping[str, str], number: int) -> SweepRow:
        values: dict[str, str | int | float | None] = {}
        try:
            for name in FIELDS:
                text = cells.get(name, "")
                if name in _WHOLE:
                    values[name] = int(text) if text else None
                elif name in _FRACTIONS:
                    values[name] = float(text) if text else None
                else:
                    values[name] = text
        except ValueError:
            raise self._foreign(f"has a line that is no line of a sweep: number {number}") from None
        return SweepRow(**values)  # type: ignore[arg-type]

    def _foreign(self, what: str) -> InputError:
        return InputError(what, where=str(self.path), hint="start anew: name another file, or remove this one")
