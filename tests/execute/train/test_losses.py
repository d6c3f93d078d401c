"""Losses on whole outputs and on slices of the classes are torch's; accuracy is over positions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stanza_sim.execute.train.losses import right, sliced_loss, summed_loss, terms
from stanza_sim.model.labels import IGNORED, Labels, Loss, usual_labels


def outputs(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def indices(classes: int, *shape: int) -> Tensor:
    return torch.randint(classes, shape, generator=torch.Generator().manual_seed(2))


def some_ignored(labels: Tensor) -> Tensor:
    flat = labels.clone().view(-1)
    flat[::3] = IGNORED
    return flat.view(labels.shape)


@pytest.mark.parametrize(
    ("output", "labels", "kind", "expected"),
    [
        (outputs(4, 5), indices(5, 4), usual_labels((5,)), F.cross_entropy),
        (outputs(4, 5), some_ignored(indices(5, 4)), usual_labels((5,)), F.cross_entropy),
        (outputs(4, 3, 5), some_ignored(indices(5, 4, 3)), usual_labels((3, 5)), "last"),
        (outputs(4, 3, 6, 7), some_ignored(indices(3, 4, 6, 7)), usual_labels((3, 6, 7)), F.cross_entropy),
        (outputs(4, 3, 6), indices(3, 4, 6), Labels(shape=(6,), class_axis=0), F.cross_entropy),
        (outputs(4, 5), outputs(4, 5).softmax(1), Labels(shape=(5,), probabilities=True), F.cross_entropy),
        (outputs(4, 3, 2), outputs(4, 3, 2), usual_labels((3, 2), Loss.MSE), F.mse_loss),
        (outputs(4, 3), (outputs(4, 3) > 0).float(), usual_labels((3,), Loss.BCE), F.binary_cross_entropy_with_logits),
    ],
)
def test_a_sum_over_terms_is_the_mean_of_torch(output: Tensor, labels: Tensor, kind: Labels, expected: object) -> None:
    mean = F.cross_entropy(output.movedim(-1, 1), labels) if expected == "last" else expected(output, labels)  # type: ignore[operator]
    shape = tuple(output.shape[1:])
    torch.testing.assert_close(summed_loss(output, labels, kind) / terms(labels, kind, shape), mean)


@pytest.mark.parametrize("bounds", [[(0, 7)], [(0, 3), (3, 5), (5, 7)]])
@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        (usual_labels((2, 7)), some_ignored(indices(7, 5, 2))),
        (Labels(shape=(2, 7), probabilities=True), outputs(5, 2, 7).softmax(-1)),
        (usual_labels((2, 7), Loss.MSE), outputs(5, 2, 7) * 2),
        (usual_labels((2, 7), Loss.BCE), (outputs(5, 2, 7) > 0).float()),
    ],
)
def test_losses_on_slices_add_up(kind: Labels, labels: Tensor, bounds: list[tuple[int, int]]) -> None:
    logits = (3 * outputs(5, 2, 7)).requires_grad_()
    expected = summed_loss(logits, labels, kind)
    (gradient,) = torch.autograd.grad(expected, logits)
    slices = [logits.detach()[..., lo:hi] for lo, hi in bounds]
    logsum = torch.stack([x.logsumexp(-1) for x in slices]).logsumexp(0)
    made = [
        sliced_loss(x, labels, logsum, b, kind, first=i == 0)
        for i, (x, b) in enumerate(zip(slices, bounds, strict=True))
    ]
    torch.testing.assert_close(torch.cat([g for g, _ in made], dim=-1), gradient)
    torch.testing.assert_close(sum(loss for _, loss in made), expected.detach())


def test_accuracy_is_over_positions_that_count() -> None:
    scores = torch.tensor([[[2.0, 1.0], [0.0, 1.0], [1.0, 0.0]]])
    labels = torch.tensor([[0, 0, IGNORED]])
    assert right(scores, labels, usual_labels((3, 2))) == (1, 2)
    assert right(scores.movedim(-1, 1), labels, Labels(shape=(3,), class_axis=0)) == (1, 2)
    assert right(scores[0, :2], torch.tensor([[1.0, 0.0], [1.0, 1.0]]), usual_labels((2,), Loss.BCE)) == (2, 4)
    assert right(scores, scores, usual_labels((3, 2), Loss.MSE)) == (0, 0)
