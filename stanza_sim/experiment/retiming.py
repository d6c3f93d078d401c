"""Rows are run between two timings of their blocks: what they are predicted from, and how the machine moved meanwhile.

The speed of a machine's cores may change by a third within seconds. So the blocks of a row are timed right before it is
run and right after, and it is predicted from the mean of both. What the row itself took has no part in that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from stanza_sim.execute.calibrate.again import block_seconds, mean_of, sections_for, slowdown, time_again, updated
from stanza_sim.execute.calibrate.answers import SectionTimes
from stanza_sim.execute.calibrate.calibration import merge_times, wakeup_s
from stanza_sim.execute.start.protocol import Workers
from stanza_sim.experiment.rows import Plan
from stanza_sim.profiles.blocks import Profile
from stanza_sim.report.result import Drift


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedRow:
    """What the timings around a row came to: a profile of the time in which it ran, and how the machine moved."""

    profile: Profile
    drift: Drift


class Retimer:
    """Times the blocks of `plans` around each, on `workers`; `known` are the profiles that it brings up to date.

    A timing between two rows of one model serves both. Every process that has workers calls `between` alike, as
    `stanza_sim.execute.execute` does.
    """

    def __init__(self, workers: Workers, plans: Sequence[Plan], known: Mapping[str, Profile], *, seed: int) -> None:
        self._workers, self._plans, self._known, self._seed = workers, plans, known, seed
        self._before: list[Sequence[SectionTimes]] = []
        self._after: list[Sequence[SectionTimes]] = []
        self._timings: dict[str, list[Sequence[SectionTimes]]] = {}  # by model

    def between(self, index: int) -> None:
        """Time the blocks of the row that has just been run, if any, and of row `index`, if there is one."""
        around = self._plans[max(index - 1, 0) : index + 1]
        if len({plan.entry.title for plan in around}) == 1:
            times = self._time(around)
            if index:
                self._after.append(times)
            if index < len(self._plans):
                self._before.append(times)
            return
        self._after.append(self._time(around[:1]))
        self._before.append(self._time(around[1:]))

    def _time(self, plans: Sequence[Plan]) -> Sequence[SectionTimes]:
        """Time the blocks of plans of one model."""
        plan = plans[0]
        sections = sections_for([p.schedule for p in plans], plan.model)
        times = time_again(self._workers, plan.model, sections, self._known[plan.entry.title], seed=self._seed)
        self._timings.setdefault(plan.entry.title, []).append(times)
        return times

    def timed(self, index: int, *, given: bool = False) -> TimedRow:
        """What was timed around row `index`; with a profile that was `given`, how far the machine is from that too.

        The wake-up is a mean over all timings of the row's model.
        """
        title = self._plans[index].entry.title
        known = self._known[title]
        before, after = self._before[index], self._after[index]
        first, last = (merge_times([t.blocks for t in times]) for times in (before, after))
        profile = mean_of(updated(known, before), updated(known, after))
        rests = [known.wakeup_s, *(wakeup_s(t) for t in self._timings[title])]
        if found := [s for s in rests if s is not None]:
            profile = profile.model_copy(update={"wakeup_s": fmean(found)})
        drift = Drift(change=slowdown(first, last) - 1)
        if given:
            drift = replace(drift, against_profile=slowdown(block_seconds(known), block_seconds(profile)) - 1)
        return TimedRow(profile=profile, drift=drift)
