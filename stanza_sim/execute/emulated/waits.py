"""Waiting in the place of computing: when a computation of stated length would end, and waiting for that. No torch.

A computation begins when its lane is free and its last dependency was met, by *nominal* times: what a thread takes to
wake up delays what follows on other ranks, as in any program, but does not add up along a lane. Computations that share
a device progress at equal rates, each at full speed at most, as in the simulator. So a new one only ever delays the
others, and whoever waits need not be woken: it sleeps until its end as known, and looks again.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from array import array
from collections.abc import Callable, MutableSequence
from contextlib import AbstractContextManager

PR_SET_TIMERSLACK = 29
SLACK_NS = 1_000
SPIN_S = 60e-6
"""How long before the end of a wait the thread is woken, to look at the clock until then.

Measured on 2 cores on which more ran: 4 processes of 2 threads that only wait woke up 56 us late (p50; p95: 134), and
with these 60 us 1 us late (27); 8 processes 59 us (119) and 6 us (182), under SCHED_FIFO 62 us (117) and 4 us (63).
From the end of a computation to the start of the next on another rank it took 0.21 to 0.27 ms in place of 0.29 to 0.34.
For this a wait costs 58 us of a core in place of 47, nearly all for waking up. With 300 us it was 230, p95 no better.
"""
_EPSILON_S = 1e-12


def set_timer_slack() -> None:
    """Let this thread's sleeps end within a microsecond of the time asked for, instead of 50; where Linux has that."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, SLACK_NS, 0, 0, 0)


def sleep_until(end_s: float, now: Callable[[], float] = time.perf_counter) -> None:
    """Return at `end_s`: sleep until `SPIN_S` before it (to an absolute time), then look at the clock."""
    left = end_s - SPIN_S - now()
    if left > 0:
        time.sleep(left)
    while now() < end_s:
        pass


class Shares:
    """A device whose `capacity` is shared equally by the computations of some slots, each of which has one at most.

    With n at work each progresses at the rate min(1, capacity / n). All of the state is in `state`, which may be
    memory that several processes share: the time up to which progress is accounted for, then for each slot the seconds
    of work left (0: none) and when the last computation ended.
    """

    def __init__(self, capacity: float, state: MutableSequence[float]) -> None:
        self._capacity, self._state = capacity, state
        self._slots = range((len(state) - 1) // 2)

    @staticmethod
    def size(slots: int) -> int:
        """How many numbers the state of so many slots has."""
        return 1 + 2 * slots

    def start(self, slot: int, at_s: float, work_s: float) -> None:
        """Begin a computation that takes `work_s` alone.

        One that began before the time accounted for has progressed meanwhile; what the others have is left as it is.
        """
        state = self._state
        self._account(at_s)
        rate = self._rate(1 + sum(state[1 + 2 * k] > 0 for k in self._slots))
        left_s = work_s - max(state[0] - at_s, 0.0) * rate
        state[1 + 2 * slot] = left_s if left_s > _EPSILON_S else 0.0
        state[2 + 2 * slot] = at_s + work_s / rate

    def end_s(self, slot: int) -> float:
        """When the computation of `slot` ends, or ended, if no other begins before."""
        state, mine = self._state, self._state[1 + 2 * slot]
        if mine <= 0:
            return state[2 + 2 * slot]
        at_s, done_s = state[0], 0.0
        left = sorted(state[1 + 2 * k] for k in self._slots if state[1 + 2 * k] > 0)
        for k, next_s in enumerate(left):
            at_s += (next_s - done_s) / self._rate(len(left) - k)
            done_s = next_s
            if next_s >= mine:
                break
        return at_s

    def finish(self, slot: int, end_s: float) -> None:
        """The computation of `slot` has ended, at `end_s`: account for what all have done until then."""
        self._account(end_s)
        if self._state[1 + 2 * slot] > 0:  # by rounding
            self._state[1 + 2 * slot] = 0.0
            self._state[2 + 2 * slot] = end_s

    def _rate(self, count: int) -> float:
        return min(1.0, self._capacity / count)

    def _account(self, at_s: float) -> None:
        state = self._state
        while at_s > state[0]:
            active = [k for k in self._slots if state[1 + 2 * k] > 0]
            if not active:
                break
            rate = self._rate(len(active))
            first_s = min(state[1 + 2 * k] for k in active)
            done_s = min(first_s, (at_s - state[0]) * rate)
            state[0] = at_s if done_s < first_s else state[0] + first_s / rate
            for k in active:
                left_s = state[1 + 2 * k] - done_s
                if left_s <= _EPSILON_S:
                    state[2 + 2 * k] = state[0]
                state[1 + 2 * k] = left_s if left_s > _EPSILON_S else 0.0
        state[0] = max(state[0], at_s)


class Lanes:
    """The lanes of one rank: `compute` waits as long as a computation would take.

    `shares` is the device of this rank and `slots` says which slot of it each lane has; without it every lane computes
    at full speed. `guard` is held while the state of `shares` is looked at.
    """

    def __init__(
        self,
        shares: Shares | None = None,
        slots: dict[str, int] | None = None,
        *,
        guard: Callable[[], AbstractContextManager[object]] | None = None,
        now: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = sleep_until,
    ) -> None:
        self._shares, self._slots = shares, slots or {}
        lock = threading.Lock()
        self._guard = guard or (lambda: lock)
        self._now, self._sleep = now, sleep
        self._end_s: dict[str, float] = {}

    def compute(self, lane: str, ready_s: float, work_s: float, *, wait: bool = True) -> tuple[float, float]:
        """Wait for a computation of `work_s` seconds in `lane` that could start at `ready_s`.

        Returns when it nominally began and ended; comes back at the latter, or later. One thread for each lane calls
        this. Without `wait` it comes back at once if no other lane shares the device: where only the next computation
        of the lane goes on from this one, nobody could tell, and a wake-up is saved.
        """
        begin_s = max(self._end_s.get(lane, 0.0), ready_s)
        if self._shares is not None:
            end_s = self._shared(lane, begin_s, work_s)
        else:
            end_s = begin_s + work_s
            if wait:
                self._sleep(end_s)
        self._end_s[lane] = end_s
        return begin_s, end_s

    def _shared(self, lane: str, begin_s: float, work_s: float) -> float:
        shares, slot = self._shares, self._slots[lane]
        if shares is None:
            raise RuntimeError(f"lane {lane} has no device")
        with self._guard():
            shares.start(slot, begin_s, work_s)
            end_s = shares.end_s(slot)
        while True:
            self._sleep(end_s)
            with self._guard():
                end_s = shares.end_s(slot)
                if end_s <= self._now():
                    shares.finish(slot, end_s)
                    return end_s


def own_state(slots: int) -> MutableSequence[float]:
    """The state of a device that only this process computes on."""
    return array("d", bytes(8 * Shares.size(slots)))
