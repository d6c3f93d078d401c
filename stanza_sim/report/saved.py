"""Reads back the folder that `-o` writes: what a page and pictures are made of."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from stanza_sim.base.errors import InputError, at
from stanza_sim.base.files import LARGEST_JSON, read_json, read_text
from stanza_sim.base.tables import of_csv_cell, reading_csv
from stanza_sim.report.details import FORMAT, VERSION
from stanza_sim.report.folder import DETAILS, RESULT
from stanza_sim.schedule import Schedule, parse
from stanza_sim.timeline.spans import Span, Timeline

Which = Literal["predicted", "measured"]
_Kind = TypeVar("_Kind", bound=BaseModel)
HINT = "name the folder that `stanza-sim run -o DIR` or `plan -o DIR` wrote, with this version"


class _Part(BaseModel):
    """Part of a file; keys that nothing here needs may be there too."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class Predicted(_Part):
    """What `result.json` says of a prediction; see `result`."""

    iteration_s: float = Field(gt=0)
    samples_per_s: float
    samples_per_s_low: float | None = None
    samples_per_s_high: float | None = None
    mfu: float | None = None
    exposed_comm_s: float
    bound_s: float
    bottleneck: str
    cost_source: str
    basis: str = ""


class Measured(_Part):
    """What `result.json` says of a measurement."""

    compute: str
    iteration_s: float = Field(gt=0)
    iteration_s_min: float
    iteration_s_max: float
    samples_per_s: float
    dilate: float = 1.0
    loss_first: float | None = None
    loss_last: float | None = None


class Effect(_Part):
    """What an iteration takes with something faster; see `explanation`."""

    what: str
    times: float | None
    place: str = ""
    iteration_s: float = Field(gt=0)


class Explained(_Part):
    """Why an iteration takes as long as it does."""

    text: str
    effects: tuple[Effect, ...]


class Run(_Part):
    """A row of `result.json`."""

    label: str
    model: str
    strategy: str
    settings: dict[str, JsonValue] = {}
    cluster: str
    nodes: int
    batch_per_worker: int
    precision: str
    seed: int
    schedule_hash: str
    predicted: Predicted
    tied_with: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    measured: Measured | None = None
    error_pct: float | None = None
    explanation: Explained | None = None


class Infeasible(_Part):
    """A row that is not possible."""

    label: str
    model: str
    reason: str


class _Result(_Part):
    experiment: str
    runs: tuple[Run, ...]
    infeasible: tuple[Infeasible, ...] = ()


class _Best(_Part):
    best: Run | None = None


class _Plans(_Part):
    experiment: str
    plans: tuple[_Best, ...]


class Typical(_Part):
    """Typical iterations of a timeline; see `details`."""

    window_s: tuple[float, float]
    iterations: int = Field(gt=0)
    seconds: dict[str, float]


class Traffic(_Part):
    """Bytes from place to place per iteration."""

    names: tuple[str, ...]
    nbytes: tuple[tuple[int, int, int], ...]


class BlockWork(_Part):
    """A block's forward pass on its device."""

    name: str
    kind: str
    flops: float
    nbytes: float
    predicted_s: float = Field(gt=0)
    measured_s: float | None = None


class Device(_Part):
    """What a data sheet says."""

    name: str
    precision: str
    peak_flops: float = Field(gt=0)
    memory_Bps: float = Field(gt=0)


class Inside(_Part):
    """What joins the devices of a host; `busy` as of a link."""

    about: str
    busy: tuple[tuple[float, float], ...]


class Node(_Part):
    """Hosts or switches that are alike."""

    name: str
    kind: str
    count: int
    level: int
    about: str
    inside: Inside | None = None


class Link(_Part):
    """The links between two kinds of nodes, by number; `busy` has the mean and the most of each row."""

    from_: int = Field(alias="from")
    to: int
    about: str
    busy: tuple[tuple[float, float], ...]


class ClusterDetails(_Part):
    """What is alike, once."""

    name: str
    description: str
    hosts: int
    ranks: int
    nodes: tuple[Node, ...]
    links: tuple[Link, ...]


class DetailsRow(_Part):
    """What `details.json` says of a row."""

    files: str = Field(pattern=r"^[0-9]+-[a-z0-9-]+$")
    label: str
    model: str
    predicted: Typical | None
    measured: Typical | None
    utilisation: dict[str, float]
    traffic: Traffic | None
    blocks: tuple[BlockWork, ...]
    device: Device | None


class _Details(_Part):
    format: str
    version: int
    settings: dict[str, JsonValue] | None
    versions: dict[str, str]
    cluster: ClusterDetails | None
    rows: tuple[DetailsRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedRow:
    """A row: what both files say of it, and its schedule."""

    folder: Path
    run: Run
    details: DetailsRow
    schedule: Schedule
    schedule_text: str

    def typical(self, which: Which) -> Typical | None:
        """Typical iterations of its prediction or measurement."""
        return self.details.predicted if which == "predicted" else self.details.measured

    def timeline(self, which: Which) -> Timeline | None:
        """Its spans within typical iterations, cut to these, from the beginning of the first; None if there are none.

        Raises `InputError` for a file that cannot be read.
        """
        typical = self.typical(which)
        if typical is None:
            return None
        return _timeline(self.spans_path(which), typical.window_s)

    def spans_path(self, which: Which) -> Path:
        """The table of its spans."""
        return self.folder / "spans" / f"{self.details.files}.{which}.csv"


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A whole folder."""

    folder: Path
    experiment: str
    rows: tuple[SavedRow, ...]
    infeasible: tuple[Infeasible, ...]
    settings: Mapping[str, JsonValue] | None
    versions: Mapping[str, str]
    cluster: ClusterDetails | None

    def by_model(self) -> dict[str, list[SavedRow]]:
        """The rows of each model, in order."""
        groups: dict[str, list[SavedRow]] = {}
        for row in self.rows:
            groups.setdefault(row.run.model, []).append(row)
        return groups


def read_folder(folder: Path) -> Saved:
    """Read what `write_result` wrote. Raises `InputError`, which says what is wrong and where."""
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "no such folder"
        raise InputError(what, where=str(folder), hint=HINT)
    for name in (RESULT, DETAILS):
        if not (folder / name).exists():
            raise InputError(f"holds no {name}", where=str(folder), hint=HINT)
    experiment, runs, infeasible = _runs(folder / RESULT)
    path = folder / DETAILS
    details = _checked(_Details, path)
    if (details.format, details.version) != (FORMAT, VERSION):
        what = f"is {details.format!r} of version {details.version}, not {FORMAT!r} of version {VERSION}"
        raise InputError(what, where=str(path), hint="run again with this version, or report with that one")
    named = [[(row.label, row.model) for row in rows] for rows in (runs, details.rows)]
    if named[0] != named[1]:
        raise InputError(f"its rows are not those of {RESULT}", where=str(path), hint=HINT)
    if not runs:
        raise InputError("has no rows", where=str(folder / RESULT), hint="there is nothing to show; run again")
    rows = tuple(_row(folder, run, row) for run, row in zip(runs, details.rows, strict=True))
    return Saved(
        folder=folder,
        experiment=experiment,
        rows=rows,
        infeasible=infeasible,
        settings=details.settings,
        versions=details.versions,
        cluster=details.cluster,
    )


def _runs(path: Path) -> tuple[str, tuple[Run, ...], tuple[Infeasible, ...]]:
    """The name, the rows and what is not possible; of a plan, the best of each model."""
    data = read_json(path, expected="a result")
    if isinstance(data, dict) and "plans" in data:
        plans = _checked(_Plans, path, data)
        return plans.experiment, tuple(one.best for one in plans.plans if one.best is not None), ()
    result = _checked(_Result, path, data)
    return result.experiment, result.runs, result.infeasible


def _checked(kind: type[_Kind], path: Path, data: object = None) -> _Kind:
    """What a file holds. Raises `InputError` with the key that is wrong."""
    try:
        return kind.model_validate(read_json(path, expected="part of a result") if data is None else data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(f"{key}: {first['msg']}", where=str(path), hint=HINT) from None


def _row(folder: Path, run: Run, details: DetailsRow) -> SavedRow:
    path = folder / "schedules" / f"{details.files}.txt"
    text = read_text(path, at_most=LARGEST_JSON, expected="a schedule")
    with at(str(path), outer=True):
        schedule = parse(text)
    return SavedRow(folder=folder, run=run, details=details, schedule=schedule, schedule_text=text)


def spans_of(path: Path) -> Iterator[tuple[Span, int]]:
    """Yield the spans of a table, and how many ranks each stands for. Raises `InputError`."""
    text = read_text(path, at_most=LARGEST_JSON, expected="a table of spans")
    with reading_csv(path, "a table of spans", HINT):
        for number, line in enumerate(csv.DictReader(text.splitlines()), 2):
            try:
                span = Span(
                    op=of_csv_cell(line["op"]),
                    rank=int(line["rank"]),
                    iteration=int(line["iteration"]),
                    lane=line["lane"],
                    side=line["side"],
                    start_s=float(line["start_s"]),
                    end_s=float(line["end_s"]),
                    nbytes=int(line["nbytes"]),
                )
                count = int(line["multiplicity"])
            except (AttributeError, KeyError, TypeError, ValueError):
                raise InputError("is no line of spans", where=f"{path}:{number}", hint=HINT) from None
            yield span, count


def _timeline(path: Path, window_s: tuple[float, float]) -> Timeline:
    begin_s, end_s = window_s
    spans: list[Span] = []
    multiplicity: dict[int, int] = {}
    for span, count in spans_of(path):
        if span.end_s > begin_s and span.start_s < end_s:
            multiplicity[span.rank] = count
            start_s, cut_s = max(span.start_s, begin_s) - begin_s, min(span.end_s, end_s) - begin_s
            spans.append(replace(span, start_s=start_s, end_s=cut_s))
    return Timeline(spans=spans, iteration_end_s={}, multiplicity=multiplicity)
