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
from typing import TypeVar, cast

import numpy as np

from stanza_sim.simulate.compiled.arrays import F64, I8, I32, I64, Net, Nodes, State

_F = TypeVar("_F", bound=Callable[..., object])

try:
    import numba
except ImportError:
    COMPILED = False
else:
    COMPILED = True


def compiled(*, counting: bool = False, cache: bool = True) -> Callable[[_F], _F]:
    """Compile a function; without numba the same code runs as it is, some hundred times slower.

    References to arrays are counted, which can take most of the time, only where `counting`: a function that makes
    arrays needs that.
    """

    def decorate(function: _F) -> _F:
        if not COMPILED:
            return function
        return cast("_F", numba.njit(cache=cache, nogil=True, error_model="numpy", _nrt=counting)(function))  # type: ignore[call-overload]

    return decorate


_jit = compiled()


TIE = 1e-12
"""Relative tolerance: instants, and levels, that differ by less are one."""
# Constants that compiled functions use stay in this file: numba compiles anew only what stands in a file that changed.
BLOCK = 64
"""Classes per entry of the second level of the search for the next finish."""
LANES = 16
"""So many delays, those that are common, have a queue of their own."""

HEAP, EPOCH, CHANGED, EVENTS, LEFT, SOLVES, REPORTED, ACTIVE, WHOLE = range(9)
"""Places in `State.scalars`: pending starts, number of the solve, changed links, completions, nodes not complete,
solves, reports not taken, classes under way, and how many more solves that can affect all take all."""
COUNT, RATE, SERVED, SINCE, FIRST, PHI, CAP, LIMIT = range(8)
"""Columns of `State.row`, one cache line for each class: flows under way, rate of one flow, virtual clock (the work
that each flow has been served), when it was taken, the least finish mark, weight, cap of one flow's rate, and the link
that limits it (-1 for its cap)."""


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
    row = np.zeros((classes, 8))
    row[:, PHI], row[:, CAP], row[:, LIMIT] = net.phi, net.cap, -1
    return State(
        row=row,
        finish=np.full(classes, np.inf),
        block=np.full(classes // BLOCK + 1, np.inf),
        root=np.full(classes, -1, dtype=np.int32),
        child=np.full(n, -1, dtype=np.int32),
        sibling=np.full(n, -1, dtype=np.int32),
        mark=np.zeros(n),
        heap_s=np.zeros(n + 1),
        heap_k=np.zeros(n + 1, dtype=np.int32),
        lane=_lanes(nodes.delay),
        lane_first=np.full(LANES, -1, dtype=np.int32),
        lane_last=np.full(LANES, -1, dtype=np.int32),
        level=np.zeros(links + classes),
        load=np.zeros(links),
        users=np.zeros(links, dtype=np.int64),
        left=np.zeros(links),
        weight=np.zeros(links),
        opened=np.zeros(links, dtype=np.int64),
        full_at=np.full(links, np.inf),
        link_epoch=np.zeros(links, dtype=np.int64),
        link_changed=np.zeros(links, dtype=np.int64),
        class_epoch=np.zeros(classes, dtype=np.int64),
        rising=np.zeros(classes, dtype=np.int8),
        links=np.zeros(links + classes, dtype=np.int32),
        classes=np.zeros(classes, dtype=np.int32),
        changed=np.zeros(links, dtype=np.int32),
        scalars=np.zeros(9, dtype=np.int64),
        lowest=np.zeros(1),
        queue=np.zeros(n + 1, dtype=np.int32),
        starting=np.zeros(n + 1, dtype=np.int32),
        limited_by=np.full(len(nodes.done_s), -1, dtype=np.int32),
        first_s=np.full(n, np.inf),
        reported=np.zeros(n + 1, dtype=np.int32),
    )


def _lanes(delay: F64) -> I8:
    """The lane of each node: one for each of the commonest delays, -1 for the others.

    Starts of one delay come in the order in which they were asked for, so they need no heap.
    """
    values, counts = np.unique(delay[:: max(1, len(delay) // 4096)], return_counts=True)
    common = np.sort(values[np.argsort(-counts, kind="stable")[:LANES]])
    lane = np.full(len(delay), -1, dtype=np.int8)
    for k, value in enumerate(common.tolist()):
        lane[delay == value] = k
    return lane


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
def _await(
    heap_s: F64,
    heap_k: I32,
    scalars: I64,
    lane: I8,
    first: I32,
    last: I32,
    mark: F64,
    sibling: I32,
    at: float,
    k: int,
) -> None:
    """Node k starts at `at`, which within its lane is no earlier than any before."""
    w = lane[k]
    if w < 0:
        _push(heap_s, heap_k, scalars, at, k)
        return
    mark[k] = at
    sibling[k] = -1
    if first[w] < 0:
        first[w] = k
    else:
        sibling[last[w]] = k
    last[w] = k


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
    for x in range(b * BLOCK, min(len(finish), (b + 1) * BLOCK)):
        if finish[x] < least:
            least = finish[x]
    block[b] = least


@_jit
def solve(net: Net, st: State, now: float) -> None:
    """Give max-min fair rates to every class that a changed link can affect.

    Filling raises all levels together, so a change does nothing below the least level at which a changed link was full,
    or can now be: classes that stopped below that stop there again. The others are found link by link. Where they were
    most of all classes, the next solves that can affect all take all and do not look.
    """
    capacity = net.capacity
    class_ptr, class_link, class_demand = net.class_ptr, net.class_link, net.class_demand
    link_ptr, link_class, link_demand = net.link_ptr, net.link_class, net.link_demand
    scalars, links, classes, changed = st.scalars, st.links, st.classes, st.changed
    link_epoch, class_epoch, rising, row, finish = st.link_epoch, st.class_epoch, st.rising, st.row, st.finish
    left, weight, opened, level = st.left, st.weight, st.opened, st.level
    scalars[EPOCH] += 1
    scalars[SOLVES] += 1
    epoch = scalars[EPOCH]
    n_links = scalars[CHANGED]
    scalars[CHANGED] = 0
    load, users_of = st.load, st.users
    full_at, link_changed = st.full_at, st.link_changed
    since_level = np.inf
    for i in range(n_links):
        q = changed[i]
        links[i] = q
        link_epoch[q] = link_changed[q] = epoch
        if users_of[q] > 0:
            since_level = min(since_level, full_at[q], capacity[q] / load[q])
        full_at[q] = np.inf
    whole = scalars[WHOLE] > 0 and since_level <= st.lowest[0]
    keep = since_level * (1.0 + TIE)
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
            full_at[q] = np.inf
        i = n_links
        for c in range(len(rising)):
            rising[c] = 1 if row[c, COUNT] > 0.0 else 0
    while i < n_links:  # the component of what changed
        q = links[i]
        i += 1
        total, kept, rising_weight, users = 0.0, 0.0, 0.0, 0
        for x in range(link_ptr[q], link_ptr[q + 1]):
            c = link_class[x]
            n = row[c, COUNT]
            if n == 0.0:
                continue
            consumes = n * link_demand[x]
            total += consumes * row[c, PHI]
            if class_epoch[c] != epoch:
                at = int(row[c, LIMIT])
                if (
                    row[c, RATE] <= keep * row[c, PHI]
                    and finish[c] == finish[c]
                    and (at < 0 or link_changed[at] != epoch)
                ):
                    kept += consumes * row[c, RATE]
                    continue
                class_epoch[c] = epoch
                rising[c] = 1
                classes[n_classes] = c
                n_classes += 1
                if row[c, CAP] < np.inf:
                    capped = True
                for y in range(class_ptr[c], class_ptr[c + 1]):
                    r = class_link[y]
                    if link_epoch[r] != epoch:
                        link_epoch[r] = epoch
                        if full_at[r] > keep:  # or it still limits those that stop there
                            full_at[r] = np.inf
                        links[n_links] = r
                        n_links += 1
            users += 1
            rising_weight += consumes * row[c, PHI]
        left[q], weight[q], opened[q] = max(0.0, capacity[q] - kept), rising_weight, users
        load[q] = total  # the sum anew, so that rounding does not add up
    if not whole and n_classes * 2 > scalars[ACTIVE] and n_classes > BLOCK:
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
            if row[c, COUNT] > 0.0:
                level[base + c] = row[c, CAP] / row[c, PHI]
                links[size] = base + c
                size += 1
    elif capped:
        for i in range(n_classes):
            c = classes[i]
            if row[c, CAP] < np.inf:
                level[base + c] = row[c, CAP] / row[c, PHI]
                links[size] = base + c
                size += 1
    for i in range(size // 2 - 1, -1, -1):
        _sift(level, links, size, i)
    waiting = n_classes
    if whole or scalars[WHOLE] == 32:
        st.lowest[0] = level[links[0]] if size > 0 else 0.0
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
            if rising[c] == 0:
                continue
            rising[c] = 0
            waiting -= 1
            if q < base:
                full_at[q] = here
            own = row[c]
            n, phi = own[COUNT], own[PHI]
            rate = min(phi * here, own[CAP])
            own[LIMIT] = q if q < base else -1
            for y in range(class_ptr[c], class_ptr[c + 1]):
                r = class_link[y]
                demand = n * class_demand[y]
                opened[r] -= 1
                left[r] = max(0.0, left[r] - rate * demand)
                weight[r] -= phi * demand
            if rate != own[RATE]:
                own[SERVED] += own[RATE] * (now - own[SINCE])
                own[SINCE] = now
                own[RATE] = rate
            elif finish[c] == finish[c]:  # neither its rate nor its flows have changed
                continue
            finish[c] = own[SINCE] + (own[FIRST] - own[SERVED]) / rate
    # The search for the next finish looks at blocks of classes.
    if whole or n_classes * 4 > len(finish):
        for b in range(len(st.block)):
            _reblock(finish, st.block, b)
    else:
        for i in range(n_classes):
            _reblock(finish, st.block, classes[i] // BLOCK)


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
    for w in range(LANES):
        k = st.lane_first[w]
        if k >= 0 and st.mark[k] < least:
            least = st.mark[k]
    return least


@_jit
def happen(net: Net, nodes: Nodes, st: State, now: float) -> None:
    """Do everything that happens at `now` (and within the tolerance of it); rates are left to `solve`."""
    class_ptr, class_link = net.class_ptr, net.class_link
    cls, work, delay, missing, done_s = nodes.cls, nodes.work, nodes.delay, nodes.missing, nodes.done_s
    successor_ptr, successor = nodes.successor_ptr, nodes.successor
    row, finish, block = st.row, st.finish, st.block
    root, child, sibling, mark = st.root, st.child, st.sibling, st.mark
    heap_s, heap_k, scalars, queue, starting = st.heap_s, st.heap_k, st.scalars, st.queue, st.starting
    lane, lane_first, lane_last = st.lane, st.lane_first, st.lane_last
    link_epoch, changed, limited_by = st.link_epoch, st.changed, st.limited_by
    full, report, reported, first_s = nodes.full, nodes.report, st.reported, st.first_s
    load, users, class_demand = st.load, st.users, net.class_demand
    until = now + TIE * abs(now)
    timed = len(done_s) > 0
    done = began = 0
    # Flows that end: their classes' clocks are set to the mark of the first of them.
    for b in range(len(block)):
        if block[b] > until:
            continue
        for c in range(b * BLOCK, min(len(finish), (b + 1) * BLOCK)):
            if not finish[c] <= until:
                continue
            own = row[c]
            own[SERVED] = own[FIRST]
            own[SINCE] = now
            slack = own[SERVED] + own[RATE] * TIE * abs(now)
            before = own[COUNT]
            while root[c] >= 0 and mark[root[c]] <= slack:
                k = root[c]
                root[c] = _pop_root(child, sibling, mark, k)
                own[COUNT] -= 1.0
                if timed:
                    limited_by[k] = int(own[LIMIT])
                queue[done] = k
                done += 1
            if root[c] >= 0:
                gone = 0
                own[FIRST] = mark[root[c]]
                finish[c] = np.nan
            else:
                gone = 1
                finish[c] = np.inf
            scalars[ACTIVE] -= gone
            ended = (before - own[COUNT]) * own[PHI]
            for y in range(class_ptr[c], class_ptr[c + 1]):
                q = class_link[y]
                load[q] -= ended * class_demand[y]
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
        for w in range(LANES):
            while lane_first[w] >= 0 and mark[lane_first[w]] <= until:
                k = lane_first[w]
                lane_first[w] = sibling[k]
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
            if timed:
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
                        at = now + delay[j]
                        _await(heap_s, heap_k, scalars, lane, lane_first, lane_last, mark, sibling, at, j)
                    elif cls[j] < 0 or work[j] <= 0.0:
                        queue[done] = j
                        done += 1
                    else:
                        starting[began] = j
                        began += 1
    for i in range(began):
        k = starting[i]
        c = cls[k]
        own = row[c]
        new = 0
        if own[COUNT] == 0.0:
            own[SERVED] = 0.0
            own[RATE] = 0.0
            new = 1
        else:
            own[SERVED] += own[RATE] * (now - own[SINCE])
        own[SINCE] = now
        own[COUNT] += 1.0
        mark[k] = own[SERVED] + work[k]
        child[k] = -1
        sibling[k] = -1
        root[c] = _meld(child, sibling, mark, root[c], k)
        own[FIRST] = mark[root[c]]
        finish[c] = np.nan
        scalars[ACTIVE] += new
        for y in range(class_ptr[c], class_ptr[c + 1]):
            q = class_link[y]
            load[q] += own[PHI] * class_demand[y]
            users[q] += new
            if link_epoch[q] != -1:
                link_epoch[q] = -1
                changed[scalars[CHANGED]] = q
                scalars[CHANGED] += 1


@_jit
def _begin_at(st: State, at: float, k: int) -> None:
    _await(st.heap_s, st.heap_k, st.scalars, st.lane, st.lane_first, st.lane_last, st.mark, st.sibling, at, k)


@compiled(counting=True)
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


@_jit
def trigger(nodes: Nodes, st: State, which: I32, now: float) -> None:
    """Count one predecessor less for each node of `which`; those that miss none start at `now` + delay."""
    for i in range(len(which)):
        k = which[i]
        nodes.missing[k] -= 1
        if nodes.missing[k] == 0:
            _begin_at(st, now + nodes.delay[k], k)


@_jit
def start(nodes: Nodes, st: State) -> None:
    """Put every node that waits for nothing on the heap of starts."""
    st.scalars[LEFT] = len(nodes.cls)
    for k in range(len(nodes.cls)):
        if nodes.missing[k] == 0:
            _begin_at(st, nodes.delay[k], k)


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
