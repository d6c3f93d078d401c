"""Bringing one rank's samples ahead of time, to the device that computes on them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stanza_sim.base.errors import InputError, RunError
from stanza_sim.execute.rank.accelerator import Accelerator, Recorded
from stanza_sim.execute.train.data import Dataset, Inputs, stack
from stanza_sim.execute.train.losses import terms
from stanza_sim.model.labels import IGNORED, Labels

AHEAD_BYTES = 256 * 1024 * 1024
"""Up to so many bytes a rank loads all its samples before the run; beyond it a thread loads ahead."""
SYNTHETIC_ON_DEVICE_BYTES = 4 * 1024 * 1024 * 1024
"""The same for synthetic samples on a GPU: all of them, of 3 x 224 x 224 numbers of 4 bytes, are 2.5 GB. To make one
of these takes a core longer than a GPU needs to train on it, so a thread that makes them would set the pace."""
AHEAD_ITERATIONS = 4
CHUNK_BYTES = 64 * 1024 * 1024
"""Page-locked memory through which samples go to a GPU where all are loaded at once."""


class Staging:
    """Page-locked memory through which samples go to a device, up to `count` at a time.

    The thread that loads must have a stream of its own (`Accelerator.start_thread`): the copies are put there, so that
    they hold up no other.
    """

    def __init__(self, accelerator: Accelerator, count: int, like: tuple[Inputs, Tensor]) -> None:
        self._accelerator, self._count = accelerator, count
        self._parts = [
            accelerator.host_buffer(count * t.numel() * t.element_size()).view(t.dtype).view(count, *t.shape)
            for t in (*like[0], like[1])
        ]

    def load(self, items: Dataset, numbers: Sequence[int]) -> tuple[Inputs, Tensor]:
        """As `stack`, on the device; the copies are done when it returns."""
        device, count = self._accelerator.device, len(numbers)
        made = [torch.empty((count, *t.shape[1:]), dtype=t.dtype, device=device) for t in self._parts]
        for first in range(0, len(numbers), self._count):
            some = numbers[first : first + self._count]
            with self._accelerator.host():
                for place, number in enumerate(some):
                    inputs, label = items[number]
                    for part, value in zip(self._parts, (*inputs, label), strict=True):
                        part[place].copy_(value)
            for there, part in zip(made, self._parts, strict=True):
                there[first : first + len(some)].copy_(part[: len(some)], non_blocking=True)
            self._accelerator.synchronize()  # before the memory is written again
        return tuple(made[:-1]), made[-1]


class Feed:
    """One rank's batches, iteration by iteration: `numbers[i]` are its samples of iteration i.

    Small sets of samples are loaded at once, others by a thread that stays `AHEAD_ITERATIONS` ahead and calls `start`
    first; of those of GPUs, up to `on_device` bytes are loaded at once.
    """

    def __init__(
        self,
        items: Dataset,
        numbers: Sequence[Sequence[int]],
        accelerator: Accelerator,
        *,
        start: Callable[[], None] = lambda: None,
        on_device: int = 0,
    ) -> None:
        self._accelerator, self._start, self._items, self._numbers = accelerator, start, items, numbers
        self._lock = threading.Lock()
        self._ready: dict[int, tuple[Inputs, Tensor, Recorded | None]] = {}
        self._queue: queue.Queue[tuple[int, Inputs, Tensor] | Exception] = queue.Queue(maxsize=AHEAD_ITERATIONS)
        self._all: tuple[Inputs, Tensor] | None = None
        if not numbers or not numbers[0]:
            return
        used = sorted({n for batch in numbers for n in batch})
        device, ahead = accelerator.device, AHEAD_BYTES
        if accelerator.asynchronous:
            ahead = max(AHEAD_BYTES, on_device)
        if len(used) * items.sample_bytes <= ahead:
            if accelerator.asynchronous:
                count = min(max(CHUNK_BYTES // items.sample_bytes, 1), len(used))
                self._all = Staging(accelerator, count, items[used[0]]).load(items, used)
            else:
                self._all = stack(items, used, device)
            place = {n: i for i, n in enumerate(used)}
            self._rows = [torch.tensor([place[n] for n in batch], device=device) for batch in numbers]
            return
        threading.Thread(target=self._load, daemon=True, name="samples").start()

    def terms(self, kind: Labels, output: Sequence[int]) -> list[int]:
        """Of each iteration, how many terms the losses of the own samples have; `output` is the shape of one output.

        Of samples that are loaded ahead, labels of many positions are read for that, while single ones all count.
        """
        if not kind.indices or (self._all is None and not kind.shape):
            return [len(batch) * kind.compared(output) for batch in self._numbers]
        if self._all is not None:
            return [terms(self._all[1][rows], kind, output) for rows in self._rows]
        known: dict[int, int] = {}
        for number in sorted({n for batch in self._numbers for n in batch}):
            known[number] = terms(self._items[number][1], kind, output)
        return [sum(known[n] for n in batch) for batch in self._numbers]

    def _load(self) -> None:
        try:
            staging: Staging | None = None
            if self._accelerator.asynchronous:
                self._start()
                staging = Staging(self._accelerator, max(map(len, self._numbers)), self._items[self._numbers[0][0]])
            for i, batch in enumerate(self._numbers):
                if staging is None:
                    x, y = stack(self._items, batch, self._accelerator.device)
                else:
                    x, y = staging.load(self._items, batch)
                if y.dim() == 1 and not y.is_floating_point() and bool((y == IGNORED).any()):
                    what = f"a label of {IGNORED} is left out of the mean, and these samples are too many to count such"
                    raise InputError(what, where=f"data {self._items.name!r}", hint="leave such samples out")
                self._queue.put((i, x, y))
        except Exception as error:  # noqa: BLE001 - handed to the thread that waits for the samples
            self._queue.put(error)

    def batch(self, iteration: int) -> tuple[Inputs, Tensor]:
        """Inputs and labels of this rank's samples in `iteration`; iterations must be asked for about in order.

        What the calling thread puts on its stream from now on comes after they are there.
        """
        with self._lock:
            while iteration not in self._ready:
                point: Recorded | None = None
                if self._all is not None:
                    rows = self._rows[iteration]
                    item = iteration, tuple(x[rows] for x in self._all[0]), self._all[1][rows]
                    point = self._accelerator.record()
                else:
                    got = self._queue.get()
                    if isinstance(got, InputError):
                        raise got
                    if isinstance(got, Exception):
                        raise RunError(f"loading samples failed: {type(got).__name__}: {got}")
                    item = got
                self._ready = {i: v for i, v in self._ready.items() if i >= item[0] - 1}
                self._ready[item[0]] = item[1], item[2], point
            x, y, point = self._ready[iteration]
        self._accelerator.await_record(point)
        return x, y
