"""Who looks at plans: this process or, where there is much to do, one process for each core."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import TypeVar

from stanza_sim.base.errors import RunError
from stanza_sim.base.processes import processes
from stanza_sim.simulate.engines import warm
from stanza_sim.studies.plan.assess import Problem, Score, Sketch, Variant, Weighed, sketch, spread_of, weigh
from stanza_sim.studies.plan.choices import Choice

WORTH_IT = 60
"""From so many choices on it pays to start other processes, which takes each about a second, and to load compiled code
in each, which takes another half and is made up for by some ten plans."""
GRACE_S = 1.0
"""What is under way when time is up may take so much longer; then it is given up."""
COLLECTED_EVERY = 16
"""After so many tasks a process frees what cycles of objects hold, which Python does too seldom by itself here."""

_T = TypeVar("_T")


@dataclass(slots=True)
class _WorkerState:
    """What a process of the pool works on; every process is told once."""

    problems: tuple[Problem, ...] = ()
    done: int = 0
    varied: dict[tuple[int, Variant], Problem] = field(default_factory=dict)

    def problem(self, index: int, variant: Variant) -> Problem:
        """Problem number `index` at another link speed or batch; the last one asked for is kept."""
        if variant == Variant():
            return self.problems[index]
        if (index, variant) not in self.varied:
            self.varied = {(index, variant): self.problems[index].varied(variant)}
        return self.varied[index, variant]


_state = _WorkerState()


def _adopt(problems: tuple[Problem, ...]) -> None:
    _state.problems = problems
    warm()
    gc.collect()
    gc.freeze()  # what is there now stays, and need not be looked through again


def _collected(result: _T) -> _T:
    _state.done += 1
    if _state.done % COLLECTED_EVERY == 0:
        gc.collect()
    return result


def _sketch(problem: int, choice: Choice, deadline_s: float | None) -> Sketch | None:
    return None if _past(deadline_s) else _collected(sketch(_state.problems[problem], choice))


def _weigh(problem: int, choice: Choice, least: float, deadline_s: float | None, variant: Variant) -> Weighed | None:
    if _past(deadline_s):
        return None
    return _collected(_weighed(_state.problem(problem, variant), choice, least, deadline_s))


def _weighed(problem: Problem, choice: Choice, least: float, deadline_s: float | None) -> Weighed | None:
    """As `weigh`; None if time runs out meanwhile."""
    try:
        return weigh(problem, choice, least, go_on=lambda: not _past(deadline_s))
    except RunError:
        if _past(deadline_s):
            return None
        raise


def _spread(problem: int, one: Score, deadline_s: float | None) -> Score | None:
    return None if _past(deadline_s) else _collected(_spread_of(_state.problems[problem], one, deadline_s))


def _spread_of(problem: Problem, one: Score, deadline_s: float | None) -> Score | None:
    """As `spread_of`; None if time runs out meanwhile."""
    try:
        return spread_of(problem, one, go_on=lambda: not _past(deadline_s))
    except RunError:
        if _past(deadline_s):
            return None
        raise


def _past(deadline_s: float | None) -> bool:
    return deadline_s is not None and monotonic() >= deadline_s


class WorkerPool:
    """Looks at choices for `problems`, in other processes if there is an executor.

    Results come in the order of the choices, None for those that were not finished by `deadline_s` (of the monotonic
    clock, which is the same in all processes). Which results there are depends on the clock, what they say does not.
    """

    def __init__(self, problems: Sequence[Problem], executor: Executor | None) -> None:
        self.problems, self._executor = tuple(problems), executor
        self._here = _WorkerState(self.problems)

    def sketch(self, problem: int, some: Sequence[Choice], deadline_s: float | None) -> list[Sketch | None]:
        """Quick bounds of choices."""
        if self._executor is None:
            return [None if _past(deadline_s) else sketch(self.problems[problem], choice) for choice in some]
        submit = self._executor.submit
        return self._results([submit(_sketch, problem, choice, deadline_s) for choice in some], deadline_s)

    def weigh(
        self,
        problem: int,
        some: Sequence[tuple[Choice, float]],
        deadline_s: float | None,
        variant: Variant | None = None,
    ) -> list[Weighed | None]:
        """Bound choices exactly, and simulate those that may reach the samples/s that stand beside them.

        With a `variant`, at another link speed or batch. Raises `InputError` if the cluster cannot have that.
        """
        at = variant or Variant()
        if self._executor is None:
            there = self._here.problem(problem, at)
            return [None if _past(deadline_s) else _weighed(there, choice, least, deadline_s) for choice, least in some]
        submit = self._executor.submit
        return self._results([submit(_weigh, problem, one, least, deadline_s, at) for one, least in some], deadline_s)

    def spreads(self, problem: int, some: Sequence[Score], deadline_s: float | None) -> list[Score | None]:
        """Simulate plans again with costs that are off."""
        if self._executor is None:
            there = self.problems[problem]
            return [None if _past(deadline_s) else _spread_of(there, one, deadline_s) for one in some]
        submit = self._executor.submit
        return self._results([submit(_spread, problem, one, deadline_s) for one in some], deadline_s)

    @staticmethod
    def _results(futures: Sequence[Future[_T | None]], deadline_s: float | None) -> list[_T | None]:
        left_s = None if deadline_s is None else max(0.0, deadline_s - monotonic()) + GRACE_S
        try:
            wait(futures, timeout=left_s, return_when=FIRST_EXCEPTION)
            for future in futures:
                future.cancel()  # what has begun goes on, to no use
            return [future.result() if future.done() and not future.cancelled() else None for future in futures]
        except BrokenProcessPool:
            raise RunError(
                "a process that simulated plans was ended from outside, perhaps for lack of memory"
            ) from None


@contextmanager
def worker_pool(problems: Sequence[Problem], *, jobs: int, work: int) -> Iterator[WorkerPool]:
    """A pool of `jobs` processes, or of this one if there is little `work` (choices in all)."""
    before = warm(work >= WORTH_IT)  # here too, so that all plans are simulated by one engine
    try:
        if jobs < 2 or work < WORTH_IT:
            yield WorkerPool(problems, None)
        else:
            with processes(jobs, _adopt, (tuple(problems),)) as executor:
                yield WorkerPool(problems, executor)
    finally:
        warm(before)
