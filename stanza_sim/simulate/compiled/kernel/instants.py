"""All that happens at one instant: flows finish, what waited for them completes or starts, and flows start."""

from __future__ import annotations

import numpy as np

from stanza_sim.simulate.compiled.arrays import F64, I32, I64, Net, Nodes, State
from stanza_sim.simulate.compiled.kernel.finishes import least_finish, meld, pop_root
from stanza_sim.simulate.compiled.kernel.jit import inlined, part
from stanza_sim.simulate.compiled.kernel.starts import await_start, pop
from stanza_sim.simulate.compiled.kernel.state import (
    ACTIVE,
    BLOCK,
    CHANGED,
    COUNT,
    EVENTS,
    FIRST,
    HEAP,
    LEFT,
    LIMIT,
    RATE,
    REPORTED,
    SERVED,
    SINCE,
    TIE,
    WEIGHT,
)


@part
def next_s(st: State) -> float:
    """When something happens next: a flow ends or a node starts; infinity if nothing will."""
    least = np.inf
    for b in range(len(st.block)):
        least = min(least, least_finish(st.finish, st.block, b))
    if st.scalars[HEAP] > 0 and st.heap_s[0] < least:
        least = st.heap_s[0]
    for w in range(len(st.delay_first)):
        k = st.delay_first[w]
        if k >= 0 and st.mark[k] < least:
            least = st.mark[k]
    return least


@part
def happen(net: Net, nodes: Nodes, st: State, now: float) -> None:
    """Do everything that happens at `now` (and within the tolerance of it); rates are left to `solve`.

    `st.queue` lists nodes that are complete, the last of which goes next, and `st.starting` flows that begin.
    """
    until = now + TIE * abs(now)
    done, began = _finish_flows(net, nodes, st, now, until), 0
    while True:
        done, began = _due(nodes, st, until, done, began)
        if done == 0:
            break
        began = _propagate(nodes, st, now, done, began)
        done = 0
    _start_flows(net, nodes, st, now, began)


@inlined
def _touch(link_epoch: I64, changed: I32, scalars: I64, q: int) -> None:
    """Link q has changed: `solve` is to know."""
    if link_epoch[q] != -1:
        link_epoch[q] = -1
        changed[scalars[CHANGED]] = q
        scalars[CHANGED] += 1


# ---- flows that finish ----------------------------------------------------------------------------------------------


@inlined
def _finish_flows(net: Net, nodes: Nodes, st: State, now: float, until: float) -> int:
    """Take all flows that end by `until` out of their classes; return how many are now in `st.queue`."""
    done = 0
    block, finish, row = st.block, st.finish, st.row
    for b in range(len(block)):
        if least_finish(finish, block, b) > until:
            continue
        block[b] = np.nan
        for c in range(b * BLOCK, (b + 1) * BLOCK):
            if not finish[c] <= until:
                continue
            before = row[c, COUNT]
            done = _finish_class(nodes, st, c, now, done)
            _less_load(net, st, c, before)
    return done


@inlined
def _finish_class(nodes: Nodes, st: State, c: int, now: float, done: int) -> int:
    """Set the clock of class c to the first finish mark, and take out the flows whose marks it has reached."""
    root, child, sibling, mark, own = st.root, st.child, st.sibling, st.mark, st.row[c]
    queue, limited_by, timed = st.queue, st.limited_by, len(nodes.done_s) > 0
    own[SERVED] = own[FIRST]
    own[SINCE] = now
    slack = own[SERVED] + own[RATE] * TIE * abs(now)
    while root[c] >= 0 and mark[root[c]] <= slack:
        k = root[c]
        root[c] = pop_root(child, sibling, mark, k)
        own[COUNT] -= 1.0
        if timed:
            limited_by[k] = int(own[LIMIT])
        queue[done] = k
        done += 1
    if root[c] >= 0:
        own[FIRST] = mark[root[c]]
        st.finish[c] = np.nan
    else:
        st.finish[c] = np.inf
    return done


@inlined
def _less_load(net: Net, st: State, c: int, before: float) -> None:
    """Class c, which had `before` flows, weighs less on its links, and nothing if it has no flow any more."""
    class_link, class_demand, load, users = net.class_link, net.class_demand, st.load, st.users
    link_epoch, changed, own = st.link_epoch, st.changed, st.row[c]
    gone = 1 if st.root[c] < 0 else 0
    st.scalars[ACTIVE] -= gone
    ended = (before - own[COUNT]) * own[WEIGHT]
    for y in range(net.class_ptr[c], net.class_ptr[c + 1]):
        q = class_link[y]
        load[q] -= ended * class_demand[y]
        users[q] -= gone
        if users[q] == 0:
            load[q] = 0.0
        _touch(link_epoch, changed, st.scalars, q)


# ---- nodes that complete --------------------------------------------------------------------------------------------


@inlined
def _begin(cls: I32, work: F64, queue: I32, starting: I32, k: int, done: int, began: int) -> tuple[int, int]:
    """Node k starts: a flow is listed as such, and what takes no time is complete."""
    if cls[k] < 0 or work[k] <= 0.0:
        queue[done] = k
        return done + 1, began
    starting[began] = k
    return done, began + 1


@inlined
def _due(nodes: Nodes, st: State, until: float, done: int, began: int) -> tuple[int, int]:
    """Begin the nodes whose starts were pending until now."""
    cls, work, queue, starting = nodes.cls, nodes.work, st.queue, st.starting
    heap_s, heap_k, scalars, delay_first, mark, sibling = (
        st.heap_s,
        st.heap_k,
        st.scalars,
        st.delay_first,
        st.mark,
        st.sibling,
    )
    while scalars[HEAP] > 0 and heap_s[0] <= until:
        k = pop(heap_s, heap_k, scalars)
        done, began = _begin(cls, work, queue, starting, k, done, began)
    for w in range(len(delay_first)):
        while delay_first[w] >= 0 and mark[delay_first[w]] <= until:
            k = delay_first[w]
            delay_first[w] = sibling[k]
            done, began = _begin(cls, work, queue, starting, k, done, began)
    return done, began


@inlined
def _propagate(nodes: Nodes, st: State, now: float, done: int, began: int) -> int:
    """Work off the nodes that are complete, and those that complete by this; return how many flows begin."""
    cls, work, delay, missing, full = nodes.cls, nodes.work, nodes.delay, nodes.missing, nodes.full
    done_s, report, successor_ptr, successor = nodes.done_s, nodes.report, nodes.successor_ptr, nodes.successor
    heap_s, heap_k, scalars, queue, starting = st.heap_s, st.heap_k, st.scalars, st.queue, st.starting
    delay_queue, first, last, mark, sibling, first_s = (
        st.delay_queue,
        st.delay_first,
        st.delay_last,
        st.mark,
        st.sibling,
        st.first_s,
    )
    timed = len(done_s) > 0
    while done > 0:
        done -= 1
        k = queue[done]
        if timed:
            done_s[k] = now
        missing[k] = full[k]
        scalars[LEFT] -= 1
        scalars[EVENTS] += 1
        if report[k]:
            st.reported[scalars[REPORTED]] = k
            scalars[REPORTED] += 1
        for x in range(successor_ptr[k], successor_ptr[k + 1]):
            j = successor[x]
            missing[j] -= 1
            if missing[j] > 0:
                continue
            if cls[j] >= 0:
                for y in range(successor_ptr[j], successor_ptr[j + 1]):
                    first_s[successor[y]] = min(first_s[successor[y]], now)
            if delay[j] > 0.0:
                await_start(heap_s, heap_k, scalars, delay_queue, first, last, mark, sibling, now + delay[j], j)
            else:
                done, began = _begin(cls, work, queue, starting, j, done, began)
    return began


# ---- flows that start -----------------------------------------------------------------------------------------------


@inlined
def _start_flows(net: Net, nodes: Nodes, st: State, now: float, began: int) -> None:
    """Let the first `began` flows of `st.starting` join their classes."""
    class_ptr, class_link, class_demand, load, users = (
        net.class_ptr,
        net.class_link,
        net.class_demand,
        st.load,
        st.users,
    )
    root, child, sibling, mark, row, finish = st.root, st.child, st.sibling, st.mark, st.row, st.finish
    link_epoch, changed, scalars = st.link_epoch, st.changed, st.scalars
    for i in range(began):
        k = st.starting[i]
        c = nodes.cls[k]
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
        mark[k] = own[SERVED] + nodes.work[k]
        child[k] = -1
        sibling[k] = -1
        root[c] = meld(child, sibling, mark, np.int64(root[c]), np.int64(k))
        own[FIRST] = mark[root[c]]
        finish[c] = np.nan
        scalars[ACTIVE] += new
        for y in range(class_ptr[c], class_ptr[c + 1]):
            q = class_link[y]
            load[q] += own[WEIGHT] * class_demand[y]
            users[q] += new
            _touch(link_epoch, changed, scalars, q)
