"""A row as a trace in Chrome's event format, which Perfetto (ui.perfetto.dev) and chrome://tracing open.

Prediction and measurement are two groups of processes in one file, each from its first span on. A rank is a process.
Its lanes and its groups of collectives are threads; what it sends and receives are asynchronous events, a row for each
transfer, with an arrow from the sender whose messages came last. Slices are called what schedules print, so they
join with any other trace by name. Each group has a process of its own for the critical path (of the prediction) and
for counters: bytes that are under way, and how busy the busiest links are, where the bytes of a message are spread
evenly over the time in which it moves.

Format: "Trace Event Format", Google, 2016. Times are microseconds, to the nanosecond.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

import numpy as np
import numpy.typing as npt

from stanza_sim.report.result import Row, RowDetails
from stanza_sim.schedule import Collective, Compute, Schedule, Transfer
from stanza_sim.schedule.printing import print_op
from stanza_sim.timeline.critical_path import CriticalPath, StepKind
from stanza_sim.timeline.spans import Span, SpanColumns, Timeline

MOST_SLICES = 20_000
"""A group has no more slices than this: of longer timelines the last iterations are written, then fewer ranks."""
LEAST_ITERATIONS = 4
"""So many iterations are written before ranks are left out."""
MOST_LINKS = 12
"""Of so many links, the busiest, it is written how busy they are over time."""
MOST_POINTS = 5_000
"""A counter has no more points than this; of more, those in between are left out."""
NANO = 1e3
"""Nanoseconds, to which times are rounded, in a microsecond, in which they are written."""

Event = dict[str, object]
_Timed = tuple[int, int, Event]
"""An event at so many nanoseconds, and its place among those at the same time."""
F64 = npt.NDArray[np.float64]


def trace_json(row: Row) -> str:
    """The trace of a row as one JSON object, an event on each line; equal bytes for equal rows."""
    pids = _Numbers()
    details = row.details
    groups = [_Group("predicted", row, row.prediction.timeline, pids, details)]
    if row.measurement is not None:
        groups.append(_Group("measured", row, row.measurement.timeline, pids, None))
    found = [group.events() for group in groups]
    timed = sorted((one for _, of_group in found for one in of_group), key=lambda one: one[:2])
    events = [*(event for names, _ in found for event in names), *(event for _, _, event in timed)]
    facts = {
        "model": row.model,
        "label": row.label,
        "cluster": row.cluster,
        "schedule_hash": row.schedule.digest(),
        **{group.name: group.facts for group in groups},
    }
    head = json.dumps({"displayTimeUnit": "ms", "otherData": facts}, separators=(",", ":"), allow_nan=False)
    lines = ",\n".join(json.dumps(event, separators=(",", ":"), allow_nan=False) for event in events)
    return f'{head[:-1]},"traceEvents":[\n{lines}\n]}}\n'


@dataclass(slots=True)
class _Numbers:
    """Numbers from 1 on, each once."""

    last: int = 0

    def next(self) -> int:
        self.last += 1
        return self.last


@dataclass(slots=True)
class _Threads:
    """The threads of a rank: each lane one, and more where its slices would overlap."""

    lanes: dict[str, list[int]] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    free_ns: dict[int, int] = field(default_factory=dict)

    def place(self, lane: str, start_ns: int, end_ns: int) -> int:
        """The thread for a slice of `lane`; slices come in the order of their starts."""
        mine = self.lanes.setdefault(lane, [])
        for tid in mine:
            if self.free_ns[tid] <= start_ns:
                break
        else:
            tid = len(self.names) + 1
            mine.append(tid)
            self.names[tid] = lane if len(mine) == 1 else f"{lane} ({len(mine)})"
        self.free_ns[tid] = end_ns
        return tid


class _Group:
    """One timeline of a row: `name` is `predicted` or `measured`."""

    def __init__(self, name: str, row: Row, timeline: Timeline, pids: _Numbers, details: RowDetails | None) -> None:
        self.name, self._row, self._timeline, self._pids, self._details = name, row, timeline, pids, details
        self._schedule: Schedule = row.schedule
        self._labels = {op.name: print_op(op) for op in self._schedule.ops}
        spans = SpanColumns.of(timeline.spans)
        self.path: CriticalPath | None = None
        if details is not None and len(spans):
            self.path = details.critical_path
        self._written = _bounded(spans, self.path)
        start = self._written.spans.start_s
        self._zero_s = float(start.min()) if len(start) else 0.0
        self._representative: Callable[[int], int] = (lambda r: r) if details is None else details.representative

    @property
    def facts(self) -> dict[str, object]:
        """What the file says of the group beside its events."""
        w, size = self._written, self._timeline.multiplicity
        return {
            "zero_s": self._zero_s,
            "iterations": w.iterations,
            "spans": len(w.spans),
            "ranks": [{"rank": r, "stands_for": size.get(r, 1)} for r in w.ranks],
            "left_out": {"spans": w.left_out, "ranks": w.ranks_left_out},
        }

    def _ns(self, time_s: float) -> int:
        return round((time_s - self._zero_s) * 1e9)

    def events(self) -> tuple[list[Event], list[_Timed]]:
        """What processes and threads are called; and all else, with the time of each and its place among equals."""
        own = self._pids.next()
        rank_pids = {rank: self._pids.next() for rank in self._written.ranks}
        threads: dict[int, _Threads] = {rank: _Threads() for rank in rank_pids}
        steps = list(self._steps(own))
        timed = [*self._slices(rank_pids, threads), *self._counters(own), *steps]
        names = _process(own, self._own_name())
        if steps:
            names.append(_named("thread", own, "critical path", 1))
        for rank, pid in rank_pids.items():
            names += _process(pid, self._rank_name(rank))
            lanes = threads[rank].lanes
            for place, lane in enumerate(sorted(lanes, key=_lane_order)):
                for tid in lanes[lane]:
                    names += [_named("thread", pid, threads[rank].names[tid], tid), _sorted("thread", pid, place, tid)]
        return names, timed

    def _own_name(self) -> str:
        w = self._written
        text = f"{self.name}: {self._row.label}"
        if w.ranks_left_out:
            text += f", {len(w.ranks)} of {len(w.ranks) + w.ranks_left_out} ranks"
        return text + (", iterations {} to {}".format(*w.iterations) if w.left_out else "")

    def _rank_name(self, rank: int) -> str:
        roles = [g.name for g in self._schedule.groups if "." not in g.name and rank in g.ranks]
        alike = self._timeline.multiplicity.get(rank, 1) - 1
        where = [] if self._row.details is None else [self._row.details.place_of(rank)]
        about = [*where, " + ".join(roles), *([f"{alike} more like it"] if alike else [])]
        return f"{self.name} rank {rank}: {', '.join(word for word in about if word)}"

    # ---- slices ------------------------------------------------------------------------------------------------------

    def _slices(self, pids: Mapping[int, int], threads: Mapping[int, _Threads]) -> Iterator[_Timed]:
        spans = sorted(self._written.spans, key=lambda s: (s.start_s, s.end_s, s.rank, s.op, s.side))
        sent = {(s.op, s.iteration, s.rank): s for s in spans if s.side == "sent"}
        arrows = _Arrows(self._schedule, sent, self._representative, self._pids)
        for s in spans:
            op = self._schedule.op(s.op)
            start, end = self._ns(s.start_s), self._ns(s.end_s)
            args: dict[str, object] = {"iteration": s.iteration}
            if s.nbytes:
                args["bytes"] = s.nbytes
            event: Event = {"name": self._labels[s.op], "pid": pids[s.rank], "args": args, "ts": start / NANO}
            if isinstance(op, Transfer):
                event |= {"cat": f"message,{op.channel},{s.side}", "id2": {"local": hex(self._pids.next())}, "tid": 0}
                yield start, 1 if s.side == "sent" else 2, {"ph": "b", **event, **arrows.of(s)}
                rest = {key: value for key, value in event.items() if key != "args"}
                yield end, 3, {"ph": "e", **rest, "ts": end / NANO}
            else:
                lane = s.lane if isinstance(op, Compute) else f"collectives of {op.ranks}"
                kind = f"compute,{op.phase}" if isinstance(op, Compute) else f"collective,{op.kind}"
                event |= {"cat": kind, "tid": threads[s.rank].place(lane, start, end)}
                yield start, 1, {"ph": "X", **event, "dur": (end - start) / NANO}

    def _steps(self, pid: int) -> Iterator[_Timed]:
        """The critical path, as slices of one thread of the process `pid`."""
        for step in () if self.path is None else self.path:
            start, end = self._ns(step.start_s), self._ns(step.end_s)
            if end > start >= 0:
                before = "wait before " if step.kind is StepKind.WAIT else ""
                yield (
                    start,
                    1,
                    {
                        "ph": "X",
                        "name": before + self._labels[step.op],
                        "cat": f"critical path,{step.kind}",
                        "pid": pid,
                        "tid": 1,
                        "ts": start / NANO,
                        "dur": (end - start) / NANO,
                        "args": {"rank": step.rank, "iteration": step.iteration},
                    },
                )

    # ---- counters ----------------------------------------------------------------------------------------------------

    def _counters(self, pid: int) -> Iterator[_Timed]:
        spans = self._written.of_all_ranks
        if not len(spans):
            return
        kinds = spans.kinds
        size = self._timeline.multiplicity
        of = np.array([_bytes(self._schedule, k.op, k.side) * k.nbytes * size.get(k.rank, 1) for k in kinds])
        yield from self._counter(pid, "bytes under way", "bytes", spans, of[spans.kind])
        if (loaded := self._row.details) is None:
            return
        busiest = sorted(self._row.prediction.utilisation.items(), key=lambda item: (-item[1], item[0]))
        taken = loaded.link_seconds([label for label, _ in busiest])
        links = {link for of_op in taken.values() for link in of_op}
        took = np.maximum(spans.end_s - spans.start_s, 1e-12)
        for label in [label for label, _ in busiest if label in links][:MOST_LINKS]:
            seconds = np.array(
                [0.0 if k.side == "recv" else taken.get((k.rank, k.op), {}).get(label, 0.0) for k in kinds]
            )
            yield from self._counter(pid, "link busy, %", label, spans, 100 * seconds[spans.kind] / took, most=100.0)

    def _counter(
        self, pid: int, name: str, what: str, spans: SpanColumns, height: F64, most: float = inf
    ) -> Iterator[_Timed]:
        """A counter that is the sum of the heights of all spans that are under way."""
        there = (height > 0) & (spans.end_s > spans.start_s)
        at = np.concatenate((spans.start_s[there], spans.end_s[there]))
        step = np.concatenate((height[there], -height[there]))
        times, of = np.unique(np.round((at - self._zero_s) * 1e9).astype(np.int64), return_inverse=True)
        level = np.cumsum(np.bincount(of.reshape(-1), weights=step, minlength=len(times)))
        level[level < 1e-9 * height.max(initial=0.0)] = 0.0  # what rounding left
        points = list(_carried(times.tolist(), level.tolist(), most))
        every = -(-len(points) // MOST_POINTS)
        for i, (time, value) in enumerate(points):
            if i % every == 0 or i == len(points) - 1:
                event: Event = {"ph": "C", "name": name, "pid": pid, "tid": 0, "ts": time / NANO}
                yield time, 0, {**event, "args": {what: round(value, 3)}}


def _carried(times: Sequence[int], levels: Sequence[float], most: float) -> Iterator[tuple[int, float]]:
    """A level that changes at `times`, where what is more than `most` comes later, as soon as there is room."""
    waiting = 0.0
    for i, (time, level) in enumerate(zip(times, levels, strict=True)):
        if level < most and not waiting:
            yield time, level
            continue
        yield time, min(level, most) if not waiting else most
        later = times[i + 1] - time if i + 1 < len(times) else inf
        if (waiting + (level - most) * later) > 0:
            waiting += (level - most) * later
        else:
            if waiting:
                yield time + round(waiting / (most - level)), level
            waiting = 0.0


def _named(what: str, pid: int, name: str, tid: int = 0) -> Event:
    return {"ph": "M", "name": f"{what}_name", "pid": pid, "tid": tid, "args": {"name": name}}


def _sorted(what: str, pid: int, place: int, tid: int = 0) -> Event:
    return {"ph": "M", "name": f"{what}_sort_index", "pid": pid, "tid": tid, "args": {"sort_index": place}}


def _process(pid: int, name: str) -> list[Event]:
    return [_named("process", pid, name), _sorted("process", pid, pid)]


def _lane_order(lane: str) -> tuple[bool, bool, str]:
    """The main lane first, collectives last."""
    return lane != "main", lane.startswith("collectives of "), lane


def _bytes(schedule: Schedule, op: str, side: str) -> int:
    """Whether the bytes of a span are counted: messages at their senders, collectives at each member."""
    return int(side == "sent" or isinstance(schedule.op(op), Collective))


# ---- what is written -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    """The spans that are written, of these ranks, and how many are not; and those of all ranks in that time."""

    spans: SpanColumns
    of_all_ranks: SpanColumns
    ranks: Sequence[int]
    left_out: int
    ranks_left_out: int

    @property
    def iterations(self) -> tuple[int, int]:
        """The first and the last."""
        of = self.spans.iteration
        return (int(of.min()), int(of.max())) if len(of) else (0, 0)


def _bounded(spans: SpanColumns, path: CriticalPath | None) -> _Written:
    """No more than `MOST_SLICES`: the last iterations, but some; then the ranks of the critical path, then the rest."""
    rank = np.array([kind.rank for kind in spans.kinds], dtype=np.int64)
    everyone = sorted(set(rank[np.unique(spans.kind)].tolist())) if len(spans) else []
    late = spans
    if len(spans) > MOST_SLICES:
        last = int(spans.iteration.max())
        counts = np.bincount(spans.iteration - spans.iteration.min())[::-1].cumsum()
        many = max(LEAST_ITERATIONS, int(np.searchsorted(counts, MOST_SLICES, side="right")))
        first = last + 1 - many
        late = spans.within(first, last)
    kept = everyone
    if len(late) > MOST_SLICES:
        of_rank = Counter(rank[late.kind].tolist())
        first_ranks = [] if path is None else [step.rank for step in path]
        kept, total = [], 0
        for r in dict.fromkeys([*first_ranks, *everyone]):
            if r in of_rank and total + of_rank[r] <= max(MOST_SLICES, min(of_rank.values())):
                kept.append(r)
                total += of_rank[r]
        kept.sort()
    mine = set(kept)
    written = late.where(np.array([r in mine for r in rank.tolist()], dtype=np.bool_)) if kept != everyone else late
    return _Written(
        spans=written,
        of_all_ranks=late,
        ranks=kept,
        left_out=len(spans) - len(written),
        ranks_left_out=len(everyone) - len(kept),
    )


# ---- arrows ----------------------------------------------------------------------------------------------------------


class _Arrows:
    """Arrows from sends to receives: to each receive one, from the sender that was last to end."""

    def __init__(
        self,
        schedule: Schedule,
        sent: Mapping[tuple[str, int, int], Span],
        representative: Callable[[int], int],
        numbers: _Numbers,
    ) -> None:
        self._schedule, self._sent, self._of, self._numbers = schedule, sent, representative, numbers
        self._ids: dict[tuple[str, int, int], str] = {}
        self._sources: dict[tuple[str, int], list[int]] = {}

    def of(self, span: Span) -> Event:
        """What makes the event of a span an end of an arrow."""
        if span.side == "sent":
            return {"bind_id": self._id((span.op, span.iteration, span.rank)), "flow_out": True}
        sender = self._sender(span)
        return {} if sender is None else {"bind_id": self._id(sender), "flow_in": True}

    def _id(self, key: tuple[str, int, int]) -> str:
        if key not in self._ids:
            self._ids[key] = hex(self._numbers.next())
        return self._ids[key]

    def _sender(self, span: Span) -> tuple[str, int, int] | None:
        """The sender of what a receive ended with, among those that began no later, as one of them did."""
        place = span.op, span.rank
        if place not in self._sources:
            op = self._schedule.op(span.op)
            sources = self._schedule.sources(op, span.rank) if isinstance(op, Transfer) else ()
            self._sources[place] = list(dict.fromkeys(map(self._of, sources)))
        keys = [(span.op, span.iteration, source) for source in self._sources[place]]
        begun = [key for key in keys if key in self._sent and self._sent[key].start_s <= span.start_s]
        return max(begun, key=lambda key: (self._sent[key].end_s, -key[2]), default=None)
