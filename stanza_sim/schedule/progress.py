"""The rules by which a rank makes progress, written once: events in, instructions out. No clock, no thread, no network.

The executor and the plain simulator both drive `Progress`; the compiled simulator states the same rules as a graph and
is held to this one by tests. `docs/explanation/semantics.md` has the rules in words:

- *Window.* Iteration i opens once iteration i - `WINDOW` is complete at this rank; nothing of it starts before.
- *Needs.* A unit may start when its iteration is open and everything that it needs is complete.
- *Lanes.* Computations of a lane and collectives of a group start in program order, one at a time.
- *Posting.* A send may be posted once every earlier send of its channel to any of the same destinations has been
  posted, in earlier iterations too. Of those that may be, the lowest priority goes first, then the earliest iteration,
  then program order. All messages of a send are one posting: they start together when all have been posted.
- *Credit.* In a channel with credit, at most that many ops are under way to the same destinations; of those that are
  ready the lowest priority goes next, whatever the program order.
- *In order* (`Issue.IN_ORDER`). A rank walks the ops of each channel in program order: it posts its
  sends and receives of an op together, and goes on when these are complete.

What is in which lane, and what is posted after what, is worked out once, in `schedule.progress_tables`. A key is
(iteration, index of the unit in the program).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from heapq import heappop, heappush

from stanza_sim.base.errors import RunError
from stanza_sim.schedule.ops import Transfer
from stanza_sim.schedule.program import RankProgram, Unit, UnitKind
from stanza_sim.schedule.progress_tables import (
    Lane,
    Line,
    behind_of,
    lanes_of,
    lines_of,
    needed_by,
    needed_of,
    posting_order,
    sends_of,
)
from stanza_sim.schedule.progress_words import label, waiting_lines

Key = tuple[int, int]

WINDOW = 2
"""Iterations under way at one rank at once: buffers come in two generations, so work of iteration i, the posting of its
receives included, would overwrite what iteration i - 2 still uses."""
REMEMBERED = 5
"""Events that are told of a rank that cannot go on."""


class Issue(StrEnum):
    """How messages are issued.

    `EAGER`: receives ahead of need, sends as soon as they may be posted. `IN_ORDER`: op by op for each channel, a
    rank's sends and receives of one op together, as a program does that knows no more than a communicator's order.
    `AUTO` is eager, with every backend.
    """

    AUTO = "auto"
    EAGER = "eager"
    IN_ORDER = "in_order"


@dataclass(slots=True, kw_only=True)
class Instructions:
    """What follows from an event.

    `start`: computations and collectives to be carried out now. `issue` (in order only): units of one op whose messages
    are to be posted together now, as (iteration, units). `ended`: iterations that are complete at this rank. `opened`:
    iterations whose receives are to be posted now (when issued eagerly). Sends are asked for with `next_post`.
    """

    start: list[Key] = field(default_factory=list)
    issue: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)
    opened: list[int] = field(default_factory=list)


NOTHING = Instructions()
"""Nothing follows. Never changed."""


class Progress:
    """One rank's progress through `iterations` iterations (without end if None) of its program.

    `messages[u]` is the number of messages that unit u sends to or awaits from other ranks. A receive is complete once
    its messages have arrived and its needs (of a value handed over in memory) are met; a send without messages as soon
    as its needs are met. Everything else is complete when `complete` says so.

    Whoever tells of an event says when that was; these instants are compared, and told in a `story`, and nothing else.
    """

    def __init__(
        self,
        program: RankProgram,
        messages: Mapping[int, int],
        *,
        iterations: int | None = None,
        issue: Issue = Issue.EAGER,
    ) -> None:
        self.program, self.iterations, self.issue = program, iterations, issue
        self.units: tuple[Unit, ...] = program.units
        self._messages = [messages.get(u.index, 0) for u in self.units]
        self._next, self._next_iteration = needed_by(self.units)
        self._needed = needed_of(self.units, self._messages)
        in_order = issue is Issue.IN_ORDER
        self._lanes = lanes_of(self.units, self._messages, in_order=in_order)
        self._lane_of = {u: lane for lane in self._lanes for place in lane.places for u in place}
        sends = [] if in_order else sends_of(self.units, self._messages)
        self._lines, self._line_of = lines_of(sends)
        self._followers, self._followers_next = posting_order([u for u, op in sends if not op.credit])
        self._behind = behind_of(len(self.units), self._followers, self._followers_next)
        self._missing: dict[int, list[int]] = {}  # iteration -> per unit, what it waits for
        self._unposted: dict[int, list[int]] = {}  # iteration -> per send, earlier ones that are to be posted before it
        self._incomplete: dict[int, set[int]] = {}
        self._met_s: dict[int, list[float]] = {}
        self._done_s: dict[int, list[float]] = {}
        self._opened_s: dict[int, float] = {}
        self._ready: set[Key] = set()  # may start, but for its turn
        self._postable: list[tuple[int, int, int]] = []  # heap of (priority, iteration, unit)
        self._completions: deque[tuple[Key, float]] = deque()
        self._past: deque[tuple[str, Key, float]] = deque(maxlen=REMEMBERED)
        self.opened = 0
        """Iterations that have been opened."""
        self.ended = 0
        """Iterations that are complete."""
        self.completed = 0
        """Units that are complete, over all iterations."""

    # ---- events ------------------------------------------------------------------------------------------------------

    def begin(self, at_s: float = 0.0) -> Instructions:
        """Open the first iterations."""
        out = Instructions()
        if self.units:
            for _ in range(WINDOW if self.iterations is None else min(WINDOW, self.iterations)):
                self._open(out, at_s)
            self._work_off(out)
        return out

    def complete(self, key: Key, at_s: float = 0.0) -> Instructions:
        """`key` has been carried out: a computation, a collective, or a send all of whose messages have left.

        Raises `RunError`, with what happened before, if it was not under way.
        """
        out = Instructions()
        if self.units[key[1]].kind is UnitKind.RECV or self._missing.get(key[0], _NONE)[key[1]] != 0:
            raise RunError(f"{self.name(key)} was completed before it was started; {self._last()}")
        self._past.append(("completed", key, at_s))
        lane = self._lane_of.get(key[1])
        if lane is not None:
            self._through(lane)
        elif (line := self._line_of.get(key[1])) is not None:
            line.under_way -= 1
            self._offer(line)
        self._completions.append((key, at_s))
        self._work_off(out)
        if lane is not None:
            self._next_of(lane, out)
        return out

    def arrived(self, key: Key, at_s: float = 0.0) -> Instructions:
        """One of the messages that `key` awaits has arrived."""
        lane = self._lane_of.get(key[1])
        counts = self._missing.get(key[0], _NONE)
        if lane is None and counts[key[1]] > 1:  # others are missing still
            counts[key[1]] -= 1
            met = self._met_s[key[0]]
            met[key[1]] = max(met[key[1]], at_s)
            return NOTHING
        out = Instructions()
        if counts[key[1]] <= 0:
            raise RunError(f"a message of {self.name(key)} arrived that is not awaited; {self._last()}")
        self._past.append(("arrived", key, at_s))
        if lane is not None:
            self._through(lane)
        self._less(*key, at_s, out)
        self._work_off(out)
        if lane is not None:
            self._next_of(lane, out)
        return out

    def next_post(self) -> Key | None:
        """The send to post now, of which the caller posts all messages; None if none may be posted."""
        while self._postable:
            entry = heappop(self._postable)
            key = entry[1:]
            if (line := self._line_of.get(key[1])) is not None:
                if not line.has_credit or not line.waiting or line.waiting[0] != entry:
                    continue  # offered again when there is credit, or when it is the first
                heappop(line.waiting)
                line.under_way += 1
                self._offer(line)
            for v in self._followers.get(key[1], ()):
                self._posted_before((key[0], v))
            if self.iterations is None or key[0] + 1 < self.iterations:
                for v in self._followers_next.get(key[1], ()):
                    self._posted_before((key[0] + 1, v))
            return key
        return None

    # ---- what is known -----------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """How many sends may be posted now."""
        if not self._lines:
            return len(self._postable)
        free = {e for e in self._postable if e[2] not in self._line_of}
        return len(free) + sum(line.may_go for line in self._lines)

    def __bool__(self) -> bool:
        """Whether any send may be posted now."""
        return bool(self._postable) and (not self._lines or len(self) > 0)

    @property
    def finished(self) -> bool:
        """Whether every iteration has ended."""
        return not self.units or self.ended == self.iterations

    @property
    def one_by_one(self) -> bool:
        """Whether sends must be chosen among even if posting takes no time."""
        return bool(self._lines)

    def met_s(self, key: Key) -> float:
        """The latest of the instants at which the needs of `key`, which may start, were met."""
        return self._met_s[key[0]][key[1]]

    def done_s(self, key: Key) -> float:
        """When `key`, of an iteration under way or the last that ended, was completed."""
        return self._done_s[key[0]][key[1]]

    def opened_s(self, iteration: int) -> float:
        """When an iteration that is under way opened."""
        return self._opened_s[iteration]

    def name(self, key: Key) -> str:
        """A unit in words, as in `push.fc1.recv of iteration 3`."""
        return f"{label(self.units[key[1]])} of iteration {key[0]}"

    def waiting(self, most: int = 6) -> list[str]:
        """In words, what is incomplete in the oldest iteration under way, and what each unit waits for."""
        if self.ended not in self._incomplete:
            return []
        left, before = self._incomplete[self.ended], self._incomplete.get(self.ended - 1, set())
        lines = waiting_lines(self.units, self._messages, self.ended, left, before)
        return lines[:most] + ([f"and {len(lines) - most} more"] if len(lines) > most else [])

    def story(self) -> str:
        """Why this rank does not go on, in one line: what waits for what, and what happened last; empty if finished."""
        lines = self.waiting()
        return f"rank {self.program.rank}, {'; '.join(lines)}; {self._last()}" if lines else ""

    def _last(self) -> str:
        told = [f"{self.name(key)} {what} at {at_s:.6g} s" for what, key, at_s in self._past]
        return "last: " + ", ".join(told) if told else "nothing has happened yet"

    # ---- counting ----------------------------------------------------------------------------------------------------

    def _counts(self, iteration: int) -> list[int]:
        counts = self._missing.get(iteration)
        if counts is None:
            later = iteration > 0
            counts = self._missing[iteration] = list(self._needed[later])
            self._unposted[iteration] = list(self._behind[later])
            self._incomplete[iteration] = set(range(len(counts)))
            self._met_s[iteration] = [0.0] * len(counts)
            self._done_s[iteration] = [0.0] * len(counts)
        return counts

    def _open(self, out: Instructions, at_s: float) -> None:
        i = self.opened
        self.opened += 1
        self._opened_s[i] = at_s
        out.opened.append(i)
        for index in range(len(self.units)):
            self._less(i, index, at_s, out)
        if self.issue is Issue.IN_ORDER:
            for lane in self._lanes:
                if lane.in_order:
                    self._next_of(lane, out)

    def _less(self, i: int, index: int, at_s: float, out: Instructions) -> None:
        """One thing less is missing."""
        counts = self._missing.get(i) or self._counts(i)
        counts[index] -= 1
        met = self._met_s[i]
        if at_s > met[index]:
            met[index] = at_s
        if counts[index]:
            return
        key = i, index
        kind = self.units[index].kind
        if kind is UnitKind.RECV or (kind is UnitKind.SEND and not self._messages[index]):
            self._completions.append((key, met[index]))
        elif (lane := self._lane_of.get(index)) is not None:
            self._ready.add(key)
            self._next_of(lane, out)
        elif (line := self._line_of.get(index)) is not None:
            heappush(line.waiting, (self._priority(index), *key))
            self._offer(line)
        elif self._unposted[i][index]:
            self._ready.add(key)
        else:
            heappush(self._postable, (self._priority(index), *key))

    def _work_off(self, out: Instructions) -> None:
        """Draw the conclusions of completions, one after the other: a completion may complete others."""
        while self._completions:
            (i, index), at_s = self._completions.popleft()
            self.completed += 1
            left = self._incomplete[i]
            left.discard(index)
            self._done_s[i][index] = at_s
            for j in self._next[index]:
                self._less(i, j, at_s, out)
            if self.iterations is None or i + 1 < self.iterations:
                for j in self._next_iteration[index]:
                    self._less(i + 1, j, at_s, out)
            if left or i != self.ended:
                continue
            while self.ended in self._incomplete and not self._incomplete[self.ended]:
                done = self.ended
                del self._missing[done], self._unposted[done], self._incomplete[done], self._met_s[done]
                self._done_s.pop(done - 1, None)
                self._opened_s.pop(done - 1, None)
                self.ended += 1
                out.ended.append(done)
                if self.iterations is None or self.opened < self.iterations:
                    self._open(out, at_s)

    # ---- turns -------------------------------------------------------------------------------------------------------

    def _next_of(self, lane: Lane, out: Instructions) -> None:
        """Start what is next in a lane if it is idle and that is ready."""
        if lane.busy:
            return
        i, place = lane.iteration, lane.places[lane.position]
        if not lane.in_order:
            if (key := (i, place[0])) not in self._ready:
                return
            self._ready.discard(key)
            out.start.append(key)
        else:
            sends = [(i, u) for u in place if self.units[u].kind is UnitKind.SEND]
            if i >= self.opened or not self._ready.issuperset(sends):
                return
            self._ready.difference_update(sends)
            lane.left = sum(1 if self.units[u].kind is UnitKind.SEND else self._messages[u] for u in place)
            out.issue.append((i, place))
        lane.busy = True
        lane.position += 1
        if lane.position == len(lane.places):
            lane.iteration, lane.position = i + 1, 0

    def _through(self, lane: Lane) -> None:
        """The unit that a lane was at is complete, or a part of the op that an in-order channel was at."""
        if lane.in_order:
            lane.left -= 1
        lane.busy = lane.left > 0

    def _offer(self, line: Line) -> None:
        """Let the first send of a line be posted, if there is credit."""
        if line.may_go > 0:
            heappush(self._postable, line.waiting[0])

    def _posted_before(self, key: Key) -> None:
        """A send that goes before `key` has been posted."""
        self._counts(key[0])
        behind = self._unposted[key[0]]
        behind[key[1]] -= 1
        if not behind[key[1]] and key in self._ready:
            self._ready.discard(key)
            heappush(self._postable, (self._priority(key[1]), *key))

    def _priority(self, index: int) -> int:
        op = self.units[index].op
        return op.priority if isinstance(op, Transfer) else 0


class _None(list[int]):
    """Counts of an iteration of which nothing is known: nothing is under way."""

    def __getitem__(self, _: object) -> int:  # type: ignore[override]
        return -1


_NONE = _None()


def stuck(cores: Iterable[Progress]) -> str:
    """What to say when nothing can happen any more: of each rank what waits for what, and what happened last."""
    stories = [story for core in cores if (story := core.story())]
    return "\n  ".join(["the simulation cannot go on: no op can start", *stories])
