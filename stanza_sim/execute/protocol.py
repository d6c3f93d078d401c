"""What a parent and its local ranks say to each other. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol, TypeVar

from stanza_sim.execute.job import Backend, RankReport, RunJob
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Phase

if TYPE_CHECKING:
    from stanza_sim.execute.worker import Context

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Outcome(StrEnum):
    """What an answer is: the process lives, its task moves on; it is ready for tasks, done with one, or at its end."""

    ALIVE = "alive"
    MOVING = "moving"
    READY = "ready"
    DONE = "done"
    BAD_INPUT = "bad_input"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer of a rank with its value: the task's result, the `InputError`, or what failed."""

    outcome: Outcome
    value: object


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a rank is started with. `local_rank` counts the ranks of its `host` (None: the machine's own name)."""

    rank: int
    world_size: int
    local_rank: int
    local_size: int
    host: str | None
    threads: int
    kind: str
    init_method: str


class Task(Protocol[T_co]):
    """Something that every rank of the world does together; picklable. `beat` tells that the rank is alive."""

    def __call__(self, context: Context, beat: Callable[[], None]) -> T_co:
        """This rank's part; its result must be picklable."""
        ...


class Workers(Protocol):
    """The ranks of a world, wherever they run: `launch.Pool` or `world.Joined`.

    `is_main` is False in a process that should print and write nothing: another one does.
    """

    is_main: bool
    world_size: int

    def run(self, task: Task[T], timeout_s: float | None = None) -> list[T]:
        """Carry out `task` on every rank; the results by rank, the same in every process that calls this."""
        ...

    def close(self) -> None:
        """Leave."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RankInfo:
    """Where a rank is, and on what it computes: `device` begins with `cpu` or `cuda`."""

    host: str
    device: str
    driver: str | None = None


@dataclass(frozen=True, slots=True)
class DescribeTask:
    """Ask every rank where it is."""

    def __call__(self, context: Context, beat: Callable[[], None]) -> RankInfo:
        """This rank's answer."""
        from stanza_sim.execute.world import describe

        return describe(context)


@dataclass(frozen=True, slots=True)
class RunTask:
    """Run one job."""

    job: RunJob

    def __call__(self, context: Context, beat: Callable[[], None]) -> RankReport | None:
        """This rank's report; None if the schedule has no such rank."""
        from stanza_sim.execute.worker import run_job

        return run_job(self.job, context, beat)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeTimes:
    """What single messages between ranks 0 and 1 took; see `RankTimes`."""

    host: str
    cores: int
    small_bytes: int
    large_bytes: int
    small: tuple[float, float] | None
    large: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class ProbeTask:
    """Time single messages between ranks 0 and 1, and nothing else."""

    backend: Backend = Backend.AUTO

    def __call__(self, context: Context, beat: Callable[[], None]) -> ProbeTimes:
        """This rank's timings."""
        from stanza_sim.execute.timing import probe

        return probe(self.backend, context)


Times = dict[tuple[str, int, Phase], list[float]]
"""Seconds of each repetition by (block, samples, phase)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be timed: for each block the numbers of samples; how many gradients the largest reduction sums."""

    model: ModelProfile
    samples: Mapping[str, tuple[int, ...]]
    contributions: int
    backend: Backend = Backend.AUTO
    seed: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageCores:
    """What messages cost the cores of one rank, apart from computations: `ends` sent or received, `nbytes` in all."""

    core_s: float
    ends: int
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RankTimes:
    """What one rank timed. `small` and `large` are probes: (wall seconds, own core seconds) of a message, or None.

    `messages` has, for each section that was timed in company, what messages cost meanwhile.
    `small_bytes` and `large_bytes` are their sizes; only ranks 0 and 1 probe. `cores` are those of the rank's host.
    """

    host: str
    device: str
    driver: str | None
    cores: int
    torch_version: str
    blocks: Times
    reduce_Bps: float
    update_Bps: float
    op_overhead_s: float
    small_bytes: int
    large_bytes: int
    small: tuple[float, float] | None
    large: tuple[float, float] | None
    messages: tuple[MessageCores, ...] = ()


@dataclass(frozen=True, slots=True)
class TimingTask:
    """Time everything that `wanted` says."""

    wanted: Wanted

    def __call__(self, context: Context, beat: Callable[[], None]) -> RankTimes:
        """This rank's timings."""
        from stanza_sim.execute.timing import time_all

        return time_all(self.wanted, context, beat)
