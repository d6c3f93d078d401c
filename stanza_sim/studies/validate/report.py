"""What a validation found out, and as JSON and CSV. `markdown` makes the report for people, `folder` writes all."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from stanza_sim.base.tables import csv_cell
from stanza_sim.report.result import Json
from stanza_sim.studies.validate import budget
from stanza_sim.studies.validate.budget import TimeCategory
from stanza_sim.studies.validate.records import CaseResult
from stanza_sim.studies.validate.statistics import Errors, Mixture, Verdict, errors_of, judge, mixture
from stanza_sim.studies.validate.suite import Suite

EXPOSED_SHARE = 0.3
"""From which share of exposed communication on cases are counted where a suite has no rules."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that was found out: the cases in the order of the suite, and how they came about.

    `command` repeats the run, `date` is when it began, `notes` what calibration found by network. `chosen` says that
    these are not all cases of the suite.
    """

    suite: Suite
    results: tuple[CaseResult, ...]
    machine: Mapping[str, str]
    conditions: Mapping[str, str]
    notes: Mapping[str, Sequence[str]]
    date: str
    command: str
    chosen: bool = False

    @property
    def errors(self) -> Errors:
        """Errors over all cases."""
        return errors_of([r.error_pct for r in self.results])

    @property
    def comm_errors(self) -> Errors | None:
        """Errors relative to communication time, over the cases in which they are defined."""
        found = [e for r in self.results if (e := r.error_of_comm_pct) is not None]
        return errors_of(found) if found else None

    @property
    def small_errors(self) -> Errors | None:
        """Errors of predictions from calibrations on a few hosts; None where there are none."""
        found = [e for r in self.results if (e := r.small_error_pct) is not None]
        return errors_of(found) if found else None

    @property
    def small(self) -> str:
        """What predictions from calibrations on a few hosts are called."""
        return f"calibrated on {self.suite.calibrate_on} hosts"

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """Whether the suite's bounds are held."""
        found = judge(self.errors, self.suite.bounds)
        if self.small_errors is not None:
            mine = judge(self.small_errors, self.suite.small_bounds)
            found += tuple(replace(one, name=f"{one.name}, {self.small}") for one in mine)
        return found

    @property
    def held(self) -> bool:
        """Whether every bound that the suite states is held."""
        return all(v.held for v in self.verdicts)


# --- JSON and CSV ----------------------------------------------------------------------------------------------------


def report_object(report: Report) -> dict[str, Json]:
    """The report as plain JSON values: times in seconds, shares and errors in percent where the name says so."""
    suite, found = report.suite, mixture_of(report)
    return {
        "suite": suite.name,
        "digest": suite.digest(),
        "date": report.date,
        "command": report.command,
        "machine": dict(report.machine),
        "conditions": dict(report.conditions),
        "compute": suite.execute.compute,
        "errors_pct": _errors(report.errors),
        "errors_of_comm_pct": None if report.comm_errors is None else _errors(report.comm_errors),
        "calibrated_on": suite.calibrate_on,
        "small_errors_pct": None if report.small_errors is None else _errors(report.small_errors),
        "bounds": [
            {"name": v.name, "value_pct": v.value_pct, "bound_pct": v.bound_pct, "held": v.held}
            for v in report.verdicts
        ],
        "held": report.held,
        "all_cases": not report.chosen,
        "cases_exposed": found.exposed,
        "cases_single_server": found.single_server,
        "budget": [_line(line) for line in budget.lines(report.results)],
        "budget_by_op_kind": [_line(line) for line in budget.lines(report.results, str)],
        "by_strategy": [_group(g) for g in budget.by_group(report.results, by_strategy)],
        "by_network": [_group(g) for g in budget.by_group(report.results, by_network)],
        "by_model": [_group(g) for g in budget.by_group(report.results, by_model)],
        "cases": [_case(report, r) for r in report.results],
    }


def report_json(report: Report) -> str:
    """The report as one JSON object."""
    return json.dumps(report_object(report), indent=1, allow_nan=False) + "\n"


def _errors(errors: Errors) -> dict[str, Json]:
    return {
        "cases": errors.count,
        "median": errors.median_pct,
        "p90": errors.p90_pct,
        "max": errors.max_pct,
        "bias": errors.bias_pct,
    }


def _line(line: budget.BudgetLine) -> dict[str, Json]:
    return {
        "kind": line.kind,
        "cases": line.cases,
        "bias_pct": line.bias_pct,
        "size_pct": line.size_pct,
        "worst_case": line.worst,
        "worst_pct": line.worst_pct,
    }


def _group(line: budget.GroupLine) -> dict[str, Json]:
    return {"name": line.name, "errors_pct": _errors(line.errors), "parts_pct": dict(line.parts_pct)}


def _case(report: Report, result: CaseResult) -> dict[str, Json]:
    case, p = result.case, result.predicted
    entry = report.suite.networks[case.network]
    return {
        "case": case.name,
        "network": case.network,
        "cluster": entry.cluster,
        "nodes": p.nodes,
        "rate_bps": None if entry.rate is None else entry.rate * 8,
        "model": report.suite.models[case.model].title,
        "strategy": report.suite.strategies[case.strategy].strategy,
        "settings": report.suite.strategies[case.strategy].settings.model_dump(mode="json"),
        "predicted_s": p.iteration_s,
        "measured_s": result.measured_s,
        "spread_pct": result.spread_pct,
        "error_pct": result.error_pct,
        "small_predicted_s": p.small_s,
        "small_error_pct": result.small_error_pct,
        "error_of_comm_pct": result.error_of_comm_pct,
        "predicted_exposed_s": p.exposed_comm_s,
        "measured_exposed_s": result.measured_exposed_s,
        "machine_pct": None if result.drift is None else 100 * result.drift,
        "single_server": result.single_server,
        "predicted_parts_s": dict(p.parts),
        "measured_parts_s": budget.mean_op_seconds(result),
        "difference_s": budget.differences(result),
        "source": p.source,
        "calibration": list(report.notes.get(case.network, ())),
        "repeats": [
            {
                "iteration_s": m.iteration_s,
                "iteration_s_min": m.iteration_s_min,
                "iteration_s_max": m.iteration_s_max,
                "iterations": m.iterations,
                "wall_s": m.wall_s,
                "load": m.load,
                "realtime": m.realtime,
                "stolen": m.stolen,
                "tries": m.tries,
                "others": m.others,
                "machine_pct": None if m.drift is None else 100 * m.drift,
                "predicted_s": (m.predicted or p).iteration_s,
            }
            for m in result.measured
        ],
    }


_CSV = (
    "case",
    "network",
    "cluster",
    "nodes",
    "rate_bps",
    "model",
    "strategy",
    "predicted_s",
    "measured_s",
    "spread_pct",
    "error_pct",
    "small_predicted_s",
    "small_error_pct",
    "error_of_comm_pct",
    "predicted_exposed_s",
    "measured_exposed_s",
    "machine_pct",
)


def report_csv(report: Report) -> str:
    """One line for each case; the differences of the parts (predicted less measured, seconds) have columns."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*_CSV, *(f"difference_{part}_s" for part in TimeCategory), "repeats_s"])
    for result in report.results:
        data, found = _case(report, result), budget.differences(result)
        parts = [_number(found.get(part, 0.0)) for part in TimeCategory]
        repeats = " ".join(_number(m.iteration_s) for m in result.measured)
        writer.writerow([*(_cell(data[key]) for key in _CSV), *parts, repeats])
    return out.getvalue()


def _cell(value: Json) -> str:
    if value is None:
        return ""
    return _number(value) if isinstance(value, float) else csv_cell(str(value))


def _number(value: float) -> str:
    return f"{value:.9g}"


# --- groups ----------------------------------------------------------------------------------------------------------


def by_strategy(result: CaseResult) -> str:
    """The strategy of a result, by its name in the suite."""
    return result.case.strategy


def by_network(result: CaseResult) -> str:
    """The network of a result, by its name in the suite."""
    return result.case.network


def by_model(result: CaseResult) -> str:
    """The model of a result, by its name in the suite."""
    return result.case.model


def mixture_of(report: Report) -> Mixture:
    """What kind of cases a report has, by their predictions."""
    rules = report.suite.rules
    share = rules.exposed_share if rules is not None else EXPOSED_SHARE
    return mixture({r.case.name: r.predicted for r in report.results}, share)
