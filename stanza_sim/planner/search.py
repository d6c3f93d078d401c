"""The search for the best plan of a model: bounds prune, simulation decides.

1. Rows of the experiment and defaults of strategies are simulated, whatever their bounds.
2. Every other choice is appraised: its schedule is built and bounded; what does not fit is left out, and what builds a
   schedule that is known already is passed over. With a deadline some of what is known is simulated in between, the
   highest bound first, so that there is a good plan whenever time is up.
3. The rest is simulated, the highest bound first, until no bound is left that could win. What could not win is still
   simulated where it could be the best of all strategies but the winner's: the runner-up is as certain as the winner.

Choices are taken in batches of a fixed size, so that the order, and with it the answer, is the same on any number of
cores. Without a deadline the answer depends on nothing but the experiment and the number of evaluations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from time import monotonic

from stanza_sim.planner.assess import Appraisal, Score
from stanza_sim.planner.choices import Choice, LeftOut
from stanza_sim.planner.crew import Crew

APPRAISED_AT_ONCE, SCORED_AT_ONCE = 32, 8
"""Sizes of batches."""
SURE = 1e-9
"""A bound below the best by less than this, relatively, may be a tie and is simulated."""

Tell = Callable[[int, int], None]
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

    def over(self) -> bool:
        """Whether the time is up."""
        return self.deadline_s is not None and monotonic() >= self.deadline_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
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
        crew: Crew,
        problem: int,
        choices: Sequence[Choice],
        limits: Limits,
        *,
        left_out: Sequence[LeftOut] = (),
        tell: Tell = lambda done, total: None,
    ) -> None:
        self._crew, self._problem, self._choices, self._limits, self._tell = crew, problem, choices, limits, tell
        self._known: dict[int, Appraisal] = {}
        self._scores: dict[int, Score] = {}
        self._digests: dict[str, int] = {}
        self._same = 0
        self._pruned: set[int] = set()
        self._out, self._none_of = list(left_out), len(left_out)
        self._stop = Stop.COMPLETE

    def run(self) -> None:
        """Search until done or stopped; an interruption (Ctrl-C) ends the search and is noted in `found`."""
        try:
            first = [i for i, c in enumerate(self._choices) if c.first]
            rest = [i for i, c in enumerate(self._choices) if not c.first]
            rows = replace(self._limits, deadline_s=None)  # rows and defaults are simulated in any case
            fresh = self._appraise(first, rows)
            for at in range(0, len(fresh), SCORED_AT_ONCE):
                if not self._score(fresh[at : at + SCORED_AT_ONCE], rows):
                    return
            waiting: list[int] = []
            for at in range(0, len(rest), APPRAISED_AT_ONCE):
                waiting += self._appraise(rest[at : at + APPRAISED_AT_ONCE], self._limits)
                if self._stop is not Stop.COMPLETE:
                    return
                if self._limits.deadline_s is not None and not self._best_first(waiting, most=SCORED_AT_ONCE):
                    return
            self._best_first(waiting)
        except KeyboardInterrupt:
            self._stop = Stop.INTERRUPTED

    def found(self) -> Found:
        """What has been found so far."""
        ranked = sorted(self._scores.values(), key=lambda one: one.order)
        pruned = len(self._pruned)
        dealt_with = len(self._scores) + pruned + self._same + len(self._out) - self._none_of
        return Found(
            ranked=tuple(ranked),
            evaluated=len(self._scores),
            pruned=pruned,
            same=self._same,
            unreached=len(self._choices) - dealt_with,
            left_out=tuple(self._out),
            stop=self._stop,
        )

    # ---- stages ----------------------------------------------------------------------------------------------

    def _appraise(self, which: Sequence[int], limits: Limits) -> list[int]:
        """Appraise choices; return those that can be run and whose schedule is new."""
        fresh: list[int] = []
        found = self._crew.appraise(self._problem, [self._choices[i] for i in which], limits.deadline_s)
        for i, known in zip(which, found, strict=False):
            self._known[i] = known
            if known.out:
                self._out.append(LeftOut(choice=self._choices[i], kind=known.kind, reason=known.reason))
            elif known.digest in self._digests:
                self._same += 1
            else:
                self._digests[known.digest] = i
                fresh.append(i)
        self._progress()
        if len(found) < len(which):
            self._stop = Stop.BUDGET
        return fresh

    def _best_first(self, waiting: list[int], *, most: int | None = None) -> bool:
        """Simulate choices of `waiting` that could matter, `most` of them, and take them out of it.

        Returns whether there is room for more.
        """
        waiting.sort(key=lambda i: (-self._known[i].most_samples_per_s, i))
        done = 0
        while waiting and (most is None or done < most):
            matters = self._matters()
            self._pruned.update(i for i in waiting if not matters(i))
            waiting[:] = [i for i in waiting if i not in self._pruned]
            self._progress()
            batch, waiting[:] = waiting[:SCORED_AT_ONCE], waiting[SCORED_AT_ONCE:]
            if batch and not self._score(batch, self._limits):
                return False
            done += len(batch)
        return True

    def _matters(self) -> Callable[[int], bool]:
        """Whether a choice could be the best, or the best of all strategies but the best one's, as far as is known."""
        ranked = sorted(self._scores.values(), key=lambda one: one.order)
        if not ranked:
            return lambda i: True
        winner, best = ranked[0].choice.strategy, ranked[0].prediction.samples_per_s
        others = (one.prediction.samples_per_s for one in ranked if one.choice.strategy != winner)
        second = next(others, 0.0)

        def matters(i: int) -> bool:
            at_most = self._known[i].most_samples_per_s * (1 + SURE)
            return at_most >= (best if self._choices[i].strategy == winner else second)

        return matters

    def _score(self, batch: Sequence[int], limits: Limits) -> bool:
        """Simulate a batch; return whether there is room for more."""
        if limits.max_evaluations is not None:
            room = limits.max_evaluations - len(self._scores)
            if room < len(batch):
                batch, self._stop = batch[:room], Stop.EVALUATIONS
        found = self._crew.score(self._problem, [self._choices[i] for i in batch], limits.deadline_s)
        for i, one in zip(batch, found, strict=False):
            self._scores[i] = replace(one, memory_nbytes=self._known[i].memory_nbytes)
        self._progress()
        if len(found) < len(batch):
            self._stop = Stop.BUDGET
        return self._stop is not Stop.EVALUATIONS and len(found) == len(batch)

    def _progress(self) -> None:
        self._tell(len(self._known) + len(self._scores) + len(self._pruned), 2 * len(self._choices))
