"""What holding predictions against published measurements found out, as JSON, as CSV and as Markdown."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass

from stanza_sim.base.tables import csv_cell
from stanza_sim.report.result import Json
from stanza_sim.studies.validate.published.scores import (
    GroupErrors,
    Outcome,
    RowKind,
    fitted_constant,
    kind_groups,
    training_groups,
    unscored,
)
from stanza_sim.studies.validate.published.suite import PublishedSuite
from stanza_sim.studies.validate.statistics import Errors, Verdict

TITLES = {RowKind.TRAINING: "Training", RowKind.NCCL: "NCCL's all-reduce", RowKind.SINGLE: "One GPU"}
UNITS = {RowKind.TRAINING: "samples/s", RowKind.NCCL: "us", RowKind.SINGLE: "samples/s"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedReport:
    """All rows with their predictions. `own` are the kinds whose rows are the project's own, which are judged."""

    suite: PublishedSuite
    outcomes: tuple[Outcome, ...]
    own: frozenset[RowKind]
    seconds: float

    def groups(self, kind: RowKind) -> list[GroupErrors]:
        """Errors of one kind of rows, all first."""
        return training_groups(self.outcomes) if kind is RowKind.TRAINING else kind_groups(self.outcomes, kind)

    @property
    def constant(self) -> float | None:
        """The factor of the baseline "linear scaling x one constant"."""
        return fitted_constant([o for o in self.outcomes if o.kind is RowKind.TRAINING])

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """Whether the suite's bounds are held, of kinds whose rows are the project's own."""
        bounds, found = self.suite.bounds, []
        for kind in RowKind:
            groups = {group.name: group.ours for group in self.groups(kind)} if kind in self.own else {}
            stated = getattr(bounds, kind.value)
            pairs = [("all", "median", stated.median), ("all", "p90", stated.p90)]
            if kind is RowKind.TRAINING:
                training = bounds.training
                pairs += [
                    ("measured efficiency below 0.9", "median", training.hard_median),
                    ("several hosts", "median", training.several_hosts_median),
                ]
            for name, what, bound in pairs:
                if bound is not None and (errors := groups.get(name)) is not None:
                    value = errors.median_pct if what == "median" else errors.p90_pct
                    found.append(Verdict(name=f"{kind}, {name}: {what}", value_pct=value, bound_pct=bound))
        return tuple(found)

    @property
    def held(self) -> bool:
        """Whether every bound is held."""
        return all(v.held for v in self.verdicts)


# ---- JSON and CSV ---------------------------------------------------------------------------------------------------


def report_json(report: PublishedReport) -> str:
    """The report as one JSON object: `rows` and `summary`; errors in percent."""
    data = {"rows": [_row(o) for o in report.outcomes], "summary": _summary(report)}
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


def _row(o: Outcome) -> dict[str, Json]:
    row: dict[str, Json] = {
        "id": o.id,
        "kind": o.kind.value,
        "predicted": o.predicted,
        "measured": o.measured,
        "error_pct": o.error_pct,
        "scored": o.scored,
        "label": o.label,
        "reason": o.reason or None,
    }
    if o.kind is RowKind.TRAINING and o.row is not None:
        row |= {"linear": o.linear, "linear_error_pct": o.linear_error_pct, "efficiency": o.row.efficiency}
    return row


def _summary(report: PublishedReport) -> dict[str, Json]:
    kinds: dict[str, Json] = {kind.value: [_group(g) for g in report.groups(kind)] for kind in RowKind}
    return {
        **kinds,
        "linear_times": report.constant,
        "bounds": [
            {"name": v.name, "value_pct": v.value_pct, "bound_pct": v.bound_pct, "held": v.held}
            for v in report.verdicts
        ],
        "held": report.held,
        "causes": report.suite.causes.model_dump(),
    }


def _group(group: GroupErrors) -> dict[str, Json]:
    return {
        "name": group.name,
        "errors_pct": _errors(group.ours),
        "linear_errors_pct": _errors(group.linear),
        "linear_times_constant_errors_pct": _errors(group.fitted),
    }


def _errors(errors: Errors | None) -> Json:
    if errors is None:
        return None
    return {
        "rows": errors.count,
        "median": errors.median_pct,
        "p90": errors.p90_pct,
        "max": errors.max_pct,
        "bias": errors.bias_pct,
    }


def report_csv(report: PublishedReport) -> str:
    """One line for each row."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["id", "kind", "what", "predicted", "measured", "unit", "error_pct", "linear_error_pct", "scored"])
    for o in report.outcomes:
        numbers = [_digits(o.predicted), _digits(o.measured), UNITS[o.kind], _digits(o.error_pct)]
        last = _digits(o.linear_error_pct), "yes" if o.scored else "no"
        writer.writerow([csv_cell(o.id), o.kind, csv_cell(o.label), *numbers, *last])
    return out.getvalue()


def _digits(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


# ---- Markdown -------------------------------------------------------------------------------------------------------


def report_markdown(report: PublishedReport, *, picture: str | None = None) -> str:
    """The report for people; `picture` is the file of the scatter plot, if there is one."""
    lines = ["# Predictions held against published measurements", ""]
    lines += [" ".join(report.suite.description.split()), ""] if report.suite.description else []
    off = [name for name, on in report.suite.causes.model_dump().items() if not on]
    lines += [f"Switched off: {', '.join(off)}.", ""] if off else []
    lines += [f"![predicted and measured]({picture})", ""] if picture else []
    for verdict in report.verdicts:
        mark = "" if verdict.held else " **missed**"
        lines.append(f"- {verdict.name} {verdict.value_pct:.1f}%, bound {verdict.bound_pct:g}%{mark}")
    for kind in RowKind:
        if groups := report.groups(kind):
            lines += ["", f"## {TITLES[kind]}", "", *_table(groups, report.constant)]
    lines += ["", "## Rows", "", "| row | what | predicted | measured | unit | error, % |", "| --- " * 6 + "|"]
    for o in report.outcomes:
        if o.scored and o.error_pct is not None:
            cells = [o.id, o.label, _digits(o.predicted), _digits(o.measured), UNITS[o.kind], f"{o.error_pct:+.1f}"]
            lines.append(f"| {' | '.join(cells)} |")
    if rest := list(unscored(report.outcomes)):
        lines += ["", "## Listed, not scored", "", "| row | what | error, % | why |", "| --- " * 4 + "|"]
        for o, why in rest:
            error = "" if o.error_pct is None else f"{o.error_pct:+.1f}"
            lines.append(f"| {o.id} | {o.label} | {error} | {why} |")
    return "\n".join(lines) + "\n"


def _table(groups: Sequence[GroupErrors], constant: float | None) -> list[str]:
    baselines = any(group.linear for group in groups)
    heading = ["absolute errors, %", "rows", "median", "p90", "mean, signed"]
    if baselines:
        heading += ["linear scaling: median", "p90", f"times {constant:.3f}: median", "p90"]
    lines = [f"| {' | '.join(heading)} |", "| --- " * len(heading) + "|"]
    for g in groups:
        cells = [
            g.name,
            str(g.ours.count),
            f"{g.ours.median_pct:.1f}",
            f"{g.ours.p90_pct:.1f}",
            f"{g.ours.bias_pct:+.1f}",
        ]
        for errors in (g.linear, g.fitted) if baselines else ():
            cells += ["", ""] if errors is None else [f"{errors.median_pct:.1f}", f"{errors.p90_pct:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines
