"""What a rank computes on: how its threads put work there, wait for it, and time it.

On a CPU an operation is done when it returns. On a GPU it is done some time after it was put on a *stream*, in the
order of that stream and of no other. Here every thread has a stream of its own, so that no thread's work queues behind
another's, and whoever says that something is complete has waited for it on the host. So all order between threads is
the host's, and no stream ever waits for another one, but for what it has just been handed (`record`, `await_record`).
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor

from stanza_sim.execute.rank.clock import now


class Recorded(Protocol):
    """A point in the work of a stream: what was put on it up to then."""


class Accelerator(Protocol):
    """A device as the threads of a rank use it. `device` is where tensors are.

    Where it is `asynchronous`, an operation is done some time after it returned, and its memory is not the host's.
    """

    device: torch.device
    asynchronous: bool

    def start_thread(self) -> None:
        """What a thread must do before it computes: it gets a stream of its own."""
        ...

    def prepare(self) -> None:
        """What a thread must do, after that, before it does more than copy: nothing it computes later waits for it."""
        ...

    def begin(self) -> object:
        """Mark where a computation of the calling thread begins."""
        ...

    def finish(self, began: object) -> tuple[float, float]:
        """Wait until all that the calling thread has put on its stream is done.

        Returns when what came after `began` began and when it ended, in seconds of the host's clock.
        """
        ...

    def synchronize(self) -> None:
        """Wait until all that the calling thread has put on its stream is done."""
        ...

    def record(self) -> Recorded | None:
        """The point that the calling thread's stream has come to; None where nothing is ever pending."""
        ...

    def await_record(self, point: Recorded | None) -> None:
        """Let what the calling thread puts on its stream from now on wait for `point` of another thread's stream."""
        ...

    def host_buffer(self, nbytes: int) -> Tensor:
        """Bytes in the host's memory that the device can read and write while the host goes on (page-locked)."""
        ...

    def host(self) -> AbstractContextManager[object]:
        """Within, the calling thread's operations are on the host's own memory, and done when they return."""
        ...

    def release(self) -> None:
        """Give back memory that is cached but not used, between jobs."""
        ...


class Cpu:
    """The host's cores: everything is done when it returns."""

    device = torch.device("cpu")
    asynchronous = False

    def start_thread(self) -> None:
        """Nothing is needed."""

    def prepare(self) -> None:
        """Nothing is needed."""

    def begin(self) -> object:
        """The time."""
        return now()

    def finish(self, began: object) -> tuple[float, float]:
        """See `Accelerator`."""
        return began, now()  # type: ignore[return-value]

    def synchronize(self) -> None:
        """Nothing is pending."""

    def record(self) -> None:
        """Nothing is pending."""

    def await_record(self, point: Recorded | None) -> None:
        """Nothing is pending."""

    def host_buffer(self, nbytes: int) -> Tensor:
        """Any memory will do."""
        return torch.empty(nbytes, dtype=torch.uint8)

    def host(self) -> AbstractContextManager[object]:
        """All memory is."""
        return nullcontext()

    def release(self) -> None:
        """Nothing is cached."""


class Cuda:
    """One GPU, on which every thread has a stream.

    A thread's streams come from torch's pool of 32 of the default priority; NCCL's come from that of a high priority
    (see `library.Nccl`), so that a thread's work is never in a stream of NCCL's, behind a receive that waits.
    """

    asynchronous = True

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._of_thread = threading.local()

    def start_thread(self) -> None:
        """Make the device current, and a stream of the thread's own."""
        torch.cuda.set_device(self.device)
        known = self._of_thread
        if not hasattr(known, "stream"):
            known.stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
            known.begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            known.end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        torch.cuda.set_stream(known.stream)

    def prepare(self) -> None:
        """Have the thread's handle of cuBLAS made, and its workspace, 8 to 32 MiB for each handle and stream.

        Both are made at first use, which allocates memory. Threads that only move messages need neither.
        """
        small = torch.zeros((8, 8), device=self.device)
        torch.mm(small, small)
        self.synchronize()

    def begin(self) -> object:
        """An event on the thread's stream."""
        event = self._of_thread.begin
        event.record()
        return event

    def finish(self, began: object) -> tuple[float, float]:
        """The end is when the host sees it; the beginning is as long before as the two events are apart.

        So there is one clock, the host's, and no drift between two. Both instants are late by what it takes the host
        to see the end of a kernel, some microseconds.
        """
        end = self._of_thread.end
        end.record()
        end.synchronize()
        end_s = now()
        return end_s - began.elapsed_time(end) / 1e3, end_s  # type: ignore[attr-defined]

    def synchronize(self) -> None:
        """See `Accelerator`."""
        torch.cuda.current_stream(self.device).synchronize()

    def record(self) -> Recorded | None:
        """An event on the calling thread's stream."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        return event

    def await_record(self, point: Recorded | None) -> None:
        """See `Accelerator`."""
        if isinstance(point, torch.cuda.Event):
            torch.cuda.current_stream(self.device).wait_event(point)

    def host_buffer(self, nbytes: int) -> Tensor:
        """Page-locked memory."""
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def host(self) -> AbstractContextManager[object]:
        """Torch tells them by their device."""
        return nullcontext()

    def release(self) -> None:
        """See `Accelerator`. Workspaces of cuBLAS too: there would be one for each stream that ever computed."""
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()


def accelerator_of(device: torch.device) -> Accelerator:
    """What computes at `device`."""
    return Cuda(device) if device.type == "cuda" else Cpu()
