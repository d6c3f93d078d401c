"""The folder of a validation: the journal while it runs, and the report beside it once all cases are measured.

journal.jsonl    everything that was predicted and measured, as it came
report.md        for people; shows scatter.png
scatter.png      if matplotlib is installed
results.csv      one line for each case
results.json     everything; written last, so that it is there only if all others are
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from stanza_sim.base.errors import InputError
from stanza_sim.studies.validate import journal
from stanza_sim.studies.validate.journal import Header, Journal
from stanza_sim.studies.validate.markdown import report_markdown
from stanza_sim.studies.validate.report import Report, report_csv, report_json

RESULTS, PICTURE = "results.json", "scatter.png"
_REPORT = (RESULTS, "results.csv", PICTURE, "report.md")
"""The files of a report; removed in this order, written in the opposite one."""


def open_journal(folder: Path, header: Header, *, resume: bool) -> Journal:
    """Open the journal in `folder`: a new one, or to `resume` the one that is there.

    What a validation that was completed has left there is replaced. Raises `InputError` for a folder that holds an
    unfinished one, or other files of these names, and for a journal that is not this one's.
    """
    if resume:
        return journal.resume(folder, header)
    old = [folder / name for name in (*_REPORT, journal.NAME) if (folder / name).exists()]
    if (folder / RESULTS) in old:
        journal.read(folder / journal.NAME)  # it is our own, or not ours to delete
        try:
            for path in old:
                path.unlink()
        except OSError as error:
            raise InputError(f"cannot be replaced: {error.strerror}", where=str(folder)) from None
    elif others := [path.name for path in old if path.name != journal.NAME]:
        what = f"holds {others[0]}, which is not of a validation"
        raise InputError(what, where=str(folder), hint="name a new folder")
    return journal.begin(folder, header)


def write_report(report: Report, folder: Path, *, picture: bytes | None) -> None:
    """Write the files of `report` to `folder`, each whole or not at all, and none unless there is room for all of them.

    Raises `InputError` where that fails.
    """
    files: dict[str, bytes] = {"report.md": report_markdown(report, picture=PICTURE if picture else None).encode()}
    if picture is not None:
        files[PICTURE] = picture
    files["results.csv"] = report_csv(report).encode()
    files[RESULTS] = report_json(report).encode()
    try:
        _write_all(folder, files)
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", where=str(folder)) from None


def _write_all(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write all files under other names, then rename them, in order."""
    temporary: dict[str, str] = {}
    try:
        for name, content in files.items():
            handle, temporary[name] = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                os.chmod(temporary[name], 0o644)
        for name, path in list(temporary.items()):
            os.replace(path, folder / name)
            del temporary[name]
    finally:
        for path in temporary.values():
            with suppress(OSError):
                os.unlink(path)
