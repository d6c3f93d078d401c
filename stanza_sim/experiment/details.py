"""What is worked out of a row only when somebody asks: its critical path, how busy links are over time."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property

from stanza_sim.experiment.scenario import Scenario
from stanza_sim.experiment.why import explain
from stanza_sim.report.explanation import Explanation
from stanza_sim.schedule import Schedule
from stanza_sim.simulate import Prediction
from stanza_sim.simulate.lowering.link_seconds import LinkSeconds, link_seconds
from stanza_sim.simulate.steady import last_period
from stanza_sim.timeline.critical_path import CriticalPath, critical_path


@dataclass(frozen=True, kw_only=True)
class Details:
    """The `prediction` of a `scenario`, from which the rest follows; it is a `stanza_sim.report.result.RowDetails`."""

    scenario: Scenario
    prediction: Prediction

    @cached_property
    def representative(self) -> Callable[[int], int]:
        """Which rank's spans stand for those of each, where identical ranks were folded."""
        if all(size == 1 for size in self.prediction.timeline.multiplicity.values()):
            return lambda rank: rank
        return self.scenario.representative()

    @cached_property
    def critical_path(self) -> CriticalPath:
        """What sets the time of an iteration."""
        return path_of(self.scenario.schedule, self.prediction, self.representative)

    @cached_property
    def explanation(self) -> Explanation:
        """Why it is so, by some dozen simulations more."""
        return explain(self.scenario, self.prediction, self.critical_path)

    def place_of(self, rank: int) -> str:
        """The host of a rank, and its device where there are several."""
        cluster = self.scenario.cluster
        name = cluster.host_of(rank).name
        alone = len(cluster.ranks_on(cluster.placement[rank].host)) == 1
        return name if alone else f"{name} {cluster.device_of(rank)} {cluster.placement[rank].device}"

    def link_seconds(self, labels: Collection[str]) -> LinkSeconds:
        """What each op takes of these links; see `stanza_sim.simulate.lowering.link_seconds`."""
        case = self.scenario.prepare(by_chance=self.scenario.by_chance)
        return link_seconds(case.lowered, labels)


def path_of(schedule: Schedule, prediction: Prediction, representative: Callable[[int], int]) -> CriticalPath:
    """The critical path of a prediction; of random repeats that of the last iteration of the one in the middle."""
    window = last_period(list(prediction.timeline.iteration_end_s.values()))
    return critical_path(schedule, prediction.timeline, window, representative=representative)
