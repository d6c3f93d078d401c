"""Errors of predictions of published rows, by group, beside those of two baselines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from stanza_sim.studies.validate.published.tables import TrainingRow, Usable
from stanza_sim.studies.validate.statistics import Errors, errors_of

HARD = 0.9
"""A row with a measured efficiency below this is hard: linear scaling fails there."""


class RowKind(StrEnum):
    """What a row measures."""

    TRAINING = "training"
    NCCL = "nccl"
    SINGLE = "single"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One row with its prediction: samples/s, or microseconds of NCCL's rows.

    `predicted` is None where `reason` says why; `linear` is what linear scaling predicts. `groups` are the names by
    which errors are summed up, `label` says what was measured.
    """

    id: str
    kind: RowKind
    label: str
    predicted: float | None
    measured: float | None
    scored: bool
    linear: float | None = None
    reason: str = ""
    groups: tuple[tuple[str, str], ...] = ()
    row: TrainingRow | None = None

    @property
    def error_pct(self) -> float | None:
        """100 (predicted / measured - 1)."""
        return self._error(self.predicted)

    @property
    def linear_error_pct(self) -> float | None:
        """The error of linear scaling."""
        return self._error(self.linear)

    def _error(self, predicted: float | None) -> float | None:
        return None if predicted is None or self.measured is None else 100 * (predicted / self.measured - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupErrors:
    """Errors over a group of scored rows: ours, and those of linear scaling and of linear scaling x one constant."""

    name: str
    ours: Errors
    linear: Errors | None
    fitted: Errors | None


def fitted_constant(outcomes: Sequence[Outcome]) -> float | None:
    """The constant by which linear scaling is multiplied so that the median absolute error is least; None without rows.

    It is one of measured / linear of the scored rows: the median error changes its slope only there.
    """
    ratios = [(o.linear, o.measured) for o in outcomes if o.scored and o.linear and o.measured]
    constants = sorted({measured / linear for linear, measured in ratios})

    def median_pct(constant: float) -> float:
        return errors_of([100 * (constant * linear / measured - 1) for linear, measured in ratios]).median_pct

    return min(constants, key=median_pct) if constants else None


def group_errors(name: str, outcomes: Sequence[Outcome], constant: float | None) -> GroupErrors | None:
    """Errors over `outcomes`, of which those that are scored and predicted count; None if none does."""
    counted = [o for o in outcomes if o.scored and o.error_pct is not None]
    if not counted:
        return None
    linear = [e for o in counted if (e := o.linear_error_pct) is not None]
    fitted = [100 * ((e / 100 + 1) * constant - 1) for e in linear] if constant is not None else []
    return GroupErrors(
        name=name,
        ours=errors_of([e for o in counted if (e := o.error_pct) is not None]),
        linear=errors_of(linear) if linear else None,
        fitted=errors_of(fitted) if fitted else None,
    )


def _hard(outcome: Outcome) -> bool:
    efficiency = outcome.row.efficiency if outcome.row is not None else None
    return efficiency is not None and efficiency < HARD


def _hosts(outcome: Outcome) -> bool:
    return outcome.row is not None and outcome.row.hosts > 1


SLICES: tuple[tuple[str, Callable[[Outcome], bool]], ...] = (
    ("all", lambda outcome: True),
    ("measured efficiency below 0.9", _hard),
    ("several hosts", _hosts),
    ("inside one host", lambda outcome: not _hosts(outcome)),
)
"""Groups of training rows that are judged or shown first."""


def training_groups(outcomes: Sequence[Outcome]) -> list[GroupErrors]:
    """Errors of training rows: `SLICES`, then by source, strategy and transport."""
    rows = [o for o in outcomes if o.kind is RowKind.TRAINING]
    constant = fitted_constant(rows)
    groups = [group_errors(name, [o for o in rows if holds(o)], constant) for name, holds in SLICES]
    for key in ("source", "strategy", "transport"):
        names = dict.fromkeys(dict(o.groups)[key] for o in rows)
        groups += [
            group_errors(f"{key}: {name}", [o for o in rows if dict(o.groups)[key] == name], constant) for name in names
        ]
    return [group for group in groups if group is not None]


def kind_groups(outcomes: Sequence[Outcome], kind: RowKind) -> list[GroupErrors]:
    """Errors of rows of another kind: all, then by each of their groups."""
    rows = [o for o in outcomes if o.kind is kind]
    found = [group_errors("all", rows, None)]
    for key, name in dict.fromkeys(pair for o in rows for pair in o.groups):
        found.append(group_errors(f"{key}: {name}", [o for o in rows if (key, name) in o.groups], None))
    return [group for group in found if group is not None]


def unscored(outcomes: Sequence[Outcome]) -> Iterator[tuple[Outcome, str]]:
    """The rows that do not count, and why."""
    for o in outcomes:
        if o.scored and o.predicted is not None:
            continue
        row = o.row
        if o.reason:
            yield o, o.reason
        elif row is not None and row.usable is not Usable.YES:
            yield o, "reads data as well" if row.usable is Usable.DATA else "too little is stated"
        elif row is not None and row.gpus == 1:
            yield o, "one GPU: it is what others are scaled from"
        else:
            yield o, "one GPU's throughput is not known" if row is not None else "below 256 KiB"
