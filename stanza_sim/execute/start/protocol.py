"""What a parent and its local ranks say to each other. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol, TypeVar

from stanza_sim.execute.rank.decision import Seat
from stanza_sim.execute.rank.devices import GpuInfo, Provenance
from stanza_sim.execute.rank.interfaces import Beat
from stanza_sim.execute.rank.job import Backend, Score

if TYPE_CHECKING:
    from stanza_sim.execute.rank.context import Context

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


Moving = Callable[[int | Score], None]
"""Told how many iterations all ranks have done, while they go on, and what the held-out samples say."""


class AnswerKind(StrEnum):
    """What an answer is: the process lives, its task moves on; it is ready for tasks, done with one, or at its end."""

    ALIVE = "alive"
    MOVING = "moving"
    SCORED = "scored"
    READY = "ready"
    DONE = "done"
    BAD_INPUT = "bad_input"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer of a rank with its value: the task's result, the `InputError`, what failed, or how far it is."""

    kind: AnswerKind
    value: object


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a rank is started with. `local_rank` counts the ranks of its `host` (None: the machine's own name).

    `seats` is where the topology puts each rank, `backend` what is asked for.
    """

    rank: int
    world_size: int
    local_rank: int
    local_size: int
    host: str | None
    threads: int
    kind: str
    init_method: str
    backend: Backend = Backend.AUTO
    seats: tuple[Seat, ...] | None = None


class Task(Protocol[T_co]):
    """Something that every rank of the world does together; picklable. `beat` tells that the rank is alive."""

    def __call__(self, context: Context, beat: Beat) -> T_co:
        """This rank's part; its result must be picklable."""
        ...


class Workers(Protocol):
    """The ranks of a world, wherever they run: `launch.Pool` or `world.Joined`.

    `is_main` is False in a process that should print and write nothing: another one does.
    """

    is_main: bool
    world_size: int

    def run(self, task: Task[T], timeout_s: float | None = None, *, moving: Moving | None = None) -> list[T]:
        """Carry out `task` on every rank; the results by rank, the same in every process that calls this.

        `moving`, if given, may be told from time to time how many iterations every rank has done, and is told scores.
        """
        ...

    def close(self) -> None:
        """Leave."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RankInfo:
    """Where a rank is, and on what it computes: `device` begins with `cpu` or `cuda`.

    On a GPU, `gpu` says which, `provenance` what runs on it, and `sharing` which ranks compute on it, this one among
    them. `listens` are the addresses at which its process listens, in words.
    """

    host: str
    device: str
    driver: str | None = None
    gpu: GpuInfo | None = None
    provenance: Provenance | None = None
    sharing: tuple[int, ...] = ()
    listens: tuple[str, ...] = ()

    @property
    def capability(self) -> tuple[int, int] | None:
        """CUDA's compute capability (major, minor); None on cores, and where nothing tells it."""
        return None if self.gpu is None else self.gpu.capability
