"""Predictions held against measurements that others published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stanza_sim.api._arguments import overrides, placed
from stanza_sim.base.errors import InputError
from stanza_sim.base.tables import Tabular, shortened

if TYPE_CHECKING:
    from stanza_sim.studies.validate.published.report import PublishedReport


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PublishedResult(Tabular):
    """Published rows with their predictions, and the errors by group in `report`."""

    report: PublishedReport

    @property
    def held(self) -> bool:
        """Whether the errors of the project's own rows are within the suite's bounds."""
        return self.report.held

    def __len__(self) -> int:
        return len(self.report.outcomes)

    def __repr__(self) -> str:
        scored = sum(o.scored for o in self.report.outcomes)
        return f"<PublishedResult of {shortened(self.report.suite.name)}: {len(self)} rows, {scored} scored>"

    def to_json(self) -> str:
        """What `stanza-sim validate published --json` prints."""
        from stanza_sim.studies.validate.published.report import report_json

        return report_json(self.report)

    def _columns(self) -> Mapping[str, Sequence[object]]:
        rows = self.report.outcomes
        return {
            "id": [o.id for o in rows],
            "kind": [o.kind.value for o in rows],
            "predicted": [o.predicted for o in rows],
            "measured": [o.measured for o in rows],
            "error_pct": [o.error_pct for o in rows],
            "linear_error_pct": [o.linear_error_pct for o in rows],
            "scored": [o.scored for o in rows],
        }


def validate_published(
    suite: str | Path = "published",
    *,
    rows: str | Path | None = None,
    nccl: str | Path | None = None,
    single: str | Path | None = None,
    set: Mapping[str, object] | None = None,
    output: str | Path | None = None,
) -> PublishedResult:
    """Predict training rows, all-reduces of nccl-tests and rows of one GPU that others measured, and compare.

    `rows`, `nccl` and `single` are CSV files (columns: `stanza_sim/data/published/README.md`) in the place of the
    project's own. Values are samples/s, of all-reduces microseconds, errors percent. The report is written to the
    folder `output`, if one is named. Raises `InputError` for files and settings that are wrong.

    >>> import stanza_sim as ss
    >>> ss.validate_published("emulated")  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    InputError: validate_published: suite: is a suite of measurements of our own
    """
    from stanza_sim.studies.validate.published.session import judge_published, write_published
    from stanza_sim.studies.validate.published.suite import is_published, load_published

    name = "validate_published"
    with placed(name):
        if not is_published(str(suite)):
            raise InputError("is a suite of measurements of our own", where=f"{name}: suite", hint="use ss.validate")
        training, collectives, devices = (None if path is None else Path(path) for path in (rows, nccl, single))
        loaded = load_published(str(suite), overrides(set, name))
        report = judge_published(loaded, rows=training, nccl=collectives, single=devices)
        if output is not None:
            write_published(report, Path(output))
        return PublishedResult(report=report)
