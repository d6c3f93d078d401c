"""Imitated process groups: NCCL's, whose operations are kernels of streams, and gloo's, which touch host memory."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor

from stanza_sim.execute.rank.job import Backend
from stanza_sim.execute.rank.library import PATIENCE, Gloo, Library, Nccl
from stanza_sim.execute.standin.device import Event, Standin, Stream
from stanza_sim.execute.standin.order import HOST

Tensors = list[Tensor]


class StreamWork(dist.Work):
    """An operation of NCCL: a kernel on a stream. Waiting for it makes only the caller's stream wait."""

    def __init__(self, event: Event, device: Standin, stream: Stream) -> None:
        super().__init__()
        self._event, self._device, self._stream = event, device, stream

    def is_completed(self) -> bool:
        """Whether the host can see that it is done; then all that comes later does too."""
        if not self._event.happened.is_set():
            return False
        self._device.watch.after(HOST, self._event.point)
        return True

    def wait(self, timeout: datetime.timedelta | None = None) -> bool:
        """Order the current stream behind it. In the main thread, which has none, wait."""
        stream = self._device.current()
        if stream is None:
            self._event.happened.wait()
            self._device.watch.after(HOST, self._event.point)
        else:
            stream.await_event(self._event)
        if self._stream.error is not None:
            raise self._stream.error
        return True


class _Group(dist.ProcessGroup):
    """What torch asks of a group, beside its operations, that it does not keep for groups written in Python."""

    _name = ""

    def _set_group_name(self, name: str) -> None:
        self._name = name

    @property
    def group_name(self) -> str:  # type: ignore[override]
        """The name under which torch registers and forgets it."""
        return self._name

    def getBackendName(self) -> str:
        """The name that torch shows."""
        return "standin"


class NcclGroup(_Group):
    """A communicator: its members make it together, and its messages run on a stream of its own, one after another.

    A collective runs on the current stream of whoever calls it.
    """

    def __init__(self, inner: Any, device: Standin, rank: int, size: int, *, eager: bool) -> None:
        super().__init__(rank, size)  # type: ignore[call-arg]
        self._inner, self._device = inner, device
        self._stream = device.new_stream(f"the communicator's stream at {rank} of {size}")
        self._made = False
        if eager:
            self._make()

    def _make(self) -> None:
        """Wait until all members have come."""
        if not self._made:
            self._made = True
            self._inner.barrier().wait()

    def _message(self, name: str, tensors: Tensors, move: Callable[[], dist.Work], *, writes: bool) -> StreamWork:
        current = self._device.current()
        if current is not None:
            self._stream.await_event(current.record())
        reads, written = ([], tensors) if writes else (tensors, [])

        def body() -> None:
            self._make()
            move().wait()

        self._stream.launch(name, body, reads, written, arrives=writes)
        return StreamWork(self._stream.record(), self._device, self._stream)

    def send(self, tensors: Tensors, dst: int, tag: int = 0) -> StreamWork:
        """A message to `dst`; NCCL knows no tags."""
        return self._message("send", tensors, lambda: self._inner.send(tensors, dst, 0), writes=False)

    def recv(self, tensors: Tensors, src: int, tag: int = 0) -> StreamWork:
        """A message from `src`."""
        return self._message("recv", tensors, lambda: self._inner.recv(tensors, src, 0), writes=True)

    def together(self, sends: Sequence[tuple[Tensor, int]], receives: Sequence[tuple[Tensor, int]]) -> StreamWork:
        """Messages of one group of calls: one kernel."""

        def body() -> None:
            self._make()
            works = [self._inner.recv([t], r, 0) for t, r in receives] + [self._inner.send([t], r, 0) for t, r in sends]
            for work in works:
                work.wait()

        current = self._device.current()
        if current is not None:
            self._stream.await_event(current.record())
        self._stream.launch("group of messages", body, [t for t, _ in sends], [t for t, _ in receives], arrives=True)
        return StreamWork(self._stream.record(), self._device, self._stream)

    def _collective(self, name: str, reads: Tensors, writes: Tensors, call: Callable[[], dist.Work]) -> StreamWork:
        stream = self._device.current() or self._stream

        def body() -> None:
            self._make()
            call().wait()

        stream.launch(name, body, reads, writes)
        return StreamWork(stream.record(), self._device, stream)

    def allreduce(self, tensors: Tensors, opts: Any = None) -> StreamWork:  # type: ignore[override]
        """See `ProcessGroup`."""
        return self._collective("allreduce", tensors, tensors, lambda: self._inner.allreduce(tensors, opts))

    def broadcast(self, tensors: Tensors, opts: Any = None) -> StreamWork:  # type: ignore[override]
        """See `ProcessGroup`."""
        root = opts.rootRank == self.rank()
        return self._collective(
            "broadcast",
            tensors if root else [],
            [] if root else tensors,
            lambda: self._inner.broadcast(tensors, opts),
        )

    def all_gather_single(self, output: Tensor, source: Tensor, opts: Any = None) -> StreamWork:
        """See `ProcessGroup`."""
        return self._collective("all_gather", [source], [output], lambda: _gather(self._inner, output, source, opts))

    def reduce_scatter_single(self, output: Tensor, source: Tensor, opts: Any = None) -> StreamWork:
        """See `ProcessGroup`."""
        return self._collective(
            "reduce_scatter", [source], [output], lambda: _scatter(self._inner, output, source, opts)
        )

    _allgather_base, _reduce_scatter_base = all_gather_single, reduce_scatter_single  # type: ignore[assignment]


class _HostWork(dist.Work):
    """A message of gloo's, which reads or writes host memory until it has been waited for."""

    def __init__(self, inner: dist.Work, done: Callable[[], None]) -> None:
        super().__init__()
        self._inner, self._done = inner, done

    def wait(self, timeout: datetime.timedelta | None = None) -> bool:
        """Return when it has been moved."""
        self._inner.wait()
        done, self._done = self._done, lambda: None  # it may be waited for again
        done()
        return True


class GlooGroup(_Group):
    """Gloo, which reads and writes host memory whatever streams are doing; so it must be known that they are done."""

    def __init__(self, inner: Any, device: Standin, rank: int, size: int) -> None:
        super().__init__(rank, size)  # type: ignore[call-arg]
        self._inner, self._device = inner, device

    def _message(self, name: str, tensors: Tensors, work: Callable[[], dist.Work], *, writes: bool) -> _HostWork:
        """The memory is in use by a stream of the message's own until it has been waited for."""
        watch = self._device.watch
        stream = watch.new_stream(f"gloo, {name}")
        watch.launch(stream, name, *(((), tensors) if writes else (tensors, ())))
        point = watch.point(stream)

        def done() -> None:
            watch.after(HOST, point)
            watch.end(stream)

        return _HostWork(work(), done)

    def send(self, tensors: Tensors, dst: int, tag: int = 0) -> _HostWork:
        """See `ProcessGroup`."""
        return self._message("send", tensors, lambda: self._inner.send(tensors, dst, tag), writes=False)

    def recv(self, tensors: Tensors, src: int, tag: int = 0) -> _HostWork:
        """See `ProcessGroup`."""
        return self._message("recv", tensors, lambda: self._inner.recv(tensors, src, tag), writes=True)

    def _collective(self, name: str, reads: Tensors, writes: Tensors, call: Callable[[], dist.Work]) -> dist.Work:
        self._device.watch.launch(HOST, name, reads, writes)
        return call()

    def allreduce(self, tensors: Tensors, opts: Any = None) -> dist.Work:  # type: ignore[override]
        """See `ProcessGroup`."""
        return self._collective("allreduce", tensors, tensors, lambda: self._inner.allreduce(tensors, opts))

    def broadcast(self, tensors: Tensors, opts: Any = None) -> dist.Work:  # type: ignore[override]
        """See `ProcessGroup`."""
        return self._collective("broadcast", tensors, tensors, lambda: self._inner.broadcast(tensors, opts))

    def all_gather_single(self, output: Tensor, source: Tensor, opts: Any = None) -> dist.Work:
        """See `ProcessGroup`."""
        return self._collective("all_gather", [source], [output], lambda: _gather(self._inner, output, source, opts))

    def reduce_scatter_single(self, output: Tensor, source: Tensor, opts: Any = None) -> dist.Work:
        """See `ProcessGroup`."""
        return self._collective(
            "reduce_scatter", [source], [output], lambda: _scatter(self._inner, output, source, opts)
        )

    _allgather_base, _reduce_scatter_base = all_gather_single, reduce_scatter_single  # type: ignore[assignment]


def _gather(inner: Any, output: Tensor, source: Tensor, opts: Any) -> dist.Work:
    """All-gather, under the name that this version of torch has for it."""
    call = getattr(inner, "all_gather_single", None) or inner._allgather_base
    work: dist.Work = call(output, source, opts)
    return work


def _scatter(inner: Any, output: Tensor, source: Tensor, opts: Any) -> dist.Work:
    """Reduce-scatter, under the name that this version of torch has for it."""
    call = getattr(inner, "reduce_scatter_single", None) or inner._reduce_scatter_base
    work: dist.Work = call(output, source, opts)
    return work


_made_by: dict[str, Standin] = {}
"""The device of each registered kind of group, in this process."""
_registering = threading.Lock()


def _new_group(kind: str, ranks: Sequence[int], device: Standin) -> dist.ProcessGroup:
    """A group of `kind`, through torch's registry of backends."""
    with _registering:
        _made_by[kind] = device
        if kind not in dist.Backend.backend_list:
            dist.Backend.register_backend(kind, lambda store, rank, size, timeout: _make(kind, store, rank, size))
    made: dist.ProcessGroup = dist.new_group(list(ranks), backend=kind, timeout=PATIENCE)
    return made


def _make(kind: str, store: Any, rank: int, size: int) -> dist.ProcessGroup:
    inner = dist.ProcessGroupGloo(store, rank, size, PATIENCE)
    if kind == "standingloo":
        return GlooGroup(inner, _made_by[kind], rank, size)
    return NcclGroup(inner, _made_by[kind], rank, size, eager=kind == "standineager")


class StandinNccl(Nccl):
    """NCCL as the executor uses it, on imitated communicators; made at first use unless `eager`."""

    def __init__(self, device: Standin, *, eager: bool = True) -> None:
        super().__init__(device)
        self._device, self._kind = device, "standineager" if eager else "standinlazy"

    def new_group(self, ranks: Sequence[int], communicators: int) -> dist.ProcessGroup:
        """See `Library`."""
        return _new_group(self._kind, ranks, self._device)

    def exchange(
        self, sends: Sequence[tuple[Tensor, int]], receives: Sequence[tuple[Tensor, int]], group: dist.ProcessGroup
    ) -> list[dist.Work]:
        """As one kernel, as NCCL does with messages between the beginning and the end of a group of calls."""
        if not isinstance(group, NcclGroup):
            raise RuntimeError(f"{group} is no communicator")
        place = dist.get_group_rank
        return [group.together([(t, place(group, r)) for t, r in sends], [(t, place(group, r)) for t, r in receives])]


class StandinGloo(Gloo):
    """Gloo for an imitated GPU's page-locked memory."""

    def __init__(self, device: Standin) -> None:
        self._device = device

    def new_group(self, ranks: Sequence[int], communicators: int) -> dist.ProcessGroup:
        """See `Library`."""
        return _new_group("standingloo", ranks, self._device)


def library_of(backend: Backend, device: Standin) -> Library:
    """What moves the tensors of an imitated GPU."""
    return StandinNccl(device) if backend is Backend.NCCL else StandinGloo(device)
