"""Collectives step by step: each message a flow between two ranks, each rank on its own way through the steps.

A rank begins a collective when it has joined it and is through with the one before in that group. In each step it
posts its receives, pays for and posts its sends, and goes on when all of them are done, as the executor does. A message
starts when both ends have posted it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from stanza_sim.simulate.fabric import Clock, Fabric
from stanza_sim.simulate.lower import Load, StepProgram

Done = Callable[[int, int, str, float], None]
"""(class, iteration, op, when its first message began to move): the class is through with the collective."""


@dataclass(slots=True)
class _Queue:
    """Collectives of one group at one class, in program order, across iterations, one at a time."""

    iteration: int = 0
    position: int = 0
    busy: bool = False
    joined: set[tuple[int, int]] = field(default_factory=set)


@dataclass(slots=True)
class _Run:
    """One collective of one iteration: how many ends have posted each message, and where each class is."""

    name: str
    iteration: int
    program: StepProgram
    posted: dict[int, int] = field(default_factory=dict)
    at: dict[int, int] = field(default_factory=dict)
    left: dict[int, int] = field(default_factory=dict)
    start_s: dict[int, float] = field(default_factory=dict)
    through: int = 0


class Stepping:
    """Runs the collectives of one group; `order` are its ops by name, in program order."""

    def __init__(self, clock: Clock, fabric: Fabric, done: Done, order: list[tuple[str, StepProgram]]) -> None:
        self._clock, self._fabric, self._done, self._order = clock, fabric, done, order
        self._queues: dict[int, _Queue] = {}
        self._runs: dict[tuple[int, int], _Run] = {}

    def join(self, a: int, iteration: int, position: int) -> None:
        """Class `a` is ready for the op at `position`."""
        self._queues.setdefault(a, _Queue()).joined.add((iteration, position))
        self._advance(a)

    def _advance(self, a: int) -> None:
        queue = self._queues[a]
        head = (queue.iteration, queue.position)
        if queue.busy or head not in queue.joined:
            return
        queue.joined.discard(head)
        queue.busy = True
        if head not in self._runs:
            name, program = self._order[queue.position]
            self._runs[head] = _Run(name, queue.iteration, program)
        self._enter(self._runs[head], a)

    def _enter(self, run: _Run, a: int) -> None:
        """Class `a` begins its next step, or is through."""
        turns, at = run.program.turns.get(a, ()), run.at.get(a, 0)
        if at == len(turns):
            self._finish(run, a)
            return
        turn = turns[at]
        run.left[a] = len(turn.sends) + len(turn.receives)

        def send() -> None:
            for m in turn.sends:
                self._post(run, m)

        for m in turn.receives:
            self._post(run, m)
        self._clock.after(turn.post_s, send)

    def _post(self, run: _Run, m: int) -> None:
        run.posted[m] = run.posted.get(m, 0) + 1
        if run.posted[m] < 2:
            return
        del run.posted[m]
        src, dst, load = run.program.messages[m]
        for a in (src, dst):
            run.start_s.setdefault(a, self._clock.now)
        self._clock.after(load.delay_s, lambda: self._move(run, src, dst, load))

    def _move(self, run: _Run, src: int, dst: int, load: Load) -> None:
        def moved() -> None:
            for a in (src, dst):
                run.left[a] -= 1
                if not run.left[a]:
                    run.at[a] = run.at.get(a, 0) + 1
                    self._enter(run, a)

        self._fabric.begin((), run.iteration, load, moved)

    def _finish(self, run: _Run, a: int) -> None:
        queue = self._queues[a]
        head = (queue.iteration, queue.position)
        run.through += 1
        if run.through == len(run.program.actors):
            del self._runs[head]
        queue.busy = False
        queue.position += 1
        if queue.position == len(self._order):
            queue.iteration, queue.position = queue.iteration + 1, 0
        self._done(a, run.iteration, run.name, run.start_s.get(a, self._clock.now))
        self._advance(a)
