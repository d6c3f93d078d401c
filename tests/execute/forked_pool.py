"""A pool of ranks that are forked from a process that has imported torch: they start in tenths of a second.

What they do from then on is what `rank_main` does in any rank. For tests of tasks; those of launching, of the command
line and of testbeds start ranks as users do.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
from collections.abc import Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from unittest.mock import patch

from stanza_sim.base.processes import end_with_parent
from stanza_sim.execute.start import launch
from stanza_sim.execute.start.launch import Pool
from stanza_sim.execute.start.rank_main import serve

CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "stanza_sim.execute.start.world",
        "stanza_sim.execute.start.worker",
        "stanza_sim.execute.standin.task",
        "sklearn.datasets",  # a rank imports these at its first iteration
        "torch._dynamo",
        "tests.execute.frozen",
    ]
)


class ForkedPool(Pool):
    """See `Pool`; ranks have no prefix, but places may give them names of hosts and an environment."""

    def start(self) -> None:
        with patch.object(launch, "_Rank", ForkedRank):
            super().start()


class ForkedRank(launch._Rank):
    def _start(self, connection: Connection, environment: Mapping[str, str], prefix: Sequence[str]) -> Forked:
        assert not prefix
        return Forked(connection, self._stderr, environment)


class Forked:
    """What a pool asks of a `subprocess.Popen`, of a process that is forked."""

    def __init__(self, connection: Connection, stderr: Path, environment: Mapping[str, str]) -> None:
        self._process: ForkServerProcess = CONTEXT.Process(
            target=rank, args=(connection, stderr, dict(environment)), daemon=True
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("a rank", timeout or 0.0)
        return self._process.exitcode


def rank(connection: Connection, stderr: Path, environment: dict[str, str]) -> None:
    """The process of a rank."""
    end_with_parent(os.getppid())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.clear()
    os.environ.update(environment)
    with stderr.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    serve(connection, pickle.loads(connection.recv_bytes()))
