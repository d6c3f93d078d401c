"""Sweeps end to end: what is computed, the file, crossovers, and workers."""

import csv
import importlib
import json
import pickle
import sys
from dataclasses import replace
from itertools import pairwise

import pytest

from stanza_sim.base import config
from stanza_sim.base.errors import InputError
from stanza_sim.experiment.file import load_experiment
from stanza_sim.experiment.rows import cluster_of, plans_of
from stanza_sim.experiment.run import run_experiment
from stanza_sim.experiment.scenario import Conditions
from stanza_sim.simulate.residual import Corner, Spread, tied
from stanza_sim.studies.sweep.crossover import Ask, bisections, in_step, ranges
from stanza_sim.studies.sweep.points import Ready, Request, SweepRow, best_of, predicted, ready
from stanza_sim.studies.sweep.report import in_words, sweep_json
from stanza_sim.studies.sweep.session import Sweep
from stanza_sim.studies.sweep.vary import Axis

RATES = "network.rate=1Gbps,10Gbps,100Gbps"


def sweep_result(path, *vary, jobs=1, **more):
    return Sweep(str(path), vary=vary, **more).run(jobs=jobs)


def test_every_point_has_the_rows_that_run_predicts(small, tmp_path):
    out = tmp_path / "sweep.csv"
    found = sweep_result(small, RATES, "nodes=2,4", output=out)
    assert (len(found.points), found.computed) == (6, 6)
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    one = next(r for r in rows if (r["network.rate"], r["nodes"], r["label"]) == ("10Gbps", "4", "stanza"))
    expected = run_experiment(str(small), overrides=["network.rate=10Gbps"])
    assert expected is not None
    prediction = expected.rows[1].prediction
    assert float(one["iteration_s"]) == prediction.iteration_s
    assert float(one["samples_per_s"]) == prediction.samples_per_s
    assert int(one["sent_bytes"]) == sum(
        n * prediction.timeline.multiplicity.get(r, 1) for r, n in prediction.sent_bytes.items()
    )
    assert one["schedule_hash"] == expected.rows[1].schedule.digest()
    assert one["feasible"] == "yes"


def test_a_sweep_goes_on_with_its_file(small, tmp_path):
    out, whole = tmp_path / "sweep.csv", tmp_path / "whole.csv"
    sweep_result(small, RATES, output=whole)
    sweep_result(small, "network.rate=10Gbps", output=out)
    text = out.read_text()
    found = sweep_result(small, RATES, output=out)
    assert found.computed == 2
    assert out.read_text() == whole.read_text()
    assert sweep_result(small, RATES, output=out).computed == 0
    assert out.read_text() == whole.read_text()
    # cut short within a line, and within a point
    for cut in (len(text) - 30, text.rfind("\n", 0, -1) + 1):
        out.write_text(text[:cut])
        assert sweep_result(small, RATES, output=out).computed == 3
        assert out.read_text() == whole.read_text()


def test_an_interrupted_sweep_keeps_its_points(small, tmp_path):
    out = tmp_path / "sweep.csv"
    sweep = Sweep(str(small), vary=[RATES], output=out)

    def tell(what, done, total):
        if (what, done) == ("points", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep.run(jobs=1, tell=tell)
    assert len(out.read_text().splitlines()) == 1 + 4
    assert sweep_result(small, RATES, output=out).computed == 1


@pytest.mark.parametrize("contents", ["hello\n", "a,b\n1,2\n", "sweep,x\nabc,1\n", "\xff", "hello"])
def test_foreign_files_are_refused(small, tmp_path, contents):
    out = tmp_path / "sweep.csv"
    out.write_bytes(contents.encode("latin-1"))
    with pytest.raises(InputError, match=r"is not a table|is of a sweep that varied other keys"):
        Sweep(str(small), vary=[RATES], output=out)
    assert out.read_bytes() == contents.encode("latin-1")


def test_files_of_other_sweeps_are_refused(small, tmp_path):
    out = tmp_path / "sweep.csv"
    sweep_result(small, "nodes=2", output=out)
    for changed in ({"vary": ["seed=1"]}, {"vary": ["nodes=2"], "overrides": ["batch_per_worker=8"]}):
        with pytest.raises(InputError, match=r"of another sweep|varied other keys"):
            Sweep(str(small), output=out, **changed)
    small.write_text(small.read_text() + "description: changed\n")
    with pytest.raises(InputError, match="since it was begun, experiment small has changed"):
        Sweep(str(small), vary=["nodes=2"], output=out)


def test_a_sweep_does_not_go_on_where_a_file_changed_that_its_points_read(
    small, tmp_path, monkeypatch, network_profile
):
    """A varied topology, a profile, and a model by import path: each is named; what was not used is no matter."""
    star = tmp_path / "a.yaml"
    text = config.find("topologies", "star").read_text()
    star.write_text(text)
    out = tmp_path / "sweep.csv"
    arguments = {"vary": ["cluster=star,./a.yaml"], "profiles": [network_profile], "output": out}
    sweep_result(small, *arguments["vary"], profiles=[network_profile], output=out)
    assert Sweep(str(small), **arguments).table.lines
    written = out.read_text()
    star.write_text(text + "\n# changed\n")
    with pytest.raises(InputError, match=r"since it was begun, cluster \./a\.yaml has changed\n.*start anew"):
        Sweep(str(small), **arguments)
    star.write_text(text)
    network_profile.write_text(network_profile.read_text() + " ")
    with pytest.raises(InputError, match=r"profile network\.json has changed"):
        Sweep(str(small), **arguments)
    assert out.read_text() == written


def test_a_sweep_does_not_go_on_where_a_model_by_import_path_changed(small, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    factory = tmp_path / "swept_tiny.py"
    text = "from torch import nn\ndef tiny():\n    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))\n"
    factory.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    small.write_text(small.read_text().replace("model: alexnet", "model: 'swept_tiny:tiny', input_shape: [8]"))
    out = tmp_path / "sweep.csv"
    sweep_result(small, "nodes=2", output=out)
    assert sweep_result(small, "nodes=2", output=out).computed == 0
    factory.write_text(text.replace("8, 4", "8, 16"))
    sys.modules.pop("swept_tiny")
    importlib.invalidate_caches()
    with pytest.raises(InputError, match="since it was begun, model tiny has changed"):
        Sweep(str(small), vary=["nodes=2"], output=out)


def test_numbers_have_one_spelling_also_in_the_file(small, tmp_path):
    out = tmp_path / "sweep.csv"
    first = sweep_result(small, "nodes=0x4,1_0", output=out)
    assert first.points == (("4",), ("10",))
    again = sweep_result(small, "nodes=4,10", output=out)
    assert (again.computed, sweep_json(again)) == (0, sweep_json(first))


def test_what_goes_together_is_found_out_at_each_point(small):
    kinds, spreads = "simulation.jitter.kind=lognormal,uniform", "simulation.jitter.spread=1e-1,2"
    found = sweep_result(small, kinds, spreads, overrides=["simulation.repeats=1"])
    bad = {point for point in found.points if not all(line.feasible for line in found.table.lines[point])}
    assert bad == {("uniform", "2")}
    assert list(found.reasons.values()) == [1]
    assert "uniform jitter with a spread of 2; its spread is below 1" in next(iter(found.reasons))


def test_what_is_set_may_need_what_is_varied(small):
    found = sweep_result(
        small,
        "simulation.jitter.spread=0.1,0.2",
        "nodes=2",
        overrides=["simulation.jitter.kind=uniform", "simulation.repeats=1"],
    )
    assert [line.feasible for line in found.lines] == [True] * 4


def test_a_wrong_value_among_many_is_refused_soon(small, monkeypatch):
    tried = []

    def load(*args):
        tried.append(args)
        return load_experiment(*args)

    monkeypatch.setattr("stanza_sim.studies.sweep.session.load_experiment", load)
    with pytest.raises(InputError, match="no setting 'fc_worker'"):
        Sweep(str(small), vary=["strategies.1.settings.fc_worker=1,2", "strategies.0.settings.bucket=1MB..900MB:1MB"])
    assert len(tried) < 300


def test_lines_say_what_their_network_profile_does_not_fit(small, tmp_path, network_profile):
    out = tmp_path / "sweep.csv"
    first = sweep_result(small, "network.rate=200Mbps,10Gbps", profiles=[network_profile], output=out)
    busy, kind = first.warnings
    assert "busy machine" in busy
    assert "no messages from a NIC of 10 Gbps" in kind
    assert [kind in line.warnings for line in first.lines] == [False, False, True, True]
    assert all("network: calibrated with single messages" in line.cost_source for line in first.lines)
    assert sweep_result(small, "network.rate=200Mbps,10Gbps", profiles=[network_profile], output=out).warnings == [
        busy,
        kind,
    ]


def test_axes_without_anything_between_their_values_say_so(small):
    def reasons(*vary):
        return {(one.key, one.models): one.reason for one in sweep_result(small, *vary).unlooked}

    assert reasons("network.rate=1Gbps,10Gbps") == {}
    assert reasons("cluster=star,ec2-p3-10", "nodes=2,4") == {("cluster", ()): "star is no number"}
    assert reasons("nodes=4") == {("nodes", ()): "it has one value only"}
    renamed = {("models.0.scale.bytes", ()): "it gives the model another name at each value"}
    assert reasons("models.0.scale.bytes=1e-2,1") == renamed
    none = sweep_result(small, "nodes=1,2", overrides=["strategies=[{strategy: stanza, settings: {fc_workers: 1}}]"])
    assert [one.reason for one in none.unlooked] == ["no rows can be built at two of its values"]


def test_what_cannot_be_built_at_a_point_gets_a_line(small, tmp_path):
    out = tmp_path / "sweep.csv"
    found = sweep_result(small, "nodes=1,4", output=out)
    bad, good = found.table.lines[("1",)], found.table.lines[("4",)]
    assert [line.feasible for line in bad] == [True, False]
    assert "1 FC workers of 1 nodes" in bad[1].reason
    assert all(line.feasible for line in good)
    assert ",no," in out.read_text()
    assert sweep_result(small, "nodes=1,4", output=out).computed == 0


@pytest.mark.processes
def test_two_processes_find_what_one_finds(small):
    assert sweep_json(sweep_result(small, RATES, jobs=2)) == sweep_json(sweep_result(small, RATES, jobs=1))


def test_a_point_can_be_sent_to_another_machine(small):
    request = Request(experiment=str(small), overrides=("nodes=3",))
    point = ready(request)
    assert isinstance(point, Ready)
    small.unlink()
    assert [line.nodes for line in predicted(pickle.loads(pickle.dumps(point)))] == [3, 3]


def test_a_crossover_is_where_the_winner_changes(small):
    found = sweep_result(small, "network.rate=1Gbps,400Gbps")
    assert found.crossovers
    for one in found.crossovers:
        for rate, winner in ((one.wins_to, one.below), (one.wins_from, one.above)):
            loaded = load_experiment(str(small), [f"network.rate={rate * 8e-9:.9f}Gbps"])
            cluster = cluster_of(loaded)
            conditions = Conditions(loaded=loaded, cluster=cluster)
            rates = {
                p.strategy.title: conditions.scenario(p).predict().samples_per_s for p in plans_of(loaded, cluster)
            }
            assert max(rates, key=lambda title: rates[title]) == winner
        assert one.wins_from / one.wins_to < 1.006
        assert one.low < one.wins_to
        assert one.high > one.wins_from
        assert f"{one.below} wins up to" in in_words(one, found.axes)


def test_beyond_its_range_a_crossover_is_sure(small):
    """With costs off in opposite directions the winner changes within the range, and nowhere else."""
    found = sweep_result(small, "network.rate=1Gbps,4000Gbps")
    (one,) = found.crossovers
    assert not one.open_low
    assert not one.open_high
    for rate, sure in ((one.low, one.below), (one.wins_to, ""), (one.wins_from, ""), (one.high, one.above)):
        loaded = load_experiment(str(small), [f"network.rate={rate * 8e-9:.9f}Gbps"])
        cluster = cluster_of(loaded)
        conditions = Conditions(loaded=loaded, cluster=cluster)
        plans = plans_of(loaded, cluster)
        spreads = [conditions.scenario(plan).predict_with_spread().spread for plan in plans]
        assert tied(*spreads) is not bool(sure)
        if sure:
            best = max(zip(spreads, plans, strict=True), key=lambda pair: pair[0].predicted)
            assert best[1].strategy.title == sure
    data = json.loads(sweep_json(found))["crossovers"][0]
    assert (data["low"], data["high"]) == (one.low, one.high)
    assert data["low"] < data["wins_to"] < data["wins_from"] < data["high"]
    assert "they are tied from" in in_words(one, found.axes)


def test_the_range_of_exact_costs_is_where_little_is_between_rows(small):
    exact = ["uncertainty.computation=0", "uncertainty.network=0"]
    (sure,) = sweep_result(small, "network.rate=1Gbps,400Gbps", overrides=exact).crossovers
    (unsure,) = sweep_result(small, "network.rate=1Gbps,400Gbps").crossovers
    assert (sure.wins_to, sure.wins_from) == (unsure.wins_to, unsure.wins_from)
    assert unsure.low < sure.low < sure.wins_to
    assert sure.wins_from < sure.high < unsure.high


def test_crossovers_have_a_file_beside_that_of_the_points(small, tmp_path):
    found = sweep_result(small, "network.rate=1Gbps,400Gbps", "batch_per_worker=16,32", output=tmp_path / "s.csv")
    with (tmp_path / "s-crossovers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(found.crossovers) > 0
    for row, one in zip(rows, found.crossovers, strict=True):
        numbers = [float(row[key]) for key in ("low", "wins_to", "wins_from", "high")]
        assert numbers == [one.low, one.wins_to, one.wins_from, one.high]
        assert (row["below"], row["above"]) == (one.below, one.above)
        key, unit, other = (
            ("network.rate", "B/s", "batch_per_worker")
            if one.place.axis == 0
            else ("batch_per_worker", "", "network.rate")
        )
        assert (row["key"], row["unit"], row["at"].partition("=")[0]) == (key, unit, other)


def test_the_best_rows_of_a_point_say_how_sure_they_are(small, tmp_path):
    found = sweep_result(small, RATES, output=tmp_path / "sweep.csv")
    with (tmp_path / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for point in found.points:
        best = best_of(found.table.lines[point], "alexnet")
        assert best.samples_per_s_low < best.samples_per_s < best.samples_per_s_high
        assert best.basis.startswith("network: as the topology states, taken to be within 15%; computation: fitted, ")
    assert [row["samples_per_s_low"] for row in rows] == [
        "" if line.samples_per_s_low is None else str(line.samples_per_s_low) for line in found.lines
    ]
    for point in json.loads(sweep_json(found))["points"]:
        assert isinstance(point["tied_with"], list)


def line(label: str, rate: float) -> SweepRow:
    return SweepRow(model="m", label=label, strategy=label, samples_per_s=rate, sent_bytes=0)


def driven(axis: Axis, speed) -> list:
    """Crossovers of rows whose samples/s at x are `speed(x)`, a mapping; nothing is simulated."""

    def lines(x: float, ask: Ask | None = None) -> tuple[SweepRow, ...]:
        return tuple(
            line(label, rate)
            for label, rate in speed(x).items()
            if ask is None or ask.labels is None or label in ask.labels
        )

    known = {(value,): lines(float(value)) for value in axis.values}
    driver = in_step(bisections([axis], known))
    try:
        asked = next(driver)
        while True:
            asked = driver.send([lines(float(ask.point[0]), ask) for ask in asked])
    except StopIteration as stop:
        return stop.value


def test_a_bisection_that_breaks_off_says_between_what():
    """Nothing can be built between 2 and 50, so the place is known no better than that."""
    axis = Axis(key="x", values=("1.0", "100.0"))
    (one,) = driven(axis, lambda x: {} if 2 < x < 50 else {"a": 30.0, "b": x})
    assert (one.low, one.high) == (1.0, 100.0)
    assert one.reason == "no row can be built at 10"
    assert in_words(one, (axis,)) == "m: a gives way to b somewhere between 1 and 100 (x); no row can be built at 10"


def test_a_place_next_to_zero_is_not_looked_for_without_end():
    (one,) = driven(Axis(key="x", values=("0.0", "1.0")), lambda x: {"a": 1.0, "b": 2.0 if x > 0 else 0.0})
    assert one.low == 0 < one.high < 1e-10
    assert "in 40 steps" in one.reason


def test_where_neither_end_can_be_built_a_third_row_may():
    def speed(x):
        return {"c": 20.0} if 2 < x < 50 else {"a": 30.0, "b": x}

    found = driven(Axis(key="x", values=("1.0", "100.0")), speed)
    assert [(one.below, one.above) for one in found] == [("a", "c"), ("c", "b")]
    assert found[0].low <= 2 <= found[0].high
    assert found[1].low <= 50 <= found[1].high
    assert not any(one.reason for one in found)


def test_bisection_finds_a_closed_form():
    found = driven(Axis(key="x", values=("1.0", "100.0")), lambda x: {"a": 100.0, "b": 3.0 * x})
    (one,) = found
    assert one.low <= 100 / 3 <= one.high
    assert (one.below, one.above) == ("a", "b")


def test_a_third_row_that_wins_in_between_is_found():
    found = driven(
        Axis(key="x", values=("1.0", "100.0")), lambda x: {"a": 10.0, "b": x, "c": 12.0 + 0.01 * x if x > 2 else 0.0}
    )
    assert [(one.below, one.above) for one in found] == [("a", "c"), ("c", "b")]
    assert found[1].low <= 12 / 0.99 <= found[1].high
    assert all(a.high <= b.low * 1.0001 for a, b in pairwise(found))


def test_whole_numbers_are_found_exactly():
    (one,) = driven(Axis(key="nodes", values=("2", "64")), lambda x: {"a": 17.5, "b": x})
    assert (one.low, one.high) == (17, 18)


def ranged(axis: Axis, speed, share: float) -> list:
    """As `driven`, with ranges: what row "b" sends may take up to 1 + `share` times as long, or as short."""

    def at(text: str, off: float) -> dict[str, float]:
        return {label: rate * (off if label == "b" else 1.0) for label, rate in speed(float(text)).items()}

    def answer(ask: Ask) -> tuple[SweepRow, ...]:
        assert ask.off
        text = ask.point[0]
        ends = {Corner.COMPUTATION: 1 + share, Corner.NETWORK: 1 / (1 + share)}
        corners = {corner: at(text, off) for corner, off in ends.items()}
        return tuple(
            replace(line(label, rate), spread=Spread(predicted=rate, corners={c: r[label] for c, r in corners.items()}))
            for label, rate in at(text, 1.0).items()
        )

    driver = in_step(ranges([axis], driven(axis, speed)))
    try:
        asked = next(driver)
        while True:
            asked = driver.send([answer(ask) for ask in asked])
    except StopIteration as stop:
        return stop.value


def test_a_range_ends_where_one_row_surely_wins():
    """b = x beats a = 10 from x = 10 on; up to 1.5 times as slow or as fast, and 2% more, from 15.3 and below 6.5."""
    (one,) = ranged(Axis(key="x", values=("1.0", "100.0")), lambda x: {"a": 10.0, "b": x}, 0.5)
    assert one.wins_to <= 10 <= one.wins_from
    low, high = 10 / 1.5 / 1.02, 10 * 1.5 * 1.02
    assert low * 0.95 <= one.low <= low
    assert high <= one.high <= high * 1.053
    assert not one.open_low
    assert not one.open_high


def test_a_range_ends_with_its_axis():
    (one,) = ranged(Axis(key="x", values=("8.0", "9.0", "11.0")), lambda x: {"a": 10.0, "b": x}, 0.5)
    assert (one.low, one.high, one.open_low, one.open_high) == (8.0, 11.0, True, True)
    words = in_words(one, (Axis(key="x", values=("8.0", "11.0")),))
    assert words.endswith("they are tied from 8 or less to 11 or more")


def test_the_range_of_a_count_is_of_counts():
    (one,) = ranged(Axis(key="nodes", values=("2", "64")), lambda x: {"a": 17.5, "b": x}, 0.1)
    assert (one.wins_to, one.wins_from) == (17, 18)
    assert (one.low, one.high) == (15, 20)


def test_points_without_a_feasible_row_are_passed_over():
    assert driven(Axis(key="x", values=("1.0", "2.0")), lambda x: {}) == []


@pytest.mark.processes  # dask asks `uname` for the processor
def test_a_dask_cluster(small, tmp_path):
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None, worker_dashboard_address=None
    )
    try:
        found = Sweep(str(small), vary=[RATES]).run(jobs=1, scheduler=cluster.scheduler_address)
    finally:
        cluster.close()
    assert sweep_json(found) == sweep_json(sweep_result(small, RATES))
