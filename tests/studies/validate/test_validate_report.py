"""The report and its folder: what is in it, that it is written whole or not at all, and what it never overwrites."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from stanza_sim.base.errors import InputError
from stanza_sim.studies.validate import folder
from stanza_sim.studies.validate.folder import open_journal, write_report
from stanza_sim.studies.validate.journal import NAME, Header
from stanza_sim.studies.validate.markdown import report_markdown
from stanza_sim.studies.validate.report import Report, report_csv, report_json, report_object
from stanza_sim.studies.validate.session import print_report
from stanza_sim.studies.validate.suite import load_suite
from tests.studies.validate.validate_fakes import measured, predicted, result

HEADER = Header(suite="small", digest="d", machine={"cores": "2"}, conditions={"torch": "2"}, date="2026-01-01")
FILES = {"journal.jsonl", "report.md", "results.csv", "results.json"}


@pytest.fixture
def report(write_suite) -> Report:
    """Errors of -1%, +2% and -9%; the last misses the bound of 8%."""
    suite = load_suite(str(write_suite()))[0].value
    found = (
        result(predicted(0.099, forward=0.05, all_reduce=0.049), measured(0.1), measured(0.1), name="fast/alex/ring"),
        result(predicted(0.204, servers=1), measured(0.2), measured(0.21), measured(0.19), name="fast/alex/ps"),
        result(predicted(0.273, exposed=0.2), measured(0.3, exposed=0.01, load=1.5), name="slow/alex/ring"),
    )
    return Report(
        suite=suite,
        results=found,
        machine={"processor": "some | thing", "cores": "2"},
        conditions={"torch": "2.13.0"},
        notes={"fast": ["0.956 of 500 Mbps"], "slow": ["0.955 of 100 Mbps", "again: 0.956"]},
        date="2026-01-01 12:00 UTC",
        command="stanza-sim validate small.yaml",
    )


def test_bounds_are_judged(report):
    assert [(v.name, round(v.value_pct, 6), v.held) for v in report.verdicts] == [
        ("median", 2.0, True),
        ("p90", 7.6, False),
        ("max", 9.0, False),
    ]
    assert not report.held


def test_the_json_has_all_figures(report):
    data = json.loads(report_json(report))
    assert data["errors_pct"]["median"] == pytest.approx(2)
    assert data["errors_pct"]["bias"] == pytest.approx(-8 / 3)
    assert data["errors_of_comm_pct"]["cases"] == 2
    assert data["errors_of_comm_pct"]["max"] == pytest.approx(4)
    assert (data["held"], data["cases_exposed"], data["cases_single_server"]) == (False, 2, 1)
    first, second, third = data["cases"]
    assert first["case"] == "fast/alex/ring"
    assert (first["model"], first["nodes"], first["rate_bps"]) == ("alexnet-bytes0.01", 4, 500e6)
    assert sum(first["difference_s"].values()) == pytest.approx(first["predicted_s"] - first["measured_s"])
    assert second["spread_pct"] == pytest.approx(10)
    assert third["error_of_comm_pct"] is None
    assert third["calibration"] == ["0.955 of 100 Mbps", "again: 0.956"]
    assert [g["name"] for g in data["by_strategy"]] == ["ring", "ps"]
    assert {line["kind"] for line in data["budget"]} == {"compute", "collective", "rest"}


def test_the_csv_has_a_line_for_each_case(report):
    rows = list(csv.DictReader(io.StringIO(report_csv(report))))
    assert [row["case"] for row in rows] == ["fast/alex/ring", "fast/alex/ps", "slow/alex/ring"]
    assert float(rows[0]["error_pct"]) == pytest.approx(-1)
    assert float(rows[0]["difference_collective_s"]) == pytest.approx(-0.001)
    assert rows[1]["repeats_s"] == "0.2 0.21 0.19"
    assert rows[2]["error_of_comm_pct"] == ""


def test_the_report_for_people(report):
    text = report_markdown(report, picture="scatter.png")
    assert "| all, % of the iteration | 3 | 2.00 | 7.60 | 9.00 | −2.67 |" in text
    assert "median 2.00% ≤ 2%, p90 7.60% > 4% **missed**, max 9.00% > 8% **missed**" in text
    assert "| fast/alex/ps | 204.0 | 200.0 | 10.0 | +2.00 | +4.00 | 50 | 50 |" in text
    assert "| slow/alex/ring | 273.0 | 300.0 | 0.0 | −9.00 |  | 20 | 1 |" in text
    assert "Of the 3 cases 2 have 30% or more of exposed communication (predicted), and 1 a single" in text
    assert "    stanza-sim validate small.yaml" in text
    assert "load average when a case began: 0.0 to 1.5" in text
    assert "| slow | star, 3 nodes, 100 Mbps | 0.955 of 100 Mbps; again: 0.956 |" in text
    assert "![predicted and measured](scatter.png)" in text
    assert "scatter.png" not in report_markdown(report)
    tables = [line.count("|") for line in text.splitlines() if line.startswith("| slow/alex")]
    assert tables == [9]


def test_errors_of_a_small_calibration_stand_beside_those_of_the_whole(write_suite, report):
    """Predicted from 2 hosts the first case is off by +1 and the second by -10%; the third was not."""
    change = ("bounds: {median: 2, p90: 4, max: 8}", "bounds: {max: 10}\ncalibrate_on: 2\nsmall_bounds: {median: 3}")
    suite = load_suite(str(write_suite(change)))[0].value
    off = (0.101, 0.18, None)
    results = tuple(
        replace(r, predicted=replace(r.predicted, small_s=small)) for r, small in zip(report.results, off, strict=True)
    )
    small = replace(report, suite=suite, results=results)
    assert small.small_errors.count == 2
    assert [(v.name, round(v.value_pct, 6), v.held) for v in small.verdicts] == [
        ("max", 9.0, True),
        ("median, calibrated on 2 hosts", 5.5, False),
    ]
    data = report_object(small)
    assert data["calibrated_on"] == 2
    assert data["small_errors_pct"]["bias"] == pytest.approx(-4.5)
    assert [case["small_error_pct"] for case in data["cases"]] == [pytest.approx(1), pytest.approx(-10), None]
    text = report_markdown(small)
    assert "| all, calibrated on 2 hosts, % of the iteration | 2 | 5.50 | 9.10 | 10.00 | −4.50 |" in text
    assert "| error, % | calibrated on 2 hosts, % |" in text
    rows = list(csv.DictReader(io.StringIO(report_csv(small))))
    assert [row["small_predicted_s"] for row in rows] == ["0.101", "0.18", ""]
    out = io.StringIO()
    print_report(small, Path("there"), Console(file=out, width=80))
    assert "the same, calibrated on 2 hosts" in out.getvalue()
    assert "on 2" in out.getvalue().splitlines()[0]
    assert "calibrated on" not in report_markdown(report)


def test_equal_reports_are_equal_bytes(report):
    assert report_json(report) == report_json(report)
    assert report_object(report) == json.loads(report_json(report))


def test_the_plot_is_a_picture(report):
    scatter = pytest.importorskip("stanza_sim.studies.validate.scatter")
    pytest.importorskip("matplotlib")
    made = scatter.scatter_png(report)
    assert made.startswith(b"\x89PNG")
    assert made == scatter.scatter_png(report)


# --- the folder ------------------------------------------------------------------------------------------------------


def names(path) -> set[str]:
    return {p.name for p in path.iterdir()}


def test_a_report_is_written_beside_the_journal_and_replaced_by_the_next(report, tmp_path):
    out = tmp_path / "out"
    with open_journal(out, HEADER, resume=False):
        pass
    write_report(report, out, picture=b"\x89PNG")
    assert names(out) == FILES | {"scatter.png"}
    assert json.loads((out / "results.json").read_text())["suite"] == "small"
    assert (out / "report.md").stat().st_mode & 0o777 == 0o644
    (out / "README.md").write_text("mine")
    with open_journal(out, HEADER, resume=False):
        assert names(out) == {"journal.jsonl", "README.md"}, "what was completed gives way, other files stay"
    with pytest.raises(InputError, match="holds a validation that was not finished"):
        open_journal(out, HEADER, resume=False)
    with open_journal(out, HEADER, resume=True):
        pass


@pytest.mark.parametrize(("present", "message"), [("report.md", "holds report.md"), ("results.json", "nothing to")])
def test_files_of_others_are_not_overwritten(tmp_path, present, message):
    (tmp_path / present).write_text("mine")
    with pytest.raises(InputError, match=message):
        open_journal(tmp_path, HEADER, resume=False)
    assert (tmp_path / present).read_text() == "mine"
    assert names(tmp_path) == {present}


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        open_journal(tmp_path / "file" / "out", HEADER, resume=False)


def test_a_full_disk_leaves_no_part_of_a_report(report, tmp_path, monkeypatch):
    with open_journal(tmp_path, HEADER, resume=False):
        pass
    calls = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder.os, "fsync", full)
    with pytest.raises(InputError, match="cannot be written: No space left on device"):
        write_report(report, tmp_path, picture=b"\x89PNG")
    assert names(tmp_path) == {NAME, "small.yaml"}


def test_it_is_said_that_predictions_were_made_anew(report):
    assert "each was predicted before anything was measured." in report_markdown(report)
    (first, *others) = report.results
    anew = replace(first.measured[0], predicted=predicted(0.09))
    renewed = replace(report, results=(replace(first, measured=(anew, first.measured[1])), *others))
    assert "then anew for each repeat, from block times taken right before and after it" in report_markdown(renewed)
    repeats = report_object(renewed)["cases"][0]["repeats"]
    assert [r["predicted_s"] for r in repeats] == [0.09, 0.099]


def test_how_the_machine_moved_is_in_every_form(report):
    first, *others = report.results
    moved = replace(first.measured[0], predicted=predicted(0.09), drift=-0.031, others=0.07)
    renewed = replace(report, results=(replace(first, measured=(moved, first.measured[1])), *others))
    text = report_markdown(renewed)
    assert "| machine, % |" in text
    assert "| −3.10 |" in text
    assert "- cores that other processes had: at most 7% of them in a repeat" in text
    assert "machine, %" not in report_markdown(report)
    case = report_object(renewed)["cases"][0]
    assert case["machine_pct"] == pytest.approx(-3.1)
    assert [(r["machine_pct"], r["others"]) for r in case["repeats"]] == [(pytest.approx(-3.1), 0.07), (None, 0.0)]
    lines = list(csv.DictReader(io.StringIO(report_csv(renewed))))
    assert [line["machine_pct"] for line in lines] == ["-3.1", "", ""]


def test_what_the_host_took_away_is_said(report):
    assert "at most 0.0% of them in a repeat; 0 of 6 repeats were measured again" in report_markdown(report)
    (first, *others) = report.results
    again = replace(first.measured[0], stolen=0.012, tries=3)
    disturbed = replace(report, results=(replace(first, measured=(again, first.measured[1])), *others))
    assert "at most 1.2% of them in a repeat; 1 of 6 repeats were measured again" in report_markdown(disturbed)
    assert report_object(disturbed)["cases"][0]["repeats"][0]["tries"] == 3
