"""Collectives step by step: each message a flow between two ranks, each rank on its own way through the steps.

A rank begins a collective when it has joined it and is through with the one before in that group. In each step it
posts its receives, pays for and posts its sends, and goes on when all of them are done, as the executor does. A message
starts when both ends have posted it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from stanza_sim.simulate.lowered import Activity, Lowered, Resource, StepProgram
from stanza_sim.simulate.plain.clock import SimClock
from stanza_sim.simulate.plain.fabric import Fabric, SmallFabric

SETTLED = 1e-3
"""Rounds of collectives repeat when ranks leave them as they left the one before, to within this share of a round."""
MOST_ROUNDS = 16
"""The last of them is taken as it is. Most algorithms repeat from the second on, ranks that share cores later."""

Done = Callable[[int, int, str, float], None]
"""(class, iteration, op, when its first message began to move): the class is through with the collective."""


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


class CollectiveSim:
    """Runs collectives step by step. A class is in one collective of a group at a time: it joins them in turn."""

    def __init__(self, clock: SimClock, fabric: Fabric, done: Done) -> None:
        self._clock, self._fabric, self._done = clock, fabric, done
        self._runs: dict[tuple[int, str], _Run] = {}

    def join(self, a: int, iteration: int, name: str, program: StepProgram) -> None:
        """Class `a` begins its first step of the collective called `name`."""
        run = self._runs.get((iteration, name))
        if run is None:
            run = self._runs[iteration, name] = _Run(name, iteration, program)
        self._enter(run, a)

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
        src, dst, activity = run.program.messages[m]
        for a in (src, dst):
            run.start_s.setdefault(a, self._clock.now)
        self._clock.after(activity.delay_s, lambda: self._move(run, src, dst, activity))

    def _move(self, run: _Run, src: int, dst: int, activity: Activity) -> None:
        def moved() -> None:
            for a in (src, dst):
                run.left[a] -= 1
                if not run.left[a]:
                    run.at[a] = run.at.get(a, 0) + 1
                    self._enter(run, a)

        self._fabric.begin((), run.iteration, activity, moved)

    def _finish(self, run: _Run, a: int) -> None:
        run.through += 1
        if run.through == len(run.program.rank_classes):
            del self._runs[run.iteration, run.name]
        self._done(a, run.iteration, run.name, run.start_s.get(a, self._clock.now))


def back_to_back_s(
    resources: Sequence[Resource], programs: Sequence[StepProgram], post_s: Mapping[int, float], *, rounds: int
) -> float:
    """Run collectives of one group over and over on idle `resources`; return how long a round takes, in seconds.

    A rank joins the next collective `post_s[rank]` seconds after it is through with one, so those that leave a
    collective first are in the next one first, as in training, where all compute equally long in between; that time is
    not counted. The first round counts that they leave as they left the one before (the first, as they joined it: all
    at once), or the last of at most `rounds`. Behind it the next one is under way, unless there is one round only.
    """
    return _Rounds(resources, programs, post_s, rounds).length_s()


class _Silent:
    """Listens to a fabric that has no messages of its own."""

    def sent(self, a: int, i: int, u: int, start_s: float) -> None:
        """See `Listener.sent`."""

    def arrived(self, a: int, i: int, u: int, start_s: float) -> None:
        """See `Listener.arrived`."""


class _Rounds:
    """Collectives of one group, again and again, with nothing beside them."""

    def __init__(
        self,
        resources: Sequence[Resource],
        programs: Sequence[StepProgram],
        post_s: Mapping[int, float],
        rounds: int,
    ) -> None:
        self._clock = SimClock()
        self._fabric = SmallFabric(
            Lowered(resources=list(resources), rank_classes=[], collectives={}), self._clock, _Silent()
        )
        self._collective_sim = CollectiveSim(self._clock, self._fabric, self._through)
        self._programs, self._members, self._post_s = programs, programs[0].rank_classes, post_s
        self._rounds = min(rounds, MOST_ROUNDS)
        self._joining_s = max(post_s[a] for a in self._members)
        self._ends: dict[int, dict[int, float]] = {-1: dict.fromkeys(self._members, 0.0)}  # by round and member
        self._length_s = 0.0

    def length_s(self) -> float:
        """See `back_to_back_s`."""
        for a in self._members:
            self._join(a, 0, 0)
        self._clock.run()
        return self._length_s

    def _join(self, a: int, iteration: int, position: int) -> None:
        self._collective_sim.join(a, iteration, str(position), self._programs[position])

    def _through(self, a: int, iteration: int, name: str, _: float) -> None:
        """Member `a` is through with a collective, and joins the next."""
        count = len(self._programs)
        iteration, position = divmod(iteration * count + int(name) + 1, count)
        if not position:
            self._ended(a, iteration - 1)
        if not self._clock.stopped and (position or self._rounds > 1):
            self._clock.after(self._post_s[a], lambda: self._join(a, iteration, position))

    def _ended(self, a: int, iteration: int) -> None:
        """A member is through with a round; once all are, stop if the next would be like it."""
        ends = self._ends.setdefault(iteration, {})
        ends[a] = self._clock.now
        if len(ends) < len(self._members) or self._clock.stopped:
            return
        before = self._ends.pop(iteration - 1)
        last, last_before = self._clock.now, max(before.values())
        joining_s = self._joining_s * (len(self._programs) - (not iteration))  # of the first, all have joined
        self._length_s = last - last_before - joining_s
        moved = (abs((last - ends[m]) - (last_before - before[m])) for m in self._members)
        if iteration + 1 >= self._rounds or max(moved) <= SETTLED * self._length_s:
            self._clock.stop()
