"""One rank's part in one job: build what it holds, run its program, report, and evaluate on rank 0."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from stanza_sim.errors import InputError
from stanza_sim.execute import data
from stanza_sim.execute.build import Holdings, build, state_of
from stanza_sim.execute.clock import boot_id, estimate_offset
from stanza_sim.execute.engine import Engine
from stanza_sim.execute.exchange import gather, meet, share
from stanza_sim.execute.flat import FlatBundle, dtype_of
from stanza_sim.execute.job import Array, Backend, Clock, Issue, RankReport, RunJob
from stanza_sim.execute.passes import HeldBlock, Passes
from stanza_sim.execute.samples import follow
from stanza_sim.execute.transport import GroupKey, ProcessGroups, StagedTransport, Transport
from stanza_sim.model.extract import build_module
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Collective, Compute, Layout, Ranks, Schedule, Transfer, project

EVALUATED_AT_ONCE = 256


@dataclass(slots=True)
class Context:
    """A rank's place in the world, for as many jobs as it runs. `kind` is `cpu` or `cuda`."""

    rank: int
    world_size: int
    local_rank: int
    local_size: int
    threads: int
    kind: str = "cpu"
    groups: ProcessGroups = field(init=False)
    device: torch.device = field(init=False)

    def __post_init__(self) -> None:
        gpus = torch.cuda.device_count() if self.kind == "cuda" else 0
        if self.kind == "cuda" and not gpus:
            raise InputError(
                "the topology has GPUs, but torch finds none on this machine",
                hint="use a topology without devices, such as laptop",
            )
        self.device = torch.device(f"cuda:{self.local_rank % gpus}" if gpus else "cpu")
        self.groups = ProcessGroups(self.world_size)

    def backend(self, wanted: Backend) -> Backend:
        """The backend to use; NCCL needs a GPU of its own for each local rank. Raises `InputError`."""
        gpus = torch.cuda.device_count() if self.kind == "cuda" else 0
        possible = gpus >= self.local_size and dist.is_nccl_available()
        if wanted is Backend.NCCL and not possible:
            raise InputError(
                f"backend nccl needs one GPU for each of {self.local_size} local ranks, here are {gpus}",
                hint="use backend: gloo, or auto",
            )
        if wanted is not Backend.AUTO:
            return wanted
        return Backend.NCCL if possible else Backend.GLOO

    def start_thread(self) -> None:
        """What every computing thread must do first: both settings are the thread's own."""
        torch.set_num_threads(self.threads)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)


@dataclass(slots=True)
class RankWork:
    """What the engine's units do: passes for computations, transport for collectives, sizes of messages."""

    passes: Passes
    transport: Transport
    schedule: Schedule

    def __post_init__(self) -> None:
        self.nbytes = lru_cache(maxsize=None)(self.schedule.message_bytes)

    nbytes: Callable[[Transfer, int, int], int] = field(init=False)

    def compute(self, op: Compute, iteration: int) -> None:
        """Carry out a computation."""
        self.passes.compute(op, iteration)

    def collective(self, op: Collective, iteration: int) -> None:
        """Carry out a collective."""
        self.passes.collective(op, iteration, self.transport)

    def outgoing(self, op: Transfer, iteration: int, dst: int) -> Tensor:
        """The message to `dst`."""
        return self.passes.outgoing(op, iteration, dst)

    def incoming(self, op: Transfer, iteration: int, src: int) -> Tensor:
        """Where the message from `src` goes."""
        return self.passes.incoming(op, iteration, src)


def run_job(job: RunJob, context: Context, beat: Callable[[], None] = lambda: None) -> RankReport | None:
    """Run this rank's part of `job`; None where the schedule has fewer ranks. Every rank of the world calls this."""
    schedule, model, training, rank = job.schedule, job.model, job.training, context.rank
    backend = context.backend(job.backend)
    groups = context.groups.prepare(schedule, backend)
    if rank >= schedule.world_size:
        return None
    device = context.device
    context.start_thread()
    dtype = dtype_of(schedule.itemsize)
    samples = follow(schedule, model)
    items = data.load(training.data, model, training.seed)
    train, held_out = data.divide(training.data, len(items), training.seed)
    numbers: list[list[int]] = []
    if rank in schedule.data_ranks:
        first = schedule.data_ranks.index(rank) * schedule.batch_per_worker
        drawn = data.draw(train, schedule.global_batch, training.iterations, training.seed)
        numbers = [batch[first : first + schedule.batch_per_worker] for batch in drawn]
    feed = data.Feed(items, numbers, dtype, device)
    held, blocks, bundles = build(schedule, model, rank, training.seed, device)
    beat()
    passes = Passes(
        schedule=schedule,
        model=model,
        training=training,
        rank=rank,
        samples=samples,
        blocks=blocks,
        bundles=bundles,
        batch=feed.batch,
        device=device,
    )
    transport = transport_for(context, backend, schedule, groups)
    issue = job.issue
    if issue is Issue.AUTO:
        issue = Issue.IN_ORDER if backend is Backend.NCCL else Issue.EAGER
    if backend is Backend.NCCL and issue is Issue.EAGER:
        raise InputError("NCCL posts no receive ahead of need", hint="leave `issue` at auto")

    def group_of(op: Collective) -> Ranks:
        return schedule.group(op.ranks)

    engine = Engine(
        project(schedule, rank),
        training.iterations,
        RankWork(passes, transport, schedule),
        transport,
        issue=issue,
        group_of=group_of,
        start=context.start_thread,
    )
    ranks = schedule.world_size
    boot = boot_id()
    boot_of_rank0 = share(boot, rank, ranks)
    before = estimate_offset(rank, ranks, boot, boot_of_rank0)
    meet(rank, ranks)
    engine.run(timeout_s=job.timeout_s, beat=beat)
    meet(rank, ranks)
    after = estimate_offset(rank, ranks, boot, boot_of_rank0)
    accuracy, parameters = None, None
    if held_out or job.keep_parameters:
        parameters, state = _collect(schedule, model, held, blocks, bundles, rank)
        if rank == 0 and held_out:
            accuracy = _accuracy(job, parameters, state, items, held_out)
    return RankReport(
        rank=rank,
        host=socket.gethostname(),
        iteration_end_s=tuple(engine.iteration_end_s) if engine.program.units else (),
        spans=tuple(engine.spans),
        sends=tuple(engine.sends),
        receives=tuple(engine.receives),
        loss_sums=passes.losses(),
        sent_bytes=transport.sent_bytes,
        received_bytes=transport.received_bytes,
        clock=Clock(before=before, after=after),
        accuracy=accuracy,
        parameters=_as_arrays(parameters or {}) if job.keep_parameters and rank == 0 else None,
    )


def transport_for(
    context: Context, backend: Backend, schedule: Schedule, groups: dict[GroupKey, dist.ProcessGroup]
) -> Transport:
    """The transport of a run on this rank's device: staged where gloo is to move a GPU's tensors."""
    staged = context.device.type == "cuda" and backend is Backend.GLOO
    return (StagedTransport if staged else Transport)(schedule, context.rank, groups)


def _as_arrays(parameters: dict[str, Tensor]) -> dict[str, Array]:
    return {name: np.array(t.numpy()) for name, t in parameters.items()}


Collected = tuple[dict[str, tuple[int, Tensor]], dict[str, Tensor]]


def _collect(
    schedule: Schedule,
    model: ModelProfile,
    held: Holdings,
    blocks: list[HeldBlock],
    bundles: dict[str, FlatBundle],
    rank: int,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Bring parameters (from their owners) and buffers (from the first rank that computes a block) to rank 0."""
    slices: dict[str, tuple[int, Tensor]] = {}
    for name, flat in bundles.items():
        owners = schedule.owners(flat.bundle)
        if flat.own is not None and (flat.bundle.layout is Layout.CUT or owners[0] == rank):
            slices[name] = flat.lo, flat.own.cpu()
    state: dict[str, Tensor] = {}
    for block in blocks:
        if held.computes[block.name][0] == rank:
            found = state_of(block.module, {n for n, _ in block.parameters})
            state |= {n: t.detach().cpu() for n, t in found.items()}
    collected: list[Collected] | None = gather((slices, state), rank, schedule.world_size)
    shapes = {t.name: t.shape for b in model.blocks for t in b.tensors}
    parameters: dict[str, Tensor] = {}
    for bundle in schedule.bundles if collected is not None else ():
        whole = torch.empty(bundle.numel, dtype=dtype_of(schedule.itemsize))
        for theirs, _ in collected or ():
            if bundle.name in theirs:
                lo, values = theirs[bundle.name]
                whole[lo : lo + len(values)] = values
        cut = torch.split(whole, [prod(shapes[t]) for t in bundle.tensors])
        parameters |= {t: values.view(shapes[t]) for t, values in zip(bundle.tensors, cut, strict=True)}
    for _, theirs_state in collected or ():
        state |= theirs_state
    return parameters, state


def _accuracy(
    job: RunJob, parameters: dict[str, Tensor], state: dict[str, Tensor], items: data.Items, held_out: list[int]
) -> float:
    """Share of the held-out samples that the trained model classifies correctly, computed on the CPU."""
    module = build_module(job.model, device="cpu")
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    with torch.no_grad():
        for name, values in (*parameters.items(), *state.items()):
            own[name].copy_(values.view(own[name].shape))
        module.eval()
        right = 0
        for i in range(0, len(held_out), EVALUATED_AT_ONCE):
            part = held_out[i : i + EVALUATED_AT_ONCE]
            x, y = data.stack(items, part, dtype_of(job.schedule.itemsize), torch.device("cpu"))
            right += int((module(x).argmax(1) == y).sum())
    return right / len(held_out)
