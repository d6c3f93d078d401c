"""Tasks for every rank: time blocks, messages and cores. No torch until one is carried out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stanza_sim.execute.calibrate.answers import (
    MessagesWanted,
    ProbeTimes,
    RankCores,
    RankMessages,
    RankTimes,
    SectionsWanted,
    SectionTimes,
    Wanted,
)
from stanza_sim.execute.rank.interfaces import Beat
from stanza_sim.execute.rank.job import Backend

if TYPE_CHECKING:
    from stanza_sim.execute.rank.context import Context


@dataclass(frozen=True, slots=True)
class ProbeTask:
    """Time single messages between ranks 0 and 1, and nothing else."""

    backend: Backend = Backend.AUTO

    def __call__(self, context: Context, beat: Beat) -> ProbeTimes:
        """This rank's timings."""
        from stanza_sim.execute.calibrate.timing import probe

        return probe(self.backend, context)


@dataclass(frozen=True, slots=True)
class TimingTask:
    """Time everything that `wanted` says."""

    wanted: Wanted

    def __call__(self, context: Context, beat: Beat) -> RankTimes:
        """This rank's timings."""
        from stanza_sim.execute.calibrate.timing import time_all

        return time_all(self.wanted, context, beat)


@dataclass(frozen=True, slots=True)
class SectionsTask:
    """Time sections of blocks, and nothing else."""

    wanted: SectionsWanted

    def __call__(self, context: Context, beat: Beat) -> SectionTimes:
        """This rank's timings."""
        from stanza_sim.execute.calibrate.sections import time_again

        return time_again(self.wanted, context, beat)


@dataclass(frozen=True, slots=True)
class ProvenanceTask:
    """Say on what a profile would be measured."""

    def __call__(self, context: Context, beat: Beat) -> dict[str, str]:
        """What is known of this rank's GPU, by name."""
        from stanza_sim.execute.calibrate.provenance import provenance_of

        return provenance_of(context)


@dataclass(frozen=True, slots=True)
class MessagesTask:
    """Time the messages that are wanted."""

    wanted: MessagesWanted

    def __call__(self, context: Context, beat: Beat) -> RankMessages:
        """This rank's timings."""
        from stanza_sim.execute.calibrate.probing import time_messages

        return time_messages(self.wanted, context, beat)


@dataclass(frozen=True, slots=True)
class CoresTask:
    """Time wake-ups (under real-time scheduling if `realtime`), and computing by so many ranks of a machine at once."""

    busy: tuple[int, ...]
    realtime: bool

    def __call__(self, context: Context, beat: Beat) -> RankCores:
        """This rank's timings."""
        from stanza_sim.execute.calibrate.probing import time_cores

        return time_cores(self.busy, self.realtime, context, beat)
