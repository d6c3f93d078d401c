"""Blocks timed under load: all ranks of a host compute while messages pass between them.

Alone a block finds its data in the caches that it has just left, and a message wakes threads that nothing else keeps
from running. In a run they disturb each other, so what both cost the cores is measured while they do. This is not any
strategy's schedule: once a rank has a block's gradients, it sends as many bytes as they have, in equal parts, to all
other ranks, and it updates the block when theirs have come. Messages come in volleys in most schedules, and one of a
volley costs the cores half of what a lone one does, which wakes threads for itself alone.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field, replace

import torch

from stanza_sim.base.processes import cores
from stanza_sim.execute.calibrate.answers import MessageCores, Times
from stanza_sim.execute.rank.clock import now
from stanza_sim.execute.rank.context import Context
from stanza_sim.execute.rank.engine import Engine
from stanza_sim.execute.rank.exchange import gather_all, meet
from stanza_sim.execute.rank.interfaces import Beat
from stanza_sim.execute.rank.job import Backend
from stanza_sim.execute.rank.steal import idle_s
from stanza_sim.execute.train.passes import Passes
from stanza_sim.model.profile import ModelProfile
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

CHANNEL = "under_load"
TIMEOUT_S = 600.0
"""One computation may take this long."""
TRIED = 2
"""Iterations that tell how long one takes."""
OVERHEAD_ITERATIONS = 4
MOST_REST_S = 4e-3
"""A tick of a kernel at 250 Hz, in which the longest time slices of Linux's scheduler end (`CONFIG_HZ`)."""


def schedule_under_load(
    computations: Schedule, model: ModelProfile, blocks: frozenset[str], world_size: int, *, exchanging: bool = True
) -> Schedule:
    """Those of `computations`, all of one rank, that are of `blocks`, on all ranks, with updates and with messages.

    It trains nothing and is not legal: what arrives is not used. Unless `exchanging` there are no messages.
    """
    computed = [op for op in computations.ops if isinstance(op, Compute) and op.target in blocks]
    sizes = {b.name: b.numel * model.itemsize for b in model.blocks if b.numel}
    ops: list[Op] = []
    for op in computed:
        before = (ops[-1].name,) if ops else ()
        updates = () if ops else tuple(f"update.{b}" for b in sizes if b in blocks)
        ops.append(replace(op, ranks="all", after=before, after_previous=updates))
    for op in computed:
        if op.phase in (Phase.BACKWARD, Phase.BACKWARD_WEIGHT) and op.target in sizes:
            exchange = Transfer(
                name=f"exchange.{op.target}",
                src="all",
                dst="all",
                pattern=Pattern.ALL_PAIRS,
                values=(Value(ValueKind.ACT, op.target),),
                nbytes=max(sizes[op.target] // max(world_size - 1, 1), 1),
                channel=CHANNEL,
                after=(op.name,),
            )
            update = Compute(
                name=f"update.{op.target}",
                ranks="all",
                phase=Phase.UPDATE,
                target=op.target,
                after=(op.name, f"{exchange.name}.recv") if exchanging else (op.name,),
            )
            ops += [exchange, update] if exchanging else [update]
    return Schedule(
        name="under_load",
        model=model.name,
        world_size=world_size,
        batch_per_worker=computations.batch_per_worker,
        itemsize=model.itemsize,
        groups=(Group(name="all", ranks=Ranks.of(range(world_size))),),
        bundles=(),
        ops=tuple(ops),
    )


@dataclass(slots=True)
class _Work:
    """Computes with `passes`, and notes what each computation cost the core; messages are bytes of no meaning.

    A block's messages, both ways and in all iterations, share one of the `buffers`.
    """

    passes: Passes
    first: int
    buffers: dict[str, torch.Tensor]
    found: Times = field(default_factory=dict)
    update_s: float = 0.0
    core_s: float = 0.0
    computed: int = 0

    def compute(self, op: Compute, iteration: int, ready_s: float) -> tuple[float, float]:
        begin_s, before_s = now(), time.thread_time()
        self.passes.compute(op, self.first + iteration)
        took_s = time.thread_time() - before_s
        self.core_s += took_s
        self.computed += 1
        if op.phase is Phase.UPDATE:
            self.update_s += took_s
        else:
            self.found.setdefault((op.target, self.passes.schedule.batch_per_worker, op.phase), []).append(took_s)
        return begin_s, now()

    def collective(self, op: Collective, iteration: int) -> None:
        raise ValueError(f"{op.name}: there is no collective here")

    def outgoing(self, op: Transfer, iteration: int, dst: int) -> torch.Tensor:
        return self._buffer(op)

    def incoming(self, op: Transfer, iteration: int, src: int) -> torch.Tensor:
        return self._buffer(op)

    def _buffer(self, op: Transfer) -> torch.Tensor:
        name = op.values[0].name
        if name not in self.buffers:
            self.buffers[name] = torch.zeros(op.nbytes, dtype=torch.uint8)
        return self.buffers[name]

    def landed(self, op: Transfer, iteration: int, src: int) -> None:
        pass

    def nbytes(self, op: Transfer, src: int, dst: int) -> int:
        return op.nbytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TimesUnderLoad:
    """What one rank found: core seconds of computations, bytes per second of updates, what messages cost its cores,
    and for how long a core had nothing to do in an iteration (see `SectionTimes`)."""

    times: Times
    update_Bps: float | None
    messages: MessageCores
    rest_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ran:
    """What a run came to: its wall time, this process's core time, and the core seconds that the machine was idle."""

    work: _Work
    took_s: float
    core_s: float
    idle_s: float


class _Runner:
    """Runs `schedule` on this rank again and again, with the same buffers; every rank calls it at once."""

    def __init__(self, schedule: Schedule, passes: Passes, context: Context, beat: Beat) -> None:
        self._schedule, self._passes, self._context, self._beat = schedule, passes, context, beat
        self._groups = context.groups.prepare(schedule, Backend.GLOO)
        self._program = project(schedule, context.rank)
        self._buffers: dict[str, torch.Tensor] = {}

    def __call__(self, first: int, iterations: int) -> _Ran:
        """Run iterations `first`, `first` + 1 and so on of the passes."""
        context = self._context
        work = _Work(self._passes, first, self._buffers)
        transport = context.transport(Backend.GLOO, self._schedule, self._groups)
        engine = Engine(self._program, iterations, work, transport, start=context.start_thread)
        meet(context.rank, context.world_size)
        begin_s, core_before_s, idle_before_s = now(), time.process_time(), idle_s()
        engine.run(timeout_s=TIMEOUT_S, beat=self._beat)
        found = _Ran(
            work=work,
            took_s=now() - begin_s,
            core_s=time.process_time() - core_before_s,
            idle_s=idle_s() - idle_before_s,
        )
        meet(context.rank, context.world_size)
        return found


def overhead_under_load(
    passes: Passes, computations: Schedule, model: ModelProfile, blocks: frozenset[str], context: Context, *, beat: Beat
) -> float:
    """Core seconds that the engine adds to a computation of `blocks` while all ranks compute, without any messages.

    It is five to ten times what it adds to a computation that does nothing, whose data and code are in the caches.
    Every rank calls this at once.
    """
    run = _Runner(
        schedule_under_load(computations, model, blocks, context.world_size, exchanging=False), passes, context, beat
    )
    run(0, TRIED)
    found = run(TRIED, OVERHEAD_ITERATIONS)
    return max((found.core_s - found.work.core_s) / found.work.computed, 0.0)


def rest_s(idle_s: float, took_s: float, iterations: int, *, cores_in_all: int, computing: int) -> float:
    """For how long a core that ranks compute on rests in an iteration in which all of them meet once.

    Of a machine's `cores_in_all`, all but those `computing` rest anyway; together they rested for `idle_s` core seconds
    in `took_s`. What is longer than `MOST_REST_S` is no wait for a core but for data, which has a price of its own.
    """
    rested_s = idle_s - (cores_in_all - computing) * took_s
    return min(max(rested_s / computing / iterations, 0.0), MOST_REST_S)


def time_under_load(
    passes: Passes,
    computations: Schedule,
    model: ModelProfile,
    blocks: frozenset[str],
    context: Context,
    *,
    seconds: float,
    least: int,
    most: int,
    op_overhead_s: float,
    beat: Beat,
) -> TimesUnderLoad:
    """Time `blocks` under load for about `seconds`, in `least` to `most` iterations.

    Every rank calls this at once, on one host, with gloo. `beat` is called while there is progress.
    """
    schedule = schedule_under_load(computations, model, blocks, context.world_size)
    run = _Runner(schedule, passes, context, beat)
    longest_s = max(gather_all(run(0, TRIED).took_s, context.rank, context.world_size))
    iterations = min(max(least, int(seconds * TRIED / longest_s)), most - TRIED)
    found = run(TRIED, iterations)
    work = found.work
    sizes = {b.name: b.numel * model.itemsize for b in model.blocks}
    updated = sum(sizes[op.target] for op in schedule.ops if isinstance(op, Compute) and op.phase is Phase.UPDATE)
    sent = [op for op in schedule.ops if isinstance(op, Transfer)]
    ends = 2 * iterations * (context.world_size - 1)  # what a rank sends, and what it receives
    return TimesUnderLoad(
        times=work.found,
        update_Bps=iterations * updated / work.update_s if work.update_s else None,
        messages=MessageCores(
            core_s=found.core_s - work.core_s - work.computed * op_overhead_s,
            ends=ends * len(sent),
            nbytes=ends * sum(op.nbytes for op in sent),
        ),
        rest_s=rest_s(
            found.idle_s,
            found.took_s,
            iterations,
            cores_in_all=os.cpu_count() or 1,
            computing=min(cores(), context.local_size),
        ),
    )
