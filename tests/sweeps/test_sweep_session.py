"""Sweeps end to end: what is computed, the file, crossovers, and workers."""

import csv
import pickle
from itertools import pairwise

import pytest

from stanza_sim.errors import InputError
from stanza_sim.experiment import load_experiment
from stanza_sim.plan import cluster_of, plans_of
from stanza_sim.run import predict, run_experiment
from stanza_sim.sweeps.crossover import Ask, bisections, in_step
from stanza_sim.sweeps.points import Line, Ready, Request, predicted, ready
from stanza_sim.sweeps.report import in_words, swept_json
from stanza_sim.sweeps.session import Sweep
from stanza_sim.sweeps.vary import Axis

RATES = "network.rate=1Gbps,10Gbps,100Gbps"


def swept(path, *vary, jobs=1, **more):
    return Sweep(str(path), vary=vary, **more).run(jobs=jobs)


def test_every_point_has_the_rows_that_run_predicts(small, tmp_path):
    out = tmp_path / "sweep.csv"
    found = swept(small, RATES, "nodes=2,4", output=out)
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
    swept(small, RATES, output=whole)
    swept(small, "network.rate=10Gbps", output=out)
    text = out.read_text()
    found = swept(small, RATES, output=out)
    assert found.computed == 2
    assert out.read_text() == whole.read_text()
    assert swept(small, RATES, output=out).computed == 0
    assert out.read_text() == whole.read_text()
    # cut short within a line, and within a point
    for cut in (len(text) - 30, text.rfind("\n", 0, -1) + 1):
        out.write_text(text[:cut])
        assert swept(small, RATES, output=out).computed == 3
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
    assert swept(small, RATES, output=out).computed == 1


@pytest.mark.parametrize("contents", ["hello\n", "a,b\n1,2\n", "sweep,x\nabc,1\n", "\xff", "hello"])
def test_foreign_files_are_refused(small, tmp_path, contents):
    out = tmp_path / "sweep.csv"
    out.write_bytes(contents.encode("latin-1"))
    with pytest.raises(InputError, match=r"is not a table|is of a sweep that varied other keys"):
        Sweep(str(small), vary=[RATES], output=out)
    assert out.read_bytes() == contents.encode("latin-1")


def test_files_of_other_sweeps_are_refused(small, tmp_path):
    out = tmp_path / "sweep.csv"
    swept(small, "nodes=2", output=out)
    for changed in ({"vary": ["seed=1"]}, {"vary": ["nodes=2"], "overrides": ["batch_per_worker=8"]}):
        with pytest.raises(InputError, match=r"of another sweep|varied other keys"):
            Sweep(str(small), output=out, **changed)
    small.write_text(small.read_text() + "description: changed\n")
    with pytest.raises(InputError, match="of another sweep"):
        Sweep(str(small), vary=["nodes=2"], output=out)


def test_what_cannot_be_built_at_a_point_gets_a_line(small, tmp_path):
    out = tmp_path / "sweep.csv"
    found = swept(small, "nodes=1,4", output=out)
    bad, good = found.table.lines[("1",)], found.table.lines[("4",)]
    assert [line.feasible for line in bad] == [True, False]
    assert "1 FC workers of 1 nodes" in bad[1].reason
    assert all(line.feasible for line in good)
    assert ",no," in out.read_text()
    assert swept(small, "nodes=1,4", output=out).computed == 0


def test_two_processes_find_what_one_finds(small):
    assert swept_json(swept(small, RATES, jobs=2)) == swept_json(swept(small, RATES, jobs=1))


def test_a_point_can_be_sent_to_another_machine(small):
    request = Request(experiment=str(small), overrides=("nodes=3",))
    point = ready(request)
    assert isinstance(point, Ready)
    small.unlink()
    assert [line.nodes for line in predicted(pickle.loads(pickle.dumps(point)))] == [3, 3]


def test_a_crossover_is_where_the_winner_changes(small):
    found = swept(small, "network.rate=1Gbps,400Gbps")
    assert found.crossovers
    for one in found.crossovers:
        for rate, winner in ((one.low, one.below), (one.high, one.above)):
            loaded = load_experiment(str(small), [f"network.rate={rate * 8e-9:.9f}Gbps"])
            cluster = cluster_of(loaded)
            rates = {
                p.strategy.title: predict(p, cluster, loaded, None).samples_per_s for p in plans_of(loaded, cluster)
            }
            assert max(rates, key=lambda title: rates[title]) == winner
        assert one.high / one.low < 1.006
        assert f"{one.below} wins up to" in in_words(one, found.axes)


def line(label: str, rate: float) -> Line:
    return Line(model="m", label=label, strategy=label, samples_per_s=rate, sent_bytes=0)


def driven(axis: Axis, speed) -> list:
    """Crossovers of rows whose samples/s at x are `speed(x)`, a mapping; nothing is simulated."""

    def lines(x: float, ask: Ask | None = None) -> tuple[Line, ...]:
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


def test_points_without_a_feasible_row_are_passed_over():
    assert driven(Axis(key="x", values=("1.0", "2.0")), lambda x: {}) == []


def test_a_dask_cluster(small, tmp_path):
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None, worker_dashboard_address=None
    )
    try:
        found = Sweep(str(small), vary=[RATES]).run(jobs=1, scheduler=cluster.scheduler_address)
    finally:
        cluster.close()
    assert swept_json(found) == swept_json(swept(small, RATES))
