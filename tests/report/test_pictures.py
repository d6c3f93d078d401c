"""Pictures of a folder: which there are, that equal data gives equal bytes, and which rows are told apart."""

import json
import sys
from dataclasses import replace
from itertools import pairwise

import pytest
from typer.testing import CliRunner

from stanza_sim.base.errors import InputError
from stanza_sim.cli.app import app
from stanza_sim.cluster import load_cluster
from stanza_sim.report.folder import check_writable, write_result
from stanza_sim.report.pictures.style import look, named_ends, told_apart
from stanza_sim.report.result import Result

pytest.importorskip("matplotlib")
NAMES = ["breakdown", "predicted-measured", "speed-ups", "timeline-net", "timeline-net-measured"]


@pytest.fixture
def folder(make_row, tmp_path):
    cluster = load_cluster("star", nodes=2)
    rows = [make_row(label=label, measured=label == "a $x$", hardware=cluster) for label in ("a $x$", "b_{y}")]
    write_result(Result(experiment="x", rows=tuple(rows)), tmp_path / "out")
    return tmp_path / "out"


def test_the_command_draws_a_folder(folder):
    result = CliRunner().invoke(app, ["plot", str(folder), "--json"])
    assert result.exit_code == 0, result.output
    paths = sorted(p.relative_to(folder).as_posix() for p in folder.glob("pictures/*"))
    assert paths == sorted(f"pictures/{name}.{suffix}" for name in NAMES for suffix in ("png", "svg"))
    assert sorted(json.loads(result.stdout)) == [str(folder / path) for path in paths]
    assert (folder / "pictures/breakdown.png").read_bytes().startswith(b"\x89PNG")
    svg = (folder / "pictures/speed-ups.svg").read_text()
    assert "<!-- a $x$ -->" in svg  # as it is written, not as a formula
    before = {path: (folder / path).read_bytes() for path in paths}
    check_writable(folder)  # pictures are part of a result: it may be replaced
    assert CliRunner().invoke(app, ["plot", str(folder)]).exit_code == 0
    assert {path: (folder / path).read_bytes() for path in paths} == before


def test_options_of_sweeps_are_refused_for_folders(folder):
    for option in (["--over", "nodes"], ["--where", "nodes=2"]):
        assert CliRunner().invoke(app, ["plot", str(folder), *option]).exit_code == 2


def test_without_matplotlib_it_says_what_to_install(folder, monkeypatch):
    from stanza_sim.report.pictures import draw_folder

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"pip install 'stanza-sim\[plot\]'"):
        draw_folder(folder)


def test_of_many_rows_the_best_of_each_strategy_is_told_apart():
    few = [(f"row {i}", "a" if i % 2 else "b", float(i)) for i in range(8)]
    assert told_apart(few) == [label for label, _, _ in few]
    assert told_apart([*few, ("row 8", "c", 1.0)]) == ["row 6", "row 7", "row 8"]


def test_looks_differ_in_grey_too():
    looks = [look(i) for i in range(8)]
    assert len({one.marker for one in looks}) == len({one.colour for one in looks}) == 8


def test_names_at_the_ends_of_lines_do_not_lie_over_each_other():
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    figure = Figure(figsize=(6, 3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    ends = [(1.0, 5.0 + 0.01 * i, f"row {i}", "black") for i in range(8)] + [(1.0, 1.0, "low", "black")]
    axes.plot([0, 1], [1, 6])
    figure.draw_without_rendering()
    named_ends(axes, ends, log=False)
    figure.draw_without_rendering()
    boxes = sorted((Text.get_window_extent(text) for text in axes.texts), key=lambda box: box.y0)
    for below, above in pairwise(boxes):
        assert below.y0 + 0.7 * (below.y1 - below.y0) <= above.y0


def test_no_measurement_no_picture_of_it(make_row, tmp_path):
    from stanza_sim.report.pictures.folder_pictures import _drawings
    from stanza_sim.report.saved import read_folder

    row = make_row(hardware=load_cluster("star", nodes=2))
    bare = replace(row.prediction, timeline=replace(row.prediction.timeline, spans=()))
    write_result(Result(experiment="x", rows=(row,)), tmp_path / "out")
    assert [one.name for one in _drawings(read_folder(tmp_path / "out"))] == ["speed-ups", "breakdown", "timeline-net"]
    write_result(Result(experiment="x", rows=(replace(row, prediction=bare),)), tmp_path / "out")
    assert [one.name for one in _drawings(read_folder(tmp_path / "out"))] == ["speed-ups"]
