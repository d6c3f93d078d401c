"""Traces: events as the format has them, as many slices as spans, none over another, and counters that add up."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from itertools import pairwise

import pytest

from stanza_sim.experiment.run import run_experiment
from stanza_sim.report import trace
from stanza_sim.report.result import Result, Row
from stanza_sim.report.trace import trace_json
from stanza_sim.schedule import parse_op
from stanza_sim.simulate.steady import last_period
from stanza_sim.timeline.spans import Span

NEEDS = {
    "M": {"name", "pid", "tid", "args"},
    "X": {"name", "cat", "pid", "tid", "ts", "dur", "args"},
    "b": {"name", "cat", "pid", "tid", "ts", "id2", "args"},
    "e": {"name", "cat", "pid", "tid", "ts", "id2"},
    "C": {"name", "pid", "tid", "ts", "args"},
}
"""The fields of each phase of event, by Google's "Trace Event Format" of 2016."""
MAY = {"b": {"bind_id", "flow_in", "flow_out"}}


@pytest.fixture(scope="module")
def result() -> Result:
    rows = ["PS co-located", "all-reduce", "Stanza, CONV by PS"]
    found = run_experiment("ec2_v100", overrides=["models=[alexnet]", "nodes=4"])
    assert found is not None
    return replace(found, rows=tuple(row for row in found.rows if row.label in rows))


def read(text: str) -> dict:
    data = json.loads(text)
    assert set(data) == {"displayTimeUnit", "otherData", "traceEvents"}
    assert data["displayTimeUnit"] in ("ms", "ns")
    for event in data["traceEvents"]:
        fields = set(event) - {"ph"}
        assert NEEDS[event["ph"]] <= fields <= NEEDS[event["ph"]] | MAY.get(event["ph"], set())
        assert isinstance(event["name"], str)
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        assert event.get("ts", 0) >= 0
        assert event.get("dur", 0) >= 0
        if event["ph"] == "C":
            assert all(isinstance(value, int | float) for value in event["args"].values())
    times = [event["ts"] for event in data["traceEvents"] if event["ph"] != "M"]
    assert times == sorted(times)
    return data


def named(data: dict, what: str) -> dict:
    return {
        (e["pid"], e["tid"]): e["args"]["name"] for e in data["traceEvents"] if e["ph"] == "M" and e["name"] == what
    }


def pids(data: dict, start: str) -> set[int]:
    return {pid for (pid, _), name in named(data, "process_name").items() if name.startswith(start)}


def slices(data: dict, group: str) -> list[dict]:
    ranks = pids(data, f"{group} rank")
    return [e for e in data["traceEvents"] if e["ph"] in "Xb" and e["pid"] in ranks]


def no_overlap(data: dict) -> None:
    threads = defaultdict(list)
    for e in data["traceEvents"]:
        if e["ph"] == "X":
            threads[e["pid"], e["tid"]].append((round(e["ts"] * 1e3), round((e["ts"] + e["dur"]) * 1e3)))
    assert threads
    for spans in threads.values():
        assert all(a[1] <= b[0] for a, b in pairwise(sorted(spans)))
    assert set(threads) <= set(named(data, "thread_name"))


def each_ends(data: dict) -> None:
    begun, ended = (
        {(e["pid"], e["id2"]["local"], e["name"], e["cat"]): e["ts"] for e in data["traceEvents"] if e["ph"] == ph}
        for ph in "be"
    )
    assert begun.keys() == ended.keys()
    assert all(ended[key] >= begun[key] for key in begun)


def arrows(data: dict) -> int:
    """How many there are; each leaves one slice, before those at which it arrives."""
    left = set()
    count = 0
    for e in data["traceEvents"]:
        if e.get("flow_out"):
            assert e["bind_id"] not in left
            left.add(e["bind_id"])
        if e.get("flow_in"):
            assert e["bind_id"] in left
            count += 1
    return count


def test_events_are_as_the_format_has_them(result: Result) -> None:
    for row in result.rows:
        data = read(trace_json(row))
        no_overlap(data)
        each_ends(data)
        assert len(slices(data, "predicted")) == len(row.prediction.timeline.spans)
        received = [s for s in row.prediction.timeline.spans if s.side == "recv"]
        assert arrows(data) == len(received)
        written = {r["rank"]: r["stands_for"] for r in data["otherData"]["predicted"]["ranks"]}
        assert written == row.prediction.timeline.multiplicity
        assert trace_json(row) == trace_json(row)


def test_slices_are_called_what_schedules_print(result: Result) -> None:
    row = result.rows[0]
    for event in slices(read(trace_json(row)), "predicted"):
        op = parse_op(event["name"])
        assert op == row.schedule.op(op.name)


def test_lanes_are_threads(result: Result) -> None:
    names = {text.split(": ")[0]: set() for text in named(read(trace_json(result.rows[0])), "process_name").values()}
    data = read(trace_json(result.rows[0]))
    processes = {pid: name for (pid, _), name in named(data, "process_name").items()}
    for (pid, _), name in named(data, "thread_name").items():
        names[processes[pid].split(": ")[0]].add(name)
    assert names["predicted rank 0"] == {"main", "server"}
    assert names["predicted"] == {"critical path"}


def test_the_critical_path_is_a_thread(result: Result) -> None:
    for row in result.rows:
        data = read(trace_json(row))
        (own,) = pids(data, "predicted:")
        path = [e for e in data["traceEvents"] if e["ph"] == "X" and e["pid"] == own]
        assert row.details is not None
        took = sum(e["dur"] for e in path) / 1e6
        assert took == pytest.approx(row.details.critical_path.seconds, rel=1e-4)


@pytest.mark.parametrize("index", range(3))
def test_busy_links_add_up_to_their_utilisation(result: Result, index: int) -> None:
    """The mean of a counter over a period of the steady state is the link's share of the prediction."""
    row = result.rows[index]
    data = read(trace_json(row))
    ends = row.prediction.timeline.iteration_end_s
    first, last = last_period(list(ends.values()))
    rank = min(ends)
    period = last - first
    zero = data["otherData"]["predicted"]["zero_s"]
    begin, end = ((ends[rank][i] - zero) * 1e6 for i in (first - period, first))
    points = defaultdict(list)
    for e in data["traceEvents"]:
        if e["ph"] == "C" and e["name"] == "link busy, %":
            ((label, value),) = e["args"].items()
            points[label].append((e["ts"], value))
    assert points
    for label, of in points.items():
        of = [(0.0, 0.0), *of, (end, 0.0)]
        area = sum(max(0.0, min(b, end) - max(a, begin)) * v for (a, v), (b, _) in pairwise(of))
        share = area / (end - begin) / 100
        assert share == pytest.approx(row.prediction.utilisation[label], rel=0.02), label


def test_bytes_under_way(result: Result) -> None:
    row = result.rows[0]
    points = [e for e in read(trace_json(row))["traceEvents"] if e["name"] == "bytes under way"]
    assert points[-1]["args"]["bytes"] == 0
    first = next(e["args"]["bytes"] for e in points if e["args"]["bytes"])
    sent = [s for s in row.prediction.timeline.spans if s.side == "sent"]
    begin = min(s.start_s for s in sent)
    size = row.prediction.timeline.multiplicity
    assert first == sum(s.nbytes * size[s.rank] for s in sent if s.start_s == begin)


def test_both_groups_in_one_file(make_row) -> None:
    row = make_row(measured=True)
    data = read(trace_json(row))
    no_overlap(data)
    assert len(slices(data, "predicted")) == len(row.prediction.timeline.spans)
    assert len(slices(data, "measured")) == len(row.measurement.timeline.spans)
    assert not pids(data, "predicted") & pids(data, "measured")
    assert {e["ts"] for e in slices(data, "measured")} >= {0.0}
    threads = {name for (pid, _), name in named(data, "thread_name").items() if pid in pids(data, "measured rank")}
    assert threads == {"main", "collectives of worker"}


def test_slices_of_one_lane_that_overlap_have_threads_of_their_own(make_row) -> None:
    row: Row = make_row()
    odd = [Span(op="fwd", rank=0, iteration=9, lane="main", side="", start_s=a, end_s=a + 2.0) for a in (1.0, 2.0, 3.0)]
    timeline = replace(row.prediction.timeline, spans=tuple(odd))
    data = read(trace_json(replace(row, prediction=replace(row.prediction, timeline=timeline))))
    no_overlap(data)
    assert sorted(named(data, "thread_name").values()) == ["main", "main (2)"]


def test_what_is_too_much_is_left_out_and_said(make_row, monkeypatch: pytest.MonkeyPatch) -> None:
    row = make_row()
    spans = len(row.prediction.timeline.spans)  # six iterations of five ops at two ranks
    monkeypatch.setattr(trace, "MOST_SLICES", 50)
    data = read(trace_json(row))
    facts = data["otherData"]["predicted"]
    assert facts["iterations"] == [1, 5]
    assert facts["left_out"] == {"spans": spans - 50, "ranks": 0}
    assert len(slices(data, "predicted")) == 50
    monkeypatch.setattr(trace, "MOST_SLICES", 25)
    data = read(trace_json(row))
    facts = data["otherData"]["predicted"]
    assert facts["iterations"] == [2, 5]
    assert facts["left_out"] == {"spans": spans - 20, "ranks": 1}
    assert facts["ranks"] == [{"rank": 0, "stands_for": 1}]
    assert any("1 of 2 ranks, iterations 2 to 5" in name for name in named(data, "process_name").values())
