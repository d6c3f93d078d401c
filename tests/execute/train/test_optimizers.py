"""Training with Adam and AdamW, and with clipped gradients, equals torch's in one process, whatever the strategy."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from stanza_sim.base.errors import InputError
from stanza_sim.base.optimizers import OptimizerKind
from stanza_sim.execute.rank.job import LearningRate, Optimizer, RunJob
from stanza_sim.execute.start.launch import Pool
from stanza_sim.execute.start.start import check_optimizer
from stanza_sim.execute.train.arithmetic import Arithmetic
from stanza_sim.execute.train.flat import FlatBundle
from stanza_sim.execute.train.norms import counted_runs, squared_norm
from stanza_sim.execute.train.reference import largest_deviation, train
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Wire
from stanza_sim.schedule.clipping import clipping_op, with_clipping
from tests.execute.execute_variants import VARIANTS, expected_bytes, job_of, run, schedule_of
from tests.schedule.test_clipping import pulled_after_update

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
CLIPPED = 1.4
"""The norms of gradients here are from 1.3 to 1.9: some are clipped, by factors that differ."""
IN_SHORT = {
    "ps-2-cut": ADAMW,
    "ps-2-byteps-credit": ADAM,
    "colocated-byteps": SGD,
    "colocated-sliced-by-host": SGD,
    "all-reduce": SGD,
    "stanza-2-uneven-ps": SGD,
    "stanza-3-sliced-uneven": SGD,
    "head-turns-microbatches": ADAMW,
    "factors-auto": ADAM,
    "fsdp-by-host": SGD,
    "pipeline-replicas-stage": ADAMW,
    "ps-2-sliced-no-overlap": SGD,
    "local": ADAMW,
}
"""With clipped gradients: SGD where it is least plain whose part counts, since Adam hardly sees a common factor."""


def job_with(model: ModelProfile, name: str, o: Optimizer, gradients: Wire = Wire.NATIVE) -> RunJob:
    """A variant trained by another optimiser."""
    _, strategy, world, settings = next(v for v in VARIANTS if v[0] == name)
    schedule = replace(schedule_of(model, strategy, world, settings, gradients=gradients), moments=o.moments)
    if o.clip_norm is not None:
        schedule = with_clipping(schedule)
    job = job_of(model, schedule)
    return replace(job, training=replace(job.training, optimizer=o))


@pytest.mark.parametrize("name", IN_SHORT)
def test_clipped_steps_equal_those_of_torch(pool: Pool, tiny: ModelProfile, name: str) -> None:
    job = job_with(tiny, name, replace(IN_SHORT[name], clip_norm=CLIPPED))
    measured = run(pool, job)
    reference = train(job)
    assert measured.parameters is not None
    assert largest_deviation(dict(measured.parameters), reference) <= TOLERANCE
    assert measured.losses == pytest.approx(reference.losses, rel=1e-5)
    sent, received = expected_bytes(job.schedule, job.training.iterations)
    assert (list(measured.sent_bytes), list(measured.received_bytes)) == (sent, received)


@pytest.mark.nightly
@pytest.mark.parametrize("o", [ADAMW, ADAM, SGD], ids=lambda o: str(o.kind))
@pytest.mark.parametrize("clip_norm", [None, CLIPPED])
@pytest.mark.parametrize("name", [v[0] for v in VARIANTS])
def test_every_variant_equals_every_optimiser_of_torch(
    pool: Pool, tiny: ModelProfile, name: str, o: Optimizer, clip_norm: float | None
) -> None:
    job = job_with(tiny, name, replace(o, clip_norm=clip_norm))
    measured = run(pool, job)
    assert largest_deviation(dict(measured.parameters or {}), train(job)) <= TOLERANCE


def test_what_could_be_wrong_would_be_seen(tiny: ModelProfile) -> None:
    """What the tests above compare with differs by far more than they tolerate if an optimiser differs a little."""
    for o, wrong in (
        (SGD, {"clip_norm": 1.01 * CLIPPED}),
        (SGD, {"clip_norm": None}),
        (SGD, {"no_decay": ()}),
        (ADAMW, {"betas": (0.8, 0.91)}),
        (ADAMW, {"kind": OptimizerKind.ADAM}),
        (ADAMW, {"no_decay": ("bias",)}),
        (ADAM, {"betas": (0.79, 0.9)}),
    ):
        job = job_with(tiny, "all-reduce", replace(o, clip_norm=CLIPPED))
        changed = replace(job.training.optimizer, **wrong)
        other = replace(job, training=replace(job.training, optimizer=changed))
        assert largest_deviation(train(other).end, train(job)) > 10 * TOLERANCE, (o.kind, wrong)


@pytest.mark.parametrize("name", [v[0] for v in VARIANTS])
def test_each_element_counts_once_in_the_norm(tiny: ModelProfile, name: str) -> None:
    """Of all owners together, or where each finds the norm by itself of each."""
    schedule = job_with(tiny, name, replace(SGD, clip_norm=CLIPPED)).schedule
    counted: dict[int, int] = {}
    for bundle in schedule.bundles:
        for rank in schedule.owners(bundle):
            device = torch.device("cpu")
            flat = FlatBundle(schedule, tiny, bundle, rank, whole=False, gradients=False, device=device, summed=False)
            runs = counted_runs(schedule, tiny, flat, rank)
            counted[rank] = counted.get(rank, 0) + sum(run.stop - run.start for run in runs)
    numel = sum(block.numel for block in tiny.blocks)
    together = clipping_op(schedule) is not None
    assert ({sum(counted.values())} if together else set(counted.values())) == {numel}


@pytest.mark.parametrize("name", [v[0] for v in VARIANTS])
def test_parameters_are_not_pulled_before_they_are_updated(tiny: ModelProfile, name: str) -> None:
    """What is ahead of a pull by the order of its lane alone stays ahead of it."""
    plain, clipped = (job_with(tiny, name, replace(SGD, clip_norm=c)).schedule for c in (None, CLIPPED))
    assert pulled_after_update(plain) <= pulled_after_update(clipped)


def test_the_norm_of_many_elements_is_exact() -> None:
    gradient = torch.randn(3_000_001, generator=torch.Generator().manual_seed(0))
    runs = [slice(5, 1000), slice(2000, 3_000_001)]
    expected = sum(float(gradient[run].double().square().sum()) for run in runs)
    assert float(squared_norm(gradient, runs)) == pytest.approx(expected, rel=1e-7)
    assert float(squared_norm(gradient, [])) == 0


@pytest.mark.parametrize("name", ["ps-2-cut-by-uneven-host", "stanza-2"])
def test_gradients_that_travel_in_fp16_are_unscaled_before_they_are_clipped(
    pool: Pool, tiny: ModelProfile, name: str
) -> None:
    job = job_with(tiny, name, replace(SGD, clip_norm=CLIPPED), gradients=Wire.FP16)
    assert Arithmetic.of(job).scale > 100
    measured = run(pool, job)
    assert TOLERANCE < largest_deviation(dict(measured.parameters or {}), train(job)) <= 3e-3


def test_a_schedule_for_another_optimiser_is_refused(tiny: ModelProfile) -> None:
    job = job_with(tiny, "all-reduce", replace(ADAMW, clip_norm=1.0))
    check_optimizer(job)
    for changes, message in (
        ({"kind": OptimizerKind.SGD}, r"keeps two vectors as long as the parameters, sgd keeps one vector"),
        ({"clip_norm": None}, "was built for clipped gradients"),
    ):
        other = replace(job.training, optimizer=replace(job.training.optimizer, **changes))
        with pytest.raises(InputError, match=message):
            check_optimizer(replace(job, training=other))
    with pytest.raises(InputError, match="was built without clipped gradients"):
        check_optimizer(replace(job, schedule=job_with(tiny, "all-reduce", ADAMW).schedule))
