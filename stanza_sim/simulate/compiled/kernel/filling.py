"""Max-min fair rates by progressive filling: of the classes that a change can affect, and of no others.

Filling raises the levels of all classes together and freezes those that use a link when that link is full, so it
freezes classes in order of level. Those frozen below the lowest level at which a changed link was full, or can now be,
keep their rates; the others are found link by link. Where they were most of all classes, the next solves that can
affect all take all and do not search.
"""

from __future__ import annotations

import numpy as np

from stanza_sim.simulate.compiled.arrays import F64, I32, I64, U32, Net, State
from stanza_sim.simulate.compiled.kernel.jit import inlined, part
from stanza_sim.simulate.compiled.kernel.state import (
    ACTIVE,
    BLOCK,
    CAP,
    CHANGED,
    COUNT,
    EPOCH,
    FIRST,
    LIMIT,
    RATE,
    SERVED,
    SINCE,
    SOLVES,
    TIE,
    WEIGHT,
    WHOLE,
)

UNSEARCHED = 32
"""Solves that do not search, once a search has found most classes affected."""


@part
def solve(net: Net, st: State, now: float) -> None:
    """Give max-min fair rates to every class that a changed link can affect."""
    scalars = st.scalars
    scalars[EPOCH] += 1
    scalars[SOLVES] += 1
    n_links, lowest = _changed(net, st)
    whole = scalars[WHOLE] > 0 and lowest <= st.lowest[0]
    if whole:
        n_links, n_classes, capped = _everything(net, st)
    else:
        n_links, n_classes, capped = _affected(net, st, n_links, lowest * (1.0 + TIE))
    level, links, base = st.level, st.links, len(net.capacity)
    size = _levels(level, links, n_links, st.left, st.weight, st.opened)
    if whole:
        size = _caps(level, links, size, st.row, net.limited, len(net.limited), base)
    elif capped:
        size = _caps(level, links, size, st.row, st.classes, n_classes, base)
    for i in range(size // 2 - 1, -1, -1):
        _sift(level, links, int(size), int(i))
    if whole or scalars[WHOLE] == UNSEARCHED:
        st.lowest[0] = level[links[0]] if size > 0 else 0.0
    _fill(net, st, size, n_classes, now)


# ---- what is affected -----------------------------------------------------------------------------------------------


@inlined
def _changed(net: Net, st: State) -> tuple[int, float]:
    """Begin the list of affected links with those that changed.

    Return how many these are, and the lowest level at which one of them was full, or can now be.
    """
    epoch = st.scalars[EPOCH]
    n_links = st.scalars[CHANGED]
    st.scalars[CHANGED] = 0
    lowest = np.inf
    for i in range(n_links):
        q = st.changed[i]
        st.links[i] = q
        st.link_epoch[q] = st.link_changed[q] = epoch
        if st.users[q] > 0:
            lowest = min(lowest, st.full_at[q], net.capacity[q] / st.load[q])
        st.full_at[q] = np.inf
    return n_links, lowest


@inlined
def _everything(net: Net, st: State) -> tuple[int, int, bool]:
    """Take all links and classes as affected; return how many, and that some may have a cap."""
    row, rising = st.row, st.rising
    n_links = len(net.capacity)
    st.scalars[WHOLE] -= 1
    for q in range(n_links):
        st.links[q] = q
        st.left[q], st.weight[q], st.opened[q] = net.capacity[q], st.load[q], st.users[q]
        st.full_at[q] = np.inf
    for c in range(len(rising)):
        rising[c] = 1 if row[c, COUNT] > 0.0 else 0
    return n_links, st.scalars[ACTIVE], True


@inlined
def _affected(net: Net, st: State, n_links: int, keep: float) -> tuple[int, int, bool]:
    """Search from the changed links, which `st.links` begins with, for all that they can affect.

    Classes that stopped at levels up to `keep` keep their rates, unless it was a changed link that stopped them. Return
    how many links and classes are affected, and whether any of these has a cap.
    """
    capacity, link_ptr, link_class, link_demand = net.capacity, net.link_ptr, net.link_class, net.link_demand
    class_ptr, class_link, links, classes = net.class_ptr, net.class_link, st.links, st.classes
    row, finish, rising, class_epoch, link_epoch = st.row, st.finish, st.rising, st.class_epoch, st.link_epoch
    full_at, link_changed, load, left = st.full_at, st.link_changed, st.load, st.left
    weight, opened = st.weight, st.opened
    epoch = st.scalars[EPOCH]
    n_classes = 0
    capped = False
    i = 0
    while i < n_links:
        q = links[i]
        i += 1
        total, kept, rising_weight, users = 0.0, 0.0, 0.0, 0
        for x in range(link_ptr[q], link_ptr[q + 1]):
            c = link_class[x]
            n = row[c, COUNT]
            if n == 0.0:
                continue
            consumes = n * link_demand[x]
            total += consumes * row[c, WEIGHT]
            if class_epoch[c] != epoch:
                if _keeps_rate(row, finish, link_changed, c, keep, epoch):
                    kept += consumes * row[c, RATE]
                    continue
                class_epoch[c] = epoch
                rising[c] = 1
                classes[n_classes] = c
                n_classes += 1
                if row[c, CAP] < np.inf:
                    capped = True
                n_links = _reach(
                    class_link, class_ptr[c], class_ptr[c + 1], link_epoch, full_at, links, n_links, keep, epoch
                )
            users += 1
            rising_weight += consumes * row[c, WEIGHT]
        left[q], weight[q], opened[q] = max(0.0, capacity[q] - kept), rising_weight, users
        load[q] = total  # the sum anew, so that rounding does not add up
    if n_classes * 2 > st.scalars[ACTIVE] and n_classes > BLOCK:
        st.scalars[WHOLE] = UNSEARCHED
    return n_links, n_classes, capped


@inlined
def _keeps_rate(row: F64, finish: F64, link_changed: I64, c: int, keep: float, epoch: int) -> bool:
    """Whether class c has the flows that it had and stopped at a level up to `keep`, not because of a changed link."""
    at = int(row[c, LIMIT])
    return row[c, RATE] <= keep * row[c, WEIGHT] and finish[c] == finish[c] and (at < 0 or link_changed[at] != epoch)


@inlined
def _reach(
    class_link: U32,
    first: int,
    end: int,
    link_epoch: I64,
    full_at: F64,
    links: I32,
    n_links: int,
    keep: float,
    epoch: int,
) -> int:
    """Add the links of a class, those of `class_link[first:end]`, to the affected ones; return how many there are."""
    for y in range(first, end):
        r = class_link[y]
        if link_epoch[r] != epoch:
            link_epoch[r] = epoch
            if full_at[r] > keep:  # or it still limits those that stop there
                full_at[r] = np.inf
            links[n_links] = r
            n_links += 1
    return n_links


# ---- filling --------------------------------------------------------------------------------------------------------
# A heap of levels, in `st.links`: those at which affected links are full, and as if these were links of their own, with
# numbers from the number of links on, those at which classes reach their caps.


@part
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


@inlined
def _levels(level: F64, links: I32, n_links: int, left: F64, weight: F64, opened: I64) -> int:
    """Let `links` begin with those of its first `n_links` that rising classes use; return how many these are."""
    size = 0
    for i in range(n_links):
        q = links[i]
        if opened[q] > 0:
            level[q] = left[q] / weight[q]
            links[size] = q
            size += 1
    return size


@inlined
def _caps(level: F64, links: I32, size: int, row: F64, classes: I32, count: int, base: int) -> int:
    """Add the caps of the first `count` of `classes`, where they have flows and a cap; return the number of levels."""
    for i in range(count):
        c = classes[i]
        if row[c, COUNT] > 0.0 and row[c, CAP] < np.inf:
            level[base + c] = row[c, CAP] / row[c, WEIGHT]
            links[size] = base + c
            size += 1
    return size


@inlined
def _fill(net: Net, st: State, size: int, waiting: int, now: float) -> None:
    """Raise the level until all of the `waiting` classes have stopped."""
    links, level, left, weight, opened, rising = st.links, st.level, st.left, st.weight, st.opened, st.rising
    link_ptr, link_class, full_at, row = net.link_ptr, net.link_class, st.full_at, st.row
    finish, block = st.finish, st.block
    class_ptr, class_link, class_demand = net.class_ptr, net.class_link, net.class_demand
    base = len(net.capacity)
    while waiting > 0:
        q = links[0]
        if q < base:
            if opened[q] == 0:
                size -= 1
                links[0] = links[size]
                _sift(level, links, int(size), 0)
                continue
            fresh = left[q] / weight[q]
            if fresh > level[q]:
                level[q] = fresh
                _sift(level, links, int(size), 0)
                if links[0] != q:
                    continue
            first, end = link_ptr[q], link_ptr[q + 1]
        else:
            first, end = 0, 1
        here = level[q]
        size -= 1
        links[0] = links[size]
        if size > 0:
            _sift(level, links, int(size), 0)
        for x in range(first, end):
            c = q - base if q >= base else link_class[x]
            if rising[c] == 0:
                continue
            rising[c] = 0
            waiting -= 1
            if q < base:
                full_at[q] = here
            own = row[c]
            n, class_weight = own[COUNT], own[WEIGHT]
            rate = min(class_weight * here, own[CAP])
            own[LIMIT] = q if q < base else -1
            for y in range(class_ptr[c], class_ptr[c + 1]):
                r = class_link[y]
                if r == q:  # it is full, and done with
                    continue
                demand = n * class_demand[y]
                opened[r] -= 1
                left[r] = max(0.0, left[r] - rate * demand)
                weight[r] -= class_weight * demand
            _go_on(own, finish, block, c, rate, now)


@inlined
def _go_on(own: F64, finish: F64, block: F64, c: int, rate: float, now: float) -> None:
    """Class c, whose row is `own`, goes on at `rate`, by which its next finish may be another."""
    if rate != own[RATE]:
        own[SERVED] += own[RATE] * (now - own[SINCE])
        own[SINCE] = now
        own[RATE] = rate
    elif finish[c] == finish[c]:  # neither its rate nor its flows have changed
        return
    finish[c] = own[SINCE] + (own[FIRST] - own[SERVED]) / rate
    block[c // BLOCK] = np.nan
