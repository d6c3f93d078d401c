"""Losses over positions: their sums, what a mean is over, on whole outputs and on slices of the classes; accuracy.

A rank sums the losses of its samples. What the sum is divided by, the number of terms of the global batch, is known to
all before the run (`terms`), so that the mean is torch's own: of cross entropy over all positions whose label is not
`IGNORED`, of the other losses over all elements.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stanza_sim.model.labels import IGNORED, Labels, Loss


def summed_loss(output: Tensor, labels: Tensor, kind: Labels) -> Tensor:
    """The sum of the losses of all samples and positions, of `output` and `labels` with the samples first."""
    match kind.loss:
        case Loss.CROSS_ENTROPY if kind.probabilities:
            rows, wanted = _rows(output, kind), _rows(labels, kind)
            return F.cross_entropy(rows, wanted.to(rows.dtype), reduction="sum")
        case Loss.CROSS_ENTROPY:
            return F.cross_entropy(_rows(output, kind), labels.reshape(-1), reduction="sum", ignore_index=IGNORED)
        case Loss.MSE:
            return F.mse_loss(output, labels.to(output.dtype), reduction="sum")
        case Loss.BCE:
            return F.binary_cross_entropy_with_logits(output, labels.to(output.dtype), reduction="sum")


def _rows(output: Tensor, kind: Labels) -> Tensor:
    """`output` as (positions of all samples, classes)."""
    if kind.class_axis == 0 and output.dim() > 2:
        output = output.movedim(1, -1)
    return output.reshape(-1, output.shape[-1])


def terms(labels: Tensor, kind: Labels, output: Sequence[int]) -> int:
    """How many terms the mean loss of samples with these `labels` is over; `output` is the shape of one output."""
    if kind.indices:
        return int((labels != IGNORED).sum())
    return len(labels) * kind.compared(output)


def sliced_loss(
    logits: Tensor, labels: Tensor, logsum: Tensor, features: tuple[int, int], kind: Labels, *, first: bool
) -> tuple[Tensor, Tensor]:
    """Gradient of the summed loss for a slice (..., width) of the outputs, and this rank's share of that loss.

    `logsum` (...) is the log of the sum of exponentials over all features. The cross entropy of a position is its
    logsum less its label's logit: the latter is counted where it is, the former at the `first` rank.
    """
    lo, hi = features
    width, shape = hi - lo, logits.shape
    if kind.loss is not Loss.CROSS_ENTROPY:
        with torch.enable_grad():
            mine = logits.detach().requires_grad_()
            loss = summed_loss(mine, labels[..., lo:hi], kind)
        return torch.autograd.grad(loss, mine)[0], loss.detach()
    rows, logsums = logits.reshape(-1, width), logsum.reshape(-1)
    gradient = (rows - logsums[:, None]).exp()
    if kind.probabilities:
        wanted = labels.reshape(len(rows), -1).to(rows.dtype)
        whole, here = wanted.sum(1), wanted[:, lo:hi]
        gradient = gradient * whole[:, None] - here
        loss = -(here * rows).sum()
        return gradient.view(shape), loss + (whole * logsums).sum() if first else loss
    flat = labels.reshape(-1)
    counted = flat != IGNORED
    gradient[~counted] = 0
    mine_at = ((flat >= lo) & (flat < hi)).nonzero().view(-1)
    at = flat[mine_at] - lo
    gradient[mine_at, at] -= 1
    loss = -rows[mine_at, at].sum()
    return gradient.view(shape), loss + logsums[counted].sum() if first else loss


def right(output: Tensor, labels: Tensor, kind: Labels) -> tuple[int, int]:
    """How many positions `output` has right, and of how many; (0, 0) for a loss that is of no classes."""
    match kind.loss:
        case Loss.MSE:
            return 0, 0
        case Loss.BCE:
            return int(((output > 0) == (labels > 0.5)).sum()), labels.numel()
        case Loss.CROSS_ENTROPY:
            found = _rows(output, kind).argmax(1)
            wanted = _rows(labels, kind).argmax(1) if kind.probabilities else labels.reshape(-1)
            counted = wanted != IGNORED
            return int((found == wanted)[counted].sum()), int(counted.sum())
