"""How long a collective takes step by step, and the one activity that takes as long.

The activity charges every link the bytes that all steps move over it, and takes as long as the steps do with nothing
beside them. Where all ranks are in the same step at once (equal links, equal messages), that is the longest path
through the steps: a rank begins a step when it is through with the one before, and messages of one step share their
links evenly. Elsewhere the steps are carried out once on idle links; not so for a group of more than `MOST_RANKS` or
more messages than `MOST_MESSAGES`, whose longest path is an approximation.

Contract: `StepCosts` prices the collectives of one schedule and remembers what it found, since collectives of one shape
take one time. Every rank must be a class of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

from stanza_sim.schedule import Algorithm, Collective, CollectiveKind
from stanza_sim.schedule.collectives import has_closed_form, steps_of
from stanza_sim.simulate.lowered import Activity, CollectiveActivity, StepProgram
from stanza_sim.simulate.lowering.collective_steps import CollectiveInputs, Steps
from stanza_sim.simulate.lowering.resources import Resources
from stanza_sim.simulate.plain.collective_sim import back_to_back_s

MOST_RANKS = 128
"""In larger groups steps are not carried out to find how long they take."""
MOST_MESSAGES = 60_000
"""No more messages than these are carried out, which takes about two seconds."""
LONG, SHORT = 48, 24
"""Chunks of a pipeline that are carried out for one that has more."""

Shape = tuple[object, ...]
"""What tells apart collectives of one schedule whose steps take different times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Path:
    """How long the longest path of a collective takes, and its busiest resource.

    `in_step` says that the path says all: every rank is in the same step, doing alike.
    """

    seconds: float
    in_step: bool
    busiest_s: float


class StepCosts:
    """What the collectives of one schedule take, from their steps: longest paths and times alone, found once."""

    def __init__(self, inputs: CollectiveInputs) -> None:
        self.inputs = inputs
        self._paths: dict[Shape, _Path] = {}
        self._alone_s: dict[Shape, float] = {}

    def priced(self, op: Collective, *, timed: bool = True) -> CollectiveActivity:
        """`op` as one activity; without `timed` it takes no longer than its busiest resource, for steps take the time.

        Example: the steps take 10 ms, of which latencies and overheads alone take 2 ms, and the busiest link needs
        7 ms. The activity waits for 2 ms, then moves for 8 ms at no more than 7/8 of that link's rate.
        """
        rank_classes = tuple(self.inputs.group(op))
        steps = Steps(self.inputs, op)
        if not steps.made:
            return CollectiveActivity(rank_classes=rank_classes, activity=Activity(work=0.0, usage=()))
        activity = steps.activity()
        if timed:
            activity = taking(self.inputs.resources, activity, self.alone_s(op), steps.path(moving=False)[0])
        return CollectiveActivity(rank_classes=rank_classes, activity=activity)

    def program(self, op: Collective) -> StepProgram:
        """The messages of `op` one by one, and what each rank does with them."""
        return Steps(self.inputs, op).program()

    # ---- how long the steps take with nothing beside them ----------------------------------------------------------

    def alone_s(self, op: Collective) -> float:
        """What `op` adds to an iteration, carried out step by step on idle links.

        Broadcasts begin when their root has something to give, so each is by itself; the others of the group go in
        program order over and over. Of pipelines with more than `LONG` chunks `LONG` and `SHORT` are carried out:
        every further chunk adds as much.
        """
        if (what := _shape(op)) not in self._alone_s:
            if len(self.inputs.group(op)) > MOST_RANKS or self._path(self._cut(op, SHORT)).in_step:
                self._alone_s[what] = self._path(op).seconds
            else:
                self._alone_s |= self._by_carrying_out(op)
        return self._alone_s[what]

    def _path(self, op: Collective) -> _Path:
        """The longest path through the steps of `op`."""
        if (what := _shape(op)) not in self._paths:
            steps = Steps(self.inputs, op)
            seconds, in_step = steps.path(moving=True)
            busiest_s = self.inputs.resources.busiest_s(steps.activity())
            self._paths[what] = _Path(seconds=seconds, in_step=in_step, busiest_s=busiest_s)
        return self._paths[what]

    def _by_carrying_out(self, op: Collective) -> dict[Shape, float]:
        """The times alone of `op` and of those that go round with it."""
        beside = [op] if op.kind is CollectiveKind.BROADCAST else self._beside(op)
        inputs, group = self.inputs, self.inputs.group(op)
        shapes = tuple((_shape(o), inputs.schedule.itemsize_of(o)) for o in beside)
        adding = tuple(inputs.adding_core_s(r, o.nbytes) for r in group for o in beside)
        # Other schedules on the cluster have collectives of these shapes too.
        key = "alone", LONG, SHORT, MOST_RANKS, MOST_MESSAGES, group, shapes, adding
        return inputs.cluster.remember(key, lambda: self._alone(beside))

    def _alone(self, beside: Sequence[Collective]) -> dict[Shape, float]:
        long = self._carried_out(beside, LONG)
        short = self._carried_out(beside, SHORT) if any(self._cut(o, LONG) is not o for o in beside) else long
        found: dict[Shape, float] = {}
        for o in beside:
            most, least = long[_shape(self._cut(o, LONG))], short[_shape(self._cut(o, SHORT))]
            if most is None or least is None:
                most = self._path(o).seconds
            elif self._cut(o, LONG) is not o:
                most += (o.nbytes / self._chunk_bytes(o) - LONG) * (most - least) / (LONG - SHORT)
            found[_shape(o)] = most
        return found

    def _beside(self, op: Collective) -> list[Collective]:
        """Those of the group of `op`, itself included, whose ranks leave one after another; one of each shape."""
        group, schedule = self.inputs.group(op), self.inputs.schedule
        found: dict[Shape, Collective] = {}
        for o in schedule.ops:
            if not isinstance(o, Collective) or has_closed_form(o) or o.kind is CollectiveKind.BROADCAST:
                continue
            if self.inputs.group(o) != group or not steps_of(o, group, schedule.itemsize_of(o)):
                continue
            if _shape(o) not in found and not self._path(self._cut(o, SHORT)).in_step:
                found[_shape(o)] = o
        return list(found.values())

    def _chunk_bytes(self, op: Collective) -> int:
        itemsize = self.inputs.schedule.itemsize_of(op)
        return max(1, op.chunk // itemsize) * itemsize

    def _cut(self, op: Collective, chunks: int) -> Collective:
        """`op` with `chunks` chunks, if it has more than `LONG` and each further one adds as much as that before."""
        piped = op.algorithm is not Algorithm.HALVING_DOUBLING
        whole = op.kind in (CollectiveKind.ALL_REDUCE, CollectiveKind.BROADCAST)
        chunk = self._chunk_bytes(op)
        return replace(op, nbytes=chunks * chunk) if piped and whole and op.nbytes > LONG * chunk else op

    def _carried_out(self, ops: Sequence[Collective], chunks: int) -> dict[Shape, float | None]:
        """What each of `ops`, cut to `chunks` chunks, adds to a round of them; None for those of too many messages.

        One op alone goes round by itself, as often as `MOST_MESSAGES` allows. Several go round together, each in its
        turn, and the time of a round is shared out; where there are too many messages for two rounds, each takes what
        it takes once.

        Example: A has 5,000 messages and B 3,000, so 60,000 // 8,000 = 7 rounds are allowed. `shared_out` says what
        each gets of a round. If A had 55,000 messages, there would be no two rounds, and each would get what it takes
        once, by itself; if A had 65,000, it would get None.
        """
        cut = {_shape(o): o for o in (self._cut(o, chunks) for o in ops)}
        group, itemsize_of = self.inputs.group(ops[0]), self.inputs.schedule.itemsize_of
        counts = {what: len(steps_of(o, group, itemsize_of(o))) for what, o in cut.items()}
        programs = {what: self.program(o) for what, o in cut.items() if counts[what] <= MOST_MESSAGES}
        rounds = MOST_MESSAGES // sum(counts.values()) if ops[0].kind is not CollectiveKind.BROADCAST else 1
        if rounds > 1 and len(cut) == 1:
            return {what: self._round_s([p], rounds) for what, p in programs.items()}
        alone = {what: self._round_s([p], 1) for what, p in programs.items()}
        if rounds < 2:
            return {what: alone.get(what) for what in cut}
        busiest = {what: self._path(o).busiest_s for what, o in cut.items()}
        return {**shared_out(self._round_s([*programs.values()], rounds), alone, busiest)}

    def _round_s(self, programs: Sequence[StepProgram], rounds: int) -> float:
        """Seconds of one of `rounds` rounds of `programs`, which follow one another on idle links."""
        post_s = {r: self.inputs.cluster.host_of(r).nic.overhead_s for r in programs[0].rank_classes}
        return back_to_back_s(self.inputs.resources.made, programs, post_s, rounds=rounds)


def _shape(op: Collective) -> Shape:
    return op.kind, op.ranks, op.nbytes, op.algorithm, op.local, op.chunk, op.root, op.wire


def shared_out(together_s: float, alone: Mapping[Shape, float], busiest: Mapping[Shape, float]) -> dict[Shape, float]:
    """What each collective adds to a round of `together_s` seconds, of which one begins before the last has ended.

    Such a collective has no time of its own. Each gets what its busiest resource needs, and of the rest of the round as
    large a part as it takes longer than that alone.

    Example: alone, A takes 10 ms (its busiest link 8 ms) and B 6 ms (4 ms), together 13 ms. Links need 12 ms of the
    round; the other 1 ms is a quarter of the 2 + 2 ms by which A and B take longer alone. So A gets 8.5 ms and B
    4.5 ms:

    >>> shared_out(13.0, {("A",): 10.0, ("B",): 6.0}, {("A",): 8.0, ("B",): 4.0})
    {('A',): 8.5, ('B',): 4.5}
    """
    rest_s = sum(alone.values()) - sum(busiest.values())
    part = (together_s - sum(busiest.values())) / rest_s if rest_s > 0 else 0.0
    return {what: busiest[what] + part * (seconds - busiest[what]) for what, seconds in alone.items()}


def taking(resources: Resources, activity: Activity, seconds: float, delay_s: float) -> Activity:
    """`activity` such that it takes `seconds` alone, of which nothing moves in the first `delay_s`.

    Where latencies pass while others send over the same link, less than their sum is left beside what moves.
    """
    delay_s = max(0.0, min(delay_s, seconds - resources.busiest_s(activity)))
    return replace(activity, delay_s=delay_s, cap=activity.work / (seconds - delay_s) if seconds > delay_s else inf)
