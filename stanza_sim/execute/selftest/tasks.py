"""What ranks do for the self-test beside training: exchange values that are known, on cores and on (imitated) GPUs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from stanza_sim.execute.rank.context import Context
from stanza_sim.execute.rank.exchange import meet
from stanza_sim.execute.rank.interfaces import Beat
from stanza_sim.execute.rank.job import Backend
from stanza_sim.execute.rank.transport import posted
from stanza_sim.execute.selftest.outcome import require
from stanza_sim.execute.standin.task import StandinContext
from stanza_sim.schedule import Group, Pattern, Ranks, Schedule, Transfer, Value, ValueKind

T = TypeVar("T")
SIZES = (4, 1000, 65_536, 4_000_000)
"""Bytes of the messages that are staged."""


def together(bodies: Sequence[Callable[[], T]], start: Callable[[], None]) -> list[T]:
    """What `bodies` return, each in a thread of its own that called `start` first; raises what one of them raised."""
    found: dict[int, T] = {}
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            start()
            found[number] = bodies[number]()
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that asked
            errors.append(error)

    threads = [threading.Thread(target=run, args=(n,), daemon=True, name=f"lane {n}") for n in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive() and not errors:
            thread.join(0.1)
    if errors:
        raise errors[0]
    return [found[number] for number in range(len(bodies))]


def on_a_thread(body: Callable[[], T], start: Callable[[], None]) -> T:
    """What `body` returns, or raises, in a thread of its own that called `start` first."""
    return together([body], start)[0]


def pattern(nbytes: int, seed: int) -> Tensor:
    """Random bytes that both ends of a message know."""
    return torch.randint(256, (nbytes,), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@dataclass(frozen=True, slots=True)
class GlooTask:
    """Send, receive and sum over gloo, and look at what comes out."""

    def __call__(self, context: Context, beat: Beat) -> None:
        """Raises `Wrong`."""
        rank, ranks = context.rank, context.world_size
        for size in SIZES:
            beat()
            here, there = torch.zeros(size, dtype=torch.uint8), (rank + 1) % ranks
            received = posted(dist.irecv(here, (rank - 1) % ranks))
            posted(dist.isend(pattern(size, rank), there)).wait()
            received.wait()
            require(torch.equal(here, pattern(size, (rank - 1) % ranks)), f"{size} bytes arrived wrong at rank {rank}")
        total = torch.arange(1000, dtype=torch.float64) * (rank + 1)
        dist.all_reduce(total)
        wanted = torch.arange(1000, dtype=torch.float64) * (ranks * (ranks + 1) / 2)
        require(torch.equal(total, wanted), f"an all-reduce gives a wrong sum at rank {rank}")


def pings() -> Schedule:
    """Two ranks and a channel, on which messages of any size may pass."""
    ping = Transfer(
        name="ping",
        src="a",
        dst="b",
        pattern=Pattern.ONE_TO_ONE,
        values=(Value(ValueKind.ACT, "b"),),
        nbytes=max(SIZES),
        channel="probe",
    )
    return Schedule(
        name="selftest",
        model="selftest",
        world_size=2,
        batch_per_worker=1,
        groups=(Group(name="a", ranks=Ranks.of([0])), Group(name="b", ranks=Ranks.of([1]))),
        bundles=(),
        ops=(ping,),
    )


@dataclass(frozen=True, slots=True)
class StagedTask:
    """Send messages through host memory from rank 0 to rank 1, on the ranks' GPUs or, if `standin`, on imitated ones.

    Each is posted as soon as its tensor has been written, by a kernel that may not have run yet, and the tensor is
    overwritten once it has been sent.
    """

    standin: bool

    def __call__(self, context: Context, beat: Beat) -> int:
        """Bytes of the host buffers that were needed. Raises `Wrong`, and `Race` where order is left to chance."""
        here = StandinContext.on(context, seed=1, jitter_s=1e-3) if self.standin else context
        schedule = pings()
        groups = here.groups.prepare(schedule, Backend.GLOO)
        transport = here.transport(Backend.GLOO, schedule, groups)
        meet(here.rank, here.world_size)

        def sends() -> None:
            for seed, size in enumerate((*SIZES, *SIZES)):
                beat()
                tensor = torch.empty(size, dtype=torch.uint8, device=here.device)
                tensor.copy_(pattern(size, seed).to(here.device))
                transport.send(tensor, 1, "probe").wait()
                tensor.fill_(0)
                here.accelerator.synchronize()

        def receives() -> None:
            for seed, size in enumerate((*SIZES, *SIZES)):
                beat()
                tensor = torch.zeros(size, dtype=torch.uint8, device=here.device)
                here.accelerator.synchronize()
                transport.receive(tensor, 0, "probe").wait()
                require(torch.equal(tensor.cpu(), pattern(size, seed)), f"{size} staged bytes arrived wrong")

        if here.rank < 2:
            on_a_thread(sends if here.rank == 0 else receives, here.start_thread)
        transport.close()
        meet(here.rank, here.world_size)
        return here.buffers.nbytes
