"""Schedules on an imitation of CUDA's streams and NCCL's waits, and staged: equal to SGD, or known not to be."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from stanza_sim.base.errors import RunError
from stanza_sim.execute.start.launch import Pool
from stanza_sim.execute.start.measure import merge
from stanza_sim.execute.train.reference import largest_deviation, train
from stanza_sim.model.profile import ModelProfile
from tests.execute.execute_variants import VARIANTS, job_of, schedule_of
from tests.execute.fake_cuda import Imitation, OnFakeCuda

TOLERANCE = 1e-4
TIMEOUT_S = 4.0
BY_NAME = {name: variant for name, *variant in VARIANTS}
deadlock = pytest.mark.xfail(
    raises=RunError,
    strict=True,
    reason="finding 2: a receive is posted when its iteration opens, and NCCL's wait then holds up the default stream, "
    "so forward computations queue behind it and the push never leaves",
)
race = pytest.mark.xfail(
    raises=RunError,
    strict=False,
    reason="finding 2 again, but whether a receive's wait comes before the work that it holds up depends on timing",
)
garbage = pytest.mark.xfail(
    raises=AssertionError,
    strict=True,
    reason="finding 3: a staged collective does not see that its output is its source where they are two views of one "
    "tensor, so an all-reduce sums uninitialised memory",
)


@pytest.fixture(scope="module")
def four() -> Iterator[Pool]:
    """Ranks of these tests alone: a run that hangs ends them."""
    with Pool(4, timeout_s=TIMEOUT_S) as ranks:
        yield ranks


@pytest.mark.processes
@pytest.mark.parametrize(
    ("imitation", "variant"),
    [
        (Imitation.STREAM, "all-reduce"),
        pytest.param(Imitation.STREAM, "colocated-cut", marks=race),
        (Imitation.OWN, "ps-1"),
        (Imitation.OWN, "stanza-1"),
        (Imitation.STAGED, "ps-1"),
        pytest.param(Imitation.STAGED, "stanza-2-sliced", marks=garbage),
        pytest.param(Imitation.STREAM, "ps-1", marks=deadlock),
        pytest.param(Imitation.STREAM, "stanza-1", marks=deadlock),
    ],
)
def test_training_on_an_imitated_gpu_equals_sgd(
    four: Pool, tiny: ModelProfile, imitation: Imitation, variant: str
) -> None:
    strategy, world, settings = BY_NAME[variant]
    job = job_of(tiny, schedule_of(tiny, strategy, world, settings), timeout_s=TIMEOUT_S)
    reports = four.run(OnFakeCuda(job, imitation))
    measured = merge(job, [r for r in reports if r is not None])
    reference = train(job)
    assert measured.parameters is not None
    assert largest_deviation(dict(measured.parameters), reference) <= TOLERANCE
    assert measured.losses == pytest.approx(reference.losses, rel=1e-5)
