"""Who looks at plans: this process or, where there is much to do, one process for each core."""

from __future__ import annotations

import gc
import pickle
import shutil
from asyncio import CancelledError
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, TypeVar

from stanza_sim import strategies
from stanza_sim.base.dask_cluster import dask_client, lost
from stanza_sim.base.errors import RunError
from stanza_sim.base.limits import TimeIsUp, memory_limit, time_limit
from stanza_sim.base.processes import can_fork, processes, scratch_folder
from stanza_sim.base.units import format_bytes, format_time
from stanza_sim.cluster import load_cluster
from stanza_sim.model import zoo
from stanza_sim.simulate import EngineChoice, costs_for, simulate
from stanza_sim.simulate.engines import pays, warm
from stanza_sim.studies.plan.assess import Problem, Score, Sketch, Variant, Weighed, sketch, spread_of, weigh
from stanza_sim.studies.plan.choices import Choice
from stanza_sim.studies.plan.room import Rates, Room

if TYPE_CHECKING:
    from distributed import Client

WORTH_IT = 60
"""From so many choices on it pays to start other processes, which takes each about a second, and to load compiled code
in each, which takes another half and is made up for by some ten plans."""
STARTING_S = 0.02
"""What a process waits for when it has started, so that another takes the next such task."""
LOADING_S = 3.0
"""What takes longer to be there than this was compiled, and not loaded."""
GRACE_S = 0.5
"""What is under way when time is up may take so much longer; then its process is ended."""
VARIED_KEPT = 4
"""So many link speeds and batches are looked at side by side (see `explain`)."""
COLLECTED_EVERY = 16
"""After so many tasks a process frees what cycles of objects hold, which Python does too seldom by itself here."""

_T = TypeVar("_T")


@dataclass(slots=True)
class WorkerState:
    """What a process works on; every process is told once."""

    problems: tuple[Problem, ...] = ()
    compiles: bool = True
    done: int = 0
    varied: dict[tuple[int, Variant], Problem] = field(default_factory=dict)

    def problem(self, index: int, variant: Variant) -> Problem:
        """Problem number `index` at another link speed or batch; the last ones asked for are kept."""
        if variant == Variant():
            return self.problems[index]
        if (index, variant) not in self.varied:
            if len(self.varied) == VARIED_KEPT:
                del self.varied[next(iter(self.varied))]
            self.varied[index, variant] = self.problems[index].varied(variant)
        return self.varied[index, variant]

    def collect(self) -> None:
        """Free what cycles hold, every now and then."""
        self.done += 1
        if self.done % COLLECTED_EVERY == 0:
            gc.collect()


_state = WorkerState()


def _adopt(problems: tuple[Problem, ...] | Path) -> None:
    """Take over the problems, or those that a file holds."""
    _state.problems = pickle.loads(problems.read_bytes()) if isinstance(problems, Path) else problems
    if warm(_state.compiles) or pays(1):
        import stanza_sim.simulate.compiled.engine  # noqa: F401 - now, and not in the time of the first plan
    gc.collect()
    gc.freeze()  # what is there now stays, and need not be looked through again


# ---- tasks, each within its limits -----------------------------------------------------------------------------------


def _within(room: Room, task: Callable[[], _T], out: Callable[[str, str], _T]) -> _T | None:
    """What `task` returns; what `out` makes of a kind and a reason if time or memory is short; None if it is too late.

    Memory is the limit of the whole process, and of what may be left in it of other tasks.
    """
    began_s = monotonic()
    until_s = room.until_s(began_s)
    limit_nbytes = room.memory_nbytes if room.alone else None
    if until_s is not None and began_s >= until_s:
        return None
    try:
        with memory_limit(limit_nbytes), time_limit(until_s):
            return task()
    except TimeIsUp:
        return out("time", f"stopped after {format_time(monotonic() - began_s)}")
    except MemoryError:
        pass  # outside, what it held is freed
    gc.collect()
    limit = "" if room.memory_nbytes is None else f" than {format_bytes(room.memory_nbytes)}"
    return out("host_memory", f"simulating it takes more memory{limit}")


def _begun(shared: WorkerState | None) -> WorkerState:
    """What a task works on: what all tasks share, or what this process was told."""
    state = shared or _state
    warm(state.compiles)
    state.collect()
    return state


def _nothing(shared: WorkerState | None, room: Room) -> bool | None:
    sleep(STARTING_S)
    return True


def _sketch(shared: WorkerState | None, room: Room, problem: int, choice: Choice, bounded: bool) -> Sketch | None:
    state = _begun(shared)
    return _within(
        room,
        lambda: sketch(state.problems[problem], choice, bounded=bounded),
        lambda kind, why: Sketch(kind=kind, reason=why),
    )


def _weigh(
    shared: WorkerState | None, room: Room, problem: int, choice: Choice, least: float, variant: Variant
) -> Weighed | None:
    state = _begun(shared)
    return _within(
        room,
        lambda: weigh(state.problem(problem, variant), choice, least, room, sketched=variant == Variant()),
        lambda kind, why: Weighed(kind=kind, reason=why),
    )


def _spread(shared: WorkerState | None, room: Room, problem: int, one: Score) -> Score | None:
    state = _begun(shared)
    return _within(room, lambda: spread_of(state.problems[problem], one), lambda kind, why: one)


# ---- who carries them out --------------------------------------------------------------------------------------------


Task = Callable[..., _T | None]


class Processes:
    """Up to `jobs` processes that work on `problems`; started when they are needed, anew where they were ended.

    Copies of this process have the problems already. Others get them from a file: were they handed to a process that
    starts, each would hold up the next.
    """

    def __init__(self, problems: tuple[Problem, ...], jobs: int) -> None:
        self._problems, self.jobs = problems, jobs
        self._started: tuple[ExitStack, Executor] | None = None

    def results(self, task: Task[_T], room: Room, asked: Sequence[tuple[object, ...]]) -> list[_T | None]:
        """What `task` finds for each that is `asked`, in that order; None for what was not done in time."""
        executor = self._executor()
        futures: list[Future[_T | None]] = [executor.submit(task, None, room, *each) for each in asked]
        try:
            wait(futures, timeout=room.patience_s(GRACE_S), return_when=FIRST_EXCEPTION)
            for future in futures:
                future.cancel()
            found = [future.result() if future.done() and not future.cancelled() else None for future in futures]
        except BrokenProcessPool:
            raise RunError(
                "a process that simulated plans was ended from outside, perhaps for lack of memory"
            ) from None
        if any(future.running() for future in futures):
            self.end()
        return found

    def _executor(self) -> Executor:
        """The processes, which begin to start now if there are none."""
        if self._started is None:
            stack, forked = ExitStack(), can_fork()
            problems: tuple[Problem, ...] | Path = self._problems
            if not forked:
                folder = scratch_folder()
                stack.callback(shutil.rmtree, folder, ignore_errors=True)
                problems = folder / "problems"
                problems.write_bytes(pickle.dumps(self._problems))
            executor = stack.enter_context(processes(self.jobs, _adopt, (problems,), forked=forked))
            self._started = stack, executor
        return self._started[1]

    def end(self) -> None:
        """End all processes, whatever they do."""
        if self._started is not None:
            stack, self._started = self._started[0], None
            stack.close()


class DaskWorkers:
    """The workers of a Dask cluster, which get `problems` once each; see `Processes`."""

    def __init__(self, client: Client, threads: int, name: str, problems: tuple[Problem, ...], compiles: bool) -> None:
        self._client, self.jobs, self._name = client, threads, name
        self._shared = client.scatter(WorkerState(problems=problems, compiles=compiles), broadcast=True, hash=False)

    def results(self, task: Task[_T], room: Room, asked: Sequence[tuple[object, ...]]) -> list[_T | None]:
        """See `Processes.results`. What is not done in time is given up and not waited for."""
        from distributed import wait as wait_for

        there = room.elsewhere()
        futures = [self._client.submit(task, self._shared, there, *each, pure=False) for each in asked]
        try:
            with self._client.as_current(), suppress(TimeoutError):
                wait_for(futures, timeout=room.patience_s(GRACE_S))
            found = [future.result() if future.done() else None for future in futures]
        except (ImportError, OSError, CancelledError) as error:
            raise lost(self._name, error) from None
        finally:
            self._client.cancel([future for future in futures if not future.done()])
        return found

    def end(self) -> None:
        """Let the workers forget the problems."""
        self._client.cancel([self._shared])


class WorkerPool:
    """Looks at choices for `problems`: in `workers` if there are any, else in this process.

    Results come in the order of the choices, None for those that were not begun by `deadline_s` (of the monotonic
    clock, which is the same in all processes). Which results there are depends on the clock, what they say does not.
    No process takes more than `memory_nbytes`.
    """

    def __init__(
        self,
        problems: Sequence[Problem],
        workers: Processes | DaskWorkers | None = None,
        memory_nbytes: int | None = None,
    ) -> None:
        self.problems, self._workers, self._memory_nbytes = tuple(problems), workers, memory_nbytes
        self._here, self._rates = WorkerState(self.problems, compiles=warm()), Rates()

    def begin(self, deadline_s: float | None) -> None:
        """Start the processes, and wait until they can work, or until `deadline_s`: models then share what is left."""
        if self._workers is not None:
            self._each(_nothing, self._room(deadline_s), [()] * self._workers.jobs)

    def sketch(
        self,
        problem: int,
        some: Sequence[Choice],
        deadline_s: float | None,
        *,
        most_s: float | None = None,
        bounded: bool = True,
    ) -> list[Sketch | None]:
        """What the schedules of choices tell, with quick bounds or without; each may take `most_s`."""
        return self._each(_sketch, self._room(deadline_s, most_s), [(problem, choice, bounded) for choice in some])

    def weigh(
        self,
        problem: int,
        some: Sequence[tuple[Choice, float]],
        deadline_s: float | None,
        variants: Sequence[Variant] | None = None,
        most_s: float | None = None,
    ) -> list[Weighed | None]:
        """Bound choices exactly, and simulate those that may reach the samples/s that stand beside them.

        Each may take `most_s`; one that by its size would take longer, or more memory than there is, is not begun. With
        `variants`, each at another link speed or batch. Raises `InputError` if the cluster cannot have that.
        """
        at, room = variants or [Variant()] * len(some), self._room(deadline_s, most_s)
        asked = [(problem, choice, least, there) for (choice, least), there in zip(some, at, strict=True)]
        found = self._each(_weigh, room, asked)
        for one in found:
            if one is not None and one.work is not None:
                self._rates.add(one.work)
        return found

    def spreads(self, problem: int, some: Sequence[Score], deadline_s: float | None) -> list[Score | None]:
        """Simulate plans again with costs that are off."""
        return self._each(_spread, self._room(deadline_s), [(problem, one) for one in some])

    def _room(self, deadline_s: float | None, most_s: float | None = None) -> Room:
        return Room(
            deadline_s=deadline_s,
            most_s=most_s,
            memory_nbytes=self._memory_nbytes,
            estimates=self._rates.estimates(),
        )

    def _each(self, task: Task[_T], room: Room, asked: Sequence[tuple[object, ...]]) -> list[_T | None]:
        if self._workers is None:
            return [task(self._here, room, *each) for each in asked]
        return self._workers.results(task, room, asked)


def compiled_ahead() -> float:
    """Compile what simulates plans, if it will be compiled and is not kept on disk yet; return the seconds that took.

    Processes that are ended with a budget would compile it again each time, and never keep it.
    """
    began_s = monotonic()
    if pays(1):
        cluster, model, strategy = load_cluster("star", nodes=2), zoo.get("alexnet"), strategies.get("stanza")
        settings = strategy.Settings()
        schedule = strategy.build(model, world_size=2, batch_per_worker=1, settings=settings)
        costs = costs_for(cluster, model)
        simulate(schedule, model, cluster, costs, engine=EngineChoice.COMPILED)
    return monotonic() - began_s


@contextmanager
def worker_pool(
    problems: Sequence[Problem],
    *,
    jobs: int,
    work: int,
    memory_nbytes: int | None = None,
    scheduler: str | None = None,
) -> Iterator[WorkerPool]:
    """A pool of `jobs` processes, or of this one if there is little `work` (choices in all).

    With the address of a Dask `scheduler`, the workers of that. Raises `InputError` if it cannot be reached.
    """
    compiles = work >= WORTH_IT
    before = warm(compiles)  # here too, so that all plans are simulated by one engine
    with ExitStack() as stack:
        stack.callback(warm, before)
        workers: Processes | DaskWorkers | None = None
        if scheduler is not None:
            client, threads = stack.enter_context(dask_client(scheduler))
            workers = DaskWorkers(client, threads, f"Dask at {scheduler}", tuple(problems), compiles)
        elif jobs > 1 and work >= WORTH_IT:
            workers = Processes(tuple(problems), jobs)
        if workers is not None:
            stack.callback(workers.end)
        yield WorkerPool(problems, workers, memory_nbytes)
