"""Time in compiled code: what happens at one instant after the other, for all ranks' programs.

The kernel completes nodes and shares resources; here is what no arrow of the graph can say: which of the sends that are
ready a rank posts next, and that a rank begins iteration i once i - 2 is complete. Spans are logged in arrays.

numba keeps what it compiled by the file that it is in. Constants that compiled functions use stay in this file for that
reason, and a checksum of all files of the kernel stands for these (see `kernel/jit.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from stanza_sim.simulate.compiled import kernel
from stanza_sim.simulate.compiled.arrays import F64, I8, I32, I64, Net, Nodes, State

TIE = 1e-12
"""As that of the kernel."""
_NEVER = np.iinfo(np.int64).max


class Kind(IntEnum):
    """What the completion of a node means beyond its arrows."""

    NOTHING = 0
    SPAN = 1  # a computation, a send, what arrives or a collective is through
    READY = 2  # a send may be posted
    POSTED = 3  # it is, and the next one may be
    END = 4  # the rank's iteration is complete


class Plan(NamedTuple):
    """What is fixed; see `Graph`."""

    size: int
    kind: I8
    rank: I32
    opening: int
    ready: int
    posted: int
    post_ptr: I64
    post_unit: I32
    post_queue: I32
    post_priority: I64
    post_credit: I64
    paid_by: I32
    compute_ptr: I64
    compute_node: I32
    compute_work: F64
    spans: int  # nodes that end one
    working: int  # ranks that have anything to do
    shaped: I32  # links with a token bucket, see `bucket.py`
    shape: F64  # per shaped link: rate, size of the bucket, peak, credit that is none


class RunState(NamedTuple):
    """What changes, beyond the kernel's state."""

    now: F64  # two values: the time, and when the next bucket will be empty
    bucket: F64  # per shaped link: credit at a time, that time, how fast it falls, when it will be gone
    counts: I64  # see the names below
    done: I64  # per rank: iterations that it has completed
    ends: F64  # per rank and iteration: when it ended
    factor: F64  # per rank and iteration: how many times as long computations take
    finished: I64  # per iteration: ranks that have completed it
    busy: I8  # per rank: whether it is posting
    waiting: I32  # per rank: how many sends are ready
    who: I32  # those, for each rank from 2 `post_ptr` on
    when: I64  # the iteration of each, times 2^32, plus its unit
    under_way: I64  # per queue with credit: sends that are posted and not through
    touched: I32  # scratch: ranks that may post
    log_node: I32  # spans in order of their end: node of the first generation
    log_iteration: I32
    log_start: F64
    log_end: F64


LOGGED, FURTHEST, COMPLETE, INSTANTS = range(4)
"""Places in `RunState.counts`: spans, iterations that the first rank, and that all ranks have completed, instants."""

COMPLETED, FULL, REACHED, STUCK, PAUSED = range(5)
"""Why it does not go on: one more iteration is complete everywhere, no room is left, `until_s` is reached, nothing can
happen any more, or so many instants are through."""

_Advance = Callable[[Net, Nodes, State, Plan, RunState, int, float, int], int]
_SPAN, _READY, _POSTED = int(Kind.SPAN), int(Kind.READY), int(Kind.POSTED)
_CHANGED, _REPORTED, _COUNT, _RATE = kernel.CHANGED, kernel.REPORTED, kernel.COUNT, kernel.RATE


_happen, _solve, _next_s, _push = kernel.happen, kernel.solve, kernel.next_s, kernel.push


@kernel.part
def _post(nodes: Nodes, st: State, plan: Plan, go: RunState, a: int) -> bool:
    """Let rank `a`, if it may, post what goes next; return whether anything follows at once.

    That is the send of the lowest priority, then the earliest, of those that are ready and for which there is credit.
    """
    if go.busy[a] != 0:
        return False
    now, base = go.now[0], 2 * plan.post_ptr[a]
    end = base + go.waiting[a]
    best = -1
    for x in range(base, end):
        p, when = go.who[x], go.when[x]
        if plan.post_credit[p] > 0 and go.under_way[plan.post_queue[p]] >= plan.post_credit[p]:
            continue
        if best >= 0:
            lowest = plan.post_priority[go.who[best]]
            if plan.post_priority[p] > lowest or (plan.post_priority[p] == lowest and when > go.when[best]):
                continue
        best = x
    if best < 0:
        return False
    p, generation = go.who[best], (go.when[best] >> 32) % 2
    if plan.post_credit[p] > 0:
        go.under_way[plan.post_queue[p]] += 1
    go.who[best], go.when[best] = go.who[end - 1], go.when[end - 1]
    go.waiting[a] -= 1
    go.busy[a] = 1
    k = plan.posted + p + generation * plan.size
    _push(st.heap_s, st.heap_k, st.scalars, now + nodes.delay[k], k)
    return bool(nodes.delay[k] <= 0.0)


@kernel.part
def _begin(nodes: Nodes, st: State, plan: Plan, go: RunState, a: int, iteration: int) -> None:
    """Let rank `a` begin an iteration."""
    shift = (iteration % 2) * plan.size
    for c in range(plan.compute_ptr[a], plan.compute_ptr[a + 1]):
        nodes.work[plan.compute_node[c] + shift] = plan.compute_work[c] * go.factor[a, iteration]
    _push(st.heap_s, st.heap_k, st.scalars, go.now[0], plan.opening + a + shift)


@kernel.part
def _report(nodes: Nodes, st: State, plan: Plan, go: RunState) -> bool:
    """Do what follows from the completions that the kernel reported; return whether anything starts at once."""
    now, counts = go.now[0], go.counts
    count = st.scalars[_REPORTED]
    st.scalars[_REPORTED] = 0
    touched = 0
    at_once = False
    for i in range(count):
        k = int(st.reported[i])
        node = k % plan.size
        kind, a = plan.kind[node], plan.rank[node]
        # Of the two iterations that are open, the one of this generation.
        iteration = go.done[a]
        if (iteration % 2) != k // plan.size:
            iteration += 1
        if kind == _SPAN:
            at = counts[LOGGED]
            counts[LOGGED] = at + 1
            go.log_node[at], go.log_iteration[at] = node, iteration
            go.log_start[at], go.log_end[at] = st.first_s[k], now
            st.first_s[k] = np.inf
            p = plan.paid_by[node]
            if p < 0:
                continue
            go.under_way[plan.post_queue[p]] -= 1
        elif kind == _READY:
            x = 2 * plan.post_ptr[a] + go.waiting[a]
            p = node - plan.ready
            go.who[x], go.when[x] = p, (iteration << 32) + plan.post_unit[p]
            go.waiting[a] += 1
        elif kind == _POSTED:
            go.busy[a] = 0
        else:
            go.ends[a, iteration] = now
            go.done[a] = iteration + 1
            counts[FURTHEST] = max(counts[FURTHEST], iteration + 1)
            go.finished[iteration] += 1
            if go.finished[iteration] == plan.working:
                counts[COMPLETE] = iteration + 1
            _begin(nodes, st, plan, go, a, iteration + 2)
            at_once = True
            continue
        if touched == 0 or go.touched[touched - 1] != a:
            go.touched[touched] = a
            touched += 1
    for i in range(touched):
        if _post(nodes, st, plan, go, go.touched[i]):
            at_once = True
    return at_once


@kernel.part
def _refill(net: Net, st: State, plan: Plan, go: RunState) -> None:
    """Set what shaped links pass from now on; see `TokenBuckets.refill`."""
    now = go.now[0]
    for i in range(len(plan.shaped)):
        q, own = plan.shaped[i], go.bucket[i]
        if own[3] <= now + TIE * now:
            own[0] = 0.0
        else:
            own[0] = min(plan.shape[i, 1], max(0.0, own[0] - own[2] * (now - own[1])))
        own[1] = now
        passes = plan.shape[i, 2] if own[0] > plan.shape[i, 3] else plan.shape[i, 0]
        if passes != net.capacity[q]:
            net.capacity[q] = passes
            if st.link_epoch[q] != -1:
                st.link_epoch[q] = -1
                st.changed[st.scalars[_CHANGED]] = q
                st.scalars[_CHANGED] += 1


@kernel.part
def _drain(net: Net, st: State, plan: Plan, go: RunState) -> None:
    """Note what passes shaped links now; see `TokenBuckets.drain`."""
    go.now[1] = np.inf
    for i in range(len(plan.shaped)):
        q, own = plan.shaped[i], go.bucket[i]
        used = 0.0
        for x in range(net.link_ptr[q], net.link_ptr[q + 1]):
            c = net.link_class[x]
            used += st.row[c, _COUNT] * st.row[c, _RATE] * net.link_demand[x]
        own[2] = used - plan.shape[i, 0]
        full = net.capacity[q] == plan.shape[i, 2] and own[2] > 0.0
        own[3] = go.now[0] + own[0] / own[2] if full else np.inf
        go.now[1] = min(go.now[1], own[3])


def _advance_of(sources: int) -> _Advance:
    """Compile what lets time pass, anew when the kernel, whose code it contains, is another."""

    @kernel.kept
    def advance(
        net: Net,
        nodes: Nodes,
        st: State,
        plan: Plan,
        go: RunState,
        complete: int,
        until_s: float,
        steps: int,
    ) -> int:
        _ = sources
        counts, scalars = go.counts, st.scalars
        while True:
            # There must be room for all that one round can add: two iterations of each rank.
            if counts[LOGGED] + 2 * plan.spans > len(go.log_node) or counts[FURTHEST] + 4 > go.ends.shape[1]:
                return FULL
            _happen(net, nodes, st, go.now[0])
            at_once = scalars[_REPORTED] > 0 and _report(nodes, st, plan, go)
            if counts[COMPLETE] > complete:
                return COMPLETED
            if at_once:
                continue
            if len(plan.shaped) > 0 and (scalars[_CHANGED] > 0 or go.now[1] <= go.now[0] * (1 + TIE)):
                _refill(net, st, plan, go)
            if scalars[_CHANGED] > 0:
                _solve(net, st, go.now[0])
                if len(plan.shaped) > 0:
                    _drain(net, st, plan, go)
            at = min(_next_s(st), go.now[1])
            if at == np.inf:
                return STUCK
            if at > until_s:
                go.now[0] = until_s
                return REACHED
            if steps == 0:
                return PAUSED
            steps -= 1
            counts[INSTANTS] += 1
            go.now[0] = at

    return advance


advance = _advance_of(kernel.SOURCES)
