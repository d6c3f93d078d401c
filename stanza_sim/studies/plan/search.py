"""The search for the best plan of a model: bounds prune, simulation decides.

1. Rows of the experiment and defaults of strategies are simulated, whatever their bounds.
2. Of every other choice a sketch is made: its schedule is built and bounded roughly, which is a tenth of the work of
   checking, lowering and bounding it exactly. What builds a schedule that is known already is passed over.
3. The rest is weighed, the most promising first, until no bound is left that could win: bounded exactly, left out if
   it does not fit, and simulated if the exact bound, too, could win. What could not win is still simulated where it
   could be the best of all strategies but the winner's: the runner-up is as certain as the winner.

The most promising is what would be fastest if it reached as much of its bound as the most similar choice that was
simulated, and of about equal ones the cheapest to simulate.

A deadline holds for all of it. Rows and defaults then come the cheapest first, and no plan takes more than a part of
the time until all others are dealt with. Once a share of the time has gone into sketches, weighing begins with what is
known by then, and the two alternate, so that there is a good plan whenever time is up; if there is none at all, one row
or default is simulated in a time of grace. With a number of evaluations only so many times as many choices are
sketched.

Choices are taken in batches of a fixed size, so that the order, and with it the answer, is the same on any number of
cores. Without a deadline the answer depends on nothing but the experiment and the number of evaluations, as long as
there is memory for every plan.
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
MOST_OF_THE_TIME = 0.4
"""The share of the time that one plan may take before all others are dealt with."""
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
    """When a search stops: at an instant of the monotonic clock, or after so many simulations.

    While no plan at all has been simulated, one may be until `grace_s`.
    """

    deadline_s: float | None = None
    max_evaluations: int | None = None
    grace_s: float | None = None


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
        tell: TellCount = lambda done, total: None,
    ) -> None:
        self._pool, self._problem, self._choices, self._limits, self._tell = pool, problem, choices, limits, tell
        self._most_s: float | None = None
        self._later: dict[int, str] = {}  # what needs more than that, and why
        self._known: dict[int, Sketch] = {}
        self._scores: dict[int, Score] = {}
        self._simulated: list[int] = []  # in that order
        self._similar: dict[
            int, tuple[int, float, int]
        ] = {}  # differences, share of the bound, how many were looked at
        self._digests: dict[str, int] = {}
        self._same = 0
        self._pruned: set[int] = set()
        self._offered_nothing = tuple(left_out)
        self._out: dict[int, LeftOut] = {}
        self._stop = Stop.COMPLETE

    def run(self) -> None:
        """Search until done or stopped; an interruption (Ctrl-C) ends the search and is noted in `found`."""
        try:
            self._run()
        except KeyboardInterrupt:
            self._stop = Stop.INTERRUPTED

    def _run(self) -> None:
        began_s, limits = monotonic(), self._limits
        if limits.deadline_s is not None:
            self._most_s = MOST_OF_THE_TIME * max(0.0, limits.deadline_s - began_s)
        first = [i for i, c in enumerate(self._choices) if c.first]
        rest = [i for i, c in enumerate(self._choices) if not c.first]
        if limits.max_evaluations is not None:
            rest = rest[: SKETCHED_FOR_EACH * limits.max_evaluations]
        if self._searched(first, rest, began_s):
            self._most_s = None
            if self._best_first(list(self._later)) and len(first) + len(rest) < len(self._choices):
                self._stop = Stop.EVALUATIONS
        for i, reason in self._later.items():
            if not (i in self._scores or i in self._pruned or i in self._out):
                self._leave_out(i, "time", reason)
        if self._stop is Stop.COMPLETE and any(one.kind == "time" for one in self._out.values()):
            self._stop = Stop.BUDGET
        if not self._scores and limits.grace_s is not None:
            self._at_least_one(first, limits.grace_s)

    def _searched(self, first: Sequence[int], rest: Sequence[int], began_s: float) -> bool:
        """Deal with all choices but those that take long; return whether there is room for more."""
        limits = self._limits
        fresh = self._sketch(first, bounded=limits.deadline_s is None)
        if limits.deadline_s is not None:
            fresh.sort(key=lambda i: (self._known[i].parts, i))
        while fresh:
            if not self._weigh(fresh, least=lambda i: 0.0):
                return False
        waiting: list[int] = []
        for at in range(0, len(rest), SKETCHED_AT_ONCE):
            waiting += self._sketch(rest[at : at + SKETCHED_AT_ONCE])
            if self._stop is not Stop.COMPLETE:
                return False
            if limits.deadline_s is not None:
                begin_s = began_s + SKETCHING * (limits.deadline_s - began_s)
                if monotonic() >= begin_s and not self._best_first(waiting, most=WEIGHED_AT_ONCE):
                    return False
        return self._best_first(waiting)

    def _at_least_one(self, first: Sequence[int], until_s: float) -> None:
        """Simulate a row or default until `until_s`, the cheapest first, until one could be."""
        stopped = self._stop
        self._limits, self._most_s = replace(self._limits, deadline_s=until_s), None
        known = sorted((i for i in first if i in self._known), key=lambda i: (self._known[i].parts, i))
        for i in (*known, *(i for i in first if i not in self._known)):
            new = i in self._digests.values() or bool(i not in self._known and self._sketch([i], bounded=False))
            if new and (i not in self._out or self._out[i].kind == "time"):
                self._weigh([i], least=lambda i: 0.0)
            if self._scores:
                self._out.pop(i, None)
                break
        self._stop = stopped

    def found(self) -> SearchResult:
        """What has been found so far."""
        ranked = sorted(self._scores.values(), key=lambda one: one.order)
        pruned = len(self._pruned)
        dealt_with = len(self._scores) + pruned + self._same + len(self._out)
        return SearchResult(
            ranked=tuple(ranked),
            evaluated=len(self._scores),
            pruned=pruned,
            same=self._same,
            unreached=len(self._choices) - dealt_with,
            left_out=(*self._offered_nothing, *self._out.values()),
            stop=self._stop,
        )

    # ---- stages ----------------------------------------------------------------------------------------------

    def _sketch(self, which: Sequence[int], *, bounded: bool = True) -> list[int]:
        """Sketch choices; return those that can be built and whose schedule is new."""
        fresh: list[int] = []
        some = [self._choices[i] for i in which]
        found = self._pool.sketch(self._problem, some, self._limits.deadline_s, most_s=self._most_s, bounded=bounded)
        for i, known in zip(which, found, strict=True):
            if known is None:
                self._stop = Stop.BUDGET
                continue
            self._known[i] = known
            if not known.digest:
                self._leave_out(i, known.kind, known.reason)
            elif known.digest in self._digests:
                self._same += 1
            else:
                self._digests[known.digest] = i
                fresh.append(i)
        self._progress()
        return fresh

    def _leave_out(self, i: int, kind: str, reason: str, left_nbytes: int | None = None) -> None:
        self._out[i] = LeftOut(choice=self._choices[i], kind=kind, reason=reason, left_nbytes=left_nbytes)

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
            if waiting and not self._weigh(waiting, least):
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

    def _weigh(self, waiting: list[int], least: Callable[[int], float]) -> bool:
        """Weigh the first batch of `waiting` and take it out; return whether there is room for more."""
        room, limits = WEIGHED_AT_ONCE, self._limits
        if limits.max_evaluations is not None:
            room = min(room, limits.max_evaluations - len(self._scores))
            if room <= 0:
                self._stop = Stop.EVALUATIONS
                return False
        batch, waiting[:] = waiting[:room], waiting[room:]
        some = [(self._choices[i], least(i)) for i in batch]
        found = self._pool.weigh(self._problem, some, limits.deadline_s, most_s=self._most_s)
        for i, one in zip(batch, found, strict=True):
            if one is None:
                self._stop = Stop.BUDGET
            elif one.kind == "time" and self._most_s is not None:
                self._later[i] = one.reason
            elif one.out:
                self._leave_out(i, one.kind, one.reason, one.left_nbytes)
            elif one.score is None:
                self._pruned.add(i)
            else:
                self._scores[i] = one.score
                if self._known[i].most_samples_per_s == math.inf:  # it was not bounded before
                    self._known[i] = replace(self._known[i], most_samples_per_s=one.most_samples_per_s)
                self._simulated.append(i)
        self._progress()
        return self._stop is not Stop.BUDGET

    def _progress(self) -> None:
        weighed = len(self._scores) + len(self._pruned) + self._same + len(self._out)
        self._tell(len(self._known) + weighed, 2 * len(self._choices))
