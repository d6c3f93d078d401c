"""Kinds of ops that run at speeds of their own: work of models and constants of devices are sorted by them."""

from __future__ import annotations

from enum import StrEnum


class OpKind(StrEnum):
    """What sets how fast an op runs: a product of a certain shape, or passes over memory."""

    CONV_1X1 = "conv1x1"
    CONV_3X3 = "conv3x3"
    CONV = "conv"
    """Dense convolutions of other sizes."""
    GROUPED = "grouped"
    """Convolutions in groups of several channels."""
    DEPTHWISE = "depthwise"
    """Convolutions of one channel each."""
    LINEAR = "linear"
    ATTENTION = "attention"
    """Products of two activations."""
    NORM = "norm"
    ELEMENTWISE = "elementwise"
    """Activations, pooling, sums, copies, softmax: whatever reads and writes and multiplies no matrices."""
    EMBEDDING = "embedding"


PRODUCTS = (
    OpKind.CONV_1X1,
    OpKind.CONV_3X3,
    OpKind.CONV,
    OpKind.GROUPED,
    OpKind.DEPTHWISE,
    OpKind.LINEAR,
    OpKind.ATTENTION,
)
"""The kinds that have FLOPs."""
