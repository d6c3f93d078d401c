"""Dropout, data, learning rates, clocks and iteration times: the executor's parts one by one."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stanza_sim.base.errors import InputError, RunError
from stanza_sim.execute.rank.accelerator import Cpu
from stanza_sim.execute.rank.clock import ClockOffset
from stanza_sim.execute.rank.job import LearningRate
from stanza_sim.execute.start.measure import iteration_durations
from stanza_sim.execute.train import data, feed
from stanza_sim.execute.train.dropout import CounterDropout, keep_mask
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Collective, CollectiveKind, Ranks, Value, ValueKind
from stanza_sim.schedule.collectives import collective_bytes


def positions(*rows: int) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.int32)


@given(rows=st.lists(st.integers(0, 10**6), min_size=1, max_size=6), p=st.floats(0.05, 0.95), seed=st.integers(0, 99))
def test_masks_do_not_depend_on_how_samples_are_split(rows: list[int], p: float, seed: int) -> None:
    together = keep_mask("drop", seed, 7, positions(*rows), 50, p)
    for i, row in enumerate(rows):
        assert torch.equal(together[i], keep_mask("drop", seed, 7, positions(row), 50, p)[0])


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_masks_drop_the_right_share_and_are_uncorrelated(p: float) -> None:
    masks = [
        keep_mask(key, seed, step, positions(*range(1024)), 512, p).double()
        for key, seed, step in [("a", 0, 0), ("b", 0, 0), ("a", 1, 0), ("a", 0, 1)]
    ]
    for mask in masks:
        assert float(mask.mean()) == pytest.approx(1 - p, abs=0.003)
        for axis in (0, 1):  # rows and columns alike
            count = mask.shape[axis]
            spread = mask.mean(axis).std().item()
            assert spread == pytest.approx(math.sqrt(p * (1 - p) / count), rel=0.15)
    for i, a in enumerate(masks):
        for b in masks[:i]:
            assert abs(float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])) < 0.03
    first = masks[0]
    assert abs(float(torch.corrcoef(torch.stack([first[:, :-1].flatten(), first[:, 1:].flatten()]))[0, 1])) < 0.03


def test_dropout_scales_what_it_keeps_and_rests_in_evaluation() -> None:
    dropout = CounterDropout("k", 0.75, seed=1)
    dropout.positions = positions(3, 9)
    x = torch.ones(2, 4, 100)
    assert set(dropout(x).unique().tolist()) == {0.0, 4.0}
    assert torch.equal(dropout.eval()(x), x)
    with pytest.raises(RuntimeError, match="was not told which samples"):
        dropout.train()(torch.ones(3, 4))


def test_learning_rates() -> None:
    warm = LearningRate(warmup=4)
    assert [warm.at(1.0, i, 10) for i in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    steps = LearningRate(kind="step", every=2, factor=0.5)
    assert [steps.at(1.0, i, 10) for i in range(5)] == [1, 1, 0.5, 0.5, 0.25]
    cosine = LearningRate(kind="cosine")
    assert cosine.at(2.0, 0, 10) == 2.0
    assert cosine.at(2.0, 5, 10) == pytest.approx(1.0)


def test_batches_are_permutations_alike_in_every_rank() -> None:
    drawn = data.draw(list(range(10)), 4, 5, seed=3)
    assert drawn == data.draw(list(range(10)), 4, 5, seed=3)
    assert drawn != data.draw(list(range(10)), 4, 5, seed=4)
    flat = [n for batch in drawn for n in batch]
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))


def test_held_out_samples_are_not_trained_on() -> None:
    train, held_out = data.divide("digits", 1797, seed=1)
    assert sorted(train + held_out) == list(range(1797))
    assert len(held_out) == 359
    assert data.divide("synthetic", 100, 1) == (list(range(100)), [])


def test_a_feed_gives_the_same_batches_from_memory_and_from_a_thread(
    tiny: ModelProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = data.load("synthetic", tiny, 1)
    numbers = data.draw(list(range(30)), 6, 9, seed=1)
    small = feed.Feed(items, numbers, Cpu())
    monkeypatch.setattr(feed, "AHEAD_BYTES", 0)
    threaded = feed.Feed(items, numbers, Cpu())
    for i in range(9):
        (x, y), (same_x, same_y) = small.batch(i), threaded.batch(i)
        assert torch.equal(x[0], same_x[0])
        assert torch.equal(y, same_y)


def test_samples_staged_in_chunks_are_those_stacked_at_once(tiny: ModelProfile) -> None:
    items = data.load("digits", tiny, 1)
    numbers = list(range(40, 7, -3))
    x, y = feed.Staging(Cpu(), 4, items[0]).load(items, numbers)
    expected = data.stack(items, numbers, torch.device("cpu"))
    assert torch.equal(x[0], expected[0][0])
    assert torch.equal(y, expected[1])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tests.execute.execute_data:wrong_shape", r"sample 0: has the shape \[3, 8, 8\]"),
        ("tests.execute.execute_data:missing", "AttributeError"),
        ("no_such_module_at_all:x", "ModuleNotFoundError"),
        ("cifar", "there is no such data"),
        ("math:pi", "standard library"),
        ("tests.execute.execute_data:NO_DATA", "without length or items"),
    ],
)
def test_bad_data_is_refused(tiny: ModelProfile, name: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        data.load(name, tiny, 1)


def test_clocks_are_mapped_by_interpolation() -> None:
    clock = ClockOffset(before=(10.0, 1.0), after=(20.0, 2.0))
    assert [clock.to_rank0(t) for t in (10.0, 15.0, 20.0)] == [11.0, 16.5, 22.0]


def test_durations_leave_out_the_warm_up_and_the_last() -> None:
    ends = [5.0, 6.0, 8.0, 11.0, 15.0, 20.0]
    assert iteration_durations(ends, 2) == [2.0, 3.0, 4.0]
    assert iteration_durations(ends, 0) == [1.0, 2.0, 3.0, 4.0]
    assert iteration_durations(ends, 5) == [5.0]
    assert statistics.median(iteration_durations(ends, 2)) == 3.0
    with pytest.raises(RunError, match="leave none to time"):
        iteration_durations(ends, 6)


def test_bytes_of_collectives() -> None:
    base = Collective(
        name="c", kind=CollectiveKind.ALL_REDUCE, ranks="g", value=Value(ValueKind.GRAD, "b"), nbytes=4000
    )
    four = Ranks.of([1, 2, 5, 6])
    assert collective_bytes(base, four, 1, 4) == (6000, 6000)
    assert collective_bytes(replace(base, kind=CollectiveKind.ALL_GATHER), four, 1, 4) == (3000, 3000)
    chain = replace(base, kind=CollectiveKind.BROADCAST, root=5)
    assert [collective_bytes(chain, four, r, 4) for r in (5, 6, 1, 2)] == [
        (4000, 0),
        (4000, 4000),
        (4000, 4000),
        (0, 4000),
    ]
    assert collective_bytes(base, Ranks.of([3]), 3, 4) == (0, 0)
