"""Collects nodes and arrows from the programs of all ranks, one after the other; `graph.py` says which there are."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from stanza_sim.schedule import Collective, Compute, Ranks, Schedule, Transfer, Unit, UnitKind
from stanza_sim.schedule.progress import Issue
from stanza_sim.schedule.progress_tables import posting_order
from stanza_sim.simulate.compiled.advance import Kind
from stanza_sim.simulate.compiled.arrays import F64, I32, I64
from stanza_sim.simulate.lowered import Activity, RankClass
from stanza_sim.simulate.lowering.arrays import ArrayLowered
from stanza_sim.simulate.plain.wakeup import wakeup_needs


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """The span that a node ends: (rank, unit) of all that it is a span of, and its side."""

    units: tuple[tuple[int, int], ...]
    side: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Posts:
    """Sends and collectives, numbered in order of rank: number p is ready at node `ready + p`, posted at `posted + p`.

    Rank r has those from `ptr[r]` on; p is unit `unit[p]` and has `priority[p]`. At most `credit[p]` of queue
    `queue[p]` are under way, without limit if that is 0.
    """

    ready: int
    posted: int
    ptr: I64
    unit: I32
    queue: I32
    priority: I64
    credit: I64


@dataclass(frozen=True, slots=True, kw_only=True)
class Computations:
    """Computations in order of rank: c is node `node[c]`, of `work[c]` seconds; rank r has those from `ptr[r]` on."""

    ptr: I64
    node: I32
    work: F64


class Builder:
    """Collects nodes and arrows. Messages come first, then what is posted, what is ready, and openings."""

    def __init__(self, schedule: Schedule, lowered: ArrayLowered, issue: Issue) -> None:
        self.s, self.lowered, self.in_order = schedule, lowered, issue is Issue.IN_ORDER
        self.world, m = len(lowered.rank_classes), len(lowered.messages)
        self.posts = [
            (a, u)
            for a, rank_class in enumerate(lowered.rank_classes)
            for u in rank_class.program.units
            if u.kind in (UnitKind.SEND, UnitKind.COLLECTIVE)
        ]
        self.number = {(a, u.index): p for p, (a, u) in enumerate(self.posts)}
        self.posted = m
        self.ready = self.posted + len(self.posts)
        self.opening = self.ready + len(self.posts)
        self.size = self.opening + self.world
        self.inside: list[tuple[int, int]] = []  # arrows of one iteration
        self.across: list[tuple[int, int]] = []  # arrows to the next
        self.kind: dict[int, Kind] = {}
        self.rank: dict[int, int] = {}
        self.delay: dict[int, float] = {}
        self.endings: dict[int, Ending] = {}
        self.flows: dict[int, Activity] = {}
        self.computes: list[tuple[int, int, float]] = []  # rank, node, work
        self.op = {name: k for k, name in enumerate(lowered.op_names)}
        self.sends: dict[tuple[int, int], tuple[int, int]] = {}  # (op, rank) -> posted, sent
        self.arrivals: dict[tuple[int, int], int] = {}  # (op, rank) -> arrived
        self.accepts: dict[tuple[int, int], int] = {}  # (op, rank) -> what posts the receive, if not the opening
        self.collected: dict[tuple[str, int], int] = {}  # (op, rank) -> through
        self.paid_by: dict[int, int] = {}  # the node at which all is sent -> post

    # ---- nodes -----------------------------------------------------------------------------------------------

    def node(self) -> int:
        """A new node."""
        self.size += 1
        return self.size - 1

    def span(self, units: tuple[tuple[int, int], ...], side: str = "") -> int:
        """A new node that ends a span."""
        node = self.node()
        self.kind[node], self.rank[node] = Kind.SPAN, units[0][0]
        self.endings[node] = Ending(units=units, side=side)
        return node

    def in_turn(self, members: list[tuple[int, int]]) -> None:
        """Let (first, last node) of `members` follow each other, and the first of them the last before."""
        for (_, last), (first, _) in pairwise(members):
            self.inside.append((last, first))
        self.across.append((members[-1][1], members[0][0]))

    # ---- collectives and units -------------------------------------------------------------------------------

    def collectives(self) -> None:
        """Make all collectives, one activity each."""
        members: dict[str, list[tuple[int, int]]] = {}
        for a, u in self.posts:
            if u.kind is UnitKind.COLLECTIVE:
                members.setdefault(u.op.name, []).append((a, u.index))
        for op in self.s.ops:
            if isinstance(op, Collective):
                flow = self.node()
                self.flows[flow] = self.lowered.collectives[op.name].activity
                together: list[tuple[int, int]] = []  # those that are through at once
                for unit in members[op.name]:
                    copies = self.lowered.rank_classes[unit[0]].copies.get(unit[1])
                    posted = self.posted + self.number[unit]
                    self.inside.append((self.copied(posted, None if copies is None else copies.out), flow))
                    if copies is None or copies.into is None:
                        together.append(unit)
                    else:
                        through = self.collected[op.name, unit[0]] = self.span((unit,))
                        self.inside += [(flow, through), (self.copied(flow, copies.into), through)]
                if together:
                    through = self.span(tuple(together))
                    self.inside.append((flow, through))
                    self.collected |= {(op.name, a): through for a, _ in together}

    def copied(self, before: int, activity: Activity | None) -> int:
        """Return the node of a copy that comes after `before`, or `before` if there is none."""
        if activity is None:
            return before
        copy = self.node()
        self.flows[copy] = activity
        self.inside.append((before, copy))
        return copy

    def rank_class(self, a: int) -> None:
        """Make the units of rank `a` and what orders them."""
        rank_class = self.lowered.rank_classes[a]
        units = rank_class.program.units
        if not units:
            return
        # Else all that is ready is posted at once.
        chosen = any(cost > 0 for cost in rank_class.post_s.values()) or any(self.credit(rank_class, u) for u in units)
        chosen = chosen and not self.in_order
        ends = [self.unit(a, rank_class, u, chosen=chosen) for u in units]
        if self.in_order:
            self.issue_in_order(a, rank_class)
        else:
            self.posting_order(a, rank_class, chosen=chosen)
        wakeup = wakeup_needs(rank_class.program, self.lowered.wakeup_latency_s)
        lanes: dict[str | Ranks, list[tuple[int, int]]] = {}
        end = self.node()
        self.kind[end], self.rank[end] = Kind.END, a
        self.across.append((end, end))
        for u, (first, last) in zip(units, ends, strict=True):
            self.inside.append((last, end))
            if u.kind is UnitKind.COMPUTE and isinstance(u.op, Compute):
                lanes.setdefault(u.op.lane, []).append((first, last))
            elif u.kind is UnitKind.COLLECTIVE:
                lanes.setdefault(u.peers, []).append((self.posted + self.number[a, u.index], last))
            if first < 0:
                continue
            needs, needs_previous = u.needs, u.needs_previous
            if (others := wakeup.get(u.index)) is not None:  # what it needs of its own lane comes before it anyway
                needs, needs_previous = others.needs, others.needs_previous
                woken = self.node()
                self.delay[woken] = self.lowered.wakeup_latency_s
                self.inside.append((woken, first))
                first = woken
            self.inside.extend((ends[v][1], first) for v in needs)
            if needs_previous:
                gate = self.node()
                self.across.extend((ends[v][1], gate) for v in needs_previous)
                self.inside += [(self.opening + a, gate), (gate, first)]
            elif not needs:
                self.inside.append((self.opening + a, first))
        for lane in lanes.values():
            self.in_turn(lane)

    def posting_order(self, a: int, rank_class: RankClass, *, chosen: bool) -> None:
        """Let sends wait for those that must be posted before them."""
        sends = [
            u for u in rank_class.program.units if rank_class.sends.get(u.index) and not self.credit(rank_class, u)
        ]
        waits = self.ready if chosen else self.posted
        for followers, arrows in zip(posting_order(sends), (self.inside, self.across), strict=True):
            for before, after in followers.items():
                posted = self.posted + self.number[a, before]
                arrows.extend((posted, waits + self.number[a, v]) for v in after)

    def issue_in_order(self, a: int, rank_class: RankClass) -> None:
        """Let rank `a` walk the ops of each channel: it posts the messages of an op together, and waits for them."""
        there = rank_class.messages_of
        channels: dict[str, list[list[Unit]]] = {}
        for u in rank_class.program.units:
            if isinstance(u.op, Transfer) and there[u.index]:
                ops = channels.setdefault(u.op.channel, [])
                if ops and ops[-1][0].op is u.op:
                    ops[-1].append(u)
                else:
                    ops.append([u])
        for ops in channels.values():
            self.in_turn([self.issue(a, rank_class, units) for units in ops])

    def issue(self, a: int, rank_class: RankClass, units: list[Unit]) -> tuple[int, int]:
        """Post the messages of one op at rank `a`; return the node that does, and the one that ends when all are."""
        issue, through = self.node(), self.node()
        self.inside.append((self.opening + a, issue))
        last = issue
        for u in units:
            key = self.op[u.op.name], a
            if u.kind is UnitKind.RECV:
                self.accepts[key] = issue
                self.inside.append((self.arrivals[key], through))
            else:
                p = self.number[a, u.index]
                posted, sent = self.sends[key]
                self.inside += [(self.ready + p, issue), (last, posted), (sent, through)]
                self.delay[posted] = rank_class.post_s[u.index]
                last = posted
        return issue, through

    def credit(self, rank_class: RankClass, u: Unit) -> int:
        """As `_credit`; a channel that goes in order has no use for it."""
        return 0 if self.in_order else _credit(rank_class, u)

    def unit(self, a: int, rank_class: RankClass, u: Unit, *, chosen: bool) -> tuple[int, int]:
        """Make a unit; return the node that waits for what it needs (-1 if none does), and its last.

        `chosen`: what the rank posts next is chosen among the sends that are ready.
        """
        match u.kind:
            case UnitKind.COMPUTE:
                flow, through = self.node(), self.span(((a, u.index),))
                self.flows[flow] = rank_class.activities[u.index]
                self.computes.append((a, flow, rank_class.activities[u.index].work))
                self.inside.append((flow, through))
                return flow, through
            case UnitKind.SEND | UnitKind.COLLECTIVE:
                p = self.number[a, u.index]
                ready, posted = self.ready + p, self.posted + p
                if u.kind is UnitKind.COLLECTIVE:
                    self.inside.append((ready, posted))
                    self.delay[posted] = rank_class.post_s[u.index]
                    return ready, self.collected[u.op.name, a]
                if not rank_class.sends[u.index]:
                    return ready, ready
                if chosen:
                    self.rank[ready] = self.rank[posted] = a
                    self.kind[ready], self.kind[posted] = Kind.READY, Kind.POSTED
                    self.delay[posted] = rank_class.post_s[u.index]
                elif not self.in_order:
                    self.inside.append((ready, posted))
                sent = self.span(((a, u.index),), "sent")
                self.sends[self.op[u.op.name], a] = posted, sent
                if self.credit(rank_class, u):
                    self.paid_by[sent] = p
                return ready, sent
            case UnitKind.RECV:
                if not rank_class.arrivals[u.index]:
                    through = self.node()
                    return through, through
                arrived = self.span(((a, u.index),), "recv")
                self.arrivals[self.op[u.op.name], a] = arrived
                if not u.needs and not u.needs_previous:
                    return -1, arrived
                through = self.node()
                self.inside.append((arrived, through))
                return through, through

    # ---- by rank ---------------------------------------------------------------------------------------------

    def numbered_posts(self) -> Posts:
        """All that is posted."""
        queues: dict[tuple[int, str, Ranks], int] = {}
        queue = [queues.setdefault((a, *_line(u)), len(queues)) for a, u in self.posts]
        return Posts(
            ready=self.ready,
            posted=self.posted,
            ptr=np.searchsorted([a for a, _ in self.posts], np.arange(self.world + 1)),
            unit=np.array([u.index for _, u in self.posts], dtype=np.int32),
            queue=np.array(queue, dtype=np.int32),
            priority=np.array([_priority(u) for _, u in self.posts], dtype=np.int64),
            credit=np.array([self.credit(self.lowered.rank_classes[a], u) for a, u in self.posts], dtype=np.int64),
        )

    def computations(self) -> Computations:
        """All computations."""
        return Computations(
            ptr=np.searchsorted([a for a, _, _ in self.computes], np.arange(self.world + 1)),
            node=np.array([node for _, node, _ in self.computes], dtype=np.int32),
            work=np.array([seconds for _, _, seconds in self.computes], dtype=np.float64),
        )


def _credit(rank_class: RankClass, u: Unit) -> int:
    """How many sends of the queue of `u` may be under way, if `u` sends any message and that is limited; else 0."""
    return u.op.credit if isinstance(u.op, Transfer) and rank_class.sends.get(u.index) else 0


def _priority(u: Unit) -> int:
    return u.op.priority if isinstance(u.op, Transfer) else 0


def _line(u: Unit) -> tuple[str, Ranks]:
    """Sends of one rank that share the credit of a channel."""
    return (u.op.channel if isinstance(u.op, Transfer) else ""), u.peers
