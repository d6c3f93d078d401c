"""Why the best plan is the best: its bottleneck, what the runner-up loses on, and what would change the answer.

Rate and batch are varied for the plans that were found, as they are: with their settings, which another search at
another rate might choose differently; `turns.py` says which values are looked at. For each of the two, no more plans
are looked at than the search may simulate.

Both ways of both are looked at side by side, a place each at a time. At a place plans are simulated the cheapest first,
and those behind it only if their bounds say that they may be better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from stanza_sim.base.errors import InputError
from stanza_sim.studies.plan.assess import Problem, Score, Variant
from stanza_sim.studies.plan.choices import Choice
from stanza_sim.studies.plan.search import Limits, SearchResult
from stanza_sim.studies.plan.turns import Middle, Side, Standing, Turn, Values
from stanza_sim.studies.plan.worker_pool import WorkerPool

CONTENDERS = 3
"""So many plans are compared at other rates and batches: the best of each of the best strategies."""
MOST_EVENTS = 20_000
"""Of other strategies these are plans that take no more events to simulate: each is simulated dozens of times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Where the best plan stays the best as one value changes: `below` and `above` are the nearest changes, if any.

    `low` and `high` are the least and the greatest value that was looked at; `full` says that beyond `high` none of the
    plans can be run any more, `hurried` that there was no room in the limits to look further, or closer.
    """

    present: float
    low: float
    high: float
    below: Turn | None
    above: Turn | None
    full: bool = False
    hurried: bool = False


ROUNDING = 1e-9
"""Differences smaller than this share of the time are those of rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """What the runner-up loses on: seconds per 1,000 samples that it takes more than the best plan (negative: less)."""

    computing_s: float
    exposed_comm_s: float
    idle_s: float

    @property
    def total_s(self) -> float:
        """All of it."""
        return self.computing_s + self.exposed_comm_s + self.idle_s

    @property
    def most(self) -> str:
        """What it loses most on, in words."""
        parts = {
            "computing": self.computing_s,
            "exposed communication": self.exposed_comm_s,
            "waiting for other ranks": self.idle_s,
        }
        return max(parts, key=lambda what: parts[what])


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why the best plan is the best. `rate` and `batch` are None where they were not looked at, for `skipped`."""

    runner_up: Score | None
    loss: Loss | None
    rate: Range | None
    batch: Range | None
    skipped: Mapping[str, str]


def per_thousand(one: Score) -> tuple[float, float, float]:
    """Seconds of computing, exposed communication and waiting, in the mean over ranks that train, per 1,000 samples."""
    p = one.prediction
    if not p.iteration_s or not math.isfinite(p.samples_per_s):
        return 0.0, 0.0, 0.0
    thousand = 1000 / (p.samples_per_s * p.iteration_s)
    computing_s = p.iteration_s - p.exposed_comm_s - p.idle_s
    return thousand * computing_s, thousand * p.exposed_comm_s, thousand * p.idle_s


def explain(pool: WorkerPool, index: int, found: SearchResult, limits: Limits) -> Explanation | None:
    """Explain the best plan of `found` for problem number `index` of `pool`; None without a plan.

    What there is no room for in `limits` is skipped, with the reason.
    """
    if found.best is None:
        return None
    others = found.best_of_others()
    loss = None
    if others:
        best, other = per_thousand(found.best), per_thousand(others[0])
        differences = [b - a if abs(b - a) > ROUNDING * sum(best) else 0.0 for a, b in zip(best, other, strict=True)]
        loss = Loss(computing_s=differences[0], exposed_comm_s=differences[1], idle_s=differences[2])
    contenders = [found.best, *_rivals(found)]
    ranges: dict[str, Range] = {}
    skipped: dict[str, str] = {}
    race = _Race(pool, index, contenders, limits)
    ways: dict[str, list[_Way]] = {}
    for what, ways_of in (("rate", _rate), ("batch", _batch)):
        if len(contenders) < 2:
            rival = (
                "no other strategy's plan is simulated quickly" if others else "there is no plan of another strategy"
            )
            skipped[what] = rival
            continue
        try:
            ways[what] = ways_of(pool.problems[index], race.lead, found.best.choice)
        except _Skip as skip:
            skipped[what] = str(skip)
    race.run(ways)
    for what, both in ways.items():
        if not any(way.side.reached for way in both) and (why := both[0].short or both[1].short):
            skipped[what] = why
        else:
            ranges[what] = _range(*both)
    return Explanation(
        runner_up=others[0] if others else None,
        loss=loss,
        rate=ranges.get("rate"),
        batch=ranges.get("batch"),
        skipped=skipped,
    )


def _rivals(found: SearchResult) -> list[Score]:
    """The best plan of each other strategy that is simulated quickly enough."""
    winner = found.ranked[0].choice.strategy
    rivals: dict[str, Score] = {}
    for one in found.ranked:
        if one.choice.strategy != winner and one.prediction.events <= MOST_EVENTS:
            rivals.setdefault(one.choice.strategy, one)
    return list(rivals.values())[: CONTENDERS - 1]


class _Skip(Exception):
    """There is a reason not to look at a range."""


@dataclass(slots=True)
class _Way:
    """One way of a range: its `side`, the place that a value is (`variant`), and why there was no room for more."""

    side: Side
    variant: Callable[[float], Variant]
    short: str = ""


def _ways(
    present: float,
    lead: float | None,
    winner: Choice,
    variant: Callable[[float], Variant],
    middle: Middle,
    *,
    whole: bool = False,
) -> list[_Way]:
    sides = (Side(present, up, winner, lead, middle, whole) for up in (False, True))
    return [_Way(side, variant) for side in sides]


def _rate(problem: Problem, lead: float | None, winner: Choice) -> list[_Way]:
    cluster = problem.cluster
    if len({place.host for place in cluster.placement}) < 2:
        raise _Skip("all ranks are on one host")
    if problem.network is not None:
        raise _Skip("the network is as it was measured")
    present = min(nic.bandwidth_Bps for host in cluster.hosts for nic in host.nics)
    return _ways(present, lead, winner, lambda rate_Bps: Variant(rate_Bps=rate_Bps), lambda a, b: math.sqrt(a * b))


def _batch(problem: Problem, lead: float | None, winner: Choice) -> list[_Way]:
    def middle(a: float, b: float) -> float:
        return (int(a) + int(b)) // 2

    present = problem.batch_per_worker
    return _ways(present, lead, winner, lambda batch: Variant(batch=int(batch)), middle, whole=True)


def _range(one: _Way, other: _Way) -> Range:
    down, up = one.side, other.side
    reached = [down.present, *down.reached, *up.reached]
    return Range(
        present=down.present,
        low=min(reached),
        high=max(reached),
        below=down.turn,
        above=up.turn,
        full=up.full,
        hurried=bool(one.short or other.short),
    )


class _Race:
    """Which of the `contenders` for problem number `index`, the first of which is the winner, is best at many places.

    That is within limits.
    """

    def __init__(self, pool: WorkerPool, index: int, contenders: Sequence[Score], limits: Limits) -> None:
        self._pool, self._index, self._limits = pool, index, limits
        self._winner = contenders[0].choice
        self._cheapest_first = [one.choice for one in sorted(contenders, key=lambda one: one.prediction.events)]
        present = {one.choice: one.prediction for one in contenders}
        self._share = {choice: p.bound_s / p.iteration_s if p.iteration_s else 1.0 for choice, p in present.items()}
        self.lead = self._lead({choice: p.samples_per_s for choice, p in present.items()})
        """Of the winner, at present."""

    def run(self, ways: Mapping[str, Sequence[_Way]]) -> None:
        """Look at all values that the sides ask for, one of each at a time."""
        looked = dict.fromkeys(ways, 0)
        asking = [(what, way, way.side.values()) for what, both in ways.items() for way in both]
        going = [(what, way, values, next(values, None)) for what, way, values in asking]
        while going:
            places: list[tuple[str, _Way, Values, Variant]] = []
            for what, way, values, value in going:
                if value is None:
                    continue
                looked[what] += len(self._cheapest_first)
                if self._limits.max_evaluations is not None and looked[what] > self._limits.max_evaluations:
                    way.short = "the number of evaluations is too small"
                else:
                    places.append((what, way, values, way.variant(value)))
            going = []
            for (what, way, values, _), there in zip(places, self._at([at for *_, at in places]), strict=True):
                if isinstance(there, str):
                    way.short = there
                else:
                    going.append((what, way, values, _sent(values, there)))

    def _at(self, places: Sequence[Variant]) -> list[Standing | str | None]:
        """How plans stand at each place; None if none of them can be run there, and why where there was no room."""
        best: dict[int, Score] = {}
        short: dict[int, str] = {}
        rates: list[dict[Choice, float]] = [{} for _ in places]
        able = [i for i, at in enumerate(places) if self._can_be(at)]
        for choice in self._cheapest_first:
            left = [i for i in able if i not in short]
            some = [(choice, best[i].prediction.samples_per_s if i in best else 0.0) for i in left]
            found = self._pool.weigh(self._index, some, self._limits.deadline_s, [places[i] for i in left])
            for i, one in zip(left, found, strict=True):
                if one is None or one.limited:
                    short[i] = "there was no time left" if one is None or one.kind == "time" else "memory was short"
                elif one.score is not None:
                    rates[i][choice] = one.score.prediction.samples_per_s
                    if i not in best or one.score.order < best[i].order:
                        best[i] = one.score
                elif not one.out:
                    rates[i][choice] = one.most_samples_per_s * self._share[choice]
        return [
            short.get(i) or (Standing(best=best[i].choice, lead=self._lead(rates[i])) if i in best else None)
            for i in range(len(places))
        ]

    def _lead(self, samples_per_s: Mapping[Choice, float]) -> float | None:
        """By how much the winner is ahead of all others; see `Standing`."""
        own = samples_per_s.get(self._winner, 0.0)
        most = max((rate for choice, rate in samples_per_s.items() if choice != self._winner), default=0.0)
        return math.log(own / most) if 0 < own < math.inf and 0 < most < math.inf else None

    def _can_be(self, at: Variant) -> bool:
        try:
            self._pool.problems[self._index].varied(at)
        except InputError:
            return False
        return True


def _sent(values: Values, there: Standing | None) -> float | None:
    """The next value; None if there is none."""
    try:
        return values.send(there)
    except StopIteration:
        return None
