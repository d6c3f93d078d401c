"""The search for the best plan of a model: bounds prune, simulation decides.

1. Rows of the experiment and defaults of strategies are simulated, whatever their bounds.
2. Of every other choice a sketch is made: its schedule is built and bounded roughly, which is a tenth of the work of
   checking, lowering and bounding it exactly. What builds a schedule that is known already is passed over.
3. The rest is weighed, the most promising first, until no bound is left that could win: bounded exactly, left out if
   it does not fit, and simulated if the exact bound, too, could win. What could not win is still simulated where it
   could be the best of all strategies but the winner's: the runner-up is as certain as the winner.

The most promising is what would be fastest if it reached as much of its bound as the most similar choice that was
simulated, and of about equal ones the cheapest to simulate.

With a deadline, once a share of the time has gone into sketches, weighing begins with what is known by then, and the
two alternate, so that there is a good plan whenever time is up. With a number of evaluations only so many times as
many choices are sketched.

Choices are taken in batches of a fixed size, so that the order, and with it the answer, is the same on any number of
cores. Without a deadline the answer depends on nothing but the experiment and the number of evaluations.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from time import monotonic

from stanza_sim.simulate.residual import ties
from stanza_sim.studies.plan.assess import SURE, Score, Sketch
from stanza_sim.studies.plan.choices import Choice, LeftOut
from stanza_sim.studies.plan.worker_pool import WorkerPool

SKETCHED_AT_ONCE, WEIGHED_AT_ONCE = 32, 8
"""Sizes of batches."""
SKETCHING = 0.3
"""The share of the time after which weighing begins, whether all choices are sketched or not."""
SKETCHED_FOR_EACH = 16
"""Of so many choices, for each that may be simulated, there are sketches."""

TellCount = Callable[[int, int], None]
"""Told how many choices are dealt with, and of how many."""


class Stop(StrEnum):
    """Why a search ended."""

    COMPLETE = "complete"
    BUDGET = "budget"
    EVALUATIONS = "max_evaluations"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When a search stops: at an instant of the monotonic clock, or after so many simulations."""

    deadline_s: float | None = None
    max_evaluations: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """What a search found: simulated plans, the best first, and how many were not simulated and why.

    `pruned` could not have won by their bounds, `same` build the schedule of another choice, `unreached` are those that
    the limits left no room for.
    """

    ranked: tuple[Score, ...]
    evaluated: int
    pruned: int
    same: int
    unreached: int
    left_out: tuple[LeftOut, ...]
    stop: Stop

    @property
    def best(self) -> Score | None:
        """The best plan, if any was simulated."""
        return self.ranked[0] if self.ranked else None

    def tied_with(self) -> list[tuple[str, ...]]:
        """For each ranked plan the labels of those that it is tied with; see `stanza_sim.simulate.residual`."""
        found = ties([one.prediction.spread for one in self.ranked])
        return [tuple(self.ranked[i].choice.label for i in others) for others in found]

    def best_of_others(self, count: int | None = None) -> list[Score]:
        """The best plan of each strategy but the winner's, the best first."""
        found: dict[str, Score] = {}
        for one in self.ranked:
            found.setdefault(one.choice.strategy, one)
        return list(found.values())[1:][:count]


class Search:
    """A search under way; `found` can be asked for at any time, also after an interruption."""

    def __init__(
        self,
        pool: WorkerPool,
        problem: int,
        choices: Sequence[Choice],
        limits: Limits,
        *,
        left_out: Sequence[LeftOut] = (),
        deadline: Callable[[], float | None] | None = None,
        tell: TellCount = lambda done, total: None,
    ) -> None:
        """`deadline`, if given, is asked for the limit of time once rows and defaults are simulated."""
        self._pool, self._problem, self._choices, self._limits, self._tell = pool, problem, choices, limits, tell
        self._deadline = deadline
        self._known: dict[int, Sketch] = {}
        self._scores: dict[int, Score] = {}
        self._simulated: list[int] = []  # in that order
        self._similar: dict[
            int, tuple[int, float, int]
        ] = {}  # differences, share of the bound, how many were looked at
        self._digests: dict[str, int] = {}
        self._same = 0
        self._pruned: set[int] = set()
        self._out, self._none_of = list(left_out), len(left_out)
        self._stop = Stop.COMPLETE

    def run(self) -> None:
        """Search until done or stopped; an interruption (Ctrl-C) ends the search and is noted in `found`."""
        try:
            self._run()
        except KeyboardInterrupt:
            self._stop = Stop.INTERRUPTED

    def _run(self) -> None:
        first = [i for i, c in enumerate(self._choices) if c.first]
        rest = [i for i, c in enumerate(self._choices) if not c.first]
        rows = replace(self._limits, deadline_s=None)  # rows and defaults are simulated in any case
        fresh = self._sketch(first, rows)
        while fresh:
            if not self._weigh(fresh, rows, least=lambda i: 0.0):
                return
        if self._deadline is not None:
            self._limits = replace(self._limits, deadline_s=self._deadline())
        limits, began_s = self._limits, monotonic()
        if limits.max_evaluations is not None:
            rest = rest[: SKETCHED_FOR_EACH * limits.max_evaluations]
        waiting: list[int] = []
        for at in range(0, len(rest), SKETCHED_AT_ONCE):
            waiting += self._sketch(rest[at : at + SKETCHED_AT_ONCE], limits)
            if self._stop is not Stop.COMPLETE:
                return
            if limits.deadline_s is not None:
                begin_s = began_s + SKETCHING * (limits.deadline_s - began_s)
                if monotonic() >= begin_s and not self._best_first(waiting, most=WEIGHED_AT_ONCE):
                    return
        if self._best_first(waiting) and len(first) + len(rest) < len(self._choices):
            self._stop = Stop.EVALUATIONS

    def found(self) -> SearchResult:
        """What has been found so far."""
        ranked = sorted(self._scores.values(), key=lambda one: one.order)
        pruned = len(self._pruned)
        dealt_with = len(self._scores) + pruned + self._same + len(self._out) - self._none_of
        return SearchResult(
            ranked=tuple(ranked),
            evaluated=len(self._scores),
            pruned=pruned,
            same=self._same,
            unreached=len(self._choices) - dealt_with,
            left_out=tuple(self._out),
            stop=self._stop,
        )

    # ---- stages ----------------------------------------------------------------------------------------------

    def _sketch(self, which: Sequence[int], limits: Limits) -> list[int]:
        """Sketch choices; return those that can be built and whose schedule is new."""
        fresh: list[int] = []
        found = self._pool.sketch(self._problem, [self._choices[i] for i in which], limits.deadline_s)
        for i, known in zip(which, found, strict=True):
            if known is None:
                self._stop = Stop.BUDGET
                continue
            self._known[i] = known
            if not known.digest:
                self._out.append(LeftOut(choice=self._choices[i], kind="infeasible", reason=known.reason))
            elif known.digest in self._digests:
                self._same += 1
            else:
                self._digests[known.digest] = i
                fresh.append(i)
        self._progress()
        return fresh

    def _best_first(self, waiting: list[int], *, most: int | None = None) -> bool:
        """Weigh choices of `waiting` that could matter, `most` of them, and take them out of it.

        Returns whether there is room for more.
        """
        left = len(waiting) if most is None else most
        while waiting and left > 0:
            least = self._least()
            self._pruned.update(i for i in waiting if self._known[i].most_samples_per_s * (1 + SURE) < least(i))
            waiting[:] = [i for i in waiting if i not in self._pruned]
            self._progress()
            waiting.sort(key=lambda i: (*self._known[i].promise(self._share(i)), i))
            left -= WEIGHED_AT_ONCE
            if waiting and not self._weigh(waiting, self._limits, least):
                return False
        return True

    def _share(self, i: int) -> float:
        """The share of its bound that a choice is expected to reach: that of the most similar one simulated so far."""
        least, share, seen = self._similar.get(i, (sys.maxsize, 1.0, 0))
        for other in self._simulated[seen:]:
            differs = self._choices[i].differs(self._choices[other])
            most = self._known[other].most_samples_per_s
            if differs is not None and differs < least and most < math.inf:
                least, share = differs, self._scores[other].prediction.samples_per_s / most
        self._similar[i] = least, share, len(self._simulated)
        return share

    def _least(self) -> Callable[[int], float]:
        """What a choice must reach to be the best, or the best of all strategies but the best one's, so far."""
        ranked = sorted(self._scores.values(), key=lambda one: one.order)
        if not ranked:
            return lambda i: 0.0
        winner, best = ranked[0].choice.strategy, ranked[0].prediction.samples_per_s
        others = (one.prediction.samples_per_s for one in ranked if one.choice.strategy != winner)
        second = next(others, 0.0)
        return lambda i: best if self._choices[i].strategy == winner else second

    def _weigh(self, waiting: list[int], limits: Limits, least: Callable[[int], float]) -> bool:
        """Weigh the first batch of `waiting` and take it out; return whether there is room for more."""
        room = WEIGHED_AT_ONCE
        if limits.max_evaluations is not None:
            room = min(room, limits.max_evaluations - len(self._scores))
            if room <= 0:
                self._stop = Stop.EVALUATIONS
                return False
        batch, waiting[:] = waiting[:room], waiting[room:]
        some = [(self._choices[i], least(i)) for i in batch]
        for i, one in zip(batch, self._pool.weigh(self._problem, some, limits.deadline_s), strict=True):
            if one is None:
                self._stop = Stop.BUDGET
            elif one.out:
                self._out.append(LeftOut(choice=self._choices[i], kind=one.kind, reason=one.reason))
            elif one.score is None:
                self._pruned.add(i)
            else:
                self._scores[i] = one.score
                self._simulated.append(i)
        self._progress()
        return self._stop is not Stop.BUDGET

    def _progress(self) -> None:
        weighed = len(self._scores) + len(self._pruned) + self._same + len(self._out) - self._none_of
        self._tell(len(self._known) + weighed, 2 * len(self._choices))
