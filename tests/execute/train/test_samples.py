"""Which samples each rank computes: shares, order, and what is not SGD."""

from __future__ import annotations

import pytest
from hypothesis import given

from stanza_sim.base.errors import ScheduleError
from stanza_sim.execute.train.samples import follow, own_rows
from stanza_sim.schedule import Schedule, check, parse
from stanza_sim.schedule.samples import data_rank_counts
from tests.schedule.random_schedules import legal_schedules
from tests.schedule.toys import build, toy

MODEL = toy()


def test_fc_workers_compute_the_samples_of_their_conv_workers_in_rank_order() -> None:
    schedule = build("stanza", MODEL, 5, fc_workers=2)
    samples = follow(schedule, MODEL)
    assert samples.rows[3, "f1", 0] == tuple(range(8))  # ranks 0 and 1
    assert samples.rows[4, "f2", 0] == tuple(range(8, 12))  # rank 2
    assert samples.of_block("c1") == [tuple(range(4 * r, 4 * r + 4)) for r in range(3)]
    assert samples.inputs[3, "f1", 0].ranks == (0, 1)
    assert samples.labels[3, 0].transfer == "act"
    assert samples.gradients[1, "c2", 0].ranks == (3,)


@given(schedule=legal_schedules(MODEL))
def test_every_block_computes_the_global_batch_once(schedule: Schedule) -> None:
    samples = follow(schedule, MODEL)
    for block in MODEL.blocks:
        rows = [p for sub_batch in samples.of_block(block.name) for p in sub_batch]
        assert sorted(rows) == list(range(schedule.global_batch))


def test_micro_batches_cut_the_own_samples() -> None:
    schedule = parse("schedule s model=m world=2 batch=4 microbatches=2\ngroup w 0-1\nf: forward x @w\n")
    assert [own_rows(schedule, 1, m) for m in (0, 1)] == [(4, 5), (6, 7)]


def test_samples_that_arrive_are_computed_by_themselves() -> None:
    schedule = build("stanza", MODEL, 4, fc_workers=2, placement="colocated", fc_compute="arrival", microbatches=2)
    samples = follow(schedule, MODEL)
    # Ranks 0 and 2 compute the FC part, each for itself and the next rank; numbers 0 and 1 are a rank's own.
    assert [samples.rows[2, "f1", n] for n in (2, 3, 4, 5)] == [(8, 9), (12, 13), (10, 11), (14, 15)]
    assert samples.rows[2, "c1", 1] == (10, 11)
    assert samples.inputs[2, "f1", 4].ranks == (2,)
    assert samples.gradients[2, "c2", 1].transfer == "actgrad/4"
    assert samples.gradients[3, "c2", 1].transfer == "actgrad/5"
    counts = data_rank_counts(schedule)
    assert counts["f1", 4].tolist() == [1, 0, 1, 0]
    assert counts["c2", 1].tolist() == [1, 1, 1, 1]


def test_samples_computed_twice_are_refused() -> None:
    schedule = build("stanza", MODEL, 3)
    text = schedule.text().replace("group fc_worker 2", "group fc_worker 1-2").replace("blocked", "all-pairs")
    with pytest.raises(ScheduleError, match="some of them twice"):
        follow(parse(text), MODEL)


def test_what_is_refused_is_legal_to_print() -> None:
    schedule = build("stanza", MODEL, 3)
    check(schedule, MODEL)
    half = schedule.text().replace("conv_worker->fc_worker blocked", "conv_worker->fc_worker explicit pairs=0>2")
    with pytest.raises(ScheduleError, match="does not have the gradients of all samples of rank 1"):
        follow(parse(half), MODEL)
