"""What every run must do, whatever the strategy: every op kind, repeatability, bytes, spans, and failing checks."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stanza_sim.execute.rank.job import Optimizer, RunJob
from stanza_sim.execute.start.launch import Pool
from stanza_sim.execute.train.reference import largest_deviation, train
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import CollectiveKind, Compute, Phase, Schedule, parse, project
from stanza_sim.schedule.clipping import is_clipped, with_clipping
from stanza_sim.schedule.progress import Issue
from tests.execute.execute_variants import PS, ST, VARIANTS, expected_bytes, job_of, run, schedule_of

TOLERANCE = 1e-4
BYTES_AND_SPANS = (
    "ps-2-cut",
    "ps-2-byteps-credit",
    "colocated-sliced-by-host",
    "ps-2-cut-by-uneven-host",
    "stanza-2-uneven-ps",
    "all-reduce",
    "stanza-2-algorithms",
    "stanza-arrival-2-uneven",
    "stanza-3-sliced-uneven",
    "head",
    "all-reduce-by-uneven-hierarchy",
    "fsdp-by-host",
)
EVERY_KIND = """
schedule every-kind model=tiny world=3 batch=6 microbatches=2
group worker 0-2
group owner 1
group pair 0-1
bundle c numel=88 owners=worker layout=cut tensors=features.0.weight,features.1.weight,features.1.bias
bundle f numel=4128 owners=owner tensors=classifier.1.weight,classifier.1.bias
bundle g numel=330 owners=pair layout=cut tensors=classifier.4.weight,classifier.4.bias
{passes}
rs.c: reduce_scatter grad(c) @worker nbytes=352 algorithm=ring after=b2.0,b2.1
push.f: transfer grad(f) worker->owner fan-in nbytes=16512 channel=x priority=2 after=b1.0,b1.1
push.g: transfer grad(g) worker->pair all-pairs nbytes=1320 channel=x priority=1 after=b0.0,b0.1
red.f: reduce f @owner after=push.f
red.g: reduce g @pair lane=side after=push.g
upd.g: update g @pair lane=side after=red.g
upd.c: update c @worker after=rs.c
upd.f: update f @owner after=red.f
ag.c: all_gather param(c) @worker nbytes=352 algorithm=ring after=upd.c
bc.f: broadcast param(f) @worker nbytes=16512 algorithm=ring root=1 after=upd.f,push.f
pull.g: transfer param(g) pair->worker all-pairs nbytes=1320 channel=x after=upd.g
"""


def every_kind() -> Schedule:
    """Two micro-batches; reduce-scatter and all-gather, a broadcast, servers on workers, each on its own bundle."""
    blocks, lines = ["features.0", "classifier.1", "classifier.4"], []
    renewed = ["ag.c", "bc.f", "pull.g"]
    for m in range(2):
        for k, b in enumerate(blocks):
            after = f" after=f{k - 1}.{m}" if k else ""
            lines.append(f"f{k}.{m}: forward {b} @worker microbatch={m}{after} after_previous={renewed[k]}")
        lines.append(f"loss.{m}: loss {blocks[-1]} @worker microbatch={m} after=f2.{m}")
        before = f"loss.{m}"
        for k in range(3):
            block = blocks[2 - k]
            if k == 1:  # both gradients apart, weights last
                lines.append(f"i{k}.{m}: backward_input {block} @worker microbatch={m} after={before}")
                lines.append(f"b{k}.{m}: backward_weight {block} @worker microbatch={m} after=i{k}.{m}")
                before = f"i{k}.{m}"
            else:
                lines.append(f"b{k}.{m}: backward {block} @worker microbatch={m} after={before}")
                before = f"b{k}.{m}"
    return with_clipping(parse(EVERY_KIND.format(passes="\n".join(lines))))


def clipped(job: RunJob) -> RunJob:
    """The job with gradients clipped where the schedule takes their norm: most of them, by factors that differ."""
    o = replace(job.training.optimizer, clip_norm=1.4 if is_clipped(job.schedule) else None)
    return replace(job, training=replace(job.training, optimizer=o))


@pytest.mark.parametrize("issue", [Issue.EAGER, Issue.IN_ORDER])
def test_every_op_kind_equals_sgd(pool: Pool, tiny: ModelProfile, issue: Issue) -> None:
    schedule = every_kind()
    kinds = {op.phase if isinstance(op, Compute) else getattr(op, "kind", "transfer") for op in schedule.ops}
    assert kinds | {"all_reduce", Phase.PARTIAL, Phase.RECONSTRUCT, Phase.RECOMPUTE} == {
        *Phase,
        *CollectiveKind,
        "transfer",
    }
    job = clipped(job_of(tiny, schedule, issue=issue))
    measured = run(pool, job)
    assert largest_deviation(dict(measured.parameters or {}), train(job)) <= TOLERANCE


@pytest.mark.parametrize(
    "how", ["ring by=steps", "halving_doubling by=steps", "tree by=steps chunk=400", "hierarchical by=steps local=2"]
)
def test_every_kind_of_collective_step_by_step_equals_sgd(pool: Pool, tiny: ModelProfile, how: str) -> None:
    """Reduce-scatter, all-gather and broadcast over three ranks: a surplus rank, hosts of two and one."""
    schedule = replaced(every_kind(), "algorithm=ring", f"algorithm={how}")
    job = clipped(job_of(tiny, schedule))
    measured = run(pool, job)
    assert largest_deviation(dict(measured.parameters or {}), train(job)) <= TOLERANCE
    sent, received = expected_bytes(schedule, job.training.iterations)
    assert (list(measured.sent_bytes), list(measured.received_bytes)) == (sent, received)


@pytest.mark.parametrize(
    "name",
    [
        "ps-2-cut",
        "colocated-cut",
        "colocated-sliced",
        "colocated-cut-by-host",
        "stanza-2-uneven-ps",
        "stanza-1",
        "colocated-balanced",
        "stanza-colocated-arrival",
        "head",
        "factors-behind",
    ],
)
def test_issuing_in_order_equals_sgd_and_moves_the_same_bytes(pool: Pool, tiny: ModelProfile, name: str) -> None:
    _, strategy, world, chosen = next(v for v in VARIANTS if v[0] == name)
    job = job_of(tiny, schedule_of(tiny, strategy, world, chosen))
    eager, in_order = run(pool, job), run(pool, replace(job, issue=Issue.IN_ORDER))
    assert largest_deviation(dict(in_order.parameters or {}), train(job)) <= TOLERANCE
    assert in_order.losses == eager.losses
    assert in_order.sent_bytes == eager.sent_bytes


@pytest.mark.parametrize(
    "name",
    [
        "colocated-cut",
        "colocated-sliced-by-host",
        "stanza-2-uneven",
        "stanza-colocated-arrival",
        "all-reduce-small-buckets",
        "all-reduce-by-ring",
        "all-reduce-by-halving-doubling",
        "all-reduce-by-tree",
        "all-reduce-by-uneven-hierarchy",
        "factors-auto",
        "fsdp-by-host",
    ],
)
def test_two_runs_are_bitwise_equal(pool: Pool, tiny: ModelProfile, name: str) -> None:
    _, strategy, world, chosen = next(v for v in VARIANTS if v[0] == name)
    job = job_of(tiny, schedule_of(tiny, strategy, world, chosen))
    first, second = run(pool, job), run(pool, job)
    assert first.losses == second.losses
    for tensor, values in (first.parameters or {}).items():
        assert np.array_equal(values, (second.parameters or {})[tensor]), tensor


def test_another_seed_gives_other_losses(pool: Pool, tiny: ModelProfile) -> None:
    job = job_of(tiny, schedule_of(tiny, ST, 3, {}))
    other = replace(job, training=replace(job.training, seed=4))
    assert run(pool, job).losses != run(pool, other).losses


@pytest.mark.parametrize("name", [v[0] for v in VARIANTS if v[0] in BYTES_AND_SPANS])
def test_bytes_and_spans_are_those_of_the_schedule(pool: Pool, tiny: ModelProfile, name: str) -> None:
    _, strategy, world, chosen = next(v for v in VARIANTS if v[0] == name)
    schedule = schedule_of(tiny, strategy, world, chosen)
    job = job_of(tiny, schedule)
    measured = run(pool, job)
    sent, received = expected_bytes(schedule, job.training.iterations)
    assert list(measured.sent_bytes) == sent
    assert list(measured.received_bytes) == received
    seen = Counter((s.op, s.rank, s.side) for s in measured.timeline.spans)
    timed = job.training.iterations - job.training.warmup
    wanted = {
        (u.op.name, r, {"send": "sent", "recv": "recv"}.get(u.kind, ""))
        for r in range(world)
        for u in project(schedule, r).units
        if u.kind in ("compute", "collective") or len(u.peers)
    }
    assert seen == Counter(dict.fromkeys(wanted, timed))
    for span in measured.timeline.spans:
        assert span.start_s <= span.end_s
    after = {(s.op, s.rank, s.iteration): s for s in measured.timeline.spans if not s.side}
    for (op, rank, i), span in after.items():
        for name_before in schedule.op(op).after:
            before = after.get((name_before, rank, i))
            if before is not None and isinstance(schedule.op(name_before), Compute):
                assert before.end_s <= span.start_s + 1e-9, (op, name_before)


def test_ring_bytes_have_their_closed_form(pool: Pool, tiny: ModelProfile) -> None:
    schedule = schedule_of(tiny, "all_reduce", 4, {})
    measured = run(pool, job_of(tiny, schedule))
    assert measured.sent_bytes == pytest.approx([2 * 3 / 4 * tiny.nbytes * 5] * 4, abs=5 * 2 * len(schedule.ops))


def replaced(schedule: Schedule, old: str, new: str) -> Schedule:
    text = schedule.text()
    assert old in text
    return parse(text.replace(old, new))


def test_a_missing_weight_decay_is_found(pool: Pool, tiny: ModelProfile) -> None:
    job = job_of(tiny, schedule_of(tiny, PS, 4, {}))
    o = job.training.optimizer
    broken = replace(o, weight_decay=0.0)
    measured = run(pool, replace(job, training=replace(job.training, optimizer=broken)))
    assert largest_deviation(dict(measured.parameters or {}), train(job)) > 10 * TOLERANCE


def test_a_wrong_average_is_found(pool: Pool, tiny: ModelProfile) -> None:
    job = job_of(tiny, schedule_of(tiny, ST, 4, {"fc_workers": 2}))
    o = job.training.optimizer
    broken = Optimizer(lr=o.lr * 4 / 3, momentum=o.momentum, weight_decay=o.weight_decay * 3 / 4, schedule=o.schedule)
    measured = run(pool, replace(job, training=replace(job.training, optimizer=broken)))
    assert largest_deviation(dict(measured.parameters or {}), train(job)) > 10 * TOLERANCE


def test_a_stale_pull_is_found(pool: Pool, tiny: ModelProfile) -> None:
    schedule = schedule_of(tiny, PS, 3, {})
    stale = replaced(schedule, "after=upd.classifier.1", "after=red.classifier.1")
    job = job_of(tiny, stale)
    measured = run(pool, job)
    assert largest_deviation(dict(measured.parameters or {}), train(job)) > 10 * TOLERANCE


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_random_legal_schedules_equal_sgd(pool: Pool, tiny: ModelProfile, data: st.DataObject) -> None:
    from tests.schedule.random_schedules import legal_schedules

    job = job_of(tiny, data.draw(legal_schedules(tiny, max_world=4, rounded=False)))
    job = replace(clipped(job), issue=data.draw(st.sampled_from([Issue.EAGER, Issue.IN_ORDER])))
    measured = run(pool, job)
    assert largest_deviation(dict(measured.parameters or {}), train(job)) <= TOLERANCE
    assert all(map(math.isfinite, measured.losses))
