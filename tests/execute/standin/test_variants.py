"""Every variant on imitated GPUs, with NCCL and with gloo and staging, equals SGD and moves the schedule's bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from stanza_sim.base.optimizers import OptimizerKind
from stanza_sim.base.precision import Precision
from stanza_sim.execute.rank.job import Backend, Optimizer
from stanza_sim.execute.standin.task import OnStandin
from stanza_sim.execute.start.launch import Pool
from stanza_sim.execute.start.measure import merge
from stanza_sim.execute.train.reference import largest_deviation, train
from stanza_sim.model.extract import extract
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Wire
from stanza_sim.schedule.clipping import with_clipping
from tests.execute.execute_variants import ROUNDED, TRAINING, VARIANTS, expected_bytes, job_of, schedule_of
from tests.execute.forked_pool import ForkedPool

TOLERANCE, ROUNDED_TOLERANCE = 1e-4, 1e-2
SHORT = replace(TRAINING, iterations=3)
"""Momentum and the learning rate differ from one iteration to the next; every buffer is used again twice."""
pytestmark = [pytest.mark.processes, pytest.mark.xdist_group("pool")]  # two pools at once would share the cores


@pytest.fixture(scope="module")
def ranks() -> Iterator[Pool]:
    with ForkedPool(5, timeout_s=20) as pool:
        yield pool


EVERY = [v[0] for v in (*VARIANTS, *ROUNDED)]
STAGED = {*EVERY[::3], *(name for name in EVERY if name.startswith(("fsdp", "pipeline")))}
"""Variants that gloo carries in every run, for all of which the same staging and the same CPU tests stand."""


@pytest.mark.parametrize(
    ("variant", "backend"),
    [
        *((name, Backend.NCCL) for name in EVERY),
        *(pytest.param(name, Backend.GLOO, marks=() if name in STAGED else pytest.mark.nightly) for name in EVERY),
    ],
)
def test_a_variant_on_imitated_gpus_equals_sgd(ranks: Pool, tiny: ModelProfile, variant: str, backend: Backend) -> None:
    _, strategy, world, settings = next(v for v in (*VARIANTS, *ROUNDED) if v[0] == variant)
    schedule = schedule_of(tiny, strategy, world, settings)
    job = job_of(tiny, schedule, training=SHORT)
    measured = merge(job, [r for r in ranks.run(OnStandin(job, backend)) if r is not None])
    assert measured.parameters is not None
    off = largest_deviation(dict(measured.parameters), train(job))
    assert off <= (ROUNDED_TOLERANCE if variant in {v[0] for v in ROUNDED} else TOLERANCE)
    sent, received = expected_bytes(schedule, job.training.iterations)
    assert (list(measured.sent_bytes), list(measured.received_bytes)) == (sent, received)


@pytest.mark.parametrize("backend", [Backend.NCCL, Backend.GLOO])
@pytest.mark.parametrize("variant", ["ps-2-cut-by-uneven-host", "all-reduce", "stanza-2-sliced", "head", "factors"])
def test_what_travels_in_two_bytes_on_imitated_gpus(ranks: Pool, variant: str, backend: Backend) -> None:
    """Buffers of the types in which values travel live as long as what is on its way."""
    model = extract("tests.execute.execute_models:smooth", name="smooth", input_shape=(1, 8, 8), boundary="2.0")
    _, strategy, world, settings = next(v for v in VARIANTS if v[0] == variant)
    schedule = schedule_of(model, strategy, world, settings, precision=Precision.FP16, gradients=Wire.FP16)
    job = job_of(model, schedule, precision=Precision.FP16)
    measured = merge(job, [r for r in ranks.run(OnStandin(job, backend)) if r is not None])
    assert largest_deviation(dict(measured.parameters or {}), train(job)) <= 3e-3
    sent, received = expected_bytes(schedule, job.training.iterations)
    assert (list(measured.sent_bytes), list(measured.received_bytes)) == (sent, received)


@pytest.mark.parametrize("backend", [Backend.NCCL, Backend.GLOO])
@pytest.mark.parametrize("variant", ["ps-2-cut", "stanza-2-sliced"])
def test_clipped_adamw_on_imitated_gpus(ranks: Pool, tiny: ModelProfile, variant: str, backend: Backend) -> None:
    """The norm and the factor that it gives stay on the device, and are there before an update reads them."""
    _, strategy, world, settings = next(v for v in VARIANTS if v[0] == variant)
    o = Optimizer(kind=OptimizerKind.ADAMW, lr=0.01, weight_decay=0.5, no_decay=("bias",), clip_norm=1.4)
    schedule = with_clipping(replace(schedule_of(tiny, strategy, world, settings), moments=o.moments))
    job = job_of(tiny, schedule, training=replace(SHORT, optimizer=o))
    measured = merge(job, [r for r in ranks.run(OnStandin(job, backend)) if r is not None])
    assert largest_deviation(dict(measured.parameters or {}), train(job)) <= TOLERANCE
    sent, received = expected_bytes(schedule, job.training.iterations)
    assert (list(measured.sent_bytes), list(measured.received_bytes)) == (sent, received)
