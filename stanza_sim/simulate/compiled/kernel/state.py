"""The arrays of one run of the kernel: how they are made, and names for places in them."""

from __future__ import annotations

import numpy as np

from stanza_sim.simulate.compiled.arrays import F64, I8, I32, I64, Net, Nodes, State

TIE = 1e-12
"""Relative tolerance: instants, and levels, that differ by less are one."""
BLOCK = 64
"""Classes per entry of the second level of the search for the next finish."""
DELAY_QUEUES = 16
"""So many delays at most, those that are common, have a queue of their own."""

HEAP, EPOCH, CHANGED, EVENTS, LEFT, SOLVES, REPORTED, ACTIVE, WHOLE = range(9)
"""Places in `State.scalars`: pending starts, number of the solve, changed links, completions, nodes not complete,
solves, reports not taken, classes under way, and how many more solves that can affect all take all."""
COUNT, RATE, SERVED, SINCE, FIRST, WEIGHT, CAP, LIMIT = range(8)
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


def make_net(capacity: F64, routes: list[tuple[tuple[int, float], ...]], class_weight: F64, cap: F64) -> Net:
    """Build `Net` from each class's list of (link, demand)."""
    counts = np.array([len(r) for r in routes], dtype=np.int64)
    links = np.array([q for r in routes for q, _ in r], dtype=np.int32)
    demands = np.array([d for r in routes for _, d in r], dtype=np.float64)
    return net_of(capacity, counts, links, demands, class_weight, cap)


def net_of(capacity: F64, counts: I64, links: I32, demands: F64, class_weight: F64, cap: F64) -> Net:
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
        class_link=np.ascontiguousarray(links, dtype=np.uint32),
        class_demand=np.ascontiguousarray(demands, dtype=np.float64),
        link_ptr=link_ptr,
        link_class=owner[order].astype(np.uint32),
        link_demand=np.ascontiguousarray(demands[order], dtype=np.float64),
        limited=np.nonzero(np.isfinite(cap))[0].astype(np.int32),
        class_weight=np.ascontiguousarray(class_weight, dtype=np.float64),
        cap=np.ascontiguousarray(cap, dtype=np.float64),
    )


def make_state(net: Net, nodes: Nodes) -> State:
    """Fresh state for `nodes` on `net`."""
    classes, links, n = len(net.class_weight), len(net.capacity), len(nodes.cls)
    row = np.zeros((classes, 8))
    row[:, WEIGHT], row[:, CAP], row[:, LIMIT] = net.class_weight, net.cap, -1
    delay_queue, delay_queues = _delay_queues(nodes.delay)
    return State(
        row=row,
        finish=np.full((classes // BLOCK + 1) * BLOCK, np.inf),
        block=np.full(classes // BLOCK + 1, np.inf),
        root=np.full(classes, -1, dtype=np.int32),
        child=np.full(n, -1, dtype=np.int32),
        sibling=np.full(n, -1, dtype=np.int32),
        mark=np.zeros(n),
        heap_s=np.zeros(n + 1),
        heap_k=np.zeros(n + 1, dtype=np.int32),
        delay_queue=delay_queue,
        delay_first=np.full(delay_queues, -1, dtype=np.int32),
        delay_last=np.full(delay_queues, -1, dtype=np.int32),
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


def _delay_queues(delay: F64) -> tuple[I8, int]:
    """The delay queue of each node, one for each of the commonest delays, -1 for the others; and how many there are.

    Starts of one delay come in the order in which they were asked for, so they need no heap.
    """
    some = delay[:: max(1, len(delay) // 4096)]
    values, counts = np.unique(some[some > 0.0], return_counts=True)
    common = np.sort(values[np.argsort(-counts, kind="stable")[:DELAY_QUEUES]])
    delay_queue = np.full(len(delay), -1, dtype=np.int8)
    for k, value in enumerate(common.tolist()):
        delay_queue[delay == value] = k
    return delay_queue, len(common)
