"""Where an iteration's time goes, in a prediction and in a measurement, and which op kinds explain the difference.

At every instant of a rank's iteration exactly one thing is charged: the computation of its main lane if one is under
way, otherwise a computation of another lane, otherwise what is moving (in equal parts if several ops move at
once), otherwise waiting. The parts therefore add up to the iteration time, and the differences between two such
partitions add up to the difference of the iteration times.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from stanza_sim.schedule import Collective, Compute, Op, Phase, Schedule, Transfer
from stanza_sim.simulate.steady import steady_window
from stanza_sim.timeline.spans import Span, Timeline

WAITING = "waiting"
"""The kind that is charged while a rank neither computes nor moves anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Seconds per iteration that are charged to one op kind, mean over the ranks that train, in both timelines."""

    kind: str
    predicted_s: float
    measured_s: float

    @property
    def difference_s(self) -> float:
        """Predicted less measured: positive where the prediction is too slow."""
        return self.predicted_s - self.measured_s


def op_kind(op: Op) -> str:
    """The kind of `op` in words: the phase, the transfer's channel, or the collective (as in `measures.op_seconds`)."""
    match op:
        case Compute():
            return str(op.phase)
        case Transfer():
            return f"transfer {op.channel}"
        case Collective():
            return str(op.kind)


def _class(op: Op) -> int:
    """Which op is charged when several are under way: the lowest class."""
    if isinstance(op, Compute):
        return 0 if op.lane == "main" else 1
    return 2


def charge(spans: Iterable[Span], schedule: Schedule, window: tuple[float, float]) -> dict[str, float]:
    """Split the seconds of `window` (start, end) over the op kinds of `spans` (one rank's) and `WAITING`."""
    begin, end = window
    changes: list[tuple[float, int, int, str]] = []  # (time, +1 or -1, class, kind)
    for s in spans:
        a, b = max(s.start_s, begin), min(s.end_s, end)
        if b > a:
            op = schedule.op(s.op)
            changes += [(a, 1, _class(op), op_kind(op)), (b, -1, _class(op), op_kind(op))]
    changes.sort()
    total: defaultdict[str, float] = defaultdict(float)
    active: tuple[Counter[str], ...] = (Counter(), Counter(), Counter())
    now = begin
    for at, step, cls, kind in [*changes, (end, 0, 0, WAITING)]:
        if at > now:
            busy = next((c for c in active if c), None)
            if busy is None:
                total[WAITING] += at - now
            else:
                for k, n in busy.items():
                    total[k] += (at - now) * n / busy.total()
            now = at
        if step:
            active[cls][kind] += step
            if not active[cls][kind]:
                del active[cls][kind]
    return dict(total)


def partition(timeline: Timeline, schedule: Schedule, first: int, last: int) -> dict[str, float]:
    """Seconds per iteration charged to each op kind in iterations first+1 .. last, mean over the ranks that train.

    A rank trains if it runs forward passes. Its window is from its end of iteration `first` to that of `last`,
    whatever iteration an op in it belongs to.
    """
    groups = {op.ranks for op in schedule.ops if isinstance(op, Compute) and op.phase is Phase.FORWARD}
    trains = {r for group in groups for r in schedule.group(group)}
    spans: dict[int, list[Span]] = {}
    for s in timeline.spans:
        if s.rank in trains:
            spans.setdefault(s.rank, []).append(s)
    total: defaultdict[str, float] = defaultdict(float)
    ranks = 0
    for rank in sorted(trains & timeline.iteration_end_s.keys()):
        ends = timeline.iteration_end_s[rank]
        weight = timeline.multiplicity.get(rank, 1)
        ranks += weight
        for kind, seconds in charge(spans.get(rank, ()), schedule, (ends[first], ends[last])).items():
            total[kind] += weight * seconds / (last - first)
    return {kind: seconds / ranks for kind, seconds in total.items()}


def typical_iterations(timeline: Timeline) -> tuple[int, int]:
    """(first, last) such that iterations first+1 .. last are one period of a steady state, all spans complete.

    Of a timeline that never repeats (a measured one) all iterations but the last, which nothing runs behind.
    """
    ends = list(timeline.iteration_end_s.values())
    steady = steady_window(ends)
    if steady is not None:  # one period earlier, where all that runs behind it has ended as well
        return 2 * steady[0] - steady[1], steady[0]
    return timeline.first_iteration, max(min(map(len, ends)) - 2, timeline.first_iteration + 1)


def per_iteration(timeline: Timeline, schedule: Schedule) -> dict[str, float]:
    """Seconds charged to each op kind in a typical iteration of `timeline`; see `partition`."""
    return partition(timeline, schedule, *typical_iterations(timeline))


def differences(predicted: Mapping[str, float], measured: Mapping[str, float]) -> list[Share]:
    """The op kinds of two partitions, the largest difference first."""
    shares = [
        Share(kind=k, predicted_s=predicted.get(k, 0.0), measured_s=measured.get(k, 0.0))
        for k in sorted(predicted.keys() | measured.keys())
    ]
    return sorted(shares, key=lambda s: -abs(s.difference_s))


def explain(predicted: Timeline, measured: Timeline, schedule: Schedule, *, most: int = 3) -> list[Share]:
    """The `most` op kinds that explain most of the difference of two timelines of `schedule`, the largest first."""
    return differences(*(per_iteration(t, schedule) for t in (predicted, measured)))[:most]
