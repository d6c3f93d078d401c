"""The fluid solver and the bookkeeping of messages on arrays, compiled with numba where that is installed.

`fluid.py` is the same arithmetic for few activities, in plain Python; tests hold the two equal. What is
different here is what makes many flows cheap:

- Flows of one *class* (same links, weight and cap) share one rate. A class keeps a virtual clock, the work that
  each of its flows has been served, and a heap of the clock readings at which its flows finish.
- Everything that starts or ends at one instant is one solve, of the links that it can affect.
- A *node* is a flow or a gate that waits for a number of other nodes; nodes complete without leaving this module,
  and only gates that were asked for are reported.

Node k starts `delay[k]` after its last predecessor completed. A node of class -1 completes then; any other is a flow
of `work[k]` that completes when it has been served. Times are seconds, work and capacities in any one unit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]

_F = TypeVar("_F", bound=Callable[..., object])

try:
    import numba
except ImportError:  # the same code runs uncompiled, some hundred times slower

    def _jit(function: _F) -> _F:
        return function

    COMPILED = False
else:
    _jit = numba.njit(cache=True, nogil=True, error_model="numpy")
    COMPILED = True

TIE = 1e-12
"""Relative tolerance: instants, and levels, that differ by less are one."""

_BLOCK = 64  # classes per entry of the second level of the search for the next finish


class Net(NamedTuple):
    """What is fixed: capacities, and which links each class uses, both ways round in compressed rows."""

    capacity: F64  # per link
    class_ptr: I64  # per class, into class_link
    class_link: I32
    class_demand: F64
    link_ptr: I64  # per link, into link_class
    link_class: I32
    link_demand: F64
    phi: F64  # per class
    cap: F64  # per class, rate of one flow


class Nodes(NamedTuple):
    """Flows and gates. `successor[successor_ptr[k]:successor_ptr[k + 1]]` wait for node k."""

    cls: I32
    work: F64
    delay: F64
    missing: I32
    successor_ptr: I64
    successor: I32
    done_s: F64  # completion, NaN before


class State(NamedTuple):
    """What changes: classes, the heap of pending starts, and scratch space of the solver."""

    count: I64  # per class: active flows
    served: F64  # per class: virtual clock
    since: F64  # per class: when `served` was taken
    rate: F64  # per class: of one flow
    finish: F64  # per class: next finish, infinity if none
    block: F64  # least finish of each block of classes
    root: I32  # per class: heap of finish marks
    child: I32  # per node
    sibling: I32
    mark: F64  # per node
    heap_s: F64  # pending starts: time
    heap_k: I32  # and node
    level: F64  # scratch per link + class: progressive filling
    left: F64  # per link
    weight: F64  # per link
    opened: I64  # per link: flows' classes not frozen
    link_epoch: I64
    class_epoch: I64
    frozen: I64  # per class: epoch in which it was frozen
    links: I32  # scratch list
    classes: I32  # scratch list
    changed: I32  # links whose users changed
    scalars: I64  # see the names below
    queue: I32  # scratch: completions of an instant
    limit: I32  # per class: the link that limits it, or -1 for its cap
    limited_by: I32  # per node: `limit` when it completed, -1 for a gate


HEAP, EPOCH, CHANGED, EVENTS, LEFT, SOLVES = range(6)


def make_net(capacity: F64, routes: list[tuple[tuple[int, float], ...]], phi: F64, cap: F64) -> Net:
    """Build `Net` from each class's list of (link, demand)."""
    counts = np.array([len(r) for r in routes], dtype=np.int64)
    links = np.array([q for r in routes for q, _ in r], dtype=np.int32)
    demands = np.array([d for r in routes for _, d in r], dtype=np.float64)
    return net_of(capacity, counts, links, demands, phi, cap)


def net_of(capacity: F64, counts: I64, links: I32, demands: F64, phi: F64, cap: F64) -> Net:
    """Build `Net` from compressed rows: class c uses the next `counts[c]` entries of `links`."""
    class_ptr = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=class_ptr[1:])
    order = np.argsort(links, kind="stable")
    owner = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    link_ptr = np.zeros(len(capacity) + 1, dtype=np.int64)
    np.cumsum(np.bincount(links, minlength=len(capacity)), out=link_ptr[1:])
    return Net(
        capacity=np.ascontiguousarray(capacity, dtype=np.float64),
        class_ptr=class_ptr,
        class_link=np.ascontiguousarray(links, dtype=np.int32),
        class_demand=np.ascontiguousarray(demands, dtype=np.float64),
        link_ptr=link_ptr,
        link_class=owner[order],
        link_demand=np.ascontiguousarray(demands[order], dtype=np.float64),
        phi=np.ascontiguousarray(phi, dtype=np.float64),
        cap=np.ascontiguousarray(cap, dtype=np.float64),
    )


def make_state(net: Net, nodes: Nodes) -> State:
    """Fresh state for `nodes` on `net`."""
    classes, links, n = len(net.phi), len(net.capacity), len(nodes.cls)
    return State(
        count=np.zeros(classes, dtype=np.int64),
        served=np.zeros(classes),
        since=np.zeros(classes),
        rate=np.zeros(classes),
        finish=np.full(classes, np.inf),
        block=np.full(classes // _BLOCK + 1, np.inf),
        root=np.full(classes, -1, dtype=np.int32),
        child=np.full(n, -1, dtype=np.int32),
        sibling=np.full(n, -1, dtype=np.int32),
        mark=np.zeros(n),
        heap_s=np.zeros(n + 1),
        heap_k=np.zeros(n + 1, dtype=np.int32),
        level=np.zeros(links + classes),
        left=np.zeros(links),
        weight=np.zeros(links),
        opened=np.zeros(links, dtype=np.int64),
        link_epoch=np.zeros(links, dtype=np.int64),
        class_epoch=np.zeros(classes, dtype=np.int64),
        frozen=np.zeros(classes, dtype=np.int64),
        links=np.zeros(links + classes, dtype=np.int32),
        classes=np.zeros(classes, dtype=np.int32),
        changed=np.zeros(links, dtype=np.int32),
        scalars=np.zeros(8, dtype=np.int64),
        queue=np.zeros(n + 1, dtype=np.int32),
        limit=np.full(classes, -1, dtype=np.int32),
        limited_by=np.full(n, -1, dtype=np.int32),
    )


# ---- a binary heap of pending starts ------------------------------------------------------------------------------


@_jit
def _push(st: State, at: float, k: int) -> None:
    i = st.scalars[HEAP]
    st.scalars[HEAP] = i + 1
    s, n = st.heap_s, st.heap_k
    while i > 0:
        parent = (i - 1) >> 1
        if s[parent] < at or (s[parent] == at and n[parent] <= k):
            break
        s[i] = s[parent]
        n[i] = n[parent]
        i = parent
    s[i] = at
    n[i] = k


@_jit
def _pop(st: State) -> int:
    s, n = st.heap_s, st.heap_k
    top = n[0]
    last = st.scalars[HEAP] - 1
    st.scalars[HEAP] = last
    at, k = s[last], n[last]
    i = 0
    while True:
        j = 2 * i + 1
        if j >= last:
            break
        if j + 1 < last and (s[j + 1] < s[j] or (s[j + 1] == s[j] and n[j + 1] < n[j])):
            j += 1
        if s[j] > at or (s[j] == at and n[j] >= k):
            break
        s[i] = s[j]
        n[i] = n[j]
        i = j
    s[i] = at
    n[i] = k
    return top


# ---- a pairing heap of finish marks per class -----------------------------------------------------------------------


@_jit
def _meld(st: State, a: int, b: int) -> int:
    if a < 0:
        return b
    if b < 0:
        return a
    if st.mark[b] < st.mark[a] or (st.mark[b] == st.mark[a] and b < a):
        a, b = b, a
    st.sibling[b] = st.child[a]
    st.child[a] = b
    return a


@_jit
def _pop_root(st: State, a: int) -> int:
    """Remove the root `a` of a pairing heap and return the new root (two-pass melding)."""
    first = st.child[a]
    st.child[a] = -1
    paired = -1
    while first >= 0:
        second = st.sibling[first]
        st.sibling[first] = -1
        if second >= 0:
            rest = st.sibling[second]
            st.sibling[second] = -1
            first = _meld(st, first, second)
        else:
            rest = -1
        st.sibling[first] = paired
        paired = first
        first = rest
    root = -1
    while paired >= 0:
        rest = st.sibling[paired]
        st.sibling[paired] = -1
        root = _meld(st, root, paired)
        paired = rest
    return root


# ---- progressive filling --------------------------------------------------------------------------------------------


@_jit
def _sift(level: F64, ids: I32, size: int, i: int) -> None:
    key, what = level[ids[i]], ids[i]
    while True:
        j = 2 * i + 1
        if j >= size:
            break
        if j + 1 < size and level[ids[j + 1]] < level[ids[j]]:
            j += 1
        if level[ids[j]] >= key:
            break
        ids[i] = ids[j]
        i = j
    ids[i] = what


@_jit
def _touch(st: State, q: int) -> None:
    """Remember that the users of link `q` changed since the last solve."""
    n = st.scalars[CHANGED]
    if st.link_epoch[q] != -1:
        st.link_epoch[q] = -1
        st.changed[n] = q
        st.scalars[CHANGED] = n + 1


@_jit
def _reblock(st: State, c: int) -> None:
    b = c // _BLOCK
    least = np.inf
    for x in range(b * _BLOCK, min(len(st.finish), (b + 1) * _BLOCK)):
        if st.finish[x] < least:
            least = st.finish[x]
    st.block[b] = least


@_jit
def _set_rate(net: Net, st: State, c: int, rate: float, now: float) -> None:
    if rate != st.rate[c]:
        st.served[c] += st.rate[c] * (now - st.since[c])
        st.since[c] = now
        st.rate[c] = rate
    st.finish[c] = st.since[c] + (st.mark[st.root[c]] - st.served[c]) / rate


@_jit
def solve(net: Net, st: State, now: float) -> None:
    """Give max-min fair rates to every class that shares links, directly or not, with a changed link."""
    st.scalars[EPOCH] += 1
    st.scalars[SOLVES] += 1
    epoch = st.scalars[EPOCH]
    n_links = st.scalars[CHANGED]
    st.scalars[CHANGED] = 0
    for i in range(n_links):
        st.links[i] = st.changed[i]
        st.link_epoch[st.changed[i]] = epoch
    n_classes = 0
    i = 0
    capped = False
    while i < n_links:  # the component of what changed
        q = st.links[i]
        i += 1
        left, weight, opened = net.capacity[q], 0.0, 0
        for x in range(net.link_ptr[q], net.link_ptr[q + 1]):
            c = net.link_class[x]
            if st.count[c] == 0:
                continue
            opened += 1
            weight += st.count[c] * net.phi[c] * net.link_demand[x]
            if st.class_epoch[c] != epoch:
                st.class_epoch[c] = epoch
                st.classes[n_classes] = c
                n_classes += 1
                if net.cap[c] < np.inf:
                    capped = True
                for y in range(net.class_ptr[c], net.class_ptr[c + 1]):
                    r = net.class_link[y]
                    if st.link_epoch[r] != epoch:
                        st.link_epoch[r] = epoch
                        st.links[n_links] = r
                        n_links += 1
        st.left[q], st.weight[q], st.opened[q] = left, weight, opened
    # A heap of levels: links, and as if links of their own the caps of classes.
    base = len(net.capacity)
    size = 0
    for i in range(n_links):
        q = st.links[i]
        if st.opened[q] > 0:
            st.level[q] = st.left[q] / st.weight[q]
            st.links[size] = q
            size += 1
    if capped:
        for i in range(n_classes):
            c = st.classes[i]
            if net.cap[c] < np.inf:
                st.level[base + c] = net.cap[c] / net.phi[c]
                st.links[size] = base + c
                size += 1
    for i in range(size // 2 - 1, -1, -1):
        _sift(st.level, st.links, size, i)
    waiting = n_classes
    while waiting > 0:
        q = st.links[0]
        if q < base:
            if st.opened[q] == 0:
                size -= 1
                st.links[0] = st.links[size]
                _sift(st.level, st.links, size, 0)
                continue
            level = st.left[q] / st.weight[q]
            if level > st.level[q]:
                st.level[q] = level
                _sift(st.level, st.links, size, 0)
                if st.links[0] != q:
                    continue
        level = st.level[q]
        size -= 1
        st.links[0] = st.links[size]
        if size > 0:
            _sift(st.level, st.links, size, 0)
        if q >= base:
            first, end = 0, 1
        else:
            first, end = net.link_ptr[q], net.link_ptr[q + 1]
        for x in range(first, end):
            c = q - base if q >= base else net.link_class[x]
            if st.count[c] == 0 or st.frozen[c] == epoch:
                continue
            st.frozen[c] = epoch
            waiting -= 1
            rate = min(net.phi[c] * level, net.cap[c])
            st.limit[c] = q if q < base else -1
            for y in range(net.class_ptr[c], net.class_ptr[c + 1]):
                r = net.class_link[y]
                demand = st.count[c] * net.class_demand[y]
                st.opened[r] -= 1
                st.left[r] = max(0.0, st.left[r] - rate * demand)
                st.weight[r] -= net.phi[c] * demand
            _set_rate(net, st, c, rate, now)
    # The search for the next finish looks at blocks of classes.
    if n_classes * 4 > len(st.block) * _BLOCK:
        for b in range(len(st.block)):
            _reblock(st, b * _BLOCK)
    else:
        for i in range(n_classes):
            _reblock(st, st.classes[i])


# ---- running --------------------------------------------------------------------------------------------------------


@_jit
def next_s(st: State) -> float:
    """When something happens next: a flow ends or a node starts; infinity if nothing will."""
    least = np.inf
    for b in range(len(st.block)):
        if st.block[b] < least:
            least = st.block[b]
    if st.scalars[HEAP] > 0 and st.heap_s[0] < least:
        least = st.heap_s[0]
    return least


@_jit
def complete(net: Net, nodes: Nodes, st: State, k: int, now: float) -> None:
    """Node `k` is complete at `now`: release its successors."""
    st.queue[0] = k
    n = 1
    while n > 0:
        n -= 1
        k = st.queue[n]
        nodes.done_s[k] = now
        st.scalars[LEFT] -= 1
        for x in range(nodes.successor_ptr[k], nodes.successor_ptr[k + 1]):
            j = nodes.successor[x]
            nodes.missing[j] -= 1
            if nodes.missing[j] == 0:
                if nodes.delay[j] > 0.0:
                    _push(st, now + nodes.delay[j], j)
                elif nodes.cls[j] < 0 or nodes.work[j] <= 0.0:
                    st.queue[n] = j
                    n += 1
                else:
                    begin(net, nodes, st, j, now)


@_jit
def begin(net: Net, nodes: Nodes, st: State, k: int, now: float) -> None:
    """Start the flow of node `k`."""
    c = nodes.cls[k]
    if st.count[c] == 0:
        st.served[c] = 0.0
        st.rate[c] = 0.0
    else:
        st.served[c] += st.rate[c] * (now - st.since[c])
    st.since[c] = now
    st.count[c] += 1
    st.mark[k] = st.served[c] + nodes.work[k]
    st.child[k] = -1
    st.sibling[k] = -1
    st.root[c] = _meld(st, st.root[c], k)
    for y in range(net.class_ptr[c], net.class_ptr[c + 1]):
        _touch(st, net.class_link[y])


@_jit
def step(net: Net, nodes: Nodes, st: State, now: float) -> None:
    """Do everything that happens at `now` (and within the tolerance of it), then solve."""
    limit = now + TIE * abs(now)
    again = True
    while again:
        again = False
        for b in range(len(st.block)):
            if st.block[b] > limit:
                continue
            for c in range(b * _BLOCK, min(len(st.finish), (b + 1) * _BLOCK)):
                if st.finish[c] > limit:
                    continue
                again = True
                st.finish[c] = np.inf
                head = st.mark[st.root[c]]
                st.served[c] = head
                st.since[c] = now
                slack = head + st.rate[c] * TIE * abs(now)
                for y in range(net.class_ptr[c], net.class_ptr[c + 1]):
                    _touch(st, net.class_link[y])
                while st.root[c] >= 0 and st.mark[st.root[c]] <= slack:
                    k = st.root[c]
                    st.root[c] = _pop_root(st, k)
                    st.count[c] -= 1
                    st.scalars[EVENTS] += 1
                    st.limited_by[k] = st.limit[c]
                    complete(net, nodes, st, k, now)
            _reblock(st, b * _BLOCK)
        while st.scalars[HEAP] > 0 and st.heap_s[0] <= limit:
            again = True
            k = _pop(st)
            st.scalars[EVENTS] += 1
            if nodes.cls[k] < 0 or nodes.work[k] <= 0.0:
                complete(net, nodes, st, k, now)
            else:
                begin(net, nodes, st, k, now)
    if st.scalars[CHANGED] > 0:
        solve(net, st, now)


@_jit
def start(nodes: Nodes, st: State) -> None:
    """Put every node that waits for nothing on the heap of starts."""
    st.scalars[LEFT] = len(nodes.cls)
    for k in range(len(nodes.cls)):
        if nodes.missing[k] == 0:
            _push(st, nodes.delay[k], k)


@_jit
def run(net: Net, nodes: Nodes, st: State, steps: int) -> float:
    """Run until nothing is left, or for so many instants; return the time that was reached.

    `st.scalars[LEFT]` counts the nodes that are not complete.
    """
    now = 0.0
    while steps > 0:
        at = next_s(st)
        if at == np.inf:
            break
        now = at
        step(net, nodes, st, now)
        steps -= 1
    return now
