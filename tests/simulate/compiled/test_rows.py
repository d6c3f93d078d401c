"""Arrows between nodes of two generations, held against a list of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stanza_sim.simulate.compiled.rows import Arrows, Rows, in_order


def successors(rows: Rows, node: int) -> list[int]:
    return rows.successor[rows.ptr[node] : rows.ptr[node + 1]].tolist()


def test_an_arrow_from_the_iteration_before_changes_generation() -> None:
    arrows = Arrows(3)
    arrows.add([0, 1], [1, 2])
    arrows.add([2], [0], previous=True)
    rows = arrows.rows()
    assert [successors(rows, k) for k in range(6)] == [[1], [2], [3], [4], [5], [0]]
    assert rows.awaited.tolist() == [1, 1, 1]
    assert rows.awaited_before.tolist() == [1, 0, 0]


def test_leading_nodes_have_equally_many_arrows() -> None:
    arrows = Arrows(4, leading=2)
    arrows.add_leading(np.array([1, 0], dtype=np.int32), previous=[False, True])  # a queue of two messages
    arrows.add_leading(np.array([3, 3], dtype=np.int32))
    arrows.add([2, 2], [1, 0])
    rows = arrows.rows()
    assert [successors(rows, k) for k in range(8)] == [[1, 3], [4, 3], [1, 0], [], [5, 7], [0, 7], [5, 4], []]
    assert rows.awaited.tolist() == [2, 2, 0, 2]
    assert rows.awaited_before.tolist() == [1, 0, 0, 0]


def test_no_arrows() -> None:
    rows = Arrows(2).rows()
    assert rows.ptr.tolist() == [0, 0, 0, 0, 0]
    assert rows.awaited.tolist() == rows.awaited_before.tolist() == [0, 0]


def test_what_leads_nowhere_is_refused() -> None:
    arrows = Arrows(4, leading=2)
    with pytest.raises(ValueError, match="leading"):
        arrows.add([1], [3])
    with pytest.raises(ValueError, match="no target"):
        arrows.add([2, 3], [3])
    with pytest.raises(ValueError, match="1 targets for 2 leading"):
        arrows.add_leading(np.array([1], dtype=np.int32))


@given(data=st.data())
def test_rows_hold_every_arrow_once_and_in_order(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 8))
    leading = data.draw(st.integers(0, size - 1))
    node, of_all = st.integers(0, size - 1), st.integers(leading, size - 1)
    known: list[tuple[int, int, bool]] = []
    arrows = Arrows(size, leading)
    for _ in range(data.draw(st.integers(0, 3))):
        column = data.draw(st.lists(st.tuples(node, st.booleans()), min_size=leading, max_size=leading))
        arrows.add_leading(np.array([k for k, _ in column], dtype=np.int32), previous=[far for _, far in column])
        known += [(k, target, far) for k, (target, far) in enumerate(column)]
    for previous in data.draw(st.lists(st.booleans(), max_size=4)):
        pairs = data.draw(st.lists(st.tuples(of_all, node), max_size=6))
        arrows.add([a for a, _ in pairs], [b for _, b in pairs], previous=previous)
        known += [(a, b, previous) for a, b in pairs]
    rows = arrows.rows()
    for k in range(2 * size):
        generation = k // size
        mine = [b + size * (generation ^ far) for a, b, far in known if a == k % size]
        assert successors(rows, k) == mine
    assert rows.awaited.tolist() == [sum(b == k for _, b, _ in known) for k in range(size)]
    assert rows.awaited_before.tolist() == [sum(b == k and far for _, b, far in known) for k in range(size)]


@given(code=st.lists(st.integers(0, 5)))
def test_in_order_is_a_stable_sort(code: list[int]) -> None:
    found = in_order(np.array(code, dtype=np.int32), 6)
    assert found.tolist() == np.argsort(code, kind="stable").tolist()
