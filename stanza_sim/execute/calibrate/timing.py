"""Timing on the ranks: blocks while all local ranks compute at once, and single messages between two of them.

Nothing here runs a strategy's schedule: the blocks run as in `sections`, and the probes send one message at a time
between two ranks while the others rest.
"""

from __future__ import annotations

import time
from functools import partial
from statistics import median

import torch
from torch import Tensor

from stanza_sim.base.processes import cores
from stanza_sim.execute.calibrate.answers import MessageTimes, ProbeTimes, RankTimes, SectionsWanted, Wanted
from stanza_sim.execute.calibrate.on_device import COPY_BYTES, beside_collectives, time_copies
from stanza_sim.execute.calibrate.provenance import provenance_of
from stanza_sim.execute.calibrate.sections import Timer, sections_of, time_again, time_overhead, timed_optimizer
from stanza_sim.execute.rank.clock import now
from stanza_sim.execute.rank.context import Context, announced
from stanza_sim.execute.rank.engine import Engine
from stanza_sim.execute.rank.exchange import gather_all, meet
from stanza_sim.execute.rank.interfaces import Beat
from stanza_sim.execute.rank.job import Backend
from stanza_sim.execute.rank.transport import TorchTransport
from stanza_sim.execute.start.world import device_name
from stanza_sim.execute.train.flat import add_in_order, dtype_of
from stanza_sim.execute.train.updates import update as update_flat
from stanza_sim.schedule import (
    Collective,
    Compute,
    Group,
    Pattern,
    Ranks,
    Schedule,
    Transfer,
    Value,
    ValueKind,
    parse,
    project,
)

SECTION_S, LEAST_CYCLES = 0.5, 4
"""Wall time spent on each pair of sample count and way of backward pass, and how often it is timed at least."""
SMALL_BYTES, LARGE_BYTES = 1024, 4 * 1024 * 1024
SMALL_EXCHANGES, LARGE_EXCHANGES = 150, 12
PROBE_ROUNDS = 5
"""Of which the median counts: within a tenth of a second the speed of a core may change by a third."""
COLD_BYTES, MOST_BUFFERS = 32 * 1024 * 1024, 64
"""Buffers of so many bytes in all, or so many, take turns in probes: what a run sends is seldom in a core's cache."""
NULL_OPS, NULL_ITERATIONS = 50, 20
VECTOR_REPEATS = 15


def time_all(wanted: Wanted, context: Context, beat: Beat) -> RankTimes:
    """Time blocks, reduction, update, the engine's overhead and single messages; every rank calls this at once."""
    context.start_thread()
    model, parts = wanted.model, sections_of(wanted.samples)
    overhead = time_overhead(model, parts[0], wanted.seed, context, beat, wanted.precision)
    if overhead is None:
        overhead = _time_engine(context)
    sections = SectionsWanted(
        model=model,
        sections=parts,
        seconds=SECTION_S,
        least=LEAST_CYCLES,
        op_overhead_s=overhead,
        seed=wanted.seed,
        precision=wanted.precision,
        moments=wanted.moments,
    )
    found = time_again(sections, context, beat)
    numel = max(b.numel for b in model.blocks)
    rates = time_vectors(numel, dtype_of(model.itemsize), max(wanted.contributions, 2), context, wanted.moments)
    beat()
    loopback = probe(wanted.backend, context)
    name, driver = device_name(context.device)
    return RankTimes(
        host=context.host,
        device=name,
        driver=driver,
        cores=cores(),
        blocks=found.blocks,
        reduce_Bps=median(rates[0]),
        update_Bps=median(rates[1]) if found.update_Bps is None else found.update_Bps,
        op_overhead_s=overhead,
        small_bytes=SMALL_BYTES,
        large_bytes=LARGE_BYTES,
        small=loopback.small,
        large=loopback.large,
        between_devices=loopback.between_devices,
        copy_bytes=loopback.copy_bytes,
        copies=loopback.copies,
        beside_collective=loopback.beside_collective,
        provenance=provenance_of(context),
        messages=found.messages,
        rests_s=found.rests_s,
        torch_version=torch.__version__.split("+")[0],
    )


def time_vectors(
    numel: int, dtype: torch.dtype, contributions: int, context: Context, moments: int = 1
) -> tuple[list[float], list[float]]:
    """Bytes per second read by a reduction in rank order, and parameter bytes per second of an update, again and again.

    On vectors of `numel` elements, with all ranks at once; the optimiser keeps `moments` such vectors.
    """
    timer = Timer(context)

    def vectors(count: int) -> list[Tensor]:
        return [torch.zeros(numel, dtype=dtype, device=context.device) for _ in range(count)]

    parts = vectors(contributions)
    total, parameters, gradient, *state = vectors(3 + moments)
    optimizer, divisor = timed_optimizer(moments), torch.ones((), device=context.device)

    def reduce() -> None:
        add_in_order(parts, total)

    def update() -> None:
        update_flat([parameters], [gradient], [[vector] for vector in state], optimizer, step=1, divisor=divisor)

    meet(context.rank, context.world_size)
    reduced, updated = (
        [nbytes / max(timer(body), 1e-9) for _ in range(VECTOR_REPEATS)]
        for body, nbytes in ((reduce, contributions * total.nbytes), (update, total.nbytes))
    )
    return reduced, updated


class _Bytes:
    """Work that does nothing, for the engine's own cost; or sends `size` bytes to and fro."""

    def __init__(self, size: int, device: torch.device) -> None:
        self._size = size
        count = min(max(COLD_BYTES // max(size, 1), 4), MOST_BUFFERS)
        self._buffers = [torch.zeros(max(size, 1), dtype=torch.uint8, device=device) for _ in range(count)]

    def compute(self, op: Compute, iteration: int, ready_s: float) -> tuple[float, float]:
        """Nothing."""
        at_s = now()
        return at_s, at_s

    def collective(self, op: Collective, iteration: int) -> None:
        """Nothing."""

    def outgoing(self, op: Transfer, iteration: int, dst: int) -> Tensor:
        """Bytes."""
        return self._buffers[2 * iteration % len(self._buffers)]

    def incoming(self, op: Transfer, iteration: int, src: int) -> Tensor:
        """Room for bytes."""
        return self._buffers[(2 * iteration + 1) % len(self._buffers)]

    def landed(self, op: Transfer, iteration: int, src: int) -> None:
        """Nothing is left to do."""

    def nbytes(self, op: Transfer, src: int, dst: int) -> int:
        """The probe's size."""
        return self._size


def _time_engine(context: Context) -> float:
    """Core seconds that the engine takes for one computation that does nothing, on all ranks at once."""
    lines = ["schedule null model=null world=1 batch=1", "group worker 0"]
    for n in range(NULL_OPS):
        after = f" after=op{n - 1}" if n else f" after_previous=op{NULL_OPS - 1}"
        lines.append(f"op{n}: forward b{n} @worker{after}")
    schedule = parse("\n".join(lines))
    work = _Bytes(0, torch.device("cpu"))
    transport = context.transport(Backend.GLOO, schedule, {})
    engine = Engine(project(schedule, 0), NULL_ITERATIONS, work, transport, start=context.start_thread)
    meet(context.rank, context.world_size)
    begin = time.process_time()
    engine.run(timeout_s=60)
    return (time.process_time() - begin) / (NULL_OPS * NULL_ITERATIONS)


def probe(wanted: Backend, context: Context) -> ProbeTimes:
    """Time single messages between ranks 0 and 1 if they share a host; every rank calls this at once.

    On accelerators also copies to and from the host, and computing beside collectives of NCCL's.
    """
    context.start_thread()
    backend = context.backend(wanted)
    hosts = gather_all(context.host, context.rank, context.world_size)
    near = hosts[0] in hosts[1:2]
    on_device, nccl = context.accelerator.asynchronous, backend is Backend.NCCL
    return ProbeTimes(
        host=context.host,
        cores=cores(),
        small_bytes=SMALL_BYTES,
        large_bytes=LARGE_BYTES,
        small=_probe(SMALL_BYTES, SMALL_EXCHANGES, context, backend) if near else None,
        large=_probe(LARGE_BYTES, LARGE_EXCHANGES, context, backend) if near else None,
        between_devices=nccl,
        copy_bytes=COPY_BYTES if on_device else None,
        copies=time_copies(context) if on_device else None,
        beside_collective=beside_collectives(context) if nccl and context.world_size > 1 else None,
    )


def _probe(size: int, exchanges: int, context: Context, backend: Backend) -> MessageTimes | None:
    """Wall seconds of a message of `size` bytes and core seconds of this process for it, on ranks 0 and 1.

    Each sends when it has received, through the same engine and transport as a run: what posting, waking and
    marking cost is in. Gloo's messages are in host memory here: copies to and from devices are timed by themselves.
    Ranks other than 0 and 1 wait meanwhile, and get None.
    """
    if context.world_size < 2:
        return None
    value = (Value(ValueKind.ACT, "b"),)
    schedule = Schedule(
        name="probe",
        model="probe",
        world_size=2,
        batch_per_worker=1,
        groups=(Group(name="a", ranks=Ranks.of([0])), Group(name="b", ranks=Ranks.of([1]))),
        bundles=(),
        ops=(
            Transfer(
                name="ping",
                src="a",
                dst="b",
                pattern=Pattern.ONE_TO_ONE,
                values=value,
                nbytes=size,
                channel="probe",
                after_previous=("pong",),
            ),
            Transfer(
                name="pong",
                src="b",
                dst="a",
                pattern=Pattern.ONE_TO_ONE,
                values=value,
                nbytes=size,
                channel="probe",
                after=("ping",),
            ),
        ),
    )
    groups = context.groups.prepare(schedule, backend)
    in_memory = backend is Backend.GLOO
    device = torch.device("cpu") if in_memory else context.device
    start = partial(torch.set_num_threads, context.threads) if in_memory else context.start_thread
    found: list[tuple[float, float]] = []
    for _ in range(1 + PROBE_ROUNDS):  # the first time connects
        meet(context.rank, context.world_size)
        if context.rank < 2:
            transport = TorchTransport(schedule, context.rank, groups, context.library(backend))
            if not in_memory:
                transport = context.transport(backend, schedule, groups)
            engine = Engine(
                project(schedule, context.rank),
                exchanges,
                _Bytes(size, device),
                transport,
                announced=announced(transport),
                start=start,
            )
            core = time.process_time()
            engine.run(timeout_s=60)
            transport.close()
            ends = engine.iteration_end_s
            wall_s = (ends[-1] - ends[0]) / (2 * (exchanges - 1))
            found.append((wall_s, (time.process_time() - core) / (2 * exchanges)))
        meet(context.rank, context.world_size)
    if not found:
        return None
    return median(w for w, _ in found[1:]), median(c for _, c in found[1:]) if in_memory else None
