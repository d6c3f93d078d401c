"""Samples for training: which dataset, which samples each iteration draws, and bringing them ahead of time."""

from __future__ import annotations

import importlib
import os
import queue
import sys
import threading
from collections.abc import Callable, Sequence, Sized
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stanza_sim.base.errors import InputError, RunError
from stanza_sim.base.user_code import check_found, check_module
from stanza_sim.execute.rank.accelerator import Accelerator, Recorded
from stanza_sim.model.profile import ModelProfile

HELD_OUT = 5
"""One sample in so many is held out for the accuracy after training."""
HELD_OUT_MOST = 2000
SYNTHETIC_SAMPLES = 4096
AHEAD_BYTES = 256 * 1024 * 1024
"""Up to so many bytes a rank loads all its samples before the run; beyond it a thread loads ahead."""
SYNTHETIC_ON_DEVICE_BYTES = 4 * 1024 * 1024 * 1024
"""The same for synthetic samples on a GPU: all of them, of 3 x 224 x 224 numbers of 4 bytes, are 2.5 GB. To make one
of these takes a core longer than a GPU needs to train on it, so a thread that makes them would set the pace."""
AHEAD_ITERATIONS = 4
CHUNK_BYTES = 64 * 1024 * 1024
"""Page-locked memory through which samples go to a GPU where all are loaded at once."""


class Items(Protocol):
    """A dataset: `items[i]` is (input tensor, class index)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Tensor, int]: ...


class Synthetic:
    """Normal noise with random labels, sample i made from (seed, i)."""

    def __init__(self, model: ModelProfile, seed: int) -> None:
        self._shape, self._classes, self._seed = model.input_shape, model.num_classes, seed

    def __len__(self) -> int:
        return SYNTHETIC_SAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        generator = torch.Generator().manual_seed((self._seed * SYNTHETIC_SAMPLES + index) % 2**63)
        x = torch.randn(self._shape, generator=generator)
        return x, int(torch.randint(self._classes, (), generator=generator))


def _digits() -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Pixels, of shape (samples, 64), and labels. Raises `InputError` without scikit-learn.

    Every rank loads them, and importing scikit-learn takes longer than all else that a rank does before it begins, so
    its file is read where it is known to lie.
    """
    found = find_spec("sklearn")
    if found is None:
        hint = "pip install 'stanza-sim[torch]', or use data: synthetic"
        raise InputError("data `digits` needs scikit-learn", hint=hint)
    for folder in found.submodule_search_locations or ():
        path = Path(folder, "datasets", "data", "digits.csv.gz")
        if path.is_file():
            table = np.loadtxt(path, delimiter=",")
            return table[:, :-1], table[:, -1]
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return pixels, labels


class Digits:
    """Scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, scaled to mean 0 and variance 1 over the set."""

    def __init__(self) -> None:
        pixels, labels = _digits()
        x = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8)
        self._x = (x - x.mean()) / x.std()
        self._y = [int(y) for y in labels]

    def __len__(self) -> int:
        return len(self._y)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._x[index], self._y[index]


def _imported(path: str) -> Items:
    """The Dataset at `package.module:name`, called without arguments if it is callable."""
    where = f"data {path!r}"
    hint = "data is `synthetic`, `digits`, or package.module:name of a torch Dataset or of a function that returns one"
    module_name, colon, attribute = path.partition(":")
    if not colon or not module_name or not attribute:
        raise InputError("there is no such data", where=where, hint=hint)
    check_module(module_name, where)
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)
    try:
        found = getattr(importlib.import_module(module_name), attribute)
        check_found(found, where)
        made = found() if callable(found) else found
    except (ImportError, AttributeError, LookupError, OSError, RuntimeError, SyntaxError, TypeError, ValueError) as e:
        raise InputError(f"{type(e).__name__}: {e}", where=where, hint=hint) from e
    if not isinstance(made, Sized) or not hasattr(made, "__getitem__"):
        raise InputError(f"is a {type(made).__name__} without length or items", where=where, hint=hint)
    return cast(Items, made)


def load(name: str, model: ModelProfile, seed: int) -> Items:
    """The dataset called `name`; raises `InputError` if there is none or its samples do not fit `model`."""
    items: Items
    match name:
        case "synthetic":
            items = Synthetic(model, seed)
        case "digits":
            items = Digits()
        case _:
            items = _imported(name)
    where = f"data {name!r}"
    if not len(items):
        raise InputError("has no samples", where=where)
    try:
        x, y = items[0]
        shape, label = tuple(x.shape), int(y)
    except (TypeError, ValueError, AttributeError) as e:
        raise InputError("its items are not pairs of a tensor and a class index", where=where) from e
    if shape != tuple(model.input_shape):
        raise InputError(f"a sample has shape {shape}, model {model.name} takes {model.input_shape}", where=where)
    if not 0 <= label < model.num_classes:
        raise InputError(f"class {label} is not one of the model's {model.num_classes}", where=where)
    return items


def divide(name: str, count: int, seed: int) -> tuple[list[int], list[int]]:
    """Sample numbers for training and held out, a fixed division under `seed`; synthetic data holds out nothing."""
    if name == "synthetic" or count < HELD_OUT:
        return list(range(count)), []
    order = np.random.default_rng([seed, 1]).permutation(count)
    held_out = min(count // HELD_OUT, HELD_OUT_MOST)
    return order[held_out:].tolist(), order[:held_out].tolist()


def draw(train: Sequence[int], global_batch: int, iterations: int, seed: int) -> list[list[int]]:
    """Sample numbers of each iteration's global batch: permutations of `train` in a row, alike in all ranks."""
    rng = np.random.default_rng([seed, 2])
    numbers = np.asarray(train)
    need = global_batch * iterations
    epochs = [rng.permutation(numbers) for _ in range(-(-need // len(numbers)))]
    stream = np.concatenate(epochs)[:need].reshape(iterations, global_batch)
    return cast("list[list[int]]", stream.tolist())


def stack(items: Items, numbers: Sequence[int], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Inputs (samples first) and int64 labels of the samples `numbers`."""
    pairs = [items[n] for n in numbers]
    x = torch.stack([torch.as_tensor(p[0]) for p in pairs]).to(device=device, dtype=dtype)
    return x, torch.tensor([int(p[1]) for p in pairs], dtype=torch.int64, device=device)


class Staging:
    """Page-locked memory through which samples go to a device, up to `count` at a time.

    The thread that loads must have a stream of its own (`Accelerator.start_thread`): the copies are put there, so that
    they hold up no other.
    """

    def __init__(self, accelerator: Accelerator, count: int, shape: Sequence[int], dtype: torch.dtype) -> None:
        self._accelerator, self._count = accelerator, count
        sample = int(np.prod(shape)) * dtype.itemsize
        self._x = accelerator.host_buffer(count * sample).view(dtype).view(count, *shape)
        self._y = accelerator.host_buffer(count * torch.int64.itemsize).view(torch.int64)

    def load(self, items: Items, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """As `stack`, on the device; the copies are done when it returns."""
        device = self._accelerator.device
        x = torch.empty((len(numbers), *self._x.shape[1:]), dtype=self._x.dtype, device=device)
        y = torch.empty(len(numbers), dtype=torch.int64, device=device)
        for first in range(0, len(numbers), self._count):
            some = numbers[first : first + self._count]
            with self._accelerator.host():
                for place, number in enumerate(some):
                    sample, label = items[number]
                    self._x[place].copy_(torch.as_tensor(sample))
                    self._y[place] = int(label)
            x[first : first + len(some)].copy_(self._x[: len(some)], non_blocking=True)
            y[first : first + len(some)].copy_(self._y[: len(some)], non_blocking=True)
            self._accelerator.synchronize()  # before the memory is written again
        return x, y


class Feed:
    """One rank's batches, iteration by iteration: `numbers[i]` are its samples of iteration i.

    Small sets of samples are loaded at once, others by a thread that stays `AHEAD_ITERATIONS` ahead and calls `start`
    first; of those of GPUs, up to `on_device` bytes are loaded at once.
    """

    def __init__(
        self,
        items: Items,
        numbers: Sequence[Sequence[int]],
        dtype: torch.dtype,
        accelerator: Accelerator,
        *,
        start: Callable[[], None] = lambda: None,
        on_device: int = 0,
    ) -> None:
        self._accelerator, self._start = accelerator, start
        self._lock = threading.Lock()
        self._ready: dict[int, tuple[Tensor, Tensor, Recorded | None]] = {}
        self._queue: queue.Queue[tuple[int, Tensor, Tensor] | Exception] = queue.Queue(maxsize=AHEAD_ITERATIONS)
        self._all: tuple[Tensor, Tensor] | None = None
        if not numbers or not numbers[0]:
            return
        used = sorted({n for batch in numbers for n in batch})
        first = torch.as_tensor(items[used[0]][0])
        sample, device = first.numel() * dtype.itemsize, accelerator.device
        ahead = max(AHEAD_BYTES, on_device) if accelerator.asynchronous else AHEAD_BYTES
        if len(used) * sample <= ahead:
            if accelerator.asynchronous:
                staging = Staging(accelerator, min(max(CHUNK_BYTES // sample, 1), len(used)), first.shape, dtype)
                self._all = staging.load(items, used)
            else:
                self._all = stack(items, used, dtype, device)
            place = {n: i for i, n in enumerate(used)}
            self._rows = [torch.tensor([place[n] for n in batch], device=device) for batch in numbers]
            return
        threading.Thread(
            target=self._load, args=(items, numbers, dtype, first.shape), daemon=True, name="samples"
        ).start()

    def _load(self, items: Items, numbers: Sequence[Sequence[int]], dtype: torch.dtype, shape: Sequence[int]) -> None:
        try:
            staging: Staging | None = None
            if self._accelerator.asynchronous:
                self._start()
                staging = Staging(self._accelerator, max(map(len, numbers)), shape, dtype)
            for i, batch in enumerate(numbers):
                if staging is None:
                    self._queue.put((i, *stack(items, batch, dtype, self._accelerator.device)))
                else:
                    self._queue.put((i, *staging.load(items, batch)))
        except Exception as error:  # noqa: BLE001 - handed to the thread that waits for the samples
            self._queue.put(error)

    def batch(self, iteration: int) -> tuple[Tensor, Tensor]:
        """Inputs and labels of this rank's samples in `iteration`; iterations must be asked for about in order.

        What the calling thread puts on its stream from now on comes after they are there.
        """
        with self._lock:
            while iteration not in self._ready:
                point: Recorded | None = None
                if self._all is not None:
                    rows = self._rows[iteration]
                    item = iteration, self._all[0][rows], self._all[1][rows]
                    point = self._accelerator.record()
                else:
                    got = self._queue.get()
                    if isinstance(got, Exception):
                        raise RunError(f"loading samples failed: {type(got).__name__}: {got}")
                    item = got
                self._ready = {i: v for i, v in self._ready.items() if i >= item[0] - 1}
                self._ready[item[0]] = item[1], item[2], point
            x, y, point = self._ready[iteration]
        self._accelerator.await_record(point)
        return x, y
