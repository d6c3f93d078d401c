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
from typing import NamedTuple, TypeVar, cast

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]

_F = TypeVar("_F", bound=Callable[..., object])

try:
    import numba
except ImportError:
    COMPILED = False
else:
    COMPILED = True


def _jit(function: _F) -> _F:
    """Compile `function`; without numba the same code runs as it is, some hundred times slower."""
    if not COMPILED:
        return function
    return cast("_F", numba.njit(cache=True, nogil=True, error_model="numpy")(function))


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
    limited: I32  # classes with a finite cap
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
    done_s: F64  # last completion, NaN before
    full: I32  # what `missing` is set to at completion, so that a node can be used again
    report: npt.NDArray[np.bool_]  # completions to be listed in `State.reported`


class State(NamedTuple):
    """What changes: classes, the heap of pending starts, and scratch space of the solver."""

    active: I64  # per class: flows under way
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
    load: F64  # per link: weight of all flows under way
    users: I64  # per link: classes under way
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
    starting: I32  # scratch: flows that begin at an instant
    limit: I32  # per class: the link that limits it, or -1 for its cap
    limited_by: I32  # per node: `limit` when it completed, -1 for a gate
    first_s: F64  # per node: when the first of its predecessors that are flows was released
    reported: I32  # nodes of `Nodes.report` that completed and were not yet taken


HEAP, EPOCH, CHANGED, EVENTS, LEFT, SOLVES, REPORTED, ACTIVE, WHOLE = range(9)
"""Places in `State.scalars`: pending starts, number of the solve, changed links, completions, nodes not complete,
solves, reports not taken, classes under way, and how many more solves take everything as one component."""


def make_nodes(cls: I32, work: F64, delay: F64, missing: I32, successor_ptr: I64, successor: I32) -> Nodes:
    """Nodes that are each used once and not reported."""
    n = len(cls)
    return Nodes(
        cls=cls,
        work=work,
        delay=delay,
        missing=missing,
        successor_ptr=successor_ptr,
        successor=successor,
        done_s=np.full(n, np.nan),
        full=np.zeros(n, dtype=np.int32),
        report=np.zeros(n, dtype=np.bool_),
    )


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
        limited=np.nonzero(np.isfinite(cap))[0].astype(np.int32),
        phi=np.ascontiguousarray(phi, dtype=np.float64),
        cap=np.ascontiguousarray(cap, dtype=np.float64),
    )


def make_state(net: Net, nodes: Nodes) -> State:
    """Fresh state for `nodes` on `net`."""
    classes, links, n = len(net.phi), len(net.capacity), len(nodes.cls)
    return State(
        active=np.zeros(classes, dtype=np.int64),
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
        load=np.zeros(links),
        users=np.zeros(links, dtype=np.int64),
        left=np.zeros(links),
        weight=np.zeros(links),
        opened=np.zeros(links, dtype=np.int64),
        link_epoch=np.zeros(links, dtype=np.int64),
        class_epoch=np.zeros(classes, dtype=np.int64),
        frozen=np.zeros(classes, dtype=np.int64),
        links=np.zeros(links + classes, dtype=np.int32),
        classes=np.zeros(classes, dtype=np.int32),
        changed=np.zeros(links, dtype=np.int32),
        scalars=np.zeros(9, dtype=np.int64),
        queue=np.zeros(n + 1, dtype=np.int32),
        starting=np.zeros(n + 1, dtype=np.int32),
        limit=np.full(classes, -1, dtype=np.int32),
        limited_by=np.full(n, -1, dtype=np.int32),
        first_s=np.full(n, np.inf),
        reported=np.zeros(n + 1, dtype=np.int32),
    )


# Small functions take the arrays that they use, not the tuples: taking an array out of a tuple costs numba a reference
# count, and a call with a tuple copies every descriptor in it.

# ---- a binary heap of pending starts ------------------------------------------------------------------------------


@_jit
def _push(heap_s: F64, heap_k: I32, scalars: I64, at: float, k: int) -> None:
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


@_jit
def _pop(heap_s: F64, heap_k: I32, scalars: I64) -> int:
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


# ---- a pairing heap of finish marks per class -----------------------------------------------------------------------


@_jit
def _meld(child: I32, sibling: I32, mark: F64, a: int, b: int) -> int:
    if a < 0:
        return b
    if b < 0:
        return a
    if mark[b] < mark[a] or (mark[b] == mark[a] and b < a):
        a, b = b, a
    sibling[b] = child[a]
    child[a] = b
    return a


@_jit
def _pop_root(child: I32, sibling: I32, mark: F64, a: int) -> int:
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
            first = _meld(child, sibling, mark, first, second)
        sibling[first] = paired
        paired = first
        first = rest
    root = -1
    while paired >= 0:
        rest = sibling[paired]
        sibling[paired] = -1
        root = _meld(child, sibling, mark, root, paired)
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
def _reblock(finish: F64, block: F64, b: int) -> None:
    least = np.inf
    for x in range(b * _BLOCK, min(len(finish), (b + 1) * _BLOCK)):
        if finish[x] < least:
            least = finish[x]
    block[b] = least


@_jit
def solve(net: Net, st: State, now: float) -> None:
    """Give max-min fair rates to every class that shares links, directly or not, with a changed link.

    Where that is most of them, the next solves do not look for the component and take all classes.
    """
    capacity, phi, cap = net.capacity, net.phi, net.cap
    class_ptr, class_link, class_demand = net.class_ptr, net.class_link, net.class_demand
    link_ptr, link_class, link_demand = net.link_ptr, net.link_class, net.link_demand
    scalars, links, classes, changed = st.scalars, st.links, st.classes, st.changed
    link_epoch, class_epoch, frozen, count = st.link_epoch, st.class_epoch, st.frozen, st.active
    left, weight, opened, level = st.left, st.weight, st.opened, st.level
    served, since, rates, finish, root, mark, limit = (
        st.served,
        st.since,
        st.rate,
        st.finish,
        st.root,
        st.mark,
        st.limit,
    )
    scalars[EPOCH] += 1
    scalars[SOLVES] += 1
    epoch = scalars[EPOCH]
    n_links = scalars[CHANGED]
    scalars[CHANGED] = 0
    load, users_of = st.load, st.users
    whole = scalars[WHOLE] > 0
    for i in range(n_links):
        links[i] = changed[i]
        link_epoch[changed[i]] = epoch
    n_classes = 0
    i = 0
    capped = False
    if whole:
        scalars[WHOLE] -= 1
        n_classes = scalars[ACTIVE]
        n_links = len(capacity)
        for q in range(n_links):
            links[q] = q
            left[q], weight[q], opened[q] = capacity[q], load[q], users_of[q]
        i = n_links
    while i < n_links:  # the component of what changed
        q = links[i]
        i += 1
        total, users = 0.0, 0
        for x in range(link_ptr[q], link_ptr[q + 1]):
            c = link_class[x]
            n = count[c]
            if n == 0:
                continue
            users += 1
            total += n * phi[c] * link_demand[x]
            if class_epoch[c] != epoch:
                class_epoch[c] = epoch
                classes[n_classes] = c
                n_classes += 1
                if cap[c] < np.inf:
                    capped = True
                for y in range(class_ptr[c], class_ptr[c + 1]):
                    r = class_link[y]
                    if link_epoch[r] != epoch:
                        link_epoch[r] = epoch
                        links[n_links] = r
                        n_links += 1
        left[q], weight[q], opened[q] = capacity[q], total, users
        load[q] = total  # the sum anew, so that rounding does not add up
    if not whole and n_classes * 2 > scalars[ACTIVE] and n_classes > _BLOCK:
        scalars[WHOLE] = 32
    # A heap of levels: links, and as if links of their own the caps of classes.
    base = len(capacity)
    size = 0
    for i in range(n_links):
        q = links[i]
        if opened[q] > 0:
            level[q] = left[q] / weight[q]
            links[size] = q
            size += 1
    if whole:
        for i in range(len(net.limited)):
            c = net.limited[i]
            if count[c] > 0:
                level[base + c] = cap[c] / phi[c]
                links[size] = base + c
                size += 1
    elif capped:
        for i in range(n_classes):
            c = classes[i]
            if cap[c] < np.inf:
                level[base + c] = cap[c] / phi[c]
                links[size] = base + c
                size += 1
    for i in range(size // 2 - 1, -1, -1):
        _sift(level, links, size, i)
    waiting = n_classes
    while waiting > 0:
        q = links[0]
        if q < base:
            if opened[q] == 0:
                size -= 1
                links[0] = links[size]
                _sift(level, links, size, 0)
                continue
            fresh = left[q] / weight[q]
            if fresh > level[q]:
                level[q] = fresh
                _sift(level, links, size, 0)
                if links[0] != q:
                    continue
            first, end = link_ptr[q], link_ptr[q + 1]
        else:
            first, end = 0, 1
        here = level[q]
        size -= 1
        links[0] = links[size]
        if size > 0:
            _sift(level, links, size, 0)
        for x in range(first, end):
            c = q - base if q >= base else link_class[x]
            n = count[c]
            if n == 0 or frozen[c] == epoch:
                continue
            frozen[c] = epoch
            waiting -= 1
            rate = min(phi[c] * here, cap[c])
            limit[c] = q if q < base else -1
            for y in range(class_ptr[c], class_ptr[c + 1]):
                r = class_link[y]
                demand = n * class_demand[y]
                opened[r] -= 1
                left[r] = max(0.0, left[r] - rate * demand)
                weight[r] -= phi[c] * demand
            if rate != rates[c]:
                served[c] += rates[c] * (now - since[c])
                since[c] = now
                rates[c] = rate
            finish[c] = since[c] + (mark[root[c]] - served[c]) / rate
    # The search for the next finish looks at blocks of classes.
    if whole or n_classes * 4 > len(finish):
        for b in range(len(st.block)):
            _reblock(finish, st.block, b)
    else:
        for i in range(n_classes):
            _reblock(finish, st.block, classes[i] // _BLOCK)


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
def happen(net: Net, nodes: Nodes, st: State, now: float) -> None:
    """Do everything that happens at `now` (and within the tolerance of it); rates are left to `solve`."""
    class_ptr, class_link = net.class_ptr, net.class_link
    cls, work, delay, missing, done_s = nodes.cls, nodes.work, nodes.delay, nodes.missing, nodes.done_s
    successor_ptr, successor = nodes.successor_ptr, nodes.successor
    count, served, since, rates, finish, block = st.active, st.served, st.since, st.rate, st.finish, st.block
    root, child, sibling, mark = st.root, st.child, st.sibling, st.mark
    heap_s, heap_k, scalars, queue, starting = st.heap_s, st.heap_k, st.scalars, st.queue, st.starting
    link_epoch, changed, limit, limited_by = st.link_epoch, st.changed, st.limit, st.limited_by
    full, report, reported, first_s = nodes.full, nodes.report, st.reported, st.first_s
    load, users, phi, class_demand = st.load, st.users, net.phi, net.class_demand
    until = now + TIE * abs(now)
    done = began = 0
    # Flows that end: their classes' clocks are set to the mark of the first of them.
    for b in range(len(block)):
        if block[b] > until:
            continue
        for c in range(b * _BLOCK, min(len(finish), (b + 1) * _BLOCK)):
            if finish[c] > until:
                continue
            finish[c] = np.inf
            served[c] = mark[root[c]]
            since[c] = now
            slack = served[c] + rates[c] * TIE * abs(now)
            before = count[c]
            while root[c] >= 0 and mark[root[c]] <= slack:
                k = root[c]
                root[c] = _pop_root(child, sibling, mark, k)
                count[c] -= 1
                limited_by[k] = limit[c]
                queue[done] = k
                done += 1
            gone = 1 if count[c] == 0 else 0
            scalars[ACTIVE] -= gone
            for y in range(class_ptr[c], class_ptr[c + 1]):
                q = class_link[y]
                load[q] -= (before - count[c]) * phi[c] * class_demand[y]
                users[q] -= gone
                if users[q] == 0:
                    load[q] = 0.0
                if link_epoch[q] != -1:
                    link_epoch[q] = -1
                    changed[scalars[CHANGED]] = q
                    scalars[CHANGED] += 1
        _reblock(finish, block, b)
    while True:
        while scalars[HEAP] > 0 and heap_s[0] <= until:
            k = _pop(heap_s, heap_k, scalars)
            if cls[k] < 0 or work[k] <= 0.0:
                queue[done] = k
                done += 1
            else:
                starting[began] = k
                began += 1
        if done == 0:
            break
        while done > 0:
            done -= 1
            k = queue[done]
            done_s[k] = now
            missing[k] = full[k]
            scalars[LEFT] -= 1
            scalars[EVENTS] += 1
            if report[k]:
                reported[scalars[REPORTED]] = k
                scalars[REPORTED] += 1
            for x in range(successor_ptr[k], successor_ptr[k + 1]):
                j = successor[x]
                missing[j] -= 1
                if missing[j] == 0:
                    if cls[j] >= 0:
                        for y in range(successor_ptr[j], successor_ptr[j + 1]):
                            first_s[successor[y]] = min(first_s[successor[y]], now)
                    if delay[j] > 0.0:
                        _push(heap_s, heap_k, scalars, now + delay[j], j)
                    elif cls[j] < 0 or work[j] <= 0.0:
                        queue[done] = j
                        done += 1
                    else:
                        starting[began] = j
                        began += 1
    for i in range(began):
        k = starting[i]
        c = cls[k]
        new = 0
        if count[c] == 0:
            served[c] = 0.0
            rates[c] = 0.0
            new = 1
        else:
            served[c] += rates[c] * (now - since[c])
        since[c] = now
        count[c] += 1
        mark[k] = served[c] + work[k]
        child[k] = -1
        sibling[k] = -1
        root[c] = _meld(child, sibling, mark, root[c], k)
        scalars[ACTIVE] += new
        for y in range(class_ptr[c], class_ptr[c + 1]):
            q = class_link[y]
            load[q] += phi[c] * class_demand[y]
            users[q] += new
            if link_epoch[q] != -1:
                link_epoch[q] = -1
                changed[scalars[CHANGED]] = q
                scalars[CHANGED] += 1


@_jit
def trigger(nodes: Nodes, st: State, which: I32, now: float) -> None:
    """Count one predecessor less for each node of `which`; those that miss none start at `now` + delay."""
    for i in range(len(which)):
        k = which[i]
        nodes.missing[k] -= 1
        if nodes.missing[k] == 0:
            _push(st.heap_s, st.heap_k, st.scalars, now + nodes.delay[k], k)


@_jit
def start(nodes: Nodes, st: State) -> None:
    """Put every node that waits for nothing on the heap of starts."""
    st.scalars[LEFT] = len(nodes.cls)
    for k in range(len(nodes.cls)):
        if nodes.missing[k] == 0:
            _push(st.heap_s, st.heap_k, st.scalars, nodes.delay[k], k)


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
        happen(net, nodes, st, now)
        if st.scalars[CHANGED] > 0:
            solve(net, st, now)
        steps -= 1
    return now
