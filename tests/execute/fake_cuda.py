"""What waits for what on GPUs, imitated on the CPU: CUDA's default stream with NCCL's `wait`, and staging.

Tensors and messages are gloo's. What is imitated is order. Every task puts its imitation in place in the rank
processes, and takes it away when it ends; the process of the tests stays as it is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from queue import SimpleQueue
from typing import TYPE_CHECKING
from unittest.mock import patch

from stanza_sim.execute.rank.job import Issue, RankReport, RunJob

if TYPE_CHECKING:
    import torch.distributed as dist
    from torch import Tensor

    from stanza_sim.execute.rank.context import Context
    from stanza_sim.execute.rank.interfaces import Handle
    from stanza_sim.execute.rank.transport import GroupKey, TorchTransport
    from stanza_sim.schedule import Schedule


class Imitation(StrEnum):
    """`STREAM`: each rank computes on one default stream, and NCCL's waits only make that stream wait. `OWN`: the same,
    but waits hold up the host's thread and leave the default stream alone. `STAGED`: gloo through host memory.
    """

    STREAM = "stream"
    OWN = "own"
    STAGED = "staged"


class Stream:
    """Carries out what is put on it, one after another, while the host goes on."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        threading.Thread(target=self._run, daemon=True, name="stream").start()

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            work()

    def put(self, work: Callable[[], object]) -> None:
        """Queue `work`, which must not raise."""
        self._queue.put(work)

    def carry_out(self, work: Callable[[], object]) -> None:
        """Queue `work` and wait for it, as a kernel and a synchronisation; raises what it raises."""
        done = threading.Event()
        errors: list[BaseException] = []

        def guarded() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - raised again by the host
                errors.append(error)
            done.set()

        self.put(guarded)
        done.wait()
        if errors:
            raise errors[0]

    def close(self) -> None:
        """End once all that is queued is done."""
        self._queue.put(None)


class Work:
    """Messages under way on a communicator's stream. `wait` returns at once where it makes a stream wait."""

    def __init__(self, waiting: Stream | None) -> None:
        self._waiting = waiting
        self.done = threading.Event()

    def wait(self) -> None:
        """Make the default stream wait, or the host if there is none."""
        if self._waiting is None:
            self.done.wait()
        else:
            self._waiting.put(self.done.wait)


@dataclass(frozen=True)
class OnFakeCuda:
    """Run a job on an imitated GPU; streams take the order of issue that NCCL needs."""

    job: RunJob
    imitation: Imitation

    def __call__(self, context: Context, beat: Callable[[], None]) -> RankReport | None:
        from stanza_sim.execute.start.worker import run_job

        if self.imitation is Imitation.STAGED:
            with _staged():
                return run_job(self.job, context, beat)
        with _streams(own_wait=self.imitation is Imitation.OWN):
            return run_job(replace(self.job, issue=Issue.IN_ORDER), context, beat)


@contextmanager
def _made_by(make: Callable[..., TorchTransport]) -> Iterator[None]:
    """Let the rank use the transport that `make` makes."""
    from stanza_sim.execute.start import worker

    def transport_for(
        context: Context,
        backend: object,
        schedule: Schedule,
        groups: dict[GroupKey, dist.ProcessGroup],
        *,
        values: bool = True,
    ) -> TorchTransport:
        return make(schedule, context.rank, groups, values=values)

    with patch.object(worker, "transport_for", transport_for):
        yield


@contextmanager
def _staged() -> Iterator[None]:
    from stanza_sim.execute.rank.transport import StagedTransport

    with _made_by(StagedTransport):
        yield


@contextmanager
def _streams(*, own_wait: bool) -> Iterator[None]:
    """One default stream for computations, and one stream for each communicator, which first waits for the default."""
    from stanza_sim.execute.rank.transport import TorchTransport
    from stanza_sim.execute.train.passes import Passes
    from stanza_sim.schedule import Collective, Compute

    default = Stream()
    communicators: dict[str, Stream] = {}

    class StreamTransport(TorchTransport):
        def together(
            self, sends: Sequence[tuple[Tensor, int]], receives: Sequence[tuple[Tensor, int]], channel: str
        ) -> list[Handle]:
            if channel not in communicators:  # one thread issues all of a channel
                communicators[channel] = Stream()
            work, before = Work(None if own_wait else default), threading.Event()
            if own_wait:
                before.set()
            else:
                default.put(before.set)

            def move() -> None:
                before.wait()
                for handle in TorchTransport.together(self, sends, receives, channel):
                    handle.wait()
                work.done.set()

            communicators[channel].put(move)
            return [work]

        def collective(self, op: Collective, output: Tensor, source: Tensor) -> None:
            if own_wait:
                TorchTransport.collective(self, op, output, source)
            else:  # with async_op=False it runs on the current stream
                default.carry_out(lambda: TorchTransport.collective(self, op, output, source))

    compute = Passes.compute

    def on_default(self: Passes, op: Compute, iteration: int) -> None:
        default.carry_out(lambda: compute(self, op, iteration))

    with _made_by(StreamTransport), patch.object(Passes, "compute", on_default):
        yield
    for stream in (default, *communicators.values()):
        stream.close()
