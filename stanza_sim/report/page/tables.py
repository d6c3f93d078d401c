"""The tables of a page, in HTML: readable without its scripts, and with every text escaped."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape

from stanza_sim.report.saved import Saved, SavedRow
from stanza_sim.report.table import LOW_HIGH, TIED, fixed, tied_note


def _cells(rows: Sequence[SavedRow]) -> Iterable[tuple[str, str, Sequence[float | None], Sequence[str]]]:
    """Heading, unit, values and texts of each column; none of what is not known of any row."""
    predicted = [row.run.predicted for row in rows]
    measured = [row.run.measured for row in rows]
    base = predicted[0].samples_per_s
    columns: list[tuple[str, str, list[float | None], float, int]] = [
        ("iteration", "ms", [p.iteration_s for p in predicted], 1e3, 3),
        ("samples/s", "", [p.samples_per_s for p in predicted], 1, 3),
        ("low", "", [p.samples_per_s_low for p in predicted], 1, 3),
        ("high", "", [p.samples_per_s_high for p in predicted], 1, 3),
        ("speed-up", "×", [p.samples_per_s / base for p in predicted], 1, 2),
        ("MFU", "%", [p.mfu for p in predicted], 100, 1),
        ("exposed", "ms", [p.exposed_comm_s for p in predicted], 1e3, 3),
        ("bound", "ms", [p.bound_s for p in predicted], 1e3, 3),
        ("measured", "median, ms", [None if m is None else m.iteration_s for m in measured], 1e3, 3),
        ("least", "ms", [None if m is None else m.iteration_s_min for m in measured], 1e3, 3),
        ("most", "ms", [None if m is None else m.iteration_s_max for m in measured], 1e3, 3),
        ("error", "%", [row.run.error_pct for row in rows], 1, 1),
    ]
    for heading, unit, values, factor, most in columns:
        known = [value * factor for value in values if value is not None]
        if known:
            texts = iter(fixed(known, most=most))
            yield heading, unit, values, ["–" if value is None else next(texts) for value in values]


def comparison(saved: Saved) -> str:
    """A table for each model; `data-value` has a number as `result.json` has it."""
    return "\n".join(_table(model, rows) for model, rows in saved.by_model().items())


def _table(model: str, rows: Sequence[SavedRow]) -> str:
    columns = list(_cells(rows))
    best = max(rows, key=lambda row: row.run.predicted.samples_per_s)
    head = "".join(
        f'<th scope="col">{escape(heading)}{f"<small>{escape(unit)}</small>" if unit else ""}</th>'
        for heading, unit, _, _ in columns
    )
    body: list[str] = []
    for i, row in enumerate(rows):
        numbers = "".join(
            f'<td data-key="{escape(heading)}" data-value="{_exact(values[i])}">{texts[i]}</td>'
            for heading, _, values, texts in columns
        )
        run = row.run
        notes = [f"bottleneck: {run.predicted.bottleneck}", *(f"note: {note}" for note in run.notes)]
        notes += tied_note(run.tied_with)
        told = "".join(f"<span>{escape(note)}</span>" for note in notes)
        mark = ' class="best"' if row is best and len(rows) > 1 else ""
        body.append(f'<tr{mark}><th scope="row">{escape(run.label)}</th>{numbers}</tr>')
        body.append(f'<tr class="notes"><td colspan="{len(columns) + 1}">{told}</td></tr>')
    caption = f"{escape(model)}, {rows[0].run.batch_per_worker:,} samples per worker"
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{caption}"><table><caption>{caption}</caption>'
        f'<thead><tr><th scope="col">strategy</th>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
    )


def _exact(value: float | None) -> str:
    return "" if value is None else repr(value)


def legend(saved: Saved) -> str:
    """What the columns are."""
    told = [
        "speed-up: samples/s against the first row.",
        "exposed: mean time that a rank waits for what is moving.",
        "bound: no schedule of this kind takes less on this cluster.",
    ]
    runs = [row.run for row in saved.rows]
    if any(run.predicted.mfu is not None for run in runs):
        told.append("MFU: the model's FLOPs as a share of what its devices do at most.")
    if any(run.predicted.samples_per_s_low is not None for run in runs):
        told.append(LOW_HIGH)
    if any(run.tied_with for run in runs):
        told.append(TIED)
    if any(run.measured is not None for run in runs):
        told.append("error: prediction against measured median; negative means that the prediction is too fast.")
    return escape(" ".join(told))


def infeasible(saved: Saved) -> str:
    """Rows that are not possible, and why."""
    if not saved.infeasible:
        return ""
    lines = "".join(
        f"<li><b>{escape(one.label)}</b> ({escape(one.model)}): {escape(one.reason)}</li>" for one in saved.infeasible
    )
    return f"<h3>Infeasible</h3><ul>{lines}</ul>"


def options(choices: Iterable[tuple[str, str]]) -> str:
    """The choices of a select element."""
    return "".join(f'<option value="{escape(value)}">{escape(text)}</option>' for value, text in choices)


def facts(saved: Saved) -> str:
    """The settings of the experiment, as one would write them, and the versions of programs."""
    versions = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in saved.versions.items()
    )
    settings = "not known" if saved.settings is None else "\n".join(_lines(dict(saved.settings)))
    rows = "".join(
        f"<tr><td>{escape(row.run.model)}</td><td>{escape(row.run.label)}</td><td>{row.run.seed}</td>"
        f"<td><code>{escape(row.run.schedule_hash[:16])}</code></td></tr>"
        for row in saved.rows
    )
    return (
        f"<h3>Versions</h3><table>{versions}</table>"
        "<details><summary>Hashes of the schedules</summary><div class='wide' tabindex='0'><table><tr><th>model</th>"
        f"<th>strategy</th><th>seed</th><th>SHA-256</th></tr>{rows}</table></div></details>"
        f"<details><summary>The experiment's settings</summary><pre tabindex='0'>{escape(settings)}</pre></details>"
    )


def _lines(value: object, indent: str = "") -> Iterable[str]:
    """Nested values, a key on each line."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(inner, dict | list) and inner:
                yield f"{indent}{key}:"
                yield from _lines(inner, indent + "  ")
            else:
                yield f"{indent}{key}: {json.dumps(inner, ensure_ascii=False)}"
    elif isinstance(value, list):
        for inner in value:
            if isinstance(inner, dict | list) and inner:
                first, *rest = _lines(inner, indent + "  ")
                yield f"{indent}- {first.strip()}"
                yield from rest
            else:
                yield f"{indent}- {json.dumps(inner, ensure_ascii=False)}"


def sources(saved: Saved) -> str:
    """Where the costs come from, and what predictions rest on, each with the rows for which that holds."""
    told: dict[tuple[str, str], list[str]] = {}
    for row in saved.rows:
        told.setdefault((row.run.predicted.cost_source, row.run.predicted.basis), []).append(row.run.model)
    items = [
        f"<li><b>{escape(', '.join(dict.fromkeys(models)))}</b>: costs: {escape(source)}"
        + (f"<br>{escape(basis)}" if basis else "")
        + "</li>"
        for (source, basis), models in told.items()
    ]
    return f"<ul>{''.join(items)}</ul>"
