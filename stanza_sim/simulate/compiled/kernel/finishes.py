"""When flows finish: of each class a pairing heap of finish marks, and of each block of classes the least finish."""

from __future__ import annotations

import numpy as np

from stanza_sim.simulate.compiled.arrays import F64, I32, Whole
from stanza_sim.simulate.compiled.kernel.jit import part
from stanza_sim.simulate.compiled.kernel.state import BLOCK


@part
def meld(child: I32, sibling: I32, mark: F64, a: Whole, b: Whole) -> Whole:
    """Join two pairing heaps by their roots, -1 for an empty one; return the new root."""
    if a < 0:
        return b
    if b < 0:
        return a
    if mark[b] < mark[a] or (mark[b] == mark[a] and b < a):
        a, b = b, a
    sibling[b] = child[a]
    child[a] = b
    return a


@part
def pop_root(child: I32, sibling: I32, mark: F64, a: int) -> Whole:
    """Remove the root `a` of a pairing heap and return the new root (two-pass melding)."""
    first = child[a]
    child[a] = -1
    paired = -1
    while first >= 0:
        second = sibling[first]
        sibling[first] = -1
        rest = -1
        if second >= 0:
            rest = sibling[second]
            sibling[second] = -1
            first = meld(child, sibling, mark, np.int64(first), np.int64(second))
        sibling[first] = paired
        paired = first
        first = rest
    root: Whole = -1
    while paired >= 0:
        rest = sibling[paired]
        sibling[paired] = -1
        root = meld(child, sibling, mark, np.int64(root), np.int64(paired))
        paired = rest
    return root


@part
def least_finish(finish: F64, block: F64, b: int) -> float:
    """The least finish of block b, found anew if any of its classes has another.

    Four searches side by side: one alone would wait for each comparison before it makes the next.
    """
    if block[b] == block[b]:
        return float(block[b])
    one = two = three = four = np.inf
    for x in range(b * BLOCK, (b + 1) * BLOCK, 4):
        one = finish[x] if finish[x] < one else one
        two = finish[x + 1] if finish[x + 1] < two else two
        three = finish[x + 2] if finish[x + 2] < three else three
        four = finish[x + 3] if finish[x + 3] < four else four
    block[b] = min(min(one, two), min(three, four))
    return float(block[b])
