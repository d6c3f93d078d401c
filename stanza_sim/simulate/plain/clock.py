"""simpy's clock, with what happens at the end of an instant: after everything else that happens at the same time."""

from __future__ import annotations

from collections.abc import Callable, Generator
from math import inf
from typing import Any

import simpy

Steps = Generator[simpy.Event, Any, None]
"""A simpy process: yields the events that it waits for."""


class SimClock:
    """Simulated time in seconds. `events` counts what has happened."""

    def __init__(self) -> None:
        self.env = simpy.Environment(0.0)
        self.events = 0
        self.stopped = False
        self._quiet: list[simpy.Event] = []
        self._late: list[Callable[[], None]] = []

    @property
    def now(self) -> float:
        """The time."""
        return self.env.now

    @property
    def pending(self) -> bool:
        """Whether anything is still to happen."""
        return self.env.peek() < inf

    def run(self) -> bool:
        """Let time pass until `stop`; False if nothing is left to happen."""
        env = self.env
        while not self.stopped:
            next_s = env.peek()
            if (self._quiet or self._late) and next_s > env.now:
                self._end_instant()
            elif next_s == inf:
                return False
            else:
                env.step()
            self.events += 1
        return True

    def stop(self) -> None:
        """Let `run` return."""
        self.stopped = True

    def after(self, delay_s: float, then: Callable[[], None]) -> None:
        """Call `then` in `delay_s` seconds, at once if that is zero."""
        if delay_s <= 0:
            then()
        else:
            self._call(self.env.timeout(delay_s), then)

    def wake(self, at_s: float, then: Callable[[], None]) -> None:
        """Call `then` at `at_s`, a time that is not past."""
        self._call(self.env.timeout(max(0.0, at_s - self.env.now)), then)

    @staticmethod
    def _call(event: simpy.Event, then: Callable[[], None]) -> None:
        event.callbacks.append(lambda _: then())

    def quiet(self, event: simpy.Event) -> simpy.Event:
        """Let `event` happen at the end of this instant; what follows from it still precedes what is `late`."""
        self._quiet.append(event)
        return event

    def late(self, then: Callable[[], None]) -> None:
        """Call `then` when nothing else is left to happen in this instant."""
        self._late.append(then)

    def _end_instant(self) -> None:
        if self._quiet:
            events, self._quiet = self._quiet, []
            for event in events:
                event.succeed()
        else:
            last, self._late = self._late, []
            for then in last:
                then()
