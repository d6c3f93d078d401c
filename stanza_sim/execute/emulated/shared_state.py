"""Numbers that several processes of one machine share: the state of a device that ranks of theirs compute on."""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
from collections.abc import Iterator, MutableSequence
from contextlib import contextmanager
from pathlib import Path


class SharedState:
    """`count` numbers in a file that all processes map; zeros at first.

    Whoever comes first makes the file. `forget` takes away its name: done when all have it, nothing stays behind.
    """

    def __init__(self, path: Path, count: int) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        os.ftruncate(self._file, 8 * count)
        self._lock = threading.Lock()
        self.numbers: MutableSequence[float] = memoryview(mmap.mmap(self._file, 8 * count)).cast("d")  # type: ignore[assignment]

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Keep other threads and processes out."""
        with self._lock:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def forget(self) -> None:
        """Take away the file's name; those that have opened it keep it."""
        self._path.unlink(missing_ok=True)
