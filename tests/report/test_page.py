"""The page: its data equals result.json, nothing is loaded from elsewhere, and texts of files stay texts."""

import hashlib
import json
import re
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from html import escape, unescape
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stanza_sim.cli.app import app
from stanza_sim.cluster import load_cluster
from stanza_sim.report.folder import check_writable, write_result
from stanza_sim.report.page import write_page
from stanza_sim.report.page.data import MOST_SPANS
from stanza_sim.report.result import Infeasible, Result
from stanza_sim.timeline.spans import Span, Timeline
from tests.report.browser import CHROMIUM, Browser

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def data_of(page: str) -> dict:
    """What the scripts of a page are given."""
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(found)


@pytest.fixture
def folder(make_row, tmp_path) -> Path:
    cluster = load_cluster("star", nodes=2)
    labels = ("all-reduce", EVIL, "third")
    rows = [make_row(label=label, measured=i != 2, hardware=cluster, notes=(label,)) for i, label in enumerate(labels)]
    infeasible = (Infeasible(label=EVIL, model="net", reason=EVIL),)
    settings = {"name": EVIL, "list": [1, {"a": 2}]}
    result = Result(experiment="x", rows=tuple(rows), infeasible=infeasible, settings=settings)
    write_result(result, tmp_path / "out")
    return tmp_path / "out"


def test_the_command_writes_one_file(folder):
    done = CliRunner().invoke(app, ["report", str(folder)])
    assert (done.exit_code, done.stdout) == (0, f"{folder / 'report.html'}\n")
    first = (folder / "report.html").read_bytes()
    check_writable(folder)  # the page is part of a result: it may be replaced
    write_page(folder)
    assert (folder / "report.html").read_bytes() == first
    assert CliRunner().invoke(app, ["report", str(folder / "spans")]).exit_code == 2


def test_its_data_and_its_tables_equal_result_json(folder):
    page = write_page(folder).read_text()
    runs = json.loads((folder / "result.json").read_text())["runs"]
    mine = data_of(page)["runs"]
    assert [run["label"] for run in mine] == [run["label"] for run in runs]
    for shown, run in zip(mine, runs, strict=True):
        assert shown["error_pct"] == run["error_pct"]
        for part in ("predicted", "measured"):
            assert shown[part] is None or all(run[part][key] == value for key, value in shown[part].items())
            assert (shown[part] is None) == (run[part] is None)
    cells = re.findall(r'data-key="([^"]*)" data-value="([^"]*)"', page)
    for key, of in (("iteration", "iteration_s"), ("samples/s", "samples_per_s"), ("bound", "bound_s")):
        assert [float(value) for name, value in cells if name == key] == [run["predicted"][of] for run in runs]
    medians = ["" if run["measured"] is None else repr(run["measured"]["iteration_s"]) for run in runs]
    assert [value for name, value in cells if name == "measured"] == medians


def test_bars_are_the_spans_of_the_folder(folder):
    (predicted, measured), _, (alone,) = (row["timelines"] for row in data_of(write_page(folder).read_text())["rows"])
    assert (predicted["which"], measured["which"], alone["which"]) == ("predicted", "measured", "predicted")
    assert (measured["length"], measured["iteration"], measured["shown"]) == (10_000_000, 10_000_000, "")
    bars = list(zip(*(predicted[key] for key in ("lane", "start", "end", "op")), strict=True))
    seconds = sum(b - a for _, a, b, op in bars if predicted["ops"][op] == "ar")
    assert seconds == pytest.approx(2 * 4e6)  # both ranks, nanoseconds
    for (lane, _, end, _), (next_lane, start, _, _) in pairwise(bars):
        assert next_lane > lane or start >= end - 2


def test_nothing_is_loaded_and_only_own_scripts_run(folder):
    page = write_page(folder).read_text()
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    hashes = [f"'sha256-{b64encode(hashlib.sha256(one.encode()).digest()).decode()}'" for one in scripts]
    assert f"script-src {' '.join(hashes)};" in policy
    assert len(re.findall(r"<script", page)) == 3  # and the data
    outside = page
    for script in re.findall(r"<script.*?</script>", page, re.DOTALL):
        outside = outside.replace(script, "")
    assert not re.search(r'(?:src|href)="(?!#|data:,")', outside)
    assert "url(" not in outside
    assert "@import" not in outside


def test_texts_of_files_stay_texts(folder):
    page = write_page(folder).read_text()
    assert EVIL not in page
    assert escape(EVIL) in page
    assert data_of(page)["runs"][1]["label"] == EVIL
    assert "alert(1)" in unescape(page)


def test_what_would_help_is_shown_where_it_was_looked_at(folder, tmp_path):
    path = folder / "result.json"
    result = json.loads(path.read_text())
    effects = [{"what": "compute", "times": None, "place": "", "iteration_s": 0.004}]
    result["runs"][0]["explanation"] = {"cause": "link", "place": EVIL, "path_s": {}, "effects": effects, "text": EVIL}
    path.write_text(json.dumps(result))
    page = write_page(folder).read_text()
    shown, *others = (run["explanation"] for run in data_of(page)["runs"])
    assert shown == {"text": EVIL, "effects": effects}
    assert others == [None, None]
    assert EVIL not in page


def many_spans(ranks: int, each: int) -> Timeline:
    """Four iterations of 1 s, in which each rank has `each` computations."""
    long = 1.0 / each
    spans = [
        Span(op="fwd", rank=r, iteration=i, lane="main", side="", start_s=i + k * long, end_s=i + (k + 0.8) * long)
        for r in range(ranks) for i in range(4) for k in range(each)
    ]  # fmt: skip
    ends = tuple(float(i + 1) for i in range(4))
    return Timeline(spans=spans, iteration_end_s=dict.fromkeys(range(ranks), ends))


@pytest.fixture
def crowded(make_row, tmp_path) -> Callable[[int, int], Path]:
    def make(ranks: int, each: int) -> Path:
        row = make_row()
        prediction = type(row.prediction)(
            **{f: getattr(row.prediction, f) for f in row.prediction.__slots__} | {"timeline": many_spans(ranks, each)}
        )
        write_result(Result(experiment="x", rows=(make_row(prediction=prediction),)), tmp_path / "many")
        return write_page(tmp_path / "many")

    return make


def test_of_too_many_bars_some_ranks_are_shown(crowded, monkeypatch):
    monkeypatch.setattr("stanza_sim.report.page.data.MOST_SPANS", 100)
    (shown,) = data_of(crowded(20, 10).read_text())["rows"][0]["timelines"]
    assert len(shown["op"]) == 100  # with the waiting in between
    assert shown["shown"] == "5 of 20 ranks"


# --- in a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture
def browser(tmp_path) -> Iterator[Browser]:
    made = Browser(tmp_path / "profile")
    yield made
    made.close()


@pytest.mark.processes
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_in_a_browser_without_a_network(folder, browser):
    path = write_page(folder)
    runs = json.loads((folder / "result.json").read_text())["runs"]
    for width in (1280, 400):
        for dark in (False, True):
            browser.open(path, width=width, dark=dark)
            assert browser.value("document.documentElement.scrollWidth") <= width
    values = "[...document.querySelectorAll('[data-key=iteration]')].map((cell) => Number(cell.dataset.value))"
    assert browser.value(values) == [run["predicted"]["iteration_s"] for run in runs]
    bars = "charts.get('chart-speed').getOption().series[0].data.map((one) => one.value)"
    rates = [run["predicted"]["samples_per_s"] for run in runs]
    assert browser.value(bars) == pytest.approx([rate / rates[0] for rate in rates])
    dots = "charts.get('chart-measured').getOption().series[0].data.map(([x, y]) => [x, y])"
    both = [[run[of]["iteration_s"] * 1e3 for of in ("measured", "predicted")] for run in runs if run["measured"]]
    assert browser.value(dots) == [pytest.approx(one) for one in both]
    # The keyboard zooms, moves and searches; a bar says what it is.
    browser.value("byId('chart-timeline').focus()")
    for key in ("+", "+", "ArrowRight"):
        browser.value(f"byId('chart-timeline').dispatchEvent(new KeyboardEvent('keydown', {{ key: '{key}' }}))")
    assert browser.value("timeline.window()") == pytest.approx([42.5, 67.5])
    browser.value("byId('search').value = 'bw'; byId('search').dispatchEvent(new Event('input'))")
    assert browser.value("byId('matches').textContent") == "2 matches"
    browser.value("timeline.goTo(1)")
    assert browser.value("byId('tip').textContent").startswith("bwd\nrank 0")
    browser.value("byId('row').value = 1; byId('row').dispatchEvent(new Event('change'))")
    assert browser.value("byId('row').selectedOptions[0].textContent") == EVIL
    assert set(browser.asked) == {path.as_uri()}
    assert browser.logged == []


ZOOM = """(async () => {
  const frame = () => new Promise(requestAnimationFrame), times = [];
  await frame();
  for (let i = 0; i < 60; i++) {
    const share = i / 59, span = 100 * Math.pow(0.03, share), begin = performance.now();
    timeline.zoom(40 * share, 40 * share + span);
    timeline.chart.getZr().flush();
    times.push(performance.now() - begin);
    await frame();
  }
  return times.sort((a, b) => a - b);
})()"""


@pytest.mark.alone
@pytest.mark.processes
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_ten_thousand_bars_zoom_smoothly(crowded, browser, record_property):
    path = crowded(25, 200)
    begin = time.monotonic()
    browser.open(path)
    took_s = time.monotonic() - begin
    heights = (
        "[...document.querySelectorAll('.chart canvas')].map((one) => one.height - one.closest('.chart').clientHeight)"
    )
    assert set(browser.value(heights)) == {0}
    assert 9_900 <= browser.value("timeline.data.op.length") <= MOST_SPANS
    times_ms = browser.value(ZOOM)
    told = {"load_s": took_s, "median_ms": times_ms[30], "p90_ms": times_ms[54], "most_ms": times_ms[-1]}
    record_property("frames", json.dumps(told))
    assert times_ms[30] < 100  # a slow machine without a GPU; see docs/how-to/report.md for what was measured
    assert browser.logged == []
