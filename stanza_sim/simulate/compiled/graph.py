"""All that the ranks do, as nodes of the compiled kernel: computations, messages, collectives and what waits for what.

Each unit of each rank's program becomes a few nodes, twice: once for even and once for odd iterations, since a rank
works on two at a time. An arrow inside an iteration stays in its generation, one to the next iteration leads to the
other. What depends on how things went (which send a rank posts next, when it may begin an iteration) is no arrow;
`advance.py` does that. With `>` for an arrow:

- computation: the one before in its lane > flow > through
- send: ready > posted > each of its messages > sent; posted > those that must be posted after it > ready
- message: posted by the sender, accepted by the receiver (at the beginning of its iteration), the message before it in
  its queue > message > sent, arrived
- receive: arrived > through
- collective: ready, the one before in its group at this rank > posted; posted by all members > flow > through
- copy of a staged device: posted > copy out > message or collective; message or collective > copy in > arrived, through
- each unit: what it needs > its first node; what it needs of the iteration before and the beginning of its own > a gate
  > its first node (the gate keeps an arrow from the iteration before from counting for the iteration before that)
- computation for which a lane must wake up: what it needs of others > woken > its first node
- in order (`Issue.IN_ORDER`), each op with messages of a channel at a rank: the beginning of the iteration, its sends
  ready, the op before in its channel through > issue > its sends posted, one after the other, and its receives
  accepted; its sends sent, its receives arrived > op through
- each rank: all its units, the end of the iteration before > end of the iteration
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stanza_sim.schedule import Schedule
from stanza_sim.schedule.progress import Issue
from stanza_sim.simulate.compiled import kernel
from stanza_sim.simulate.compiled.advance import Kind
from stanza_sim.simulate.compiled.arrays import F64, I8, I32, I64, Net, Nodes, thinned
from stanza_sim.simulate.compiled.builder import Builder, Computations, Ending, Posts
from stanza_sim.simulate.compiled.rows import Arrows, in_order
from stanza_sim.simulate.lowered import Activity
from stanza_sim.simulate.lowering.arrays import ArrayLowered, Messages

_MOST_QUEUES = 10_000_000
_UNLIMITED = 1e30  # capacity of the link of a class that only its cap limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """Nodes of both generations, `size` each; unless said otherwise arrays are per node of one generation.

    `rank` is the rank that a node belongs to (of a collective, the first). Node `opening + r` begins an iteration of
    rank r. `paid_by[node]` is the number of the post that is over when `node` completes, or -1. `endings` are the spans
    of the nodes of `Kind.SPAN`, `background` the nodes of the traffic of others, `working` the ranks that have anything
    to do. Messages are issued as `issue` says.
    """

    net: Net
    nodes: Nodes
    size: int
    kind: I8
    rank: I32
    opening: int
    posts: Posts
    paid_by: I32
    computations: Computations
    endings: dict[int, Ending]
    background: tuple[int, ...]
    working: tuple[int, ...]
    issue: Issue


def graph_of(schedule: Schedule, lowered: ArrayLowered, issue: Issue = Issue.EAGER) -> Graph:
    """Build the graph of `lowered`; what is said of ranks holds for the classes of those that are folded."""
    work = Builder(schedule, lowered, issue)
    work.collectives()
    for a in range(work.world):
        work.rank_class(a)
    background = _background(work)
    net, classes = _network(lowered, list(work.flows.values()))
    copies = _Copies.of(lowered.messages, work.size)
    work.size += len(copies.out) + len(copies.into)
    kind = _filled(work.size, work.kind)
    return Graph(
        net=net,
        nodes=_nodes(_timing(work, classes, copies), _arrows(work, copies), kind != Kind.NOTHING),
        size=work.size,
        kind=kind.astype(np.int8),
        rank=_filled(work.size, work.rank),
        opening=work.opening,
        posts=work.numbered_posts(),
        paid_by=_filled(work.size, {node: p + 1 for node, p in work.paid_by.items()}) - 1,
        computations=work.computations(),
        endings=work.endings,
        background=background,
        working=tuple(a for a, rank_class in enumerate(lowered.rank_classes) if rank_class.program.units),
        issue=issue,
    )


def _background(work: Builder) -> tuple[int, ...]:
    """Make a node of each flow of the traffic of others; it never ends."""
    nodes = []
    for flow in work.lowered.background:
        nodes.append(work.node())
        usage = ((flow.resource, 1.0),)
        work.flows[nodes[-1]] = Activity(work=np.inf, usage=usage, weight=flow.weight, cap=flow.traffic.bandwidth_Bps)
    return tuple(nodes)


# ---- nodes ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Copies:
    """Copies of staged devices: the messages that `leave` such a device and those that `enter` one, and their nodes."""

    leave: I64
    out: I32
    enter: I64
    into: I32

    @classmethod
    def of(cls, ms: Messages, size: int) -> _Copies:
        """Number the copies of `ms` from `size` on."""
        leave, enter = (np.nonzero(index >= 0)[0] for index in (ms.copy_out, ms.copy_in))
        nodes = size + np.arange(len(leave) + len(enter), dtype=np.int32)
        return cls(leave=leave, out=nodes[: len(leave)], enter=enter, into=nodes[len(leave) :])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Timing:
    """Per node of one generation: the class of a flow or -1, its work, and the delay before it."""

    cls: I32
    work: F64
    delay: F64


def _timing(work: Builder, classes: list[int], copies: _Copies) -> _Timing:
    """How long everything takes; `classes` are those of `work.flows`."""
    ms, m, size = work.lowered.messages, len(work.lowered.messages), work.size
    made = _Timing(cls=np.full(size, -1, dtype=np.int32), work=np.zeros(size), delay=np.zeros(size))
    if m:
        delays = np.array([x.delay_s for x in ms.activities])
        made.cls[:m], made.work[:m], made.delay[:m] = ms.activity, ms.nbytes, delays[ms.activity]
        for index, those, at in ((ms.copy_out, copies.leave, copies.out), (ms.copy_in, copies.enter, copies.into)):
            made.cls[at], made.work[at], made.delay[at] = index[those], ms.nbytes[those], delays[index[those]]
    flows = np.array(list(work.flows), dtype=np.int64)
    made.cls[flows] = classes
    made.work[flows] = [activity.work for activity in work.flows.values()]
    made.delay[flows] = [activity.delay_s for activity in work.flows.values()]
    made.delay[list(work.delay)] = list(work.delay.values())
    return made


def _nodes(timing: _Timing, arrows: Arrows, report: npt.NDArray[np.bool_]) -> Nodes:
    """Both generations from one."""
    rows = arrows.rows()
    full = np.where(rows.awaited == 0, 1, rows.awaited).astype(np.int32)  # what awaits nothing is triggered
    return Nodes(
        cls=np.tile(timing.cls, 2),
        work=np.tile(timing.work, 2),
        delay=np.tile(timing.delay, 2),
        missing=np.concatenate([full - rows.awaited_before, full]),  # nothing comes before the first iteration
        successor_ptr=rows.ptr,
        successor=rows.successor,
        done_s=np.zeros(0),
        full=np.tile(full, 2),
        report=np.tile(report, 2),
    )


def _filled(size: int, known: dict[int, int] | dict[int, Kind]) -> I32:
    """An array with `known` values, and zeros."""
    found = np.zeros(size, dtype=np.int32)
    found[list(known)] = list(known.values())
    return found


# ---- arrows ---------------------------------------------------------------------------------------------------------


def _arrows(work: Builder, copies: _Copies) -> Arrows:
    """All arrows: those of messages, which are very many, and those that `work` collected."""
    ms, m = work.lowered.messages, len(work.lowered.messages)
    gates = _Gates.of(work, ms)
    following, last = _queued(ms, work.world)
    leave, enter = copies.leave, copies.enter
    first, last_of = np.arange(m, dtype=np.int32), gates.arrived.copy()
    first[leave], last_of[enter] = copies.out, copies.into  # what is posted, and what the message is followed by
    arrows = Arrows(work.size, m)
    arrows.add_leading(following, previous=last)
    arrows.add_leading(gates.sent)
    arrows.add_leading(last_of)
    # A copy out leads to `sent` too, and a copied message to `arrived`: spans begin with the first of them.
    if len(enter):
        arrows.add_leading(gates.arrived)
    arrows.add(gates.posted, first)
    arrows.add(gates.accepted, np.arange(m, dtype=np.int32))
    arrows.add(copies.out, leave)
    arrows.add(copies.out, gates.sent[leave])
    arrows.add(copies.into, gates.arrived[enter])
    for collected, previous in ((work.inside, False), (work.across, True)):
        pairs = np.array(collected, dtype=np.int32).reshape(-1, 2)
        arrows.add(pairs[:, 0], pairs[:, 1], previous=previous)
    return arrows


@dataclass(frozen=True, slots=True, kw_only=True)
class _Gates:
    """Of each message: where it is posted and accepted, and what counts what is sent and what has arrived."""

    posted: I32
    accepted: I32
    sent: I32
    arrived: I32

    @classmethod
    def of(cls, work: Builder, ms: Messages) -> _Gates:
        """Look them up by op and rank."""
        world = work.world
        sender, receiver = ms.op * world + ms.src, ms.op * world + ms.dst
        size = len(work.op) * world

        def table(known: dict[tuple[int, int], int]) -> I32:
            return _filled(size, {op * world + rank: node for (op, rank), node in known.items()})

        return cls(
            posted=table({key: posted for key, (posted, _) in work.sends.items()})[sender],
            accepted=table(work.accepts)[receiver] if work.in_order else work.opening + ms.dst,
            sent=table({key: sent for key, (_, sent) in work.sends.items()})[sender],
            arrived=table(work.arrivals)[receiver],
        )


def _queued(ms: Messages, world: int) -> tuple[I32, npt.NDArray[np.bool_]]:
    """Of each message: the next in its queue, and whether that is the first of the next iteration.

    Messages of one pair and channel queue in program order.
    """
    m, channels = len(ms), int(ms.channel.max(initial=0)) + 1
    queue = (ms.src.astype(np.int64) * world + ms.dst) * channels + ms.channel
    count = world * world * channels
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


# ---- network --------------------------------------------------------------------------------------------------------


def _network(lowered: ArrayLowered, flows: list[Activity]) -> tuple[Net, list[int]]:
    """The kernel's network, classes of messages first, and the class of each of `flows`."""
    capacity = [r.capacity for r in lowered.resources]
    activities = list(lowered.messages.activities)
    known: dict[tuple[object, ...], int] = {}
    classes: list[int] = []
    for activity in flows:
        key = (activity.usage, activity.weight, activity.cap)
        if key not in known:
            known[key] = len(activities)
            activities.append(activity)
        classes.append(known[key])
    routes: list[tuple[tuple[int, float], ...]] = []
    for activity in activities:
        if activity.usage:
            routes.append(activity.usage)
        else:
            routes.append(((len(capacity), 1.0),))
            capacity.append(_UNLIMITED)
    weight, cap = np.array([x.weight for x in activities]), np.array([x.cap for x in activities])
    bounds = np.array(capacity)
    if not lowered.token_buckets:  # which change what links pass
        routes = thinned(bounds, routes)
    return kernel.make_net(bounds, routes, weight, cap), classes
