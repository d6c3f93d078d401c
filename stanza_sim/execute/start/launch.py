"""Starting local ranks and running tasks on them, again and again: `Pool`. No torch in this process."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar, cast

from stanza_sim.base.errors import InputError, RunError
from stanza_sim.base.processes import own_command, own_path, scratch_folder
from stanza_sim.execute.rank.decision import Seat
from stanza_sim.execute.rank.job import Backend, Score
from stanza_sim.execute.start.deterministic import Deterministic
from stanza_sim.execute.start.environment import for_gpus
from stanza_sim.execute.start.protocol import Answer, AnswerKind, Moving, Settings, Task

T = TypeVar("T")

START_S = 120.0
"""How long ranks may take to import torch and to find each other, and to set up a task."""
SILENCE_S = 8.0
"""A process that says nothing for so long is stopped or stuck; a busy machine may delay it by seconds."""
MOVING_S, STILL_S = 10.0, 60.0
"""How often it is told at most how far ranks are, and how often at least."""
GRACE_S = 3.0
"""After the first failure, how long the other ranks have to say what they wait for."""
LAST_LINES = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlace:
    """Where a local rank runs: on the host called `host`, of which this machine may have several (as namespaces).

    `prefix` comes before the command of its process; it must execute that in its own place, as `ip netns exec` does.
    `environment` is added to this process's.
    """

    host: str
    prefix: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


class _Rank:
    """One child process."""

    def __init__(
        self, settings: Settings, folder: Path, environment: Mapping[str, str], prefix: Sequence[str] = ()
    ) -> None:
        self.rank = settings.rank
        self._stderr = folder / f"rank{settings.rank}.stderr"
        ours, theirs = multiprocessing.Pipe()
        self.process = self._start(theirs, environment, prefix)
        theirs.close()
        self.connection: Connection = ours
        self.heard_s = self.moved_s = time.monotonic()
        self.ended = 0
        self.connection.send_bytes(pickle.dumps(settings))

    def _start(
        self, connection: Connection, environment: Mapping[str, str], prefix: Sequence[str]
    ) -> subprocess.Popen[bytes]:
        """Start the process, which is told its settings and tasks through `connection`."""
        command = own_command("stanza_sim.execute.start.rank_main", str(connection.fileno()), str(os.getpid()))
        with self._stderr.open("wb") as stderr:
            return subprocess.Popen(
                [*prefix, *command],
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                pass_fds=[connection.fileno()],
                env=environment,
            )

    def send(self, task: bytes) -> None:
        self.heard_s = self.moved_s = time.monotonic()
        self.ended = 0
        self.connection.send_bytes(task)

    def last_words(self) -> str:
        """The last lines that the process wrote."""
        text = self._stderr.read_text(encoding="utf-8", errors="replace")
        lines = [line for line in text.splitlines() if line.strip() and "Warning" not in line]
        return "\n  ".join(lines[-LAST_LINES:])

    def end(self) -> None:
        self.connection.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


class Pool:
    """`world_size` local ranks that stay for many tasks. Use as a context manager.

    Ranks are started at the first task, and again after a task that failed. They end with this process, and
    on leaving the context; no orphan is left by an exception or Ctrl-C. `threads_per_rank` is the number of torch
    threads of each, `kind` the device it computes on (`cpu` or `cuda`). `timeout_s` is how long a rank may be silent
    before the task has failed. `places[r]` is where rank r runs; left out, all run on this machine as it is.
    With `deterministic` all tasks compute bitwise alike each time, for which GPUs need variables before they start.
    `seats` is where the topology puts each rank, and `backend` what they are to talk over.
    """

    is_main = True

    def __init__(
        self,
        world_size: int,
        *,
        threads_per_rank: int = 1,
        timeout_s: float = 60.0,
        kind: str = "cpu",
        places: Sequence[RankPlace] | None = None,
        deterministic: bool = False,
        backend: Backend = Backend.AUTO,
        seats: Sequence[Seat] | None = None,
    ) -> None:
        if world_size < 1:
            raise InputError(f"a world of {world_size} ranks is too small", hint="at least one rank is needed")
        if places is not None and len(places) != world_size:
            raise InputError(f"{len(places)} places for {world_size} ranks", hint="each rank needs one")
        self.world_size = world_size
        self._places = places
        self.timeout_s = timeout_s
        self._threads, self._kind, self._deterministic = threads_per_rank, kind, deterministic
        self._backend, self._seats = backend, None if seats is None else tuple(seats)
        self._ranks: list[_Rank] = []
        self._folder: Path | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def process_ids(self) -> list[int]:
        """Process ids of the ranks that are running."""
        return [r.process.pid for r in self._ranks]

    def start(self) -> None:
        """Start the ranks, if they are not running; returns when all have joined.

        Raises `RunError`, and the `InputError` of ranks whose devices are not as the topology says.
        """
        if self._ranks:
            return
        self._folder = scratch_folder()
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(self._threads),
            "MKL_NUM_THREADS": str(self._threads),
            "PYTHONPATH": own_path(os.environ),
            "PYTHONWARNINGS": os.environ.get("PYTHONWARNINGS", "ignore"),
        }
        if self._kind == "cuda":
            environment |= for_gpus(environment, deterministic=self._deterministic)
        try:
            for rank in range(self.world_size):
                place = None if self._places is None else self._places[rank]
                hosts = [] if self._places is None else [p.host for p in self._places]
                settings = Settings(
                    rank=rank,
                    world_size=self.world_size,
                    local_rank=rank if place is None else hosts[:rank].count(place.host),
                    local_size=self.world_size if place is None else hosts.count(place.host),
                    host=None if place is None else place.host,
                    threads=self._threads,
                    kind=self._kind,
                    init_method=f"file://{self._folder / 'store'}",  # needs no network that all ranks are on
                    backend=self._backend,
                    seats=self._seats,
                )
                own = {} if place is None else place.environment
                prefix = () if place is None else place.prefix
                self._ranks.append(_Rank(settings, self._folder, {**environment, **own}, prefix))
            self._await(AnswerKind.READY, max(START_S, self.timeout_s))
        except BaseException:
            self.close()
            raise

    def run(self, task: Task[T], timeout_s: float | None = None, *, moving: Moving | None = None) -> list[T]:
        """Carry out `task` on every rank and return the results by rank.

        `moving` is told from time to time how many iterations all ranks have done. Raises the `InputError` of a rank,
        and `RunError` if one dies, fails, does not get on for longer than `timeout_s` (default: the pool's), or shows
        no sign of life for the lesser of both: with what each rank said. Then all ranks are ended; the next task starts
        new ones.
        """
        self.start()
        try:
            message = pickle.dumps(Deterministic(task) if self._deterministic else task)
            for rank in self._ranks:
                rank.send(message)
            return cast(list[T], self._await(AnswerKind.DONE, timeout_s or self.timeout_s, moving))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End all ranks."""
        ranks, self._ranks = self._ranks, []
        for rank in ranks:
            rank.end()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _await(self, wanted: AnswerKind, timeout_s: float, moving: Moving | None = None) -> list[object]:
        """Return the values of all ranks' answers of the kind `wanted`; meanwhile tell `moving` how far they are."""
        told_s, told = time.monotonic(), 0
        values: dict[int, object] = {}
        failures: dict[int, str] = {}
        deadline: float | None = None
        while len(values) < len(self._ranks):
            waiting = [r for r in self._ranks if r.rank not in values and r.rank not in failures]
            if failures and (not waiting or (deadline is not None and time.monotonic() > deadline)):
                raise self._failure(failures, waiting)
            for found in wait([r.connection for r in waiting], timeout=0.2):
                rank = next(r for r in waiting if r.connection is found)
                answer = self._hear(rank)
                if answer is None:
                    failures[rank.rank] = self._death(rank)
                elif answer.kind is AnswerKind.BAD_INPUT and isinstance(answer.value, InputError):
                    raise answer.value
                elif answer.kind is wanted:
                    values[rank.rank] = answer.value
                elif isinstance(answer.value, Score) and moving is not None:
                    moving(answer.value)
                elif answer.kind is AnswerKind.FAILED:
                    failures[rank.rank] = str(answer.value)
            now = time.monotonic()
            moved_s = max(r.moved_s for r in self._ranks)  # a rank that a schedule leaves idle waits for the others
            for rank in waiting:
                if rank.rank in failures or rank.rank in values:
                    continue
                # In a run a rank finds out by itself that nothing moves, and says what it waits for: leave it the time.
                if now - rank.heard_s > max(min(timeout_s, self.timeout_s) + GRACE_S, SILENCE_S):
                    failures[rank.rank] = f"did not answer for {now - rank.heard_s:.0f} s"
                elif now - moved_s > max(timeout_s + GRACE_S, START_S):
                    failures[rank.rank] = f"did not get on for {now - rank.moved_s:.0f} s"
            if failures and deadline is None:
                deadline = now + GRACE_S
            ended = min((rank.ended for rank in waiting), default=0)
            if moving is not None and not failures and now - told_s > (MOVING_S if ended > told else STILL_S):
                told_s, told = now, ended
                moving(ended)
        return [values[r] for r in range(len(self._ranks))]

    @staticmethod
    def _hear(rank: _Rank) -> Answer | None:
        """The rank's next answer; None if it is dead."""
        try:
            answer = pickle.loads(rank.connection.recv_bytes())
        except (EOFError, OSError):
            return None
        rank.heard_s = time.monotonic()
        if not isinstance(answer, Answer):
            return None
        if answer.kind is not AnswerKind.ALIVE:
            rank.moved_s = rank.heard_s
        if answer.kind is AnswerKind.MOVING and isinstance(answer.value, int):
            rank.ended = answer.value
        return answer

    @staticmethod
    def _death(rank: _Rank) -> str:
        try:
            status = rank.process.wait(timeout=GRACE_S)
        except subprocess.TimeoutExpired:
            return "closed its connection"
        how = f"was ended by signal {-status}" if status < 0 else f"exited with status {status}"
        words = rank.last_words()
        return f"{how}; it last wrote:\n  {words}" if words else how

    def _failure(self, failures: dict[int, str], silent: Sequence[_Rank]) -> RunError:
        lines = [f"rank {r} {text}" if _is_death(text) else f"rank {r}: {text}" for r, text in sorted(failures.items())]
        lines.sort(key=lambda line: ": " in line.split("\n")[0][:12])  # who died comes first
        if silent:
            lines.append(f"rank {', '.join(str(r.rank) for r in silent)} did not say what it waits for")
        return RunError("the run failed: " + "\n".join(lines))


def _is_death(text: str) -> bool:
    return text.startswith(("was ended", "exited", "closed", "did not"))
