"""One rank's part in a job whose computations are emulated: waits in their place, and buffers to send and receive.

Contents do not matter, so one `payload` serves all that is sent and one all that is received, each as long as the
longest message or collective; that is little memory for a rank of any model. A collective of the library still adds up
what it reduces. Nothing else computes, so how long an iteration takes does not depend on this machine's cores, as long
as they carry the messages.
"""

from __future__ import annotations

import os
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager, contextmanager
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from stanza_sim.execute.emulated.payload import payload
from stanza_sim.execute.emulated.shared_state import SharedState
from stanza_sim.execute.emulated.waits import Lanes, Shares, own_state, set_timer_slack
from stanza_sim.execute.rank.exchange import meet, share
from stanza_sim.execute.rank.job import Emulation, RunJob
from stanza_sim.execute.rank.role import MessageSizes, RankResult
from stanza_sim.execute.rank.transport import TorchTransport
from stanza_sim.execute.train.flat import dtype_of, wire_dtype
from stanza_sim.schedule import (
    Collective,
    CollectiveKind,
    Compute,
    RankProgram,
    Schedule,
    Transfer,
    Unit,
    ValueKind,
    project,
)

if TYPE_CHECKING:
    from stanza_sim.execute.rank.context import Context

REALTIME_PRIORITY = 1
CROWD = 2
"""Ranks for each core of a machine beyond which each keeps to one core."""


class EmulatedWork:
    """What the engine's units do: wait in `lanes` for computations, and name the buffers of messages."""

    def __init__(
        self, schedule: Schedule, rank: int, emulation: Emulation, lanes: Lanes, transport: TorchTransport
    ) -> None:
        self._schedule, self._lanes = schedule, lanes
        self._seconds = {name: emulation.dilation * work_s for name, work_s in emulation.seconds[rank].items()}
        self._transport, self._dtype = transport, dtype_of(schedule.itemsize)
        self._unseen = unseen(project(schedule, rank))
        self._bundles = {b.name: b for b in schedule.bundles}
        self.nbytes = MessageSizes(schedule)
        sends = receives = 0
        for op in schedule.for_rank(rank):
            match op:
                case Transfer():
                    sends = max(sends, *(self.nbytes(op, rank, d) for d in schedule.destinations(op, rank)), 0)
                    receives = max(receives, *(self.nbytes(op, s, rank) for s in schedule.sources(op, rank)), 0)
                case Collective():
                    whole = self._sizes(op)[1] * schedule.itemsize_of(op)
                    sends, receives = max(sends, whole), max(receives, whole)
        self._out, self._in = payload(sends), payload(receives)
        self._views: dict[tuple[bool, int], Tensor] = {}

    def compute(self, op: Compute, iteration: int, ready_s: float) -> tuple[float, float]:
        """Wait as long as the computation takes, by the clock that everything is dilated by."""
        return self._lanes.compute(op.lane, ready_s, self._seconds[op.name], wait=op.name not in self._unseen)

    def collective(self, op: Collective, iteration: int) -> None:
        """Carry out the collective, on as many elements as it has."""
        part, whole = self._sizes(op)
        match op.kind:
            case CollectiveKind.ALL_REDUCE | CollectiveKind.BROADCAST:
                output = source = self._elements(op, self._in, whole)
            case CollectiveKind.REDUCE_SCATTER:
                output, source = self._elements(op, self._in, part), self._elements(op, self._out, whole)
            case CollectiveKind.ALL_GATHER:
                output, source = self._elements(op, self._in, whole), self._elements(op, self._out, part)
        self._transport.collective(op, output, source)

    def outgoing(self, op: Transfer, iteration: int, dst: int) -> Tensor:
        """As many bytes as the message to `dst` has."""
        return self._view(self._out, self.nbytes(op, self._transport.rank, dst))

    def incoming(self, op: Transfer, iteration: int, src: int) -> Tensor:
        """Where the message from `src` goes, as all do."""
        return self._view(self._in, self.nbytes(op, src, self._transport.rank))

    def landed(self, op: Transfer, iteration: int, src: int) -> None:
        """Nothing is left to do."""

    def _view(self, buffer: Tensor, nbytes: int) -> Tensor:
        key = buffer is self._out, nbytes
        view = self._views.get(key)
        if view is None:
            view = self._views[key] = buffer[:nbytes]
        return view

    def _sizes(self, op: Collective) -> tuple[int, int]:
        """Elements of one member's part and of the whole of what `op` is about, padded to equal parts."""
        if not op.value.kind.on_bundle or op.value.kind is ValueKind.SUM:
            count = op.nbytes // self._schedule.itemsize_of(op)
            return ceil(count / len(self._schedule.group(op.ranks))), count
        bundle = self._bundles[op.value.name]
        parts = self._schedule.pieces(bundle)
        part = ceil(bundle.numel / parts)
        return part, part * parts

    def _elements(self, op: Collective, buffer: Tensor, count: int) -> Tensor:
        return buffer[: count * self._schedule.itemsize_of(op)].view(wire_dtype(op.wire, self._dtype))


def unseen(program: RankProgram) -> frozenset[str]:
    """Names of the computations from which nothing but later computations of the same lane and iteration goes on."""
    units = program.units
    follow: dict[int, list[Unit]] = {}
    later: dict[int, list[Unit]] = {}
    for u in units:
        for j in u.needs:
            follow.setdefault(j, []).append(u)
        for j in u.needs_previous:
            later.setdefault(j, []).append(u)
    return frozenset(
        u.op.name
        for u in units
        if isinstance(u.op, Compute)
        and follow.get(u.index)
        and all(isinstance(n.op, Compute) and n.op.lane == u.op.lane for n in follow[u.index] + later.get(u.index, []))
    )


class Emulated:
    """Waits in the place of computing."""

    def __init__(
        self, job: RunJob, emulation: Emulation, context: Context, transport: TorchTransport, boots: Sequence[str]
    ) -> None:
        self._realtime = emulation.realtime
        self._core = core_of(context.rank, boots)
        lanes = lanes_of(job.schedule, emulation, context.rank)
        self.work = EmulatedWork(job.schedule, context.rank, emulation, lanes, transport)

    def start_thread(self) -> None:
        """See `Role`."""
        set_timer_slack()

    def running(self) -> AbstractContextManager[bool]:
        """See `Role`."""
        return realtime(self._realtime, self._core)

    def stopped(self, done: int) -> bool:
        """It waits in one go."""
        return True

    def result(self) -> RankResult:
        """Nothing was trained."""
        return RankResult()


def lanes_of(schedule: Schedule, emulation: Emulation, rank: int) -> Lanes:
    """The lanes of `rank`, on a device that other ranks may share; every rank of the schedule must call this."""
    used = {
        (r, op.lane): emulation.device[r]
        for r in range(schedule.world_size)
        for op in schedule.for_rank(r)
        if isinstance(op, Compute)
    }
    between = {d: len({r for (r, _), on in used.items() if on == d}) > 1 for d in set(used.values())}
    token = share(uuid.uuid4().hex, rank, schedule.world_size) if any(between.values()) else ""
    device = emulation.device[rank]
    slots = {place: i for i, place in enumerate(sorted(p for p, on in used.items() if on == device))}
    mine = {lane: i for (r, lane), i in slots.items() if r == rank}
    state: SharedState | None = None
    lanes = Lanes()
    if mine and len(slots) > emulation.capacity[device]:
        if between[device]:
            state = SharedState(Path(tempfile.gettempdir()) / f"stanza-sim-{token}-{device}", Shares.size(len(slots)))
            lanes = Lanes(Shares(emulation.capacity[device], state.numbers), mine, guard=state.guard)
        else:
            lanes = Lanes(Shares(emulation.capacity[device], own_state(len(slots))), mine)
    if token:
        meet(rank, schedule.world_size)
    if state is not None:
        state.forget()
    return lanes


def core_of(rank: int, boots: Sequence[str]) -> int | None:
    """The core for a rank to keep to, where a machine has more than `CROWD` ranks for each: they take them in turn.

    `boots` has every rank's `clock.boot_id`. A rank's threads take turns with Python anyway. On one core they do so
    without waking each other across cores: 450 messages took one rank 2.9 in place of 10 ms of core time (2 cores), and
    8 hosts with co-located shards were 3 to 5 in place of 5 to 8% slower than predicted. Fewer ranks have cores to
    spare, and are better free to leave one that is held up (as by the hypervisor).
    """
    if sys.platform != "linux":
        return None
    cores = sorted(os.sched_getaffinity(0))
    if boots.count(boots[rank]) <= CROWD * len(cores):
        return None
    return cores[boots[:rank].count(boots[rank]) % len(cores)]


@contextmanager
def realtime(wanted: bool, core: int | None = None) -> Iterator[bool]:
    """Run all threads of this process, and those that they start, under SCHED_FIFO and on `core`; if that is permitted.

    Gives whether it was. Ranks then run as soon as they can, and are not put off by other programs. They sleep nearly
    all of the time.
    """
    cores = os.sched_getaffinity(0) if sys.platform == "linux" else set()
    granted = wanted and _schedule_threads(cores if core is None else {core}, fifo=True)
    try:
        yield granted
    finally:
        if granted:
            _schedule_threads(cores, fifo=False)


def _schedule_threads(cores: AbstractSet[int], *, fifo: bool) -> bool:
    """Change the scheduling of all threads of this process; return False if that is not permitted."""
    if sys.platform != "linux":
        return False
    policy, priority = (os.SCHED_FIFO, REALTIME_PRIORITY) if fifo else (os.SCHED_OTHER, 0)
    for thread in os.listdir("/proc/self/task"):
        try:
            os.sched_setscheduler(int(thread), policy, os.sched_param(priority))
            os.sched_setaffinity(int(thread), cores)
        except PermissionError:
            return False
        except ProcessLookupError:  # it has just ended
            continue
    return True
