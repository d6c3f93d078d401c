"""What the label of a sample is, and which loss the model's output is held to: shapes and bytes, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import prod

INDEX_BYTES = 8
"""Bytes of one class index: an int64, as torch's cross entropy takes it."""
IGNORED = -100
"""The class index that counts for nothing, as `ignore_index` of torch's cross entropy has it."""


class Loss(StrEnum):
    """Losses, each the mean over what is compared: positions of the global batch, or elements of the output.

    `BCE` is binary cross entropy on logits: the model's last layer has no sigmoid.
    """

    CROSS_ENTROPY = "cross_entropy"
    MSE = "mse"
    BCE = "bce"


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """The labels of a model with outputs of some shape.

    `shape` is that of one sample's label. Under cross entropy labels are class indices, one for each position, or with
    `probabilities` one number for each class of it; `class_axis` is the dimension of a sample's output that has the
    classes: -1 for (positions, classes), 0 for (classes, height, width). Other losses compare all elements.
    """

    loss: Loss = Loss.CROSS_ENTROPY
    shape: tuple[int, ...] = ()
    class_axis: int = -1
    probabilities: bool = False

    @property
    def indices(self) -> bool:
        """Whether labels are class indices rather than numbers of the parameters' type."""
        return self.loss is Loss.CROSS_ENTROPY and not self.probabilities

    @property
    def has_perplexity(self) -> bool:
        """Whether the exponential of the mean loss is a perplexity: labels are the tokens at several positions."""
        return self.indices and bool(self.shape)

    def nbytes(self, itemsize: int) -> int:
        """Bytes of one sample's label; numbers have `itemsize` bytes."""
        return prod(self.shape) * (INDEX_BYTES if self.indices else itemsize)

    def classes(self, output: Sequence[int]) -> int:
        """How many classes an output of that shape tells apart; 1 under a loss without classes."""
        return output[self.class_axis] if self.loss is Loss.CROSS_ENTROPY and output else 1

    def compared(self, output: Sequence[int]) -> int:
        """How many terms the loss of one sample is the mean of, if none is ignored."""
        return prod(output) // self.classes(output)


def usual_labels(output: Sequence[int], loss: Loss = Loss.CROSS_ENTROPY) -> Labels:
    """The labels of a model whose outputs have the shape `output`, where no data says otherwise.

    Classes are the last dimension of (classes) and (positions, classes), the first of (classes, height, width) and of
    what has more dimensions.
    """
    output = tuple(output)
    if loss is not Loss.CROSS_ENTROPY:
        return Labels(loss=loss, shape=output)
    return Labels(shape=output[1:], class_axis=0) if len(output) > 2 else Labels(shape=output[:-1])
