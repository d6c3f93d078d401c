"""The folder that `-o` writes: all of it or nothing, and never over somebody else's files.

    result.json                 what --json prints
    details.json                what a page and pictures need beside it, see `details`
    inputs.json                 of a run that was measured: what it was predicted from, see `inputs`
    schedules/01-LABEL.txt      the printed form of each schedule
    spans/01-LABEL.predicted.csv, spans/01-LABEL.measured.csv
    paths/01-LABEL.csv          the critical path of the prediction, a step on each line
    traces/01-LABEL.json        both timelines and the path, for ui.perfetto.dev

The files are written into a new folder beside the target, which is renamed when it is complete. A folder that
already holds such a result, the page and pictures made of it, and nothing else, is replaced as a whole.
"""

from __future__ import annotations

import csv
import io
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stanza_sim.base.errors import InputError
from stanza_sim.base.tables import csv_cell, shortened
from stanza_sim.report.details import details_json
from stanza_sim.report.inputs import inputs_json
from stanza_sim.report.result import Result, result_json
from stanza_sim.report.trace import trace_json
from stanza_sim.timeline.critical_path import CriticalPath
from stanza_sim.timeline.spans import Timeline

RESULT = "result.json"
DETAILS = "details.json"
INPUTS = "inputs.json"
PAGE = "report.html"
PICTURES = "pictures"
_OURS = re.compile(
    r"result\.json|details\.json|inputs\.json|report\.html|pictures(/[a-z0-9-]+\.(png|svg))?"
    r"|schedules(/\d+-[^/]+\.txt)?|spans(/\d+-[^/]+\.(predicted|measured)\.csv)?"
    r"|paths(/\d+-[^/]+\.csv)?|traces(/\d+-[^/]+\.json)?"
)


def spans_csv(timeline: Timeline) -> str:
    """The spans of a timeline as CSV, in order of start; times in seconds to the nanosecond.

    In a folded prediction a rank stands for the `multiplicity` of its class.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["op", "rank", "iteration", "lane", "side", "start_s", "end_s", "nbytes", "multiplicity"])
    for s in sorted(timeline.spans, key=lambda s: (s.start_s, s.rank, s.op, s.side)):
        times = f"{s.start_s:.9f}", f"{s.end_s:.9f}"
        size = timeline.multiplicity.get(s.rank, 1)
        writer.writerow([csv_cell(s.op), s.rank, s.iteration, s.lane, s.side, *times, s.nbytes, size])
    return out.getvalue()


def path_csv(path: CriticalPath) -> str:
    """The steps of a critical path as CSV, in the order of time; the columns are those of its frame."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["kind", "op", "rank", "iteration", "start_s", "end_s"])
    for s in path:
        writer.writerow([s.kind, csv_cell(s.op), s.rank, s.iteration, f"{s.start_s:.9f}", f"{s.end_s:.9f}"])
    return out.getvalue()


def files(result: Result) -> Iterator[tuple[str, str]]:
    """Yield the path within the folder and the contents of every file."""
    yield RESULT, result_json(result)
    stems = _stems(result)
    yield DETAILS, details_json(result, stems)
    if result.inputs is not None:
        yield INPUTS, inputs_json(result.inputs)
    for stem, row in zip(stems, result.rows, strict=True):
        yield f"schedules/{stem}.txt", row.schedule.text()
        if row.prediction.timeline.spans:
            yield f"spans/{stem}.predicted.csv", spans_csv(row.prediction.timeline)
        if row.measurement is not None:
            yield f"spans/{stem}.measured.csv", spans_csv(row.measurement.timeline)
        if row.details is not None and row.prediction.timeline.spans:
            yield f"paths/{stem}.csv", path_csv(row.details.critical_path)
        if row.prediction.timeline.spans or row.measurement is not None:
            yield f"traces/{stem}.json", trace_json(row)


def _stems(result: Result) -> list[str]:
    """How the names of each row's files begin."""
    digits = max(2, len(str(len(result.rows))))
    return [f"{i:0{digits}}-{slug(f'{row.model} {row.label}') or 'run'}" for i, row in enumerate(result.rows, 1)]


def slug(text: str) -> str:
    """`text` in small letters, digits and hyphens, for a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _refused(target: Path, message: str) -> InputError:
    return InputError(message, where=str(target), hint="name a new folder, or one that an earlier run wrote")


def _unwritable(target: Path, error: OSError) -> InputError:
    return InputError(f"cannot be written: {error.strerror}", where=str(target), hint="name one that you may write")


def _may_replace(target: Path) -> None:
    """Raise `InputError` unless `target` is absent, empty, or holds a result and nothing else."""
    if not target.exists():
        return
    if not target.is_dir():
        raise _refused(target, "is not a folder")
    names = set()
    for folder, folders, files_in in os.walk(target):  # stops at the first foreign name: the rest may be a whole disk
        for name in sorted([*folders, *files_in]):
            inner = (Path(folder) / name).relative_to(target).as_posix()
            if not _OURS.fullmatch(inner):
                raise _refused(target, f"holds {shortened(inner)}, which is not part of a result")
            names.add(inner)
    if names and "result.json" not in names:
        raise _refused(target, "holds no result.json, so it is not a result that may be replaced")


@contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """Give a new folder beside `target`, gone when the block ends unless it was renamed; raises `InputError`."""
    try:
        _may_replace(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise _unwritable(target, error) from None
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check_writable(target: Path) -> None:
    """Raise `InputError` where `write_result` could not write, so that a long run does not find out at its end."""
    with _scratch(target.absolute()):
        pass


def write_result(result: Result, target: Path, text: str | None = None) -> None:
    """Write every file of `result` to the folder `target`, all or none. Raises `InputError` where that fails.

    `text` is what `result.json` holds, if it is not the result alone.
    """
    target = target.absolute()
    with _scratch(target) as scratch:
        try:
            for name, contents in files(result):
                path = scratch / name
                path.parent.mkdir(exist_ok=True)
                path.write_text(text if text is not None and name == RESULT else contents, encoding="utf-8")
            scratch.chmod(0o755)
            _put(scratch, target)
        except OSError as error:
            raise _unwritable(target, error) from None


def _put(scratch: Path, target: Path) -> None:
    """Rename `scratch` to `target`; what an earlier run left there is moved aside first and deleted last."""
    if not target.exists():
        scratch.rename(target)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    target.rename(aside / "old")
    try:
        scratch.rename(target)
    except OSError:
        (aside / "old").rename(target)
        aside.rmdir()
        raise
    shutil.rmtree(aside, ignore_errors=True)
