"""The only reader of YAML: finds files by name, reads them, checks them, and says which line is wrong.

A file is read into plain data with the line of every key, `--set` overrides are applied to that data, and a
pydantic model checks it. Whatever is wrong, from a missing file to a unit, becomes one `InputError` that names
file, line and dotted key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from stanza_sim.base.checking import kind_of, validate
from stanza_sim.base.errors import InputError, at
from stanza_sim.base.files import read_text
from stanza_sim.base.finding import Kind, available, find, is_named, near
from stanza_sim.base.located import Key, Loaded, Source
from stanza_sim.base.tables import shortened
from stanza_sim.base.telling import CONTROL

__all__ = [
    "Count",
    "Factor",
    "Fraction",
    "Key",
    "Kind",
    "Loaded",
    "Multiple",
    "Section",
    "Source",
    "apply_overrides",
    "available",
    "find",
    "is_named",
    "load",
    "load_located",
    "near",
    "parse_override",
    "parse_yaml",
    "read_yaml",
    "validate",
]

_Model = TypeVar("_Model", bound=BaseModel)


class Section(BaseModel):
    """Base of every model of a user's file: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


Count = Annotated[int, Field(strict=True, ge=1, le=10**15)]
"""A whole number of at least 1 (no text, no truth value)."""
Factor = Annotated[float, Field(strict=True, gt=0, le=1e18, allow_inf_nan=False)]
"""A positive number without a unit, or one whose name has it; none is larger than the largest rate."""
Multiple = Annotated[float, Field(strict=True, ge=1e-7, le=1e7, allow_inf_nan=False)]
"""How many times as large something is to be as it is."""
Fraction = Annotated[float, Field(strict=True, gt=0, le=1)]
"""A number above 0 and at most 1."""


# --- reading ---------------------------------------------------------------------------------------------------------


LARGEST_YAML = 2_000_000
"""Bytes of the largest file of YAML that is read: some 40,000 links, for which its parser takes 10 s."""
MOST_NODES = 400_000
"""Keys and values of one file. What an alias stands for counts wherever it is used, for it is read there again."""
DEEPEST = 60
"""Levels within each other; no file that this program knows has more than ten."""


def _lines_of(node: Node, key: Key, lines: dict[Key, int], active: set[int]) -> None:
    """Collect the line of every key under `node`; anchors that contain themselves or multiply are refused."""
    if len(lines) >= MOST_NODES:
        raise InputError(f"has more than {MOST_NODES:,} values", hint="what its aliases stand for is counted each time")
    if len(key) > DEEPEST:
        raise InputError(f"is nested more than {DEEPEST} levels deep", where=f"line {node.start_mark.line + 1}")
    lines.setdefault(key, node.start_mark.line + 1)
    if isinstance(node, ScalarNode):
        _check_printable(node)
        return
    if id(node) in active:
        raise InputError("an alias refers to what contains it")
    active.add(id(node))
    if isinstance(node, MappingNode):
        for name, value in node.value:
            if isinstance(name, ScalarNode):
                _check_printable(name)
                lines[(*key, name.value)] = name.start_mark.line + 1
                _lines_of(value, (*key, name.value), lines, active)
    elif isinstance(node, SequenceNode):
        for index, value in enumerate(node.value):
            _lines_of(value, (*key, index), lines, active)
    active.discard(id(node))


def _check_printable(node: ScalarNode) -> None:
    if CONTROL.search(node.value):
        what = f"{shortened(node.value)} has characters that cannot be printed"
        raise InputError(what, where=f"line {node.start_mark.line + 1}", hint="leave them out")


def _parse(text: str, name: str) -> tuple[object, dict[Key, int]]:
    """Return the data of one YAML document and the line of every key; raise `InputError` at `name`."""
    yaml = YAML(typ="safe", pure=True)
    lines: dict[Key, int] = {}
    try:
        node = yaml.compose(text)
        if node is None:
            return None, lines
        with at(name, outer=True):
            _lines_of(node, (), lines, set())
        return yaml.constructor.construct_document(node), lines
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark is not None else name
        context = f" {error.context}" if error.context else ""
        # ruamel explains a duplicate key in several lines; the first says which key it is.
        problem = str(error.problem).partition("\n")[0]
        raise InputError(f"is not valid YAML:{context} {problem}", where=where) from None
    except YAMLError as error:
        raise InputError(f"is not valid YAML: {str(error).partition(chr(10))[0]}", where=name) from None
    except RecursionError:
        raise InputError("is nested too deeply", where=name) from None
    except ValueError as error:  # such as the 31st of February, or a number of 5,000 digits
        raise InputError(f"holds a value that cannot be read: {error}", where=name) from None


def read_yaml(path: Path) -> tuple[dict[str, object], Source]:
    """Return the mapping in a YAML file and where its keys stand.

    Raises `InputError` for a file that is missing, is not UTF-8 text, is not valid YAML (also: cut short, a key
    given twice, several documents) or holds anything but a mapping with text keys.
    """
    return parse_yaml(read_text(path, at_most=LARGEST_YAML, expected="a YAML file"), str(path))


def parse_yaml(text: str, file: str) -> tuple[dict[str, object], Source]:
    """Return the mapping in a YAML text that was read from `file`, and where its keys stand; see `read_yaml`."""
    data, lines = _parse(text, file)
    if not isinstance(data, dict):
        what = "is empty" if data is None else f"holds {kind_of(data)}"
        raise InputError(what, where=file, hint="a mapping of keys to values is expected, such as `name: example`")
    for key in data:
        if not isinstance(key, str):
            raise InputError(f"the key {key!r} is not a text", where=file)
    return data, Source(file=file, lines=lines)


# --- overrides -------------------------------------------------------------------------------------------------------


def _copy(data: object) -> object:
    """Return a copy of nested mappings and lists."""
    if isinstance(data, dict):
        return {k: _copy(v) for k, v in data.items()}
    return [_copy(v) for v in data] if isinstance(data, list) else data


def parse_override(text: str) -> tuple[Key, object]:
    """Split `a.b.0.c=value` into its path and the value, read as a YAML scalar or as `[...]` or `{...}`."""
    dotted, equals, value_text = text.partition("=")
    parts = [part.strip() for part in dotted.split(".")]
    if not equals or not all(parts):
        raise InputError(f"{text!r} is not key=value", where="--set", hint="write such as network.rate=25Gbps")
    value, _ = _parse(value_text, f"--set {text}")
    if isinstance(value, dict | list) and not value_text.lstrip().startswith(("{", "[")):
        value = value_text.strip()  # `description=ring: fast` is a text, not a mapping
    return tuple(int(part) if re.fullmatch("[0-9]+", part) else part for part in parts), value


def _entry(
    data: object, part: str | int, *, where: str, dotted: str
) -> tuple[dict[str, object], str] | tuple[list[object], int]:
    """Return the container and the key or index that `part` means in it; raise `InputError` where it fits not."""
    if isinstance(data, dict):
        return data, str(part)
    if isinstance(data, list):
        if isinstance(part, int) and part < len(data):
            return data, part
        most = f"0 to {len(data) - 1}" if data else "none, the list is empty"
        raise InputError(f"{dotted!r} is a list and has no entry {part!r}", where=where, hint=f"its entries: {most}")
    raise InputError(f"{dotted!r} is {kind_of(data)}, which has no keys", where=where)


def apply_overrides(data: Mapping[str, object], overrides: Iterable[str]) -> dict[str, object]:
    """Return a copy of `data` in which each `a.b.0.c=value` is set.

    Mappings on the way are made where they are absent; whether a key is known is for the model to say.
    Raises `InputError` for a path that leads through a value or past the end of a list.
    """
    result = {k: _copy(v) for k, v in data.items()}
    for text in overrides:
        path, value = parse_override(text)
        where = f"--set {text}"
        here: object = result
        for depth, part in enumerate(path):
            container, key = _entry(here, part, where=where, dotted=".".join(map(str, path[:depth])))
            last = depth == len(path) - 1
            if isinstance(container, dict):
                if last:
                    container[str(key)] = value
                elif container.get(str(key)) is None:
                    container[str(key)] = {}
                here = container[str(key)]
            else:
                if last:
                    container[int(key)] = value
                here = container[int(key)]
    return result


# --- loading ---------------------------------------------------------------------------------------------------------


def load_located(path: Path, model: type[_Model], *, overrides: Sequence[str] = ()) -> Loaded[_Model]:
    """Read `path`, apply `overrides`, check with `model`; return the result with the place of each key.

    Raises `InputError` for whatever is wrong, with file, line and dotted key.
    """
    data, source = read_yaml(path)
    if overrides:
        data = apply_overrides(data, overrides)
        given = {parse_override(text)[0]: text for text in overrides}
        source = Source(file=source.file, lines=source.lines, overridden=given)
    return Loaded(value=validate(data, model, source), source=source, path=path)


def load(path: Path, model: type[_Model], *, overrides: Sequence[str] = ()) -> _Model:
    """Return the checked contents of a YAML file; see `load_located`."""
    return load_located(path, model, overrides=overrides).value
