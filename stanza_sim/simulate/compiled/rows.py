"""Arrows between nodes, from lists of them to compressed rows.

Every node is there twice, once for even and once for odd iterations (its two *generations*): node k of the odd one has
number k + size. An arrow inside an iteration stays in its generation, one from the iteration before comes from the
other.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stanza_sim.simulate.compiled.arrays import I32, I64
from stanza_sim.simulate.compiled.kernel.jit import kept_with_arrays


@kept_with_arrays
def in_order(code: I64, size: int) -> I32:
    """Return the places of `code`, whose values are below `size`, by value, and in their own order where those tie."""
    at = np.zeros(size + 1, dtype=np.int64)
    for x in code:
        at[x + 1] += 1
    for i in range(size):
        at[i + 1] += at[i]
    order = np.empty(len(code), dtype=np.int32)
    for i in range(len(code)):
        order[at[code[i]]] = i
        at[code[i]] += 1
    return order


class Rows(NamedTuple):
    """Arrows of both generations: node k leads to `successor[ptr[k]:ptr[k + 1]]`.

    Per node of one generation, `awaited` counts the arrows that lead to it, and `awaited_before` those of them that
    come from the iteration before.
    """

    ptr: I64
    successor: I32
    awaited: I32
    awaited_before: I32


class Arrows:
    """Collects the arrows of `size` nodes.

    The first `leading` nodes, which may be very many, have equally many arrows each: `add_leading` gives each of them
    one more. All arrows of the other nodes are those of `add`. A node's arrows stay in the order in which they came.
    """

    def __init__(self, size: int, leading: int = 0) -> None:
        self.size, self.leading = size, leading
        self._columns: list[tuple[I32, npt.NDArray[np.bool_]]] = []
        self._others: list[tuple[I32, I32, bool]] = []

    def add(self, source: npt.ArrayLike, target: npt.ArrayLike, *, previous: bool = False) -> None:
        """Add an arrow from each of `source`, none of the leading nodes, to its `target`.

        With `previous` it leads from an iteration to the next.
        """
        pair = np.asarray(source, dtype=np.int32), np.asarray(target, dtype=np.int32)
        if pair[0].shape != pair[1].shape or pair[0].min(initial=self.leading) < self.leading:
            raise ValueError("an arrow has no target, or comes from a leading node")
        self._others.append((*pair, previous))

    def add_leading(self, target: I32, *, previous: npt.ArrayLike = False) -> None:
        """Add an arrow from each leading node to its `target`; `previous`, of all or of each, is as in `add`."""
        if len(target) != self.leading:
            raise ValueError(f"{len(target)} targets for {self.leading} leading nodes")
        self._columns.append((target, np.asarray(previous, dtype=np.bool_)))

    def rows(self) -> Rows:
        """Make the rows."""
        size, m, wide = self.size, self.leading, len(self._columns)
        source = np.concatenate([np.zeros(0, dtype=np.int32), *(s for s, _, _ in self._others)])
        target = np.concatenate([np.zeros(0, dtype=np.int32), *(t for _, t, _ in self._others)])
        over = np.repeat([far for _, _, far in self._others], [len(s) for s, _, _ in self._others]).astype(np.bool_)
        order = in_order(source - np.int64(m), size - m)
        target, over = target[order], over[order]
        successor = np.empty((2, wide * m + len(target)), dtype=np.int32)  # in place: these are the largest arrays
        for here, there, row in ((0, size, successor[0]), (size, 0, successor[1])):
            each = row[: wide * m].reshape(m, wide)
            for k, (to, previous) in enumerate(self._columns):
                each[:, k] = to + np.where(previous, there, here).astype(np.int32)
            row[wide * m :] = target + np.where(over, there, here)
        leaving = np.bincount(source, minlength=size)
        leaving[:m] = wide
        ptr = np.zeros(2 * size + 1, dtype=np.int64)
        np.cumsum(np.tile(leaving, 2), out=ptr[1:])
        awaited, before = np.bincount(target, minlength=size), np.bincount(target[over], minlength=size)
        for to, previous in self._columns:
            awaited += np.bincount(to, minlength=size)
            if previous.any():
                before += np.bincount(to[previous] if previous.ndim else to, minlength=size)
        return Rows(ptr, successor.reshape(-1), awaited.astype(np.int32), before.astype(np.int32))
