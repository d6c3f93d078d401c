"""What ranks time for a network profile: single messages, wake-ups, the sharing of cores, and vectors of numbers.

Messages go through the engine and the transport of a run: whoever completes a dependency posts the send, and the
receiver's thread, which waits for it, marks it as arrived. One message is under way at a time.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from stanza_sim.base.processes import cores
from stanza_sim.execute.calibrate.answers import MessagesWanted, ProbeId, RankCores, RankMessages, Sent
from stanza_sim.execute.calibrate.timing import time_vectors
from stanza_sim.execute.emulated.emulate import core_of, realtime
from stanza_sim.execute.rank.clock import ClockOffset, boot_id, now
from stanza_sim.execute.rank.context import Context, announced
from stanza_sim.execute.rank.engine import Engine
from stanza_sim.execute.rank.exchange import gather_all, meet, share
from stanza_sim.execute.rank.interfaces import Beat, Handle
from stanza_sim.execute.rank.job import Backend
from stanza_sim.execute.rank.offset import estimate_offset
from stanza_sim.execute.rank.transport import TorchTransport
from stanza_sim.execute.start.world import device_name
from stanza_sim.schedule import (
    Collective,
    Compute,
    Group,
    Op,
    Pattern,
    Phase,
    Ranks,
    Schedule,
    Transfer,
    Value,
    ValueKind,
    project,
)

HOPS, HOP_S = 120, 4e-3
"""Wake-ups that each rank times, and how long a thread sleeps before each."""
BUSY_S, BUSY_REPEATS = 0.03, 3
"""How long a computation takes that several processes carry out at once, and how often they do."""
VECTOR_NUMEL, CONTRIBUTIONS = 1 << 20, 4
TIMEOUT_S = 60.0


class _ProbeWork:
    """The work of a rank that sends and receives messages of any size, and computes nothing."""

    def __init__(self, most: int, device: torch.device) -> None:
        self._out = torch.ones(most, dtype=torch.uint8, device=device)
        self._in = torch.ones(most, dtype=torch.uint8, device=device)

    def compute(self, op: Compute, iteration: int, ready_s: float) -> tuple[float, float]:
        """Nothing."""
        return ready_s, now()

    def collective(self, op: Collective, iteration: int) -> None:
        """Nothing."""

    def outgoing(self, op: Transfer, iteration: int, dst: int) -> Tensor:
        """As many bytes as the message has."""
        return self._out[: op.nbytes]

    def incoming(self, op: Transfer, iteration: int, src: int) -> Tensor:
        """Room for as many."""
        return self._in[: op.nbytes]

    def landed(self, op: Transfer, iteration: int, src: int) -> None:
        """Nothing is left to do."""

    def nbytes(self, op: Transfer, src: int, dst: int) -> int:
        """The op's size."""
        return op.nbytes


class _Stopwatch:
    """A transport that notes how long each send occupies who posts it."""

    def __init__(self, transport: TorchTransport) -> None:
        self._transport = transport
        self.seconds: list[float] = []

    def send(self, tensor: Tensor, dst: int, channel: str) -> Handle:
        """See `TorchTransport`."""
        begin = now()
        handle = self._transport.send(tensor, dst, channel)
        self.seconds.append(now() - begin)
        return handle

    def send_tagged(self, tensor: Tensor, dst: int, op: Transfer) -> Handle:
        """See `AnnouncedTransport`."""
        begin = now()
        handle = self._transport.send_tagged(tensor, dst, op)
        self.seconds.append(now() - begin)
        return handle

    def receive(self, tensor: Tensor, src: int, channel: str) -> Handle:
        """See `TorchTransport`."""
        return self._transport.receive(tensor, src, channel)

    def receive_tagged(self, tensor: Tensor, src: int, op: Transfer) -> Handle:
        """See `AnnouncedTransport`."""
        return self._transport.receive_tagged(tensor, src, op)

    def next_announced(self, src: int) -> str:
        """See `AnnouncedTransport`."""
        inner = announced(self._transport)
        if inner is None:
            raise RuntimeError("messages are not announced")
        return inner.next_announced(src)

    def together(
        self, sends: Sequence[tuple[Tensor, int]], receives: Sequence[tuple[Tensor, int]], channel: str
    ) -> list[Handle]:
        """See `TorchTransport`."""
        return self._transport.together(sends, receives, channel)


def probe_schedule(world_size: int, pair: tuple[int, int], sizes: Sequence[int]) -> Schedule:
    """The schedule of single messages: each size from the one rank to the other, then back, one after another."""
    ops: list[Op] = []
    for n, size in enumerate(sizes):
        for src, dst in (("here", "there"), ("there", "here")):
            ops.append(
                Transfer(
                    name=f"{src}{n}",
                    src=src,
                    dst=dst,
                    pattern=Pattern.ONE_TO_ONE,
                    values=(Value(ValueKind.ACT, "probe"),),
                    nbytes=size,
                    channel="probes",
                    after=(ops[-1].name,) if ops else (),
                    after_previous=() if ops else (f"there{len(sizes) - 1}",),
                )
            )
    return Schedule(
        name="probes",
        model="probes",
        world_size=world_size,
        batch_per_worker=1,
        groups=tuple(Group(name=n, ranks=Ranks.of([r])) for n, r in zip(("here", "there"), pair, strict=True)),
        bundles=(),
        ops=tuple(ops),
    )


def time_messages(wanted: MessagesWanted, context: Context, beat: Beat) -> RankMessages:
    """Send the messages that are wanted, one after another; every rank calls this at once."""
    context.start_thread()
    rank, ranks, boot = context.rank, context.world_size, boot_id()
    boots = gather_all(boot, rank, ranks)
    with realtime(wanted.realtime, core_of(rank, boots)) as granted:  # as ranks run that emulate
        before = estimate_offset(rank, ranks, boot, boots[0])
        sent, arrived = _messages(wanted, context, beat)
        after = estimate_offset(rank, ranks, boot, boots[0])
    clock = ClockOffset(before=before, after=after)
    return RankMessages(clock=clock, realtime=granted, sent=tuple(sent), arrived=arrived)


def _messages(wanted: MessagesWanted, context: Context, beat: Beat) -> tuple[list[Sent], dict[ProbeId, float]]:
    """Send the messages of all pairs; what this rank sent, and when what it received arrived."""
    backend = context.backend(wanted.backend)
    sent: list[Sent] = []
    arrived: dict[ProbeId, float] = {}
    for number, (pair, sizes) in enumerate(wanted.pairs):
        for some, repeats in sizes.rounds:
            schedule = probe_schedule(context.world_size, pair, some)
            groups = context.groups.prepare(schedule, backend)
            meet(context.rank, context.world_size)
            if context.rank in pair:
                # gloo's messages are in host memory; what staging costs on top is not the network's.
                device = context.device if backend is Backend.NCCL else torch.device("cpu")
                inner = TorchTransport(schedule, context.rank, groups, context.library(backend))
                if backend is Backend.NCCL:
                    inner = context.transport(backend, schedule, groups)
                transport = _Stopwatch(inner)
                engine = Engine(
                    project(schedule, context.rank),
                    repeats,
                    _ProbeWork(max(some), device),
                    transport,
                    announced=transport if announced(inner) else None,
                    start=context.start_thread,
                )
                engine.run(timeout_s=TIMEOUT_S, beat=beat)
                inner.close()
                for m, posting_s in zip(engine.sends, transport.seconds, strict=True):
                    direction = int(context.rank == pair[1])
                    sent.append(Sent((number, direction, m.nbytes, m.iteration), m.posted_s, posting_s))
                for m in engine.receives:
                    arrived[number, int(context.rank == pair[0]), m.nbytes, m.iteration] = m.arrived_s
            meet(context.rank, context.world_size)
            beat()
    return sent, arrived


# --- wake-ups --------------------------------------------------------------------------------------------------------


class _Nap:
    """A message that arrives after a while."""

    def wait(self) -> None:
        """Sleep, in the thread that receives."""
        time.sleep(HOP_S)


class _Naps:
    """Moves nothing."""

    def send(self, tensor: None, dst: int, channel: str) -> Handle:
        """Nothing is sent."""
        return _Nap()

    def receive(self, tensor: None, src: int, channel: str) -> Handle:
        """A message that no one sends."""
        return _Nap()

    def together(
        self, sends: Sequence[tuple[None, int]], receives: Sequence[tuple[None, int]], channel: str
    ) -> list[Handle]:
        """See `receive`."""
        return [_Nap() for _ in receives]


class _WakeupLatency:
    """Notes how long after its last dependency was met a computation's thread runs."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def compute(self, op: Compute, iteration: int, ready_s: float) -> tuple[float, float]:
        """Note the delay."""
        at_s = now()
        self.seconds.append(at_s - ready_s)
        return at_s, at_s

    def collective(self, op: Collective, iteration: int) -> None:
        """Nothing."""

    def outgoing(self, op: Transfer, iteration: int, dst: int) -> None:
        """Nothing is sent."""

    def incoming(self, op: Transfer, iteration: int, src: int) -> None:
        """Nothing is received."""

    def landed(self, op: Transfer, iteration: int, src: int) -> None:
        """Nothing is left to do."""

    def nbytes(self, op: Transfer, src: int, dst: int) -> int:
        """As if there were a byte."""
        return 1


def _hops(context: Context) -> list[float]:
    """Seconds from marking a message as arrived, in the thread that receives, to the lane's thread running."""
    probe = Transfer(
        name="probe",
        src="there",
        dst="here",
        pattern=Pattern.ONE_TO_ONE,
        values=(Value(ValueKind.ACT, "probe"),),
        nbytes=1,
        channel="probes",
    )
    read = Compute(name="read", ranks="here", phase=Phase.FORWARD, target="probe", after=("probe",))
    schedule = Schedule(
        name="hops",
        model="hops",
        world_size=2,
        batch_per_worker=1,
        groups=(Group(name="here", ranks=Ranks.of([0])), Group(name="there", ranks=Ranks.of([1]))),
        bundles=(),
        ops=(probe, read),
    )
    work = _WakeupLatency()
    engine = Engine(project(schedule, 0), HOPS, work, _Naps(), start=context.start_thread)
    meet(context.rank, context.world_size)
    engine.run(timeout_s=TIMEOUT_S)
    meet(context.rank, context.world_size)
    return work.seconds


# --- cores -----------------------------------------------------------------------------------------------------------


def time_cores(busy: Sequence[int], in_realtime: bool, context: Context, beat: Beat) -> RankCores:
    """Time wake-ups, computing by so many ranks of a machine at once, and vectors; every rank calls this at once."""
    context.start_thread()
    with realtime(in_realtime):
        hops = _hops(context)
    beat()
    boots = gather_all(boot_id(), context.rank, context.world_size)
    sharing = _Sharing(context, boots)
    busy_s = {count: tuple(sharing.seconds(count)) for count in busy}
    beat()
    reduce_Bps, update_Bps = time_vectors(VECTOR_NUMEL, torch.float32, CONTRIBUTIONS, context)
    name, driver = device_name(context.device)
    return RankCores(
        device=name,
        driver=driver,
        cores=cores(),
        kernel=platform.release(),
        torch_version=torch.__version__.split("+")[0],
        hops=tuple(hops),
        busy_s=busy_s,
        reduce_Bps=tuple(reduce_Bps),
        update_Bps=tuple(update_Bps),
    )


class _Sharing:
    """A computation that several ranks of one machine carry out at once."""

    def __init__(self, context: Context, boots: Sequence[str]) -> None:
        self._context = context
        self._place = sum(boot == boots[context.rank] for boot in boots[: context.rank])
        self._matrix = torch.full((192, 192), 1e-3)
        self._rounds = 1
        while context.rank == 0 and self._seconds() < BUSY_S:
            self._rounds *= 2
        self._rounds = share(self._rounds, context.rank, context.world_size)

    def seconds(self, busy: int) -> list[float]:
        """What it takes with so many at once on each machine, again and again; nothing at ranks that rest."""
        meet(self._context.rank, self._context.world_size)
        found = [self._seconds() for _ in range(BUSY_REPEATS)] if self._place < busy else []
        meet(self._context.rank, self._context.world_size)
        return found

    def _seconds(self) -> float:
        begin = now()
        for _ in range(self._rounds):
            torch.mm(self._matrix, self._matrix)
        return now() - begin
