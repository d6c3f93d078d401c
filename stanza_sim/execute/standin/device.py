"""The imitated device: streams that carry out kernels after the host has gone on, and the accelerator made of them."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from stanza_sim.execute.rank.accelerator import Recorded
from stanza_sim.execute.rank.clock import now
from stanza_sim.execute.standin.order import HOST, Clock, Watch

Body = Callable[[], object]


class Stream:
    """Carries out what it is given, one after another, some time after the host has gone on.

    Before each kernel it rests for up to `jitter_s`, as its own generator of random numbers says.
    """

    def __init__(self, watch: Watch, name: str, *, seed: str, jitter_s: float) -> None:
        self.watch, self.number = watch, watch.new_stream(name)
        self._queue: SimpleQueue[Body | None] = SimpleQueue()
        self._random, self._jitter_s = random.Random(seed), jitter_s
        self.error: BaseException | None = None
        threading.Thread(target=self._run, daemon=True, name=name).start()

    def _run(self) -> None:
        while (body := self._queue.get()) is not None:
            try:
                body()
            except BaseException as error:  # noqa: BLE001 - raised again where the host waits
                self.error = self.error or error

    def launch(
        self,
        name: str,
        body: Body,
        reads: Iterable[Tensor] = (),
        writes: Iterable[Tensor] = (),
        *,
        arrives: bool = False,
    ) -> None:
        """Give it a kernel; `arrives` says that it waits for a message from another process."""
        ended = threading.Event()
        self.watch.launch(self.number, name, reads, writes, ended=ended, arrives=arrives)

        def kernel() -> None:
            if self._jitter_s:
                time.sleep(self._random.uniform(0.0, self._jitter_s))
            with torch._C._AutoDispatchBelowADInplaceOrView():  # graphs and versions of tensors are the host's affair
                body()
            ended.set()

        self._queue.put(kernel)

    def record(self) -> Event:
        """What it has been given up to now."""
        event = Event(self.watch.point(self.number))
        self._queue.put(event.happen)
        return event

    def await_event(self, event: Event) -> None:
        """What it is given from now on comes after `event`."""
        self.watch.after(self.number, event.point)
        self._queue.put(event.happened.wait)

    def synchronize(self) -> Event:
        """Let the host wait for all that it has been given. Raises what a kernel raised."""
        event = self.record()
        event.happened.wait()
        self.watch.after(HOST, event.point)
        if self.error is not None:
            raise self.error
        return event

    def close(self) -> None:
        """End, once all is done."""
        self._queue.put(None)
        self.watch.end(self.number)


class Event:
    """A point in the work of streams, and when it was come to."""

    def __init__(self, point: Clock) -> None:
        self.point, self.happened, self.at_s = point, threading.Event(), 0.0

    def happen(self) -> None:
        """It is come to."""
        self.at_s = now()
        self.happened.set()


_HOST_READS = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.nonzero.default,
}
"""What needs a value at the host: CUDA waits for the stream."""
_NOTHING_TO_DO = {
    torch.ops.aten.empty.memory_format,
    torch.ops.aten.empty_strided.default,
    torch.ops.aten.new_empty.default,
    torch.ops.aten.new_empty_strided.default,
    torch.ops.aten.empty_like.default,
}
"""Memory is made; nothing is written."""


class Kernels(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Puts the operations of the thread that entered it on `stream`."""

    def __init__(self, stream: Stream) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.stream = stream

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.is_view or func.namespace == "prim":
            return func(*args, **kwargs)
        if func in _NOTHING_TO_DO:
            made = func(*args, **kwargs)
            self.stream.watch.allocate(self.stream.number, func._schema.name, made)
            return made
        if func in _HOST_READS:
            self.stream.synchronize()
            return func(*args, **kwargs)
        named = [*zip(func._schema.arguments, args, strict=False)]
        named += [(a, kwargs[a.name]) for a in func._schema.arguments if a.name in kwargs]
        reads = [t for a, value in named for t in _tensors(value)]
        writes = [
            t for a, value in named if a.alias_info is not None and a.alias_info.is_write for t in _tensors(value)
        ]
        outputs = self._outputs(func, args, kwargs, writes)
        if outputs is None:
            self.stream.synchronize()
            return func(*args, **kwargs)
        made, returned = outputs
        for tensor in made:
            if tensor is not None:
                self.stream.watch.allocate(self.stream.number, func._schema.name, tensor)
        name = func._schema.name.removeprefix("aten::")

        def body() -> None:
            found = func(*args, **kwargs)
            every = found if isinstance(found, tuple | list) else [found] if made else []
            for mine, theirs in zip(made, every, strict=True):
                if mine is not None:
                    mine.data.copy_(theirs)

        self.stream.launch(name, body, reads, [*writes, *(t for t in made if t is not None)])
        return returned

    @staticmethod
    def _outputs(
        func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], writes: list[Tensor]
    ) -> tuple[list[Tensor | None], Any] | None:
        """Memory for what the operation puts out, full of NaN; None if its size depends on values.

        What it writes in place, and what it does not put out at all, needs none.
        """
        returns = func._schema.returns
        in_place = [_is_written(r) for r in returns]
        if all(in_place):
            if not returns:
                return [], None
            if len(returns) == 1:
                return [None], writes[0]
            return [None] * len(returns), tuple(writes)
        try:
            key = func, _signature(args), _signature(tuple(kwargs.items()))
            if key not in _puts_out:
                _puts_out[key] = func(*_map(args, _on_meta), **_map(kwargs, _on_meta))
            found = _puts_out[key]
        except (RuntimeError, NotImplementedError):
            return None
        made: list[Tensor | None] = []
        puts_out: list[Any] = []
        waiting = iter(writes)
        for already, theirs in zip(in_place, found if isinstance(found, tuple | list) else [found], strict=True):
            if already:
                made.append(None)
                puts_out.append(next(waiting))
            elif isinstance(theirs, Tensor):
                made.append(_unwritten(theirs))
                puts_out.append(made[-1])
            elif theirs is None:
                made.append(None)
                puts_out.append(None)
            else:
                return None
        if isinstance(found, tuple | list):
            return made, type(found)(puts_out)
        return made, puts_out[0]


def _is_written(argument: Any) -> bool:
    """Whether an operation writes what its schema has there."""
    return argument.alias_info is not None and bool(argument.alias_info.is_write)


def _tensors(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for v in value for t in _tensors(v)] if isinstance(value, list | tuple) else []


def _map(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_map(v, change) for v in value)
    if isinstance(value, dict):
        return {k: _map(v, change) for k, v in value.items()}
    return change(value)


_puts_out: dict[Any, Any] = {}
"""What operations put out, without memory, by their arguments: a job asks the same again in every iteration."""


def _signature(value: Any) -> Any:
    """What of an argument says which shapes an operation puts out; `True`, `1` and `1.0` are told apart."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    return tuple(map(_signature, value)) if isinstance(value, list | tuple) else (type(value), value)


def _on_meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    return torch.device("meta") if isinstance(value, torch.device) else value


def _unwritten(like: Tensor) -> Tensor:
    made = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype)
    if made.is_floating_point():
        made.fill_(float("nan"))
    return made


@dataclass(frozen=True, slots=True)
class _Here:
    """What a thread has: its stream, and what puts its operations there."""

    stream: Stream
    kernels: Kernels


class Standin:
    """An accelerator that imitates a GPU; see the package. Threads of the main thread's name compute on the host."""

    device = torch.device("cpu")
    asynchronous = True

    def __init__(self, *, seed: int = 0, jitter_s: float = 0.0) -> None:
        self.watch = Watch()
        self._seed, self._jitter_s = seed, jitter_s
        self._of_thread = threading.local()
        self._streams: list[tuple[threading.Thread, Stream]] = []

    def new_stream(self, name: str) -> Stream:
        """A stream that is nobody's current one."""
        return Stream(self.watch, name, seed=f"{self._seed} {name}", jitter_s=self._jitter_s)

    def start_thread(self) -> None:
        """Give the calling thread a stream, unless it is the main one, which sets up and computes nothing."""
        here = threading.current_thread()
        if here is threading.main_thread() or hasattr(self._of_thread, "here"):
            return
        stream = self.new_stream(f"the stream of {here.name}")
        self._streams.append((here, stream))
        self._of_thread.here = _Here(stream, Kernels(stream))
        self._of_thread.here.kernels.__enter__()

    def prepare(self) -> None:
        """Nothing is needed."""

    def current(self) -> Stream | None:
        """The calling thread's stream; None for the main thread."""
        here: _Here | None = getattr(self._of_thread, "here", None)
        return None if here is None else here.stream

    def begin(self) -> object:
        """See `Accelerator`."""
        stream = self.current()
        return now() if stream is None else stream.record()

    def finish(self, began: object) -> tuple[float, float]:
        """See `Accelerator`."""
        stream = self.current()
        if stream is None or not isinstance(began, Event):
            return began, now()  # type: ignore[return-value]
        ended = stream.synchronize()
        return began.at_s, ended.at_s

    def synchronize(self) -> None:
        """See `Accelerator`."""
        if (stream := self.current()) is not None:
            stream.synchronize()

    def record(self) -> Recorded | None:
        """See `Accelerator`."""
        stream = self.current()
        return None if stream is None else stream.record()

    def await_record(self, point: Recorded | None) -> None:
        """See `Accelerator`."""
        if isinstance(point, Event) and (stream := self.current()) is not None:
            stream.await_event(point)

    def host_buffer(self, nbytes: int) -> Tensor:
        """See `Accelerator`. What it holds at first is no number."""
        with self.host():
            return torch.full((nbytes,), 0xFF, dtype=torch.uint8)

    def host(self) -> AbstractContextManager[object]:
        """See `Accelerator`."""
        return _disable_current_modes()

    def release(self) -> None:
        """End the streams of threads that are gone."""
        for thread, stream in self._streams:
            if not thread.is_alive():
                stream.close()
        self._streams = [(thread, stream) for thread, stream in self._streams if thread.is_alive()]

    def check(self) -> None:
        """Raise `RuntimeError` if memory was freed while a stream might still use it."""
        if self.watch.races:
            raise RuntimeError("; ".join(self.watch.races[:3]))
