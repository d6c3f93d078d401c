"""The plain engine: every rank's program on simpy's clock. It reads as the statement of what is simulated.

Which unit may start, and which send is posted next, is decided by `schedule.progress.Progress`, as in the executor.
Here these instructions take time: a simpy process for each lane computes, one for each group takes part in collectives,
one for each rank posts. A *fabric* moves messages and says how fast activities run.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import simpy

from stanza_sim.base.errors import RunError
from stanza_sim.schedule import Collective, Compute, Ranks, Schedule, Transfer, UnitKind
from stanza_sim.schedule.progress import Instructions, Issue, Key, Progress, stuck
from stanza_sim.simulate.lowered import Activity, Lowered, RankClass
from stanza_sim.simulate.plain.clock import SimClock, Steps
from stanza_sim.simulate.plain.collective_sim import CollectiveSim
from stanza_sim.simulate.plain.fabric import Fabric, Listener, SmallFabric
from stanza_sim.simulate.plain.wakeup import Others, wakeup_needs
from stanza_sim.timeline.spans import Span

if TYPE_CHECKING:
    from stanza_sim.simulate.variation import Variation


@dataclass(slots=True)
class _Rank:
    """A class of ranks: what it does, how far it is, and what its processes wait for."""

    index: int
    rank_class: RankClass
    core: Progress
    wakeup_needs: dict[int, Others]
    turns: dict[int, _Turns]
    """Of each computation and collective: where its lane or group is told to carry it out."""
    ends: list[float] = field(default_factory=list)
    posts: bool = False
    """Whether it has a poster."""
    poster: simpy.Event | None = None
    """What the poster waits for while there is nothing to post."""


class _Turns:
    """What a lane or a group is to carry out, in order: one process takes it from here."""

    def __init__(self, env: simpy.Environment) -> None:
        self._env = env
        self._keys: deque[Key] = deque()
        self._taker: simpy.Event | None = None

    def put(self, key: Key) -> None:
        """Hand a key over."""
        self._keys.append(key)
        if self._taker is not None:
            self._taker.succeed()
            self._taker = None

    def next(self) -> Generator[simpy.Event, Any, Key]:
        """Wait for a key, if none is there."""
        if not self._keys:
            self._taker = self._env.event()
            yield self._taker
        return self._keys.popleft()


@dataclass(slots=True)
class _Meeting:
    """A collective of one iteration: the members that have joined it wait until it is through."""

    waiting: list[simpy.Event] = field(default_factory=list)


class Engine:
    """Runs a lowered schedule on a fabric."""

    def __init__(
        self,
        schedule: Schedule,
        lowered: Lowered,
        *,
        issue: Issue = Issue.EAGER,
        variation: Variation | None = None,
        fabric: Callable[[Lowered, SimClock, Listener], Fabric] = SmallFabric,
    ) -> None:
        self.lowered = lowered
        self.variation = variation  # makes computations take longer or shorter
        self._factor: dict[tuple[int, int], float] = {}  # (rank, iteration) -> by how much
        self.clock = SimClock()
        self.fabric = fabric(lowered, self.clock, self)
        self._log: list[tuple[_Rank, int, int, float, str, int, float]] = []
        self._finished: dict[int, int] = defaultdict(int)
        self._instructions: deque[tuple[_Rank, Instructions]] = deque()
        self._until: Callable[[list[tuple[float, ...]]], bool] = lambda _: False
        self.ranks = [self._rank(a, rank_class, issue) for a, rank_class in enumerate(lowered.rank_classes)]
        self._working = [r for r in self.ranks if r.core.units]
        self._members: dict[str, int] = defaultdict(int)
        for rank in self.ranks:
            for u in rank.core.units:
                if u.kind is UnitKind.COLLECTIVE:
                    self._members[u.op.name] += 1
        self._meetings: dict[tuple[int, str], _Meeting] = defaultdict(_Meeting)
        self._collective_sim = CollectiveSim(self.clock, self.fabric, self._stepped)
        self._stepped_by: dict[tuple[int, int, str], simpy.Event] = {}

    @property
    def events(self) -> int:
        """Events of the clock so far."""
        return self.clock.events

    def run(self, until: Callable[[list[tuple[float, ...]]], bool]) -> None:
        """Run until `until` is satisfied; it gets each class's iteration ends, cut to the shortest.

        Raises `RunError` that says what waits for what, and what happened last, if nothing can happen any more.
        """
        self._until = until
        for rank in self.ranks:
            if rank.core.units:
                self._follow(rank, rank.core.begin(0.0))
            else:
                rank.ends = [0.0]
        if not self.clock.run():
            raise RunError(stuck([rank.core for rank in self.ranks]))

    # ---- one rank ------------------------------------------------------------------------------------------------

    def _rank(self, a: int, rank_class: RankClass, issue: Issue) -> _Rank:
        env, units = self.clock.env, rank_class.program.units
        core = Progress(rank_class.program, rank_class.messages_of, issue=issue)
        queues: dict[str | Ranks, _Turns] = {}
        turns: dict[int, _Turns] = {}
        rank = _Rank(a, rank_class, core, wakeup_needs(rank_class.program, self.lowered.wakeup_latency_s), turns)
        for u in units:
            if isinstance(u.op, Transfer):
                continue
            computes = isinstance(u.op, Compute)
            name = u.op.lane if isinstance(u.op, Compute) else u.peers
            if name not in queues:
                queues[name] = _Turns(env)
                env.process(self._lane(rank, queues[name]) if computes else self._group(rank, queues[name]))
            turns[u.index] = queues[name]
        if core.one_by_one or any(cost > 0 for cost in rank_class.post_s.values()):
            rank.posts = True
            env.process(self._poster(rank))
        return rank

    def _follow(self, rank: _Rank, out: Instructions) -> None:
        """Do what the rules say after an event at a rank; what follows at once is done in a loop, not nested."""
        self._instructions.append((rank, out))
        if len(self._instructions) > 1:
            return
        while self._instructions and not self.clock.stopped:
            self._obey(*self._instructions[0])
            self._instructions.popleft()

    def _obey(self, rank: _Rank, out: Instructions) -> None:
        for i in out.ended:
            rank.ends.append(self.clock.now)
            self._finished[i] += 1
            if self._finished[i] == len(self._working) and self._until([tuple(r.ends[: i + 1]) for r in self._working]):
                self.clock.stop()
                return
        for key in out.start:
            rank.turns[key[1]].put(key)
        for i, units in out.issue:
            self.clock.env.process(self._issue(rank, i, units))
        if rank.core.issue is not Issue.IN_ORDER:
            for i in out.opened:
                self.fabric.open(rank.index, i)
        if rank.core:
            if not rank.posts:  # nothing to choose among, and it takes no time
                while (sent := rank.core.next_post()) is not None:
                    self.fabric.post(rank.index, *sent)
            elif rank.poster is not None:
                self.clock.quiet(rank.poster)
                rank.poster = None

    def _complete(self, rank: _Rank, key: Key) -> None:
        self._follow(rank, rank.core.complete(key, self.clock.now))

    # ---- processes -----------------------------------------------------------------------------------------------

    def _lane(self, rank: _Rank, turns: _Turns) -> Steps:
        """A lane: carries out computations one after the other."""
        while True:
            i, u = yield from turns.next()
            if u in rank.wakeup_needs:
                yield from self._wake_up(rank, i, u)
            start_s = self.clock.now
            activity = rank.rank_class.activities[u]
            if self.variation is not None:
                drawn = (rank.rank_class.rank, i)
                if drawn not in self._factor:
                    self._factor[drawn] = self.variation.factor(*drawn)
                activity = replace(activity, work=activity.work * self._factor[drawn])
            yield self._run((rank.index, u), i, activity)
            self._span(rank, i, u, start_s, "", 0)
            self._complete(rank, (i, u))

    def _wake_up(self, rank: _Rank, i: int, u: int) -> Steps:
        """A lane that waited for what others did goes on a while after that."""
        core, others = rank.core, rank.wakeup_needs[u]
        met = [core.done_s((i, v)) for v in others.needs]
        if others.needs_previous:
            met.append(core.opened_s(i))
            if i > 0:
                met += [core.done_s((i - 1, v)) for v in others.needs_previous]
        yield from self._delay(max(met) + self.lowered.wakeup_latency_s - self.clock.now)

    def _group(self, rank: _Rank, turns: _Turns) -> Steps:
        """The collectives of a group: one after the other, each from a staged device and back to it."""
        while True:
            i, u = yield from turns.next()
            yield from self._delay(rank.rank_class.post_s[u])
            copies = rank.rank_class.copies.get(u)
            if copies is not None:
                yield from self._copy(copies.out, i)
            start_s = yield self._join(rank, i, u)
            if copies is not None:
                yield from self._copy(copies.into, i)
            self._span(rank, i, u, start_s, "", rank.rank_class.traffic[u][0])
            self._complete(rank, (i, u))

    def _poster(self, rank: _Rank) -> Steps:
        """Posts sends one after the other, each chosen among all that may be posted at the end of the instant."""
        while True:
            event = self.clock.env.event()
            if rank.core:
                self.clock.quiet(event)
            else:
                rank.poster = event
            yield event
            if (key := rank.core.next_post()) is not None:
                yield from self._delay(rank.rank_class.post_s[key[1]])
                self.fabric.post(rank.index, *key)

    def _issue(self, rank: _Rank, i: int, units: tuple[int, ...]) -> Steps:
        """Post the messages of one op together, as an in-order channel does."""
        sends = [u for u in units if rank.core.units[u].kind is UnitKind.SEND]
        for u in units:
            if u not in sends:
                self.fabric.accept(rank.index, i, u)
        for u in sends:
            yield from self._delay(rank.rank_class.post_s[u])
            self.fabric.post(rank.index, i, u)

    def _delay(self, seconds: float) -> Steps:
        if seconds > 0:
            yield self.clock.env.timeout(seconds)

    def _run(self, key: tuple[str | int, ...], i: int, activity: Activity) -> simpy.Event:
        """Begin an activity; the event is its end."""
        done = self.clock.env.event()
        self.fabric.begin(key, i, activity, done.succeed)
        return done

    def _copy(self, activity: Activity | None, i: int) -> Steps:
        if activity is not None:
            yield from self._delay(activity.delay_s)
            yield self._run((), i, activity)

    # ---- messages ------------------------------------------------------------------------------------------------

    def sent(self, a: int, i: int, u: int, start_s: float) -> None:
        """See `Listener.sent`."""
        rank = self.ranks[a]
        self._span(rank, i, u, start_s, "sent", rank.rank_class.traffic[u][0])
        self._complete(rank, (i, u))

    def arrived(self, a: int, i: int, u: int, start_s: float) -> None:
        """See `Listener.arrived`."""
        rank = self.ranks[a]
        self._span(rank, i, u, start_s, "recv", rank.rank_class.traffic[u][1])
        self._follow(rank, rank.core.arrived((i, u), self.clock.now))

    # ---- collectives ---------------------------------------------------------------------------------------------

    def _join(self, rank: _Rank, i: int, u: int) -> simpy.Event:
        """Take part in a collective; the event is its end at this rank, and its value when it began."""
        name, done = rank.core.units[u].op.name, self.clock.env.event()
        collective = self.lowered.collectives[name]
        if collective.program is not None:
            self._stepped_by[rank.index, i, name] = done
            self._collective_sim.join(rank.index, i, name, collective.program)
            return done
        meeting = self._meetings[i, name]
        meeting.waiting.append(done)
        if len(meeting.waiting) == self._members[name]:
            self.clock.env.process(self._collective(i, name, collective.activity))
        return done

    def _collective(self, i: int, name: str, activity: Activity) -> Steps:
        """A collective that all members have joined, as one activity."""
        start_s = self.clock.now
        yield from self._delay(activity.delay_s)
        yield self._run((name,), i, activity)
        for member in self._meetings.pop((i, name)).waiting:
            member.succeed(start_s)

    def _stepped(self, a: int, i: int, name: str, start_s: float) -> None:
        """Class `a` is through with the steps of a collective."""
        self._stepped_by.pop((a, i, name)).succeed(start_s)

    # ---- records -------------------------------------------------------------------------------------------------

    def _span(self, rank: _Rank, i: int, u: int, start_s: float, side: str, nbytes: int) -> None:
        self._log.append((rank, i, u, start_s, side, nbytes, self.clock.now))

    @property
    def spans(self) -> list[Span]:
        """The spans of everything that has been carried out, in the order of their ends."""
        return [
            Span(
                op=(op := rank.core.units[u].op).name,
                rank=rank.rank_class.rank,
                iteration=i,
                lane=_lane_of(op),
                side=side,
                start_s=start_s,
                end_s=end_s,
                nbytes=nbytes,
            )
            for rank, i, u, start_s, side, nbytes, end_s in self._log
        ]


def _lane_of(op: Compute | Transfer | Collective) -> str:
    match op:
        case Compute():
            return op.lane
        case Transfer():
            return op.channel
        case Collective():
            return op.ranks
