"""A running Dask cluster: how to reach it, and what it means when it is lost."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from stanza_sim.base.errors import InputError, RunError

if TYPE_CHECKING:
    from distributed import Client

TIMEOUT_S = 5.0
"""How long a Dask scheduler may take to answer."""


@contextmanager
def dask_client(address: str) -> Iterator[tuple[Client, int]]:
    """A client of a running Dask cluster, and how many threads its workers have.

    Raises `InputError` for one that cannot be reached or has no workers.
    """
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
        yield client, threads
    finally:
        with contextlib.suppress(OSError, TimeoutError):
            client.close(timeout=TIMEOUT_S)


def lost(name: str, error: BaseException) -> RunError:
    """What to say of a worker that cannot import, or of a cluster called `name` that does not answer any more."""
    if not isinstance(error, ImportError):
        return RunError(f"{name}: the connection was lost: {error}")
    hint = "install the same version of stanza-sim, and what your models import, on every worker"
    return RunError(f"{name}: a worker cannot import what it needs: {error}\n  {hint}")
