"""The files of published measurements: CSV, one row each, checked when they are read.

The columns are explained in `stanza_sim/data/published/README.md`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import isfinite
from pathlib import Path

from stanza_sim.base.errors import InputError
from stanza_sim.base.files import LARGEST_TEXT, read_text

TRAINING_COLUMNS = (
    "model",
    "strategy",
    "gpu",
    "gpus_per_host",
    "hosts",
    "nic_gbps",
    "transport",
    "intra",
    "batch_per_gpu",
    "precision",
    "samples_per_s",
    "single_gpu_samples_per_s",
    "usable",
)
"""Columns that a file of training rows must have; others are taken where they are there."""
MOST_GPUS = 16_384
"""A row of more GPUs is refused: nobody has published one, and it would take minutes to simulate."""


class Usable(StrEnum):
    """What a row can be used for: scored; listed, since data were read as well; or too little is stated."""

    YES = "yes"
    DATA = "data"
    NO = "no"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRow:
    """One published training throughput. `samples_per_s` is that of all GPUs; 0 of `nic_gbps` means not stated.

    `single_gpu_samples_per_s` is the same source's figure of one GPU. `where` is the file and line, for messages.
    """

    id: str
    where: str
    source: str
    place: str
    framework: str
    model: str
    classes: int | None
    strategy: str
    servers: int | None
    gpu: str
    gpus_per_host: int
    hosts: int
    nic_gbps: float
    transport: str
    intra: str
    batch_per_gpu: int
    precision: str
    samples_per_s: float | None
    single_gpu_samples_per_s: float | None
    usable: Usable
    notes: str

    @property
    def gpus(self) -> int:
        """GPUs in all."""
        return self.gpus_per_host * self.hosts

    @property
    def linear(self) -> float | None:
        """What linear scaling predicts: samples/s of one GPU times their number."""
        single = self.single_gpu_samples_per_s
        return None if single is None else single * self.gpus

    @property
    def efficiency(self) -> float | None:
        """Measured scaling efficiency: samples/s over those of linear scaling."""
        linear, measured = self.linear, self.samples_per_s
        return None if linear is None or measured is None else measured / linear

    @property
    def scored(self) -> bool:
        """Whether its prediction counts: usable, of several GPUs, and one GPU's throughput is known."""
        known = self.samples_per_s is not None and self.single_gpu_samples_per_s is not None
        return self.usable is Usable.YES and self.gpus > 1 and known


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """The cells of one line of a file, and where it stands."""

    number: int
    where: str
    cells: Mapping[str, str]

    def text(self, column: str, default: str = "") -> str:
        """A text; `default` where there is no such column or nothing in it."""
        return self.cells.get(column, "").strip() or default

    def needed(self, column: str) -> str:
        """A text that must be there."""
        if not (text := self.text(column)):
            raise self.wrong(column, "is empty", "a value is needed")
        return text

    def number_of(self, column: str, *, least: float | None = None) -> float | None:
        """A positive, finite number, or one of at least `least`; None where nothing is stated."""
        if not (text := self.text(column)):
            return None
        try:
            value = float(text.replace(",", ""))
        except ValueError:
            raise self.wrong(column, f"is {text[:40]!r}", "a number is expected") from None
        if not isfinite(value) or (value <= 0 if least is None else value < least):
            what = "positive number" if least is None else f"number of at least {least:g}"
            raise self.wrong(column, f"is {text[:40]}", f"a {what} is expected")
        return value

    def count(self, column: str, default: int | None = None, *, least: int | None = None) -> int:
        """A whole number of at least 1, or `least`."""
        value = self.number_of(column, least=least)
        if value is None:
            if default is not None:
                return default
            raise self.wrong(column, "is empty", "a whole number is needed")
        if value != int(value) or value > 10**12:
            raise self.wrong(column, f"is {value:g}", "a whole number is expected")
        return int(value)

    def wrong(self, column: str, what: str, hint: str) -> InputError:
        """An error about one cell."""
        return InputError(f"{column} {what}", where=self.where, hint=hint)


def read_cells(path: Path, columns: Sequence[str]) -> list[Cells]:
    """Return the lines of a CSV file below its heading; empty lines are left out.

    Raises `InputError` for a file that cannot be read, that lacks one of `columns`, names one twice, has no rows, or
    has a row with more cells than its heading.
    """
    text = read_text(path, at_most=LARGEST_TEXT, expected="a CSV file")
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        heading = [name.strip() for name in next(reader, [])]
        for name in columns:
            if name not in heading:
                hint = f"its columns must be {', '.join(columns)}"
                raise InputError(f"has no column {name!r}", where=f"{path}:1", hint=hint)
        if twice := next((name for name in heading if name and heading.count(name) > 1), None):
            raise InputError(f"has the column {twice!r} twice", where=f"{path}:1")
        found: list[Cells] = []
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if not any(cell.strip() for cell in row):
                continue
            if len(row) > len(heading):
                what = f"{len(row)} cells under {len(heading)} columns"
                raise InputError(what, where=where, hint="put a text that has commas in quotes")
            found.append(Cells(number=len(found) + 1, where=where, cells=dict(zip(heading, row, strict=False))))
    except csv.Error as error:
        raise InputError(f"is not CSV: {error}", where=f"{path}:{reader.line_num}") from None
    if not found:
        raise InputError("has no rows", where=str(path), hint="a heading and at least one row are expected")
    return found


def read_training(path: Path) -> list[TrainingRow]:
    """Return the training rows of a file; a row without `id` is called by its number, the first one 1.

    Raises `InputError` with file and line for what is wrong.
    """
    rows = [_training(cells) for cells in read_cells(path, TRAINING_COLUMNS)]
    ids = [row.id for row in rows]
    if len(set(ids)) < len(ids):
        again = next(row for i, row in enumerate(rows) if row.id in ids[:i])
        raise InputError(f"the id {again.id!r} is there twice", where=again.where)
    return rows


def _training(cells: Cells) -> TrainingRow:
    usable = cells.text("usable", "yes").lower()
    if usable not in set(Usable):
        raise cells.wrong("usable", f"is {usable[:40]!r}", "yes, data or no is expected")
    row = TrainingRow(
        id=cells.text("id", str(cells.number)),
        where=cells.where,
        source=cells.text("source", "unnamed source"),
        place=cells.text("where"),
        framework=cells.text("framework"),
        model=cells.needed("model"),
        classes=cells.count("classes") if cells.text("classes") else None,
        strategy=cells.needed("strategy"),
        servers=cells.count("servers") if cells.text("servers") else None,
        gpu=cells.needed("gpu"),
        gpus_per_host=cells.count("gpus_per_host", 1),
        hosts=cells.count("hosts", 1),
        nic_gbps=cells.number_of("nic_gbps") or 0.0,
        transport=cells.text("transport").lower(),
        intra=cells.text("intra").lower(),
        batch_per_gpu=cells.count("batch_per_gpu"),
        precision=cells.text("precision", "fp32").lower(),
        samples_per_s=cells.number_of("samples_per_s"),
        single_gpu_samples_per_s=cells.number_of("single_gpu_samples_per_s"),
        usable=Usable(usable),
        notes=cells.text("notes"),
    )
    if row.gpus > MOST_GPUS:
        raise cells.wrong("gpus_per_host, hosts:", f"are {row.gpus:,} GPUs", f"{MOST_GPUS:,} are the most")
    return row
