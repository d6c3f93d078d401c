"""Timing blocks on the ranks, section by section, while all local ranks compute at once.

Nothing here runs a strategy's schedule: the blocks run without communication or, on cores that all ranks share, with
that of `under_load`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import median

from stanza_sim.base.optimizers import OptimizerKind
from stanza_sim.base.precision import Precision
from stanza_sim.base.processes import cores
from stanza_sim.execute.calibrate.answers import MessageCores, Section, SectionsWanted, SectionTimes, Times
from stanza_sim.execute.calibrate.on_device import time_on_device
from stanza_sim.execute.calibrate.under_load import overhead_under_load, time_under_load
from stanza_sim.execute.rank.clock import now
from stanza_sim.execute.rank.context import Context
from stanza_sim.execute.rank.exchange import meet
from stanza_sim.execute.rank.interfaces import Beat
from stanza_sim.execute.rank.job import Optimizer, Training
from stanza_sim.execute.train.arithmetic import Arithmetic, switched
from stanza_sim.execute.train.build import build
from stanza_sim.execute.train.data import Dataset, Synthetic, stack
from stanza_sim.execute.train.flat import FlatBundle
from stanza_sim.execute.train.passes import Passes
from stanza_sim.execute.train.samples import follow
from stanza_sim.execute.train.slices import HeldBlock
from stanza_sim.execute.train.values import RankValues
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Bundle, Compute, Group, Op, Phase, Ranks, Schedule
from stanza_sim.schedule.progress import WINDOW

MOST_CYCLES, DROPPED = 60, 2


class Timer:
    """Core time of the calling thread on one CPU thread, time on a GPU's stream, wall time with several threads.

    With several threads the wall time is divided by the ranks' demand for cores where that exceeds what there is.
    """

    def __init__(self, context: Context) -> None:
        self._accelerator = context.accelerator
        self.own = not self._accelerator.asynchronous and context.threads == 1
        demand = context.local_size * context.threads
        self._share = 1.0 if self.own or self._accelerator.asynchronous else min(1.0, cores() / demand)

    def __call__(self, body: Callable[[], object]) -> float:
        """Carry out `body`; return the seconds that it took."""
        if self.own:
            begin = time.thread_time()
            body()
            return time.thread_time() - begin
        began = self._accelerator.begin()
        body()
        begin_s, end_s = self._accelerator.finish(began)
        return (end_s - begin_s) * self._share


def alone(model: ModelProfile, samples: int, *, apart: bool) -> Schedule:
    """One rank that passes forward and backward through the model, without any exchange.

    With `apart` the gradients of a block's input and of its weights are computed one after the other.
    """
    ops: list[Op] = []

    def add(phase: Phase, target: str) -> None:
        after = (ops[-1].name,) if ops else ()
        ops.append(Compute(name=f"{phase}.{target}", ranks="worker", phase=phase, target=target, after=after))

    for b in model.blocks:
        add(Phase.FORWARD, b.name)
    add(Phase.LOSS, model.blocks[-1].name)
    for b in reversed(model.blocks):
        if apart:
            add(Phase.BACKWARD_INPUT, b.name)
            add(Phase.BACKWARD_WEIGHT, b.name)
        else:
            add(Phase.BACKWARD, b.name)
    return Schedule(
        name="alone",
        model=model.name,
        world_size=1,
        batch_per_worker=samples,
        itemsize=model.itemsize,
        groups=(Group(name="worker", ranks=Ranks.of([0])),),
        bundles=tuple(
            Bundle(name=b.name, tensors=tuple(t.name for t in b.tensors), numel=b.numel, owners="worker")
            for b in model.blocks
            if b.tensors
        ),
        ops=tuple(ops),
    )


def sections_of(samples: Mapping[str, tuple[int, ...]]) -> tuple[Section, ...]:
    """Sections of the numbers of `samples` of each block, each with its gradients at once and one after the other."""
    return tuple(
        Section(samples=n, apart=apart, blocks=frozenset(name for name, counts in samples.items() if n in counts))
        for n in sorted({n for counts in samples.values() for n in counts})
        for apart in (False, True)
    )


def timed_under_load(timer: Timer, context: Context) -> bool:
    """Whether blocks are timed while messages pass: where ranks are one thread each, and share the cores of a host."""
    return timer.own and 1 < context.world_size == context.local_size


def time_overhead(
    model: ModelProfile,
    section: Section,
    seed: int,
    context: Context,
    beat: Beat,
    precision: Precision = Precision.FP32,
) -> float | None:
    """Seconds that the engine adds to a computation of `section`, on cores that all ranks share or on a GPU; else None.

    Of cores these are core seconds.
    """
    context.start_thread()
    on_device = context.accelerator.asynchronous
    if not on_device and not timed_under_load(Timer(context), context):
        return None
    _, held, bundles = build(alone(model, 1, apart=False), model, 0, seed, context.device)
    schedule = alone(model, section.samples, apart=section.apart)
    with switched(precision):
        passes = _filled(model, seed, schedule, context, held, bundles, precision)
        if on_device:
            found = time_on_device(
                passes, schedule, model, section.blocks, context, seconds=0.0, least=1, most=MOST_CYCLES, beat=beat
            )
            return found.op_overhead_s
        return overhead_under_load(passes, schedule, model, section.blocks, context, beat=beat)


def time_again(wanted: SectionsWanted, context: Context, beat: Beat) -> SectionTimes:
    """Time sections of blocks, on cores that all ranks share under load, on GPUs within the engine.

    Every rank calls this at once.
    """
    with switched(wanted.precision):
        return _time_again(wanted, context, beat)


def _time_again(wanted: SectionsWanted, context: Context, beat: Beat) -> SectionTimes:
    context.start_thread()
    timer = Timer(context)
    times: Times = {}
    messages: list[MessageCores] = []
    updates: list[float] = []
    rests: list[float] = []
    model = wanted.model
    together = timed_under_load(timer, context)
    _, held, bundles = build(
        replace(alone(model, 1, apart=False), moments=wanted.moments), model, 0, wanted.seed, context.device
    )
    for section in wanted.sections:
        schedule = replace(alone(model, section.samples, apart=section.apart), moments=wanted.moments)
        passes = _filled(model, wanted.seed, schedule, context, held, bundles, wanted.precision)
        if together:
            found = time_under_load(
                passes,
                schedule,
                model,
                section.blocks,
                context,
                seconds=wanted.seconds,
                least=wanted.least,
                most=MOST_CYCLES,
                op_overhead_s=wanted.op_overhead_s,
                beat=beat,
            )
            for what, seconds in found.times.items():
                times.setdefault(what, []).extend(seconds)
            updates += [] if found.update_Bps is None else [found.update_Bps]
            messages.append(found.messages)
            rests.append(found.rest_s)
        elif context.accelerator.asynchronous:
            on_device = time_on_device(
                passes,
                schedule,
                model,
                section.blocks,
                context,
                seconds=wanted.seconds,
                least=wanted.least,
                most=MOST_CYCLES,
                beat=beat,
            )
            for what, seconds in on_device.times.items():
                times.setdefault(what, []).extend(seconds)
        else:
            _time_blocks(schedule, passes, section.blocks, context, timer, times, wanted)
        beat()
    return SectionTimes(
        blocks=times,
        update_Bps=median(updates) if updates else None,
        messages=tuple(messages),
        rests_s=tuple(rests),
    )


def timed_optimizer(moments: int) -> Optimizer:
    """An optimiser that keeps so many vectors, whose updates are timed: they change no parameters."""
    kind = OptimizerKind.ADAM if moments == 2 else OptimizerKind.SGD
    return Optimizer(kind=kind, lr=0.0, momentum=0.9 if moments else 0.0)


def _filled(
    model: ModelProfile,
    seed: int,
    schedule: Schedule,
    context: Context,
    held: list[HeldBlock],
    bundles: dict[str, FlatBundle],
    precision: Precision,
) -> Passes:
    """What carries out the computations of `schedule`, one of `alone`; each was done once in both generations."""
    device, count = context.device, schedule.batch_per_worker
    items = Dataset("synthetic", Synthetic(model, seed), model, model.labels)
    x, y = stack(items, range(count), device)
    values = RankValues(
        schedule=schedule,
        model=model,
        rank=0,
        samples=follow(schedule, model),
        blocks=held,
        bundles=bundles,
        batch=lambda iteration: (x, y),
        device=device,
        arithmetic=Arithmetic(precision=precision),
    )
    training = Training(iterations=MOST_CYCLES + 1, warmup=0, seed=seed, optimizer=timed_optimizer(schedule.moments))
    passes = Passes(values, training, context.accelerator, kept=True)
    for i in range(WINDOW):
        for op in schedule.ops:
            if isinstance(op, Compute):
                passes.compute(op, i)
    return passes


def _time_blocks(
    schedule: Schedule,
    passes: Passes,
    blocks: frozenset[str],
    context: Context,
    timer: Timer,
    times: Times,
    wanted: SectionsWanted,
) -> None:
    """Time `blocks`, in their order again and again, without any messages."""
    again = [op for op in schedule.ops if isinstance(op, Compute) and op.target in blocks]
    count = schedule.batch_per_worker
    meet(context.rank, context.world_size)
    begin = now()
    for i in range(WINDOW, MOST_CYCLES):
        for op in again:
            seconds = timer(lambda op=op, i=i: passes.compute(op, i))  # type: ignore[misc]
            if i >= DROPPED + WINDOW:
                times.setdefault((op.target, count, op.phase), []).append(seconds)
        if i >= DROPPED + WINDOW + wanted.least and now() - begin > wanted.seconds:
            break
    meet(context.rank, context.world_size)
