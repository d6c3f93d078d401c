"""The arrays that the compiled solver works on: `Net`, `Nodes`, `State`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
U32 = npt.NDArray[np.uint32]
"""Indices that are never negative: numba need not look whether one counts from the end."""
I8 = npt.NDArray[np.int8]
Whole = int | np.int64
"""What is made an `np.int64` where it is passed on, lest a function is compiled for each type that it may have."""


class Net(NamedTuple):
    """What is fixed: capacities, and which links each class uses, both ways round in compressed rows."""

    capacity: F64  # per link
    class_ptr: I64  # per class, into class_link
    class_link: U32
    class_demand: F64
    link_ptr: I64  # per link, into link_class
    link_class: U32
    link_demand: F64
    limited: I32  # classes with a finite cap
    class_weight: F64  # per class
    cap: F64  # per class, rate of one flow


class Nodes(NamedTuple):
    """Flows and gates. `successor[successor_ptr[k]:successor_ptr[k + 1]]` wait for node k."""

    cls: I32
    work: F64
    delay: F64
    missing: I32
    successor_ptr: I64
    successor: I32
    done_s: F64  # when each completed, NaN before; empty if nobody asks, which saves time
    full: I32  # what `missing` is set to at completion, so that a node can be used again
    report: npt.NDArray[np.bool_]  # completions to be listed in `State.reported`


class State(NamedTuple):
    """What changes: classes, the heap of pending starts, and scratch space of the solver."""

    row: F64  # per class: a row of what belongs together, see `kernel.COUNT` and the names after it
    finish: F64  # per class: next finish, infinity if none, NaN if it is to be found anew
    block: F64  # least finish of each block of classes, NaN if it is to be found anew
    root: I32  # per class: heap of finish marks
    child: I32  # per node
    sibling: I32
    mark: F64  # per node
    heap_s: F64  # pending starts, those that have no delay queue: time
    heap_k: I32  # and node
    delay_queue: I8  # per node: the delay queue of its delay, -1 if that is too rare to have one
    delay_first: (
        I32  # per delay queue: the pending start that is next, linked by `sibling`, its time in `mark`; -1 if none
    )
    delay_last: I32
    level: F64  # scratch per link + class: progressive filling
    load: F64  # per link: weight of all flows under way
    users: I64  # per link: classes under way
    left: F64  # per link
    weight: F64  # per link
    opened: I64  # per link: flows' classes not frozen
    full_at: F64  # per link: level at which it was full and limited a class, infinity if it limits none
    link_epoch: I64
    link_changed: I64  # per link: solve for which it was a changed link
    class_epoch: I64
    rising: I8  # per class: 1 while `solve` has not found its rate
    links: I32  # scratch list
    classes: I32  # scratch list
    changed: I32  # links whose users changed
    scalars: I64  # see `kernel.HEAP` and the names after it
    lowest: F64  # one entry: the least level of any class when all were last solved
    queue: I32  # scratch: completions of an instant
    starting: I32  # scratch: flows that begin at an instant
    limited_by: I32  # per node of `Nodes.done_s`: the link that limited its class then, -1 for its cap or a gate
    first_s: F64  # per node: when the first of its predecessors that are flows was released
    reported: I32  # nodes of `Nodes.report` that completed and were not yet taken


def thinned(capacity: F64, routes: list[tuple[tuple[int, float], ...]]) -> list[tuple[tuple[int, float], ...]]:
    """Leave out of `routes` every link that is never full before another one.

    That is a link which the same routes use as another, with demands in one proportion, and which has no less capacity
    for them: of parallel links over which all messages are spread, one stays.
    """
    counts = np.array([len(r) for r in routes], dtype=np.int64)
    owner = np.repeat(np.arange(len(routes)), counts)
    links = np.array([q for r in routes for q, _ in r], dtype=np.int64)
    demands = np.array([d for r in routes for _, d in r], dtype=np.float64)
    order = np.argsort(links, kind="stable")
    ends = np.cumsum(np.bincount(links, minlength=len(capacity)))
    known: dict[tuple[bytes, bytes], int] = {}
    gone = np.zeros(len(capacity), dtype=np.bool_)
    for q, (start, end) in enumerate(zip([0, *ends.tolist()], ends.tolist(), strict=False)):
        if start == end:
            continue
        mine = order[start:end]
        key = owner[mine].tobytes(), (demands[mine] / demands[mine[0]]).tobytes()
        first = known.setdefault(key, q)
        if first != q:
            at = order[ends[first - 1] if first else 0]
            worse = capacity[q] / demands[mine[0]] < capacity[first] / demands[at]
            gone[first if worse else q] = True
            known[key] = q if worse else first
    if not gone.any():
        return routes
    return [tuple((q, d) for q, d in r if not gone[q]) for r in routes]
