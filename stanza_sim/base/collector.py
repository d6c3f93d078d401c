"""Python's collector of cycles, kept off where it only costs time."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_off() -> Iterator[None]:
    """Keep Python's collector of cycles from walking over everything that a large simulation holds, again and again.

    A simulation makes few cycles; what it drops is freed by counting references.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
