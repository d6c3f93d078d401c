"""The report of a validation for people, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from stanza_sim.execute.rank.steal import MOST_STOLEN, TRIES
from stanza_sim.studies.validate import budget
from stanza_sim.studies.validate.budget import TimeCategory
from stanza_sim.studies.validate.report import EXPOSED_SHARE, Report, by_model, by_network, by_strategy, mixture_of
from stanza_sim.studies.validate.statistics import Errors
from stanza_sim.studies.validate.suite import about_network


def report_markdown(report: Report, *, picture: str | None = None) -> str:
    """The report for people; `picture` is the file of the scatter plot, if there is one."""
    lines = [*_summary(report), *_picture(picture), *_budget(report), *_cases(report), *_circumstances(report)]
    return "\n".join(lines)


def _summary(report: Report) -> list[str]:
    suite, errors, found = report.suite, report.errors, mixture_of(report)
    share = suite.rules.exposed_share if suite.rules is not None else EXPOSED_SHARE
    rows = [["all, % of the iteration", *_error_cells(errors)]]
    if (comm := report.comm_errors) is not None:
        rows.append(["all, % of exposed communication", *_error_cells(comm)])
    if report.small_errors is not None:
        rows[0][0] = "all, calibrated on all hosts, % of the iteration"
        rows.insert(1, [f"all, {report.small}, % of the iteration", *_error_cells(report.small_errors)])
    part = "some cases of the suite" if report.chosen else f"{errors.count} cases"
    lines = [
        f"# Validation: {suite.name}",
        f"{part}, {suite.execute.compute} compute, begun {report.date}. Error: predicted over measured median, less "
        "one; negative where the prediction is too fast.",
        "",
        *_table(["errors", "cases", "median", "p90", "max", "mean, signed"], rows),
        "",
    ]
    if report.verdicts:
        words = [
            f"{v.name} {v.value_pct:.2f}% {'≤' if v.held else '>'} {v.bound_pct:g}%" + ("" if v.held else " **missed**")
            for v in report.verdicts
        ]
        lines += [f"Bounds: {', '.join(words)}.", ""]
    lines += [
        f"Of the {found.cases} cases {found.exposed} have {share:.0%} or more of exposed communication (predicted), "
        f"and {found.single_server} a single parameter server. No case was used in calibration, and each was "
        f"predicted before {_before(report)}.",
        "",
    ]
    return lines


def _before(report: Report) -> str:
    if any(m.predicted for r in report.results for m in r.measured):
        return (
            "anything was measured, then anew for each repeat, from block times taken right before and after it "
            "(speeds of cores change); of the repeats the one whose error is the median one is compared"
        )
    return "anything was measured"


def _picture(name: str | None) -> list[str]:
    return [] if name is None else [f"![predicted and measured]({name})", ""]


def _budget(report: Report) -> list[str]:
    lines = ["## Where errors come from", _BUDGET, ""]
    heading = ["charged to", "cases", "mean, signed", "mean, absolute", "largest", "in"]
    for found in (budget.lines(report.results), budget.lines(report.results, str)):
        rows = [
            [b.kind, str(b.cases), _signed(b.bias_pct), f"{b.size_pct:.2f}", _signed(b.worst_pct), b.worst]
            for b in found
        ]
        lines += [*_table(heading, rows), ""]
    for what, key in (("strategy", by_strategy), ("network", by_network), ("model", by_model)):
        groups = budget.by_group(report.results, key)
        rows = [
            [
                g.name,
                *_error_cells(g.errors),
                *(_signed(g.parts_pct[p]) if p in g.parts_pct else "" for p in TimeCategory),
            ]
            for g in groups
        ]
        lines += [*_table([what, "cases", "median", "p90", "max", "mean, signed", *TimeCategory], rows), ""]
    return lines


_BUDGET = (
    "Contributions to the error in percent of the measured iteration; negative where less was predicted than measured. "
    "At every instant a rank's time is charged to one thing: its computation, else what is moving, else waiting. Rest: "
    "the charges are means over iterations and over the ranks that train, the error is that of a median."
)


def _cases(report: Report) -> list[str]:
    rows: list[list[str]] = []
    small = [] if report.small_errors is None else [f"{report.small}, %"]
    timed_anew = any(r.drift is not None for r in report.results)
    for r in report.results:
        comm = r.error_of_comm_pct
        rows.append(
            [
                r.case.name,
                f"{r.predicted.iteration_s * 1e3:.1f}",
                f"{r.measured_s * 1e3:.1f}",
                f"{r.spread_pct:.1f}",
                _signed(r.error_pct),
                *([] if not small else ["" if (e := r.small_error_pct) is None else _signed(e)]),
                "" if comm is None else _signed(comm),
                f"{100 * r.predicted.exposed_share:.0f}",
                f"{100 * r.measured_exposed_s / r.measured_s:.0f}",
                *(["" if r.drift is None else _signed(100 * r.drift)] if timed_anew else []),
            ]
        )
    heading = ["case", "predicted, ms", "measured, ms", "spread, %", "error, %", *small, "of communication, %"]
    repeats = max(len(r.measured) for r in report.results)
    compared, about_machine = f"Measured: median over {repeats} repeat{'' if repeats == 1 else 's'}", ""
    if timed_anew:
        compared = f"Measured: the one of {repeats} repeats whose error is the median one"
        about_machine = " Machine: how much longer blocks took right after a repeat than right before it, where that "
        about_machine += "changed most."
    return [
        "## Cases",
        f"{compared}; spread: greatest less least of them over the median. Exposed: share of the iteration in which "
        f"ranks wait for what is moving, predicted and measured.{about_machine}",
        "",
        *_table([*heading, "exposed, %", "measured, %", *(["machine, %"] if timed_anew else [])], rows),
        "",
    ]


def _circumstances(report: Report) -> list[str]:
    suite = report.suite
    used = list(dict.fromkeys(r.case.network for r in report.results))
    repeats = [m for r in report.results for m in r.measured]
    loads = [m.load for m in repeats]
    realtime = {m.realtime for m in repeats}
    how = "real-time scheduling (SCHED_FIFO)" if realtime == {True} else "scheduled as all processes are"
    return [
        "## How",
        f"    {report.command}",
        "",
        *(f"- {key}: {value}" for key, value in {**report.machine, **report.conditions}.items()),
        f"- load average when a case began: {min(loads):.1f} to {max(loads):.1f}",
        f"- ranks: {how}; {sum(m.wall_s for m in repeats):.0f} s of measuring in all",
        f"- cores taken away by the virtual machine's host (steal): at most {max(m.stolen for m in repeats):.1%} of "
        f"them in a repeat; {sum(m.tries > 1 for m in repeats)} of {len(repeats)} repeats were measured again, up to "
        f"{TRIES} times in all, because that was over {MOST_STOLEN:.0%}",
        f"- cores that other processes had: at most {max(m.others for m in repeats):.0%} of them in a repeat",
        "",
        *_table(
            ["network", "what it is", "calibrated with single messages"],
            [[n, about_network(suite.networks[n]), "; ".join(report.notes.get(n, ()))] for n in used],
        ),
        "",
        "Costs of computations:",
        *(f"- {source}" for source in dict.fromkeys(r.predicted.source for r in report.results)),
        "",
    ]


def _error_cells(errors: Errors) -> list[str]:
    values = [errors.median_pct, errors.p90_pct, errors.max_pct]
    return [str(errors.count), *(f"{v:.2f}" for v in values), _signed(errors.bias_pct)]


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table; the first column left, the others right unless they hold words."""
    body = [list(row) for row in rows]
    words = [any(row[i].strip("+−.0123456789") for row in body) for i in range(len(heading))]
    rule = ["---" if i == 0 or word else "---:" for i, word in enumerate(words)]
    return ["| " + " | ".join(cells) + " |" for cells in [list(heading), rule, *body]]
