"""What is known of a case: its prediction, its measurements, and what they come to together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from stanza_sim.studies.validate.suite import Case

LEAST_COMM_SHARE = 0.05
"""An error relative to communication time says nothing where that is a smaller part of an iteration than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """A case as it was predicted, before it ran. Times in seconds per iteration.

    `parts` are the seconds charged to each op kind, as `stanza_sim.report.compare.partition` defines them: they add up
    to a mean iteration of a rank that trains. `source` says where the costs of computations come from. `servers` is the
    number of parameter servers (0 for a strategy that has none). `small_s` is the iteration as predicted from a
    calibration on a few of the hosts only, where the suite asks for that.
    """

    iteration_s: float
    exposed_comm_s: float
    parts: Mapping[str, float]
    source: str
    nodes: int
    servers: int = 0
    small_s: float | None = None

    @property
    def exposed_share(self) -> float:
        """Exposed communication as a share of the iteration."""
        return self.exposed_comm_s / self.iteration_s if self.iteration_s > 0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One repeat of a case. Times in seconds per iteration, the iteration's own being a median over `iterations`.

    `wall_s` is what the repeat took in all, `load` the machine's load average (1 min) when it began, `stolen` the share
    of the cores that its host took away meanwhile and `others` that on which other processes ran; of so many `tries`
    this is the one of which least was taken away. `predicted` is a prediction of this repeat, from block times taken
    right before and after it, where there is one beside that made at first; `drift` is the time that its blocks took
    after it over that before, less one.
    """

    iteration_s: float
    iteration_s_min: float
    iteration_s_max: float
    exposed_comm_s: float
    parts: Mapping[str, float]
    iterations: int
    wall_s: float
    load: float
    realtime: bool = False
    stolen: float = 0.0
    tries: int = 1
    others: float = 0.0
    drift: float | None = None
    predicted: Predicted | None = None


def over_repeats(first: Predicted, measured: Sequence[Measured]) -> Predicted:
    """The prediction to compare: `first`, or where repeats have predictions of their own that of `median_repeat`."""
    chosen = median_repeat(measured)
    return first if chosen is None or chosen.predicted is None else replace(chosen.predicted, source=first.source)


def median_repeat(measured: Sequence[Measured]) -> Measured | None:
    """The repeat whose own prediction has the median error; of an even number the one further down. None without any.

    Each repeat is held against what was timed around it: a machine that drifts changes both alike.
    """
    each = [(m.predicted.iteration_s / m.iteration_s, m) for m in measured if m.predicted is not None]
    return sorted(each, key=lambda pair: pair[0])[(len(each) - 1) // 2][1] if each else None


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """A case with its prediction (see `over_repeats`) and at least one measurement.

    `compared` are the measurements with which the prediction is compared: all, or the one that it is of.
    """

    case: Case
    predicted: Predicted
    measured: tuple[Measured, ...]

    @property
    def compared(self) -> tuple[Measured, ...]:
        """See above."""
        chosen = median_repeat(self.measured)
        return self.measured if chosen is None else (chosen,)

    @property
    def measured_s(self) -> float:
        """The iteration time that is compared: the median over repeats, or that of the median repeat."""
        return median(m.iteration_s for m in self.compared)

    @property
    def drift(self) -> float | None:
        """The greatest change of block times around a repeat, by its size; None where they were not timed."""
        return max((m.drift for m in self.measured if m.drift is not None), key=abs, default=None)

    @property
    def spread_pct(self) -> float:
        """Greatest less least repeat, in percent of the median."""
        times = [m.iteration_s for m in self.measured]
        return 100 * (max(times) - min(times)) / median(times)

    @property
    def error_pct(self) -> float:
        """Predicted over measured, less one, in percent: negative where the prediction is too fast."""
        return 100 * (self.predicted.iteration_s / self.measured_s - 1)

    @property
    def small_error_pct(self) -> float | None:
        """The error of the prediction from a calibration on a few hosts, as `error_pct`; None if there is none."""
        small_s = self.predicted.small_s
        return None if small_s is None else 100 * (small_s / self.measured_s - 1)

    @property
    def measured_exposed_s(self) -> float:
        """The exposed communication that is compared, as `stanza_sim.timeline.measures.waiting` defines it."""
        return median(m.exposed_comm_s for m in self.compared)

    @property
    def error_of_comm_pct(self) -> float | None:
        """Predicted less measured iteration, in percent of the communication time alone.

        Communication time is what is exposed of it: the measured time per iteration in which ranks that train wait for
        what is moving (not for another rank's computation). It is what an iteration would be shorter by if nothing
        took time on the network, and all of it is modelled, while emulated computations have no error of their own.
        None where it is less than `LEAST_COMM_SHARE` of an iteration.
        """
        comm_s = self.measured_exposed_s
        if comm_s < LEAST_COMM_SHARE * self.measured_s:
            return None
        return 100 * (self.predicted.iteration_s - self.measured_s) / comm_s

    @property
    def single_server(self) -> bool:
        """Whether one parameter server serves all workers."""
        return self.predicted.servers == 1
