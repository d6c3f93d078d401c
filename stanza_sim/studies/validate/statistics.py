"""Figures over the cases of a suite: pure functions of numbers and of results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import fsum, isclose

import numpy as np

from stanza_sim.base.errors import InputError
from stanza_sim.studies.validate.records import CaseResult, Predicted
from stanza_sim.studies.validate.suite import Bounds, Rules


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """Errors in percent over `count` cases: median, 90th percentile and maximum of the absolute ones; `bias_pct` is the
    mean of the signed ones, negative where predictions are too fast."""

    count: int
    median_pct: float
    p90_pct: float
    max_pct: float
    bias_pct: float


def errors_of(signed_pct: Sequence[float]) -> Errors:
    """Sum up signed errors. Raises `ValueError` if there are none."""
    if not signed_pct:
        raise ValueError("no values")
    sizes = [abs(e) for e in signed_pct]
    median_pct, p90_pct = np.quantile(sizes, (0.5, 0.9)).tolist()
    return Errors(
        count=len(sizes),
        median_pct=median_pct,
        p90_pct=p90_pct,
        max_pct=max(sizes),
        bias_pct=fsum(signed_pct) / len(sizes),
    )


def grouped(results: Sequence[CaseResult], key: Callable[[CaseResult], str]) -> dict[str, list[CaseResult]]:
    """Results by `key`, groups in the order in which they first appear."""
    groups: dict[str, list[CaseResult]] = {}
    for result in results:
        groups.setdefault(key(result), []).append(result)
    return groups


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A bound, what it is compared with, and whether it is held. Percent."""

    name: str
    value_pct: float
    bound_pct: float

    @property
    def held(self) -> bool:
        """Whether the value is within the bound."""
        return self.value_pct <= self.bound_pct


def judge(errors: Errors, bounds: Bounds) -> tuple[Verdict, ...]:
    """Compare errors with the bounds that are stated."""
    pairs = (
        ("median", errors.median_pct, bounds.median),
        ("p90", errors.p90_pct, bounds.p90),
        ("max", errors.max_pct, bounds.max),
    )
    return tuple(Verdict(name=n, value_pct=v, bound_pct=b) for n, v, b in pairs if b is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """What kind of cases a suite has: how many in all, with exposed communication, and with a single server."""

    cases: int
    exposed: int
    single_server: int


def mixture(predictions: Mapping[str, Predicted], exposed_share: float) -> Mixture:
    """Count cases by their predictions; exposed are those with at least `exposed_share` of exposed communication."""
    return Mixture(
        cases=len(predictions),
        exposed=sum(_at_least(p.exposed_share, exposed_share) for p in predictions.values()),
        single_server=sum(p.servers == 1 for p in predictions.values()),
    )


def _at_least(value: float, bound: float) -> bool:
    return value > bound or isclose(value, bound, rel_tol=1e-9)


def require_rules(found: Mixture, rules: Rules, where: str) -> None:
    """Raise `InputError` at `where` unless a suite's cases are as its rules want them."""
    if found.exposed < rules.exposed_cases * found.cases:
        raise InputError(
            f"{found.exposed} of {found.cases} cases have {rules.exposed_share:.0%} or more of exposed communication",
            where=where,
            hint=f"{rules.exposed_cases:.0%} of the cases are needed: an easy case proves little",
        )
    if found.single_server > rules.single_server_cases * found.cases:
        raise InputError(
            f"{found.single_server} of {found.cases} cases have a single parameter server",
            where=where,
            hint=f"at most {rules.single_server_cases:.0%} may: one busy port is easy to predict",
        )
