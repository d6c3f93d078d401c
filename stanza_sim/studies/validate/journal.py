"""The journal of a validation: one JSON object a line, appended as things are done, so that a run can be continued.

The first line says what is validated; the others are predictions and measurements of cases, and notes. A line that was
cut short (a full disk, a machine that went down) is the last one and is dropped when the journal is read again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from errno import ENOSPC
from pathlib import Path
from types import TracebackType
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, TypeAdapter, ValidationError

from stanza_sim.base.config import Section
from stanza_sim.base.errors import InputError
from stanza_sim.base.files import LARGEST_JSON, read_bytes
from stanza_sim.studies.validate.records import Measured, Predicted

NAME = "journal.jsonl"

Time = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Header(Section):
    """What a journal is about: the suite by name and digest, the machine in words, and when it was begun (UTC).

    `conditions` are what else must be the same for measurements to belong together, such as versions.
    """

    kind: Literal["run"] = "run"
    format: Literal["stanza-sim-validation/1"] = "stanza-sim-validation/1"
    suite: str
    digest: str
    machine: dict[str, str]
    conditions: dict[str, str]
    date: str

    def differences(self, other: Header) -> list[str]:
        """Why measurements of `other` do not belong here; empty if they do."""
        found = []
        if self.suite != other.suite:
            found.append(f"suite {other.suite}, not {self.suite}")
        elif self.digest != other.digest:
            found.append("another version of the suite")
        for what, mine, theirs in (
            ("machine", self.machine, other.machine),
            ("conditions", self.conditions, other.conditions),
        ):
            for key in sorted(mine.keys() | theirs.keys()):
                if mine.get(key) != theirs.get(key):
                    found.append(f"{key} {theirs.get(key)!r}, not {mine.get(key)!r} ({what})")
        return found


class Note(Section):
    """Something that was found out on the way about a network, such as what its calibration came to."""

    kind: Literal["note"] = "note"
    network: str
    text: str


class _Prediction(Section):
    iteration_s: Time
    exposed_comm_s: Time
    parts: dict[str, float]
    source: str
    nodes: int
    servers: int
    small_s: Time | None = None


class _Predicted(_Prediction):
    kind: Literal["prediction"] = "prediction"
    case: str


class _Measured(Section):
    kind: Literal["measurement"] = "measurement"
    case: str
    repeat: int
    iteration_s: Time
    iteration_s_min: Time
    iteration_s_max: Time
    exposed_comm_s: Time
    parts: dict[str, float]
    iterations: int
    wall_s: Time
    load: Time
    realtime: bool
    stolen: float
    tries: int
    others: float = 0.0
    drift: float | None = None
    predicted: _Prediction | None = None


_Entry: TypeAlias = Header | Note | _Predicted | _Measured
_ENTRY: TypeAdapter[_Entry] = TypeAdapter(Annotated[_Entry, Field(discriminator="kind")])


@dataclass(slots=True, kw_only=True)
class Done:
    """What a journal holds. Measurements by case, then by number of the repeat (from 0)."""

    header: Header
    notes: dict[str, list[str]] = field(default_factory=dict)
    predicted: dict[str, Predicted] = field(default_factory=dict)
    measured: dict[str, dict[int, Measured]] = field(default_factory=dict)

    def count(self) -> int:
        """How many measurements there are."""
        return sum(len(repeats) for repeats in self.measured.values())


class Journal:
    """A journal that is open for appending. `done` is what it holds, kept up to date. Use as a context manager.

    Every line is on disk before the method that writes it returns; one that cannot be written whole is taken back.
    Methods raise `InputError` then.
    """

    def __init__(self, path: Path, done: Done) -> None:
        self.path, self.done = path, done
        with _writing(path):
            self._file = path.open("ab", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def note(self, network: str, text: str) -> None:
        """Keep a note on a network."""
        self._append(Note(network=network, text=text))
        self.done.notes.setdefault(network, []).append(text)

    def predict(self, case: str, predicted: Predicted) -> None:
        """Keep the prediction of a case."""
        self._append(_Predicted(case=case, **asdict(predicted)))
        self.done.predicted[case] = predicted

    def measure(self, case: str, repeat: int, measured: Measured) -> None:
        """Keep the measurement of a repeat of a case."""
        self._append(_Measured(case=case, repeat=repeat, **asdict(measured)))
        self.done.measured.setdefault(case, {})[repeat] = measured

    def _append(self, entry: _Entry) -> None:
        line = entry.model_dump_json().encode() + b"\n"
        before = self._file.seek(0, os.SEEK_END)
        with _writing(self.path):
            try:
                if self._file.write(line) != len(line):
                    raise OSError(ENOSPC, os.strerror(ENOSPC))
                os.fsync(self._file.fileno())
            except BaseException:
                with suppress(OSError):
                    self._file.truncate(before)
                raise


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", where=str(path)) from None


def begin(folder: Path, header: Header) -> Journal:
    """Begin a journal in `folder`, which is made if need be.

    Raises `InputError` if there is one, and where it cannot be written.
    """
    path = folder / NAME
    if path.exists():
        hint = "go on with it by --resume, or name another folder"
        raise InputError("holds a validation that was not finished", where=str(folder), hint=hint)
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(path, Done(header=header))
    try:
        journal._append(header)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return journal


def resume(folder: Path, header: Header) -> Journal:
    """Open the journal in `folder` to go on with it.

    Raises `InputError` if there is none, if it cannot be read, and if what it has measured does not belong to `header`.
    """
    path = folder / NAME
    done, size = read(path)
    if found := done.header.differences(header):
        hint = "begin anew in another folder"
        raise InputError(f"cannot be continued: now it would be {'; '.join(found)}", where=str(path), hint=hint)
    with _writing(path):
        os.truncate(path, size)
    return Journal(path, done)


def read(path: Path) -> tuple[Done, int]:
    """Return what the journal at `path` holds, and how many of its bytes are whole lines. Raises `InputError`."""
    if not path.exists():
        hint = "leave --resume out to begin"
        raise InputError("there is nothing to continue here", where=str(path.parent), hint=hint)
    raw = read_bytes(path, at_most=LARGEST_JSON)
    size = raw.rfind(b"\n") + 1
    entries = [_parse(line, f"{path}:{number}") for number, line in enumerate(raw[:size].splitlines(), 1)]
    if not entries or not isinstance(entries[0], Header):
        raise InputError("is not the journal of a validation", where=str(path), hint="name another folder")
    done = Done(header=entries[0])
    for entry in entries[1:]:
        match entry:
            case Note():
                done.notes.setdefault(entry.network, []).append(entry.text)
            case _Predicted():
                done.predicted[entry.case] = Predicted(**entry.model_dump(exclude={"kind", "case"}))
            case _Measured():
                values = entry.model_dump(exclude={"kind", "case", "repeat", "predicted"})
                anew = None if entry.predicted is None else Predicted(**entry.predicted.model_dump())
                done.measured.setdefault(entry.case, {})[entry.repeat] = Measured(**values, predicted=anew)
            case Header():
                raise InputError("holds two journals", where=str(path), hint="name another folder")
    return done, size


def measurements_in(path: Path) -> int | None:
    """Return how many measurements a journal holds; None if there is no journal that could be read."""
    try:
        return read(path)[0].count()
    except InputError:
        return None


def _parse(line: bytes, where: str) -> _Entry:
    try:
        return _ENTRY.validate_json(line)
    except ValidationError as error:
        what = error.errors(include_url=False)[0]["msg"]
        raise InputError(f"is not a line of a journal: {what}", where=where, hint="name another folder") from None
