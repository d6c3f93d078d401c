"""Why an iteration takes as long as it does: the cause, on cases built to have a known one, and what would help."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import inf

import pytest

from stanza_sim.experiment.run import run_experiment
from stanza_sim.report.explanation import Cause, Explanation, What
from stanza_sim.report.result import Result, Row, result_json


def topology(*hosts: Mapping[str, object], **more: object) -> dict[str, object]:
    return {"name": "made", "hosts": list(hosts), "switches": [{"name": "switch"}], **more}


def host(name: str, count: int, rate: str = "100Gbps", **more: object) -> dict[str, object]:
    nic = {"rate": rate, **more.pop("nic", {})}  # type: ignore[dict-item]
    return {"name": name, "count": count, "cores": 8, "devices": ["V100"], "nic": nic, **more}


@pytest.fixture
def row(tmp_path):
    def make(cluster: Mapping[str, object], strategy: str = "all_reduce", model: str = "resnet50", **settings) -> Row:
        (tmp_path / "cluster.yaml").write_text(json.dumps(cluster))
        experiment = {
            "name": "made",
            "cluster": "cluster.yaml",
            "models": [model],
            "strategies": [{"strategy": strategy, "settings": settings}],
        }
        path = tmp_path / "made.yaml"
        path.write_text(json.dumps(experiment))
        result = run_experiment(str(path))
        assert result is not None
        return result.rows[0]

    return make


def why(row: Row) -> Explanation:
    assert row.details is not None
    found = row.details.explanation
    assert sum(found.path.values()) == pytest.approx(row.prediction.iteration_s, rel=1e-6)
    return found


def saved(found: Explanation, what: What, times: float, place: str = "") -> float:
    effect = found.effect(what, times, place)
    assert effect is not None
    return found.saved(effect)


# ---- causes ----------------------------------------------------------------------------------------------------------


def test_one_server(row) -> None:
    found = why(row(topology(host("node", 5, "10Gbps")), "parameter_server", servers=1))
    assert (found.cause, found.place) == (Cause.LINK, "node-4's NIC (server)")
    assert saved(found, What.LINK, 2.0, found.place) > 0.45
    assert "The cause is the rate of node-4's NIC (server): twice as much would save 4" in str(found)


@pytest.mark.parametrize("strategy", ["all_reduce", "parameter_server"])
def test_a_slow_host(row, strategy: str) -> None:
    found = why(row(topology(host("slow", 1, "400Gbps", device_speed=0.4), host("fast", 3, "400Gbps")), strategy))
    assert found.cause is Cause.HOST
    assert found.place.startswith("slow-0 (")
    assert saved(found, What.HOST, 2.0, found.place) > 0.4


def test_an_oversubscribed_spine(row) -> None:
    found = why(
        row(
            {
                "name": "made",
                "hosts": [{k: v for k, v in host("node", 8, "25Gbps").items() if k != "count"}],
                "fabric": {"kind": "leaf-spine", "leaves": 2, "hosts_per_leaf": 4, "spines": 1, "rate": "5Gbps"},
            },
        )
    )
    assert found.cause is Cause.LINK
    assert "leaf" in found.place and "spine" in found.place
    assert saved(found, What.LINK, 2.0, found.place) > 0.3


def test_computing(row) -> None:
    found = why(row(topology(host("node", 4, "400Gbps"))))
    assert (found.cause, found.place) == (Cause.COMPUTE, "")
    assert saved(found, What.COMPUTE, inf) > 0.9
    assert saved(found, What.NETWORK, inf) < 0.1


def test_a_servers_lane(row) -> None:
    found = why(
        row(
            topology(host("node", 3, "400Gbps"), host("cpu", 1, "400Gbps", devices=[], reduce_rate="300MB/s")),
            "parameter_server",
            servers=1,
        )
    )
    assert found.cause is Cause.LANE
    assert found.place == "cpu-0 (server)"
    assert saved(found, What.HOST, 2.0, found.place) > 0.3
    assert "The cause is sums and updates on cpu-0 (server)" in str(found)


def test_small_messages_with_latency(row) -> None:
    slow = {"latency": "2ms", "overhead": "1ms"}
    found = why(row(topology(host("node", 8, "100Gbps", nic=slow))))
    assert (found.cause, found.place) == (Cause.LATENCY, "")
    assert saved(found, What.LATENCY, inf) > 0.5
    assert saved(found, What.RATES, inf) < 0.2


# ---- what would help -------------------------------------------------------------------------------------------------


def test_effects_are_those_of_the_changed_cluster(row) -> None:
    """Each what-if equals a run on a cluster that is loaded so."""
    slow = row(topology(host("node", 3, "10Gbps"), host("hub", 1, "10Gbps")), "parameter_server", servers=1)
    found = why(slow)
    faster = row(topology(host("node", 3, "10Gbps"), host("hub", 1, "20Gbps")), "parameter_server", servers=1)
    effect = found.effect(What.LINK, 2.0, "hub-0's NIC (server)")
    assert effect is not None
    assert effect.iteration_s == pytest.approx(faster.prediction.iteration_s, rel=1e-9)
    effect = found.effect(What.RATES, 2.0)
    faster = row(topology(host("node", 3, "20Gbps"), host("hub", 1, "20Gbps")), "parameter_server", servers=1)
    assert effect is not None
    assert effect.iteration_s == pytest.approx(faster.prediction.iteration_s, rel=1e-9)


def test_hosts_that_compute_faster_are_those_of_the_changed_cluster(row) -> None:
    def hosts(speed: float) -> dict[str, object]:
        return topology(host("slow", 1, "400Gbps", device_speed=speed), host("fast", 3, "400Gbps"))

    effect = why(row(hosts(0.4))).effect(What.HOST, 2.0, "slow-0 (worker)")
    assert effect is not None
    assert effect.iteration_s == pytest.approx(row(hosts(0.8)).prediction.iteration_s, rel=1e-6)


def test_free_computation_and_an_infinitely_fast_network_have_closed_forms(row) -> None:
    """Nothing overlaps but a few updates: what one leaves is what the other takes away."""
    one = row(topology(host("node", 4, "10Gbps")), overlap=False)
    found = why(one)
    computing, network = (found.effect(what, inf) for what in (What.COMPUTE, What.NETWORK))
    assert computing is not None
    assert network is not None
    assert computing.iteration_s + network.iteration_s == pytest.approx(one.prediction.iteration_s, rel=5e-3)


def test_what_varies_by_chance_is_explained_by_the_same_draws(row, tmp_path) -> None:
    row(topology(host("node", 2, "10Gbps")), model="alexnet")
    jitter = ["simulation.jitter.kind=lognormal", "simulation.jitter.spread=0.2", "simulation.repeats=3"]
    result = run_experiment(str(tmp_path / "made.yaml"), overrides=jitter)
    assert result is not None
    details = result.rows[0].details
    assert details is not None
    found = details.explanation
    assert found.cause is Cause.LINK
    assert all(effect.iteration_s <= found.iteration_s * (1 + 1e-9) for effect in found.effects)


def test_programs_read_it_from_json(row) -> None:
    one = row(topology(host("node", 5, "10Gbps")), "parameter_server", servers=1)
    (run,) = json.loads(result_json(Result(experiment="made", rows=(one,)), explained=True))["runs"]
    found = run["explanation"]
    assert (found["cause"], found["place"]) == ("link", "node-4's NIC (server)")
    assert {(e["what"], e["times"]) for e in found["effects"]} >= {("compute", None), ("network", None), ("rates", 2.0)}
    assert "explanation" not in json.loads(result_json(Result(experiment="made", rows=(one,))))["runs"][0]


def test_what_is_too_large_is_not_simulated_again(row, monkeypatch: pytest.MonkeyPatch) -> None:
    from stanza_sim.experiment import why as module

    monkeypatch.setattr(module, "MOST_EVENTS", 10)
    found = why(row(topology(host("node", 2))))
    assert found.cause is None
    assert not found.effects
    assert "too large to be simulated again" in str(found)
