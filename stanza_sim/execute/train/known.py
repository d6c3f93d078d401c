"""Which loss a model's outputs and a label ask for, by their shapes and types. No torch."""

from __future__ import annotations

import sys
from enum import StrEnum
from importlib.util import find_spec

from stanza_sim.base.errors import InputError
from stanza_sim.model.labels import Labels, Loss, usual_labels
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Axis, Schedule

DIGITS_SHAPE, DIGITS_CLASSES = (1, 8, 8), 10
TRAINED_BYTES = (4, 8)
"""Bytes of an element of the types in which parameters are trained: float32 and float64."""


class LabelKind(StrEnum):
    """Of what type a label's elements are."""

    INTEGERS = "integers"
    SWITCHES = "booleans"
    NUMBERS = "floats"


def labels_of(model: ModelProfile, kind: LabelKind, shape: tuple[int, ...], loss: Loss | None, where: str) -> Labels:
    """What labels of that kind and shape are to `model`, under `loss` or, if None, under the one that they ask for.

    Whole numbers are class indices; floats of the output's shape ask for mean squared error, booleans of that shape for
    binary cross entropy. Raises `InputError`, with what would be right, for what makes no sense.
    """
    output = tuple(model.blocks[-1].output_shape)
    whole = shape == output or (shape == () and output == (1,))  # one label for each element
    if loss is None:
        loss = _asked(kind, whole=whole)
        if kind is LabelKind.NUMBERS and not whole:
            raise InputError(
                f"labels are floats of shape {list(shape)}, and model {model.name} gives {list(output)} for a sample",
                where=where,
                hint=f"return floats of shape {list(output)} (mean squared error), or class indices as whole numbers",
            )
    if loss is not Loss.CROSS_ENTROPY:
        if not whole:
            raise InputError(
                f"labels have the shape {list(shape)}, and {loss} compares them with outputs of {list(output)}",
                where=where,
                hint=f"return labels of shape {list(output)}",
            )
        return Labels(loss=loss, shape=output)
    check_classes(model, where)
    usual = model.labels if model.labels.indices else usual_labels(output)
    if kind is LabelKind.NUMBERS:
        if shape != output:
            what = f"labels are floats of shape {list(shape)}: cross_entropy takes class indices of shape "
            hint = f"or floats of shape {list(output)}, one for each class"
            raise InputError(f"{what}{list(usual.shape)}", where=where, hint=hint)
        return Labels(shape=output, class_axis=usual.class_axis, probabilities=True)
    for found in (usual, Labels(shape=output[:-1]), Labels(shape=output[1:], class_axis=0)):
        if shape == found.shape:
            return found
    hint = f"return class indices of shape {list(usual.shape)}" if usual.shape else "return one class index a sample"
    if shape == output:
        hint += "; for one label for each output set training.loss: bce or mse"
    raise InputError(
        f"labels have the shape {list(shape)}, and model {model.name} gives {list(output)} for a sample",
        where=where,
        hint=hint,
    )


def check_cut_loss(model: ModelProfile, schedule: Schedule) -> None:
    """Raise `InputError` where ranks would have slices of the last dimension of outputs whose classes are the first."""
    last = model.blocks[-1]
    cut, labels, output = schedule.cut(last.name), model.labels, list(last.output_shape)
    if cut is None or cut.axis is not Axis.COLUMNS or labels.loss is not Loss.CROSS_ENTROPY:
        return
    if labels.class_axis == 0 and len(output) > 1:
        raise InputError(
            f"labels of shape {list(labels.shape)} have the classes of outputs {output} in the first dimension, and "
            f"ranks have slices of the last of block {last.name}",
            hint=f"return class indices of shape {output[:-1]}, or use a strategy that does not cut the last block",
        )


def check_trainable(model: ModelProfile) -> None:
    """Raise `InputError` for a model without a module, or with parameters of a type that is not trained."""
    if model.factory is None:
        raise InputError(
            f"model {model.name} is a table of numbers without a factory: it cannot be trained",
            hint="emulate its computations with --compute emulated, or name a factory",
        )
    package = model.factory.partition(":")[0].partition(".")[0]
    if package not in sys.modules and find_spec(package) is None:
        hint = f"pip install {package}, or emulate with --compute emulated"
        raise InputError(f"model {model.name} is built by {model.factory}, and there is no {package}", hint=hint)
    if model.itemsize not in TRAINED_BYTES:
        raise InputError(
            f"model {model.name} has parameters of {model.itemsize} bytes, and float32 and float64 are trained",
            hint="build it in float32 and set precision: bf16 or fp16: parameters stay float32, blocks compute in half",
        )


def _asked(kind: LabelKind, *, whole: bool) -> Loss:
    """The loss that a label asks for where none is set; `whole` if there is one for each element of the output."""
    if kind is LabelKind.NUMBERS:
        return Loss.MSE
    return Loss.BCE if kind is LabelKind.SWITCHES and whole else Loss.CROSS_ENTROPY


def check_classes(model: ModelProfile, where: str) -> None:
    """Raise `InputError` where cross entropy would be over one class."""
    output = model.blocks[-1].output_shape
    if usual_labels(output).classes(output) > 1:
        return
    raise InputError(
        f"cross entropy over one class is always 0, and model {model.name} gives {list(output)} for a sample",
        where=where,
        hint="set training.loss: mse for numbers to be predicted (float labels), or bce for yes or no",
    )


def shipped_labels(name: str, model: ModelProfile, loss: Loss | None) -> Labels | None:
    """The labels of `synthetic` and `digits` for `model`; None of other data. Raises `InputError` for a misfit."""
    where = f"data {name!r}"
    if name == "synthetic":
        found = model.labels if loss is None else usual_labels(model.blocks[-1].output_shape, loss)
        if loss is Loss.CROSS_ENTROPY and model.labels.indices:
            found = model.labels
        if found.loss is Loss.CROSS_ENTROPY:
            check_classes(model, where)
        return found
    if name != "digits":
        return None
    if tuple(model.input_shape) != DIGITS_SHAPE:
        what = f"a sample has the shape {list(DIGITS_SHAPE)}, model {model.name} takes {list(model.input_shape)}"
        raise InputError(what, where=where, hint="digits are for models of 8 x 8 images of one channel")
    if model.vocabulary is not None:
        hint = "use data: synthetic, or a Dataset of your own"
        raise InputError(f"samples are images of floats, model {model.name} takes tokens", where=where, hint=hint)
    found = labels_of(model, LabelKind.INTEGERS, (), loss, where)
    classes = found.classes(model.blocks[-1].output_shape)
    if found.loss is Loss.CROSS_ENTROPY and classes < DIGITS_CLASSES:
        raise InputError(f"there are {DIGITS_CLASSES} classes, model {model.name} has {classes}", where=where)
    if found.loss is Loss.BCE:
        raise InputError("labels are 0 to 9: bce takes 0 to 1", where=where, hint="leave training.loss out")
    return found
