"""What a search found of each strategy: its best plan's time by what it is spent on, memory left, or why none fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from stanza_sim.base.units import format_bytes
from stanza_sim.report.result import Json
from stanza_sim.report.table import Column, fixed, print_grid, throughput, write_line
from stanza_sim.studies.plan.assess import Score
from stanza_sim.studies.plan.choices import LeftOut
from stanza_sim.studies.plan.explain import per_thousand
from stanza_sim.studies.plan.search import SearchResult

LESS = {
    "weights": "fsdp, a pipeline or a sharded head holds a part of them on each rank",
    "gradients": "fsdp, a pipeline or a sharded head holds a part of them on each rank",
    "optimiser": "fsdp, a pipeline or a sharded head holds a part of it on each rank",
    "activations": "a smaller batch, accumulation, or a pipeline that computes them again (checkpointing) keeps fewer",
    "backward": "a smaller batch, or accumulation, needs less",
    "received": "a smaller batch, or fewer ranks that send to one, needs less",
}
"""What to do about what takes most memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OfStrategy:
    """The best plan of a strategy that was simulated and those that were left out, the one that lacks least first."""

    strategy: str
    best: Score | None
    left_out: tuple[LeftOut, ...]

    @property
    def why_none(self) -> str:
        """Why no plan was simulated; empty if one was, or if none was reached."""
        if self.best is not None or not self.left_out:
            return ""
        one = self.left_out[0]
        count = sum(other.kind == one.kind for other in self.left_out)
        if one.kind == "memory" and count > 1:
            lacks = "" if one.left_nbytes is None else f" lacks least, {format_bytes(-one.left_nbytes)}"
            return f"none of {count} fits; {one.choice.label}{lacks}: {one.reason}"
        return f"{one.choice.label}: {one.reason}"


def by_strategy(found: SearchResult) -> list[OfStrategy]:
    """Every strategy that was looked at: those with a plan, the fastest first, then the others by name."""
    best: dict[str, Score] = {}
    for one in found.ranked:
        best.setdefault(one.choice.strategy, one)
    out: dict[str, list[LeftOut]] = {}
    for left in found.left_out:
        out.setdefault(left.choice.strategy, []).append(left)
    names = [*best, *sorted(out.keys() - best.keys())]
    return [
        OfStrategy(strategy=name, best=best.get(name), left_out=tuple(sorted(out.get(name, ()), key=_lack)))
        for name in names
    ]


def _lack(one: LeftOut) -> tuple[bool, int]:
    """First what lacks memory, the least first."""
    return one.kind != "memory", -(one.left_nbytes or 0)


def shares(one: Score) -> tuple[float, float, float]:
    """Computing, communication exposed, and the bubble (waiting for other ranks to compute), as shares of the time."""
    parts = per_thousand(one)
    total = sum(parts)
    computing, exposed, bubble = (part / total if total else 0.0 for part in parts)
    return computing, exposed, bubble


def print_strategies(found: SearchResult, sample_tokens: int | None, console: Console) -> None:
    """Print a line for each strategy, if there are several."""
    every = by_strategy(found)
    if len(every) < 2:
        return
    plans = [one.best for one in every]
    rates = throughput((0.0 if p is None else p.prediction.samples_per_s for p in plans), sample_tokens)
    columns = [
        Column(heading=rates.heading, unit="", cells=_known(plans, rates.cells)),
        Column(heading="computing", unit="%", cells=_percent(plans, 0)),
        Column(heading="exposed", unit="%", cells=_percent(plans, 1)),
        Column(heading="bubble", unit="%", cells=_percent(plans, 2)),
        Column(heading="memory", unit="GB", cells=_gigabytes([None if p is None else p.memory_nbytes for p in plans])),
        Column(heading="left", unit="GB", cells=_gigabytes([None if p is None else p.left_nbytes for p in plans])),
    ]
    write_line(console, "")
    notes = [[one.why_none] if one.why_none else [] for one in every]
    print_grid(console, [one.strategy for one in every], columns, notes, heading="best of each strategy")
    write_line(console, "")


def _known(plans: Sequence[Score | None], cells: Sequence[str]) -> list[str]:
    return ["-" if plan is None else cell for plan, cell in zip(plans, cells, strict=True)]


def _percent(plans: Sequence[Score | None], part: int) -> list[str]:
    return ["-" if plan is None else f"{100 * shares(plan)[part]:.0f}" for plan in plans]


def _gigabytes(values: Sequence[int | None]) -> list[str]:
    texts = fixed(((value or 0) / 1e9 for value in values), most=2)
    return ["-" if value is None else text for value, text in zip(values, texts, strict=True)]


def what_helps(found: SearchResult) -> str:
    """What would lower the memory of most of the plans that do not fit; empty if all fit."""
    takes = [word for one in found.left_out if one.kind == "memory" for word in LESS if f"for {word}," in one.reason]
    if not takes:
        return ""
    most = max(LESS, key=takes.count)
    return f"what takes most memory of those that do not fit is mostly {most}: {LESS[most]}"


def strategies_object(found: SearchResult) -> list[dict[str, Json]]:
    """The same as plain JSON values; shares of an iteration, sizes in bytes."""
    told: list[dict[str, Json]] = []
    for one in by_strategy(found):
        kinds = sorted({left.kind for left in one.left_out})
        data: dict[str, Json] = {
            "strategy": one.strategy,
            "label": None if one.best is None else one.best.choice.label,
            "left_out": {kind: sum(left.kind == kind for left in one.left_out) for kind in kinds},
            "reason": one.why_none or None,
        }
        if one.best is not None:
            computing, exposed, bubble = shares(one.best)
            data |= {"computing": computing, "exposed": exposed, "bubble": bubble}
            data |= {"memory_nbytes": one.best.memory_nbytes, "left_nbytes": one.best.left_nbytes}
        told.append(data)
    return told
