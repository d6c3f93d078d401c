"""What is public: names, reprs, tables, documents and errors."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import stanza_sim as ss
from stanza_sim.api.measuring import knowing
from stanza_sim.execute.rank.job import ComputeMode
from stanza_sim.execute.rank.job import Measurement as Measured

ROOT = Path(__file__).resolve().parents[2]
CLUSTER, MODEL = ss.load_cluster("star", nodes=4), ss.load_model("vgg16")
SCHEDULE = ss.build_schedule("all_reduce", MODEL, CLUSTER, batch_per_worker=32, label="a label that is " + "long " * 8)
PREDICTION = ss.predict(SCHEDULE, CLUSTER)
HOSTS = [
    {
        "name": "node",
        "count": 4,
        "cores": 8,
        "devices": ["V100"],
        "nic": {"rate": "10.5Gbps", "latency": "25us", "overhead": "15us", "efficiency": 0.99},
    }
]


def measurement() -> ss.Measurement:
    """A made-up measurement, a tenth slower than predicted."""
    found = Measured(
        timeline=PREDICTION.timeline,
        iteration_s=PREDICTION.iteration_s / 0.9,
        iteration_s_min=0.7,
        iteration_s_max=0.9,
        samples_per_s=0.9 * PREDICTION.samples_per_s,
        losses=(2.3, 2.2),
        scores=(),
        sent_bytes=(1,) * 4,
        received_bytes=(1,) * 4,
        hosts=("here",) * 4,
        compute=ComputeMode.REAL,
    )
    return knowing(found, SCHEDULE, CLUSTER)


def published() -> ss.PublishedResult:
    from stanza_sim.studies.validate.published.report import PublishedReport
    from stanza_sim.studies.validate.published.scores import Outcome, RowKind
    from stanza_sim.studies.validate.published.suite import load_published

    one = Outcome(id="1", kind=RowKind.NCCL, label="x" * 300, predicted=1.0, measured=1.0, scored=True)
    suite = load_published("published").value
    return ss.PublishedResult(report=PublishedReport(suite=suite, outcomes=(one,), own=frozenset(), seconds=0.0))


@pytest.fixture(scope="module")
def things() -> dict[str, object]:
    """One of every public type."""
    flow = {"id": "f", "src": "a", "dst": "b", "bytes": 1e6}
    case = {
        "hosts": ["a", "b"],
        "links": [{"name": "l" * 300, "bandwidth": 1e9}],
        "routes": [{"src": "a", "dst": "b", "links": ["l" * 300]}],
        "flows": [flow],
    }
    experiment = ss.load_experiment("ec2_v100", set={"models": ["alexnet"]}, nodes=4)
    result = experiment.run()
    path = PREDICTION.critical_path()
    found = [
        CLUSTER,
        MODEL,
        SCHEDULE,
        SCHEDULE.bare(),
        PREDICTION,
        PREDICTION.what_if(network=3.0, nic={"node-1": 2.0}, link={"node-2 receive side": 3.0}, compute=1.5),
        PREDICTION.timeline,
        PREDICTION.timeline.spans[0],
        path,
        path.steps[0],
        PREDICTION.explain(),
        ss.compare(PREDICTION, measurement()),
        measurement(),
        ss.load_device("V100"),
        experiment,
        result,
        result[0],
        ss.simulate_flows(case),
        ss.plan(MODEL, CLUSTER, 32, max_evaluations=1),
        ss.sweep("ec2_v100", vary={"nodes": [2, 4]}, set={"models": ["alexnet"]}),
        ss.validate(only=["star-2-500/vgg16-big/ring"], dry_run=True),
        published(),
    ]
    return {type(thing).__name__: thing for thing in found}


def test_reprs_are_short(things: dict[str, object], network_profile: Path) -> None:
    from stanza_sim.profiles.network import read_network

    every = things | {"NetworkProfile": read_network(network_profile)}
    types = {n for n in ss.__all__ if isinstance(t := getattr(ss, n), type) and not issubclass(t, Exception)}
    assert types <= set(every)
    for thing in every.values():
        assert len(repr(thing)) < 200, repr(thing)
        assert repr(thing).isprintable()


def test_results_are_tables(things: dict[str, object]) -> None:
    pandas = pytest.importorskip("pandas")
    tables = [thing for thing in things.values() if hasattr(thing, "to_frame")]
    assert len(tables) >= 8
    for table in tables:
        frame = table.to_frame()
        assert isinstance(frame, pandas.DataFrame)
        assert len(frame)
        html = table._repr_html_()
        assert html.count("<th>") == len(frame.columns)
        assert html.startswith("<table>") and html.endswith("</table>")


def test_a_frame_needs_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ss.InputError) as error:
        PREDICTION.timeline.to_frame()
    assert error.value.hint == "pip install 'stanza-sim[frames]'"


def test_html_is_escaped() -> None:
    schedule = ss.build_schedule("local", MODEL, CLUSTER, batch_per_worker=1, label="<b>&")
    assert "&lt;b&gt;&amp;" in ss.compare(ss.predict(schedule, CLUSTER))._repr_html_()


# ---- names -----------------------------------------------------------------------------------------------------------


def test_no_public_name_is_a_room() -> None:
    rooms = {module.name for module in pkgutil.iter_modules(ss.__path__)}
    assert not rooms & set(ss.__all__)


def test_every_public_name_is_there_and_typed() -> None:
    assert sorted(ss.__all__) == list(ss.__all__)
    for name in ss.__all__:
        thing = getattr(ss, name)
        assert name.startswith("__") or thing.__doc__
        assert name in dir(ss)
    with pytest.raises(AttributeError):
        _ = ss.nothing  # type: ignore[attr-defined]


def test_type_checkers_see_what_is_imported_lazily() -> None:
    text = (ROOT / "stanza_sim" / "__init__.py").read_text().partition("if TYPE_CHECKING:")[2].partition("_HOMES")[0]
    for home, names in ss._HOMES.items():
        module = importlib.import_module(f"stanza_sim.{home}")
        assert f"from stanza_sim.{home} import {', '.join(names)}" in " ".join(text.split())
        assert all(hasattr(module, name) for name in names)


def test_every_public_name_is_documented() -> None:
    text = (ROOT / "docs" / "reference" / "python.md").read_text()
    for name in ss.__all__:
        assert name in text, name


@pytest.mark.processes
def test_importing_is_quick() -> None:
    code = (
        "import sys, stanza_sim; "
        "print([m for m in ('torch', 'pandas', 'numpy', 'pydantic', 'simpy', 'numba', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.processes
def test_nothing_that_predicts_imports_torch_or_pandas() -> None:
    code = (
        "import sys, stanza_sim as ss; [getattr(ss, name) for name in ss.__all__]; "
        "print([m for m in ('torch', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- comparing -------------------------------------------------------------------------------------------------------


def test_a_prediction_beside_its_measurement_has_an_error() -> None:
    table = ss.compare(PREDICTION, measurement())
    assert table.errors_pct == pytest.approx((-10, -10))
    assert "-10.0" in str(table)
    assert ss.compare(PREDICTION, PREDICTION).errors_pct == (None, None)
    assert [one.label for one in table] == [PREDICTION.label] * 2


def test_a_prediction_says_how_sure_it_is() -> None:
    low, high = PREDICTION.samples_per_s_low, PREDICTION.samples_per_s_high
    assert low is not None
    assert high is not None
    assert low < PREDICTION.samples_per_s < high
    exact = ss.predict(SCHEDULE, CLUSTER, uncertainty={"network": 0, "computation": 0})
    assert exact.samples_per_s_low == exact.samples_per_s == exact.samples_per_s_high
    assert exact.basis == "network: exact, as stated; computation: exact, as stated"
    frame = ss.compare(PREDICTION, exact).to_frame()
    assert list(frame["samples_per_s_low"]) == [low, exact.samples_per_s]
    assert list(frame["basis"]) == [PREDICTION.basis, exact.basis]


def test_predictions_that_share_their_costs_are_compared_under_the_same_ones() -> None:
    """5% more of the same network is more, whatever it is; 5% more of another may be less."""
    faster = PREDICTION.what_if(network=1.05)
    assert faster.samples_per_s_low < PREDICTION.samples_per_s_high
    assert ss.compare(PREDICTION, faster).tied_with == ((), ())
    other = ss.load_cluster({"name": "other", "hosts": HOSTS, "switches": [{"name": "switch"}]})
    there = ss.predict(ss.build_schedule("all_reduce", MODEL, other, batch_per_worker=32), other)
    assert there.samples_per_s > 1.03 * PREDICTION.samples_per_s
    table = ss.compare(PREDICTION, there)
    assert table.tied_with == ((there.label,), (PREDICTION.label,))
    assert "tied with" in str(table)
    assert max(map(len, str(table).splitlines())) <= 80


# ---- what if ---------------------------------------------------------------------------------------------------------


def test_what_if_nothing_changes() -> None:
    assert PREDICTION.what_if().iteration_s == PREDICTION.iteration_s


def test_what_if_all_is_as_if_loaded_so() -> None:
    rate = ss.load_cluster("star", nodes=4, rate="20Gbps")
    expected = ss.predict(ss.build_schedule("all_reduce", MODEL, rate, batch_per_worker=32), rate)
    assert PREDICTION.what_if(network=2.0).iteration_s == pytest.approx(expected.iteration_s, rel=1e-12)
    nics = {f"node-{i}": 2.0 for i in range(4)}
    assert PREDICTION.what_if(nic=nics).iteration_s == pytest.approx(expected.iteration_s, rel=1e-9)


def test_what_if_computing_is_faster() -> None:
    alone = ss.predict(ss.build_schedule("local", MODEL, CLUSTER, batch_per_worker=32), CLUSTER)
    assert alone.what_if(compute=2.0).iteration_s == pytest.approx(alone.iteration_s / 2)
    assert alone.what_if(device={"V100": 4.0}).iteration_s == pytest.approx(alone.iteration_s / 4)
    one = PREDICTION.what_if(rank={1: 0.5})
    assert one.iteration_s > PREDICTION.iteration_s
    assert one.what_if(rank={1: 2.0}).iteration_s == pytest.approx(PREDICTION.iteration_s)


def test_given_costs_are_faster_too() -> None:
    from stanza_sim.simulate.costs import costs_for

    own = costs_for(CLUSTER, MODEL)
    given = ss.predict(SCHEDULE, CLUSTER, costs=own)
    assert given.iteration_s == PREDICTION.iteration_s
    for change in ({"compute": 3.0}, {"rank": {2: 0.5}}):
        assert given.what_if(**change).iteration_s == pytest.approx(PREDICTION.what_if(**change).iteration_s)


def test_predictions_depend_on_the_optimiser() -> None:
    """By the bytes that an update passes over: 3, 5 and 7 times the parameters. A known throughput includes it."""
    of = {"no momentum": {"momentum": 0.0}, "sgd": "sgd", "adam": "adam", "adamw": {"kind": "adamw", "clip_norm": 1.0}}
    schedules = {
        name: ss.build_schedule("local", MODEL, CLUSTER, batch_per_worker=32, optimizer=o) for name, o in of.items()
    }
    none, sgd, adam, clipped = (ss.predict(schedule, CLUSTER).iteration_s for schedule in schedules.values())
    once_s = MODEL.nbytes / ss.load_device("V100").memory_bandwidth_Bps
    assert (sgd - none, adam - sgd) == pytest.approx((2 * once_s, 2 * once_s), rel=1e-6)
    launches = ss.load_device("V100").launch_overhead_s * sum(bool(block.numel) for block in MODEL.blocks)
    assert clipped - adam == pytest.approx(once_s + launches, rel=1e-6)
    known = ss.load_model("alexnet", throughput={"V100": {"samples_per_s": 500, "batch": 32}})
    for o in of.values():
        schedule = ss.build_schedule("local", known, CLUSTER, batch_per_worker=32, optimizer=o)
        if not schedule.optimizer or schedule.optimizer.clip_norm is None:
            assert ss.predict(schedule, CLUSTER).samples_per_s == pytest.approx(500)


def test_a_schedule_knows_its_optimiser() -> None:
    schedule = ss.build_schedule("all_reduce", MODEL, CLUSTER, batch_per_worker=32, optimizer={"kind": "adamw"})
    assert (schedule.moments, schedule.text().splitlines()[0].split()[-1]) == (2, "moments=2")
    with pytest.raises(ss.InputError, match="keeps two vectors as long as the parameters, sgd keeps one"):
        ss.measure(schedule, CLUSTER, optimizer={"lr": 0.1}, model=MODEL)
    with pytest.raises(ss.InputError, match=r"optimizer\.no_decay: no parameter of vgg16 is called 'biases'"):
        given = {"weight_decay": 0.1, "no_decay": ["biases"]}
        ss.build_schedule("local", MODEL, CLUSTER, batch_per_worker=32, optimizer=given)


# ---- the same as the commands ----------------------------------------------------------------------------------------


def test_experiments_run_as_the_command_does(things: dict[str, object]) -> None:
    from stanza_sim.experiment.run import run_experiment
    from stanza_sim.report.result import result_json

    result = things["ExperimentResult"]
    assert isinstance(result, ss.ExperimentResult)
    same = run_experiment("ec2_v100", overrides=["models=[alexnet]", "nodes=4"])
    assert same is not None
    assert result.to_json() == result_json(same)
    row = result[0]
    assert row.prediction.what_if(network=2.0).iteration_s < row.prediction.iteration_s
    again = ss.predict(row.schedule, ss.load_cluster("ec2-p3-10", nodes=4))
    assert again.iteration_s == row.prediction.iteration_s


def test_mappings_stand_for_files(tmp_path: Path) -> None:
    given = {"name": "mine", "cluster": "star", "models": ["alexnet"], "strategies": ["local", "all_reduce"]}
    experiment = ss.load_experiment(given, nodes=2)
    assert [row.label for row in experiment.run()] == ["local", "all_reduce"]
    assert [schedule.title for schedule in experiment.schedules()] == ["local", "all_reduce"]
    result = experiment.run()
    result.save(tmp_path / "out")
    assert (tmp_path / "out" / "result.json").read_text() == result.to_json()


def test_a_plan_is_that_of_the_command() -> None:
    given = {"name": "mine", "cluster": "star", "nodes": 2, "models": ["alexnet"], "strategies": ["local"]}
    of_file = ss.plan(ss.load_experiment(given), max_evaluations=8)
    of_objects = ss.plan(ss.load_model("alexnet"), ss.load_cluster("star", nodes=2), 32, max_evaluations=8)
    assert of_objects.best.samples_per_s == of_file.best.samples_per_s
    why = [result.planned.answers[0].explanation for result in (of_file, of_objects)]
    assert why[0] is not None and why[1] is not None
    assert why[0].rate == why[1].rate


def test_engines_agree() -> None:
    plain, compiled = (ss.predict(SCHEDULE, CLUSTER, engine=engine) for engine in ("plain", "compiled"))
    assert plain.iteration_s == pytest.approx(compiled.iteration_s, rel=1e-9)
    assert compiled.timeline.multiplicity == plain.timeline.multiplicity == {0: 4}
