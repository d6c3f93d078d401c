"""How the kernel is compiled, and when it is compiled anew.

numba compiles it where that is installed; without it the same code runs as it is, some hundred times slower.

numba keeps what it compiled on disk by the file of the function, and compiles anew only where that file changes, not
where the file of a function or of a constant that it uses does. So only the few functions that Python calls are kept.
All others become part of these, and each of these holds `SOURCES`, a checksum of the whole kernel, in its closure: what
a closure holds is part of what numba looks for.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast
from zlib import crc32

_F = TypeVar("_F", bound=Callable[..., object])

try:
    import numba
except ImportError:
    COMPILED = False
else:
    COMPILED = True


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


def kept(function: _F) -> _F:
    """Compile a function that Python calls, and keep the result on disk.

    The caller sees to it that the function holds `SOURCES` if it uses anything of another file.
    """
    return _compiled(function, cache=True)


def kept_with_arrays(function: _F) -> _F:
    """As `kept`, of a function that makes arrays."""
    return _compiled(function, cache=True, _nrt=True)


def part(function: _F) -> _F:
    """Compile a function that becomes part of those that are kept."""
    return _compiled(function, no_cpython_wrapper=True)


def inlined(function: _F) -> _F:
    """As `part`, of a function whose body replaces the call before anything is compiled.

    What `solve` and `happen` do step by step is written as functions of `Net`, `Nodes` and `State`. A call would copy
    the descriptor of every array in these; and compiling such a function by itself takes a third of a second.
    """
    return _compiled(function, inline="always")
