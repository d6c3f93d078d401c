"""Gloo for tensors of a GPU: copied to page-locked host memory before they are sent, and back when they have arrived.

The lane that posts a message goes on at once. A thread of its own waits for the copy, on a stream of its own, and then
hands the message to gloo; messages leave in the order in which they were posted. What arrives is copied by the thread
that waits for it, on that thread's stream, so that no copy queues behind kernels of a lane.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from queue import SimpleQueue

from torch import Tensor

from stanza_sim.execute.rank.accelerator import Accelerator, Recorded
from stanza_sim.execute.rank.groups import Groups
from stanza_sim.execute.rank.interfaces import Handle
from stanza_sim.execute.rank.library import Library
from stanza_sim.execute.rank.transport import TorchTransport, same
from stanza_sim.schedule import Collective, Schedule, Transfer

LEAST_BYTES = 4096


class HostBuffers:
    """Page-locked buffers, kept for the next message: to lock memory takes longer than to copy it.

    Each has room for a power of two of bytes; `take` gives the part that is asked for.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._lock = threading.Lock()
        self._free: dict[int, list[Tensor]] = defaultdict(list)
        self.nbytes = 0
        """Bytes of all buffers, free or taken."""

    def take(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """A buffer, to be given back, and as much of it as `like` needs, in its type and shape."""
        room = max(LEAST_BYTES, 1 << max(like.nbytes - 1, 0).bit_length())
        with self._lock:
            buffer = self._free[room].pop() if self._free[room] else None
            if buffer is None:
                self.nbytes += room
        if buffer is None:
            buffer = self._accelerator.host_buffer(room)
        return buffer, buffer[: like.nbytes].view(like.dtype).view(like.shape)

    def give(self, buffer: Tensor) -> None:
        """Give a buffer back that nothing reads or writes any more."""
        with self._lock:
            self._free[len(buffer)].append(buffer)


class StagedTransport(TorchTransport):
    """See the module. `start` is called in the thread of its own first."""

    def __init__(
        self,
        schedule: Schedule,
        rank: int,
        groups: Groups,
        library: Library,
        accelerator: Accelerator,
        buffers: HostBuffers,
        start: Callable[[], None],
        *,
        values: bool = True,
    ) -> None:
        super().__init__(schedule, rank, groups, library, values=values)
        self._accelerator, self._buffers, self._start = accelerator, buffers, start
        self._leaving: SimpleQueue[_Leaving | None] = SimpleQueue()
        threading.Thread(target=self._stage, daemon=True, name="staging").start()

    def close(self) -> None:
        """End the thread."""
        self._leaving.put(None)

    def send(self, tensor: Tensor, dst: int, channel: str) -> Handle:
        """See `TorchTransport`; the lane that posts it does not wait for the copy."""
        post = super().send
        return self._leave([tensor], lambda hosts: [post(hosts[0], dst, channel)])

    def receive(self, tensor: Tensor, src: int, channel: str) -> Handle:
        """Post the receipt into host memory; waiting also copies it to `tensor`."""
        buffer, host = self._buffers.take(tensor)
        return self._landing([super().receive(host, src, channel)], [(buffer, host, tensor)])

    def send_tagged(self, tensor: Tensor, dst: int, op: Transfer) -> Handle:
        """As `send`, by the tag of `op`."""
        post = super().send_tagged
        return self._leave([tensor], lambda hosts: [post(hosts[0], dst, op)])

    def receive_tagged(self, tensor: Tensor, src: int, op: Transfer) -> Handle:
        """As `receive`, by the tag of `op`."""
        buffer, host = self._buffers.take(tensor)
        return self._landing([super().receive_tagged(host, src, op)], [(buffer, host, tensor)])

    def next_tag(self, src: int, channel: str) -> str:
        """See `TorchTransport`; numbers are the host's."""
        with self._accelerator.host():
            return super().next_tag(src, channel)

    def together(
        self, sends: Sequence[tuple[Tensor, int]], receives: Sequence[tuple[Tensor, int]], channel: str
    ) -> list[Handle]:
        """Stage all messages and post them as one group."""
        landings = [(*self._buffers.take(t), t) for t, _ in receives]
        hosts = [(host, r) for (_, host, _), (_, r) in zip(landings, receives, strict=True)]
        post, ranks = super().together, [r for _, r in sends]
        leaving = self._leave(
            [t for t, _ in sends], lambda out: post(list(zip(out, ranks, strict=True)), hosts, channel)
        )
        return [self._landing([leaving], landings)]

    def collective(self, op: Collective, output: Tensor, source: Tensor) -> None:
        """Carry out the collective on host copies, in the thread that calls."""
        buffer, host_source = self._buffers.take(source)
        taken = [buffer]
        host_source.copy_(source, non_blocking=True)
        host_output = host_source
        if not same(output, source):
            buffer, host_output = self._buffers.take(output)
            taken.append(buffer)
        self._accelerator.synchronize()
        with self._accelerator.host():
            super().collective(op, host_output, host_source)
        output.copy_(host_output, non_blocking=True)
        self._accelerator.synchronize()
        for buffer in taken:
            self._buffers.give(buffer)

    def _leave(self, tensors: Sequence[Tensor], post: _Post) -> _Leaving:
        leaving = _Leaving(tensors, self._accelerator.record(), post, self._buffers)
        self._leaving.put(leaving)
        return leaving

    def _stage(self) -> None:
        """Copy what is to be sent, and post it: the thread of the transport's own."""
        self._start()
        while (leaving := self._leaving.get()) is not None:
            leaving.go(self._accelerator)

    def _landing(self, handles: Iterable[Handle], landings: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Handle:
        return _Landing(handles, landings, self._accelerator, self._buffers)


_Post = Callable[[Sequence[Tensor]], Sequence[Handle]]
"""Posts messages that are in host memory."""


class _Leaving:
    """Messages from a device that are sent from host memory; `ready` is when the device has them."""

    def __init__(self, tensors: Sequence[Tensor], ready: Recorded | None, post: _Post, buffers: HostBuffers) -> None:
        self._tensors, self._ready, self._post, self._buffers = tensors, ready, post, buffers
        self._taken: list[Tensor] = []
        self._handles: Sequence[Handle] = ()
        self._error: BaseException | None = None
        self._gone = threading.Event()

    def go(self, accelerator: Accelerator) -> None:
        """Copy and post; what goes wrong is raised by `wait`."""
        try:
            hosts = []
            accelerator.await_record(self._ready)
            for tensor in self._tensors:
                buffer, host = self._buffers.take(tensor)
                host.copy_(tensor, non_blocking=True)
                self._taken.append(buffer)
                hosts.append(host)
            accelerator.synchronize()
            with accelerator.host():
                self._handles = self._post(hosts)
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            self._error = error
        self._gone.set()

    def wait(self) -> None:
        """See `Handle`."""
        self._gone.wait()
        if self._error is not None:
            raise self._error
        for handle in self._handles:
            handle.wait()
        for buffer in self._taken:
            self._buffers.give(buffer)


class _Landing:
    """Messages of one group, of which the received ones (buffer, host memory, tensor) go on to a device."""

    def __init__(
        self,
        handles: Iterable[Handle],
        landings: Sequence[tuple[Tensor, Tensor, Tensor]],
        accelerator: Accelerator,
        buffers: HostBuffers,
    ) -> None:
        self._handles, self._landings = list(handles), landings
        self._accelerator, self._buffers = accelerator, buffers

    def wait(self) -> None:
        """See `Handle`."""
        for handle in self._handles:
            handle.wait()
        for _, host, target in self._landings:
            target.copy_(host, non_blocking=True)
        self._accelerator.synchronize()
        for buffer, _, _ in self._landings:
            self._buffers.give(buffer)
