"""Tasks for every rank: say where it is, run a job. No torch until one is carried out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stanza_sim.execute.rank.interfaces import Beat
from stanza_sim.execute.rank.job import RankReport, RunJob
from stanza_sim.execute.start.protocol import RankInfo

if TYPE_CHECKING:
    from stanza_sim.execute.rank.context import Context


@dataclass(frozen=True, slots=True)
class DescribeTask:
    """Ask every rank where it is."""

    def __call__(self, context: Context, beat: Beat) -> RankInfo:
        """This rank's answer."""
        from stanza_sim.execute.start.world import describe

        return describe(context)


@dataclass(frozen=True, slots=True)
class RunTask:
    """Run one job."""

    job: RunJob

    def __call__(self, context: Context, beat: Beat) -> RankReport | None:
        """This rank's report; None if the schedule has no such rank."""
        from stanza_sim.execute.start.worker import run_job

        return run_job(self.job, context, beat)
