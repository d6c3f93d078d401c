"""Pending starts of nodes: a binary heap, and a queue for each of the common delays, which needs none.

Small functions take the arrays that they use, not the tuples of them, of which a call copies every descriptor.
"""

from __future__ import annotations

import numpy as np

from stanza_sim.simulate.compiled.arrays import F64, I8, I32, I64, State, Whole
from stanza_sim.simulate.compiled.kernel.jit import part
from stanza_sim.simulate.compiled.kernel.state import HEAP


@part
def push(heap_s: F64, heap_k: I32, scalars: I64, at: float, k: Whole) -> None:
    """Node k starts at `at`: put it on the heap, by time and then by number."""
    i = scalars[HEAP]
    scalars[HEAP] = i + 1
    while i > 0:
        parent = (i - 1) >> 1
        if heap_s[parent] < at or (heap_s[parent] == at and heap_k[parent] <= k):
            break
        heap_s[i] = heap_s[parent]
        heap_k[i] = heap_k[parent]
        i = parent
    heap_s[i] = at
    heap_k[i] = k


@part
def await_start(
    heap_s: F64,
    heap_k: I32,
    scalars: I64,
    delay_queue: I8,
    first: I32,
    last: I32,
    mark: F64,
    sibling: I32,
    at: float,
    k: int,
) -> None:
    """Node k starts at `at`, which within its delay queue is no earlier than any before."""
    w = delay_queue[k]
    if w < 0:
        push(heap_s, heap_k, scalars, at, np.int64(k))
        return
    mark[k] = at
    sibling[k] = -1
    if first[w] < 0:
        first[w] = k
    else:
        sibling[last[w]] = k
    last[w] = k


@part
def pop(heap_s: F64, heap_k: I32, scalars: I64) -> int:
    """Take the first node off the heap."""
    top = int(heap_k[0])
    last = scalars[HEAP] - 1
    scalars[HEAP] = last
    at, k = heap_s[last], heap_k[last]
    i = 0
    while True:
        j = 2 * i + 1
        if j >= last:
            break
        if j + 1 < last and (heap_s[j + 1] < heap_s[j] or (heap_s[j + 1] == heap_s[j] and heap_k[j + 1] < heap_k[j])):
            j += 1
        if heap_s[j] > at or (heap_s[j] == at and heap_k[j] >= k):
            break
        heap_s[i] = heap_s[j]
        heap_k[i] = heap_k[j]
        i = j
    heap_s[i] = at
    heap_k[i] = k
    return top


@part
def begin_at(st: State, at: float, k: int) -> None:
    """Node k starts at `at`."""
    await_start(
        st.heap_s, st.heap_k, st.scalars, st.delay_queue, st.delay_first, st.delay_last, st.mark, st.sibling, at, k
    )
