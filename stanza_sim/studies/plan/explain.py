"""Why the best plan is the best: its bottleneck, what the runner-up loses on, and what would change the answer.

Rate and batch are varied for the plans that were found, as they are: with their settings, which another search at
another rate might choose differently. Looked at are factors of four up to `REACH` both ways; where the winner changes
first, the place is found by bisection. For each of the two, no more plans are looked at than the search may simulate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from time import monotonic

from stanza_sim.base.errors import InputError
from stanza_sim.studies.plan.assess import Score, Variant
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
    contenders = [found.best.choice, *_rivals(found)]
    ranges: dict[str, Range] = {}
    skipped: dict[str, str] = {}
    for what, look, share in (("rate", _rate, 0.5), ("batch", _batch, 1.0)):
        if len(contenders) < 2:
            rival = (
                "no other strategy's plan is simulated quickly" if others else "there is no plan of another strategy"
            )
            skipped[what] = rival
            continue
        now_s, until_s = monotonic(), limits.deadline_s
        if until_s is not None:
            until_s = now_s + share * max(0.0, until_s - now_s)
        race = _Race(pool, index, contenders, replace(limits, deadline_s=until_s))
        try:
            ranges[what] = look(race)
        except _Skip as skip:
            skipped[what] = str(skip)
    return Explanation(
        runner_up=others[0] if others else None,
        loss=loss,
        rate=ranges.get("rate"),
        batch=ranges.get("batch"),
        skipped=skipped,
    )


def _rivals(found: SearchResult) -> list[Choice]:
    """The best plan of each other strategy that is simulated quickly enough."""
    winner = found.ranked[0].choice.strategy
    rivals: dict[str, Choice] = {}
    for one in found.ranked:
        if one.choice.strategy != winner and one.prediction.events <= MOST_EVENTS:
            rivals.setdefault(one.choice.strategy, one.choice)
    return list(rivals.values())[: CONTENDERS - 1]


class _Skip(Exception):
    """There is a reason not to look at a range."""


class _NoRoom(_Skip):
    """The deadline has passed, or there have been as many simulations as there may be."""


class _Race:
    """Which of the `contenders` for problem number `index` is the best, at one place after another within limits."""

    def __init__(self, pool: WorkerPool, index: int, contenders: Sequence[Choice], limits: Limits) -> None:
        self.problem, self.contenders = pool.problems[index], contenders
        self._pool, self._index, self._limits, self._run = pool, index, limits, 0

    def best(self, variant: Variant) -> Choice | None:
        """The best of them there; None if none of them can be run there. Raises `_NoRoom`."""
        most, deadline_s = self._limits.max_evaluations, self._limits.deadline_s
        self._run += len(self.contenders)
        if most is not None and self._run > most:
            raise _NoRoom("the number of evaluations is too small")
        try:
            found = self._pool.weigh(self._index, [(choice, 0.0) for choice in self.contenders], deadline_s, variant)
        except InputError:
            return None
        scores: list[Score] = []
        for one in found:
            if one is None or one.limited:
                raise _NoRoom("there was no time left" if one is None or one.kind == "time" else "memory was short")
            if one.score is not None:
                scores.append(one.score)
        return min(scores, key=lambda one: one.order).choice if scores else None


def _rate(race: _Race) -> Range:
    problem = race.problem
    cluster = problem.cluster
    if len({place.host for place in cluster.placement}) < 2:
        raise _Skip("all ranks are on one host")
    if problem.network is not None:
        raise _Skip("the network is as it was measured")
    present = min(nic.bandwidth_Bps for host in cluster.hosts for nic in host.nics)

    def best(rate_Bps: float) -> Choice | None:
        return race.best(Variant(rate_Bps=rate_Bps))

    return _range(best, race.contenders[0], present, lambda a, b: math.sqrt(a * b))


def _batch(race: _Race) -> Range:
    def best(batch: float) -> Choice | None:
        return race.best(Variant(batch=int(batch)))

    def middle(a: float, b: float) -> float:
        return (int(a) + int(b)) // 2

    return _range(best, race.contenders[0], race.problem.batch_per_worker, middle, whole=True)


def _range(
    best_at: Callable[[float], Choice | None],
    winner: Choice,
    present: float,
    middle: Callable[[float, float], float],
    *,
    whole: bool = False,
) -> Range:
    reached = [present]
    turns: dict[bool, Turn | None] = {False: None, True: None}
    full = hurried = False
    try:
        for up in (False, True):
            wins_at, value = present, present
            while turns[up] is None and present / REACH < value < present * REACH:
                value = value * FACTOR if up else value / FACTOR
                if whole and (value := int(value)) < 1:
                    break
                best = best_at(value)
                if best is None:  # nothing fits any more
                    full = full or up
                    break
                reached.append(value)
                if best == winner:
                    wins_at = value
                    continue
                turns[up] = far = Turn(wins_at=wins_at, loses_at=value, by=best)
                for near in _closer(best_at, winner, far, middle):
                    turns[up] = near
    except _NoRoom:
        if len(reached) == 1:
            raise
        hurried = True
    return Range(
        present=present,
        low=min(reached),
        high=max(reached),
        below=turns[False],
        above=turns[True],
        full=full,
        hurried=hurried,
    )


def _closer(
    best_at: Callable[[float], Choice | None],
    winner: Choice,
    turn: Turn,
    middle: Callable[[float, float], float],
) -> Iterator[Turn]:
    """Yield the place of a change, closer and closer."""
    while abs(turn.loses_at - turn.wins_at) > CLOSE * min(turn.loses_at, turn.wins_at):
        value = middle(turn.wins_at, turn.loses_at)
        if value in (turn.wins_at, turn.loses_at) or (best := best_at(value)) is None:
            return
        turn = replace(turn, wins_at=value) if best == winner else replace(turn, loses_at=value, by=best)
        yield turn
