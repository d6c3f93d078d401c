"""Files of named tensors in the safetensors format: data that no reader executes, with a header that says what it is.

A file is 8 bytes with the length of its header (little-endian), the header, and the tensors' bytes end to end. The
header is JSON: of each tensor its type, its shape and where its bytes begin and end; `__metadata__` are texts by name.
Source: huggingface/safetensors, README, "Format". No numpy and no torch: contents are bytes.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from stanza_sim.base.errors import InputError
from stanza_sim.base.files import LARGEST_JSON, open_at_once, write_parts

ITEMSIZES = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL"), 1),
}
"""Types of elements, as the format calls them, with their bytes."""
_METADATA = "__metadata__"
_ALIGNED = 8
"""The tensors begin at a multiple of so many bytes."""
_EXPECTED = "a file of tensors in the safetensors format is expected"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Where a tensor lies in a file: `dtype` is one of `ITEMSIZES`, its bytes are [begin, end) of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFile:
    """The header of a file that was read: its texts, and where its tensors lie."""

    path: Path
    texts: Mapping[str, str]
    tensors: Mapping[str, Stored]

    def read(self, name: str) -> bytearray:
        """The bytes of a tensor. Raises `InputError` if they are no longer there."""
        stored = self.tensors[name]
        try:
            with self.path.open("rb") as file:
                file.seek(stored.begin)
                content = bytearray(file.read(stored.end - stored.begin))
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}", where=str(self.path)) from None
        if len(content) != stored.end - stored.begin:
            raise InputError("is shorter than its header says", where=str(self.path))
        return content


@dataclass(frozen=True, slots=True, kw_only=True)
class ToStore:
    """A tensor to be written: `content` are its elements in order of the last index, little-endian."""

    dtype: str
    shape: tuple[int, ...]
    content: bytes | memoryview


def write_tensors(path: Path, tensors: Mapping[str, ToStore], texts: Mapping[str, str]) -> None:
    """Write a file of tensors, whole or not at all; raises `InputError` if it cannot be written there."""
    header: dict[str, object] = {_METADATA: dict(texts)} if texts else {}
    position = 0
    for name, one in tensors.items():
        end = position + len(one.content)
        header[name] = {"dtype": one.dtype, "shape": list(one.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED)

    def parts() -> Iterator[bytes | memoryview]:
        yield len(text).to_bytes(8, "little")
        yield text
        for one in tensors.values():
            yield one.content

    write_parts(parts(), path)


def open_tensors(path: Path) -> TensorFile:
    """Read the header of a file of tensors. Raises `InputError` for a file that is none, or not whole."""
    where = str(path)
    try:
        with open(path, "rb", opener=open_at_once) as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise InputError("is not a regular file", where=where, hint=_EXPECTED)
            length = int.from_bytes(file.read(8), "little")
            if facts.st_size < 8 or length > min(facts.st_size - 8, LARGEST_JSON):
                raise InputError("is no file of tensors", where=where, hint=_EXPECTED)
            raw = file.read(length)
    except FileNotFoundError:
        raise InputError("no such file", where=where) from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read: {getattr(error, 'strerror', error)}", where=where) from None
    try:
        header = json.loads(raw)
        texts = header.pop(_METADATA, {})
        tensors = {name: _stored(one, 8 + length, facts.st_size) for name, one in header.items()}
        if not all(isinstance(v, str) for v in texts.values()):
            raise ValueError("texts that are none")
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise InputError(f"is no file of tensors: {error}", where=where, hint=_EXPECTED) from None
    return TensorFile(path=path, texts=texts, tensors=tensors)


def _stored(entry: Any, base: int, size: int) -> Stored:
    """Where a tensor of the header lies. Raises `ValueError` and others for an entry that is wrong."""
    dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if dtype not in ITEMSIZES or not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
        raise ValueError("a tensor of no known type or shape")
    if end - begin != prod(shape) * ITEMSIZES[dtype] or base + end > size:
        raise ValueError("a tensor that is not all there")
    return Stored(dtype=dtype, shape=shape, begin=base + begin, end=base + end)
