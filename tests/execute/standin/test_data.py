"""Samples on imitated GPUs: loaded at once or by a thread, they train as they do on the CPU."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stanza_sim.execute.rank.job import Backend
from stanza_sim.execute.standin.task import OnStandin
from stanza_sim.execute.start.launch import Pool
from stanza_sim.execute.start.measure import merge
from stanza_sim.execute.train.reference import largest_deviation, train
from stanza_sim.model.profile import ModelProfile
from tests.execute.execute_variants import TRAINING, VARIANTS, job_of, schedule_of
from tests.execute.standin.standin_tasks import Changed

DATA = "stanza_sim.execute.train.feed"


@pytest.mark.processes
@pytest.mark.parametrize("variant", ["all-reduce", "stanza-2-sliced-microbatches", "stanza-colocated"])
@pytest.mark.parametrize(("name", "kept"), [("digits", "all"), ("digits", "none"), ("synthetic", "all")])
def test_samples_loaded_at_once_or_by_a_thread_train_alike(
    pool: Pool, tiny: ModelProfile, variant: str, name: str, kept: str
) -> None:
    _, strategy, world, settings = next(v for v in VARIANTS if v[0] == variant)
    training = replace(TRAINING, data=name, iterations=9)
    job = job_of(tiny, schedule_of(tiny, strategy, world, settings), training=training)
    task = OnStandin(job, Backend.NCCL, jitter_s=1e-4)
    changed = Changed(task, DATA, "AHEAD_BYTES", 0 if kept == "none" or name == "synthetic" else 10**9)
    measured = merge(job, [r for r in pool.run(Changed(changed, DATA, "CHUNK_BYTES", 1000)) if r is not None])
    assert measured.parameters is not None
    assert largest_deviation(dict(measured.parameters), train(job)) <= 1e-4
