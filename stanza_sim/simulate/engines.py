"""Which engine simulates."""

from __future__ import annotations

import logging
from enum import StrEnum
from functools import cache
from importlib import import_module

from stanza_sim.base.errors import InputError

COMPILED_FROM = 4_000
"""From so many parts on (see `part_count`), of all that is simulated together, compiled code is worth loading.

Measured on schedules of `ec2_v100`: the four iterations of a part take 0.13 ms in Python and a fiftieth of that in
compiled code, which takes 0.55 s to load.
"""
_warm = False


class EngineChoice(StrEnum):
    """Which engine simulates. Both give the same answer.

    `PLAIN` is the readable one, in Python; `COMPILED` is many times as fast and needs numba; `AUTO` takes that where
    numba is installed and there is enough to simulate, or where it has been told to (`warm`).
    """

    AUTO = "auto"
    PLAIN = "plain"
    COMPILED = "compiled"


def engine_of(choice: EngineChoice | str) -> EngineChoice:
    """The engine that is called so. Raises `InputError`."""
    try:
        return EngineChoice(choice)
    except ValueError:
        raise InputError(f"there is no engine {choice!r}", hint=f"choose {', '.join(EngineChoice)}") from None


@cache
def _numba_error() -> str | None:
    """Why numba cannot be imported, which this does otherwise; None if it can be."""
    try:
        import_module("numba")
    except ModuleNotFoundError as error:
        return "it is not installed" if error.name == "numba" else str(error)
    except (ImportError, OSError, AttributeError, SystemError) as error:  # built for another numpy, or in part
        return str(error)
    return None


def require_numba() -> None:
    """Raise `InputError` if there is nothing to compile with."""
    if (error := _numba_error()) is not None:
        raise InputError(f"the compiled engine needs numba: {error}", hint="pip install numba")


@cache
def can_compile() -> bool:
    """Whether there is anything to compile with, which is loaded then; if not, that is said, once."""
    if (error := _numba_error()) is not None:
        logging.getLogger("stanza_sim").warning("warning: simulating without numba is many times slower: %s", error)
    return error is None


def warm(on: bool = True) -> bool:
    """Let this process compile whatever it simulates from now on, unless told otherwise; return what held before.

    Once it is loaded, compiled code is the faster one even for the least schedule, so that pays where many are to come.
    Which engine is taken depends on being told so, and not on what happens to be loaded: equal inputs give equal bytes.
    """
    global _warm
    before, _warm = _warm, on
    return before


def pays(parts: int) -> bool:
    """Whether compiled code is there, and simulating so many parts with it is faster than without."""
    return (_warm or parts >= COMPILED_FROM) and can_compile()
