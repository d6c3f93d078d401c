"""What a suite file may say, its cases, and the suites that are shipped."""

import pytest

from stanza_sim.base import config
from stanza_sim.base.errors import InputError
from stanza_sim.studies.validate.live import CasePlans
from stanza_sim.studies.validate.published.suite import is_published
from stanza_sim.studies.validate.report import EXPOSED_SHARE
from stanza_sim.studies.validate.session import check_rules, header_of
from stanza_sim.studies.validate.statistics import mixture
from stanza_sim.studies.validate.suite import Timing, about_network, chosen, experiment_of, load_suite, timed_iterations


def test_cases_are_all_combinations_in_the_order_of_the_file(write_suite):
    loaded, cases = load_suite(str(write_suite()))
    assert loaded.value.name == "small"
    names = ["fast/alex/ps", "fast/alex/ring", "slow/alex/ps", "slow/alex/ring", "fast/vgg/ring"]
    assert [c.name for c in cases] == names
    assert [c.index for c in cases] == list(range(5))
    assert [c.name for c in chosen(cases, ["vgg", "slow"])] == names[2:]
    assert chosen(cases, []) == cases
    with pytest.raises(InputError, match="--only: no case has fats in its name"):
        chosen(cases, ["fats"])
    assert about_network(loaded.value.networks["slow"]) == "star, 3 nodes, 100 Mbps"


def test_a_case_is_an_experiment_of_one_row(write_suite):
    loaded, cases = load_suite(str(write_suite()), ["seed=7"])
    experiment = experiment_of(loaded, cases[2], timed=5).value
    assert (experiment.cluster, experiment.nodes, experiment.network.rate, experiment.seed) == ("star", 3, 12.5e6, 7)
    assert [m.title for m in experiment.models] == ["alexnet-bytes0.01"]
    assert [s.title for s in experiment.strategies] == ["parameter_server"]
    assert (experiment.training.iterations, experiment.training.warmup) == (7, 1)
    assert experiment.execute.compute == "emulated"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("strategy: [ps, ring]}", "strategy: [ps, rnig]}"),
            r"small.yaml:16: cases.0.strategy: there is no strategy 'rnig'",
        ),
        (("network: fast, model", "network: fats, model"), "cases.1.network: there is no network 'fats'"),
        (("model: vgg, strategy", "model: alex, strategy"), "cases.1: the case fast/alex/ring is there twice"),
        (("nodes: 3", "nodes: none"), "networks.slow.nodes: is a text"),
        (("rate: 100Mbps", "rate: 100"), "networks.slow.rate: 100 has no unit"),
        (("median: 2", "middle: 2"), "bounds.middle: unknown key"),
        (("least: 2, most: 10", "least: 3, most: 2"), "at least 3 and at most 2 iterations contradict each other"),
        (("compute: emulated", "compute: imagined"), "execute.compute: is a text"),
        (
            ("repeats: 2", "simulation: {jitter: {kind: uniform, spread: 0.1}}"),
            "without jitter and stragglers is meant",
        ),
    ],
)
def test_mistakes_are_explained(write_suite, change, message):
    with pytest.raises(InputError, match=message):
        load_suite(str(write_suite(change)))


def test_a_case_that_cannot_be_is_named(write_suite):
    path = write_suite(
        (
            "ps: {strategy: parameter_server, settings: {servers: 1}}",
            "ps: {strategy: parameter_server, settings: {servers: 4}}",
        )
    )
    loaded, cases = load_suite(str(path))
    with pytest.raises(InputError, match=r"case fast/alex/ps: .*4 dedicated servers leave 0 workers of 4 nodes"):
        CasePlans(loaded, cases)


SMALL = ("repeats: 2", "repeats: 2\ncalibrate_on: 2")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("calibrate_on=1", "calibrate_on"),
        ("calibrate_on=2.5", "calibrate_on"),
        ("calibrate_on=two", "calibrate_on"),
        ("execute.compute=real", "calibrate_on is for emulated compute"),
        ("small_bounds.median=-1", "small_bounds.median"),
        ("small_bounds.mean=1", "small_bounds.mean"),
    ],
)
def test_what_a_small_calibration_cannot_be(write_suite, change, message):
    with pytest.raises(InputError, match=message):
        load_suite(str(write_suite(SMALL)), [change])


def test_bounds_of_a_small_calibration_need_one(write_suite):
    with pytest.raises(InputError, match="small_bounds without calibrate_on"):
        load_suite(str(write_suite()), ["small_bounds.median=2"])


def test_a_network_is_calibrated_on_fewer_nodes_than_it_has(write_suite):
    loaded, cases = load_suite(str(write_suite(SMALL)))
    plans = CasePlans(loaded, cases)
    assert {len(plans.small_cluster(case).hosts) for case in cases} == {2}
    loaded, cases = load_suite(str(write_suite(SMALL)), ["calibrate_on=3"])
    with pytest.raises(InputError, match=r"network slow has 3 nodes, and is to be calibrated on 3"):
        CasePlans(loaded, cases)


def test_the_digest_of_a_suite_without_a_small_calibration_is_that_of_before(write_suite):
    suite = load_suite(str(write_suite()))[0].value
    small = load_suite(str(write_suite(SMALL)))[0].value
    other = load_suite(str(write_suite(SMALL)), ["calibrate_on=3"])[0].value
    assert len({suite.digest(), small.digest(), other.digest()}) == 3
    assert "calibrate_on" not in suite.model_dump(exclude_unset=True)


def test_the_digest_is_that_of_the_cases(write_suite):
    suite = load_suite(str(write_suite()))[0].value
    same = load_suite(str(write_suite()), ["seed=5", "repeats=9", "bounds.max=1", "description=another"])[0].value
    other = load_suite(str(write_suite()), ["networks.fast.rate=400Mbps"])[0].value
    assert suite.digest() == same.digest() != other.digest()


def test_a_dilation_is_part_of_the_cases(write_suite):
    suite = load_suite(str(write_suite()))[0].value
    same = load_suite(str(write_suite()), ["execute.dilate=1"])[0].value
    other = load_suite(str(write_suite()), ["execute.dilate=4"])[0].value
    assert suite.digest() == same.digest() != other.digest()
    assert "dilate" not in header_of(suite).conditions
    assert header_of(other).conditions["dilate"] == "4"
    with pytest.raises(InputError, match=r"execute\.dilate=0: 0 is not a number of times, 1 or more"):
        load_suite(str(write_suite()), ["execute.dilate=0"])
    with pytest.raises(InputError, match="dilate is for emulated compute"):
        load_suite(str(write_suite()), ["execute.dilate=4", "execute.compute=real"])


def test_timed_iterations_fill_the_time():
    timing = Timing.model_validate({"time": "2s", "least": 5, "most": 20})
    assert [timed_iterations(timing, s) for s in (0.2, 1.0, 0.01, 0.0)] == [10, 5, 20, 20]


def test_the_rules_of_a_suite_are_checked(write_suite):
    with_rules = ("repeats: 2", "rules: {single_server_cases: 0.3}")
    loaded, cases = load_suite(str(write_suite(with_rules)))
    plans = CasePlans(loaded, cases)
    predictions = {c.name: plans.predict(c) for c in cases}
    assert mixture(predictions, 0.3).single_server == 2
    with pytest.raises(InputError, match=r"small\.yaml:3: rules: 2 of 5 cases have a single parameter server"):
        check_rules(loaded, predictions)
    check_rules(load_suite(str(write_suite()))[0], predictions)  # it has no rules


def test_the_default_suite_is_what_the_issue_asks_for():
    loaded, cases = load_suite("emulated")
    suite = loaded.value
    assert len(cases) >= 40
    assert suite.execute.compute == "emulated"
    assert (suite.bounds.median, suite.bounds.p90, suite.bounds.max) == (2, 4, 8)
    rates = {network.rate * 8 for network in suite.networks.values() if network.rate}
    assert (min(rates), max(rates)) == (100e6, 500e6)
    nodes = {network.nodes for network in suite.networks.values()}
    assert (min(nodes), max(nodes)) == (2, 8)
    assert {network.cluster for network in suite.networks.values()} == {"emulated-star", "emulated-leaf-spine"}
    chosen = {s.strategy for s in suite.strategies.values()}
    assert chosen >= {"parameter_server", "all_reduce", "stanza", "fsdp", "pipeline"}
    for named, used in (
        (suite.networks, {c.network for c in cases}),
        (suite.strategies, {c.strategy for c in cases}),
        (suite.models, {c.model for c in cases}),
    ):
        assert set(named) == used
    plans = CasePlans(loaded, cases)
    predictions = {c.name: plans.predict(c) for c in cases}
    assert min(p.iteration_s for p in predictions.values()) > 0.05
    assert max(p.iteration_s for p in predictions.values()) < 1.5
    found = mixture(predictions, EXPOSED_SHARE)
    assert found.exposed >= 0.5 * found.cases
    assert found.single_server <= 0.25 * found.cases
    check_rules(loaded, predictions)


@pytest.mark.parametrize("name", [name for name in config.available("suites") if not is_published(name)])
def test_every_shipped_suite_can_be_planned(name):
    loaded, cases = load_suite(name)
    assert loaded.value.name == name
    if all(m.input_shape is None for m in loaded.value.models.values()):  # others are extracted with torch
        CasePlans(loaded, cases)
