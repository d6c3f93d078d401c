"""The JSON object: its keys are a promise."""

import json
import math
from dataclasses import replace

import pytest

from stanza_sim.report.result import Drift, Result, loss_ends, result_json

RUN_KEYS = [
    "label",
    "model",
    "strategy",
    "settings",
    "cluster",
    "nodes",
    "batch_per_worker",
    "accumulation",
    "precision",
    "seed",
    "schedule_hash",
    "predicted",
    "tied_with",
    "notes",
    "measured",
    "error_pct",
    "machine",
]
PREDICTED_KEYS = [
    *("iteration_s", "samples_per_s", "samples_per_s_low", "samples_per_s_high"),
    *("tokens_per_s", "mfu", "samples_per_dollar", "time_to_train_s", "cost_to_train"),
    *("exposed_comm_s", "bound_s", "bottleneck", "cost_source", "basis"),
]
MEASURED_KEYS = [
    "compute",
    "dilate",
    "iteration_s",
    "iteration_s_min",
    "iteration_s_max",
    "samples_per_s",
    "tokens_per_s",
    "loss_first",
    "loss_last",
    "iterations",
    "accuracy",
    "perplexity",
    "evaluations",
]


def test_keys_and_values_of_the_json_object(make_row):
    result = Result(experiment="example", rows=(make_row(measured=True), make_row(label="again")))
    data = json.loads(result_json(result))
    assert list(data) == ["experiment", "runs", "infeasible"]
    assert data["experiment"] == "example"
    first, second = data["runs"]
    assert list(first) == list(second) == RUN_KEYS
    assert list(first["predicted"]) == PREDICTED_KEYS
    assert list(first["measured"]) == MEASURED_KEYS
    assert first["schedule_hash"] == make_row().schedule.digest()
    assert first["settings"] == {"overlap": True}
    assert first["predicted"]["iteration_s"] == 7.6e-3
    assert first["measured"]["compute"] == "real"
    assert first["measured"]["dilate"] == 1
    assert first["measured"]["iteration_s_max"] == 12.25e-3
    assert first["measured"]["loss_first"] == pytest.approx(2.0 - 0.05 * 4.5)
    assert first["measured"]["loss_last"] == pytest.approx(2.0 - 0.05 * 24.5)
    assert first["error_pct"] == pytest.approx(-24.0)
    assert first["tied_with"] == []
    assert first["predicted"]["samples_per_s_low"] is None
    assert first["machine"] == {"change_pct": None, "against_profile_pct": None, "others_pct": 0, "stolen_pct": 0}
    assert second["measured"] is None
    assert second["error_pct"] is None
    assert second["machine"] is None


def test_how_the_machine_moved_is_beside_the_error(make_row):
    row = make_row(measured=True, drift=Drift(change=0.03, against_profile=-0.2))
    row = replace(row, measurement=replace(row.measurement, others=0.25, stolen=0.004))
    machine = json.loads(result_json(Result(experiment="e", rows=(row,))))["runs"][0]["machine"]
    assert machine == pytest.approx(
        {"change_pct": 3.0, "against_profile_pct": -20.0, "others_pct": 25.0, "stolen_pct": 0.4}
    )


def test_a_dilated_run_says_so_and_what_the_undilated_cluster_would_take(make_row):
    row = make_row(measured=True)
    stated = replace(row.prediction, iteration_s=9e-3)
    row = replace(row, measurement=replace(row.measurement, dilation=40.0), undilated=stated)
    data = json.loads(result_json(Result(experiment="e", rows=(row,))))["runs"][0]
    assert data["measured"]["dilate"] == 40.0
    assert data["error_pct"] == pytest.approx(-24.0)
    assert data["undilated"] == {"iteration_s": 9e-3, "error_pct": pytest.approx(-10.0)}


def test_equal_results_give_equal_bytes(make_row):
    texts = {result_json(Result(experiment="e", rows=(make_row(measured=True),))) for _ in range(3)}
    assert len(texts) == 1


def test_a_loss_that_diverged_is_null(make_row):
    row = make_row(measured=True)
    row = replace(row, measurement=replace(row.measurement, losses=(2.0, math.inf, math.nan)))
    measured = json.loads(result_json(Result(experiment="e", rows=(row,))))["runs"][0]["measured"]
    assert measured["loss_first"] is None
    assert measured["loss_last"] is None


def test_loss_ends_of_a_short_run():
    assert loss_ends([4.0, 2.0]) == (3.0, 3.0)
    with pytest.raises(ValueError, match="no losses"):
        loss_ends([])
