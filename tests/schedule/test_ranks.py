"""Laws of `Ranks`: a set of ranks that is held as ranges."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stanza_sim.base.errors import InputError
from stanza_sim.schedule import Ranks

SETS = st.sets(st.integers(0, 60))


@given(SETS)
def test_behaves_like_a_sorted_set(ranks: set[int]) -> None:
    r = Ranks.of(ranks)
    assert list(r) == sorted(ranks)
    assert len(r) == len(ranks)
    assert [r[i] for i in range(len(r))] == sorted(ranks)
    assert [r.index(x) for x in r] == list(range(len(r)))
    assert {x for x in range(-2, 64) if x in r} == ranks


@given(SETS, SETS)
def test_equal_sets_are_equal_and_hash_alike(a: set[int], b: set[int]) -> None:
    ra, rb = Ranks.of(a), Ranks.of(sorted(b, reverse=True))
    assert (ra == rb) == (a == b)
    if a == b:
        assert hash(ra) == hash(rb)


@given(SETS, SETS)
def test_sets_meet_if_a_rank_is_in_both(a: set[int], b: set[int]) -> None:
    assert Ranks.of(a).meets(Ranks.of(b)) == bool(a & b)


@given(SETS)
def test_spans_are_ascending_and_do_not_touch(ranks: set[int]) -> None:
    spans = Ranks.of(ranks).spans
    assert all(a < b for a, b in spans)
    assert all(x[1] < y[0] for x, y in pairwise(spans))


@given(SETS)
def test_printed_form_parses_back(ranks: set[int]) -> None:
    assert Ranks.parse(str(Ranks.of(ranks))) == Ranks.of(ranks)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)), max_size=5))
def test_parts_may_overlap_and_come_in_any_order(parts: list[tuple[int, int]]) -> None:
    text = ",".join(f"{a}-{a + n}" for a, n in parts)
    assert set(Ranks.parse(text)) == {x for a, n in parts for x in range(a, a + n + 1)}


def test_a_range_is_one_span_whatever_its_length() -> None:
    assert Ranks.of(range(3, 10_000_000)).spans == ((3, 10_000_000),)
    assert Ranks.of(range(5, 5)) == Ranks(())
    assert Ranks.parse("0-999999999999").spans == ((0, 1_000_000_000_000),)
    assert str(Ranks.of([0, 1, 2, 5, 7, 8])) == "0-2,5,7-8"


def test_what_is_not_there() -> None:
    r = Ranks.of([2, 3, 7])
    with pytest.raises(ValueError, match="rank 4 is not in 2-3,7"):
        r.index(4)
    for i in (3, -1):
        with pytest.raises(IndexError):
            r[i]
    assert "2" not in r
    assert 2.5 not in r


@pytest.mark.parametrize("text", ["x", "1-", "-1", "3-2", "1;2", "1 2", "0x1", "1--2", "\u0663", "9" * 5000])
def test_malformed_text(text: str) -> None:
    with pytest.raises(InputError):
        Ranks.parse(text)


@pytest.mark.parametrize("ranks", [[-1], [0, -3], range(-2, 3)])
def test_negative_ranks(ranks: list[int]) -> None:
    with pytest.raises(InputError, match="negative"):
        Ranks.of(ranks)
