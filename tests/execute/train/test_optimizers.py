"""Training with Adam and AdamW, and with clipped gradients, equals torch's in one process, whatever the strategy."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stanza_sim.base.optimizers import OptimizerKind
from stanza_sim.execute.rank.job import LearningRate, Optimizer, RunJob
from stanza_sim.execute.start.launch import Pool
from stanza_sim.execute.train.reference import largest_deviation, train
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule.clipping import with_clipping
from tests.execute.execute_variants import VARIANTS, job_of, run, schedule_of

TOLERANCE = 1e-4
ADAMW = Optimizer(
    kind=OptimizerKind.ADAMW,
    lr=0.01,
    betas=(0.8, 0.9),
    weight_decay=0.5,
    no_decay=("bias", "norm"),
    schedule=LearningRate(kind="cosine", warmup=2),
)
ADAM = replace(ADAMW, kind=OptimizerKind.ADAM, weight_decay=0.05, no_decay=("features.*",))
SGD = Optimizer(lr=0.1, momentum=0.9, weight_decay=5e-3, no_decay=("bias",))
CLIPPED = 0.5
"""The norm of gradients here is 0.6 to 1.4."""
IN_SHORT = (
    "ps-2-cut",
    "colocated-byteps",
    "colocated-sliced-by-host",
    "ps-2-byteps-credit",
    "all-reduce",
    "stanza-2-uneven-ps",
    "stanza-3-sliced-uneven",
    "head-turns-microbatches",
    "factors-auto",
    "local",
)


def job_with(model: ModelProfile, name: str, o: Optimizer) -> RunJob:
    """A variant trained by another optimiser."""
    _, strategy, world, settings = next(v for v in VARIANTS if v[0] == name)
    schedule = replace(schedule_of(model, strategy, world, settings), moments=o.moments)
    if o.clip_norm is not None:
        schedule = with_clipping(schedule)
    job = job_of(model, schedule)
    return replace(job, training=replace(job.training, optimizer=o))


def optimiser(number: int) -> Optimizer:
    """Adam and AdamW in turn, and SGD, all clipped but every fourth."""
    o = (ADAMW, ADAM, SGD)[number % 3]
    return replace(o, clip_norm=None if number % 4 == 3 else CLIPPED)


@pytest.mark.parametrize(
    ("number", "name"),
    [
        *enumerate(IN_SHORT),
        *(pytest.param(i, v[0], marks=pytest.mark.nightly) for i, v in enumerate(VARIANTS) if v[0] not in IN_SHORT),
    ],
)
def test_every_variant_equals_the_optimiser_of_torch(pool: Pool, tiny: ModelProfile, number: int, name: str) -> None:
    job = job_with(tiny, name, optimiser(number))
    measured = run(pool, job)
    reference = train(job)
    assert measured.parameters is not None
    off = largest_deviation(dict(measured.parameters), reference)
    print(name, off, job.training.optimizer.kind, job.training.optimizer.clip_norm)
    assert off <= TOLERANCE
    assert measured.losses == pytest.approx(reference.losses, rel=1e-4)
