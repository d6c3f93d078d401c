"""Accumulated schedules: steps of passes, then one exchange; legal, with the bytes of closed forms, in both engines."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest

from stanza_sim import strategies
from stanza_sim.schedule import (
    Collective,
    Compute,
    Keep,
    Op,
    Phase,
    Schedule,
    Transfer,
    ValueKind,
    check,
    from_json,
    parse,
)
from stanza_sim.schedule.accumulation import accumulated
from stanza_sim.studies.plan.memory import memory_of
from tests.execute.execute_variants import expected_bytes
from tests.schedule.toys import build, cluster, predict, toy

PASSES = (Phase.FORWARD, Phase.LOSS, Phase.BACKWARD, Phase.BACKWARD_INPUT, Phase.BACKWARD_WEIGHT)


def of_samples(op: Op, schedule: Schedule) -> bool:
    """Whether what an op does or moves grows with the number of steps: it is of samples, or gathers for passes."""
    match op:
        case Compute():
            return op.phase in PASSES
        case Transfer():
            return not any(v.kind.on_bundle for v in op.values)
        case Collective():
            gathers = op.value.kind is ValueKind.PARAM and schedule.bundle(op.value.name).keep is Keep.SLICES
            return gathers or not op.value.kind.on_bundle


def moved(schedule: Schedule, *, samples: bool) -> list[tuple[int, int]]:
    """Bytes that each rank sends and receives in an iteration of what is of samples, or of what is not."""
    ops = tuple(op for op in schedule.ops if not isinstance(op, Compute) and of_samples(op, schedule) is samples)
    return list(zip(*expected_bytes(replace(schedule, ops=ops), 1), strict=True))


@pytest.mark.parametrize("name", strategies.names())
def test_every_strategy_accumulates(name: str) -> None:
    """Some settings of each, of plan's space: two and three steps are legal, and move what they should."""
    model, found = toy(), strategies.get(name)
    space = found.space(model, world_size=5, batch_per_worker=4, local_size=2)
    for number, settings in enumerate(islice(space, 0, 60, 4)):
        once = found.build(model, world_size=5, batch_per_worker=4, settings=settings)
        for steps in (2, 3):
            made = accumulated(once, steps)
            check(made, model)
            assert parse(made.text()) == made == from_json(made.to_json())
            assert made.global_batch == steps * once.global_batch
            assert moved(made, samples=False) == moved(once, samples=False)
            many = [(steps * out, steps * back) for out, back in moved(once, samples=True)]
            assert moved(made, samples=True) == many
            assert sum(of_samples(op, made) for op in made.ops) == sum(
                steps if of_samples(op, once) and not _factors(op) else of_samples(op, once) for op in once.ops
            )
        if number < 3:
            plain, fast = (
                predict(made, model, cluster(5), fold_ranks=False, engine=engine) for engine in ("plain", "compiled")
            )
            assert plain.iteration_s == pytest.approx(fast.iteration_s, rel=1e-9)
            assert plain.bound_s <= plain.iteration_s * (1 + 1e-9)
            assert plain.samples_per_s == pytest.approx(made.global_batch / plain.iteration_s)
            sent, received = expected_bytes(made, 1)
            assert [plain.sent_bytes[r] for r in range(5)] == pytest.approx(sent, abs=4 * len(made.ops))
            assert [plain.received_bytes[r] for r in range(5)] == pytest.approx(received, abs=4 * len(made.ops))


def _factors(op: Op) -> bool:
    return isinstance(op, Transfer) and any(v.kind is ValueKind.FACTORS for v in op.values)


def test_one_step_is_the_schedule_itself() -> None:
    once = build("stanza", toy(), 4)
    assert accumulated(once, 1) is once


def test_steps_follow_each_other_and_numbers_of_samples_do_not_meet() -> None:
    made = accumulated(build("stanza", toy(), 4, fc_compute="arrival", microbatches=2), 2)
    assert (made.batch_per_worker, made.microbatches, len(made.microbatch_ids)) == (8, 4, 4 + 4 * 3)
    first = [op.name for op in made.ops if isinstance(op, Compute) and op.target == "c1"]
    assert first == [
        *("fwd.c1/0", "fwd.c1/1", "bwd.c1/0", "bwd.c1/1"),
        *("fwd.c1/2", "fwd.c1/3", "bwd.c1/2", "bwd.c1/3"),
    ]
    arrivals = [op.landing for op in made.ops if isinstance(op, Transfer) and op.channel == "act"]
    assert sorted(arrivals) == list(range(4, 16))


def test_the_time_of_an_accumulated_all_reduce_has_its_closed_form() -> None:
    """One worker's passes n times, then what is not hidden of one exchange: nothing is, where all goes at the end."""
    model, on = toy(40), cluster(4)
    once = build("all_reduce", model, 4, bucket="1GiB", first_bucket="1GiB", overlap=False)
    one, two, three = (predict(accumulated(once, n), model, on).iteration_s for n in (1, 2, 3))
    step = predict(build("local", model, 1), model, cluster(1)).iteration_s
    assert two - one == pytest.approx(three - two, rel=1e-9)
    assert 0.9 * step < two - one < step  # a step has no update


def test_an_accumulated_batch_needs_the_activations_of_one_step() -> None:
    model = toy(40)
    once = build("all_reduce", model, 4)
    one, three = (memory_of(accumulated(once, n), model, {0: {}})[0] for n in (1, 3))
    assert three.activations_nbytes == one.activations_nbytes > 0
    assert three.backward_nbytes == one.backward_nbytes
    assert three.gradients_nbytes == one.gradients_nbytes
    assert three.input_nbytes == 3 * one.input_nbytes
