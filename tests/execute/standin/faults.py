"""What the executor did, or might do, wrong on GPUs: each is put in place in the ranks, to see that it is found."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any
from unittest.mock import patch

from stanza_sim.base.errors import RunError
from stanza_sim.execute.rank.interfaces import Beat
from stanza_sim.execute.rank.job import Backend, RankReport, RunJob


class Fault(StrEnum):
    """`ONE_STREAM`: all threads of a rank compute on one stream, receives are posted when their iteration opens, and
    waiting for NCCL orders that stream (finding 2). `POSTED`: each thread has a stream, but a message counts as arrived
    when it has been posted (7). The others happen on a rank and from a call on that the seed says. `NO_WAIT`:
    computations count as done when they have been launched. `NO_ORDER`: a message is copied without waiting for the
    stream that made it.
    """

    ONE_STREAM = "one stream"
    POSTED = "posted"
    NO_WAIT = "no wait"
    NO_ORDER = "no order"


@dataclass(frozen=True)
class OnFaulty:
    """Run a job on imitated GPUs that have a fault; what came of it, in words, or the report."""

    job: RunJob
    backend: Backend
    fault: Fault
    seed: int = 0

    def __call__(self, context: Any, beat: Beat) -> RankReport | str | None:
        from stanza_sim.execute.standin.task import StandinContext
        from stanza_sim.execute.start.worker import run_job

        made = StandinContext.on(context, seed=self.seed, jitter_s=2e-4)
        with ExitStack() as stack:
            if self.fault in (Fault.ONE_STREAM, Fault.POSTED):
                old = _as_of_old(made, one_stream=self.fault is Fault.ONE_STREAM)
                job = replace(self.job, backend=Backend.GLOO)  # its keys are those of channels
                return _words(lambda: run_job(job, old, beat))
            draw = random.Random(self.seed)
            rank, call = draw.randrange(self.job.schedule.world_size), draw.randrange(1, 4)
            if context.rank == rank:
                stack.enter_context(_from(self.fault, call))
            job = replace(self.job, backend=self.backend)
            found = _words(lambda: run_job(job, made, beat))
            return found if isinstance(found, str) or found is None else _words(lambda: _checked(made, found))


def _checked(made: Any, report: RankReport) -> RankReport:
    made.accelerator.check()
    return report


def _words(run: Callable[[], RankReport | None]) -> RankReport | str | None:
    try:
        return run()
    except (RunError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"


def _as_of_old(made: Any, *, one_stream: bool) -> Any:
    """A place where messages go through one communicator for each channel, with receives as on gloo."""
    from stanza_sim.execute.rank.groups import ProcessGroups
    from stanza_sim.execute.rank.transport import TorchTransport
    from stanza_sim.execute.standin.device import Kernels, _Here
    from stanza_sim.execute.standin.groups import StandinNccl
    from stanza_sim.execute.standin.task import StandinContext

    class Old(StandinContext):
        def library(self, backend: Backend) -> StandinNccl:
            return StandinNccl(self.accelerator)

        def backend(self, wanted: Backend) -> Backend:
            return wanted

        def transport(self, backend: Any, schedule: Any, groups: Any, *, values: bool = True) -> TorchTransport:
            return TorchTransport(schedule, self.rank, groups, self.library(backend), values=values)

    made.__class__ = Old
    made.groups = ProcessGroups(made.world_size, made.library)
    if one_stream:
        device, stream = made.accelerator, made.accelerator.new_stream("the default stream")

        def start_thread() -> None:
            if threading.current_thread() is not threading.main_thread():
                device._of_thread.here = _Here(stream, Kernels(stream))
                device._of_thread.here.kernels.__enter__()

        device.start_thread = start_thread
    return made


@contextmanager
def _from(fault: Fault, call: int) -> Iterator[None]:
    """Let the fault happen from the `call`th call on."""
    from stanza_sim.execute.standin.device import Standin

    calls = itertools.count(1)

    def finish(self: Standin, began: Any, right: Any = Standin.finish) -> tuple[float, float]:
        at_s = time.perf_counter()
        return (at_s, at_s) if next(calls) >= call else right(self, began)

    def await_record(self: Standin, point: Any, right: Any = Standin.await_record) -> None:
        if next(calls) < call:
            right(self, point)

    match fault:
        case Fault.NO_WAIT:
            made = patch.object(Standin, "finish", finish)
        case Fault.NO_ORDER:
            made = patch.object(Standin, "await_record", await_record)
        case _:
            raise ValueError(fault)
    with made:
        yield


# ---- single operations ----------------------------------------------------------------------------------------------

SOON_S = 1.0
"""How long something that should happen may take, and something that must not is watched for."""


@dataclass(frozen=True)
class Singly:
    """One of the functions below, by name; every rank calls it."""

    name: str

    def __call__(self, context: Any, beat: Beat) -> Any:
        from stanza_sim.execute.standin.task import StandinContext

        return globals()[self.name](StandinContext.on(context, seed=0, jitter_s=0.0))


def _in_thread(made: Any, body: Callable[[], object], stream: Any = None) -> threading.Event:
    """Do it in a thread that computes, on `stream` or one of its own; the event is set when it is done."""
    done = threading.Event()

    def run() -> None:
        from stanza_sim.execute.standin.device import Kernels, _Here

        if stream is not None:
            made.accelerator._of_thread.here = _Here(stream, Kernels(stream))
            made.accelerator._of_thread.here.kernels.__enter__()
        made.accelerator.start_thread()
        body()
        done.set()

    threading.Thread(target=run, daemon=True).start()
    return done


def communicator_at_first_use(made: Any) -> tuple[bool, bool]:
    """Finding 1: two ranks use a communicator of all: whether they get through, made at first use and before."""
    import torch
    import torch.distributed as dist

    from stanza_sim.execute.standin.groups import StandinNccl

    through = []
    for eager in (False, True):
        library = StandinNccl(made.accelerator, eager=eager)
        group = library.new_group(range(made.world_size), 1)
        done = threading.Event()
        if made.rank < 2:
            word = torch.zeros(4)
            call = group.send if made.rank == 0 else group.recv

            def body(call: Any = call, word: Any = word, library: Any = library) -> None:
                library.wait(call([word], 1 - made.rank, 0))

            done = _in_thread(made, body)
        through.append(done.wait(SOON_S))
        dist.barrier()
    return through[0], through[1]


def communicator_of_some(made: Any) -> tuple[bool, bool]:
    """Whether a communicator is there while one of its members has not come to make it, and once it has."""
    import torch.distributed as dist

    from stanza_sim.execute.standin.groups import StandinNccl

    library, ranks = StandinNccl(made.accelerator), range(made.world_size)
    late = made.rank == 2
    there = threading.Event()

    def make() -> None:
        library.new_group(ranks, 1)
        there.set()

    if not late:
        threading.Thread(target=make, daemon=True).start()
        there.wait(SOON_S)
    before = there.is_set()
    dist.barrier()
    if late:
        make()
    return before, there.wait(10 * SOON_S)


def forgotten(made: Any) -> bool:
    """Whether a communicator can be destroyed, as it is where a rank has too many, and another made in its place."""
    import torch
    import torch.distributed as dist

    from stanza_sim.execute.standin.groups import StandinNccl

    library = StandinNccl(made.accelerator)
    gone = library.new_group((0, 1), 1)
    if made.rank < 2:
        dist.destroy_process_group(gone)
    group, word = library.new_group((0, 1), 1), torch.full((4,), float(made.rank))
    if made.rank < 2:
        library.wait((group.send if made.rank == 0 else group.recv)([word], 1 - made.rank, 0))
    return bool((word == 0).all())


def both_directions(made: Any) -> tuple[bool, bool]:
    """Finding 4: each of two ranks sends before it receives; through one communicator, and through one each way."""
    import torch
    import torch.distributed as dist

    from stanza_sim.execute.standin.groups import StandinNccl

    through = []
    for communicators in (1, 2):
        library = StandinNccl(made.accelerator)
        groups = [library.new_group((0, 1), 1) for _ in range(communicators)]
        done = threading.Event()
        if made.rank < 2:
            out, into = torch.ones(8_000_000), torch.zeros(8_000_000)

            def body(groups: Any = groups, library: Any = library, out: Any = out, into: Any = into) -> None:
                mine, theirs = groups[made.rank % len(groups)], groups[(1 - made.rank) % len(groups)]
                sent, received = mine.send([out], 1 - made.rank, 0), theirs.recv([into], 1 - made.rank, 0)
                library.wait(sent)
                library.wait(received)

            done = _in_thread(made, body)
        through.append(done.wait(4 * SOON_S))
        dist.barrier()
    return through[0], through[1]


def waiting(made: Any) -> tuple[float, float]:
    """Finding 7: how long `Work.wait` takes, and ours, for a message that is sent a while later."""
    import torch
    import torch.distributed as dist

    from stanza_sim.execute.standin.groups import StandinNccl

    took = []
    for ours in (False, True):
        library = StandinNccl(made.accelerator)
        group = library.new_group((0, 1), 1)
        seconds = [0.0]
        if made.rank == 0:
            time.sleep(0.3)
            library.wait(group.send([torch.ones(4)], 1, 0))
        elif made.rank == 1:

            def body(group: Any = group, library: Any = library, ours: bool = ours, seconds: Any = seconds) -> None:
                work = group.recv([torch.zeros(4)], 0, 0)
                begin = time.perf_counter()
                if ours:
                    library.wait(work)
                else:
                    work.wait()
                seconds[0] = time.perf_counter() - begin

            _in_thread(made, body).wait(4 * SOON_S)
        took.append(seconds[0])
        dist.barrier()
    return took[0], took[1]


def beside_a_collective(made: Any) -> tuple[bool, bool]:
    """Finding 8: whether rank 0 computes while its all-reduce waits for rank 1: on one stream, and on one each."""
    import torch
    import torch.distributed as dist

    from stanza_sim.execute.standin.groups import StandinNccl

    computed = []
    for one_stream in (True, False):
        group = StandinNccl(made.accelerator).new_group((0, 1), 1)
        shared = made.accelerator.new_stream("shared") if one_stream else None
        total = torch.ones(4)

        def reduce(group: Any = group, total: Any = total) -> None:
            group.allreduce([total], dist.AllreduceOptions())

        def compute() -> None:
            torch.ones(4).add_(1)
            made.accelerator.synchronize()

        if made.rank == 0:
            _in_thread(made, reduce, shared).wait(SOON_S)
            computed.append(_in_thread(made, compute, shared).wait(SOON_S))
        dist.barrier()
        if made.rank == 1:
            _in_thread(made, reduce, shared).wait(SOON_S)
        dist.barrier()
    return (computed[0], computed[1]) if computed else (False, False)


def two_views(made: Any) -> tuple[float, float]:
    """Finding 3: what a staged all-reduce of ones gives if its ends are two views: told by identity, and by memory."""
    import torch
    import torch.distributed as dist

    from stanza_sim.execute.rank import staging
    from stanza_sim.schedule import parse

    schedule = parse(
        "schedule s model=m world=2 batch=1\ngroup worker 0-1\nbundle b numel=4 owners=worker tensors=t\n"
        "f: forward x @worker\nar: all_reduce grad(b) @worker nbytes=16 algorithm=ring after=f"
    )
    found = []
    groups = made.groups.prepare(schedule, Backend.GLOO)
    for by_identity in (True, False):
        if made.rank < 2:
            transport = made.transport(Backend.GLOO, schedule, groups)

            def body(transport: Any = transport) -> None:
                total = torch.ones(4)
                flat = total.view(-1)
                transport.collective(schedule.op("ar"), flat, total.view(-1))
                made.accelerator.synchronize()
                with made.accelerator.host():
                    found.append(float(total[0]))

            with ExitStack() as stack:
                if by_identity:
                    stack.enter_context(patch.object(staging, "same", lambda output, source: output is source))
                _in_thread(made, body).wait(4 * SOON_S)
            transport.close()
        dist.barrier()
    return (found[0], found[1]) if found else (0.0, 0.0)


def staged_send(made: Any) -> tuple[float, float]:
    """Finding 10: how long a lane is held up by a send behind a kernel of half a second, and how long that takes."""
    import torch

    from stanza_sim.schedule import parse

    if made.rank > 1:
        made.groups.prepare(parse(_ONE_MESSAGE), Backend.GLOO)
        return 0.0, 0.0
    schedule = parse(_ONE_MESSAGE)
    groups = made.groups.prepare(schedule, Backend.GLOO)
    transport = made.transport(Backend.GLOO, schedule, groups)
    took = [0.0, 0.0]

    def send() -> None:
        begin = time.perf_counter()
        made.accelerator.current().launch("a long kernel", lambda: time.sleep(0.5))
        handle = transport.send(torch.ones(4), 1, "x")
        took[0] = time.perf_counter() - begin
        handle.wait()
        took[1] = time.perf_counter() - begin

    def receive() -> None:
        transport.receive(torch.zeros(4), 0, "x").wait()

    _in_thread(made, send if made.rank == 0 else receive).wait(4 * SOON_S)
    transport.close()
    return took[0], took[1]


_ONE_MESSAGE = """schedule s model=m world=2 batch=1
group a 0
group b 1
f: forward x @a
t: transfer act(x) a->b one-to-one nbytes=16 channel=x after=f
"""
