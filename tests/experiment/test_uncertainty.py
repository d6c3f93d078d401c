"""How far off the costs of an experiment's rows may be, and what that does to them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from stanza_sim.base.errors import InputError
from stanza_sim.cluster.faster import with_slower_network
from stanza_sim.cluster.hardware import Losses
from stanza_sim.experiment.file import load_experiment
from stanza_sim.experiment.rows import cluster_of, plans_of
from stanza_sim.experiment.run import run_experiment
from stanza_sim.experiment.scenario import Conditions, Scenario
from stanza_sim.experiment.uncertainty import STATED_NETWORK, Uncertainty
from stanza_sim.report.result import result_object
from stanza_sim.simulate.residual import Corner, within

TEXT = """\
name: small
cluster: star
nodes: 4
batch_per_worker: 16
models: [alexnet]
strategies:
  - local
  - all_reduce
  - {strategy: parameter_server, settings: {placement: colocated}}
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(TEXT)
    return path


def scenarios(path: Path, *overrides: str) -> list[Scenario]:
    loaded = load_experiment(str(path), list(overrides))
    cluster = cluster_of(loaded)
    conditions = Conditions(loaded=loaded, cluster=cluster)
    return [conditions.scenario(plan) for plan in plans_of(loaded, cluster)]


def test_all_twice_as_slow_takes_twice_as_long(small):
    """Every time scales, also latencies and what a message costs: a closed form of the whole simulation."""
    for scenario in scenarios(small):
        off = replace(scenario, uncertainty=Uncertainty(network=within(1.0), computation=within(1.0)))
        spread = off.spread(off.predict())
        assert spread.corners[Corner.SLOW] == pytest.approx(spread.predicted / 2, rel=1e-6)
        assert spread.corners[Corner.FAST] == pytest.approx(spread.predicted * 2, rel=1e-6)


def test_what_sends_nothing_is_off_by_computation_only(small):
    local, ring, _ = scenarios(small, "uncertainty.computation=0.25", "uncertainty.network=0.5")
    found = local.spread(local.predict())
    assert found.low == pytest.approx(found.predicted / 1.25)
    assert found.high == pytest.approx(found.predicted * 1.25)
    assert found.at(Corner.SLOW) == found.at(Corner.COMPUTATION)
    sends = ring.spread(ring.predict())
    assert len(set(sends.corners.values())) == 4
    assert sends.low == sends.at(Corner.SLOW)
    assert sends.high == sends.at(Corner.FAST)


def test_corners_between_others_are_near_what_simulating_them_gives_and_never_too_fast(small):
    for scenario in scenarios(small, "uncertainty.computation=0.4", "uncertainty.network=0.1")[1:]:
        spread = scenario.spread(scenario.predict())
        for corner in (Corner.SLOW, Corner.FAST):
            simulated = scenario.at(corner).predict().samples_per_s
            assert 0.95 * simulated <= spread.at(corner) <= simulated * (1 + 1e-6)


def test_random_repeats_are_as_far_off_as_the_one_in_the_middle(small):
    jitter = "simulation.jitter={kind: lognormal, spread: 0.1}"
    off = "uncertainty.computation=0.4", "uncertainty.network=0.1"
    for scenario in scenarios(small, jitter, "simulation.repeats=9", *off)[1:]:
        predicted = scenario.predict()
        spread = scenario.spread(predicted)
        for corner in Corner:
            every = scenario.at(corner).predict()
            assert spread.at(corner) == pytest.approx(every.samples_per_s, rel=0.03)
        twice = replace(scenario, uncertainty=Uncertainty(network=within(1.0), computation=within(1.0)))
        assert twice.spread(predicted).corners[Corner.SLOW] == pytest.approx(predicted.samples_per_s / 2, rel=1e-6)


def test_exact_costs_are_not_simulated_again(small, monkeypatch):
    for scenario in scenarios(small, "uncertainty.computation=0", "uncertainty.network=0"):
        found = scenario.predict()
        monkeypatch.setattr(Scenario, "at", lambda self, corner: pytest.fail("simulated again"))
        spread = scenario.spread(found)
        assert (spread.low, spread.high, spread.corners) == (found.samples_per_s, found.samples_per_s, {})
        monkeypatch.undo()


def test_emulated_computation_has_no_error(small):
    (scenario, *_) = scenarios(small, "execute.compute=emulated")
    assert scenario.uncertainty.of(scenario.costs(0)).nothing
    assert scenario.uncertainty.network.high == 1 + STATED_NETWORK


def test_a_prediction_says_what_it_rests_on(small):
    (scenario, *_) = scenarios(small, "network.rate=25Gbps", "uncertainty.computation=0.1")
    assert scenario.predict().basis == (
        "network: as the topology states, 25 Gbps, taken to be within 15%; computation: within 10%, as stated"
    )
    (alone, *_) = scenarios(small, "nodes=1", "strategies=[local]")
    assert alone.predict().basis.startswith("computation: fitted, ")


def test_run_says_low_high_and_ties(small):
    result = run_experiment(str(small))
    assert result is not None
    data = result_object(result)
    json.dumps(data)
    for row in data["runs"]:
        p = row["predicted"]
        assert p["samples_per_s_low"] < p["samples_per_s"] < p["samples_per_s_high"]
        assert p["basis"].startswith("network: ")
    ties = {row["label"]: row["tied_with"] for row in data["runs"]}
    for label, others in ties.items():
        assert all(label in ties[other] for other in others)


@pytest.mark.parametrize("key", ["computation", "network"])
@pytest.mark.parametrize("value", ["-0.1", "11", "many", "0.1s", ".inf", "true"])
def test_a_share_that_is_none_is_refused(small, key, value):
    with pytest.raises(InputError, match=f"uncertainty.{key}"):
        load_experiment(str(small), [f"uncertainty.{key}={value}"])


def test_an_unknown_kind_of_cost_names_the_known_ones(small):
    with pytest.raises(InputError) as caught:
        load_experiment(str(small), ["uncertainty.networks=0.1"])
    assert "network" in (caught.value.hint or "")


def test_a_slower_network_is_slower_in_everything(small):
    (scenario, *_) = scenarios(small)
    cluster, slow = scenario.cluster, with_slower_network(scenario.cluster, 2)
    for a, b in zip(cluster.links, slow.links, strict=True):
        assert (b.bandwidth_Bps, b.latency_s) == (a.bandwidth_Bps / 2, a.latency_s * 2)
    for one, other in zip(cluster.hosts, slow.hosts, strict=True):
        assert other.nic.overhead_s == 2 * one.nic.overhead_s
        assert other.loopback.byte_core_s == 2 * one.loopback.byte_core_s


@pytest.mark.parametrize("cluster", ["dgx-a100-16", "ec2-p3-16xlarge", "ec2-p2-8xlarge"])
def test_collectives_of_nccl_and_transports_are_as_slow_as_their_network(small, cluster):
    """What a platform's constants and a transport's limits say scales too: all is twice as slow."""
    changes = [f"cluster={cluster}", "nodes=2", "strategies=[all_reduce]", "models=[vgg16]"]
    (scenario,) = scenarios(small, *changes)
    no_losses = replace(scenario.cluster, hosts=tuple(replace(h, losses=Losses()) for h in scenario.cluster.hosts))
    off = Uncertainty(network=within(1.0), computation=within(1.0))
    scenario = replace(scenario, cluster=no_losses, uncertainty=off)
    spread = scenario.spread(scenario.predict())
    assert spread.corners[Corner.SLOW] == pytest.approx(spread.predicted / 2, rel=1e-6)
