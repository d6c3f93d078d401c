"""The printed form, the JSON form and the digest of a schedule."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stanza_sim.base.errors import ScheduleError
from stanza_sim.schedule import Schedule, from_json, parse, parse_op, print_op, to_json
from tests.schedule.random_schedules import legal_schedules, printable_schedules
from tests.schedule.toys import build, toy

GOLDEN = Path(__file__).with_name("golden_stanza.txt")
MODEL = toy()


def golden() -> Schedule:
    return build("stanza", MODEL, 4, first_bucket="64B", bucket="1kB")


@settings(max_examples=50, deadline=None)
@given(printable_schedules())
def test_both_forms_round_trip(schedule: Schedule) -> None:
    text = schedule.text()
    again = parse(text)
    assert again == schedule
    assert hash(again) == hash(schedule)
    assert again.text() == text
    assert from_json(schedule.to_json()) == schedule
    assert from_json(to_json(schedule)).digest() == schedule.digest()
    for op in schedule.ops:
        assert parse_op(print_op(op)) == op


@settings(max_examples=25, deadline=None)
@given(legal_schedules(MODEL), legal_schedules(MODEL))
def test_digests_differ_where_schedules_do(a: Schedule, b: Schedule) -> None:
    assert (a.digest() == b.digest()) == (a == b)
    assert parse(a.text()).digest() == a.digest()


def test_golden() -> None:
    """A change to the printed form changes every recorded hash: it has to be meant."""
    assert golden().text() == GOLDEN.read_text()
    assert parse(GOLDEN.read_text()) == golden()


def test_the_digest_is_that_of_the_text() -> None:
    assert golden().digest() == "dc65cd6203457ee4586ab7ff63c152aeb5dea9a336af5c58e9eee7dac9b5d7ef"
    changed = replace(golden(), batch_per_worker=5)
    assert changed.digest() != golden().digest()


def test_comments_blank_lines_and_indents_are_skipped() -> None:
    text = "# a comment\n\n" + golden().text().replace("\ngroup", "\n\n   # more\n   group", 1)
    assert parse(text) == golden()


def test_options_come_in_any_order() -> None:
    a = parse_op("x: transfer grad(b) w->s fan-in nbytes=8 channel=c after=y")
    assert parse_op("x: after=y transfer channel=c grad(b) nbytes=8 w->s fan-in") == a


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("x forward b @w", "'x' should be the op's name with a colon"),
        (": forward b @w", "should be the op's name with a colon"),
        ("x:", "the op's kind is missing"),
        ("x: all_reduce grad(b) @w nbytes=8 algorithm=ring wire=int8", "'int8' is not one of native, bf16, fp16"),
        ("x: fly b @w", "'fly' is not one of all_reduce, reduce_scatter, all_gather, broadcast"),
        ("x: forward", "the block or bundle is missing"),
        ("x: forward b", "the group is missing"),
        ("x: forward b w", "'w' should be the group, written @NAME"),
        ("x: forward b @w extra", "'extra' does not belong here"),
        ("x: forward b @w nbytes=3", "'nbytes' does not belong here"),
        ("x: forward b @w lane=a lane=b", "lane is given twice"),
        ("x: forward b @w microbatch=two", "microbatch=two is not a whole number"),
        ("x: forward b @w microbatch=" + "9" * 5000, "is not a whole number"),
        ("x: transfer grad(b) w-s fan-in nbytes=1", "a transfer goes from one group to another"),
        ("x: transfer grad(b) w->s->t fan-in nbytes=1", "a transfer goes from one group to another"),
        ("x: transfer grad(b) w->s fan nbytes=1", "'fan' is not one of one-to-one"),
        ("x: transfer grad(b w->s fan-in nbytes=1", "'grad(b' is not a value"),
        ("x: transfer love(b) w->s fan-in nbytes=1", "'love' is not one of grad, param"),
        ("x: transfer grad(b) w->s fan-in", "nbytes= is missing"),
        ("x: transfer grad(b) w->s explicit nbytes=1 pairs=1-2", "'1-2' is not a pair"),
        ("x: transfer grad(b) w->s explicit nbytes=1 pairs=" + "9" * 5000 + ">1", "is not a pair"),
        ("x: all_reduce grad(b) @w nbytes=1", "algorithm= is missing"),
        ("x: all_reduce grad(b) @w nbytes=1 algorithm=bush", "'bush' is not one of ring, halving_doubling, tree"),
        ("x: all_reduce grad(b) @w nbytes=1 algorithm=tree by=hand", "'hand' is not one of backend, steps"),
    ],
)
def test_malformed_op(line: str, message: str) -> None:
    with pytest.raises(ScheduleError) as e:
        parse_op(line)
    assert message in str(e.value)
    assert line in str(e.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the schedule has no header"),
        ("group w 0-3\n", "the schedule has no header"),
        ("schedule s model=m world=2\n", "line 1: batch= is missing"),
        ("schedule model=m world=2 batch=1\n", "line 1: the schedule's name is missing"),
        ("schedule s model=m world=2 batch=1 cow=3\n", "line 1: 'cow' does not belong here"),
        ("schedule s model=m world=2 batch=1\ngroup w 3-1\n", "line 2: '3-1' runs backwards"),
        ("schedule s model=m world=2 batch=1\ngroup w 0-1 2\n", "line 2: '2' does not belong here"),
        ("schedule s model=m world=2 batch=1\nbundle b owners=w\n", "line 2: numel= is missing"),
        ("schedule s model=m world=2 batch=1\nbundle b owners=w numel=1 layout=odd\n", "line 2: 'odd' is not one of"),
        ("schedule s model=m world=2 batch=1\n\nx: y\n", "line 3: 'y' is not one of"),
        ("schedule s model=m world=2 batch=1\nschedule t model=m world=2 batch=1\n", "line 2: there are two headers"),
    ],
)
def test_malformed_schedule(text: str, message: str) -> None:
    with pytest.raises(ScheduleError) as e:
        parse(text)
    assert message in str(e.value)


def _mutate(text: str, seed: int) -> str:
    """Change a few characters, words or lines."""
    rng = random.Random(seed)
    for _ in range(rng.randint(1, 3)):
        i = rng.randrange(len(text) + 1)
        match rng.randrange(6):
            case 0:
                text = text[:i] + rng.choice("=:@>-,()# \n\t9x\u00b2\u0663\x00") + text[i:]
            case 1:
                text = text[:i] + text[i + rng.randint(1, 12) :]
            case 2:
                words = text.split(" ")
                rng.shuffle(words)
                text = " ".join(words)
            case 3:
                lines = text.splitlines()
                rng.shuffle(lines)
                text = "\n".join(lines[: rng.randint(0, len(lines))])
            case 4:
                text = text[:i] + text[rng.randrange(len(text) + 1) :]
            case 5:
                text = text[:i] + str(10 ** rng.randint(1, 40)) + text[i:]
    return text


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32))
def test_mutated_text_is_a_schedule_or_a_schedule_error(seed: int) -> None:
    try:
        schedule = parse(_mutate(GOLDEN.read_text(), seed))
    except ScheduleError as e:
        assert str(e)
    else:
        assert parse(schedule.text()) == schedule


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_mutated_json_is_a_schedule_or_a_schedule_error(seed: int) -> None:
    try:
        schedule = from_json(_mutate(golden().to_json(), seed))
    except ScheduleError as e:
        assert str(e)
    else:
        assert from_json(schedule.to_json()) == schedule


WRONG: list[object] = [None, True, -1.5, "four", [], {}, [3], {"a": 3}, [{"op": "compute"}], [["op"]]]
RIGHT = [("name", "four"), ("model", "four"), *((k, v) for k in ("groups", "bundles", "ops") for v in ([], {}))]


@pytest.mark.parametrize(
    ("key", "value"), [(k, v) for k in json.loads(golden().to_json()) for v in WRONG if (k, v) not in RIGHT]
)
def test_json_of_the_wrong_kind(key: str, value: object) -> None:
    data = json.loads(golden().to_json())
    data[key] = value
    with pytest.raises(ScheduleError, match="not the JSON form of a schedule"):
        from_json(json.dumps(data))


@pytest.mark.parametrize("text", ["", "3", "[]", "null", '"x"', "{", "{}", '{"groups": []}', "[" * 100_000])
def test_not_even_json(text: str) -> None:
    with pytest.raises(ScheduleError, match="not the JSON form of a schedule"):
        from_json(text)


def test_a_collective_has_no_priority() -> None:
    line = "ar: all_reduce grad(w) @g nbytes=4 algorithm=ring priority=1"
    with pytest.raises(ScheduleError, match="a collective has no priority"):
        parse_op(line)
    text = parse("schedule s model=m world=2 batch=1\ngroup g 0-1\n" + line.removesuffix(" priority=1")).to_json()
    with pytest.raises(ScheduleError, match="ar: a collective has no priority"):
        from_json(text.replace('"algorithm"', '"priority": 1, "algorithm"'))
