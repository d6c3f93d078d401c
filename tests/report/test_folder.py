"""The output folder: whole or not at all, and nobody else's files are touched."""

import csv
import json
from pathlib import Path

import pytest

from stanza_sim.base.errors import InputError
from stanza_sim.report import folder
from stanza_sim.report.folder import check_writable, spans_csv, write_result
from stanza_sim.report.result import Result, result_json
from stanza_sim.schedule import parse


@pytest.fixture
def result(make_row) -> Result:
    return Result(experiment="example", rows=(make_row(measured=True), make_row(label="Stanza, CONV by PS")))


def tree(path: Path) -> list[str]:
    return sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())


FILES = [
    "details.json",
    "result.json",
    "schedules/01-net-all-reduce.txt",
    "schedules/02-net-stanza-conv-by-ps.txt",
    "spans/01-net-all-reduce.measured.csv",
    "spans/01-net-all-reduce.predicted.csv",
    "spans/02-net-stanza-conv-by-ps.predicted.csv",
    "traces/01-net-all-reduce.json",
    "traces/02-net-stanza-conv-by-ps.json",
]


def test_writes_result_schedules_and_spans(result, tmp_path):
    target = tmp_path / "new" / "out"
    write_result(result, target)
    assert tree(target) == FILES
    assert (target / "result.json").read_text() == result_json(result)
    assert parse((target / FILES[2]).read_text()) == result.rows[0].schedule
    assert tree(tmp_path) == [f"new/out/{f}" for f in FILES]


def test_spans_are_read_back_from_csv(result):
    timeline = result.rows[0].measurement.timeline
    rows = list(csv.DictReader(spans_csv(timeline).splitlines()))
    assert len(rows) == len(timeline.spans)
    total = sum(float(r["end_s"]) - float(r["start_s"]) for r in rows)
    assert total == pytest.approx(sum(s.duration_s for s in timeline.spans), abs=1e-8 * len(rows))
    assert {(r["op"], int(r["rank"]), int(r["iteration"])) for r in rows} == {
        (s.op, s.rank, s.iteration) for s in timeline.spans
    }


def test_replaces_what_an_earlier_run_wrote(result, make_row, tmp_path):
    target = tmp_path / "out"
    write_result(result, target)
    write_result(Result(experiment="second", rows=(make_row(),)), target)
    assert json.loads((target / "result.json").read_text())["experiment"] == "second"
    assert tree(tmp_path) == [f"out/{FILES[i]}" for i in (0, 1, 2, 5, 7)]


def test_an_empty_folder_is_filled(result, tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    write_result(result, target)
    assert tree(target) == FILES


@pytest.mark.parametrize("name", ["notes.md", "schedules/mine.txt", "spans/sub/01-a.predicted.csv"])
def test_a_folder_with_files_of_others_is_left_alone(result, tmp_path, name):
    target = tmp_path / "out"
    write_result(result, target)
    (target / name).parent.mkdir(exist_ok=True)
    (target / name).write_text("precious")
    before = {f: (target / f).read_bytes() for f in tree(target)}
    with pytest.raises(InputError, match="not part of a result"):
        write_result(result, target)
    with pytest.raises(InputError, match="not part of a result"):
        check_writable(target)
    assert {f: (target / f).read_bytes() for f in tree(target)} == before


def test_a_folder_of_ours_without_a_result_is_not_taken_for_one(result, tmp_path):
    (tmp_path / "out" / "schedules").mkdir(parents=True)
    with pytest.raises(InputError, match=r"result\.json"):
        write_result(result, tmp_path / "out")


def test_a_file_in_the_place_of_the_folder(result, tmp_path):
    (tmp_path / "out").write_text("a file")
    for target in (tmp_path / "out", tmp_path / "out" / "below"):
        with pytest.raises(InputError, match=r"not a folder|cannot be written"):
            check_writable(target)
    assert (tmp_path / "out").read_text() == "a file"


def test_checking_leaves_nothing_behind(tmp_path):
    check_writable(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("existing", [False, True])
def test_a_disk_that_fills_up_leaves_what_was_there(result, tmp_path, monkeypatch, existing):
    target = tmp_path / "out"
    if existing:
        write_result(Result(experiment="old", rows=result.rows), target)
    before = tree(tmp_path)

    def some(result):
        yield "result.json", "{}"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder, "files", some)
    with pytest.raises(InputError, match="No space left"):
        write_result(result, target)
    assert tree(tmp_path) == before
    if existing:
        assert json.loads((target / "result.json").read_text())["experiment"] == "old"


def test_a_rename_that_fails_brings_the_old_result_back(result, tmp_path, monkeypatch):
    target = tmp_path / "out"
    write_result(Result(experiment="old", rows=result.rows), target)
    rename = Path.rename

    def fails(self, to):
        if Path(to) == target and self.name != "old":
            raise OSError(5, "Input/output error")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(InputError, match="Input/output error"):
        write_result(result, target)
    assert json.loads((target / "result.json").read_text())["experiment"] == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
