"""Predictions beside measurements of the emulated cluster, case by case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stanza_sim.api._arguments import overrides, placed
from stanza_sim.base.errors import InputError
from stanza_sim.base.tables import Tabular, shortened
from stanza_sim.base.telling import Say
from stanza_sim.studies.validate.records import Predicted
from stanza_sim.studies.validate.report import Report, report_json


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ValidationResult(Tabular):
    """The cases of a suite with their predictions and, unless it was a dry run, the `report` of measuring them."""

    suite: str
    predictions: Mapping[str, Predicted]
    report: Report | None = None

    @property
    def held(self) -> bool | None:
        """Whether the errors are within the suite's bounds; None for a dry run."""
        return None if self.report is None else self.report.held

    def __len__(self) -> int:
        return len(self.predictions)

    def __repr__(self) -> str:
        did = "predicted only" if self.report is None else "bounds held" if self.held else "bounds missed"
        return f"<ValidationResult of {shortened(self.suite)}: {len(self)} cases, {did}>"

    def to_json(self) -> str:
        """What `stanza-sim validate --json` prints of a run. Raises `InputError` for a dry run."""
        if self.report is None:
            raise InputError("nothing was measured", where="to_json", hint="validate without dry_run")
        return report_json(self.report)

    def _columns(self) -> Mapping[str, Sequence[object]]:
        if self.report is None:
            found = self.predictions
            return {
                "case": list(found),
                "iteration_s": [p.iteration_s for p in found.values()],
                "exposed_comm_s": [p.exposed_comm_s for p in found.values()],
            }
        results = self.report.results
        return {
            "case": [r.case.name for r in results],
            "iteration_s": [r.predicted.iteration_s for r in results],
            "measured_s": [r.measured_s for r in results],
            "spread_pct": [r.spread_pct for r in results],
            "error_pct": [r.error_pct for r in results],
        }


def validate(
    suite: str | Path = "emulated",
    *,
    only: Sequence[str] = (),
    compute: str | None = None,
    dilate: float | None = None,
    repeats: int | None = None,
    seed: int | None = None,
    set: Mapping[str, object] | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    dry_run: bool = False,
    say: Say = lambda text: None,
) -> ValidationResult:
    """Predict the cases of a suite, then measure them in random order and report how far apart the two are.

    `only` keeps cases with one of these words in their names. The report is written to the folder `output`
    ("validation-SUITE"), where `resume` goes on with what an interrupted run left. With `dry_run` cases are predicted
    only, on networks as their topologies state them. `dilate` is as in `measure`. Raises `InputError` and `RunError`.

    >>> import stanza_sim as ss
    >>> ss.validate(only=["star-2-500/vgg16-big/ring"], dry_run=True)
    <ValidationResult of emulated: 1 cases, predicted only>
    """
    from stanza_sim.studies.validate.chosen import predicted_suite
    from stanza_sim.studies.validate.published.suite import is_published

    name = "validate"
    with placed(name):
        if is_published(str(suite)):
            hint = "use ss.validate_published"
            raise InputError("is a suite of published measurements", where=f"{name}: suite", hint=hint)
        given = {"execute.compute": compute, "execute.dilate": dilate, "repeats": repeats, "seed": seed}
        found = predicted_suite(str(suite), overrides(set, name, **given), [only] if isinstance(only, str) else only)
        title = found.loaded.value.name
        if dry_run:
            return ValidationResult(suite=title, predictions=found.predictions)
        report = found.measured(
            Path(output or f"validation-{title}"),
            command=f"stanza_sim.validate({str(suite)!r})",
            resume=resume,
            tell=lambda text, step, total: say(f"[{step}/{total}] {text}"),
            say=say,
        )
        return ValidationResult(suite=title, predictions=found.predictions, report=report)
