"""Fluid sharing of resources: weighted max-min fairness with rate caps, recomputed only where something changed.

An *activity* is anything that takes its time from shared resources: a flow, a computation, a copy, a collective.
It has an amount of `work` and runs at `rate = weight * level` unless its `cap` is lower; on each resource it uses it
consumes `rate * demand`. Levels are raised together until a resource is full or a cap is met (progressive filling:
Bertsekas and Gallager, Data Networks, 2nd ed., section 6.5.2), so the result is max-min fair in `rate / weight`.

`FluidShare` is the arithmetic and knows no clock of its own: the engine tells it the time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush, heapreplace
from math import inf
from operator import attrgetter

from stanza_sim.base.errors import InputError, RunError

TIE = 1e-12
"""Relative tolerance: levels, and finish times, that differ by less are one."""
MOST_KNOWN = 200_000
"""So many solved rates are kept; then they are forgotten, and kept anew."""
_SERIAL = attrgetter("serial")


@dataclass(slots=True, eq=False, kw_only=True)
class RunningActivity:
    """Something that consumes resources.

    `usage` lists (resource index, demand per unit of rate), each resource once. `remaining` is in units of
    work at time `since_s`, while it runs at `rate` units per second. `limit` is the resource that limits it, or -1
    for its cap. `tag` is the caller's.
    """

    work: float
    usage: tuple[tuple[int, float], ...]
    weight: float = 1.0
    cap: float = inf
    tag: object = None
    remaining: float = field(default=0.0, init=False)
    rate: float = field(default=0.0, init=False)
    since_s: float = field(default=0.0, init=False)
    finish_s: float = field(default=inf, init=False)
    serial: int = field(default=0, init=False)
    served: float = field(default=0.0, init=False)  # work done until `since_s`
    limit: int = field(default=-1, init=False)
    kind: int = field(default=-1, init=False)  # among those that demand and are worth the same


class FluidShare:
    """Activities that share resources of fixed capacity (units per second)."""

    def __init__(self, capacities: Sequence[float]) -> None:
        for c in capacities:
            if not 0 < c < inf:
                raise InputError(f"a resource's capacity must be positive and finite, not {c}")
        self.capacities = list(capacities)
        self._users: list[dict[RunningActivity, float]] = [{} for _ in capacities]
        self._changed: dict[int, None] = {}  # resources whose users changed since the last solve
        self._fresh: list[RunningActivity] = []  # started since the last solve
        self._heap: list[tuple[float, int, RunningActivity]] = []
        self._serial = 0
        # Iterations are alike, so the same activities meet again and again: their rates are solved once.
        self._kinds: dict[tuple[tuple[tuple[int, float], ...], float, float], int] = {}
        self._known: dict[tuple[int, ...], tuple[list[float], list[int]]] = {}
        self._kept = 0

    @property
    def dirty(self) -> bool:
        """Whether rates must be solved before time may pass."""
        return bool(self._changed or self._fresh)

    def set_capacity(self, resource: int, capacity: float) -> None:
        """Let a resource have another capacity from the next `solve` on."""
        if capacity != self.capacities[resource]:
            self.capacities[resource] = capacity
            self._known.clear()
            self._kept = 0
            self._changed[resource] = None

    def used(self, resource: int) -> float:
        """What all activities take of a resource, per second."""
        return sum(a.rate * demand for a, demand in self._users[resource].items())

    def start(self, activity: RunningActivity, now_s: float) -> None:
        """Add `activity`; it has rate 0 until the next `solve`."""
        self._serial += 1
        activity.serial = self._serial
        activity.remaining, activity.since_s = activity.work, now_s
        activity.rate, activity.finish_s = 0.0, inf
        activity.kind = self._kinds.setdefault((activity.usage, activity.weight, activity.cap), len(self._kinds))
        for q, demand in activity.usage:
            self._users[q][activity] = demand
            self._changed[q] = None
        self._fresh.append(activity)

    def next_finish_s(self) -> float:
        """When the next activity finishes if nothing changes; infinity if none runs."""
        heap = self._heap
        while heap and heap[0][2].finish_s != heap[0][0]:
            heappop(heap)
        return heap[0][0] if heap else inf

    def finish(self, now_s: float) -> list[RunningActivity]:
        """Remove and return the activities that finish at `now_s`, in the order in which they were started."""
        limit = now_s + TIE * abs(now_s)
        done: list[RunningActivity] = []
        while self.next_finish_s() <= limit:
            activity = heappop(self._heap)[2]
            activity.finish_s = inf
            activity.remaining = 0.0
            for q, _ in activity.usage:
                del self._users[q][activity]
                self._changed[q] = None
            done.append(activity)
        done.sort(key=_SERIAL)
        return done

    def stop(self, activity: RunningActivity, now_s: float) -> None:
        """Remove `activity`, which runs, whether it is done or not."""
        activity.served += activity.rate * (now_s - activity.since_s)
        activity.rate, activity.since_s, activity.finish_s = 0.0, now_s, inf
        for q, _ in activity.usage:
            del self._users[q][activity]
            self._changed[q] = None
        if activity in self._fresh:
            self._fresh.remove(activity)

    def solve(self, now_s: float) -> None:
        """Give every activity that a change can affect its fair rate from `now_s` on."""
        seen: dict[RunningActivity, None] = dict.fromkeys(self._fresh)
        resources = self._changed
        queue, users = list(resources), self._users
        while queue:
            for a in users[queue.pop()]:
                if a not in seen:
                    seen[a] = None
                    for q, _ in a.usage:
                        if q not in resources:
                            resources[q] = None
                            queue.append(q)
        resources.clear()
        self._fresh.clear()
        activities = sorted(seen, key=_SERIAL)
        for a, rate in zip(activities, self._rates(activities), strict=True):
            if rate == a.rate and a.finish_s < inf:
                continue
            if a.rate > 0:
                moved = a.rate * (now_s - a.since_s)
                a.remaining = max(0.0, a.remaining - moved)
                a.served += moved
            a.since_s, a.rate = now_s, rate
            if rate <= 0:
                raise RunError("an activity was given no share of a resource")  # capacities are positive
            a.finish_s = now_s + a.remaining / rate
            if a.finish_s < inf:
                heappush(self._heap, (a.finish_s, a.serial, a))

    def _rates(self, activities: Sequence[RunningActivity]) -> list[float]:
        """`fair_rates` on this share's capacities."""
        alike = tuple([a.kind for a in activities])
        known = self._known.get(alike)
        if known is None:
            rates = fair_rates(activities, self.capacities)
            if self._kept > MOST_KNOWN:
                self._known.clear()
                self._kept = 0
            self._known[alike] = rates, [a.limit for a in activities]
            self._kept += len(rates)
            return rates
        for a, limit in zip(activities, known[1], strict=True):
            a.limit = limit
        return known[0]


def fair_rates(activities: Sequence[RunningActivity], capacities: Sequence[float] | dict[int, float]) -> list[float]:
    """Weighted max-min fair rates of `activities` alone on `capacities`.

    Returns one rate per activity, in order. Raises `InputError` for an activity that nothing limits.
    """
    left: dict[int, float] = {}
    open_weight: dict[int, float] = {}  # of the users that are not frozen yet
    users: dict[int, list[int]] = {}
    open_users: dict[int, int] = {}
    rates = [0.0] * len(activities)
    capped: list[tuple[float, int]] = []
    for i, a in enumerate(activities):
        for q, demand in a.usage:
            if q in left:
                open_weight[q] += a.weight * demand
                users[q].append(i)
                open_users[q] += 1
            else:
                left[q], open_weight[q], users[q], open_users[q] = capacities[q], a.weight * demand, [i], 1
        if a.cap < inf:
            capped.append((a.cap / a.weight, i))
        elif not a.usage:
            raise InputError("an activity needs a resource or a rate cap")
    capped.sort(reverse=True)
    frozen = bytearray(len(activities))
    waiting = len(activities)
    # A resource's level only rises while others freeze, so a heap with lazily renewed entries finds the least.
    heap = sorted((left[q] / open_weight[q], q) for q in left)
    while waiting:
        while heap:
            level, q = heap[0]
            if not open_users[q]:
                heappop(heap)
            elif (now := left[q] / open_weight[q]) > level:
                heapreplace(heap, (now, q))
            else:
                break
        while capped and frozen[capped[-1][1]]:
            capped.pop()
        level = heap[0][0] if heap else inf
        if capped and capped[-1][0] <= level * (1 + TIE):
            level, only = capped.pop()
            full, at = [only], -1
        else:
            at = heappop(heap)[1]
            full = [i for i in users[at] if not frozen[i]]
        for i in full:
            a = activities[i]
            a.limit = at
            frozen[i] = 1
            waiting -= 1
            rates[i] = rate = min(a.weight * level, a.cap)
            for r, demand in a.usage:
                open_users[r] -= 1
                left[r] = max(0.0, left[r] - rate * demand)
                open_weight[r] -= a.weight * demand
    return rates


def usage_of(pairs: Iterable[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    """Sum the demands of `pairs` by resource, in ascending order of resource; demands of zero are left out."""
    total: dict[int, float] = {}
    for q, demand in pairs:
        total[q] = total.get(q, 0.0) + demand
    return tuple(sorted((q, d) for q, d in total.items() if d > 0))
