"""What is wrong with an argument is an `InputError` that says where it is and what would be right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import stanza_sim as ss

CLUSTER, MODEL = ss.load_cluster("star", nodes=4), ss.load_model("alexnet")
SCHEDULE = ss.build_schedule("all_reduce", MODEL, CLUSTER, batch_per_worker=32)
PREDICTION = ss.predict(SCHEDULE, CLUSTER)
LAPTOP = ss.load_cluster("laptop", nodes=4)


def build(
    strategy: Any = "stanza", model: Any = MODEL, cluster: Any = CLUSTER, batch: Any = 32, **settings: Any
) -> Any:
    return ss.build_schedule(strategy, model, cluster, batch_per_worker=batch, **settings)


def predict(**given: Any) -> Any:
    return ss.predict(SCHEDULE, CLUSTER, **given)


def what_if(**given: Any) -> Any:
    return PREDICTION.what_if(**given)


any_: Any = ss  # so that wrong types pass mypy

CASES: dict[str, tuple[Callable[[], object], str]] = {
    "no such cluster": (lambda: ss.load_cluster("ec2-p3-1"), "load_cluster"),
    "a cluster that is a number": (lambda: any_.load_cluster(5), "load_cluster: cluster"),
    "nodes that are a text": (lambda: any_.load_cluster("star", nodes="4"), "load_cluster: nodes"),
    "no nodes": (lambda: ss.load_cluster("star", nodes=0), "load_cluster: nodes"),
    "a rate without a unit": (lambda: ss.load_cluster("star", rate="25"), "load_cluster: rate"),
    "an empty topology": (lambda: ss.load_cluster({}), "load_cluster"),
    "a topology with an unknown key": (lambda: ss.load_cluster({"name": "x", "host": []}), "load_cluster: host"),
    "no such model": (lambda: ss.load_model("vgg17"), "load_model"),
    "a factory without a shape": (lambda: ss.load_model("a.b:c"), "load_model"),
    "a shape that is none": (lambda: any_.load_model("a.b:c", input_shape="3x4"), "load_model: input_shape"),
    "no such device": (lambda: ss.load_device("V1000"), "load_device"),
    "no such kind": (lambda: any_.available("cluster"), "available: kind"),
    "nothing to describe": (lambda: any_.describe(5), "describe: what"),
    "no such strategy to describe": (lambda: ss.describe("stanzas"), "describe"),
    "nothing to draw": (lambda: any_.draw("star"), "draw: cluster"),
    "a picture of another kind": (lambda: ss.draw(CLUSTER, "x.txt"), "draw"),
    "no such strategy": (lambda: build("stanzas"), "build_schedule: strategy"),
    "a strategy that is a number": (lambda: build(5), "build_schedule: strategy"),
    "a model by name": (lambda: build(model="vgg16"), "build_schedule: model"),
    "a cluster by name": (lambda: build(cluster="star"), "build_schedule: cluster"),
    "a batch of none": (lambda: build(batch=0), "build_schedule: batch_per_worker"),
    "a batch that is a text": (lambda: build(batch="32"), "build_schedule: batch_per_worker"),
    "a setting that is not there": (lambda: build(fc_worker=1), "build_schedule: fc_worker"),
    "a setting of another type": (lambda: build(fc_workers="two"), "build_schedule: fc_workers"),
    "a setting that does not fit": (lambda: build(fc_workers=9), "build_schedule"),
    "a label of two lines": (lambda: build(label="a\nb"), "build_schedule: label"),
    "a schedule by name": (lambda: any_.predict("stanza", CLUSTER), "predict: schedule"),
    "a schedule without a model": (lambda: ss.predict(SCHEDULE.bare(), CLUSTER), "predict: model"),
    "a model that is none": (lambda: any_.predict(SCHEDULE, CLUSTER, model="vgg16"), "predict: model"),
    "a cluster of another size": (lambda: ss.predict(SCHEDULE, ss.load_cluster("star", nodes=3)), "predict"),
    "a cluster that is none": (lambda: any_.predict(SCHEDULE, None), "predict: cluster"),
    "no such precision": (lambda: predict(precision="fp99"), "predict"),
    "built for no such precision": (lambda: build(precision="fp99"), "build_schedule"),
    "no such type of gradients": (lambda: build(gradients="int8"), "build_schedule"),
    "no such engine": (lambda: predict(engine="fast"), "predict: engine"),
    "no such collectives": (lambda: predict(collectives="all"), "predict: collectives"),
    "steps in the compiled engine": (lambda: predict(collectives="steps", engine="compiled"), "predict"),
    "jitter without a spread": (lambda: predict(jitter={"kind": "uniform"}), "predict: jitter"),
    "jitter that is a number": (lambda: predict(jitter=0.1), "predict: jitter"),
    "a straggler that is half": (lambda: predict(straggler={"probability": 0.1}), "predict: straggler"),
    "repeats of nothing": (lambda: predict(repeats=5), "predict: repeats"),
    "a negative seed": (lambda: predict(seed=-1), "predict: seed"),
    "no such profile": (lambda: predict(profiles="nowhere.json"), "predict"),
    "profiles that are numbers": (lambda: predict(profiles=[5]), "predict: profiles"),
    "costs that are none": (lambda: predict(costs=5), "predict: costs"),
    "nothing to compare": (lambda: ss.compare(), "compare"),
    "something else to compare": (lambda: any_.compare(PREDICTION, SCHEDULE), "compare: argument 2"),
    "a network that stands still": (lambda: PREDICTION.what_if(network=0), "what_if: network"),
    "a network by name": (lambda: what_if(network="fast"), "what_if: network"),
    "compute that is true": (lambda: PREDICTION.what_if(compute=True), "what_if: compute"),
    "no such link": (lambda: PREDICTION.what_if(link={"uplink": 2.0}), "what_if: link"),
    "no such host": (lambda: PREDICTION.what_if(nic={"node-9": 2.0}), "what_if: nic"),
    "no such device in it": (lambda: PREDICTION.what_if(device={"A100": 2.0}), "what_if: device"),
    "no such rank": (lambda: PREDICTION.what_if(rank={4: 2.0}), "what_if: rank"),
    "an uncertainty that is negative": (lambda: predict(uncertainty={"network": -0.1}), "predict: uncertainty.network"),
    "an uncertainty of something else": (lambda: predict(uncertainty={"nics": 0.1}), "predict: uncertainty.nics"),
    "an uncertainty that is a text": (lambda: predict(uncertainty={"network": "15%"}), "predict: uncertainty.network"),
    "a factor that is a text": (lambda: what_if(rank={1: "slow"}), "what_if: rank[1]"),
    "ranks that share a host": (
        lambda: ss.predict(build("all_reduce", cluster=LAPTOP), LAPTOP).what_if(rank={1: 2.0}),
        "what_if: rank",
    ),
    "no such experiment": (lambda: ss.load_experiment("ec2"), "load_experiment"),
    "an experiment that is a number": (lambda: any_.load_experiment(5), "load_experiment: experiment"),
    "no such key": (lambda: ss.load_experiment("ec2_v100", set={"node": 4}), "load_experiment"),
    "keys that are a text": (lambda: any_.load_experiment("ec2_v100", set="nodes=4"), "load_experiment: set"),
    "a value that no file holds": (lambda: ss.load_experiment("ec2_v100", set={"nodes": object()}), "load_experiment"),
    "an empty experiment": (lambda: ss.load_experiment({}), "load_experiment"),
    "no such row": (lambda: ss.load_experiment("ec2_v100").schedules(row="best"), "schedules"),
    "a sweep of nothing": (lambda: ss.sweep("ec2_v100", vary={}), "sweep"),
    "values that are a text": (lambda: any_.sweep("ec2_v100", vary={"nodes": "2..4"}), "sweep: vary['nodes']"),
    "keys that are a list": (lambda: any_.sweep("ec2_v100", vary=["nodes=2..4"]), "sweep: vary"),
    "a plan for a name": (lambda: any_.plan("vgg16", CLUSTER), "plan: model"),
    "a plan without a cluster": (lambda: ss.plan(MODEL), "plan: cluster"),
    "a budget of nothing": (lambda: ss.plan(MODEL, CLUSTER, budget="0s"), "plan: budget"),
    "a budget that is no number": (lambda: ss.plan(MODEL, CLUSTER, budget=float("nan")), "plan: budget"),
    "a budget below nothing": (lambda: ss.plan(MODEL, CLUSTER, budget=-1), "plan: budget"),
    "memory that is too little": (lambda: ss.plan(MODEL, CLUSTER, memory="1MB"), "plan: memory"),
    "no evaluations": (lambda: ss.plan(MODEL, CLUSTER, max_evaluations=0), "plan: max_evaluations"),
    "no such suite": (lambda: ss.validate("emulate", dry_run=True), "validate"),
    "a suite of others' measurements": (lambda: ss.validate("published"), "validate: suite"),
    "published rows that are not there": (lambda: ss.validate_published(rows="no.csv"), "validate_published"),
    "a suite of our own": (lambda: ss.validate_published("emulated"), "validate_published: suite"),
    "a suite dilated below 1": (lambda: ss.validate(dilate=0.5, dry_run=True), "validate"),
    "no such case": (lambda: ss.validate(only=["nothing"], dry_run=True), "validate"),
    "a run of one iteration": (lambda: ss.measure(SCHEDULE, CLUSTER, iterations=1), "measure"),
    "a dilation below 1": (lambda: ss.measure(SCHEDULE, CLUSTER, compute="emulated", dilate=0.5), "measure: dilate"),
    "a dilation of nothing": (lambda: ss.measure(SCHEDULE, CLUSTER, compute="emulated", dilate=4), "measure: dilate"),
    "a dilation of what computes": (lambda: ss.measure(SCHEDULE, CLUSTER, dilate=4), "measure"),
    "a dilation that is a text": (
        lambda: any_.load_experiment("emulated").run(execute=True, testbed=True, dilate="4"),
        "run: dilate",
    ),
    "a dilation without a run": (lambda: ss.load_experiment("emulated").run(dilate=4), "run: dilate"),
    "a dilation without a testbed": (lambda: ss.load_experiment("emulated").run(execute=True, dilate=4), "run"),
    "a run on several hosts": (lambda: ss.measure(SCHEDULE, CLUSTER), "measure"),
    "no such backend": (lambda: any_.measure(SCHEDULE, CLUSTER, backend="mpi"), "measure: backend"),
    "an optimizer that is none": (lambda: any_.measure(SCHEDULE, CLUSTER, optimizer={"rate": 1}), "measure: optimizer"),
    "a calibration of a name": (lambda: any_.calibrate("laptop"), "calibrate: cluster"),
}


@pytest.mark.parametrize("name", CASES)
def test_where_and_hint(name: str) -> None:
    call, where = CASES[name]
    with pytest.raises(ss.InputError) as error:
        call()
    assert error.value.where is not None and error.value.where.startswith(where), str(error.value)
    assert error.value.hint, str(error.value)
    assert "\n" not in error.value.message
    assert "pydantic" not in str(error.value)
    assert error.value.__suppress_context__ or error.value.__cause__ is None


def test_settings_have_the_messages_of_a_file() -> None:
    from stanza_sim.experiment.file import load_experiment

    with pytest.raises(ss.InputError) as ours:
        build(fc_workers="two")
    with pytest.raises(ss.InputError) as of_file:
        load_experiment("ec2_v100", ["strategies.5.settings.fc_workers=two"])
    assert (ours.value.message, ours.value.hint) == (of_file.value.message, of_file.value.hint)
