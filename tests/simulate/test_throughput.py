"""A known throughput scales a device's costs: at the batch that was stated it is reached, others follow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import stanza_sim as ss
from stanza_sim.base.errors import InputError
from stanza_sim.cluster import load_cluster
from stanza_sim.experiment.file import load_experiment
from stanza_sim.experiment.rows import cluster_of, plans_of
from stanza_sim.model import zoo
from stanza_sim.model.profile import Throughput, scaled
from stanza_sim.model.profile_json import from_json, to_json
from stanza_sim.simulate.cost_model import step_s
from stanza_sim.simulate.costs import costs_for, throughput_costs

RESNET = zoo.get("resnet50")
KNOWN = replace(RESNET, throughput=(Throughput(device="V100", samples_per_s=340.0, batch=64),))


@given(rate=st.floats(1, 1e5), batch=st.integers(1, 1024), speed=st.floats(0.25, 4))
def test_the_throughput_is_reached_at_its_batch(rate: float, batch: int, speed: float) -> None:
    costs = throughput_costs("V100", RESNET, "fp32", rate, batch)
    assert batch / step_s(costs, RESNET, batch) == pytest.approx(rate)
    faster = throughput_costs("V100", RESNET, "fp32", rate, batch, speed=speed)
    assert batch / step_s(faster, RESNET, batch) == pytest.approx(rate * speed)


def test_all_times_of_training_scale_by_one_factor_and_sums_do_not() -> None:
    cluster, block = load_cluster("ec2-p3-10"), RESNET.blocks[-1]
    base, costs = costs_for(cluster, RESNET)(0), costs_for(cluster, KNOWN)(0)
    factor = 64 / 340 / step_s(base, RESNET, 64)
    for phase in ("forward_s", "backward_s", "backward_input_s", "backward_weight_s", "loss_s"):
        assert getattr(costs, phase)(block, 16) == pytest.approx(factor * getattr(base, phase)(block, 16))
    assert costs.update_s(1000) == pytest.approx(factor * base.update_s(1000))
    assert costs.reduce_s(1000, 3) == base.reduce_s(1000, 3)
    assert costs.source == f"{base.source}, scaled by {factor:.3g} to 340 samples/s on V100 at batch 64 as given"


def test_other_devices_keep_their_times() -> None:
    cluster = load_cluster("laptop")
    with_both = replace(KNOWN, throughput=(*KNOWN.throughput, Throughput(device="cpu", samples_per_s=2.0, batch=8)))
    assert 8 / step_s(costs_for(cluster, with_both)(0), RESNET, 8) == pytest.approx(2.0)


def test_a_scaled_model_has_a_scaled_throughput() -> None:
    half = scaled(KNOWN, compute=0.5)
    assert half.throughput == (Throughput(device="V100", samples_per_s=680.0, batch=64),)


def test_a_throughput_is_written_and_read() -> None:
    assert from_json(to_json(KNOWN), where="here") == KNOWN
    for wrong in ('"batch": 0', '"batch": 1.5'):
        with pytest.raises(InputError, match=r"throughput\.V100: batch is (0|1\.5)"):
            from_json(to_json(KNOWN).replace('"batch": 64', wrong), where="here")
    with pytest.raises(InputError, match=r"samples_per_s is -340"):
        from_json(to_json(KNOWN).replace("340.0", "-340.0"), where="here")


def test_predictions_in_python_reach_it() -> None:
    model = ss.load_model("vgg16", throughput={"V100": {"samples_per_s": 123, "batch": 32}})
    cluster = ss.load_cluster("ec2-p3-10", nodes=1)
    found = ss.predict(ss.build_schedule("local", model, cluster, batch_per_worker=32), cluster)
    assert found.samples_per_s == pytest.approx(123, rel=1e-3)
    assert "to 123 samples/s on V100 at batch 32 as given" in found.cost_source
    best = ss.plan(model, ss.load_cluster("ec2-p3-10", nodes=2), batch_per_worker=32, max_evaluations=3)
    assert "to 123 samples/s on V100" in str(best)


BAD = (
    ({"V1000": {"samples_per_s": 1.0, "batch": 1}}, r"no device 'V1000'.*ec2-p3-10 compute on V100"),
    ({"K80": {"samples_per_s": 1.0, "batch": 1}}, r"throughput of K80, but the ranks of ec2-p3-10 compute on V100"),
    ({"V100": {"samples_per_s": -340, "batch": 64}}, r"throughput\.V100\.samples_per_s.*greater than 0"),
    ({"V100": {"samples_per_s": 340, "batch": 0}}, r"throughput\.V100\.batch.*greater than or equal to 1"),
    ({"V100": {"samples_per_s": "340/s", "batch": 1}}, r"throughput\.V100\.samples_per_s: is a text"),
    ({"V100": {"samples_per_s": 340}}, r"throughput\.V100: the key 'batch' is missing"),
    ({"V100": {"samples_per_s": 340, "batch": 1, "bach": 2}}, r"throughput\.V100\.bach"),
)


@pytest.mark.parametrize(("wrong", "message"), BAD)
def test_what_is_wrong_with_a_throughput_is_said(wrong: dict[str, dict[str, float]], message: str) -> None:
    cluster = ss.load_cluster("ec2-p3-10")
    with pytest.raises(InputError, match=message):
        model = ss.load_model("vgg16", throughput=wrong)
        ss.predict(ss.build_schedule("all_reduce", model, cluster, batch_per_worker=32), cluster)


def test_a_throughput_is_checked_where_it_is_made() -> None:
    with pytest.raises(InputError, match=r"throughput\.V100: samples_per_s is -1"):
        Throughput(device="V100", samples_per_s=-1, batch=1)
    with pytest.raises(InputError, match=r"throughput\.V100: batch is 0"):
        throughput_costs("V100", RESNET, "fp32", 340, 0)
    with pytest.raises(InputError, match="two throughputs of device V100"):
        replace(KNOWN, throughput=KNOWN.throughput * 2)


FILE = """\
name: known
cluster: ec2-p3-10
nodes: 2
models:
  - model: resnet50
    throughput: {DEVICE: {samples_per_s: 340, batch: 64}}
strategies: [all_reduce]
"""


def test_an_experiment_states_it(tmp_path: Path) -> None:
    path = tmp_path / "known.yaml"
    path.write_text(FILE.replace("DEVICE", "V100"))
    loaded = load_experiment(str(path))
    (plan,) = plans_of(loaded, cluster_of(loaded))
    assert plan.model.throughput == KNOWN.throughput
    path.write_text(FILE.replace("DEVICE", "V10"))
    loaded = load_experiment(str(path))
    with pytest.raises(InputError, match=r"known\.yaml:5: models\.0.*no device 'V10'.*compute on V100"):
        plans_of(loaded, cluster_of(loaded))
