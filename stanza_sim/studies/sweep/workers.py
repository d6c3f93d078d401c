"""Who predicts the points of a sweep: this process, one process for each core, or the workers of a Dask cluster."""

from __future__ import annotations

import contextlib
import gc
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass

from stanza_sim.base.errors import InputError, RunError
from stanza_sim.base.processes import processes
from stanza_sim.studies.sweep.points import Ready, Request, SweepRow, lines_of, predicted, ready

TIMEOUT_S = 5.0
"""How long a Dask scheduler may take to answer."""


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
        except ImportError as error:
            hint = "install the same version of stanza-sim, and what your models import, on every worker"
            raise RunError(f"{self.name}: a worker cannot import what it needs: {error}\n  {hint}") from None
        except OSError as error:
            raise RunError(f"{self.name}: the connection was lost: {error}") from None

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
    where = f"--scheduler {address}"
    try:
        from distributed import Client
    except ImportError:
        hint = "pip install 'stanza-sim[dask]'"
        raise InputError("dask.distributed is not installed", where=where, hint=hint) from None
    failed: str | None = None
    try:
        client = Client(address, timeout=TIMEOUT_S, set_as_default=False)
    except (OSError, ValueError) as error:  # what cannot be reached, what is no address
        failed = f"no Dask scheduler answers there ({type(error).__name__})"
    if failed is not None:
        # What is left of the client closes itself when it is collected, under a lock of the whole module: were that to
        # happen while another client takes this lock, in this thread, both would wait for ever (distributed 2026.8).
        gc.collect()
        raise InputError(failed, where=where, hint="give its address, such as tcp://host:8786")
    try:
        threads = sum(client.nthreads().values())
        if not threads:
            raise InputError("the Dask cluster has no workers", where=where, hint="start some: dask worker ADDRESS")
        with client.get_executor(pure=False) as executor:
            yield Workers(executor=executor, ahead=2 * threads, remote=True, name=f"Dask at {address}")
    finally:
        with contextlib.suppress(OSError, TimeoutError):
            client.close(timeout=TIMEOUT_S)
