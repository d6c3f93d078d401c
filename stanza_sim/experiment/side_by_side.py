"""Predictions of many scenarios, by several processes where that is quicker."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import count as count_from

from stanza_sim.base.errors import InputError, RunError
from stanza_sim.base.processes import can_fork, processes
from stanza_sim.base.telling import Say
from stanza_sim.experiment.scenario import Scenario
from stanza_sim.simulate import Prediction

WORTH_IT = 500
"""From so many ops on, of all schedules together, several processes pay: these take 0.3 s, and to fork takes 0.05 s."""

_predict_here: Callable[[int], Prediction | InputError]
"""What forked processes do: they are copies of this one, so no scenario has to be sent to them."""


@contextmanager
def predictions_of(
    scenarios: Sequence[Scenario],
    jobs: int,
    tell: Callable[[int, int], None] = lambda index, iteration: None,
    say: Say = lambda text: None,
) -> Iterator[Iterator[Prediction | InputError]]:
    """The prediction of each scenario with its spread, in order, or the error that says why there is none.

    After each iteration of a simulation `tell` is called with the number of the scenario and of the iteration, and
    `say` with what a user should know: both where it is simulated, which may be a copy of this process. The answers do
    not depend on `jobs`. Raises `RunError` where a process was lost.
    """
    global _predict_here

    def predict(index: int) -> Prediction | InputError:
        iterations = count_from(1)
        try:
            return scenarios[index].predict_with_spread(moved=lambda: tell(index, next(iterations)), say=say)
        except InputError as error:
            return error

    count = min(jobs, len(scenarios))
    work = sum(len(one.schedule.ops) for one in scenarios)
    if count < 2 or work < WORTH_IT or not can_fork():
        yield map(predict, range(len(scenarios)))
        return
    largest_first = sorted(range(len(scenarios)), key=lambda i: -len(scenarios[i].schedule.ops))
    done: dict[int, Prediction | InputError] = {}
    if any(one.by_chance for one in scenarios):  # compiled code runs them: loaded here, it is there in each copy
        smallest = largest_first.pop()
        done[smallest] = predict(smallest)
    _predict_here = predict
    try:
        with processes(count, forked=True) as executor:
            yield _results(executor, largest_first, done)
    finally:
        del _predict_here


def _results(
    executor: Executor, largest_first: Sequence[int], done: Mapping[int, Prediction | InputError]
) -> Iterator[Prediction | InputError]:
    futures = {i: executor.submit(_predict, i) for i in largest_first}
    try:
        for i in range(len(futures) + len(done)):
            yield done[i] if i in done else futures[i].result()
    except BrokenProcessPool:
        raise RunError("a process that simulated was ended from outside, perhaps for lack of memory") from None


def _predict(index: int) -> Prediction | InputError:
    return _predict_here(index)
