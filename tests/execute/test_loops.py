"""Runs that stop to look at held-out samples, are saved, and go on bitwise as if they had not stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from stanza_sim.base.errors import InputError
from stanza_sim.base.optimizers import OptimizerKind
from stanza_sim.execute.rank.checkpoint import iterations_in, resume_file
from stanza_sim.execute.rank.job import Measurement, Optimizer, RunJob, Score, Target
from stanza_sim.execute.start.launch import Pool
from stanza_sim.execute.start.measure import iteration_durations, merge
from stanza_sim.execute.start.tasks import RunTask
from stanza_sim.model.extract import build_module
from stanza_sim.model.profile import ModelProfile
from tests.execute.execute_variants import TRAINING, VARIANTS, job_of, run, schedule_of

RESUMED = ("colocated-sliced-by-host", "stanza-2-uneven-ps", "fsdp-by-host", "pipeline-replicas-stage")


def of(variant: tuple[str, str, int, dict[str, object]], tiny: ModelProfile, **training: object) -> RunJob:
    optimizer = training.get("optimizer", TRAINING.optimizer)
    assert isinstance(optimizer, Optimizer)
    job = job_of(tiny, replace(schedule_of(tiny, *variant[1:]), moments=optimizer.moments))
    return replace(job, training=replace(job.training, **{"iterations": 7, "warmup": 1, **training}))


def same(a: Measurement, b: Measurement) -> bool:
    assert a.parameters is not None
    assert b.parameters is not None
    return all(np.array_equal(values, b.parameters[name]) for name, values in a.parameters.items())


@pytest.mark.parametrize(
    "variant", [pytest.param(v, marks=() if v[0] in RESUMED else pytest.mark.nightly, id=v[0]) for v in VARIANTS]
)
def test_a_resumed_run_is_bitwise_the_whole_one(
    pool: Pool, tiny: ModelProfile, variant: tuple[str, str, int, dict[str, object]], tmp_path: Path
) -> None:
    """AdamW, stopped after 4 of 7 iterations, in the middle of a cosine; 3 are left, so that buffers swap turns."""
    adamw = replace(TRAINING.optimizer, kind=OptimizerKind.ADAMW, lr=1e-2)
    whole = of(variant, tiny, evaluate=2, optimizer=adamw)
    first, rest, all_of_it = (str(tmp_path / name) for name in ("first.safetensors", "rest.pt", "all.safetensors"))
    measured = run(pool, replace(whole, save=all_of_it))
    stop = replace(whole.training, evaluate=4, target=Target(accuracy=1e-9))
    begun = run(pool, replace(whole, training=stop, save=first))
    assert len(begun.losses) == 4
    resumed = replace(whole, resume=first, save=rest)
    assert iterations_in(resumed) == 4
    went_on = run(pool, replace(resumed, training=replace(whole.training, begin=4)))
    assert same(measured, went_on)
    assert begun.losses + went_on.losses == measured.losses
    assert went_on.scores[-1] == measured.scores[-1]
    assert [s.iteration for s in measured.scores] == [2, 4, 6, 7]
    state, again = (resume_file(Path(p)).read_bytes() for p in (all_of_it, rest))
    assert state == again  # optimiser state and the buffers of every rank too
    saved, plain = load_file(all_of_it), torch.load(rest, weights_only=True)
    assert all(torch.equal(saved[name], plain[name]) for name in saved)


def test_what_is_saved_loads_into_the_users_module_and_says_what_ranks_said(
    pool: Pool, tiny: ModelProfile, tmp_path: Path
) -> None:
    from stanza_sim.execute.train import data
    from stanza_sim.model.labels import Labels

    job = replace(of(VARIANTS[7], tiny), save=str(tmp_path / "net.safetensors"))
    measured = run(pool, job)
    module = build_module(tiny, device="cpu")
    module.load_state_dict(load_file(tmp_path / "net.safetensors"), strict=True)
    assert int(module.get_buffer("features.1.num_batches_tracked")) == 7
    items = data.Dataset("digits", data.Digits(), tiny, Labels())
    _, held_out = data.divide("digits", len(items), job.training.seed)
    (x,), y = data.stack(items, held_out, torch.device("cpu"))
    with torch.no_grad():
        scores = module.eval()(x)
    assert measured.accuracy == pytest.approx(float((scores.argmax(1) == y).float().mean()))
    assert measured.scores[-1].loss == pytest.approx(float(torch.nn.functional.cross_entropy(scores, y)), rel=1e-5)


def test_stops_are_in_no_time_and_change_nothing(pool: Pool, tiny: ModelProfile) -> None:
    plain, told = of(VARIANTS[7], tiny, iterations=9), list[int | Score]()
    looked = replace(plain, training=replace(plain.training, evaluate=3))
    reports = [r for r in pool.run(RunTask(looked), moving=told.append) if r is not None]
    stopped = merge(looked, reports)
    assert same(run(pool, plain), stopped)
    assert reports[0].segments == (0, 3, 6)
    assert [s for s in told if isinstance(s, Score)] == list(stopped.scores)
    ends = [max(e[i] for e in stopped.timeline.iteration_end_s.values()) for i in range(9)]
    assert ends == sorted(ends)
    spans = sorted((s.start_s, s.end_s) for s in stopped.timeline.spans)
    gaps = [b - max(e for _, e in spans[: i + 1]) for i, (b, _) in enumerate(spans[1:])]
    assert max(gaps) < 0.1  # an evaluation takes longer than that


def test_iterations_beside_a_stop_are_not_timed() -> None:
    ends = [1.0, 2.0, 4.0, 9.0, 10.0, 11.0, 17.0]
    assert iteration_durations(ends, 0) == [1.0, 2.0, 5.0, 1.0, 1.0]
    assert iteration_durations(ends, 0, (0, 3)) == [1.0, 1.0, 1.0]
    assert iteration_durations(ends, 3, (0, 2, 4, 6)) == [5.0, 1.0, 1.0, 6.0]  # no others are left


CHANGES = {
    "world_size is 4 there and 3 here": lambda job, tiny: replace(job, schedule=schedule_of(tiny, "all_reduce", 3, {})),
    "optimizer.momentum is 0.9 there and 0.5 here": lambda job, tiny: replace(
        job,
        training=replace(job.training, optimizer=replace(job.training.optimizer, momentum=0.5)),
    ),
    "model is tiny there and other here": lambda job, tiny: replace(job, model=replace(tiny, name="other")),
    "seed is 3 there and 4 here": lambda job, tiny: replace(job, training=replace(job.training, seed=4)),
    "settings of the strategy": lambda job, tiny: replace(
        job, schedule=schedule_of(tiny, "all_reduce", 4, {"bucket": "1kB", "first_bucket": "1kB"})
    ),
    "has 7 iterations done": lambda job, tiny: job,
}


def test_what_is_another_training_is_not_gone_on_with(pool: Pool, tiny: ModelProfile, tmp_path: Path) -> None:
    job = of(VARIANTS[7], tiny)
    assert job.schedule.name == "all_reduce"
    path = tmp_path / "net.safetensors"
    run(pool, replace(job, save=str(path)))
    for message, change in CHANGES.items():
        with pytest.raises(InputError, match=message) as error:
            iterations_in(replace(change(job, tiny), resume=str(path)))
        assert str(path) in str(error.value)
    with pytest.raises(InputError, match=r"features.0.weight is \[8, 1, 3, 3\] there and \[4, 1, 3, 3\] here"):
        blocks = tuple(
            replace(b, tensors=tuple(replace(t, shape=(4, *t.shape[1:])) for t in b.tensors)) for b in tiny.blocks
        )
        iterations_in(replace(job, model=replace(tiny, blocks=blocks), resume=str(path)))
    resume_file(path).unlink()
    with pytest.raises(InputError, match="holds no more than parameters"):
        iterations_in(replace(job, resume=str(path)))
