"""Training with a schedule equals single-process SGD on the same global batches."""

from __future__ import annotations

import pytest

from stanza_sim.execute.start.launch import Pool
from stanza_sim.execute.train.reference import largest_deviation, train
from stanza_sim.model.profile import ModelProfile
from tests.execute.execute_variants import ROUNDED, VARIANTS, job_of, run, schedule_of

TOLERANCE = 1e-4
ROUNDED_TOLERANCE = 1e-2


@pytest.mark.parametrize(("strategy", "world", "settings"), [v[1:] for v in VARIANTS], ids=[v[0] for v in VARIANTS])
def test_every_variant_equals_sgd(
    pool: Pool, tiny: ModelProfile, strategy: str, world: int, settings: dict[str, object]
) -> None:
    job = job_of(tiny, schedule_of(tiny, strategy, world, settings))
    measured = run(pool, job)
    reference = train(job)
    assert measured.parameters is not None
    assert largest_deviation(dict(measured.parameters), reference) <= TOLERANCE
    assert measured.losses == pytest.approx(reference.losses, rel=1e-5)


@pytest.mark.parametrize(("strategy", "world", "settings"), [v[1:] for v in ROUNDED], ids=[v[0] for v in ROUNDED])
def test_rounded_activations_are_sgd_within_a_looser_tolerance(
    pool: Pool, tiny: ModelProfile, strategy: str, world: int, settings: dict[str, object]
) -> None:
    """They differ, or nothing was rounded; as stated where `activations` is explained."""
    job = job_of(tiny, schedule_of(tiny, strategy, world, settings))
    measured = run(pool, job)
    reference = train(job)
    assert measured.parameters is not None
    assert TOLERANCE < largest_deviation(dict(measured.parameters), reference) <= ROUNDED_TOLERANCE
    assert measured.losses == pytest.approx(reference.losses, rel=1e-3)
