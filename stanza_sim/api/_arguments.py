"""Arguments of the public functions: checked as the keys of a file are, with the same messages."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from stanza_sim.base import config
from stanza_sim.base.config import Source, validate
from stanza_sim.base.errors import InputError, ScheduleError

_T = TypeVar("_T")
_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments(Source):
    """Where data came from that is no file: a call of the function `file`. `within` are keys that a caller does not
    write, since it gives what is below them as keywords."""

    within: tuple[str, ...] = ()

    def where(self, *key: str | int) -> str:
        """Return `function: keyword.key`."""
        dotted = ".".join(str(part) for part in key if part not in self.within)
        return f"{self.file}: {dotted}" if dotted else self.file


def arguments(function: str, *within: str) -> Arguments:
    """The place of the arguments of `function`."""
    return Arguments(file=function, lines={}, within=within)


def checked(function: str, model: type[_Model], given: Mapping[str, object]) -> _Model:
    """Arguments of `function` checked by `model`, without those that are None. Raises `InputError`."""
    return validate({k: v for k, v in given.items() if v is not None}, model, arguments(function))


def expect(value: object, wanted: type[_T], function: str, argument: str, hint: str) -> _T:
    """`value` if it is of the type that is wanted. Raises `InputError`."""
    if isinstance(value, wanted):
        return value
    what = f"is a {type(value).__name__}" if value is not None else "is None"
    raise InputError(f"{what}, not a {wanted.__name__}", where=f"{function}: {argument}", hint=hint)


def factor(value: object, function: str, argument: str) -> float:
    """How many times as fast: a number above zero, infinity too. Raises `InputError`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        hint = "should be a positive number, such as 2.0 for twice as fast"
        raise InputError(f"is {value!r:.60}", where=f"{function}: {argument}", hint=hint)
    return float(value)


def count(value: object, function: str, argument: str) -> int:
    """A whole number of at least 1. Raises `InputError`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        hint = "should be a whole number of at least 1"
        raise InputError(f"is {value!r:.60}", where=f"{function}: {argument}", hint=hint)
    return value


@contextmanager
def placed(function: str) -> Iterator[None]:
    """Let an `InputError` from within say which call led to it, and what would be right."""
    try:
        yield
    except ScheduleError:
        raise
    except InputError as error:
        where = error.where
        if where is None or not where.startswith(function):
            where = function if where is None else f"{function}: {where}"
        hint = error.hint or f"help(stanza_sim.{function}) says what it takes"
        raise InputError(error.message, where=where, hint=hint) from None


def paths(given: str | Path | Sequence[str | Path] | None, function: str, argument: str) -> list[Path]:
    """One path, several, or none. Raises `InputError`."""
    several = [given] if isinstance(given, str | Path) else list(given or ())
    for one in several:
        if not isinstance(one, str | Path):
            raise InputError(
                f"is a {type(one).__name__}", where=f"{function}: {argument}", hint="should be the path of a file"
            )
    return [Path(one) for one in several]


def one_path(given: str | Path | None, function: str, argument: str) -> Path | None:
    """One path, or none. Raises `InputError`."""
    return None if given is None else paths([given], function, argument)[0]


def as_text(value: object) -> str:
    """A value as `--set` takes it: a text as it stands, or in quotes where it would be read as something else."""
    if isinstance(value, str):
        try:
            same = config.parse_override(f"key={value}")[1] == value
        except InputError:
            same = False
        return value if same else json.dumps(value, ensure_ascii=False)
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        what = f"a {type(value).__name__} is not what a file can hold"
        raise InputError(what, hint="use texts, numbers, true or false, lists and mappings") from None


def overrides(given: Mapping[str, object] | None, function: str, **short: object) -> list[str]:
    """The texts that `--set` would take, for keys by dotted path and for those with a keyword of their own."""
    if not isinstance(given, Mapping | None):
        hint = 'should be a mapping of keys by dotted path, such as {"network.rate": "25Gbps"}'
        raise InputError(f"is a {type(given).__name__}", where=f"{function}: set", hint=hint)
    every = {**(given or {}), **{key: value for key, value in short.items() if value is not None}}
    return [f"{key}={as_text(value)}" for key, value in every.items()]
