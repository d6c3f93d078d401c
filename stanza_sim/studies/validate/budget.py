"""Where errors come from: the difference of prediction and measurement, split over the kinds of ops. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import fsum

from stanza_sim.report.compare import WAITING
from stanza_sim.schedule import Phase
from stanza_sim.studies.validate.records import CaseResult
from stanza_sim.studies.validate.statistics import Errors, errors_of, grouped

_PHASES = frozenset(str(phase) for phase in Phase)


class TimeCategory(StrEnum):
    """What a second of an iteration is charged to. `REST` is what the charges do not explain: they add up to a mean
    iteration of a rank that trains, while the error is that of a median over iterations of the slowest rank."""

    COMPUTE = "compute"
    TRANSFER = "transfer"
    COLLECTIVE = "collective"
    WAITING = "waiting"
    REST = "rest"


def category_of(kind: str) -> TimeCategory:
    """The part that an op kind (`stanza_sim.report.compare.op_kind`, or waiting) belongs to."""
    if kind == WAITING:
        return TimeCategory.WAITING
    if kind in _PHASES:
        return TimeCategory.COMPUTE
    return TimeCategory.TRANSFER if kind.startswith("transfer ") else TimeCategory.COLLECTIVE


def together(seconds: Mapping[str, float], key: Callable[[str], str]) -> dict[str, float]:
    """Add up seconds by kind to seconds by `key` of the kind."""
    total: dict[str, float] = {}
    for kind, value in seconds.items():
        total[key(kind)] = total.get(key(kind), 0.0) + value
    return total


def mean_op_seconds(result: CaseResult) -> dict[str, float]:
    """Measured seconds by op kind, mean over the repeats that are compared."""
    measured = result.compared
    kinds = sorted({kind for m in measured for kind in m.parts})
    return {k: fsum(m.parts.get(k, 0.0) for m in measured) / len(measured) for k in kinds}


def differences(result: CaseResult, key: Callable[[str], str] = category_of) -> dict[str, float]:
    """Seconds predicted less measured of one case, by `key` of the op kind; with `TimeCategory.REST` they add up to
    predicted less measured iteration time."""
    predicted, measured = together(result.predicted.parts, key), together(mean_op_seconds(result), key)
    found = {k: predicted.get(k, 0.0) - measured.get(k, 0.0) for k in sorted(predicted.keys() | measured.keys())}
    found[TimeCategory.REST] = result.predicted.iteration_s - result.measured_s - fsum(found.values())
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetLine:
    """What a kind contributes to the errors, in percent of the measured iteration, over the cases in which it occurs.

    `bias_pct` is the mean of the signed contributions (negative: predicted too short), `size_pct` of the absolute ones.
    `worst` is the case with the largest, `worst_pct` that contribution.
    """

    kind: str
    cases: int
    bias_pct: float
    size_pct: float
    worst: str
    worst_pct: float


def lines(results: Sequence[CaseResult], key: Callable[[str], str] = category_of) -> list[BudgetLine]:
    """The contribution of each kind over all cases, the largest first."""
    found: dict[str, list[tuple[float, str]]] = {}
    for result in results:
        for kind, seconds in differences(result, key).items():
            found.setdefault(kind, []).append((100 * seconds / result.measured_s, result.case.name))
    made = []
    for kind, shares in found.items():
        worst_pct, worst = max(shares, key=lambda share: abs(share[0]))
        made.append(
            BudgetLine(
                kind=kind,
                cases=len(shares),
                bias_pct=fsum(s for s, _ in shares) / len(shares),
                size_pct=fsum(abs(s) for s, _ in shares) / len(shares),
                worst=worst,
                worst_pct=worst_pct,
            )
        )
    return sorted(made, key=lambda line: (-line.size_pct, line.kind))


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupLine:
    """The errors of a group of cases, such as those of a strategy, and what each part contributes to them on average
    (signed, percent of the measured iteration; a part that occurs in none of them is left out)."""

    name: str
    errors: Errors
    parts_pct: Mapping[str, float]


def by_group(results: Sequence[CaseResult], key: Callable[[CaseResult], str]) -> list[GroupLine]:
    """One line for each group, in the order in which groups first appear."""
    made = []
    for name, members in grouped(results, key).items():
        total: dict[str, float] = {}
        for result in members:
            for part, seconds in differences(result).items():
                total[part] = total.get(part, 0.0) + 100 * seconds / result.measured_s / len(members)
        errors = errors_of([r.error_pct for r in members])
        made.append(GroupLine(name=name, errors=errors, parts_pct=total))
    return made
