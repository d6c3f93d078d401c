"""What is wrong with data, losses and models is said before any rank starts, with what would be right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stanza_sim.base.errors import InputError
from stanza_sim.execute.train import data, early
from stanza_sim.execute.train.known import check_cut_loss
from stanza_sim.experiment.file import load_experiment
from stanza_sim.experiment.fitted import fitted
from stanza_sim.experiment.rows import LeftOutRow, Plan, cluster_of, plans_of
from stanza_sim.model.labels import Labels, Loss
from stanza_sim.schedule import check

MODELS, DATA = "tests.execute.execute_models", "tests.execute.execute_data"
ONE = f"{{model: '{MODELS}:numbers', name: m, input_shape: [1, 8, 8]}}"
NUMBERS = f"{ONE[:-1]}, factory_kwargs: {{outputs: 10}}, boundary: 1}}"
GPT = f"{{model: '{MODELS}:gpt', name: m, input_shape: [8]}}"
LAST = f"{{model: '{MODELS}:gpt', name: m, input_shape: [8], factory_kwargs: {{last: true}}}}"
DENSE = f"{{model: '{MODELS}:dense', name: m, input_shape: [1, 8, 8]}}"
BOTH = f"{{model: '{MODELS}:described', name: m, input_shape: {{image: [1, 8, 8], word: [1]}}}}"
TEXT = """
name: t
cluster: laptop
nodes: 2
batch_per_worker: 8
models: [{model}]
strategies: [{strategy}]
training: {{iterations: 4, warmup: 1, data: "{data}"{more}}}
"""


def plans(
    folder: Path, model: str, data: str, *, loss: str = "", strategy: str = "all_reduce", notes: list[str] | None = None
) -> tuple[Plan, ...]:
    file = folder / "t.yaml"
    path = data if data in ("synthetic", "digits") else f"{DATA}:{data}"
    more = f", loss: {loss}" if loss else ""
    file.write_text(TEXT.format(model=model, data=path, more=more, strategy=strategy))
    loaded = load_experiment(str(file))
    cluster = cluster_of(loaded)
    return fitted(loaded, plans_of(loaded, cluster), [].append if notes is None else notes.append)


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (NUMBERS, "empty", "empty': has no samples"),
        (NUMBERS, "Endless", "is an IterableDataset, without length or numbered samples\n  give a Dataset"),
        (NUMBERS, "loader", "is a DataLoader, which makes batches of its own\n  give its dataset"),
        (NUMBERS, "triples", "sample 0: is a tuple of 3: Tensor, int, str, not a pair"),
        (NUMBERS, "words", "sample 0: has a str as its label"),
        (NUMBERS, "wrong_shape", r"sample 0: has the shape \[3, 8, 8\] of float32, model m takes \[1, 8, 8\]"),
        (NUMBERS, "one_wrong", "sample 7: has label 99, model m has 10 classes: 0 to 9"),
        (NUMBERS, "one_broken", "sample 7: cannot be read: OSError: truncated file"),
        (NUMBERS, "float_class", r"labels are floats of shape \[\], and model m gives \[10\] .*\n  .*or class indices"),
        (NUMBERS, "masks", r"labels have the shape \[8, 8\], and model m gives \[10\]"),
        (ONE, "arrays", r"cross entropy over one class is always 0, .*\n  set training.loss: mse"),
        (ONE, "synthetic", "cross entropy over one class is always 0"),
        (ONE, "digits", "cross entropy over one class is always 0"),
        (DENSE, "arrays", r"labels have the shape \[\], and model m gives \[3, 8, 8\] .*\n  .*of shape \[8, 8\]"),
        (LAST, "far_tokens", "sample 7: has token 40, model m knows 40: 0 to 39"),
        (LAST, "float_tokens", r"is \[8\] of float32, model m takes tokens\n  return tokens as whole numbers"),
        (LAST, "digits", r"has the shape \[1, 8, 8\], model m takes \[8\]"),
        (NUMBERS, "no_such_name", "AttributeError"),
        (BOTH, "arrays", "sample 0: is a tuple of 2: ndarray, int64, not 2 inputs and a label"),
        (BOTH, "images_with_far_words", "sample 0: word has token 99, model m knows 40: 0 to 39"),
    ],
)
def test_data_that_does_not_fit(tmp_path: Path, model: str, data: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        plans(tmp_path, model, data)
    assert "t.yaml:8: training.data" in str(caught.value.where)


@pytest.mark.parametrize(
    ("data", "loss", "message"),
    [
        ("several", "cross_entropy", r"labels have the shape \[10\].*\n  .*set training.loss: bce or mse"),
        ("tens", "bce", "sample 0: has a label .*: bce takes 0 to 1"),
        ("ones", "mse", r"labels have the shape \[\], and mse compares them with outputs of \[10\]"),
        ("digits", "bce", r"bce compares them with outputs of \[10\]"),
    ],
)
def test_a_loss_that_makes_no_sense_of_the_labels(tmp_path: Path, data: str, loss: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        plans(tmp_path, NUMBERS, data, loss=loss)


@pytest.mark.parametrize(
    ("model", "data", "loss", "expected"),
    [
        (NUMBERS, "arrays", "", Labels()),
        (NUMBERS, "tens", "", Labels(loss=Loss.MSE, shape=(10,))),
        (NUMBERS, "several", "", Labels(loss=Loss.BCE, shape=(10,))),
        (NUMBERS, "shares", "cross_entropy", Labels(shape=(10,), probabilities=True)),
        (ONE, "ones", "", Labels(loss=Loss.MSE, shape=(1,))),
        (ONE, "synthetic", "bce", Labels(loss=Loss.BCE, shape=(1,))),
        (GPT, "next_tokens", "", Labels(shape=(8,))),
        (DENSE, "masks", "", Labels(shape=(8, 8), class_axis=0)),
        (LAST, "synthetic", "", Labels()),
        (BOTH, "synthetic", "", Labels()),
    ],
)
def test_labels_say_which_loss_they_are_for(tmp_path: Path, model: str, data: str, loss: str, expected: Labels) -> None:
    (plan,) = plans(tmp_path, model, data, loss=loss)
    assert plan.model.labels == expected
    check(plan.schedule, plan.model)


def test_classes_in_the_first_dimension_of_a_head_that_is_cut(tmp_path: Path) -> None:
    model, strategy = f"{GPT[:-1]}, boundary: head}}", "sharded_head"
    (tmp_path / "t.yaml").write_text(TEXT.format(model=model, data="synthetic", more="", strategy=strategy))
    loaded = load_experiment(str(tmp_path / "t.yaml"))
    (plan,) = fitted(loaded, plans_of(loaded, cluster_of(loaded)))
    *rest, classes = plan.model.blocks[-1].output_shape
    other = replace(plan.model, stated_labels=Labels(shape=(classes,), class_axis=0))
    check_cut_loss(plan.model, plan.schedule)
    with pytest.raises(InputError, match=rf"in the first dimension.*\n  return class indices of shape \[{rest[0]}\]"):
        check_cut_loss(other, plan.schedule)


def test_a_fixed_number_of_samples_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early, "MOST", 1)
    assert plans(tmp_path, NUMBERS, "one_wrong")  # it is sample 7
    assert list(early._first(3, iter([0, 2, 0, 1, 5]))) == [0, 2, 1]


def test_bce_names_the_label_that_does_not_fit(tmp_path: Path) -> None:
    (plan,) = plans(tmp_path, ONE, "synthetic", loss="bce")
    pair = (torch.zeros(1, 8, 8), torch.tensor([-1.0]))
    with pytest.raises(InputError, match=r"has a label -1.0: bce takes 0 to 1"):
        data.Dataset("d", [pair], plan.model, plan.model.labels)[0]


def test_schedules_have_the_bytes_of_the_labels(tmp_path: Path) -> None:
    strategy = "{strategy: stanza, settings: {fc_workers: 1}}"
    as_classes, as_numbers = (plans(tmp_path, NUMBERS, data, strategy=strategy)[0] for data in ("arrays", "tens"))
    more = [op.nbytes for plan in (as_classes, as_numbers) for op in plan.schedule.ops if op.name == "act"]  # type: ignore[union-attr]
    assert more[1] - more[0] == 8 * (10 * 4 - 8)
    check(as_numbers.schedule, as_numbers.model)


def test_few_samples_are_said(tmp_path: Path) -> None:
    notes: list[str] = []
    plans(tmp_path, NUMBERS, "short", notes=notes)
    assert [n.partition(":")[0] for n in notes] == ["note"]
    assert "has 8 samples to train on, with 2 held out for the accuracy: fewer than the global batch of 16" in notes[0]


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("half", r"parameters are float16 .*\n  .*set precision: fp16"),
        ("drawn", "random numbers of 'attention' depend on how samples are spread"),
    ],
)
def test_models_that_cannot_be_trained(tmp_path: Path, factory: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        plans(tmp_path, f"{{model: '{MODELS}:{factory}', input_shape: [1, 8, 8]}}", "arrays")
    assert "t.yaml:6: models.0" in str(caught.value.where)


def test_a_scaled_model_has_nothing_to_train(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a table of numbers without a factory"):
        plans(tmp_path, "{model: alexnet, scale: {bytes: 0.5}}", "synthetic")


def test_dropout_between_the_layers_of_one_is_none(tmp_path: Path) -> None:
    """Torch applies it between layers only."""
    for layers in (1, 2):
        model = f"{{model: '{MODELS}:recurrent', name: m, input_shape: [8], factory_kwargs: {{layers: {layers}}}}}"
        if layers == 1:
            assert plans(tmp_path, model, "last_token")
        else:
            with pytest.raises(InputError, match="random numbers of 'lstm' depend on how samples are spread"):
                plans(tmp_path, model, "last_token")


def test_a_row_that_asks_of_a_block_what_it_cannot_do_is_left_out(tmp_path: Path) -> None:
    """What follows the layer is no elementwise module, so its features cannot be sharded."""
    file = tmp_path / "t.yaml"
    model = f"{{model: '{MODELS}:normed', input_shape: [1, 8, 8], boundary: '2'}}"
    file.write_text(TEXT.format(model=model, data="synthetic", more="", strategy="all_reduce, sharded_head"))
    loaded = load_experiment(str(file))
    cluster = cluster_of(loaded)
    found: list[LeftOutRow] = []
    (plan,) = fitted(loaded, plans_of(loaded, cluster), left_out=found)
    assert plan.strategy.strategy == "all_reduce"
    assert [row.strategy.strategy for row in found] == ["sharded_head"]
    assert "is not elementwise" in str(found[0].error)
    with pytest.raises(InputError, match="is not elementwise"):
        fitted(loaded, plans_of(loaded, cluster))
