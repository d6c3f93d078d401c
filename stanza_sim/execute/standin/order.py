"""What comes before what: vector clocks of streams and of the host, and a watch over the bytes that they touch.

As in torch's sanitizer of streams (`torch.cuda._sanitizer`): every kernel of a stream has a number; a stream knows up
to which number each other stream was done before its own next kernel starts, and the host knows what it has waited for.
A kernel may touch bytes that another one touched, if one of the two writes, only if it is known to come after it.

What orders through other processes is not known here: a message may answer what this rank sent before, and then come
after that was read. So a message that arrives may write what a kernel touched that has ended, known or not.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

HOST = 0
"""The host's number among the streams: all its threads together."""
Clock = dict[int, int]
"""For each stream, the number of the last of its kernels that is known to be done."""


class Race(RuntimeError):
    """Two kernels touch the same bytes, and nothing says which comes first."""


@dataclass(frozen=True, slots=True)
class _Touch:
    """Bytes [lo, hi) of a storage that kernel `number` of `stream` reads or writes; `ended` once it has."""

    lo: int
    hi: int
    writes: bool
    stream: int
    number: int
    name: str
    ended: threading.Event


@dataclass(slots=True)
class _Memory:
    """A storage: the stream on which it was allocated, and what touched it and is not known to be done."""

    owner: int
    name: str = ""
    touches: list[_Touch] = field(default_factory=list)


class Watch:
    """The order of all kernels of one process. `names` are those of the streams."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._count = itertools.count(1)
        self._over: list[int] = []
        self._clocks: dict[int, Clock] = {HOST: {}}
        self._numbers: dict[int, int] = {HOST: 0}
        self._memory: dict[int, _Memory] = {}
        self._kept: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self.names: dict[int, str] = {HOST: "the host"}
        self.races: list[str] = []
        """What was found where nobody could be told at once: memory that was freed too early."""

    def new_stream(self, name: str) -> int:
        """The number of a stream called `name`: that of one that is over, which then goes on, or a new one."""
        with self._lock:
            number = self._over.pop() if self._over else next(self._count)
            self.names[number], self._clocks[number] = name, {}
            self._numbers.setdefault(number, 0)
            return number

    def end(self, stream: int) -> None:
        """`stream` is given nothing any more. Clocks have an entry for each stream, so its number is used again."""
        with self._lock:
            if self._numbers[stream] <= self._clocks[HOST].get(stream, 0):
                self._over.append(stream)

    def launch(
        self,
        stream: int,
        name: str,
        reads: Iterable[Tensor] = (),
        writes: Iterable[Tensor] = (),
        *,
        ended: threading.Event | None = None,
        arrives: bool = False,
    ) -> int:
        """The host puts a kernel on `stream`, or does something itself: the kernel's number. Raises `Race`.

        `ended` is set once the kernel has ended; `arrives` says that it waits for a message from another process.
        """
        ended = ended or threading.Event()
        with self._lock:
            self._join(self._clocks[stream], self._clocks[HOST])
            number = self._numbers[stream] = self._numbers[stream] + 1
            touched = [self._touch(t, False, stream, number, name, ended) for t in reads]
            touched += [self._touch(t, True, stream, number, name, ended) for t in writes]
            for storage, touch in touched:
                self._check(storage, touch, arrives=arrives)
            for storage, touch in touched:
                self._note(storage, touch)
            if stream == HOST:
                self._clocks[HOST][HOST] = number
            return number

    def allocate(self, stream: int, name: str, tensor: Tensor) -> None:
        """`tensor` is new memory of `stream`, made by `name`; used again as soon as the host has let it go."""
        with self._lock:
            memory = self._of(tensor.untyped_storage())
            memory.owner, memory.name = stream, name

    def point(self, stream: int) -> Clock:
        """What is done once all that `stream` has been given is."""
        with self._lock:
            return {**self._clocks[stream], stream: self._numbers[stream]}

    def after(self, stream: int, point: Clock) -> None:
        """What `stream` is given from now on comes after `point`; for the host: it has waited for it."""
        with self._lock:
            self._join(self._clocks[stream], point)

    @staticmethod
    def _join(into: Clock, other: Clock) -> None:
        for stream, number in other.items():
            if number > into.get(stream, 0):
                into[stream] = number

    @staticmethod
    def _touch(
        tensor: Tensor, writes: bool, stream: int, number: int, name: str, ended: threading.Event
    ) -> tuple[torch.UntypedStorage, _Touch]:
        storage = tensor.untyped_storage()
        lo = int(tensor.storage_offset()) * tensor.element_size()
        span = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) if tensor.numel() else 0
        hi = lo + span * tensor.element_size()
        return storage, _Touch(lo, int(hi), writes, stream, number, name, ended)

    def _check(self, storage: torch.UntypedStorage, touch: _Touch, *, arrives: bool) -> None:
        memory = self._memory.get(storage._cdata)
        if memory is None:
            return
        clock = self._clocks[touch.stream]
        for other in memory.touches:
            apart = other.hi <= touch.lo or touch.hi <= other.lo
            if apart or not (other.writes or touch.writes) or other.stream == touch.stream:
                continue
            if other.number > clock.get(other.stream, 0) and not (arrives and other.ended.is_set()):
                did, does = ("writes" if t.writes else "reads" for t in (other, touch))
                raise Race(
                    f"{touch.name} on {self.names[touch.stream]} {does} what {other.name} on "
                    f"{self.names[other.stream]} {did}, and nothing puts the one before the other"
                )

    def _note(self, storage: torch.UntypedStorage, touch: _Touch) -> None:
        memory = self._of(storage)
        known = self._clocks[HOST]
        memory.touches = [t for t in memory.touches if t.number > known.get(t.stream, 0)]
        memory.touches.append(touch)

    def _of(self, storage: torch.UntypedStorage) -> _Memory:
        key = storage._cdata
        memory = self._memory.get(key)
        if memory is None:
            memory = self._memory[key] = _Memory(HOST)
            self._kept[key] = weakref.ref(storage, partial(self._freed, key))
        return memory

    def _freed(self, key: int, _: object) -> None:
        """A storage is gone. Its bytes may serve the stream that they were allocated on from now on."""
        with self._lock:
            memory = self._memory.pop(key, None)
            self._kept.pop(key, None)
            if memory is None or memory.owner == HOST:
                return
            known = {**self._clocks[HOST]}
            self._join(known, self._clocks[memory.owner])
            for t in memory.touches:
                if t.stream in (HOST, memory.owner) or t.number <= known.get(t.stream, 0):
                    continue
                made, used = self.names[memory.owner], self.names[t.stream]
                self.races.append(
                    f"memory of {memory.name} on {made} was freed while {t.name} on {used} may still use it"
                )
                return
