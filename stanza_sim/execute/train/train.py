"""One rank's part in a job that trains: build what it holds, compute, bring parameters together, evaluate on rank 0."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from stanza_sim.base.errors import InputError
from stanza_sim.execute.rank.exchange import gather, gather_all
from stanza_sim.execute.rank.interfaces import Beat
from stanza_sim.execute.rank.job import Array, RunJob
from stanza_sim.execute.rank.role import MessageSizes, RankResult
from stanza_sim.execute.rank.transport import TorchTransport
from stanza_sim.execute.train import data, losses
from stanza_sim.execute.train.arithmetic import Arithmetic, switched
from stanza_sim.execute.train.build import Holdings, build, state_of
from stanza_sim.execute.train.feed import SYNTHETIC_ON_DEVICE_BYTES, Feed
from stanza_sim.execute.train.flat import FlatBundle, dtype_of
from stanza_sim.execute.train.messages import Messages
from stanza_sim.execute.train.passes import Passes
from stanza_sim.execute.train.samples import follow
from stanza_sim.execute.train.slices import HeldBlock, put_local
from stanza_sim.execute.train.values import RankValues
from stanza_sim.model.extract import build_module, split
from stanza_sim.model.labels import IGNORED
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Collective, Compute, Layout, Schedule, Transfer

if TYPE_CHECKING:
    from stanza_sim.execute.rank.context import Context

EVALUATED_AT_ONCE = 256


@dataclass(slots=True)
class RankWork:
    """What the engine's units do: passes for computations, transport for collectives, sizes of messages."""

    passes: Passes
    messages: Messages
    transport: TorchTransport
    schedule: Schedule

    def __post_init__(self) -> None:
        self.nbytes = MessageSizes(self.schedule)

    nbytes: Callable[[Transfer, int, int], int] = field(init=False)

    def compute(self, op: Compute, iteration: int, ready_s: float) -> tuple[float, float]:
        """Carry out a computation."""
        return self.passes.compute(op, iteration)

    def collective(self, op: Collective, iteration: int) -> None:
        """Carry out a collective, and what is made of its result."""
        self.messages.collective(op, iteration, self.transport)
        self.passes.accelerator.synchronize()
        self.messages.done_with(op, iteration)

    def outgoing(self, op: Transfer, iteration: int, dst: int) -> Tensor:
        """The message to `dst`."""
        return self.messages.outgoing(op, iteration, dst)

    def incoming(self, op: Transfer, iteration: int, src: int) -> Tensor:
        """Where the message from `src` goes."""
        return self.messages.incoming(op, iteration, src)

    def landed(self, op: Transfer, iteration: int, src: int) -> None:
        """What is left to do with a message."""
        if self.messages.landed(op, iteration, src):
            self.passes.accelerator.synchronize()


class Trained:
    """Computes and trains: with what this rank holds of the model, and its share of the data."""

    def __init__(self, job: RunJob, context: Context, transport: TorchTransport, beat: Beat) -> None:
        self._job, self._context = job, context
        schedule, model, training, rank, device = job.schedule, job.model, job.training, context.rank, context.device
        samples = follow(schedule, model)
        self._items = data.load(training.data, model, training.seed)
        train, self._held_out = data.divide(training.data, len(self._items), training.seed)
        numbers: list[list[int]] = []
        if rank in schedule.data_ranks:
            first = schedule.data_ranks.index(rank) * schedule.batch_per_worker
            drawn = data.draw(train, schedule.global_batch, training.iterations, training.seed)
            numbers = [batch[first : first + schedule.batch_per_worker] for batch in drawn]
        on_device = SYNTHETIC_ON_DEVICE_BYTES if training.data == "synthetic" else 0
        feed = Feed(self._items, numbers, context.accelerator, start=context.start_thread, on_device=on_device)
        self._held, self._blocks, self._bundles = build(schedule, model, rank, training.seed, device)
        beat()
        values = RankValues(
            schedule=schedule,
            model=model,
            rank=rank,
            samples=samples,
            blocks=self._blocks,
            bundles=self._bundles,
            batch=feed.batch,
            device=device,
            arithmetic=Arithmetic.of(job),
        )
        terms = _all_terms(job, feed, rank)
        self._passes = Passes(values, training, context.accelerator, terms=terms)
        self.work = RankWork(self._passes, Messages(values), transport, schedule)

    def start_thread(self) -> None:
        """See `Role`."""
        self._context.start_thread()

    @contextmanager
    def running(self) -> Iterator[bool]:
        """See `Role`."""
        with switched(self._job.precision):
            yield False

    def result(self) -> RankResult:
        """Losses; and where wanted accuracy and parameters, which go to rank 0."""
        job, rank = self._job, self._context.rank
        accuracy: float | None = None
        parameters: dict[str, Tensor] = {}
        if self._held_out or job.keep_parameters:
            parameters, state = _collect(job.schedule, job.model, self._held, self._blocks, self._bundles, rank)
            if rank == 0 and self._held_out:
                accuracy = _accuracy(job, parameters, state, self._items, self._held_out)
        return RankResult(
            loss_sums=self._passes.losses(),
            accuracy=accuracy,
            parameters=_as_arrays(parameters) if job.keep_parameters and rank == 0 else None,
        )


def _all_terms(job: RunJob, feed: Feed, rank: int) -> list[int]:
    """How many terms the mean loss of each iteration's global batch is over; all ranks call this.

    Raises `InputError` for an iteration that has none.
    """
    schedule, model = job.schedule, job.model
    mine = feed.terms(model.labels, model.blocks[-1].output_shape)
    found = [sum(counts) for counts in zip(*filter(None, gather_all(mine, rank, schedule.world_size)), strict=True)]
    if 0 in found:
        what = f"all labels of the global batch of iteration {found.index(0)} are {IGNORED}: its mean loss is over none"
        raise InputError(what, where=f"data {job.training.data!r}", hint="use larger batches, or leave samples out")
    return found


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
        if flat.own is not None and (flat.bundle.layout is not Layout.REPLICATED or owners[0] == rank):
            slices[name] = flat.lo, flat.own.cpu()
    state: dict[str, Tensor] = {}
    for block in blocks:
        if held.computes[block.name][0] == rank:
            found = state_of(block.module, block.trained)
            state |= {n: t.detach().cpu() for n, t in found.items()}
    collected: list[Collected] | None = gather((slices, state), rank, schedule.world_size)
    shapes = {t.name: t.shape for b in model.blocks for t in b.tensors}
    parameters: dict[str, Tensor] = {}
    wholes: dict[tuple[str, ...], Tensor] = {}
    for bundle in schedule.bundles if collected is not None else ():
        if bundle.tensors not in wholes:
            numel = sum(prod(shapes[t]) for t in bundle.tensors)
            wholes[bundle.tensors] = torch.empty(numel, dtype=dtype_of(schedule.itemsize))
        whole = wholes[bundle.tensors]
        for r, (theirs, _) in enumerate(collected or ()):
            if bundle.name in theirs:
                lo, values = theirs[bundle.name]
                if bundle.layout is Layout.FEATURES:
                    put_local(schedule, model, bundle, r, whole, values)
                else:
                    whole[bundle.start + lo : bundle.start + lo + len(values)] = values
    for tensors, whole in wholes.items():
        cut = torch.split(whole, [prod(shapes[t]) for t in tensors])
        parameters |= {t: values.view(shapes[t]) for t, values in zip(tensors, cut, strict=True)}
    for _, theirs_state in collected or ():
        state |= theirs_state
    return parameters, state


def _accuracy(
    job: RunJob, parameters: dict[str, Tensor], state: dict[str, Tensor], items: data.Dataset, held_out: list[int]
) -> float | None:
    """Share of the held-out positions that the trained model classifies correctly, computed on the CPU; None if none
    can be."""
    module = build_module(job.model, device="cpu")
    own = {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
    with torch.no_grad():
        for name, values in (*parameters.items(), *state.items()):
            own[name].copy_(values.view(own[name].shape))
        module.eval()
        parts = split(module, job.model)
        right = of = 0
        for i in range(0, len(held_out), EVALUATED_AT_ONCE):
            x, y = data.stack(items, held_out[i : i + EVALUATED_AT_ONCE], torch.device("cpu"))
            for part in parts:
                x = (part.module.eval()(*x),)
            here = losses.right(x[0], y, job.model.labels)
            right, of = right + here[0], of + here[1]
    return right / of if of else None
