"""Why the best plan is the best: its bottleneck, what the runner-up loses on, and what would change the answer.

Rate and batch are varied for the plans that were found, as they are: with their settings, which another search at
another rate might choose differently. Looked at are factors of four up to `REACH` both ways; where the winner changes
first, the place is found by bisection. For each of the two, no more plans are looked at than the search may simulate.

Both ways of both are looked at side by side, a place each at a time. At a place plans are simulated the cheapest first,
and those behind it only if their bounds say that they may be better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from stanza_sim.base.errors import InputError
from stanza_sim.studies.plan.assess import Problem, Score, Variant
from stanza_sim.studies.plan.choices import Choice
from stanza_sim.studies.plan.search import Limits, SearchResult
from stanza_sim.studies.plan.worker_pool import WorkerPool

FACTOR, REACH = 4, 64
CLOSE = 0.02
"""A place is known when it is between two values that differ by no more than this, relatively."""
CONTENDERS = 3
"""So many plans are compared at other rates and batches: the best of each of the best strategies."""
MOST_EVENTS = 20_000
"""Of other strategies these are plans that take no more events to simulate: each is simulated dozens of times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """Where another plan begins to win: it loses at `wins_at`, the value nearest to it that was found to do so wins."""

    wins_at: float
    loses_at: float
    by: Choice


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
    sides: dict[str, list[_Side]] = {}
    for what, sides_of in (("rate", _rate), ("batch", _batch)):
        if len(contenders) < 2:
            rival = (
                "no other strategy's plan is simulated quickly" if others else "there is no plan of another strategy"
            )
            skipped[what] = rival
            continue
        try:
            sides[what] = sides_of(pool.problems[index], found.best.choice)
        except _Skip as skip:
            skipped[what] = str(skip)
    _Race(pool, index, contenders, limits).run(sides)
    for what, both in sides.items():
        if not any(side.reached for side in both) and (why := both[0].short or both[1].short):
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
class _Side:
    """What is looked at one way of a range, `up` or down from `present`.

    `next_value` yields values and is sent the best plan there, None if none can be run; it ends where no more is to be
    looked at. `variant` makes a place of a value. `reached` are the values that were looked at, `turn` is where another
    plan begins to win, and `short` says why there was no room in the limits for more.
    """

    present: float
    up: bool
    variant: Callable[[float], Variant]
    next_value: _Values = field(init=False)
    reached: list[float] = field(default_factory=list)
    turn: Turn | None = None
    full: bool = False
    short: str = ""


_Values = Generator[float, Choice | None, None]


def _sides(
    present: float,
    variant: Callable[[float], Variant],
    winner: Choice,
    middle: Callable[[float, float], float],
    *,
    whole: bool = False,
) -> list[_Side]:
    both = [_Side(present, up, variant) for up in (False, True)]
    for side in both:
        side.next_value = _looked_at(side, winner, middle, whole)
    return both


def _looked_at(side: _Side, winner: Choice, middle: Callable[[float, float], float], whole: bool) -> _Values:
    """Look further and further, and where another plan wins closer and closer; notes in `side` what is found."""
    wins_at = value = side.present
    while side.turn is None:
        value = value * FACTOR if side.up else value / FACTOR
        if whole and (value := int(value)) < 1:
            return
        best = yield value
        if best is None:  # nothing fits any more
            side.full = side.up
            return
        side.reached.append(value)
        if best != winner:
            side.turn = Turn(wins_at=wins_at, loses_at=value, by=best)
        elif not side.present / REACH < value < side.present * REACH:
            return
        wins_at = value if best == winner else wins_at
    turn = side.turn
    while abs(turn.loses_at - turn.wins_at) > CLOSE * min(turn.loses_at, turn.wins_at):
        value = middle(turn.wins_at, turn.loses_at)
        if value in (turn.wins_at, turn.loses_at) or (best := (yield value)) is None:
            return
        turn = replace(turn, wins_at=value) if best == winner else replace(turn, loses_at=value, by=best)
        side.turn = turn


def _rate(problem: Problem, winner: Choice) -> list[_Side]:
    cluster = problem.cluster
    if len({place.host for place in cluster.placement}) < 2:
        raise _Skip("all ranks are on one host")
    if problem.network is not None:
        raise _Skip("the network is as it was measured")
    present = min(nic.bandwidth_Bps for host in cluster.hosts for nic in host.nics)
    return _sides(present, lambda rate_Bps: Variant(rate_Bps=rate_Bps), winner, lambda a, b: math.sqrt(a * b))


def _batch(problem: Problem, winner: Choice) -> list[_Side]:
    def middle(a: float, b: float) -> float:
        return (int(a) + int(b)) // 2

    return _sides(problem.batch_per_worker, lambda batch: Variant(batch=int(batch)), winner, middle, whole=True)


def _range(down: _Side, up: _Side) -> Range:
    reached = [down.present, *down.reached, *up.reached]
    return Range(
        present=down.present,
        low=min(reached),
        high=max(reached),
        below=down.turn,
        above=up.turn,
        full=up.full,
        hurried=bool(down.short or up.short),
    )


class _Race:
    """Which of the `contenders` for problem number `index` is the best, at many places, within limits."""

    def __init__(self, pool: WorkerPool, index: int, contenders: Sequence[Score], limits: Limits) -> None:
        self._pool, self._index, self._limits = pool, index, limits
        self._cheapest_first = [one.choice for one in sorted(contenders, key=lambda one: one.prediction.events)]

    def run(self, sides: Mapping[str, Sequence[_Side]]) -> None:
        """Look at all values that `sides` ask for, one of each at a time."""
        looked = dict.fromkeys(sides, 0)
        going = [(what, side, next(side.next_value, None)) for what, both in sides.items() for side in both]
        while going:
            places: list[tuple[str, _Side, Variant]] = []
            for what, side, value in going:
                if value is None:
                    continue
                looked[what] += len(self._cheapest_first)
                if self._limits.max_evaluations is not None and looked[what] > self._limits.max_evaluations:
                    side.short = "the number of evaluations is too small"
                else:
                    places.append((what, side, side.variant(value)))
            going = []
            for (what, side, _), best in zip(places, self._best([at for _, _, at in places]), strict=True):
                if isinstance(best, str):
                    side.short = best
                else:
                    going.append((what, side, _sent(side.next_value, best)))

    def _best(self, places: Sequence[Variant]) -> list[Choice | str | None]:
        """The best plan at each place; None if none of them can be run there, and why where there was no room."""
        best: dict[int, Score] = {}
        short: dict[int, str] = {}
        able = [i for i, at in enumerate(places) if self._can_be(at)]
        for choice in self._cheapest_first:
            left = [i for i in able if i not in short]
            some = [(choice, best[i].prediction.samples_per_s if i in best else 0.0) for i in left]
            found = self._pool.weigh(self._index, some, self._limits.deadline_s, [places[i] for i in left])
            for i, one in zip(left, found, strict=True):
                if one is None or one.limited:
                    short[i] = "there was no time left" if one is None or one.kind == "time" else "memory was short"
                elif one.score is not None and (i not in best or one.score.order < best[i].order):
                    best[i] = one.score
        return [short.get(i) or (best[i].choice if i in best else None) for i in range(len(places))]

    def _can_be(self, at: Variant) -> bool:
        try:
            self._pool.problems[self._index].varied(at)
        except InputError:
            return False
        return True


def _sent(values: _Values, best: Choice | None) -> float | None:
    """The next value; None if there is none."""
    try:
        return values.send(best)
    except StopIteration:
        return None
