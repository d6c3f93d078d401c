"""What a folder says beyond result.json: traffic of ranks, what is alike, blocks on their device; reading it back."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from stanza_sim.base.errors import InputError
from stanza_sim.cluster import load_cluster
from stanza_sim.model.zoo import load_model
from stanza_sim.report.details import details_json
from stanza_sim.report.folder import write_result
from stanza_sim.report.lanes import Activity, by_activity, lane_rows
from stanza_sim.report.pair_bytes import pair_bytes
from stanza_sim.report.result import Result
from stanza_sim.report.saved import read_folder
from stanza_sim.schedule import parse
from stanza_sim.schedule.collectives import traffic
from stanza_sim.timeline.spans import Span, Timeline

RING = """\
schedule allreduce model=net world=4 batch=4
group worker 0-3
bundle b numel=10 owners=worker tensors=w
fwd: forward l @worker after_previous=upd
loss: loss l @worker after=fwd
bwd: backward l @worker after=loss
ar: all_reduce grad(b) @worker nbytes=40 algorithm={algorithm} after=bwd
upd: update b @worker after=ar
"""


@pytest.mark.parametrize("algorithm", ["ring", "tree by=steps", "halving_doubling by=steps"])
def test_bytes_of_pairs_add_up_to_those_of_ranks(algorithm):
    schedule = parse(RING.format(algorithm=algorithm))
    moved = pair_bytes(schedule)
    op = schedule.op("ar")
    for rank, (sent, received) in traffic(op, schedule.group("worker"), schedule.itemsize_of(op)).items():
        assert sum(n for (a, _), n in moved.items() if a == rank) == sent
        assert sum(n for (_, b), n in moved.items() if b == rank) == received


def test_a_ring_talks_to_neighbours_only():
    assert set(pair_bytes(parse(RING.format(algorithm="ring")))) == {(0, 1), (1, 2), (2, 3), (3, 0)}


def test_too_many_messages_are_not_counted(monkeypatch):
    monkeypatch.setattr("stanza_sim.report.pair_bytes.MOST_MESSAGES", 3)
    assert pair_bytes(parse(RING.format(algorithm="ring"))) is None


@pytest.fixture
def rows(make_row):
    cluster = load_cluster("star", nodes=2)
    return tuple(make_row(label=label, measured=label == "a", hardware=cluster) for label in ("a", "b"))


def test_details_name_what_is_alike_once(rows):
    data = json.loads(details_json(Result(experiment="x", rows=rows), ["01-a", "02-b"]))
    assert [node["count"] for node in data["cluster"]["nodes"]] == [2, 1]
    assert [node["kind"] for node in data["cluster"]["nodes"]] == ["host", "switch"]
    (link,) = data["cluster"]["links"]
    assert len(link["busy"]) == 2
    assert data["rows"][0]["traffic"] == {"names": ["rank 0", "rank 1"], "nbytes": [[0, 1, 40], [1, 0, 40]]}
    assert data["rows"][0]["measured"]["iterations"] >= 1
    assert data["rows"][1]["measured"] is None


def test_of_very_many_hosts_and_links_not_all_is_said(rows, monkeypatch):
    monkeypatch.setattr("stanza_sim.report.details.MOST_HOSTS", 1)
    monkeypatch.setattr("stanza_sim.report.details.MOST_BUSY", 2)
    busy = replace(rows[0].prediction, utilisation={"a": 0.1, "b": 0.3, "c": 0.2})
    data = json.loads(details_json(Result(experiment="x", rows=(replace(rows[0], prediction=busy),)), ["01-a"]))
    assert data["cluster"] is None
    assert data["rows"][0]["utilisation"] == {"b": 0.3, "c": 0.2}


def test_places_of_a_matrix_are_hosts_where_there_are_many_ranks(make_row, monkeypatch):
    monkeypatch.setattr("stanza_sim.report.details.MOST_PLACES", 1)
    row = make_row(hardware=load_cluster("star", nodes=2))
    data = json.loads(details_json(Result(experiment="x", rows=(row,)), ["01-a"]))
    assert data["rows"][0]["traffic"] == {"names": ["node-0..1"], "nbytes": [[0, 0, 80]]}


def test_blocks_have_work_and_seconds():
    from stanza_sim.experiment.run import run_experiment

    overrides = ["models=[alexnet]", "strategies=[all_reduce]", "nodes=2"]
    result = run_experiment("ec2_v100", overrides=overrides)
    (row,) = json.loads(details_json(result, ["01-a"]))["rows"]
    blocks, profile = row["blocks"], load_model("alexnet")
    assert [b["name"] for b in blocks] == [b.name for b in profile.blocks]
    assert blocks[0]["flops"] == profile.blocks[0].forward_flops * result.rows[0].batch_per_worker
    assert all(b["predicted_s"] > 0 and b["nbytes"] > 0 for b in blocks)
    assert row["device"]["name"] == "V100"
    seconds = row["predicted"]["seconds"]
    assert sum(seconds.values()) == pytest.approx(result.rows[0].prediction.iteration_s)
    begin, end = row["predicted"]["window_s"]
    assert (end - begin) / row["predicted"]["iterations"] == pytest.approx(result.rows[0].prediction.iteration_s)
    assert result.settings["nodes"] == 2


def test_a_folder_is_read_back(rows, tmp_path):
    result = Result(experiment="x", rows=rows, settings={"name": "x"})
    write_result(result, tmp_path / "out")
    saved = read_folder(tmp_path / "out")
    assert [row.run.label for row in saved.rows] == ["a", "b"]
    assert saved.rows[0].schedule == rows[0].schedule
    assert saved.rows[0].run.error_pct == rows[0].error_pct
    timeline = saved.rows[0].timeline("predicted")
    (begin, end) = saved.rows[0].typical("predicted").window_s
    assert min(s.start_s for s in timeline.spans) == 0
    assert max(s.end_s for s in timeline.spans) == pytest.approx(end - begin)
    assert saved.rows[1].timeline("measured") is None


BROKEN = {
    "details.json": [("{}", "format: Field required"), ("{", "is not JSON"), ("", "is not JSON")],
    "result.json": [('{"experiment": "x", "runs": []}', "rows are not those"), ("[]", "Input should be")],
    "schedules/01-net-a.txt": [("nonsense", "01-net-a.txt")],
}


@pytest.mark.parametrize(("name", "text", "told"), [(n, *one) for n, some in BROKEN.items() for one in some])
def test_what_is_broken_is_named(rows, tmp_path, name, text, told):
    write_result(Result(experiment="x", rows=rows), tmp_path / "out")
    (tmp_path / "out" / name).write_text(text)
    with pytest.raises(InputError) as caught:
        read_folder(tmp_path / "out")
    assert told in str(caught.value)


def test_what_is_not_there_is_named(rows, tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        read_folder(tmp_path / "none")
    with pytest.raises(InputError, match=r"holds no result\.json"):
        read_folder(tmp_path)
    write_result(Result(experiment="x", rows=rows), tmp_path / "out")
    path = tmp_path / "out" / "details.json"
    path.write_text(path.read_text().replace('"version": 1', '"version": 2', 1))
    with pytest.raises(InputError, match="of version 2"):
        read_folder(tmp_path / "out")
    spans = tmp_path / "out" / "spans" / "01-net-a.predicted.csv"
    path.write_text(path.read_text().replace('"version": 2', '"version": 1', 1))
    spans.write_text(spans.read_text() + "a,b\n")
    with pytest.raises(InputError, match="is no line of spans"):
        read_folder(tmp_path / "out").rows[0].timeline("predicted")


def spans_of(*times: tuple[str, float, float, str, str]) -> Timeline:
    spans = [
        Span(op=op, rank=0, iteration=0, lane=lane, side=side, start_s=a, end_s=b) for op, a, b, lane, side in times
    ]
    return Timeline(spans=spans, iteration_end_s={}, multiplicity={0: 3})


def test_lanes_are_packed_and_waiting_is_what_is_left():
    schedule = parse(RING.format(algorithm="ring"))
    timeline = spans_of(
        ("fwd", 1.0, 2.0, "main", ""), ("ar", 1.5, 4.0, "", ""), ("ar", 3.0, 5.0, "", ""), ("upd", 4.0, 5.0, "main", "")
    )
    main, first, second = lane_rows(timeline, schedule, 6.0)
    assert [(b.start_s, b.end_s, b.activity) for b in main.bars] == [
        (0.0, 1.0, Activity.WAITING),
        (1.0, 2.0, Activity.COMPUTATION),
        (2.0, 4.0, Activity.WAITING),
        (4.0, 5.0, Activity.COMPUTATION),
        (5.0, 6.0, Activity.WAITING),
    ]
    assert (first.name, second.name) == ("collective", "")
    assert main.size == 3
    assert [len(row.bars) for row in lane_rows(timeline, schedule, 6.0, packed=False)] == [5, 2]
    assert lane_rows(timeline, schedule, 6.0, ranks=[1]) == []


def test_seconds_by_activity_keep_their_sum():
    schedule = parse(RING.format(algorithm="ring"))
    found = by_activity({"forward": 1.0, "all_reduce": 2.0, "waiting": 4.0}, schedule)
    assert list(found.values()) == [1.0, 2.0, 4.0]


def test_a_plan_s_folder_is_read_too(rows, tmp_path: Path):
    from stanza_sim.report.result import run_object

    text = json.dumps({"experiment": "x", "plans": [{"best": run_object(row)} for row in rows] + [{"best": None}]})
    write_result(Result(experiment="x", rows=rows), tmp_path / "out", text)
    assert len(read_folder(tmp_path / "out").rows) == 2
