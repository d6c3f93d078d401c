"""Who predicts the points of a sweep: this process, one process for each core, or the workers of a Dask cluster."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass

from stanza_sim.base.dask_cluster import dask_client, lost
from stanza_sim.base.errors import RunError
from stanza_sim.base.processes import processes
from stanza_sim.studies.sweep.points import Ready, Request, SweepRow, lines_of, predicted, ready


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """Predicts points, `ahead` of them at once. On `remote` workers nothing is read from files."""

    executor: Executor | None = None
    ahead: int = 1
    remote: bool = False
    name: str = "this process"

    def each(self, requests: Sequence[Request]) -> Iterator[tuple[SweepRow, ...]]:
        """Yield the lines of each request, in order. Raises `RunError` where a worker was lost."""
        if self.executor is None:
            yield from map(lines_of, requests)
            return
        waiting: deque[Future[tuple[SweepRow, ...]]] = deque()
        try:
            for request in requests:
                if len(waiting) >= self.ahead:
                    yield waiting.popleft().result()
                waiting.append(self._submit(self.executor, request))
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise RunError("a process that simulated was ended from outside, perhaps for lack of memory") from None
        except (ImportError, OSError) as error:
            raise lost(self.name, error) from None

    def _submit(self, executor: Executor, request: Request) -> Future[tuple[SweepRow, ...]]:
        if not self.remote:
            return executor.submit(lines_of, request)
        point = ready(request)
        if isinstance(point, Ready):
            return executor.submit(predicted, point)
        done: Future[tuple[SweepRow, ...]] = Future()
        done.set_result(point)
        return done


@contextmanager
def local_workers(jobs: int, work: int) -> Iterator[Workers]:
    """Up to `jobs` processes for `work` points; this process alone where there is little to do."""
    count = min(jobs, work)
    if count < 2:
        yield Workers()
        return
    with processes(count) as executor:
        yield Workers(executor=executor, ahead=4 * count, name=f"{count} processes")


@contextmanager
def dask_workers(address: str) -> Iterator[Workers]:
    """The workers of a running Dask cluster. Raises `InputError` for one that cannot be reached or has no workers."""
    with dask_client(address) as (client, threads), client.get_executor(pure=False) as executor:
        yield Workers(executor=executor, ahead=2 * threads, remote=True, name=f"Dask at {address}")
