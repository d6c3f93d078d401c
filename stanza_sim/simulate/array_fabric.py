"""The fabric for very many messages: queues, rendezvous, counting and sharing all happen in the compiled kernel.

Every message is a node of the kernel, once for even and once for odd iterations (a rank works on two at a time). A
message waits for the sender's posting, for the receiver's posting, and for the message before it in its queue;
it counts down a gate at the sender and one at the receiver. Only those gates, and activities, are reported here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stanza_sim.schedule import UnitKind
from stanza_sim.simulate import kernel
from stanza_sim.simulate.array_lower import ArrayLowered, Messages
from stanza_sim.simulate.background import OnOff
from stanza_sim.simulate.fabric import Clock, Listener
from stanza_sim.simulate.lower import LINK_PHI, Load

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

_UNLIMITED = 1e30  # capacity of the link of a class that only its cap limits

Key = tuple[str | int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Places:
    """Where the nodes of one generation stand: messages first, then the gates and activities in this order."""

    sent: int
    recv: int
    post: int
    open: int
    activity: int
    size: int


class ArrayFabric:
    """See `stanza_sim.simulate.fabric.Fabric`."""

    def __init__(self, lowered: ArrayLowered, clock: Clock, listener: Listener) -> None:
        self.clock, self.listener = clock, listener
        clock.settle = self.settle
        self._triggered: list[int] = []
        self._late = False
        self._wake_s = -1.0
        self._then: dict[int, Callable[[], None]] = {}
        ms, world = lowered.messages, len(lowered.actors)
        code_src = ms.op.astype(np.int64) * world + ms.src
        code_dst = ms.op.astype(np.int64) * world + ms.dst
        sent_codes, sent = np.unique(code_src, return_inverse=True)
        recv_codes, recv = np.unique(code_dst, return_inverse=True)
        activities: dict[Key, Load] = {
            (a, u): load for a, actor in enumerate(lowered.actors) for u, load in actor.loads.items()
        }
        activities |= {(name,): ring.load for name, ring in lowered.rings.items()}
        self._traffic = lowered.background
        activities |= {
            ("background", k): Load(work=np.inf, usage=((f.resource, 1.0),), phi=LINK_PHI, cap=f.traffic.bandwidth_Bps)
            for k, f in enumerate(lowered.background)
        }
        at = _Places(
            sent=len(ms),
            recv=len(ms) + len(sent_codes),
            post=len(ms) + len(sent_codes) + len(recv_codes),
            open=len(ms) + 2 * len(sent_codes) + len(recv_codes),
            activity=len(ms) + 2 * len(sent_codes) + len(recv_codes) + world,
            size=len(ms) + 2 * len(sent_codes) + len(recv_codes) + world + len(activities),
        )
        self._at = at
        self._activity = {key: at.activity + k for k, key in enumerate(activities)}
        units = {(u.op.name, a.rank, u.kind): u.index for a in lowered.actors for u in a.program.units if u.peers.spans}
        self._gate: dict[int, tuple[bool, int, int]] = {}  # node -> (sent?, rank, unit)
        self._post: dict[tuple[int, int], int] = {}
        for k, code in enumerate(sent_codes.tolist()):
            op, rank = divmod(code, world)
            u = units[lowered.op_names[op], rank, UnitKind.SEND]
            self._gate[at.sent + k] = (True, rank, u)
            self._post[rank, u] = at.post + k
        for k, code in enumerate(recv_codes.tolist()):
            op, rank = divmod(code, world)
            self._gate[at.recv + k] = (False, rank, units[lowered.op_names[op], rank, UnitKind.RECV])
        self._net, classes = _network(lowered, activities)
        self._nodes = _nodes(ms, sent, recv, world, at, [*activities.values()], classes)
        self._state = kernel.make_state(self._net, self._nodes)
        self._on_off = OnOff(lowered.background, clock, self._switch)
        for k, there in enumerate(self._on_off.there):
            node = self._activity["background", k]
            self._triggered.append(node)  # it never ends; while it is away, its cap is zero
            if not there:
                self._net.cap[self._nodes.cls[node]] = 0.0

    # ---- what the engine asks for ---------------------------------------------------------------------------

    def begin(self, key: Key, iteration: int, load: Load, then: Callable[[], None]) -> None:
        """See `Fabric.begin`."""
        if load.work <= 0:
            then()
            return
        node = self._activity[key] + (iteration % 2) * self._at.size
        self._then[node] = then
        self._nodes.work[node] = load.work  # which may differ from one iteration to the next
        self._triggered.append(node)

    def post(self, a: int, i: int, u: int) -> None:
        """See `Fabric.post`."""
        self._triggered.append(self._post[a, u] + (i % 2) * self._at.size)

    def open(self, a: int, i: int) -> None:
        """See `Fabric.open`."""
        self._triggered.append(self._at.open + a + (i % 2) * self._at.size)

    def settle(self) -> None:
        """See `Fabric.settle`."""
        if self._triggered and not self._late:
            self._late = True
            self.clock.late(self._instant)

    # ---- what happens at an instant --------------------------------------------------------------------------

    def _alarm(self) -> None:
        self._wake_s = -1.0
        if not self._late:
            self._late = True
            self.clock.late(self._instant)

    def _instant(self) -> None:
        """Let everything happen that happens now, then solve once."""
        state, now = self._state, self.clock.now
        self._late = False
        while True:
            if self._triggered:
                kernel.trigger(self._nodes, state, np.array(self._triggered, dtype=np.int32), now)
                self._triggered.clear()
            kernel.happen(self._net, self._nodes, state, now)
            count = int(state.scalars[kernel.REPORTED])
            state.scalars[kernel.REPORTED] = 0
            for node in state.reported[:count].tolist():
                self._tell(node)
            if not self._triggered:
                break
        if state.scalars[kernel.CHANGED]:
            kernel.solve(self._net, state, now)
        at = float(kernel.next_s(state))
        if at < np.inf and at != self._wake_s:
            self._wake_s = at
            self.clock.wake(at, self._alarm)
        self._on_off.arm()

    def _switch(self, k: int, there: bool) -> None:
        """Background traffic comes or goes."""
        flow, state = self._traffic[k], self._state
        self._net.cap[self._nodes.cls[self._activity["background", k]]] = flow.traffic.bandwidth_Bps if there else 0.0
        if state.link_epoch[flow.resource] != -1:
            state.link_epoch[flow.resource] = -1
            state.changed[state.scalars[kernel.CHANGED]] = flow.resource
            state.scalars[kernel.CHANGED] += 1
        self._alarm()

    def background_bytes(self) -> dict[int, float]:
        """See `Fabric.background_bytes`."""
        state, now, found = self._state, self.clock.now, {}
        for k, flow in enumerate(self._traffic):
            c = self._nodes.cls[self._activity["background", k]]
            found[flow.resource] = float(state.served[c] + state.rate[c] * (now - state.since[c]))
        return found

    def _tell(self, node: int) -> None:
        generation, place = divmod(node, self._at.size)
        if place >= self._at.activity:
            self._then.pop(node)()
            return
        is_sent, rank, unit = self._gate[place]
        start = float(self._state.first_s[node])
        self._state.first_s[node] = np.inf
        iteration = self._iteration(rank, generation)
        if is_sent:
            self.listener.sent(rank, iteration, unit, start)
        else:
            self.listener.arrived(rank, iteration, unit, start)

    def _iteration(self, rank: int, generation: int) -> int:
        """The iteration of `generation` that `rank` works on: one of the two that are open."""
        done = self.listener.iterations_done(rank)
        return done if done % 2 == generation else done + 1


def _network(lowered: ArrayLowered, activities: dict[Key, Load]) -> tuple[kernel.Net, list[int]]:
    """The kernel's network, classes of messages first, and the class of each activity."""
    capacity = [r.capacity for r in lowered.resources]
    loads = list(lowered.messages.loads)
    known: dict[tuple[object, ...], int] = {}
    classes: list[int] = []
    for load in activities.values():
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
    net = kernel.make_net(
        np.array(capacity), routes, np.array([x.phi for x in loads]), np.array([x.cap for x in loads])
    )
    return net, classes


def _nodes(
    ms: Messages, sent: I64, recv: I64, world: int, at: _Places, activities: list[Load], classes: list[int]
) -> kernel.Nodes:
    """The nodes of both generations."""
    m = len(ms)
    # Messages of one pair and channel queue in program order; after the last comes the next iteration's first.
    queue = (ms.src.astype(np.int64) * world + ms.dst) * (int(ms.channel.max(initial=0)) + 1) + ms.channel
    order = np.argsort(queue, kind="stable")
    begins = np.ones(m, dtype=np.bool_)
    begins[1:] = queue[order][1:] != queue[order][:-1]
    heads = order[begins]
    head_of = np.empty(m, dtype=np.int64)
    head_of[order] = heads[np.cumsum(begins) - 1]
    follower = np.full(m, -1, dtype=np.int64)
    follower[order[:-1][~begins[1:]]] = order[1:][~begins[1:]]
    per_node = np.zeros(at.size, dtype=np.int64)
    per_node[:m] = 3
    sends = np.bincount(sent, minlength=at.recv - at.sent)
    per_node[at.post : at.open] = sends
    per_node[at.open : at.activity] = np.bincount(ms.dst, minlength=world)
    by_post, by_dst = np.argsort(sent, kind="stable"), np.argsort(ms.dst, kind="stable")
    parts: list[I64] = []
    for here, other in ((0, at.size), (at.size, 0)):
        after = np.where(follower < 0, other + head_of, here + follower)
        three = np.stack([after, here + at.sent + sent, here + at.recv + recv], axis=1)
        parts += [three.reshape(-1), here + by_post, here + by_dst]
    ptr = np.zeros(2 * at.size + 1, dtype=np.int64)
    np.cumsum(np.concatenate([per_node, per_node]), out=ptr[1:])
    full = np.ones(at.size, dtype=np.int32)
    full[:m] = 3
    full[at.sent : at.recv] = sends
    full[at.recv : at.post] = np.bincount(recv, minlength=at.post - at.recv)
    missing = np.concatenate([full, full])
    missing[heads] = 2  # nothing comes before the first message of the first iteration
    cls = np.full(at.size, -1, dtype=np.int32)
    work = np.zeros(at.size)
    delay = np.zeros(at.size)
    report = np.zeros(at.size, dtype=np.bool_)
    if m:
        cls[:m], work[:m] = ms.load, ms.nbytes
        delay[:m] = np.array([x.delay_s for x in ms.loads])[ms.load]
    cls[at.activity :] = classes
    work[at.activity :] = [load.work for load in activities]
    report[at.sent : at.post] = True
    report[at.activity :] = True
    return kernel.Nodes(
        cls=np.concatenate([cls, cls]),
        work=np.concatenate([work, work]),
        delay=np.concatenate([delay, delay]),
        missing=missing,
        successor_ptr=ptr,
        successor=np.concatenate(parts).astype(np.int32),
        done_s=np.full(2 * at.size, np.nan),
        full=np.concatenate([full, full]),
        report=np.concatenate([report, report]),
    )
