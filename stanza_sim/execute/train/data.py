"""Datasets for training: which there are, what their samples must be, and which of them each iteration draws."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence, Sized
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stanza_sim.base.errors import InputError
from stanza_sim.base.user_code import check_found, check_module
from stanza_sim.execute.train.flat import dtype_of
from stanza_sim.model.labels import IGNORED, Labels, Loss
from stanza_sim.model.profile import ModelInput, ModelProfile

HELD_OUT = 5
"""One sample in so many is held out for the accuracy after training."""
HELD_OUT_MOST = 2000
SYNTHETIC_SAMPLES = 4096
_HINT = "data is `synthetic`, `digits`, or package.module:name of a torch Dataset or of a function that returns one"
_PAIR = "a sample is a pair of a tensor (or numpy array) and its label"
Inputs = tuple[Tensor, ...]
"""What the first block is called with: one tensor, or those of a model with `more_inputs`; samples first in a batch."""
_USER_ERRORS = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, OSError, RuntimeError),
    *(SyntaxError, TypeError, ValueError),
)


class Items(Protocol):
    """A dataset as its author made it: `items[i]` is a pair of what is convertible to tensors."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> object: ...


class Synthetic:
    """Normal noise, or random tokens, with random labels; sample i is made from (seed, i)."""

    def __init__(self, model: ModelProfile, seed: int) -> None:
        self._model, self._seed = model, seed
        self._output = model.blocks[-1].output_shape

    def __len__(self) -> int:
        return SYNTHETIC_SAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor | Inputs, Tensor]:
        generator = torch.Generator().manual_seed((self._seed * SYNTHETIC_SAMPLES + index) % 2**63)
        labels = self._model.labels
        every = tuple(
            torch.randn(one.shape, generator=generator)
            if one.vocabulary is None
            else torch.randint(one.vocabulary or 2, one.shape, generator=generator)
            for one in inputs_of(self._model)
        )
        x = every if len(every) > 1 else every[0]
        if labels.indices:
            return x, torch.randint(labels.classes(self._output), labels.shape, generator=generator)
        y = torch.randn(labels.shape, generator=generator)
        if labels.probabilities:
            y = y.softmax(labels.class_axis)
        return x, (y > 0).float() if labels.loss is Loss.BCE else y


def _digits() -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Pixels, of shape (samples, 64), and labels. Raises `InputError` without scikit-learn.

    Every rank loads them, and importing scikit-learn takes longer than all else that a rank does before it begins, so
    its file is read where it is known to lie.
    """
    found = find_spec("sklearn")
    if found is None:
        hint = "pip install 'stanza-sim[torch]', or use data: synthetic"
        raise InputError("data `digits` needs scikit-learn", hint=hint)
    for folder in found.submodule_search_locations or ():
        path = Path(folder, "datasets", "data", "digits.csv.gz")
        if path.is_file():
            table = np.loadtxt(path, delimiter=",")
            return table[:, :-1], table[:, -1]
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return pixels, labels


class Digits:
    """Scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, scaled to mean 0 and variance 1 over the set."""

    def __init__(self) -> None:
        pixels, labels = _digits()
        x = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8)
        self._x = (x - x.mean()) / x.std()
        self._y = [int(y) for y in labels]

    def __len__(self) -> int:
        return len(self._y)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._x[index], self._y[index]


def _imported(path: str) -> Items:
    """The Dataset at `package.module:name`, called without arguments if it is a function or a class."""
    where = f"data {path!r}"
    module_name, colon, attribute = path.partition(":")
    if not colon or not module_name or not attribute:
        raise InputError("there is no such data", where=where, hint=_HINT)
    check_module(module_name, where)
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)
    try:
        found = getattr(importlib.import_module(module_name), attribute)
        check_found(found, where)
        made = found() if callable(found) else found
    except _USER_ERRORS as e:
        raise InputError(f"{type(e).__name__}: {e}", where=where, hint=_HINT) from e
    if isinstance(made, torch.utils.data.DataLoader):
        hint = "give its dataset: batches are drawn here, alike for every strategy"
        raise InputError("is a DataLoader, which makes batches of its own", where=where, hint=hint)
    if isinstance(made, torch.utils.data.IterableDataset):
        hint = "give a Dataset with __len__ and __getitem__: every rank draws its own samples by number"
        raise InputError("is an IterableDataset, without length or numbered samples", where=where, hint=hint)
    if not isinstance(made, Sized) or not hasattr(made, "__getitem__"):
        raise InputError(f"is a {type(made).__name__} without length or items", where=where, hint=_HINT)
    return cast(Items, made)


class Dataset:
    """The samples of a dataset as a model takes them: `dataset[i]` is a pair of tensors, checked and of fixed types.

    Inputs are of the parameters' type, or int64 where the model takes tokens; labels are int64 class indices or of the
    parameters' type. Raises `InputError`, with the dataset and the sample's number, for one that does not fit.
    """

    def __init__(self, name: str, items: Items, model: ModelProfile, labels: Labels) -> None:
        self.name, self._items, self._model, self._labels = name, items, model, labels
        self._float = dtype_of(model.itemsize)
        self._classes = labels.classes(model.blocks[-1].output_shape)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> tuple[Inputs, Tensor]:
        where = f"data {self.name!r}, sample {index}"
        wanted = inputs_of(self._model)
        xs, y = sample_of(self._items, index, self._model, where)
        return tuple(self._input(x, one, where) for x, one in zip(xs, wanted, strict=True)), self._label(y, where)

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample's inputs."""
        every = inputs_of(self._model)
        return sum(prod(one.shape) * (self._model.itemsize if one.vocabulary is None else 8) for one in every)

    def _input(self, x: Tensor, wanted: ModelInput, where: str) -> Tensor:
        name = self._model.name
        place = f"{wanted.name} " if self._model.more_inputs else ""
        if tuple(x.shape) != tuple(wanted.shape):
            what = f"{place}has the shape {_words(x)}, model {name} takes {list(wanted.shape)}"
            raise InputError(what, where=where, hint="input_shape is that of one sample, without the batch")
        if wanted.vocabulary is None:
            if x.is_complex():
                raise InputError(f"{place}is {_words(x)}: model {name} takes real numbers", where=where)
            return x.to(self._float)
        if not _whole(x):
            hint = "return tokens as whole numbers (int64): they are looked up in a table"
            raise InputError(f"{place}is {_words(x)}, model {name} takes tokens", where=where, hint=hint)
        low, high = (int(x.min()), int(x.max())) if x.numel() else (0, 0)
        if wanted.vocabulary and (low < 0 or high >= wanted.vocabulary):
            wrong = low if low < 0 else high
            what = f"{place}has token {wrong}, model {name} knows {wanted.vocabulary}: 0 to {wanted.vocabulary - 1}"
            raise InputError(what, where=where)
        return x.to(torch.int64)

    def _label(self, y: Tensor, where: str) -> Tensor:
        labels, model = self._labels, self._model
        if tuple(y.shape) != labels.shape and not (y.numel() == 1 and labels.shape == (1,) and not labels.indices):
            what = f"has a label of shape {list(y.shape)}, {labels.loss} for model {model.name} takes "
            raise InputError(what + (str(list(labels.shape)) if labels.shape else "single numbers"), where=where)
        if not labels.indices:
            found = y.to(self._float).view(labels.shape)
            if labels.loss is Loss.BCE and (odd := found[(found < 0) | (found > 1)]).numel():
                raise InputError(f"has a label {float(odd[0])!r:.20}: bce takes 0 to 1", where=where)
            if not bool(torch.isfinite(found).all()):
                raise InputError("has a label that is not finite", where=where)
            return found
        if not _whole(y):
            hint = "class indices are whole numbers; for numbers to be predicted set training.loss: mse"
            raise InputError(f"has a label of {y.dtype}: cross_entropy takes class indices", where=where, hint=hint)
        found = y.to(torch.int64)
        if wrong := _outside(found, self._classes):
            what = f"has label {wrong[0]}, model {model.name} has {self._classes} classes: 0 to {self._classes - 1}"
            raise InputError(what, where=where, hint=f"{IGNORED} is for what is to be left out")
        return found


def _outside(labels: Tensor, classes: int) -> list[int]:
    wrong = labels[((labels < 0) | (labels >= classes)) & (labels != IGNORED)]
    return [int(wrong.view(-1)[0])] if wrong.numel() else []


def _whole(t: Tensor) -> bool:
    return not (t.is_floating_point() or t.is_complex())


def _words(t: Tensor) -> str:
    return f"{list(t.shape)} of {str(t.dtype).removeprefix('torch.')}"


def inputs_of(model: ModelProfile) -> tuple[ModelInput, ...]:
    """What a sample of `model` has beside its label."""
    first = ModelInput(name="the first input", shape=model.input_shape, vocabulary=model.vocabulary)
    return first, *model.more_inputs


def sample_of(items: Items, index: int, model: ModelProfile, where: str) -> tuple[Inputs, Tensor]:
    """The inputs and the label of a sample as tensors, of whatever shape and type. Raises `InputError`.

    Several inputs are a tuple in front of the label, (inputs, label), or stand before it: (first, second, label).
    """
    count = 1 + len(model.more_inputs)
    try:
        item: object = items[index]
    except _USER_ERRORS as e:
        raise InputError(f"cannot be read: {type(e).__name__}: {e}", where=where) from e
    parts: list[object] = list(item) if isinstance(item, tuple | list) else []
    if count > 1 and len(parts) == 2 and isinstance(parts[0], tuple | list):
        parts = [*parts[0], parts[1]]
    if len(parts) != count + 1:
        what = f"is a {type(item).__name__}"
        if isinstance(item, tuple | list):
            what += f" of {len(item)}: {', '.join(type(v).__name__ for v in item[:4])}"
        if count == 1:
            raise InputError(f"{what}, not a pair", where=where, hint=_PAIR)
        hint = f"model {model.name} takes {count} inputs: a sample is (first, second, ..., label)"
        raise InputError(f"{what}, not {count} inputs and a label", where=where, hint=hint)
    found = []
    for i, value in enumerate(parts):
        try:
            found.append(torch.as_tensor(value))
        except (TypeError, ValueError, RuntimeError) as e:
            part = "input" if i < count else "label"
            raise InputError(f"has a {type(value).__name__} as its {part}", where=where, hint=_PAIR) from e
    return tuple(found[:-1]), found[-1]


def raw(name: str, model: ModelProfile, seed: int) -> Items:
    """The dataset called `name`, with samples; raises `InputError` if there is none."""
    items: Items
    match name:
        case "synthetic":
            items = Synthetic(model, seed)
        case "digits":
            items = Digits()
        case _:
            items = _imported(name)
    try:
        count = len(items)
    except _USER_ERRORS as e:
        raise InputError(f"its length is not known: {type(e).__name__}: {e}", where=f"data {name!r}", hint=_HINT) from e
    if not count:
        raise InputError("has no samples", where=f"data {name!r}")
    return items


def load(name: str, model: ModelProfile, seed: int) -> Dataset:
    """The dataset called `name` for `model` and its labels. Raises `InputError` if the first sample does not fit."""
    found = Dataset(name, raw(name, model, seed), model, model.labels)
    found[0]
    return found


def divide(name: str, count: int, seed: int) -> tuple[list[int], list[int]]:
    """Sample numbers for training and held out, a fixed division under `seed`; synthetic data holds out nothing."""
    if name == "synthetic" or count < HELD_OUT:
        return list(range(count)), []
    order = np.random.default_rng([seed, 1]).permutation(count)
    held_out = min(count // HELD_OUT, HELD_OUT_MOST)
    return order[held_out:].tolist(), order[:held_out].tolist()


def draw(train: Sequence[int], global_batch: int, iterations: int, seed: int) -> list[list[int]]:
    """Sample numbers of each iteration's global batch: permutations of `train` in a row, alike in all ranks."""
    rng = np.random.default_rng([seed, 2])
    numbers = np.asarray(train)
    need = global_batch * iterations
    epochs = [rng.permutation(numbers) for _ in range(-(-need // len(numbers)))]
    stream = np.concatenate(epochs)[:need].reshape(iterations, global_batch)
    return cast("list[list[int]]", stream.tolist())


def stack(items: Dataset, numbers: Sequence[int], device: torch.device) -> tuple[Inputs, Tensor]:
    """Inputs and labels of the samples `numbers`, the samples first."""
    pairs = [items[n] for n in numbers]
    inputs = tuple(torch.stack(each).to(device) for each in zip(*(x for x, _ in pairs), strict=True))
    return inputs, torch.stack([y for _, y in pairs]).to(device)
