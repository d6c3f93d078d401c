"""All that the ranks do, as nodes of the compiled kernel: computations, messages, collectives and what waits for what.

Each unit of each rank's program becomes a few nodes, twice: once for even and once for odd iterations, since a rank
works on two at a time. An arrow inside an iteration stays in its generation, one to the next iteration leads to the
other. What depends on how things went (which send a rank posts next, when it may begin an iteration) is no arrow;
`advance.py` does that. With `>` for an arrow:

- computation: the one before in its lane > flow > through
- send: ready > posted > each of its messages > sent; posted > those that must be posted after it > ready
- message: posted by the sender, begun by the receiver, the message before it in its queue > message > sent, arrived
- receive: arrived > through
- collective: ready, the one before in its group at this rank > posted; posted by all members > flow > through
- copy of a staged device: posted > copy out > message or collective; message or collective > copy in > arrived, through
- each unit: what it needs > its first node; what it needs of the iteration before and the beginning of its own > a gate
  > its first node (the gate keeps an arrow from the iteration before from counting for the iteration before that)
- computation for which a lane must wake up: what it needs of others > woken > its first node
- each rank: all its units, the end of the iteration before > end of the iteration
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from stanza_sim.schedule import Collective, Compute, Ranks, Schedule, Transfer, Unit, UnitKind
from stanza_sim.schedule.progress import posting_order
from stanza_sim.simulate.compiled import kernel
from stanza_sim.simulate.compiled.advance import Kind
from stanza_sim.simulate.compiled.arrays import Net, Nodes, thinned
from stanza_sim.simulate.compiled.rows import in_order
from stanza_sim.simulate.loads import LINK_PHI, Actor, Load
from stanza_sim.simulate.lowering.arrays import ArrayLowered, Messages
from stanza_sim.simulate.plain.wakeup import wakings

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
I8 = npt.NDArray[np.int8]

_MOST_QUEUES = 10_000_000
_UNLIMITED = 1e30  # capacity of the link of a class that only its cap limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """The span that a node ends: (rank, unit) of all that it is a span of, and its side."""

    units: tuple[tuple[int, int], ...]
    side: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """Nodes of both generations, `size` each; unless said otherwise arrays are per node of one generation.

    `rank` is the rank that a node belongs to (of a collective, the first). Node `opening + r` begins an iteration of
    rank r. Sends and collectives are numbered in order of rank: number p is ready at node `ready + p` and posted at
    `posted + p`; rank r has those from `post_ptr[r]` on; p is unit `post_unit[p]` and has `post_priority[p]`. At most
    `post_credit[p]` of queue `post_queue[p]` are under way, without limit if that is 0; elsewhere `paid_by[node]` is
    the p that is over when `node` completes, or -1. Node `compute_node[c]` computes `compute_work[c]`
    seconds; rank r has those from `compute_ptr[r]` on. `endings` are the spans of the nodes of `Kind.SPAN`,
    `background` the nodes of the traffic of others, `working` the ranks that have anything to do.
    """

    net: Net
    nodes: Nodes
    size: int
    kind: I8
    rank: I32
    opening: int
    ready: int
    posted: int
    post_ptr: I64
    post_unit: I32
    post_queue: I32
    post_priority: I64
    post_credit: I64
    paid_by: I32
    compute_ptr: I64
    compute_node: I32
    compute_work: F64
    endings: dict[int, Ending]
    background: tuple[int, ...]
    working: tuple[int, ...]


def graph_of(schedule: Schedule, lowered: ArrayLowered) -> Graph:
    """Build the graph of `lowered`, in which every rank is a class of its own."""
    work = _Builder(schedule, lowered)
    work.collectives()
    for a in range(work.world):
        work.actor(a)
    return work.graph()


class _Builder:
    """Collects nodes and arrows. Messages come first, then what is posted, what is ready, and openings."""

    def __init__(self, schedule: Schedule, lowered: ArrayLowered) -> None:
        self.s, self.lowered = schedule, lowered
        self.world, m = len(lowered.actors), len(lowered.messages)
        self.posts = [
            (a, u)
            for a, actor in enumerate(lowered.actors)
            for u in actor.program.units
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
        self.flows: dict[int, Load] = {}
        self.computes: list[tuple[int, int, float]] = []  # rank, node, work
        self.op = {name: k for k, name in enumerate(lowered.op_names)}
        self.sends: dict[tuple[int, int], tuple[int, int]] = {}  # (op, rank) -> posted, sent
        self.arrivals: dict[tuple[int, int], int] = {}  # (op, rank) -> arrived
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
                self.flows[flow] = self.lowered.rings[op.name].load
                together: list[tuple[int, int]] = []  # those that are through at once
                for unit in members[op.name]:
                    copies = self.lowered.actors[unit[0]].copies.get(unit[1])
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

    def copied(self, before: int, load: Load | None) -> int:
        """Return the node of a copy that comes after `before`, or `before` if there is none."""
        if load is None:
            return before
        copy = self.node()
        self.flows[copy] = load
        self.inside.append((before, copy))
        return copy

    def actor(self, a: int) -> None:
        """Make the units of rank `a` and what orders them."""
        actor = self.lowered.actors[a]
        units = actor.program.units
        if not units:
            return
        # Else all that is ready is posted at once.
        chosen = any(cost > 0 for cost in actor.post_s.values()) or any(_credit(actor, u) for u in units)
        ends = [self.unit(a, actor, u, chosen=chosen) for u in units]
        self.posting_order(a, actor, chosen=chosen)
        waking = wakings(actor.program, self.lowered.wake_s)
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
            if (others := waking.get(u.index)) is not None:  # what it needs of its own lane comes before it anyway
                needs, needs_previous = others.needs, others.needs_previous
                woken = self.node()
                self.delay[woken] = self.lowered.wake_s
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

    def posting_order(self, a: int, actor: Actor, *, chosen: bool) -> None:
        """Let sends wait for those that must be posted before them."""
        sends = [u for u in actor.program.units if actor.sends.get(u.index) and not _credit(actor, u)]
        waits = self.ready if chosen else self.posted
        for followers, arrows in zip(posting_order(sends), (self.inside, self.across), strict=True):
            for before, after in followers.items():
                posted = self.posted + self.number[a, before]
                arrows.extend((posted, waits + self.number[a, v]) for v in after)

    def unit(self, a: int, actor: Actor, u: Unit, *, chosen: bool) -> tuple[int, int]:
        """Make a unit; return the node that waits for what it needs (-1 if none does), and its last.

        `chosen`: what the rank posts next is chosen among the sends that are ready.
        """
        match u.kind:
            case UnitKind.COMPUTE:
                flow, through = self.node(), self.span(((a, u.index),))
                self.flows[flow] = actor.loads[u.index]
                self.computes.append((a, flow, actor.loads[u.index].work))
                self.inside.append((flow, through))
                return flow, through
            case UnitKind.SEND | UnitKind.COLLECTIVE:
                p = self.number[a, u.index]
                ready, posted = self.ready + p, self.posted + p
                if u.kind is UnitKind.COLLECTIVE:
                    self.inside.append((ready, posted))
                    self.delay[posted] = actor.post_s[u.index]
                    return ready, self.collected[u.op.name, a]
                if not actor.sends[u.index]:
                    return ready, ready
                if chosen:
                    self.rank[ready] = self.rank[posted] = a
                    self.kind[ready], self.kind[posted] = Kind.READY, Kind.POSTED
                    self.delay[posted] = actor.post_s[u.index]
                else:
                    self.inside.append((ready, posted))
                sent = self.span(((a, u.index),), "sent")
                self.sends[self.op[u.op.name], a] = posted, sent
                if _credit(actor, u):
                    self.paid_by[sent] = p
                return ready, sent
            case UnitKind.RECV:
                if not actor.arrivals[u.index]:
                    through = self.node()
                    return through, through
                arrived = self.span(((a, u.index),), "recv")
                self.arrivals[self.op[u.op.name], a] = arrived
                if not u.needs and not u.needs_previous:
                    return -1, arrived
                through = self.node()
                self.inside.append((arrived, through))
                return through, through

    # ---- arrays ----------------------------------------------------------------------------------------------

    def gates(self, ms: Messages) -> tuple[I32, I32, I32]:
        """Of each message: the node at which it is posted, and those that count what is sent and what arrived."""
        size = len(self.op) * self.world
        posted, sent, arrived = (np.zeros(size, dtype=np.int32) for _ in range(3))
        for (op, rank), both in self.sends.items():
            posted[op * self.world + rank], sent[op * self.world + rank] = both
        for (op, rank), node in self.arrivals.items():
            arrived[op * self.world + rank] = node
        sender, receiver = ms.op * self.world + ms.src, ms.op * self.world + ms.dst
        return posted[sender], sent[sender], arrived[receiver]

    def queued(self, ms: Messages) -> tuple[I32, npt.NDArray[np.bool_]]:
        """Of each message: the next in its queue, and whether that is the first of the next iteration.

        Messages of one pair and channel queue in program order.
        """
        m, channels = len(ms), int(ms.channel.max(initial=0)) + 1
        queue = (ms.src.astype(np.int64) * self.world + ms.dst) * channels + ms.channel
        count = self.world * self.world * channels
        if count > _MOST_QUEUES:  # nearly all of them empty
            used, queue = np.unique(queue, return_inverse=True)
            count = len(used)
        order = in_order(queue, count)
        begins = np.ones(m, dtype=np.bool_)
        begins[1:] = np.diff(queue[order]) != 0
        ends = np.roll(begins, -1)
        following = np.empty(m, dtype=np.int32)
        following[order[:-1]] = order[1:]
        following[order[ends]] = order[begins]
        last = np.empty(m, dtype=np.bool_)
        last[order] = ends
        return following, last

    def graph(self) -> Graph:
        """Make the arrays."""
        ms, m = self.lowered.messages, len(self.lowered.messages)
        background = []
        for flow in self.lowered.background:
            background.append(self.node())
            usage = ((flow.resource, 1.0),)
            self.flows[background[-1]] = Load(work=np.inf, usage=usage, phi=LINK_PHI, cap=flow.traffic.bandwidth_Bps)
        net, classes = _network(self.lowered, list(self.flows.values()))
        copies = [np.nonzero(index >= 0)[0] for index in (ms.copy_out, ms.copy_in)]
        places = np.split(self.size + np.arange(sum(map(len, copies)), dtype=np.int32), [len(copies[0])])
        self.size = size = self.size + sum(map(len, copies))
        cls = np.full(size, -1, dtype=np.int32)
        work, delay = np.zeros(size), np.zeros(size)
        if m:
            cls[:m], work[:m] = ms.load, ms.nbytes
            delays = np.array([x.delay_s for x in ms.loads])
            delay[:m] = delays[ms.load]
            for index, those, at in zip((ms.copy_out, ms.copy_in), copies, places, strict=True):
                cls[at], work[at], delay[at] = index[those], ms.nbytes[those], delays[index[those]]
        flows = np.array(list(self.flows), dtype=np.int64)
        cls[flows] = classes
        work[flows] = [load.work for load in self.flows.values()]
        delay[flows] = [load.delay_s for load in self.flows.values()]
        delay[list(self.delay)] = list(self.delay.values())
        kind = _filled(size, self.kind)
        queues: dict[tuple[int, str, Ranks], int] = {}
        by_rank = np.arange(self.world + 1)
        return Graph(
            net=net,
            nodes=self._nodes(cls, work, delay, kind != Kind.NOTHING, copies, places),
            size=size,
            kind=kind.astype(np.int8),
            rank=_filled(size, self.rank),
            opening=self.opening,
            ready=self.ready,
            posted=self.posted,
            post_ptr=np.searchsorted([a for a, _ in self.posts], by_rank),
            post_unit=np.array([u.index for _, u in self.posts], dtype=np.int32),
            post_queue=np.array(
                [queues.setdefault((a, *_line(u)), len(queues)) for a, u in self.posts], dtype=np.int32
            ),
            post_priority=np.array([_priority(u) for _, u in self.posts], dtype=np.int64),
            post_credit=np.array([_credit(self.lowered.actors[a], u) for a, u in self.posts], dtype=np.int64),
            paid_by=_filled(size, {node: p + 1 for node, p in self.paid_by.items()}) - 1,
            compute_ptr=np.searchsorted([a for a, _, _ in self.computes], by_rank),
            compute_node=np.array([node for _, node, _ in self.computes], dtype=np.int32),
            compute_work=np.array([seconds for _, _, seconds in self.computes], dtype=np.float64),
            endings=self.endings,
            background=tuple(background),
            working=tuple(a for a, actor in enumerate(self.lowered.actors) if actor.program.units),
        )

    def _nodes(
        self,
        cls: I32,
        work: F64,
        delay: F64,
        report: npt.NDArray[np.bool_],
        copies: list[I64],
        places: list[I32],
    ) -> Nodes:
        """Both generations from one; `copies` are the messages that are copied out and in, `places` the copies."""
        ms, m, size = self.lowered.messages, len(self.lowered.messages), self.size
        few = np.array(self.inside + self.across, dtype=np.int32).reshape(-1, 2)
        far = np.zeros(len(few), dtype=np.bool_)
        far[len(self.inside) :] = True
        posted, sent, arrived = self.gates(ms)
        following, last = self.queued(ms)
        each = np.arange(m, dtype=np.int32)
        (leave, enter), (out, into) = copies, places
        first, last_of = each.copy(), arrived.copy()  # what is posted, and what the message is followed by
        first[leave], last_of[enter] = out, into
        # Arrows from messages, so many each, stand in order as they are; the others, to messages and few, are sorted. A
        # copy out is an arrow to `sent` too, and a copied message one to `arrived`: spans begin with the first of them.
        wide = 4 if len(enter) else 3
        source = np.concatenate([posted, self.opening + ms.dst, out, out, into, few[:, 0]])
        target = np.concatenate([first, each, leave, sent[leave], arrived[enter], few[:, 1]]).astype(np.int32)
        over = np.concatenate([np.zeros(len(source) - len(few), dtype=np.bool_), far])
        order = in_order(source - m, size - m)
        target, over = target[order], over[order]
        successor = np.empty((2, wide * m + len(target)), dtype=np.int32)  # in place: these are the largest arrays
        for here, there, row in ((0, size, successor[0]), (size, 0, successor[1])):
            each_of = row[: wide * m].reshape(m, wide)
            each_of[:, 0] = following + np.where(last, there, here)
            each_of[:, 1], each_of[:, 2] = sent + here, last_of + here
            each_of[:, 3:] = (arrived + here)[:, None]
            row[wide * m :] = target + np.where(over, there, here)
        leaving = np.bincount(source, minlength=size)
        leaving[:m] = wide
        ptr = np.zeros(2 * size + 1, dtype=np.int64)
        np.cumsum(np.tile(leaving, 2), out=ptr[1:])
        full = np.bincount(few[:, 1], minlength=size).astype(np.int32)
        for gates in (sent, sent[leave], last_of, arrived[enter], *([arrived] if wide == 4 else [])):
            full += np.bincount(gates, minlength=size)
        full[:m] = 3
        before = np.bincount(few[far, 1], minlength=size).astype(np.int32)
        before[following[last]] = 1
        full[full == 0] = 1  # what is triggered
        return Nodes(
            cls=np.tile(cls, 2),
            work=np.tile(work, 2),
            delay=np.tile(delay, 2),
            missing=np.concatenate([full - before, full]),  # nothing comes before the first iteration
            successor_ptr=ptr,
            successor=successor.reshape(-1),
            done_s=np.zeros(0),
            full=np.tile(full, 2),
            report=np.tile(report, 2),
        )


def _filled(size: int, known: dict[int, int] | dict[int, Kind]) -> I32:
    """An array with `known` values, and zeros."""
    found = np.zeros(size, dtype=np.int32)
    found[list(known)] = list(known.values())
    return found


def _credit(actor: Actor, u: Unit) -> int:
    """How many sends of the queue of `u` may be under way, if `u` sends any message and that is limited; else 0."""
    return u.op.credit if isinstance(u.op, Transfer) and actor.sends.get(u.index) else 0


def _priority(u: Unit) -> int:
    return u.op.priority if isinstance(u.op, Transfer) else 0


def _line(u: Unit) -> tuple[str, Ranks]:
    """Sends of one rank that share the credit of a channel."""
    return (u.op.channel if isinstance(u.op, Transfer) else ""), u.peers


def _network(lowered: ArrayLowered, flows: list[Load]) -> tuple[Net, list[int]]:
    """The kernel's network, classes of messages first, and the class of each of `flows`."""
    capacity = [r.capacity for r in lowered.resources]
    loads = list(lowered.messages.loads)
    known: dict[tuple[object, ...], int] = {}
    classes: list[int] = []
    for load in flows:
        key = (load.usage, load.phi, load.cap)
        if key not in known:
            known[key] = len(loads)
            loads.append(load)
        classes.append(known[key])
    routes: list[tuple[tuple[int, float], ...]] = []
    for load in loads:
        if load.usage:
            routes.append(load.usage)
        else:
            routes.append(((len(capacity), 1.0),))
            capacity.append(_UNLIMITED)
    phi, cap = np.array([x.phi for x in loads]), np.array([x.cap for x in loads])
    bounds = np.array(capacity)
    if not lowered.buckets:  # which change what links pass
        routes = thinned(bounds, routes)
    return kernel.make_net(bounds, routes, phi, cap), classes
