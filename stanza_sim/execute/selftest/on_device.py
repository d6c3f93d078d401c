"""What must hold of an accelerator whose threads have streams: checked on a GPU, and by tests on the stand-in."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from stanza_sim.execute.rank.accelerator import Accelerator
from stanza_sim.execute.rank.clock import now
from stanza_sim.execute.rank.library import Library
from stanza_sim.execute.rank.staging import HostBuffers
from stanza_sim.execute.selftest.outcome import require
from stanza_sim.execute.selftest.tasks import on_a_thread, pattern, together
from stanza_sim.schedule import Collective, CollectiveKind, Value, ValueKind

Sleep = Callable[[float], None]
"""Puts a kernel on the calling thread's stream that takes so many seconds."""
SLEEP_S = 0.3
"""How long such kernels take: many times what a thread needs to wake up on a busy machine."""
ROUNDS = 20
"""How often two threads carry out a collective at once."""


def cuda_sleep(device: torch.device) -> Sleep:
    """Kernels that count cycles of the GPU's clock (`torch.cuda._sleep`), of which the rate is measured first."""
    cycles = 20_000_000
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    with torch.cuda.device(device):
        for _ in range(2):  # the first one loads the kernel
            begin.record()
            torch.cuda._sleep(cycles)  # type: ignore[no-untyped-call]
            end.record()
            end.synchronize()
    per_second = cycles / (begin.elapsed_time(end) / 1e3)

    def sleep(seconds: float) -> None:
        torch.cuda._sleep(int(seconds * per_second))  # type: ignore[no-untyped-call]

    return sleep


# --- lanes -----------------------------------------------------------------------------------------------------------


def overtakes(accelerator: Accelerator, sleep: Sleep) -> str:
    """While a kernel sleeps in one thread's stream, another thread's is carried out. Raises `Wrong`."""
    ready, slept = threading.Event(), threading.Event()

    def sleeper() -> tuple[float, float]:
        ready.wait()
        began = accelerator.begin()
        sleep(SLEEP_S)
        slept.set()
        return accelerator.finish(began)

    def quick() -> tuple[float, float]:
        matrix = torch.ones((64, 64), device=accelerator.device)
        torch.mm(matrix, matrix)  # what is made at first use, is made before
        accelerator.synchronize()
        ready.set()
        slept.wait()
        began = accelerator.begin()
        torch.mm(matrix, matrix)
        return accelerator.finish(began)

    long, short = together([sleeper, quick], accelerator.start_thread)
    took_s, late_s = long[1] - long[0], long[1] - short[1]
    require(took_s > SLEEP_S / 2, f"a kernel of {SLEEP_S} s was timed at {took_s:.3f} s")
    require(late_s > SLEEP_S / 3, "a kernel waited for the kernel of another thread")
    return f"a kernel ended {late_s:.2f} s before the one of another thread that was put there first"


def gradients_elsewhere(accelerator: Accelerator) -> str:
    """Gradients that a thread computes of a graph that another thread has made are right. Raises `Wrong`."""
    generator = torch.Generator().manual_seed(5)
    inputs, weights = (torch.randn((96, 96), generator=generator, dtype=torch.float64) for _ in range(2))
    known = weights.clone().requires_grad_()
    torch.mm(inputs, known).tanh().sum().backward()  # type: ignore[no-untyped-call]
    device = accelerator.device
    own = weights.to(device).requires_grad_()
    given = inputs.to(device)

    def forward() -> Tensor:
        began = accelerator.begin()
        output = torch.mm(given, own).tanh().sum()
        accelerator.finish(began)
        return output

    output = on_a_thread(forward, accelerator.start_thread)

    def backward() -> Tensor:
        (gradient,) = torch.autograd.grad(output, [own])
        accelerator.synchronize()
        return gradient

    gradient = on_a_thread(backward, accelerator.start_thread).cpu()
    require(torch.allclose(gradient, known.grad if known.grad is not None else known), "gradients are wrong")
    return "gradients from another thread are right"


# --- copies ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Copies:
    """Copies of `nbytes` between a device and page-locked memory: the least seconds out and in, and of an allocation.

    `out_wait_s` is what the host waits for a copy out that it has just posted.
    """

    nbytes: int
    out_s: float
    in_s: float
    out_wait_s: float
    allocation_s: float


def copies(accelerator: Accelerator, nbytes: int, repeats: int = 5) -> Copies:
    """Copy out and in, and overwrite each source right after: both copies must be bitwise right. Raises `Wrong`.

    A device's memory is overwritten by the next kernel of the stream, the host's as soon as the copy has been waited
    for. To be called in a thread that computes.
    """
    with accelerator.host():
        known = pattern(nbytes, nbytes)
    tensor = torch.empty(nbytes, dtype=torch.uint8, device=accelerator.device)
    tensor.copy_(known)
    accelerator.synchronize()
    buffers, begin_s = HostBuffers(accelerator), now()
    _, host = buffers.take(tensor)
    allocation_s = now() - begin_s

    def timed(target: Tensor, source: Tensor) -> tuple[float, float]:
        posted_s = now()
        began = accelerator.begin()
        target.copy_(source, non_blocking=True)
        begin_s, end_s = accelerator.finish(began)
        return end_s - begin_s, now() - posted_s

    out = [timed(host, tensor) for _ in range(repeats)]
    into = [timed(tensor, host) for _ in range(repeats)]
    with accelerator.host():
        host.fill_(0)
    host.copy_(tensor, non_blocking=True)
    tensor.fill_(0)
    accelerator.synchronize()
    with accelerator.host():
        require(torch.equal(host, known), f"{nbytes} bytes arrived wrong at the host")
    tensor.copy_(host, non_blocking=True)
    accelerator.synchronize()
    with accelerator.host():
        host.fill_(0)
    back = tensor.cpu()
    accelerator.synchronize()
    with accelerator.host():
        require(torch.equal(back, known), f"{nbytes} bytes arrived wrong at the device")
    return Copies(
        nbytes=nbytes,
        out_s=min(s for s, _ in out),
        in_s=min(s for s, _ in into),
        out_wait_s=min(s for _, s in out),
        allocation_s=allocation_s,
    )


# --- at once ---------------------------------------------------------------------------------------------------------


def paces(
    accelerator: Accelerator, bodies: Mapping[str, Callable[[], Callable[[], None]]], seconds: float
) -> dict[str, float]:
    """Mean seconds of a repetition of each body, which are repeated at once, each in a thread, for so long.

    A body makes, in its thread, what is then repeated and waited for.
    """
    meet = threading.Barrier(len(bodies))

    def lane(make: Callable[[], Callable[[], None]]) -> float:
        body = make()
        body()
        accelerator.synchronize()
        meet.wait()
        begin_s, count = now(), 0
        while now() - begin_s < seconds:
            body()
            accelerator.synchronize()
            count += 1
        return (now() - begin_s) / count

    found = together([lambda make=make: lane(make) for make in bodies.values()], accelerator.start_thread)  # type: ignore[misc]
    return dict(zip(bodies, found, strict=True))


def beside(accelerator: Accelerator, *, width: int, nbytes: int, seconds: float) -> dict[str, dict[str, float]]:
    """How many times as long products of matrices and copies take beside each other, by what runs at once."""

    def compute() -> Callable[[], None]:
        a = torch.ones((width, width), device=accelerator.device)
        b = torch.empty_like(a)

        def body() -> None:
            torch.mm(a, a, out=b)

        return body

    def copy(*, out: bool) -> Callable[[], Callable[[], None]]:
        def make() -> Callable[[], None]:
            tensor = torch.zeros(nbytes, dtype=torch.uint8, device=accelerator.device)
            _, host = HostBuffers(accelerator).take(tensor)
            target, source = (host, tensor) if out else (tensor, host)

            def body() -> None:
                target.copy_(source, non_blocking=True)

            return body

        return make

    bodies = {"compute": compute, "copies out": copy(out=True), "copies in": copy(out=False)}
    alone = {name: paces(accelerator, {name: body}, seconds)[name] for name, body in bodies.items()}
    found = {}
    for others in (("copies out",), ("copies in",), ("copies out", "copies in")):
        names = ("compute", *others)
        at_once = paces(accelerator, {name: bodies[name] for name in names}, seconds)
        found[" + ".join(names)] = {name: at_once[name] / alone[name] for name in names}
    return found


# --- collectives -----------------------------------------------------------------------------------------------------


def collective_of(kind: CollectiveKind, nbytes: int) -> Collective:
    """A collective over the group of one rank."""
    root = 0 if kind is CollectiveKind.BROADCAST else None
    return Collective(
        name=str(kind), kind=kind, ranks="all", value=Value(ValueKind.GRAD, "b"), nbytes=nbytes, root=root
    )


def collectives(accelerator: Accelerator, library: Library, group: dist.ProcessGroup) -> None:
    """The four collectives of a group of one rank leave the values as they are. Raises `Wrong`.

    To be called in a thread that computes.
    """
    for kind in CollectiveKind:
        source = torch.arange(1000, dtype=torch.float32, device=accelerator.device)
        in_place = kind in (CollectiveKind.ALL_REDUCE, CollectiveKind.BROADCAST)
        output = source if in_place else torch.zeros_like(source)
        library.collective(collective_of(kind, source.nbytes), output, source, group)
        accelerator.synchronize()
        with accelerator.host():
            require(torch.equal(output.cpu(), torch.arange(1000, dtype=torch.float32)), f"{kind} gives wrong values")


def to_oneself(accelerator: Accelerator, library: Library, group: dist.ProcessGroup) -> None:
    """What a rank sends to itself arrives. Raises `Wrong`; to be called in a thread that computes."""
    source = torch.arange(1000, dtype=torch.float32, device=accelerator.device)
    target = torch.zeros_like(source)
    for work in library.exchange([(source, 0)], [(target, 0)], group):
        library.wait(work)
    require(torch.equal(target.cpu(), source.cpu()), "what a rank sends to itself arrives wrong")


def from_two_threads(accelerator: Accelerator, library: Library, groups: Sequence[dist.ProcessGroup]) -> None:
    """Threads that carry out collectives at once, each on a group of its own, all end, with right values."""

    def lane(group: dist.ProcessGroup) -> Tensor:
        values = torch.ones(100_000, device=accelerator.device)
        for _ in range(ROUNDS):
            library.collective(collective_of(CollectiveKind.ALL_REDUCE, values.nbytes), values, values, group)
        accelerator.synchronize()
        return values

    for values in together([lambda g=g: lane(g) for g in groups], accelerator.start_thread):  # type: ignore[misc]
        require(bool((values.cpu() == 1).all()), "collectives from two threads give wrong values")


def waits(accelerator: Accelerator, library: Library, group: dist.ProcessGroup, sleep: Sleep) -> str:
    """Behind a kernel that sleeps, torch's own wait returns at once, and the library's does not. Raises `Wrong`.

    To be called in a thread that computes.
    """
    values = torch.ones(1000, device=accelerator.device)
    warm = dist.all_reduce(values, group=group, async_op=True)
    require(warm is not None, "this rank is not in the group")
    library.wait(warm)
    sleep(SLEEP_S)
    begin_s = now()
    work = dist.all_reduce(values, group=group, async_op=True)
    require(work is not None, "this rank is not in the group")
    work.wait()
    raw_s = now() - begin_s
    library.wait(work)
    own_s = now() - begin_s
    require(own_s > SLEEP_S / 2, f"an operation behind a kernel of {SLEEP_S} s was taken for done after {own_s:.3f} s")
    accelerator.synchronize()
    require(bool((values.cpu() == 1).all()), "an all-reduce behind a sleeping kernel gives wrong values")
    return f"behind a kernel of {SLEEP_S} s torch's wait returned after {1e3 * raw_s:.1f} ms, ours after {own_s:.2f} s"
