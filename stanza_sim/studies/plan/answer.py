"""What `stanza-sim plan` prints: a ranking for each model with its explanation, or one JSON object."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Callable, Sequence

from rich.console import Console

from stanza_sim.base.units import format_bytes, format_rate, format_time
from stanza_sim.report.result import Json, Result, run_object
from stanza_sim.report.table import (
    WIDTH,
    Column,
    fixed,
    low_high,
    per_worker,
    print_basis,
    print_grid,
    print_result,
    throughput,
    tied_note,
    write_line,
)
from stanza_sim.studies.plan.assess import Score
from stanza_sim.studies.plan.by_strategy import print_strategies, shares, strategies_object, what_helps
from stanza_sim.studies.plan.choices import LeftOut, as_yaml
from stanza_sim.studies.plan.explain import Explanation, Range, per_thousand
from stanza_sim.studies.plan.memory import not_judged
from stanza_sim.studies.plan.search import SearchResult, Stop
from stanza_sim.studies.plan.session import Answer, PlanAnswers, row
from stanza_sim.studies.plan.turns import Turn

SAME = 1e-4
"""Plans whose samples/s differ by no more than this, relatively, are called just as fast."""

LEFT_OUT = {
    "memory": "do not fit the devices' memory",
    "infeasible": "cannot be built here",
    "time": "take too long to simulate in this budget",
    "host_memory": "take too much memory to simulate",
}
"""What each kind of `LeftOut` says."""

# --- text ------------------------------------------------------------------------------------------------------------


def print_plan(plan_result: PlanAnswers, console: Console, *, top: int) -> None:
    """Print the `top` best plans of each model, what was searched, and why the best is the best."""
    for i, answer in enumerate(plan_result.answers):
        if i:
            write_line(console, "")
        else:
            cluster, precision = answer.problem.cluster, answer.problem.loaded.value.precision
            write_line(
                console, f"{plan_result.experiment}: {cluster.nodes} nodes of {cluster.name}, {precision}", "bold"
            )
            write_line(console, "")
        _print_answer(answer, console, top)
    ran = [a.best for a in plan_result.answers if a.best is not None and a.best.measurement is not None]
    if ran:
        write_line(console, "")
        write_line(console, "the best plan of each model, executed", "bold")
        print_result(Result(experiment=plan_result.experiment, rows=tuple(ran)), console)


def _print_answer(answer: Answer, console: Console, top: int) -> None:
    problem, found = answer.problem, answer.found
    steps, tokens = problem.loaded.value.training.accumulation, problem.model.sample_tokens
    write_line(console, f"{problem.entry.title}, {per_worker(problem.batch_per_worker, steps, tokens)}", "bold cyan")
    shown = found.ranked[:top]
    if not shown:
        _paragraph(console, "no plan was simulated")
    else:
        _print_ranking(shown, found.tied_with()[:top], tokens, console)
    print_strategies(found, tokens, console)
    for text in _sentences(answer):
        _paragraph(console, text)
    print_basis(console, (one.prediction.basis for one in shown))


def _print_ranking(
    shown: tuple[Score, ...], tied_with: Sequence[tuple[str, ...]], sample_tokens: int | None, console: Console
) -> None:
    predictions = [one.prediction for one in shown]
    columns = [
        throughput((p.samples_per_s for p in predictions), sample_tokens),
        *low_high(predictions),
        Column(heading="iteration", unit="ms", cells=fixed(p.iteration_s * 1e3 for p in predictions)),
        Column(heading="exposed", unit="ms", cells=fixed(p.exposed_comm_s * 1e3 for p in predictions)),
        Column(heading="memory", unit="GB", cells=fixed(one.memory_nbytes / 1e9 for one in shown)),
    ]
    # Below a tie with the best nothing is told by who is tied with whom.
    marks = [tied_note(["the best"] if shown[0].choice.label in tied else []) for tied in tied_with]
    print_grid(console, [one.choice.label for one in shown], columns, marks, heading="plan")


def _paragraph(console: Console, text: str) -> None:
    for line in textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False):
        write_line(console, line)


def _sentences(answer: Answer) -> list[str]:
    found, best = answer.found, answer.found.best
    told = [_searched(found)]
    for kind, what in LEFT_OUT.items():
        if out := [one for one in found.left_out if one.kind == kind]:
            first = max(out, key=lambda one: one.left_nbytes or 0)  # what lacks least
            told.append(f"left out, {len(out)} that {what}, such as {first.choice.label}: {first.reason}")
            if kind == "memory" and (helps := what_helps(found)):
                told.append(helps)
    if blind := not_judged(answer.problem.cluster):
        told.append(f"memory of {len(blind)} ranks is not judged: they compute on their hosts' cores")
    if best is None:
        return told
    p = best.prediction
    told.append(
        f"best: {best.choice.label}. Its bottleneck: {p.bottleneck}; of {format_time(p.iteration_s)} an iteration, "
        f"communication is exposed for {format_time(p.exposed_comm_s)}{_waits(best)}"
    )
    if tied := found.tied_with()[0]:
        told.append(
            f"{len(tied)} {'plan is' if len(tied) == 1 else 'plans are'} tied with the best: some costs within their "
            "residuals, the same for both, reverse the order or leave less than 2% between them"
        )
    elif p.spread is None:
        told.append(
            "which plans are tied with it was not looked at: no time was left, or it takes too long to simulate"
        )
    told.append(f"as a row of an experiment: {as_yaml(best.choice)}")
    if answer.explanation is not None:
        told += _reasons(best, answer.explanation)
    told.append(f"costs: {p.cost_source}")
    return told


def _waits(best: Score) -> str:
    """How long ranks wait for others' computing, and how much memory is left, as far as there is something to say."""
    idle_s, left = best.prediction.idle_s, best.left_nbytes
    text = f", and ranks wait for others to compute (the bubble) for {format_time(idle_s)}" if shares(best)[2] else ""
    return text if left is None else f"{text}; {format_bytes(left)} of memory are left where it is least"


def _searched(found: SearchResult) -> str:
    text = f"{found.evaluated} plans evaluated, {found.pruned} pruned by their bounds"
    text += f", {found.same} the same as another" if found.same else ""
    text += f", {len(found.left_out)} left out" if found.left_out else ""
    match found.stop:
        case Stop.COMPLETE:
            return text
        case Stop.BUDGET:
            why = "the budget is spent"
        case Stop.EVALUATIONS:
            why = "the number of evaluations is reached"
        case Stop.INTERRUPTED:
            why = "interrupted"
    return f"{text}; {why}, {found.unreached} not looked at"


def _reasons(best: Score, why: Explanation) -> list[str]:
    told = []
    other, loss = why.runner_up, why.loss
    if other is not None and loss is not None:
        p, ratio = other.prediction, other.prediction.samples_per_s / best.prediction.samples_per_s
        takes, instead = sum(per_thousand(other)), sum(per_thousand(best))
        text = f"runner-up, the best of another strategy: {other.choice.label}, "
        text += "just as fast. " if ratio > 1 - SAME else f"{ratio:.3g} of the best's samples/s. "
        text += f"For 1,000 samples it takes {format_time(takes)} instead of {format_time(instead)}: computing "
        text += f"{_signed(loss.computing_s)}, exposed communication {_signed(loss.exposed_comm_s)}, bubble (waiting "
        text += f"for other ranks) {_signed(loss.idle_s)}. Its bottleneck: {p.bottleneck}. All ranks together send "
        text += f"{format_bytes(other.sent_bytes)} an iteration, the best plan's {format_bytes(best.sent_bytes)}"
        told.append(text)
    told.append(_range("link speed", why.rate, why.skipped.get("rate", ""), format_rate))
    told.append(_range("batch per worker", why.batch, why.skipped.get("batch", ""), lambda value: f"{value:.0f}"))
    return told


def _signed(value_s: float) -> str:
    return f"{'-' if value_s < 0 else '+'}{format_time(abs(value_s))}"


def _range(what: str, found: Range | None, skipped: str, show: Callable[[float], str]) -> str:
    if found is None:
        return f"{what}: not looked at, {skipped}"
    end = ", beyond which none of them fits" if found.full else ""
    end += ", no room in the limits for more" if found.hurried else ""
    looked = (
        f"(looked at {show(found.low)} to {show(found.high)}{end}, now {show(found.present)}; these plans, as they are)"
    )
    if found.below is None and found.above is None:
        return f"{what}: no other of the plans found wins {looked}"
    parts = []
    for turn, word in ((found.below, "down to"), (found.above, "up to")):
        if turn is not None:
            parts.append(f"the best wins {word} {show(turn.wins_at)}, {turn.by.label} at {show(turn.loses_at)}")
    return f"{what}: {'; '.join(parts)} {looked}"


# --- JSON ------------------------------------------------------------------------------------------------------------


def plan_object(plan_result: PlanAnswers, *, top: int) -> dict[str, Json]:
    """The answers as plain JSON values; sizes in bytes, rates in bytes per second, times in seconds."""
    return {
        "experiment": plan_result.experiment,
        "interrupted": plan_result.interrupted,
        "plans": [_answer_object(answer, top) for answer in plan_result.answers],
    }


def plan_json(plan_result: PlanAnswers, *, top: int) -> str:
    """The answers as one JSON object, equal bytes for equal answers."""
    return json.dumps(plan_object(plan_result, top=top), indent=1, allow_nan=False) + "\n"


def _answer_object(answer: Answer, top: int) -> dict[str, Json]:
    found, problem = answer.found, answer.problem
    winner, tied = found.best, found.tied_with()
    best: dict[str, Json] | None = None
    if answer.best is not None and winner is not None:
        best = run_object(answer.best, tied[0]) | {
            "memory_nbytes": winner.memory_nbytes,
            "left_nbytes": winner.left_nbytes,
            "sent_bytes": winner.sent_bytes,
        }
    return {
        "model": problem.entry.title,
        "best": best,
        "ranked": [
            run_object(row(problem, one), others)
            | {"memory_nbytes": one.memory_nbytes, "left_nbytes": one.left_nbytes, "sent_bytes": one.sent_bytes}
            for one, others in list(zip(found.ranked, tied, strict=True))[:top]
        ],
        "evaluated": found.evaluated,
        "pruned": found.pruned,
        "same": found.same,
        "unreached": found.unreached,
        "stopped": found.stop.value,
        "left_out": [_left_out(one) for one in found.left_out],
        "memory_not_judged": list(not_judged(problem.cluster)),
        "strategies": strategies_object(found),
        "explanation": None if answer.explanation is None else _explanation(answer.explanation),
    }


def _left_out(one: LeftOut) -> dict[str, Json]:
    return {
        "label": one.choice.label,
        "strategy": one.choice.strategy,
        "settings": one.choice.entry.settings.model_dump(mode="json"),
        "kind": one.kind,
        "reason": one.reason,
    }


def _explanation(why: Explanation) -> dict[str, Json]:
    other, loss = why.runner_up, why.loss
    return {
        "runner_up": None
        if other is None or loss is None
        else {
            "label": other.choice.label,
            "strategy": other.choice.strategy,
            "samples_per_s": other.prediction.samples_per_s if math.isfinite(other.prediction.samples_per_s) else None,
            "bottleneck": other.prediction.bottleneck,
            "sent_bytes": other.sent_bytes,
            "loses_on": loss.most,
            "computing_s_per_1000": loss.computing_s,
            "exposed_comm_s_per_1000": loss.exposed_comm_s,
            "idle_s_per_1000": loss.idle_s,
        },
        "rate_Bps": _range_object(why.rate),
        "batch_per_worker": _range_object(why.batch),
        "skipped": dict(why.skipped),
    }


def _range_object(found: Range | None) -> dict[str, Json] | None:
    if found is None:
        return None

    def turn(where: Turn | None) -> dict[str, Json] | None:
        if where is None:
            return None
        return {"wins_at": where.wins_at, "loses_at": where.loses_at, "label": where.by.label}

    return {
        "present": found.present,
        "low": found.low,
        "high": found.high,
        "below": turn(found.below),
        "above": turn(found.above),
        "full": found.full,
        "hurried": found.hurried,
    }
