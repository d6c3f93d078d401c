"""Epochs, looks at held-out samples, targets, and files of trainings: what an experiment may say of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pydantic import ValidationError

from stanza_sim.base.errors import InputError
from stanza_sim.experiment.file import DIGITS, Training
from stanza_sim.experiment.loops import Files, Length, length_of
from stanza_sim.model.labels import Labels, Loss


def training(**keys: object) -> Training:
    return Training.model_validate({"data": "digits", **keys})


@pytest.mark.parametrize(
    ("keys", "batch", "wanted"),
    [
        ({}, 64, Length(iterations=60, warmup=10, evaluate=None)),
        ({"epochs": 2}, 64, Length(iterations=45, warmup=10, evaluate=None)),  # 44.9 batches
        ({"epochs": 0.1}, 64, Length(iterations=3, warmup=1, evaluate=None)),
        ({"epochs": 2, "iterations": 30}, 64, Length(iterations=30, warmup=10, evaluate=None)),
        ({"evaluate": {"iterations": 7}}, 64, Length(iterations=60, warmup=10, evaluate=7)),
        ({"evaluate": {"epochs": 0.5}}, 719, Length(iterations=60, warmup=10, evaluate=1)),
        ({"target": {"accuracy": 0.9}}, 719, Length(iterations=60, warmup=10, evaluate=2)),
    ],
)
def test_epochs_are_so_many_iterations(keys: dict[str, object], batch: int, wanted: Length) -> None:
    assert length_of(training(**keys), batch, DIGITS) == wanted


def test_epochs_of_stated_samples_are_for_time_and_cost_only() -> None:
    stated = training(data="synthetic", epochs=90, samples=1_281_167)
    assert length_of(stated, 64, None).iterations == 60
    assert stated.all_samples == 90 * 1_281_167
    assert training(data="mine:data", epochs=3).all_samples is None


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"data": "synthetic", "epochs": 3}, "how many samples an epoch"),
        ({"data": "synthetic", "evaluate": {"epochs": 1}}, "`evaluate` is of held-out samples, and synthetic data"),
        ({"data": "synthetic", "target": {"accuracy": 0.9}}, "`target` is of held-out samples"),
        ({"evaluate": {}}, "one of iterations and epochs"),
        ({"evaluate": {"epochs": 1, "iterations": 5}}, "one of iterations and epochs"),
        ({"evaluate": {"iterations": 0}}, "greater than or equal to 1"),
        ({"target": {"accuracy": 1.5}}, "less than or equal to 1"),
        ({"target": {"perplexity": 0.5}}, "greater than or equal to 1"),
        ({"target": {"accuracy": 0.9, "perplexity": 3}}, "one of accuracy and perplexity"),
        ({"accumulation": 0}, "greater than or equal to 1"),
    ],
)
def test_what_makes_no_sense_is_refused(keys: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        training(**keys)


def test_epochs_too_short_to_be_timed_are_refused() -> None:
    with pytest.raises(InputError, match="1 epochs are 2 iterations, and with 5 of warm-up"):
        length_of(training(epochs=1, warmup=5), 719, DIGITS)


def test_a_target_is_of_labels_that_have_it() -> None:
    tokens, digits, numbers = Labels(shape=(16,)), Labels(), Labels(loss=Loss.MSE, shape=(3,))
    for target, labels in (({"perplexity": 3}, tokens), ({"accuracy": 0.5}, tokens), ({"accuracy": 0.5}, digits)):
        wanted = training(target=target).target
        assert wanted is not None
        wanted.check(labels)
    for target, labels in (({"perplexity": 3}, digits), ({"perplexity": 3}, numbers), ({"accuracy": 0.5}, numbers)):
        wanted = training(target=target).target
        assert wanted is not None
        with pytest.raises(InputError, match="loss is"):
            wanted.check(labels)


def plan(model: str, row: str) -> Any:
    return cast(Any, SimpleNamespace(entry=SimpleNamespace(title=model), strategy=SimpleNamespace(title=row)))


def test_rows_have_files_of_their_own(tmp_path: Path) -> None:
    rows = [plan("net", "ring / fast"), plan("net", "tree")]
    files = Files(save=tmp_path / "{model}-{row}.pt")
    files.check(rows, emulated=False)
    assert [Path(files.of(one, files.save) or "").name for one in rows] == ["net-ring-fast.pt", "net-tree.pt"]
    assert files.of(rows[0], files.resume) is None
    with pytest.raises(InputError, match="2 rows would have one file"):
        Files(save=tmp_path / "{model}.pt").check(rows, emulated=False)
    with pytest.raises(InputError, match="lies in no folder"):
        Files(save=tmp_path / "no" / "{row}.pt").check(rows, emulated=False)
    with pytest.raises(InputError, match="with emulated compute nothing is trained"):
        Files(resume=tmp_path / "a.pt").check(rows[:1], emulated=True)
