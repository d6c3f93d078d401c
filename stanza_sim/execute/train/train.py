"""One rank's part in a job that trains: build what it holds, compute, bring parameters together, evaluate on rank 0."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from stanza_sim.base.errors import InputError
from stanza_sim.execute.rank.exchange import gather_all, share
from stanza_sim.execute.rank.interfaces import Beat
from stanza_sim.execute.rank.job import RunJob, Score
from stanza_sim.execute.rank.role import MessageSizes, RankResult
from stanza_sim.execute.rank.transport import TorchTransport
from stanza_sim.execute.train import data
from stanza_sim.execute.train.arithmetic import Arithmetic, switched
from stanza_sim.execute.train.build import build
from stanza_sim.execute.train.feed import SYNTHETIC_ON_DEVICE_BYTES, Feed
from stanza_sim.execute.train.messages import Messages
from stanza_sim.execute.train.passes import Passes
from stanza_sim.execute.train.samples import follow
from stanza_sim.execute.train.saving import load, save
from stanza_sim.execute.train.scoring import score
from stanza_sim.execute.train.values import RankValues
from stanza_sim.execute.train.whole import Ranks
from stanza_sim.model.labels import IGNORED
from stanza_sim.schedule import Collective, Compute, Schedule, Transfer

if TYPE_CHECKING:
    from stanza_sim.execute.rank.context import Context


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
        self._job, self._context, self._beat = job, context, beat
        self._scores: list[Score] = []
        self._parameters: Mapping[str, Tensor] = {}
        schedule, model, training, rank, device = job.schedule, job.model, job.training, context.rank, context.device
        samples = follow(schedule, model)
        self._items = data.load(training.data, model, training.seed)
        train, self._held_out = data.divide(training.data, len(self._items), training.seed)
        numbers: list[list[int]] = []
        if rank in schedule.data_ranks:
            first = schedule.data_ranks.index(rank) * schedule.batch_per_worker
            drawn = data.draw(train, schedule.global_batch, training.iterations, training.seed)
            numbers = [batch[first : first + schedule.batch_per_worker] for batch in drawn[training.begin :]]
        on_device = SYNTHETIC_ON_DEVICE_BYTES if training.data == "synthetic" else 0
        feed = Feed(self._items, numbers, context.accelerator, start=context.start_thread, on_device=on_device)
        held, blocks, bundles = build(schedule, model, rank, training.seed, device)
        self._ranks = Ranks(schedule, model, rank, held, blocks, bundles)
        if job.resume is not None:
            self._ranks.give_out(load(job) if rank == 0 else None)
        beat()
        values = RankValues(
            schedule=schedule,
            model=model,
            rank=rank,
            samples=samples,
            blocks=blocks,
            bundles=bundles,
            batch=lambda iteration: feed.batch(iteration - training.begin),
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

    def stopped(self, done: int) -> bool:
        """See `Role`: look at the held-out samples, and write what is to be saved."""
        job, training = self._job, self._job.training
        last = done == training.iterations
        if not (self._held_out or job.save or (last and job.keep_parameters)):
            return last
        whole = self._ranks.collect(everything=job.save is not None)
        reached = False
        if whole is not None:
            self._parameters = whole.parameters if job.keep_parameters else {}
            found = score(job.model, whole, self._items, self._held_out, done, self._beat) if self._held_out else None
            if found is not None:
                self._scores.append(found)
                self._beat(done, found)
                timed = done - training.begin >= training.warmup + 2
                reached = timed and training.target is not None and training.target.reached(found)
            save(job, whole, done)
        return last if training.target is None else share(last or reached, self._context.rank, job.schedule.world_size)

    def result(self) -> RankResult:
        """Losses and scores, and where wanted the parameters, at rank 0."""
        kept = self._job.keep_parameters and self._context.rank == 0
        return RankResult(
            loss_sums=self._passes.losses(),
            scores=tuple(self._scores),
            parameters={name: np.array(t.numpy()) for name, t in self._parameters.items()} if kept else None,
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
