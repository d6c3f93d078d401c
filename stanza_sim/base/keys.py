"""The keys that a user's file may have, from the types that read it: what each takes, its default and its meaning."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from stanza_sim.base.units import Flops, PositiveSeconds, Rate, Seconds, Size, SizeOrZero

_UNITS = {
    get_args(of)[1]: words
    for of, words in (
        (Rate, "rate, such as 25Gbps"),
        (Seconds, "time, such as 50us"),
        (PositiveSeconds, "time, such as 60s"),
        (Size, "size, such as 4MiB"),
        (SizeOrZero, "size, such as 4MiB"),
        (Flops, "compute speed, such as 14TFLOPS"),
    )
}
_PLAIN: dict[Any, str] = {bool: "true or false", int: "whole number", float: "number", str: "text", object: "anything"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key by its dotted path; `N` stands for a place in a list and `NAME` for a name.

    `takes` says of what kind and in which unit its value is; `default` is None where it must be given.
    """

    path: str
    takes: str
    default: str | None
    meaning: str


def keys_of(section: type[BaseModel], prefix: str = "") -> Iterator[Key]:
    """Yield every key of a section and of those within it, in the order of their types."""
    for name, field in section.model_fields.items():
        path = f"{prefix}{name}"
        inner, within = _section_in(field.annotation, tuple(field.metadata))
        if inner is None:
            yield Key(path=path, takes=_takes(field.annotation, field.metadata), default=default_of(field),
                      meaning=_one_line(field.description))  # fmt: skip
            continue
        if within:
            default = None if field.is_required() else "none"
            takes = "list of sections" if within == ".N" else "sections by name"
            meaning = _one_line(field.description or inner.__doc__)
            yield Key(path=path, takes=takes, default=default, meaning=meaning)
        yield from keys_of(inner, f"{path}{within}.")


def default_of(field: FieldInfo) -> str | None:
    """The default as one would write it; None where the key must be given."""
    if field.is_required():
        return None
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None or value == {} or value == ():
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Enum):
        return str(value.value)
    if get_args(Size)[1] in field.metadata:
        return f"{value / 2**20:g}MiB"
    if get_args(PositiveSeconds)[1] in field.metadata or get_args(Seconds)[1] in field.metadata:
        return f"{value:g}s"
    return (
        f"{value:g}" if isinstance(value, float) else "its own defaults" if isinstance(value, BaseModel) else str(value)
    )


def _either(choices: Iterable[str]) -> str:
    *most, last = choices
    return f"{', '.join(most)} or {last}" if most else last


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split("\n\n")[0].split())


def _section_in(annotation: Any, metadata: tuple[object, ...]) -> tuple[type[BaseModel] | None, str]:
    """The section that a key holds, and where within its value: directly, in a list (`.N`) or by name (`.NAME`)."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _section_in(args[0], args[1:])
    if origin in (Union, UnionType):
        found = [one for part in args if part is not NoneType and (one := _section_in(part, ()))[0] is not None]
        return found[0] if found else (None, "")
    if origin in (tuple, list) and args:
        return _section_in(args[0], ())[0], ".N"
    if origin is dict:
        return _section_in(args[1], ())[0], ".NAME"
    known = isinstance(annotation, type) and issubclass(annotation, BaseModel) and annotation is not BaseModel
    return (annotation, "") if known else (None, "")


def _takes(annotation: Any, metadata: Any = ()) -> str:
    """What a value is, in words."""
    for one in metadata:
        try:
            if one in _UNITS:
                return _UNITS[one]
        except TypeError:  # what cannot be hashed is no unit
            continue
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _takes(args[0], args[1:])
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_takes(part) for part in args if part is not NoneType))
    if origin is Literal:
        return _either(map(str, args))
    if origin in (tuple, list):
        return f"list of {_takes(args[0])}" if args else "list"
    if origin is dict:
        return f"{_takes(args[1])}, by name"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return _either(str(one.value) for one in annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return _PLAIN.get(annotation, "value")
