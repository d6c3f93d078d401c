"""Training with accumulated gradients equals one process on the same global batches."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stanza_sim.execute.start.launch import Pool
from stanza_sim.execute.train.reference import largest_deviation, train
from stanza_sim.model.profile import ModelProfile
from tests.execute.execute_variants import VARIANTS, expected_bytes, job_of, run, schedule_of

TOLERANCE = 1e-4
CHOSEN = (
    "colocated-sliced",
    "all-reduce",
    "stanza-arrival-2-uneven",
    "stanza-2-sliced-microbatches",
    "factors",
    "fsdp-by-host",
)


@pytest.mark.parametrize(
    "variant", [pytest.param(v, marks=() if v[0] in CHOSEN else pytest.mark.nightly, id=v[0]) for v in VARIANTS]
)
def test_accumulated_gradients_are_those_of_one_process(
    pool: Pool, tiny: ModelProfile, variant: tuple[str, str, int, dict[str, object]]
) -> None:
    """Three steps of an uneven number of samples: each rank draws three times as many, and moves what is stated."""
    _, strategy, world, settings = variant
    schedule = schedule_of(tiny, strategy, world, settings, accumulation=3)
    job = job_of(tiny, schedule)
    job = replace(job, training=replace(job.training, iterations=3))
    measured, reference = run(pool, job), train(job)
    assert measured.parameters is not None
    assert largest_deviation(dict(measured.parameters), reference) <= TOLERANCE
    assert measured.losses == pytest.approx(reference.losses, rel=1e-5)
    assert (list(measured.sent_bytes), list(measured.received_bytes)) == expected_bytes(schedule, 3)
