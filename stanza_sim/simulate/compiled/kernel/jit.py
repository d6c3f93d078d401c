"""How the kernel is compiled, and when it is compiled anew.

numba compiles it where that can be imported; without it the same code runs as it is, some hundred times slower.

numba keeps what it compiled on disk by the file of the function, and compiles anew only where that file changes, not
where the file of a function or of a constant that it uses does. So only the few functions that Python calls are kept.
All others become part of these, and each of these holds `SOURCES`, a checksum of the whole kernel, in its closure: what
a closure holds is part of what numba looks for.

Where it keeps that is for numba to say: beside the file, if that folder can be written to, else in the user's cache
folder, or where `NUMBA_CACHE_DIR` says. It replaces files whole, so processes may compile at once. What cannot be read
is compiled anew, and what cannot be kept is compiled in every process.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from functools import cache, wraps
from multiprocessing import parent_process
from pathlib import Path
from typing import Any, TypeVar, cast
from zlib import crc32

from stanza_sim.simulate.engines import can_compile

_F = TypeVar("_F", bound=Callable[..., object])
_LOG = logging.getLogger("stanza_sim")
_BROKEN = (
    OSError,
    EOFError,
    pickle.PickleError,
    ArithmeticError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    ValueError,
)
"""What reading a file that was cut short, or writing one to a full disk, may raise. Compiled code raises nothing."""

COMPILED = can_compile()
if COMPILED:
    import numba
    from numba.core import event


def _sources() -> int:
    """A checksum of every file of the kernel."""
    checksum = 0
    for path in sorted(Path(__file__).parent.glob("*.py")):
        checksum = crc32(path.read_bytes(), crc32(path.name.encode(), checksum))
    return checksum


SOURCES = _sources()
"""Differs where any file of the kernel does."""


def _compiled(function: _F, **options: object) -> _F:
    # References to arrays are counted only in functions that make arrays: that can take most of the time.
    if not COMPILED:
        return function
    options = {"nogil": True, "error_model": "numpy", "_nrt": False, "no_cfunc_wrapper": True, **options}
    return cast("_F", numba.njit(**options)(function))  # type: ignore[call-overload]


def _kept(function: _F, **options: object) -> _F:
    if not COMPILED:
        return function
    try:
        made: Any = _compiled(function, cache=True, **options)
    except RuntimeError as error:  # there is no folder to keep it in
        _warn(str(error))
        made = _compiled(function, **options)

    @wraps(function)
    def call(*arguments: object) -> object:
        nonlocal made
        try:
            if made.signatures:
                return made(*arguments)
            with event.install_listener("numba:compile", _Announcement()):
                return made(*arguments)
        except _BROKEN as error:
            _warn(f"{type(error).__name__}: {error}")
        try:
            made.recompile()  # and forget what is kept
            return made(*arguments)
        except _BROKEN:
            made = _compiled(function, **options)
        return made(*arguments)

    call.py_func = function  # type: ignore[attr-defined]  # as numba's own functions have it
    return cast("_F", call)


@cache
def _announce() -> None:
    if parent_process() is None:  # of several processes, the one that the user sees
        _LOG.warning("compiling the fast engine, once: about 10 s")


@cache
def _warn(why: str) -> None:
    _LOG.warning(
        "warning: the compiled engine cannot be kept on disk, or read from there, so it is compiled again: %s", why
    )


if COMPILED:

    class _Announcement(event.Listener):
        """Says that something is compiled, since it takes a while."""

        def on_start(self, event: object) -> None:
            """See `numba.core.event.Listener`."""
            _announce()

        def on_end(self, event: object) -> None:
            """See `numba.core.event.Listener`."""


def kept(function: _F) -> _F:
    """Compile a function that Python calls, and keep the result on disk.

    The caller sees to it that the function holds `SOURCES` if it uses anything of another file.
    """
    return _kept(function)


def kept_with_arrays(function: _F) -> _F:
    """As `kept`, of a function that makes arrays."""
    return _kept(function, _nrt=True)


def part(function: _F) -> _F:
    """Compile a function that becomes part of those that are kept."""
    return _compiled(function, no_cpython_wrapper=True)


def inlined(function: _F) -> _F:
    """As `part`, of a function whose body replaces the call before anything is compiled.

    What `solve` and `happen` do step by step is written as functions of `Net`, `Nodes` and `State`. A call would copy
    the descriptor of every array in these; and compiling such a function by itself takes a third of a second.
    """
    return _compiled(function, inline="always")
