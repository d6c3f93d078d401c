"""Arrows between nodes, in compressed rows."""

from __future__ import annotations

import numpy as np

from stanza_sim.simulate.compiled.arrays import I32, I64
from stanza_sim.simulate.compiled.kernel.jit import kept_with_arrays


@kept_with_arrays
def in_order(code: I32 | I64, size: int) -> I32:
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
