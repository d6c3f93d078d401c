"""The rules of progress written a second time, slowly and plainly: from all that has happened to all that may happen.

`Rules` looks at the whole history each time and shares no code with `stanza_sim.schedule.progress`, which counts. What
a driver of the rules did is a `Log`, that `Recorder` keeps and `check_log` holds against them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from stanza_sim.schedule import Collective, Compute, Phase, RankProgram, Transfer, Unit, UnitKind, ValueKind
from stanza_sim.schedule.progress import Instructions, Issue, Key, Progress

Entry = tuple[str, Key, tuple[object, ...]]
"""An event or `post`, the unit, and what followed: starts, issues, iterations ended and opened, each sorted."""


class Rules:
    """What the semantics allow a rank, given what has been carried out."""

    def __init__(self, program: RankProgram, messages: Mapping[int, int], iterations: int | None, issue: Issue) -> None:
        self.units, self.messages, self.iterations, self.issue = program.units, messages, iterations, issue
        self.done: set[Key] = set()
        self.arrivals: dict[Key, int] = {}
        self.started: list[Key] = []
        self.posted: list[Key] = []
        self.issued: list[tuple[int, tuple[int, ...]]] = []

    # ---- what holds ----------------------------------------------------------------------------------------------

    def ended(self, i: int) -> bool:
        """Iterations end in order."""
        return i < 0 or (self.ended(i - 1) and all((i, u.index) in self.done for u in self.units))

    def open(self, i: int) -> bool:
        """A rank works on two iterations at most."""
        return (self.iterations is None or i < self.iterations) and self.ended(i - 2)

    def opened(self) -> int:
        """How many iterations are open or ended."""
        i = 0
        while self.units and self.open(i):
            i += 1
        return i

    def needs(self, unit: Unit) -> Iterator[tuple[int, int]]:
        """(iterations back, unit) that must be complete, the gate of updates among them."""
        yield from ((0, v) for v in unit.needs)
        yield from ((1, v) for v in unit.needs_previous)
        if not (isinstance(unit.op, Compute) and unit.op.phase is Phase.UPDATE):
            return
        name = unit.op.target
        for send in self.units:
            if send.kind is UnitKind.SEND and send.peers and self.moves(send, name, ValueKind.PARAM):
                givers = {
                    p
                    for u in self.units
                    if u.kind is UnitKind.RECV and self.moves(u, name, ValueKind.GRAD, ValueKind.SUM, ValueKind.FACTORS)
                    for p in u.peers
                }
                if not set(send.peers) <= givers:
                    yield (0 if send.index < unit.index else 1, send.index)

    @staticmethod
    def moves(unit: Unit, name: str, *kinds: ValueKind) -> bool:
        return isinstance(unit.op, Transfer) and any(v.kind in kinds and v.name == name for v in unit.op.values)

    def met(self, key: Key) -> bool:
        """Whether all is there that `key` needs."""
        i, u = key
        return self.open(i) and all(back > i or (i - back, v) in self.done for back, v in self.needs(self.units[u]))

    def sends(self, i: int) -> list[Unit]:
        """Sends with messages of iteration i, as long as they may be under way."""
        return [u for u in self.units if u.kind is UnitKind.SEND and self.messages.get(u.index)]

    # ---- what may happen -----------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Complete what completes by itself."""
        more = True
        while more:
            more = False
            for i in range(max(0, self.opened() - 2), self.opened()):
                for u in self.units:
                    key, wanted = (i, u.index), self.messages.get(u.index, 0)
                    by_itself = u.kind is UnitKind.RECV or (u.kind is UnitKind.SEND and not wanted)
                    there = u.kind is not UnitKind.RECV or self.arrivals.get(key, 0) == wanted
                    if key not in self.done and by_itself and there and self.met(key):
                        self.done.add(key)
                        more = True

    def starts(self) -> set[Key]:
        """Computations and collectives that start now."""
        found: set[Key] = set()
        lanes: dict[object, list[int]] = {}
        for u in self.units:
            if not isinstance(u.op, Transfer):
                lanes.setdefault(u.op.lane if isinstance(u.op, Compute) else u.peers, []).append(u.index)
        for lane in lanes.values():
            mine = [k for k in self.started if k[1] in lane]
            if mine and mine[-1] not in self.done:
                continue
            i, place = divmod(len(mine), len(lane))
            if self.met((i, lane[place])):
                found.add((i, lane[place]))
        return found

    def issues(self) -> set[tuple[int, tuple[int, ...]]]:
        """Ops whose messages are posted together now."""
        found: set[tuple[int, tuple[int, ...]]] = set()
        if self.issue is not Issue.IN_ORDER:
            return found
        channels: dict[str, dict[str, tuple[int, ...]]] = {}
        for u in self.units:
            if isinstance(u.op, Transfer) and self.messages.get(u.index):
                ops = channels.setdefault(u.op.channel, {})
                ops[u.op.name] = (*ops.get(u.op.name, ()), u.index)
        for ops in channels.values():
            order = list(ops.values())
            mine = [x for x in self.issued if x[1] in order]
            if mine and not all(self.through((mine[-1][0], u)) for u in mine[-1][1]):
                continue
            i, place = divmod(len(mine), len(order))
            sends = [u for u in order[place] if self.units[u].kind is UnitKind.SEND]
            if self.open(i) and all(self.met((i, u)) for u in sends):
                found.add((i, order[place]))
        return found

    def through(self, key: Key) -> bool:
        """Whether the messages of a unit have moved."""
        if self.units[key[1]].kind is UnitKind.RECV:
            return key in self.done or self.arrivals.get(key, 0) == self.messages[key[1]]
        return key in self.done

    def post(self) -> Key | None:
        """The send that is posted next."""
        if self.issue is Issue.IN_ORDER:
            return None
        window = range(max(0, self.opened() - 2), self.opened())
        unposted = [(i, u) for i in window for u in self.sends(i) if (i, u.index) not in self.posted]
        found: list[tuple[int, int, int]] = []
        for i, u in unposted:
            op = u.op
            assert isinstance(op, Transfer)
            if not self.met((i, u.index)):
                continue
            if op.credit:
                under_way = [
                    k
                    for k in self.posted
                    if k not in self.done
                    and isinstance(other := self.units[k[1]].op, Transfer)
                    and other.channel == op.channel
                    and self.units[k[1]].peers == u.peers
                ]
                if len(under_way) >= op.credit:
                    continue
            elif any(
                (j, v.index) < (i, u.index)
                and isinstance(v.op, Transfer)
                and v.op.channel == op.channel
                and set(v.peers) & set(u.peers)
                for j, v in unposted
            ):
                continue
            found.append((op.priority, i, u.index))
        return min(found)[1:] if found else None


@dataclass(slots=True)
class Log:
    """What a driver of the rules was told and did, in order."""

    program: RankProgram
    messages: Mapping[int, int]
    iterations: int | None
    issue: Issue
    entries: list[Entry] = field(default_factory=list)


class Recorder(Progress):
    """The rules, with a log of all events and what followed."""

    logs: list[Log]

    def __init__(self, program: RankProgram, messages: Mapping[int, int], **settings: object) -> None:
        super().__init__(program, messages, **settings)  # type: ignore[arg-type]
        self.log = Log(program, messages, self.iterations, self.issue)

    def _keep(self, what: str, key: Key, out: Instructions) -> Instructions:
        followed = (tuple(sorted(out.start)), tuple(sorted(out.issue)), tuple(out.ended), tuple(out.opened))
        self.log.entries.append((what, key, followed))
        return out

    def begin(self, at_s: float = 0.0) -> Instructions:
        return self._keep("begin", (0, 0), super().begin(at_s))

    def complete(self, key: Key, at_s: float = 0.0) -> Instructions:
        return self._keep("complete", key, super().complete(key, at_s))

    def arrived(self, key: Key, at_s: float = 0.0) -> Instructions:
        return self._keep("arrived", key, super().arrived(key, at_s))

    def next_post(self) -> Key | None:
        key = super().next_post()
        if key is not None:
            self.log.entries.append(("post", key, ()))
        return key


def check_log(log: Log) -> int:
    """Hold a log against the rules, event by event; returns how many entries it has."""
    rules = Rules(log.program, log.messages, log.iterations, log.issue)
    ended = opened = 0
    for what, key, followed in log.entries:
        where = f"{what} {key} ({log.program.units[key[1]].op.name if log.program.units else ''})"
        match what:
            case "post":
                assert rules.post() == key, where
                rules.posted.append(key)
                continue
            case "arrived":
                rules.arrivals[key] = rules.arrivals.get(key, 0) + 1
            case "complete":
                assert (
                    key in rules.started
                    or key in rules.posted
                    or any(i == key[0] and key[1] in units for i, units in rules.issued)
                ), where
                rules.done.add(key)
        rules.settle()
        starts, issues, have_ended, have_opened = followed
        now_ended = ended
        while rules.units and rules.ended(now_ended):
            now_ended += 1
        assert tuple(range(ended, now_ended)) == have_ended, where
        assert tuple(range(opened, rules.opened())) == have_opened, where
        ended, opened = now_ended, rules.opened()
        assert rules.starts() == set(starts) and rules.issues() == set(issues), where  # type: ignore[arg-type]
        rules.started += starts  # type: ignore[arg-type]
        rules.issued += issues  # type: ignore[arg-type]
    return len(log.entries)


__all__ = ["Collective", "Log", "Recorder", "Rules", "check_log"]
