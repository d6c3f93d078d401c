"""Models of the shape of another: what is multiplied, what stays, and where a prediction shows it."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stanza_sim.base.errors import InputError
from stanza_sim.cluster import load_cluster
from stanza_sim.experiment.file import load_experiment
from stanza_sim.experiment.rows import cluster_of, plans_of
from stanza_sim.model import zoo
from stanza_sim.model.profile import scaled
from stanza_sim.model.profile_json import from_json, to_json
from stanza_sim.schedule import check, parse
from stanza_sim.simulate.costs import costs_for

factors = st.floats(1e-3, 20)
models = st.sampled_from(["alexnet", "vgg16", "resnet50"])


@given(models, factors, factors)
def test_sizes_and_work_are_multiplied(name, nbytes, compute):
    model = zoo.get(name)
    made = scaled(model, nbytes=nbytes, compute=compute)
    assert [b.name for b in made.blocks] == [b.name for b in model.blocks]
    assert (made.boundary, made.itemsize, made.num_classes) == (model.boundary, model.itemsize, model.num_classes)
    for after, before in zip(made.blocks, model.blocks, strict=True):
        for a, b in zip(after.tensors, before.tensors, strict=True):
            assert a.numel == max(1, round(b.numel * nbytes)) or nbytes == 1
            assert (a.name, len(a.shape)) == (b.name, len(b.shape))
        assert abs(after.output_numel - before.output_numel * nbytes) <= 1
        for what in ("forward_flops", "backward_input_flops", "backward_weight_flops", "bytes_touched"):
            assert abs(getattr(after, what) - getattr(before, what) * compute) <= 0.5
        assert after.kernels == before.kernels


def test_the_sizes_of_a_whole_model():
    assert scaled(zoo.get("vgg16"), nbytes=0.01).nbytes == pytest.approx(0.01 * zoo.get("vgg16").nbytes, rel=1e-5)


def test_factors_of_one_change_nothing():
    model = zoo.get("alexnet")
    assert scaled(model) is model
    only_compute = scaled(model, compute=2)
    assert [b.tensors for b in only_compute.blocks] == [b.tensors for b in model.blocks]


@pytest.mark.parametrize("factor", [0, -1, float("nan"), float("inf")])
def test_factors_are_positive(factor):
    with pytest.raises(InputError, match="model alexnet: bytes cannot be scaled by"):
        scaled(zoo.get("alexnet"), nbytes=factor)


def test_it_cannot_be_trained_but_is_as_fast_as_what_it_was_scaled_from():
    model = zoo.get("vgg16")
    small, long = scaled(model, nbytes=0.01), scaled(scaled(model, nbytes=0.01), compute=3)
    assert (small.factory, small.scaled_from) == (None, model.factory)
    assert (long.factory, long.scaled_from) == (None, model.factory)
    cluster = load_cluster("star")
    costs = [costs_for(cluster, m)(0) for m in (model, small, long)]
    assert costs[1].source == costs[0].source, "the efficiency that was fitted for VGG-16"
    block = model.blocks[4]
    forward = [c.forward_s(m.block(block.name), 32) for c, m in zip(costs, (model, small, long), strict=True)]
    assert forward[1] == pytest.approx(forward[0])
    assert forward[2] == pytest.approx(3 * forward[0], rel=0.01)


def test_it_reads_back_from_json():
    made = scaled(zoo.get("alexnet"), nbytes=0.1)
    assert from_json(to_json(made), where="here") == made
    assert "scaled_from" not in to_json(zoo.get("alexnet"))


def test_in_an_experiment_the_models_name_says_so(tmp_path: Path):
    path = tmp_path / "small.yaml"
    path.write_text(
        "name: small\ncluster: star\nstrategies: [all_reduce]\nmodels:\n"
        "  - {model: alexnet, scale: {bytes: 0.02}}\n"
        "  - {model: alexnet, name: mine, scale: {bytes: 2.5e6, compute: 1e-5}}\n"
        "  - alexnet\n"
    )
    loaded = load_experiment(str(path))
    titles = [m.title for m in loaded.value.models]
    assert titles == ["alexnet-bytes0.02", "mine-bytes2.5e06-compute1e-05", "alexnet"]
    plans = plans_of(loaded, cluster_of(loaded))
    assert [p.model.name for p in plans] == titles
    assert plans[0].model.nbytes == pytest.approx(0.02 * plans[2].model.nbytes, rel=1e-4)
    for plan in plans[:1]:
        check(plan.schedule, plan.model)
        assert parse(plan.schedule.text()) == plan.schedule
    assert plans_of(loaded, cluster_of(loaded), model="alexnet-bytes0.02")[0].entry == loaded.value.models[0]
    changed = load_experiment(str(path), ["models.0.scale.compute=0.5"])
    assert changed.value.models[0].title == "alexnet-bytes0.02-compute0.5"
    for wrong in ("models.0.scale.bytes=0", "models.0.scale.bytes=small", "models.0.scale.size=2"):
        with pytest.raises(InputError, match=r"models\.0\.scale"):
            load_experiment(str(path), [wrong])
