"""Training with Adam and AdamW, and with clipped gradients, equals torch's in one process, whatever the strategy."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stanza_sim.base.optimizers import OptimizerKind
from stanza_sim.execute.rank.job import LearningRate, Optimizer, RunJob
from stanza_sim.execute.start.launch import Pool
from stanza_sim.execute.train.reference import largest_deviation, train
from stanza_sim.model.profile import ModelProfile
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
    job = job_of(model, schedule)
    return replace(job, training=replace(job.training, optimizer=o))


@pytest.mark.parametrize(
    "name", [v[0] if v[0] in IN_SHORT else pytest.param(v[0], marks=pytest.mark.nightly) for v in VARIANTS]
)
def test_every_variant_equals_the_optimiser_of_torch(pool: Pool, tiny: ModelProfile, name: str) -> None:
    o = (ADAMW, ADAM)[IN_SHORT.index(name) % 2 if name in IN_SHORT else len(name) % 2]
    job = job_with(tiny, name, o)
    measured = run(pool, job)
    reference = train(job)
    assert measured.parameters is not None
    assert largest_deviation(dict(measured.parameters), reference) <= TOLERANCE
    assert measured.losses == pytest.approx(reference.losses, rel=1e-4)
