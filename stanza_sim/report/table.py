"""The table that `stanza-sim run` prints: one section for each model, laid out for 80 columns.

Numbers are never cut off: labels give way first, and texts that belong to a row stand below it on lines of their own.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import floor, inf, log10
from typing import TYPE_CHECKING, Protocol

from rich.console import Console
from rich.text import Text

from stanza_sim.report.compare import explain
from stanza_sim.report.result import Result, Row, loss_ends
from stanza_sim.simulate.prediction import Prediction

if TYPE_CHECKING:
    from stanza_sim.execute.rank.job import Measurement

WIDTH = 80
_GAP = 2
_MIN_LABEL = 14
MOST_TIED = 4
"""So many rows that another is tied with are named below it."""
LEAST_SHARE = 0.01
"""Smaller shares of the cores are not worth a word."""


LOW_HIGH = "low, high: samples/s if costs are off as far as the last lines of a table say."
TIED = "tied: some such costs, the same for both rows, reverse their order or leave less than 2% between them."


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of numbers: its heading, the unit below it, and a cell for each row."""

    heading: str
    unit: str
    cells: Sequence[str]

    @property
    def width(self) -> int:
        """Characters of the widest entry."""
        return max(map(len, (self.heading, self.unit, *self.cells)))


def fixed(values: Iterable[float], *, significant: int = 3, most: int = 3) -> list[str]:
    """Print numbers with one count of decimals, so that the smallest that is not zero has `significant` digits.

    At most `most` decimals; thousands are set off by commas.
    """
    numbers = list(values)
    sizes = [abs(v) for v in numbers if v]
    decimals = min(most, max(0, significant - 1 - floor(log10(min(sizes))))) if sizes else 0
    return [f"{v:,.{decimals}f}" for v in numbers]


def _ms(values: Iterable[float]) -> list[str]:
    return fixed(v * 1e3 for v in values)


def write_line(console: Console, line: str, style: str = "") -> None:
    """Print a line as it is, however long."""
    console.print(Text(line.rstrip(), style=style), soft_wrap=True)


def print_paragraph(console: Console, text: str) -> None:
    """Print a text, wrapped."""
    for line in textwrap.wrap(text, WIDTH, break_long_words=False):
        write_line(console, line)


def _note(console: Console, text: str) -> None:
    """Print a text that belongs to the row above, indented."""
    for line in textwrap.wrap(text, WIDTH - 4, break_long_words=False):
        write_line(console, f"    {line}", "dim")


def print_grid(
    console: Console,
    labels: Sequence[str],
    columns: Sequence[Column],
    notes: Sequence[Sequence[str]],
    *,
    heading: str = "strategy",
    tight: bool = False,
) -> None:
    """Print a heading and, for each label, its numbers and below them its notes.

    Where a label would not fit on its line, columns of a `tight` grid are one space apart, not two.
    """
    longest = max(len(heading), *map(len, labels))
    gap = _GAP
    if tight and longest > WIDTH - sum(gap + c.width for c in columns):
        gap = 1
    space = max(_MIN_LABEL, WIDTH - sum(gap + c.width for c in columns))
    width = min(space, longest)

    def line(label: str, cells: Iterable[str]) -> str:
        numbers = (" " * gap + cell.rjust(c.width) for cell, c in zip(cells, columns, strict=True))
        return label.ljust(width) + "".join(numbers)

    write_line(console, line(heading, (c.heading for c in columns)), "bold")
    if any(c.unit for c in columns):
        write_line(console, line("", (c.unit for c in columns)), "dim")
    for i, label in enumerate(labels):
        first, *more = textwrap.wrap(label, width) or [""]
        write_line(console, line(first, (c.cells[i] for c in columns)))
        for rest in more:
            write_line(console, rest)
        for note in notes[i]:
            _note(console, note)


class Ranged(Protocol):
    """What has samples/s, and these with costs that are off."""

    @property
    def samples_per_s(self) -> float | None:
        """As predicted."""
        ...

    @property
    def samples_per_s_low(self) -> float | None:
        """The least; None where that is not known."""
        ...

    @property
    def samples_per_s_high(self) -> float | None:
        """The most."""
        ...


def throughput(samples_per_s: Iterable[float], sample_tokens: int | None) -> Column:
    """What is trained in a second: samples, or tokens of a model that has `sample_tokens` in each."""
    heading = "samples/s" if sample_tokens is None else "tokens/s"
    return Column(heading=heading, unit="", cells=fixed(rate * (sample_tokens or 1) for rate in samples_per_s))


def low_high(rows: Sequence[Ranged | None]) -> list[Column]:
    """How far samples/s may be below and above what is predicted, in percent; no column where nothing is known."""
    if all(row is None or row.samples_per_s_low is None for row in rows):
        return []
    return [Column(heading="low high", unit="%    %", cells=[_low_high(row) for row in rows])]


def _low_high(row: Ranged | None) -> str:
    rate = None if row is None else row.samples_per_s
    if row is None or row.samples_per_s_low is None or row.samples_per_s_high is None or not rate or rate == inf:
        return "-    -"
    low, high = (100 * (end / rate - 1) for end in (row.samples_per_s_low, row.samples_per_s_high))
    return f"{low:>+3.0f} {high:>+4.0f}"


def per_worker(batch: int, steps: int, sample_tokens: int | None = None) -> str:
    """What a worker consumes in an iteration of so many steps."""
    what = "samples" if sample_tokens is None else f"sequence{'s' * (batch != 1)} of {sample_tokens:,} tokens"
    return f"{batch} {what} per worker" + (f", {steps} steps an iteration" if steps > 1 else "")


def tied_note(labels: Sequence[str]) -> list[str]:
    """The note of a row that cannot be told apart from others; of many, some are named."""
    if not labels:
        return []
    more = f" and {len(labels) - MOST_TIED} more" if len(labels) > MOST_TIED else ""
    return [f"tied with {'; '.join(labels[:MOST_TIED])}{more}"]


def print_basis(console: Console, bases: Iterable[str], most: int = 6) -> None:
    """Print what predictions rest on, each once, of many only some."""
    told = [basis for basis in dict.fromkeys(bases) if basis]
    for basis in told[:most]:
        print_wrapped(console, basis)
    if len(told) > most:
        print_wrapped(console, f"and {len(told) - most} more: see --json")


def print_wrapped(console: Console, text: str, style: str = "dim") -> None:
    """Print a text in lines of 80 characters, those after the first indented."""
    for line in textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_long_words=False):
        write_line(console, line, style)


def _predictions(console: Console, rows: Sequence[Row], tied_with: Sequence[Sequence[str]]) -> None:
    found = [r.prediction for r in rows]
    base = found[0].samples_per_s
    columns = [
        Column(heading="iteration", unit="ms", cells=_ms(p.iteration_s for p in found)),
        throughput((p.samples_per_s for p in found), rows[0].sample_tokens),
        *low_high(found),
        *_mfu(rows),
        Column(heading="speed-up", unit="", cells=[f"{p.samples_per_s / base:.2f}x" for p in found]),
        Column(heading="exposed", unit="ms", cells=_ms(p.exposed_comm_s for p in found)),
        Column(heading="bound", unit="ms", cells=_ms(p.bound_s for p in found)),
    ]
    notes = [
        [*_predicted_notes(row.prediction), *(f"note: {text}" for text in row.notes), *tied_note(tied)]
        for row, tied in zip(rows, tied_with, strict=True)
    ]
    print_grid(console, [r.label for r in rows], columns, notes, tight=True)


def _mfu(rows: Sequence[Row]) -> list[Column]:
    """The share of peak FLOP/s that each row reaches, in percent; no column where nothing is known."""
    if all(row.mfu is None for row in rows):
        return []
    cells = ["-" if row.mfu is None else _two_digits(100 * row.mfu) for row in rows]
    return [Column(heading="MFU", unit="%", cells=cells)]


def _two_digits(value: float) -> str:
    """`0.84`, `8.4`, `84`, `840`."""
    return f"{value:.{max(0, 1 - floor(log10(value)))}f}" if value >= 0.01 else "0"


def _money(console: Console, rows: Sequence[Row]) -> None:
    """What training takes and costs, where hosts have prices or the length of the training is stated."""
    columns = [
        *_known("price", "$/h", [row.price_per_hour for row in rows]),
        *_known("samples/$", "", [row.samples_per_dollar for row in rows]),
        *_known("time to train", "h", [None if (t := row.time_to_train_s) is None else t / 3600 for row in rows]),
        *_known("cost to train", "$", [row.cost_to_train for row in rows]),
    ]
    if columns:
        write_line(console, "")
        print_grid(console, [row.label for row in rows], columns, [[]] * len(rows))


def _known(heading: str, unit: str, values: Sequence[float | None]) -> list[Column]:
    """A column of what is known of each row; none where nothing is."""
    if all(value is None for value in values):
        return []
    texts = fixed((value or 0.0 for value in values), most=2)
    cells = ["-" if value is None else text for value, text in zip(values, texts, strict=True)]
    return [Column(heading=heading, unit=unit, cells=cells)]


def _predicted_notes(prediction: Prediction) -> list[str]:
    notes = [f"bottleneck: {prediction.bottleneck}"]
    if not prediction.settled:
        notes.append(f"did not settle: a mean over the last of {prediction.iterations} iterations")
    if (over := prediction.repeats) is not None:
        low, middle, high = fixed((v * 1e3 for v in (over.p5_s, over.median_s, over.p95_s)), significant=5)
        notes.append(f"over {over.count} repeats, ms: p5 {low}, median {middle}, p95 {high}")
    return notes


def _measured_notes(row: Row) -> list[str]:
    m = row.measurement
    if m is None:
        return []
    shares = explain(row.prediction.timeline, m.timeline, row.schedule)
    parts = ", ".join(f"{s.kind} {s.difference_s * 1e3:+.2f}" for s in shares)
    notes = [f"predicted less measured, ms: {parts}", *_machine_notes(row)]
    if row.undilated is not None and (error := row.undilated_error_pct) is not None:
        (took,) = _ms([row.undilated.iteration_s])
        notes.append(f"undilated, as the topology states it: {took} ms predicted, {error:+.1f}%")
    if m.losses:
        first, last = loss_ends(m.losses)
        perplexity = "" if m.perplexity is None else f", perplexity {m.perplexity:#.4g}"
        accuracy = "" if m.accuracy is None else f", accuracy {m.accuracy:.1%}"
        when = f" after {m.scores[-1].iteration} iterations" if len(m.scores) > 1 else ""
        notes.append(f"loss {first:#.3g} -> {last:#.3g}{perplexity}{accuracy}{when}")
    return notes


def _machine_notes(row: Row) -> list[str]:
    """How the machine moved while a row was measured, and who else had its cores."""
    m, drift, parts = row.measurement, row.drift, []
    if drift is not None:
        parts.append(f"{drift.change:+.1%}")
        if drift.against_profile is not None:
            parts.append(f"{drift.against_profile:+.1%} against the profile")
    if m is not None:
        shares = ((m.others, "other processes"), (m.stolen, "the virtual machine's host"))
        parts += [f"{share:.0%} of the cores for {who}" for share, who in shares if share >= LEAST_SHARE]
    return [f"machine: {', '.join(parts)}"] if parts else []


def _measurements(console: Console, rows: Sequence[Row]) -> None:
    pairs = [(r, r.measurement, r.error_pct) for r in rows]
    done = [(r, m, e) for r, m, e in pairs if m is not None and e is not None]
    if not done:
        return
    times = _ms(v for _, m, _ in done for v in (m.iteration_s_min, m.iteration_s, m.iteration_s_max))
    columns = [
        Column(heading="predicted", unit="ms", cells=_ms(r.prediction.iteration_s for r, _, _ in done)),
        Column(heading="measured", unit="median, ms", cells=times[1::3]),
        Column(heading="spread", unit="ms", cells=[f"{a} - {b}" for a, b in zip(times[::3], times[2::3], strict=True)]),
        throughput((m.samples_per_s for _, m, _ in done), rows[0].sample_tokens),
        Column(heading="error", unit="%", cells=[f"{e:+.1f}" for _, _, e in done]),
    ]
    write_line(console, "")
    print_grid(console, [r.label for r, _, _ in done], columns, [_measured_notes(r) for r, _, _ in done])


def _how(measurement: Measurement) -> str:
    """How rows ran, for the title."""
    dilated = "" if measurement.dilation == 1 else f", dilated {measurement.dilation:g} times"
    return f", {measurement.compute} compute{dilated}"


def _infeasible(console: Console, result: Result) -> None:
    """Name the rows that are not possible, each reason once."""
    alike: dict[tuple[str, str], list[str]] = {}
    for one in result.infeasible:
        alike.setdefault((one.label, one.reason), []).append(one.model)
    models = {row.model for row in result.rows} | {one.model for one in result.infeasible}
    if alike:
        write_line(console, "")
        write_line(console, "infeasible", "bold")
    for (label, reason), mine in alike.items():
        of = "" if len(mine) == len(models) else f" ({', '.join(mine)})"
        print_wrapped(console, f"{label}{of}: {reason}", "")


def print_explanations(result: Result, console: Console) -> None:
    """Print why each row takes as long as it does, in a few sentences."""
    for model, rows in result.by_model().items():
        for row in rows:
            if row.details is not None:
                write_line(console, "")
                write_line(console, f"{model}, {row.label}", "bold")
                print_paragraph(console, str(row.details.explanation))


def print_result(result: Result, console: Console) -> None:
    """Print the whole result on `console`; lines are at most 80 characters wide unless a number needs more."""
    shared = result.rows[0]
    ran = dict.fromkeys(_how(r.measurement) for r in result.rows if r.measurement is not None)
    nodes = f"{shared.nodes} {'node' if shared.nodes == 1 else 'nodes'}"
    title = f"{result.experiment}: {nodes} of {shared.cluster}, {shared.precision}{''.join(ran)}"
    write_line(console, title, "bold")
    tied = {(row.model, row.label): others for row, others in zip(result.rows, result.tied_with(), strict=True)}
    for model, rows in result.by_model().items():
        write_line(console, "")
        batch = per_worker(rows[0].batch_per_worker, rows[0].accumulation, rows[0].sample_tokens)
        write_line(console, f"{model}, {batch}", "bold cyan")
        _predictions(console, rows, [tied[model, row.label] for row in rows])
        _money(console, rows)
        _measurements(console, rows)
        for source in dict.fromkeys(r.prediction.cost_source for r in rows):
            print_wrapped(console, f"costs: {source}")
        print_basis(console, (r.prediction.basis for r in rows))
    _infeasible(console, result)
    legend = [
        "speed-up: samples/s against the first row. exposed: mean time that a rank waits for what is moving.",
        "bound: no schedule of this kind takes less on this cluster.",
    ]
    if any(r.mfu is not None for r in result.rows):
        legend.append("MFU: the model's FLOPs as a share of what its devices do at most.")
    if any(r.price_per_hour is not None for r in result.rows):
        legend.append("price: of the hosts that have something to do.")
    if any(r.training_samples is not None for r in result.rows):
        legend.append(f"to train: {shared.training_samples:,.0f} samples in all.")
    if any(r.prediction.spread is not None for r in result.rows):
        legend.append(LOW_HIGH)
    if any(tied.values()):
        legend.append(TIED)
    if (repeats := shared.prediction.repeats) is not None:
        legend.append(f"iteration: the median of {repeats.count} repeats; p5, p95: their 5th and 95th percentile.")
    if any(r.measurement is not None for r in result.rows):
        legend.append("error: prediction against measured median; negative means that the prediction is too fast.")
    if any(r.drift is not None for r in result.rows):
        legend.append("machine: how much longer the row's blocks took right after it than right before.")
    write_line(console, "")
    for line in textwrap.wrap(" ".join(legend), WIDTH):
        write_line(console, line, "dim")
