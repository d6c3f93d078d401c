"""The cases of a suite that were chosen, predicted before any of them runs: where validation begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stanza_sim.base.config import Loaded
from stanza_sim.base.telling import Say, Tell
from stanza_sim.studies.validate.live import CasePlans, LiveBench
from stanza_sim.studies.validate.records import Predicted
from stanza_sim.studies.validate.report import Report
from stanza_sim.studies.validate.session import check_rules, validate_suite
from stanza_sim.studies.validate.suite import Case, Suite, chosen, load_suite


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedSuite:
    """Cases of a suite, all or some, with their predictions on networks as their topologies state them."""

    loaded: Loaded[Suite]
    cases: Sequence[Case]
    plans: CasePlans
    predictions: dict[str, Predicted]
    whole: bool

    def measured(self, folder: Path, *, command: str, resume: bool, tell: Tell, say: Say) -> Report:
        """Calibrate, predict again and measure; see `validate_suite`. Raises `InputError` and `RunError`."""
        return validate_suite(
            self.loaded.value,
            self.cases,
            LiveBench(self.loaded, self.plans, self.cases, say=say),
            folder,
            command=command,
            resume=resume,
            chosen=not self.whole,
            tell=tell,
        )


def predicted_suite(name_or_path: str, changes: Sequence[str], only: Sequence[str]) -> PredictedSuite:
    """Read a suite and predict its cases that have one of the words `only` in their names; without any, all.

    Raises `InputError`, also for a whole suite whose cases are not as its rules want them.
    """
    loaded, every = load_suite(name_or_path, changes)
    cases = chosen(every, list(only))
    plans = CasePlans(loaded, cases)
    predictions = {case.name: plans.predict(case) for case in cases}
    whole = len(cases) == len(every)
    if whole:
        check_rules(loaded, predictions)
    return PredictedSuite(loaded=loaded, cases=cases, plans=plans, predictions=predictions, whole=whole)
