"""Who assesses plans: this process or, where there is much to do, one process for each core."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from time import monotonic
from typing import TypeVar

from stanza_sim.errors import RunError
from stanza_sim.parallel import processes
from stanza_sim.planner.assess import Appraisal, Problem, Score, appraise, score
from stanza_sim.planner.choices import Choice

WORTH_IT = 60
"""From so many choices on it pays to start other processes, which takes each about a second."""

_T = TypeVar("_T")
_problems: tuple[Problem, ...] = ()
"""What a process of the crew works on; every process is told once."""


def _adopt(problems: tuple[Problem, ...]) -> None:
    global _problems
    _problems = problems


def _appraise(problem: int, choice: Choice) -> Appraisal:
    return appraise(_problems[problem], choice)


def _score(problem: int, choice: Choice) -> Score:
    return score(_problems[problem], choice)


class Crew:
    """Assesses choices for `problems`, in other processes if there is an executor.

    Results come in the order of the choices. Once `deadline_s` (of the monotonic clock) has passed nothing new is
    begun, so that there may be fewer results than choices: those of the first ones. Which results there are depends on
    the clock, what they say does not.
    """

    def __init__(self, problems: Sequence[Problem], executor: Executor | None) -> None:
        self.problems, self._executor = tuple(problems), executor

    def appraise(self, problem: int, some: Sequence[Choice], deadline_s: float | None) -> list[Appraisal]:
        """What is known of choices before they are simulated."""
        return self._each(_appraise, appraise, problem, some, deadline_s)

    def score(self, problem: int, some: Sequence[Choice], deadline_s: float | None) -> list[Score]:
        """Simulate choices."""
        return self._each(_score, score, problem, some, deadline_s)

    def _each(
        self,
        there: Callable[[int, Choice], _T],
        here: Callable[[Problem, Choice], _T],
        problem: int,
        some: Sequence[Choice],
        deadline_s: float | None,
    ) -> list[_T]:
        if self._executor is None:
            found = []
            for choice in some:
                if deadline_s is not None and monotonic() >= deadline_s:
                    break
                found.append(here(self.problems[problem], choice))
            return found
        futures: list[Future[_T]] = [self._executor.submit(there, problem, choice) for choice in some]
        left_s = None if deadline_s is None else max(0.0, deadline_s - monotonic())
        try:
            wait(futures, timeout=left_s, return_when=FIRST_EXCEPTION)
            kept = [future for future in futures if not future.cancel()]
            first = []
            for future, expected in zip(kept, futures, strict=False):
                if future is not expected:  # one before it was cancelled
                    break
                first.append(future.result())
        except BrokenProcessPool:
            raise RunError(
                "a process that simulated plans was ended from outside, perhaps for lack of memory"
            ) from None
        return first


@contextmanager
def crew_of(problems: Sequence[Problem], *, jobs: int, work: int) -> Iterator[Crew]:
    """A crew of `jobs` processes, or of this one if there is little `work` (choices in all)."""
    if jobs < 2 or work < WORTH_IT:
        yield Crew(problems, None)
        return
    with processes(jobs, _adopt, (tuple(problems),)) as executor:
        yield Crew(problems, executor)
