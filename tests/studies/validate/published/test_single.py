"""One GPU's throughput from a published row: every row of the project's own copy, and what is wrong with others."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from stanza_sim.base.errors import InputError
from stanza_sim.cluster.device import load_device
from stanza_sim.model.module_work import read_works
from stanza_sim.simulate.fit.rows import SINGLE, WORKS
from stanza_sim.studies.validate.published import single
from stanza_sim.studies.validate.published.names import device_of, precision_of
from stanza_sim.studies.validate.published.single import predict_single

ROW = {
    "gpu": "A100-SXM4-40GB",
    "framework": "PyTorch, eager, forward and backward only",
    "precision": "fp32 setting (TF32 likely)",
    "model": "resnet18",
    "factory": "torchvision",
    "batch": "12",
    "image": "224",
}


@pytest.fixture(autouse=True)
def recorded_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """The works that are shipped for the fit, so that nothing is built here."""
    known = read_works(WORKS)
    monkeypatch.setattr(single, "work_of", lambda model, factory, image: known[f"{factory}:{model}:{image}"])


def test_all_rows_are_predicted_within_the_bounds() -> None:
    with SINGLE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    errors = np.array([abs(predict_single(row) / float(row["samples_per_s"]) - 1) for row in rows])
    assert len(errors) == 40
    assert np.median(errors) < 0.08
    assert np.quantile(errors, 0.9) < 0.15


def test_updates_graphs_and_precisions_are_read_from_the_row() -> None:
    without = predict_single(ROW)
    assert predict_single(ROW | {"framework": "PyTorch, eager"}) < without
    assert predict_single(ROW | {"framework": "PyTorch, compiled, forward and backward only"}) > 1.5 * without
    assert predict_single(ROW | {"precision": "AMP bf16", "batch": "512"}) > predict_single(ROW | {"batch": "512"})


@pytest.mark.parametrize(
    ("gpu", "name"),
    [
        ("NVIDIA GeForce RTX 3090", "RTX3090"),
        ("Tesla V100-SXM2-16GB", "V100"),
        ("NVIDIA A100 80GB PCIe", "A100"),
        ("H100 SXM", "H100"),
        ("Tesla K80", "K80"),
    ],
)
def test_gpus_by_their_vendors_names(gpu: str, name: str) -> None:
    assert device_of(gpu).name == name


def test_precisions() -> None:
    a100, v100 = load_device("A100"), load_device("V100")
    assert precision_of("AMP fp16, NCHW", a100) == "fp16"
    assert precision_of("bf16 autocast", a100) == "bf16"
    assert precision_of("fp32 setting (TF32 likely)", a100) == "tf32"
    assert precision_of("float32", v100) == "fp32"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gpu": "RTX 4090"}, "no device for 'RTX 4090'\n  the devices are A100"),
        ({"precision": "int8"}, "the precision 'int8' is not known"),
        ({"precision": "AMP", "gpu": "K80"}, "device K80 has no data for precision 'fp16'"),
        ({"batch": "-3"}, "batch is '-3'\n  a whole number"),
        ({"image": "0"}, "image is '0'"),
        ({"model": ""}, "the column 'model' is missing or empty"),
    ],
)
def test_rows_that_cannot_be_predicted_say_why(change: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        predict_single(ROW | change)
