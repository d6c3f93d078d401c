"""What ranks tell each other, as bytes that only data can come out of.

They are JSON in which every type that JSON lacks has a tag, and behind it the contents of tensors and arrays. Whoever
reaches a rank's socket may send it a wrong number, but no code: types are named, and only data classes, enumerations
and named tuples of this package are made from a name. Pickle, which torch's `*_object` collectives use, calls whatever
it is told to.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from importlib import import_module
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel

from stanza_sim.base.errors import InputError, RunError

_PACKAGE = "stanza_sim."


def to_bytes(value: object) -> bytes:
    """`value` as bytes. Raises `TypeError` for what is no data."""
    behind: list[bytes] = []
    text = json.dumps(_packed(value, behind), separators=(",", ":")).encode()
    return b"".join([len(text).to_bytes(8, "big"), text, *behind])


def from_bytes(raw: bytes) -> object:
    """What `to_bytes` made bytes of. Raises `RunError` for any other."""
    try:
        end = 8 + int.from_bytes(raw[:8], "big")
        return _unpacked(json.loads(raw[8:end]), io.BytesIO(raw[end:]))
    except (ValueError, TypeError, LookupError, AttributeError, ImportError, RuntimeError, OverflowError) as error:
        what = f"a rank was told what no rank says: {type(error).__name__}: {error}"
        raise RunError(f"{what}; is another program using its port?") from error


def _packed(value: Any, behind: list[bytes]) -> Any:
    if isinstance(value, Enum):  # before str and int, which it may be too
        return ["enum", _name(type(value)), _packed(value.value, behind)]
    if value is None or isinstance(value, bool | str) or type(value) in (int, float):
        return value
    if isinstance(value, InputError):
        return ["error", value.message, value.where, value.hint]
    if is_dataclass(value) and not isinstance(value, type):
        return ["data", _name(type(value)), {f.name: _packed(getattr(value, f.name), behind) for f in fields(value)}]
    if isinstance(value, BaseModel):
        names = type(value).model_fields
        return ["model", _name(type(value)), {name: _packed(getattr(value, name), behind) for name in names}]
    if isinstance(value, np.ndarray):
        return ["array", value.dtype.str, list(value.shape), _put(value.tobytes(), behind)]
    if isinstance(value, torch.Tensor):
        content = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return ["tensor", str(value.dtype).removeprefix("torch."), list(value.shape), _put(content, behind)]
    if isinstance(value, np.generic):
        return _packed(value.item(), behind)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return ["named", _name(type(value)), [_packed(one, behind) for one in value]]
    if isinstance(value, bytes):
        return ["bytes", _put(value, behind)]
    if isinstance(value, Mapping):
        return ["dict", [[_packed(key, behind), _packed(one, behind)] for key, one in value.items()]]
    for tag, kind in _SEVERAL.items():
        if isinstance(value, kind):
            return [tag, [_packed(one, behind) for one in value]]
    raise TypeError(f"{type(value).__name__} is no data that ranks exchange")


_SEVERAL: dict[str, type[Any]] = {"tuple": tuple, "list": list, "set": set, "frozenset": frozenset}


def _unpacked(packed: Any, behind: io.BytesIO) -> Any:
    if not isinstance(packed, list):
        if isinstance(packed, dict):
            raise ValueError("a mapping without a tag")
        return packed
    tag, *rest = packed
    match tag:
        case "enum":
            return _type(rest[0], Enum)(_unpacked(rest[1], behind))
        case "error":
            return InputError(rest[0], where=rest[1], hint=rest[2])
        case "data":
            return _made(_type(rest[0], None), rest[1], behind)
        case "model":
            values = {key: _unpacked(one, behind) for key, one in rest[1].items()}
            return _type(rest[0], BaseModel).model_construct(**values)
        case "array":
            return np.frombuffer(_take(rest[2], behind), np.dtype(rest[0])).reshape(rest[1])
        case "tensor":
            dtype, content = getattr(torch, rest[0]), _take(rest[2], behind)
            flat = torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
            return flat.view(dtype).reshape(rest[1])
        case "named":
            return _type(rest[0], tuple)(*(_unpacked(one, behind) for one in rest[1]))
        case "bytes":
            return bytes(_take(rest[0], behind))
        case "dict":
            return {_unpacked(key, behind): _unpacked(one, behind) for key, one in rest[0]}
        case _:
            return _SEVERAL[tag](_unpacked(one, behind) for one in rest[0])


def _put(content: bytes, behind: list[bytes]) -> int:
    behind.append(content)
    return len(content)


def _take(size: int, behind: io.BytesIO) -> bytearray:
    content = bytearray(behind.read(size))
    if len(content) != size:
        raise ValueError("it is cut short")
    return content


def _made(kind: type[Any], values: Mapping[str, object], behind: io.BytesIO) -> object:
    """An object of a data class with these values, as they were: nothing of it is computed again."""
    made = object.__new__(kind)
    for one in fields(kind):
        object.__setattr__(made, one.name, _unpacked(values[one.name], behind))
    return made


def _name(kind: type) -> str:
    name = f"{kind.__module__}:{kind.__qualname__}"
    if not name.startswith(_PACKAGE):
        raise TypeError(f"{name} is no type of this package")
    return name


def _type(name: str, kind: type | None) -> Any:
    """The class of this package that is called so: a subclass of `kind`, or a data class."""
    module, _, path = name.partition(":")
    found: Any = import_module(module) if module.startswith(_PACKAGE) and "__main__" not in module else None
    for part in path.split("."):
        found = found.__dict__[part]
        if not isinstance(found, type) or found.__module__ != module:  # not what the module has imported
            raise TypeError(f"{name} is no type of this package")
    if not (is_dataclass(found) if kind is None else issubclass(found, kind)):
        raise TypeError(f"{name} is no type that ranks exchange")
    return found
