"""Language models on tokens, dense outputs, tied weights and losses of all kinds train as one process would."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from stanza_sim.base.errors import InputError, ScheduleError
from stanza_sim.base.precision import Precision
from stanza_sim.execute.rank.job import RunJob
from stanza_sim.execute.start.launch import Pool
from stanza_sim.execute.train import data, early, feed
from stanza_sim.execute.train.reference import largest_deviation, train
from stanza_sim.model.labels import Loss
from stanza_sim.model.profile import ModelProfile
from stanza_sim.model.zoo import load_model
from stanza_sim.schedule import Axis, Wire, check, from_json, parse
from tests.execute.execute_variants import AR, PI, PS, SF, ST, TRAINING, expected_bytes, job_of, run, schedule_of

SH = "sharded_head"
TOLERANCE = 1e-4
CUT, SLICED = {"cut": "head"}, {"fc_workers": 2, "fc_parallel": "model"}
COLOCATED = {"placement": "colocated", "assignment": "cut"}
INPUTS = {"image": (1, 8, 8), "word": (1,)}
Case = tuple[str, str, str, int, dict[str, object]]
CASES: list[Case] = [  # (model, data, strategy, ranks, settings)
    ("gpt", "next_tokens", PS, 3, {}),
    ("gpt", "next_tokens", PS, 3, COLOCATED),
    ("gpt", "next_tokens", AR, 3, {"bucket": "2kB"}),
    ("gpt", "next_tokens", ST, 4, CUT | {"fc_workers": 2}),
    ("gpt", "next_tokens", ST, 3, CUT | {"placement": "colocated", "fc_compute": "arrival"}),
    ("gpt", "next_tokens", ST, 4, CUT | SLICED),
    ("gpt by head", "next_tokens", SH, 3, {}),
    ("gpt by head", "next_tokens", SH, 3, {"fc_compute": "batch", "microbatches": 2}),
    ("tied gpt", "next_tokens", PS, 3, {"assignment": "byteps", "partition": "2kB"}),
    ("tied gpt", "next_tokens", PS, 3, COLOCATED | {"local": 2}),
    ("tied gpt", "next_tokens", AR, 2, {}),
    ("tied gpt", "next_tokens", SF, 3, {}),
    ("tied gpt", "next_tokens", PI, 3, {"checkpoint": "block"}),
    ("tied gpt", "next_tokens", PI, 4, {"cuts": ["head"], "microbatches": 4, "activations": "fp32"}),
    ("recalled", "arrays", PI, 3, {"checkpoint": "stage"}),  # one layer in all three
    ("words", "last_token", PI, 2, {}),
    ("described", "images_and_words", PI, 2, {"order": "gpipe"}),
    ("gpt", "next_tokens", SF, 3, {"fc_exchange": "factors"}),
    ("last gpt", "last_token", ST, 4, {}),
    ("last gpt", "last_token", SH, 3, {}),
    ("dense", "masks", AR, 3, {}),
    ("dense", "masks", ST, 3, {"cut": "out", "microbatches": 2}),
    ("recalled", "arrays", PS, 3, COLOCATED),
    ("recalled", "arrays", ST, 3, {"cut": "out"}),
    ("words", "last_token", PS, 3, COLOCATED),
    ("words", "last_token", AR, 3, {}),
    ("words", "last_token", ST, 3, {"placement": "colocated", "microbatches": 2}),
    ("words", "last_token", SH, 2, {}),
    ("tied sparse words", "last_token", AR, 2, {}),  # the other use makes its gradient dense
    ("described", "images_and_words", PS, 3, {}),
    ("described", "images_and_words", ST, 3, {"placement": "colocated"}),
    ("numbers", "ones", AR, 3, {}),
    ("ten numbers", "tens", SH, 3, {}),
    ("ten numbers", "several", ST, 4, SLICED),
    ("ten numbers", "shares", ST, 4, SLICED),
]


@cache
def model(name: str, samples: str) -> ModelProfile:
    """The model called so, knowing the labels of its data."""
    kwargs = {word: True for word in ("tied", "last") if word in name} | ({"outputs": 10} if "ten" in name else {})
    factory = "numbers" if "numbers" in name else name.split()[-1] if "by" not in name else "gpt"
    made = load_model(
        f"tests.execute.execute_models:{factory}",
        name=factory,
        input_shape=INPUTS if name == "described" else (8,) if "gpt" in name or "words" in name else (1, 8, 8),
        factory_kwargs=kwargs,
        boundary="head" if "by head" in name else 1 if "ten" in name else None,
    )
    path = f"tests.execute.execute_data:{samples}"
    loss = Loss.CROSS_ENTROPY if samples == "shares" else None
    return replace(made, stated_labels=early.labels_in(path, data.raw(path, made, 3), made, loss))


def job(case: Case) -> RunJob:
    name, samples, strategy, world, settings = case
    found = model(name, samples)
    training = replace(TRAINING, data=f"tests.execute.execute_data:{samples}")
    return job_of(found, schedule_of(found, strategy, world, settings), training=training)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}-{case[2]}-{'-'.join(case[4])}")
def test_they_train_as_one_process_would(pool: Pool, case: Case) -> None:
    """Means are over all positions of the global batch, of which some labels are left out at some ranks only."""
    asked = job(case)
    measured, reference = run(pool, asked), train(asked)
    assert largest_deviation(dict(measured.parameters or {}), reference) <= TOLERANCE
    assert measured.losses == pytest.approx(reference.losses, rel=1e-5)
    assert (measured.accuracy is None) is (case[1] in ("ones", "tens"))
    sent, received = expected_bytes(asked.schedule, asked.training.iterations)
    assert (list(measured.sent_bytes), list(measured.received_bytes)) == (sent, received)


def test_half_precision_divides_by_positions(pool: Pool) -> None:
    asked = replace(job(("gpt", "next_tokens", AR, 2, {})), precision=Precision.BF16)
    assert run(pool, asked).losses == pytest.approx(train(asked).losses, rel=2e-2)


def test_labels_travel_with_their_positions() -> None:
    """A label of a sequence is 8 bytes a position; floats have the parameters' type; a slice is of every position."""
    whole = schedule_of(model("gpt", "next_tokens"), ST, 3, CUT)
    assert whole.op("act").nbytes == 6 * 8 * (16 * 4 + 8)  # type: ignore[union-attr]
    numbers = schedule_of(model("ten numbers", "tens"), ST, 3, {})
    assert numbers.op("act").nbytes == 6 * (12 + 10) * 4  # type: ignore[union-attr]
    sliced = schedule_of(model("gpt", "next_tokens"), ST, 4, CUT | SLICED)
    assert [(c.axis, c.positions) for c in sliced.cuts] == [(Axis.COLUMNS, 8)]
    assert sliced.op("logsum.head").nbytes == 2 * 6 * 8 * 2 * 4  # type: ignore[union-attr]
    assert parse(sliced.text()) == from_json(sliced.to_json()) == sliced


@pytest.mark.parametrize(
    ("name", "strategy", "settings", "message"),
    [
        ("tied gpt", ST, CUT, "separates the blocks tok and head of model gpt, which share tok.weight\n  no other cut"),
        ("recalled", ST, {"cut": "b"}, "separates the blocks a and b and .*, which share a.weight\n  set cut to out"),
        ("tied gpt", SH, {}, "separates the blocks tok and head of model gpt"),
    ],
)
def test_a_cut_through_tied_weights_is_refused(
    name: str, strategy: str, settings: dict[str, object], message: str
) -> None:
    samples = "arrays" if name == "recalled" else "next_tokens"
    with pytest.raises(InputError, match=message):
        schedule_of(model(name, samples), strategy, 3, settings)


def test_a_sparse_table_is_exchanged_as_the_rows_that_were_looked_up() -> None:
    """Six samples of eight tokens in a table of width 6: 48 rows, and their numbers."""
    found = model("words", "last_token")
    schedule = schedule_of(found, PS, 3, {})
    assert schedule.op("rows.table").nbytes == 48 * (6 + 1) * 4  # type: ignore[union-attr]
    assert [b.owners for b in schedule.bundles if b.tensors == ("table.weight",)] == ["worker"]
    half = schedule_of(found, ST, 3, {}, precision=Precision.BF16, gradients=Wire.BF16)
    assert half.op("rows.table").nbytes == 48 * (6 + 1) * 4  # type: ignore[union-attr]
    rounded = half.text().replace(" nbytes=1344 channel=rows", " nbytes=672 channel=rows wire=bf16")
    with pytest.raises(ScheduleError, match="numbers of rows are not rounded"):
        check(parse(rounded), found)


def test_a_sparse_table_beside_others_is_refused() -> None:
    found = load_model("tests.execute.execute_models:words", input_shape=(8,), factory_kwargs={"beside": True})
    with pytest.raises(InputError, match=r"sparse gradient of .* cannot be exchanged as rows.*\n  set sparse=False"):
        schedule_of(found, AR, 3, {})


def test_a_sharded_head_with_a_tie_is_refused_with_the_way_out() -> None:
    from stanza_sim.model.profile import with_boundary

    cut = with_boundary(model("tied gpt", "next_tokens"), "head")
    with pytest.raises(InputError, match="separates the blocks tok and head") as caught:
        schedule_of(cut, SH, 3, {})
    assert "parameter_server and all_reduce" in str(caught.value.hint)


def test_labels_that_are_left_out_are_counted_however_samples_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    from stanza_sim.execute.rank.accelerator import Cpu

    found = model("gpt", "next_tokens")
    items = data.load("tests.execute.execute_data:next_tokens", found, 1)
    numbers = [[0, 1, 2, 3], [4, 9, 14, 19]]
    output = found.blocks[-1].output_shape
    assert feed.Feed(items, numbers, Cpu()).terms(found.labels, output) == [32 - 6, 32 - 16]
    monkeypatch.setattr(feed, "AHEAD_BYTES", 0)
    assert feed.Feed(items, numbers, Cpu()).terms(found.labels, output) == [32 - 6, 32 - 16]
