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
        self.env = simpy.Environment()
        self.events = 0
        self.stopped = False
        self._quiet: list[simpy.Event] = []
        self._late: list[Callable[[], None]] = []
        self._ending = False

    @property
    def now(self) -> float:
        """The time."""
        return float(self.env.now)

    @property
    def pending(self) -> bool:
        """Whether anything is still to happen."""
        return self.env.peek() < inf

    def run(self, settle: Callable[[], None]) -> bool:
        """Let time pass until `stop`, calling `settle` after each event; False if nothing is left to happen."""
        env = self.env
        while not self.stopped:
            if env.peek() == inf:
                return False
            env.step()
            self.events += 1
            settle()
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

    def quiet(self) -> simpy.Event:
        """An event at the end of this instant; what it brings about is still in this instant, before what is `late`."""
        event = self.env.event()
        self._quiet.append(event)
        self._wake_up()
        return event

    def late(self, then: Callable[[], None]) -> None:
        """Call `then` when nothing else is left to happen in this instant."""
        self._late.append(then)
        self._wake_up()

    def _wake_up(self) -> None:
        if not self._ending:
            self._ending = True
            self.env.process(self._end_of_instant())

    def _end_of_instant(self) -> Steps:
        env = self.env
        while self._quiet or self._late:
            while env.peek() == env.now:  # other events of this instant
                yield env.timeout(0)
            if self._quiet:
                events, self._quiet = self._quiet, []
                for event in events:
                    event.succeed()
            else:
                last, self._late = self._late, []
                for then in last:
                    then()
        self._ending = False
