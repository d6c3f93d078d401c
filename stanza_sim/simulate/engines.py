"""Which engine simulates."""

from __future__ import annotations

from enum import StrEnum
from importlib.util import find_spec

from stanza_sim.base.errors import InputError


class EngineChoice(StrEnum):
    """Which engine simulates. Both give the same answer.

    `PLAIN` is the readable one, in Python; `COMPILED` is quick where there are very many messages, needs numba and
    folds nothing; `AUTO` takes it where that is faster.
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


def require_numba() -> None:
    """Raise `InputError` if there is nothing to compile with."""
    if find_spec("numba") is None:
        raise InputError("the compiled engine needs numba", hint="pip install 'stanza-sim[fast]'")
