"""Precision from Python: a schedule knows for which it was built, and is predicted in that."""

from __future__ import annotations

import pytest

import stanza_sim as ss
from stanza_sim.base.errors import InputError

CLUSTER, MODEL = ss.load_cluster("ec2-p3-10", nodes=4), ss.load_model("vgg16")


def test_a_schedule_is_predicted_in_the_precision_for_which_it_was_built() -> None:
    half = ss.build_schedule("stanza", MODEL, CLUSTER, batch_per_worker=32, precision="fp16")
    whole = ss.build_schedule("stanza", MODEL, CLUSTER, batch_per_worker=32)
    a, b = ss.predict(half, CLUSTER), ss.predict(whole, CLUSTER)
    assert a.iteration_s == ss.predict(half, CLUSTER, precision="fp16").iteration_s < b.iteration_s
    with pytest.raises(InputError, match="is fp32, and the schedule was built for fp16") as error:
        ss.predict(half, CLUSTER, precision="fp32")
    assert error.value.where == "predict: precision"
    with pytest.raises(InputError, match="measure: precision: is bf16, and the schedule was built for fp32"):
        ss.measure(whole, CLUSTER, precision="bf16")


def test_what_sends_no_activations_is_predicted_in_any_precision() -> None:
    ddp = ss.build_schedule("all_reduce", MODEL, CLUSTER, batch_per_worker=32)
    assert ss.predict(ddp, CLUSTER, precision="fp16").iteration_s < ss.predict(ddp, CLUSTER).iteration_s


def test_gradients_in_two_bytes_halve_an_all_reduce() -> None:
    ddp, rounded = (
        ss.build_schedule("all_reduce", MODEL, CLUSTER, batch_per_worker=32, gradients=gradients)
        for gradients in ("parameter", "bf16")
    )
    sent = [ss.predict(one, CLUSTER).sent_bytes for one in (ddp, rounded)]
    assert {2 * sent[1][r] for r in sent[1]} == set(sent[0].values())


def test_a_plan_is_made_for_the_precision() -> None:
    best = ss.plan(MODEL, CLUSTER, batch_per_worker=32, max_evaluations=3, precision="fp16", gradients="fp16").best
    assert best.schedule.precision == "fp16"
    assert "wire=fp16" in best.schedule.text()


def test_a_loss_scale_without_a_use_is_refused() -> None:
    here = ss.load_cluster("laptop", nodes=2)
    ddp = ss.build_schedule("all_reduce", MODEL, here, batch_per_worker=32)
    with pytest.raises(InputError, match=r"training.loss_scale has no use: nothing is in fp16"):
        ss.measure(ddp, here, loss_scale=8.0)
