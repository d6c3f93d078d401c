"""What ranks time of accelerators: blocks within the engine, copies to and from the host, computing beside collectives.

A computation is timed by its own stream's events, from its beginning there to the instant at which the host sees its
end, as in a run. It runs in a lane of the engine while the other threads send messages of a few bytes: what launching
kernels takes is longer where several threads want Python's lock, and no copy disturbs the device.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import TypeVar

import torch

from stanza_sim.execute.calibrate.answers import Copies, CopySizes, Times
from stanza_sim.execute.calibrate.under_load import schedule_under_load
from stanza_sim.execute.rank.clock import now
from stanza_sim.execute.rank.context import Context
from stanza_sim.execute.rank.engine import Engine
from stanza_sim.execute.rank.exchange import gather_all, meet, share
from stanza_sim.execute.rank.interfaces import Beat
from stanza_sim.execute.rank.job import Backend
from stanza_sim.execute.train.passes import Passes
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import (
    Collective,
    CollectiveKind,
    Compute,
    Group,
    Phase,
    Ranks,
    Schedule,
    Transfer,
    UnitKind,
    Value,
    ValueKind,
    project,
)
from stanza_sim.schedule.progress import WINDOW

T = TypeVar("T")

MESSAGE_BYTES, MOST_EXCHANGING = 64, 8
"""Bytes of each message while blocks are timed, and up to how many ranks exchange any: each sends to all others."""
TIMEOUT_S = 600.0
TRIED, DROPPED = 3, 1
"""Iterations that tell how long one takes, and of each run those first ones that are not used."""
COPY_BYTES: CopySizes = (4096, 64 * 1024 * 1024)
COPY_REPEATS = (30, 10)
COLLECTIVE_BYTES = 25 * 1024 * 1024
"""As many as a bucket of torch's DistributedDataParallel has by default (`bucket_cap_mb`)."""
COMPUTE_S, ALONE, BESIDE_S = 1e-3, 30, 0.3
"""How long the computation beside collectives takes at least, how often it is timed alone, and for how long beside."""
LEAST_SIZE, MOST_SIZE, LEAST_BESIDE = 128, 8192, 3
"""Rows of the matrices that it multiplies, and in how many timings it must have fallen between two collectives."""


def in_thread(context: Context, body: Callable[[], T]) -> T:
    """What `body` returns, or raises, in a thread with a stream of its own."""
    found: list[T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            context.start_thread()
            context.accelerator.prepare()
            found.append(body())
        except BaseException as error:  # noqa: BLE001 - raised again below
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True, name="timing")
    thread.start()
    thread.join()
    if raised:
        raise raised[0]
    return found[0]


# --- blocks ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Work:
    """Computes with `passes` and notes how long each computation took; messages are bytes of no meaning."""

    passes: Passes
    first: int
    context: Context
    taken: list[tuple[int, Compute, float]] = field(default_factory=list)
    buffers: dict[tuple[str, int, int, bool], torch.Tensor] = field(default_factory=dict)

    def compute(self, op: Compute, iteration: int, ready_s: float) -> tuple[float, float]:
        """Carry it out."""
        begin_s, end_s = self.passes.compute(op, self.first + iteration)
        self.taken.append((iteration, op, end_s - begin_s))
        return begin_s, end_s

    def collective(self, op: Collective, iteration: int) -> None:
        """There is none."""

    def outgoing(self, op: Transfer, iteration: int, dst: int) -> torch.Tensor:
        """Bytes."""
        return self._buffer(op, iteration, dst, sent=True)

    def incoming(self, op: Transfer, iteration: int, src: int) -> torch.Tensor:
        """Room for bytes."""
        return self._buffer(op, iteration, src, sent=False)

    def _buffer(self, op: Transfer, iteration: int, peer: int, *, sent: bool) -> torch.Tensor:
        return self.buffers[op.name, iteration % WINDOW, peer, sent]

    def landed(self, op: Transfer, iteration: int, src: int) -> None:
        """Nothing is left to do."""

    def nbytes(self, op: Transfer, src: int, dst: int) -> int:
        """The op's size."""
        return op.nbytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TimesOnDevice:
    """Seconds of each computation, and what lies between two that follow on each other in a lane."""

    times: Times
    op_overhead_s: float


def time_on_device(
    passes: Passes,
    computations: Schedule,
    model: ModelProfile,
    blocks: frozenset[str],
    context: Context,
    *,
    seconds: float,
    least: int,
    most: int,
    beat: Beat,
) -> TimesOnDevice:
    """Time `blocks` in the engine for about `seconds`, in `least` to `most` iterations; every rank calls this."""
    exchanging = 1 < context.world_size <= MOST_EXCHANGING
    schedule = schedule_under_load(
        computations, model, blocks, context.world_size, exchanging=exchanging, message_bytes=MESSAGE_BYTES
    )
    run = _Runner(schedule, passes, context, beat)
    longest_s = max(gather_all(run(0, TRIED).took_s, context.rank, context.world_size))
    iterations = min(max(least, int(seconds * TRIED / longest_s)) + DROPPED, most - TRIED)
    found = run(TRIED, iterations)
    times: Times = {}
    for iteration, op, took_s in found.work.taken:
        if op.phase is not Phase.UPDATE and iteration >= min(DROPPED, iterations - 1):
            times.setdefault((op.target, computations.batch_per_worker, op.phase), []).append(took_s)
    return TimesOnDevice(times=times, op_overhead_s=found.gap_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ran:
    work: _Work
    took_s: float
    gap_s: float


class _Runner:
    """Runs `schedule` on this rank, every rank at once."""

    def __init__(self, schedule: Schedule, passes: Passes, context: Context, beat: Beat) -> None:
        self._schedule, self._passes, self._context, self._beat = schedule, passes, context, beat
        self._groups = context.groups.prepare(schedule, Backend.GLOO)
        self._program = project(schedule, context.rank)
        chain = [u for u in self._program.units if u.kind is UnitKind.COMPUTE]
        self._chain = [u.index for u in chain if isinstance(u.op, Compute) and u.op.phase is not Phase.UPDATE]

    def __call__(self, first: int, iterations: int) -> _Ran:
        """Run iterations `first`, `first` + 1 and so on of the passes."""
        context = self._context
        work = _Work(self._passes, first, context)
        for op in self._schedule.ops:
            for peer in range(context.world_size) if isinstance(op, Transfer) else ():
                for key in ((op.name, g, peer, sent) for g in range(WINDOW) for sent in (False, True)):
                    work.buffers[key] = torch.zeros(MESSAGE_BYTES, dtype=torch.uint8, device=context.device)
        context.accelerator.synchronize()
        transport = context.transport(Backend.GLOO, self._schedule, self._groups)
        engine = Engine(
            self._program,
            iterations,
            work,
            transport,
            start=context.start_thread,
            prepare=context.accelerator.prepare,
        )
        meet(context.rank, context.world_size)
        begin_s = now()
        engine.run(timeout_s=TIMEOUT_S, beat=self._beat)
        took_s = now() - begin_s
        transport.close()
        meet(context.rank, context.world_size)
        return _Ran(work=work, took_s=took_s, gap_s=self._gap_s(engine.spans))

    def _gap_s(self, spans: list[tuple[int, int, float, float]]) -> float:
        """The median of what lies between computations that follow on each other."""
        at = {(iteration, unit): (begin_s, end_s) for unit, iteration, begin_s, end_s in spans}
        gaps = [
            max(at[iteration, b][0] - at[iteration, a][1], 0.0)
            for iteration in {i for i, _ in at}
            for a, b in zip(self._chain, self._chain[1:], strict=False)
        ]
        return median(gaps) if gaps else 0.0


# --- copies ----------------------------------------------------------------------------------------------------------


def time_copies(context: Context) -> Copies:
    """Seconds of copies of `COPY_BYTES` from the device to page-locked memory and back, as who waits for them sees it.

    On all ranks at once; every rank calls this.
    """
    accelerator = context.accelerator

    def copies() -> Copies:
        host = accelerator.host_buffer(COPY_BYTES[1])
        device = torch.zeros(COPY_BYTES[1], dtype=torch.uint8, device=context.device)
        host.copy_(device)  # the first one takes pages
        accelerator.synchronize()

        def seconds(target: torch.Tensor, source: torch.Tensor, repeats: int) -> float:
            found = []
            for _ in range(repeats):
                begin_s = now()
                target.copy_(source, non_blocking=True)
                accelerator.synchronize()
                found.append(now() - begin_s)
            return median(found)

        small, large = (
            (seconds(host[:n], device[:n], repeats), seconds(device[:n], host[:n], repeats))
            for n, repeats in zip(COPY_BYTES, COPY_REPEATS, strict=True)
        )
        return (small[0], large[0]), (small[1], large[1])

    meet(context.rank, context.world_size)
    found = in_thread(context, copies)
    meet(context.rank, context.world_size)
    return found


# --- beside collectives ----------------------------------------------------------------------------------------------


def beside_collectives(context: Context) -> float | None:
    """How many times as long a multiplication of matrices takes beside all-reduces of NCCL's among all ranks.

    None where too few were under way at once to tell. Every rank calls this.
    """
    op = Collective(
        name="reduce",
        kind=CollectiveKind.ALL_REDUCE,
        ranks="all",
        value=Value(ValueKind.GRAD, "vector"),
        nbytes=COLLECTIVE_BYTES,
    )
    schedule = Schedule(
        name="beside",
        model="none",
        world_size=context.world_size,
        batch_per_worker=1,
        groups=(Group(name="all", ranks=Ranks.of(range(context.world_size))),),
        bundles=(),
        ops=(op,),
    )
    groups = context.groups.prepare(schedule, Backend.NCCL)
    transport = context.transport(Backend.NCCL, schedule, groups)
    accelerator = context.accelerator
    size = share(in_thread(context, lambda: _matrix_size(context)), context.rank, context.world_size)

    def reduce(count: int) -> tuple[float, float]:
        vector = torch.zeros(COLLECTIVE_BYTES // 4, device=context.device)
        accelerator.synchronize()
        begin_s = now()
        for _ in range(count):
            transport.collective(op, vector, vector)
        return begin_s, now()

    meet(context.rank, context.world_size)
    in_thread(context, lambda: reduce(1))  # the first one takes memory
    begin_s, end_s = in_thread(context, lambda: reduce(2))
    count = share(max(4, int(2 * BESIDE_S / (end_s - begin_s))), context.rank, context.world_size)
    alone = in_thread(context, lambda: _multiply(context, size, lambda done: done >= ALONE))
    over, during = threading.Event(), [0.0, 0.0]

    def collectives() -> None:
        try:
            during[:] = in_thread(context, lambda: reduce(count))
        finally:
            over.set()

    meet(context.rank, context.world_size)
    thread = threading.Thread(target=collectives, daemon=True, name="collectives")
    thread.start()
    spans = in_thread(context, lambda: _multiply(context, size, lambda done: over.is_set()))
    thread.join()
    transport.close()
    meet(context.rank, context.world_size)
    beside = [end - begin for begin, end in spans if during[0] <= begin and end <= during[1]]
    if len(beside) < LEAST_BESIDE:
        return None
    return median(beside) / median(end - begin for begin, end in alone)


def _matrix_size(context: Context) -> int:
    """Rows of square matrices whose product takes `COMPUTE_S` or more."""
    size = LEAST_SIZE
    while size < MOST_SIZE and median(e - b for b, e in _multiply(context, size, lambda n: n >= 3)) < COMPUTE_S:
        size *= 2
    return size


def _multiply(context: Context, size: int, enough: Callable[[int], bool]) -> list[tuple[float, float]]:
    """When multiplications of matrices of `size` rows began and ended, one after another till there are enough."""
    matrix = torch.zeros((size, size), device=context.device)
    product = torch.zeros((size, size), device=context.device)
    spans: list[tuple[float, float]] = []
    while not enough(len(spans)):
        began = context.accelerator.begin()
        torch.mm(matrix, matrix, out=product)
        spans.append(context.accelerator.finish(began))
    return spans
