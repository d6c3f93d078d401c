"""Timelines as rows of bars: what each rank computes, moves and waits for, none over another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from stanza_sim.schedule import Compute, Op, Schedule
from stanza_sim.timeline.spans import Span, Timeline


class Activity(StrEnum):
    """What a bar is, everywhere in the same colour."""

    COMPUTATION = "computation"
    COMMUNICATION = "communication"
    WAITING = "waiting"


def activity_of(op: Op) -> Activity:
    """What the spans of an op are."""
    return Activity.COMPUTATION if isinstance(op, Compute) else Activity.COMMUNICATION


def by_activity(seconds: dict[str, float], schedule: Schedule) -> dict[Activity, float]:
    """What an iteration goes to (`compare.per_iteration`), by activity."""
    from stanza_sim.report.compare import WAITING, op_kind

    kinds = {op_kind(op): activity_of(op) for op in schedule.ops} | {WAITING: Activity.WAITING}
    found = dict.fromkeys(Activity, 0.0)
    for kind, value in seconds.items():
        found[kinds.get(kind, Activity.WAITING)] += value
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A span, or the time between two of the main lane; seconds."""

    start_s: float
    end_s: float
    activity: Activity
    op: str = ""
    iteration: int = 0
    nbytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneRow:
    """Bars of a rank that follow each other; `size` is how many ranks this one stands for."""

    rank: int
    size: int
    name: str
    bars: tuple[Bar, ...]


SAME_S = 2e-9
"""Instants no further apart are one: files have times to the nanosecond."""
SEND, RECEIVE, COLLECTIVE = "send", "receive", "collective"


def lane_rows(
    timeline: Timeline, schedule: Schedule, length_s: float, *, ranks: Iterable[int] | None = None, packed: bool = True
) -> list[LaneRow]:
    """The rows of some ranks, or of all: main lane, other lanes, sends, receives, collectives.

    Where several things go on at once in one of these, it has several rows if they are to be `packed`, of which the
    first has the name. In what the main lane does not compute, from 0 to `length_s`, it waits.
    """
    kinds = {op.name: activity_of(op) for op in schedule.ops}
    wanted = None if ranks is None else set(ranks)
    lanes: dict[tuple[int, int, str], list[Span]] = {}
    for span in timeline.spans:
        if (wanted is None or span.rank in wanted) and span.op in kinds:
            lanes.setdefault((span.rank, *_lane(span, kinds[span.op])), []).append(span)
    found: list[LaneRow] = []
    for (rank, order, name), spans in sorted(lanes.items()):
        size = timeline.multiplicity.get(rank, 1)
        for place, one in enumerate(_packed(spans) if packed else [_in_time(spans)]):
            bars = [_bar(s, kinds[s.op]) for s in one]
            if order == 0 and place == 0:
                bars = _with_waiting(bars, length_s)
            shown = name if place == 0 else ""
            found.append(LaneRow(rank=rank, size=size, name=shown, bars=tuple(bars)))
    return found


def _lane(span: Span, activity: Activity) -> tuple[int, str]:
    """Where a span belongs: its place among a rank's rows, and the name."""
    if span.side:
        return (2, SEND) if span.side == "sent" else (3, RECEIVE)
    if activity is Activity.COMMUNICATION:
        return 4, COLLECTIVE
    return (0, "main") if span.lane == "main" else (1, span.lane)


def _bar(span: Span, activity: Activity) -> Bar:
    return Bar(
        start_s=span.start_s,
        end_s=span.end_s,
        activity=activity,
        op=span.op,
        iteration=span.iteration,
        nbytes=span.nbytes,
    )


def _in_time(spans: Sequence[Span]) -> list[Span]:
    return sorted(spans, key=lambda s: (s.start_s, s.end_s, s.op))


def _packed(spans: Sequence[Span]) -> list[list[Span]]:
    """Spans on as few rows as it takes for none to lie over another."""
    rows: list[list[Span]] = []
    for span in _in_time(spans):
        for row in rows:
            if row[-1].end_s <= span.start_s + SAME_S:
                row.append(span)
                break
        else:
            rows.append([span])
    return rows


def _with_waiting(bars: Sequence[Bar], length_s: float) -> list[Bar]:
    found: list[Bar] = []
    now = 0.0
    for bar in bars:
        if bar.start_s > now + SAME_S:
            found.append(Bar(start_s=now, end_s=bar.start_s, activity=Activity.WAITING))
        found.append(bar)
        now = max(now, bar.end_s)
    if length_s > now + SAME_S:
        found.append(Bar(start_s=now, end_s=length_s, activity=Activity.WAITING))
    return found
