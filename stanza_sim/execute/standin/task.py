"""Running a job on imitated GPUs: a task for the ranks of any pool."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

from stanza_sim.execute.rank.context import Context
from stanza_sim.execute.rank.groups import ProcessGroups
from stanza_sim.execute.rank.interfaces import Beat
from stanza_sim.execute.rank.job import Backend, RankReport, RunJob
from stanza_sim.execute.rank.library import Library
from stanza_sim.execute.rank.staging import HostBuffers
from stanza_sim.execute.standin.device import Standin
from stanza_sim.execute.standin.groups import library_of
from stanza_sim.execute.start.worker import run_job


class StandinContext(Context):
    """A rank's place in the world, with an imitated GPU of its own."""

    accelerator: Standin

    @classmethod
    def on(cls, context: Context, *, seed: int, jitter_s: float) -> StandinContext:
        """The same place with a new imitated GPU."""
        made = cls.__new__(cls)
        for name in Context.__slots__:
            if hasattr(context, name):
                setattr(made, name, copy.copy(getattr(context, name)))
        made.accelerator = Standin(seed=seed + context.rank, jitter_s=jitter_s)
        made.device = made.accelerator.device
        made.groups = ProcessGroups(context.world_size, made.library)
        made.buffers = HostBuffers(made.accelerator)
        return made

    def backend(self, wanted: Backend) -> Backend:
        """What a job says: every rank has a GPU."""
        return Backend.NCCL if wanted is Backend.AUTO else wanted

    def library(self, backend: Backend) -> Library:
        """See `Context`."""
        return library_of(backend, self.accelerator)


_contexts: dict[tuple[int, float], StandinContext] = {}
"""Those of this process; process groups are kept from one job to the next."""


def with_standin(context: Context, *, seed: int = 0, jitter_s: float = 0.0) -> StandinContext:
    """The same place with an imitated GPU, which this process keeps."""
    key = seed, jitter_s
    if key not in _contexts:
        _contexts[key] = StandinContext.on(context, seed=seed, jitter_s=jitter_s)
    return _contexts[key]


@dataclass(frozen=True, slots=True)
class OnStandin:
    """Run a job on imitated GPUs, with NCCL or with gloo and staging."""

    job: RunJob
    backend: Backend
    seed: int = 0
    jitter_s: float = 0.0

    def __call__(self, context: Context, beat: Beat) -> RankReport | None:
        """This rank's report. Raises `Race` where the order of kernels is left to chance."""
        here = with_standin(context, seed=self.seed, jitter_s=self.jitter_s)
        report = run_job(replace(self.job, backend=self.backend), here, beat)
        here.accelerator.check()
        return report
