"""What the held-out samples say of a model: computed on the CPU, in the type of its parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from stanza_sim.execute.rank.job import Score
from stanza_sim.execute.train import data, losses
from stanza_sim.execute.train.whole import Whole
from stanza_sim.model.extract import split
from stanza_sim.model.profile import ModelProfile

AT_ONCE = 256


def score(
    model: ModelProfile, whole: Whole, items: data.Dataset, numbers: Sequence[int], done: int, beat: Callable[[], None]
) -> Score | None:
    """What the samples `numbers` say of the `whole` model after `done` iterations; None where none of them counts.

    `beat` is called from time to time.
    """
    module = whole.module(model).eval()
    kind, output = model.labels, model.blocks[-1].output_shape
    right = of = count = 0
    total = 0.0
    with torch.no_grad():
        parts = split(module, model)
        for i in range(0, len(numbers), AT_ONCE):
            beat()
            x, y = data.stack(items, numbers[i : i + AT_ONCE], torch.device("cpu"))
            for part in parts:
                x = (part.module.eval()(*x),)
            total += float(losses.summed_loss(x[0], y, kind))
            count += losses.terms(y, kind, output)
            here = losses.right(x[0], y, kind)
            right, of = right + here[0], of + here[1]
    if not count:
        return None
    mean = total / count
    return Score(
        iteration=done,
        loss=mean,
        accuracy=right / of if of else None,
        perplexity=math.exp(min(mean, 700.0)) if kind.has_perplexity else None,
    )
