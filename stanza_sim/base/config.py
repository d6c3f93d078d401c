"""The only reader of YAML: finds files by name, reads them, checks them, and says which line is wrong.

A file is read into plain data with the line of every key, `--set` overrides are applied to that data, and a
pydantic model checks it. Whatever is wrong, from a missing file to a unit, becomes one `InputError` that names
file, line and dotted key.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Generic, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from stanza_sim.base.errors import InputError

Key = tuple[str | int, ...]
"""A path into the data of a file: mapping keys and list indices."""

_Model = TypeVar("_Model", bound=BaseModel)
_SUFFIXES = (".yaml", ".yml")
_PACKAGE = Path(__file__).parents[1]


class Section(BaseModel):
    """Base of every model of a user's file: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Count = Annotated[int, Field(strict=True, ge=1)]
"""A whole number of at least 1 (no text, no truth value)."""
Factor = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
"""A positive, finite number without a unit."""
Fraction = Annotated[float, Field(strict=True, gt=0, le=1)]
"""A number above 0 and at most 1."""


class Kind(StrEnum):
    """What can be found by name; the value is the folder's name."""

    TOPOLOGIES = "topologies"
    EXPERIMENTS = "experiments"
    DEVICES = "devices"
    SUITES = "suites"

    @property
    def noun(self) -> str:
        """The word for one of them."""
        match self:
            case Kind.TOPOLOGIES:
                return "topology"
            case Kind.SUITES:
                return "validation suite"
            case _:
                return self.value.removesuffix("s")

    @property
    def with_article(self) -> str:
        """The word with its article."""
        return f"an {self.noun}" if self.noun[0] in "aeiou" else f"a {self.noun}"


# --- finding files ---------------------------------------------------------------------------------------------------


def _folders(kind: Kind) -> list[Path]:
    """Return where `kind` is looked for, nearest first: here, the source checkout, the package."""
    if kind is Kind.DEVICES:
        return [Path(kind.value), _PACKAGE / "data" / kind.value]
    if kind is Kind.SUITES:  # they lie where their results are kept, among the experiments
        return [folder / "validation" for folder in _folders(Kind.EXPERIMENTS)]
    checkout = _PACKAGE.parent
    # Next to an installed package lies site-packages, where a folder `experiments` would be somebody else's.
    sources = [checkout / kind.value] if (checkout / "pyproject.toml").is_file() else []
    return [Path(kind.value), *sources, _PACKAGE / "_data" / kind.value]


def _named(folder: Path, kind: Kind, name: str) -> Path:
    """Return the file that holds `name` in `folder`."""
    return folder / name / "experiment.yaml" if kind is Kind.EXPERIMENTS else folder / f"{name}.yaml"


def available(kind: Kind | str) -> list[str]:
    """Return the sorted names that `find` knows of a kind (`topologies`, `experiments`, `devices` or `suites`)."""
    pattern = "*/experiment.yaml" if kind == Kind.EXPERIMENTS else "*.yaml"
    files = [path for folder in _folders(Kind(kind)) for path in folder.glob(pattern)]
    return sorted({path.parent.name if kind == Kind.EXPERIMENTS else path.stem for path in files})


def _is_file(path: Path, *, folder: bool = False) -> bool:
    """Return whether there is a file, or a folder, at `path`; there is none at one that is too long for a path."""
    try:
        return path.is_dir() if folder else path.is_file()
    except OSError:
        return False


def find(kind: Kind | str, name_or_path: str | Path, *, beside: Path | None = None) -> Path:
    """Return the file of a topology, experiment, device or validation suite.

    A text with a slash or ending in `.yaml` is a path (also tried relative to the folder of `beside`, the file that
    mentions it); a folder that holds an `experiment.yaml` is a path to that experiment. Anything else is a name,
    looked for in the current directory, the source checkout and the installed package, in this order.
    Raises `InputError`, with near names, where there is none.
    """
    kind = Kind(kind)
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or "/" in text or text.endswith(_SUFFIXES):
        bases = [beside.parent, Path()] if beside is not None else [Path()]
        for path in (base / text for base in bases):
            if kind is Kind.EXPERIMENTS and _is_file(path / "experiment.yaml"):
                return path / "experiment.yaml"
            if _is_file(path):
                return path
        what = "is a folder" if _is_file(Path(text), folder=True) else "no such file"
        raise InputError(
            what, where=text, hint=f"give {kind.with_article} file or one of: {', '.join(available(kind))}"
        )
    for folder in _folders(kind):
        if text and _is_file(path := _named(folder, kind, text)):
            return path
    raise InputError(f"unknown {kind.noun} {text!r}", hint=near(text, available(kind)))


def near(word: str, known: Iterable[str]) -> str:
    """Return a hint that names what `word` may have been meant to be, or else all that is known."""
    names = list(known)
    by_case = {n.lower(): n for n in names}
    if close := difflib.get_close_matches(word.lower(), by_case, n=3, cutoff=0.5):
        return f"did you mean {' or '.join(by_case[c] for c in close)}?"
    return f"known: {', '.join(names)}" if names else "there is none"


# --- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where data came from: the file, the line of each key, and the keys that `--set` has given."""

    file: str
    lines: Mapping[Key, int]
    overridden: Mapping[Key, str] = field(default_factory=dict)

    def line(self, key: Key) -> int | None:
        """Return the line (from 1) of `key` or, where it is absent, of what it would stand in."""
        for length in range(len(key), -1, -1):
            if (line := self.lines.get(key[:length])) is not None:
                return line
        return None

    def where(self, *key: str | int) -> str:
        """Return `file:line: dotted.key`, or `--set dotted.key=value` for what an override gave."""
        dotted = ".".join(str(k) for k in key)
        for path, text in self.overridden.items():
            if key[: len(path)] == path:
                return f"--set {text}" + (f": {dotted}" if len(key) > len(path) else "")
        line = self.line(key)
        place = f"{self.file}:{line}" if line is not None and key else self.file
        return f"{place}: {dotted}" if dotted else place


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded(Generic[_Model]):
    """A checked file: its contents, and where each key of it stands."""

    value: _Model
    source: Source
    path: Path


def _read_text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise InputError("no such file", where=str(path)) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from None
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise InputError("is not text in UTF-8", where=str(path), hint="a YAML file is expected here") from None


def _lines_of(node: Node, key: Key, lines: dict[Key, int], active: set[int]) -> None:
    """Collect the line of every key under `node`; an anchor that contains itself is refused."""
    lines.setdefault(key, node.start_mark.line + 1)
    if isinstance(node, ScalarNode):
        return
    if id(node) in active:
        raise InputError("an alias refers to what contains it")
    active.add(id(node))
    if isinstance(node, MappingNode):
        for name, value in node.value:
            if isinstance(name, ScalarNode):
                lines[(*key, name.value)] = name.start_mark.line + 1
                _lines_of(value, (*key, name.value), lines, active)
    elif isinstance(node, SequenceNode):
        for index, value in enumerate(node.value):
            _lines_of(value, (*key, index), lines, active)
    active.discard(id(node))


def _parse(text: str, name: str) -> tuple[object, dict[Key, int]]:
    """Return the data of one YAML document and the line of every key; raise `InputError` at `name`."""
    yaml = YAML(typ="safe", pure=True)
    lines: dict[Key, int] = {}
    try:
        node = yaml.compose(text)
        if node is None:
            return None, lines
        _lines_of(node, (), lines, set())
        return yaml.constructor.construct_document(node), lines
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark is not None else name
        context = f" {error.context}" if error.context else ""
        # ruamel explains a duplicate key in several lines; the first says which key it is.
        problem = str(error.problem).partition("\n")[0]
        raise InputError(f"is not valid YAML:{context} {problem}", where=where) from None
    except InputError as error:
        raise InputError(error.message, where=name) from None
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
    data, lines = _parse(_read_text(path), str(path))
    if not isinstance(data, dict):
        what = "is empty" if data is None else f"holds {_kind_of(data)}"
        raise InputError(what, where=str(path), hint="a mapping of keys to values is expected, such as `name: example`")
    for key in data:
        if not isinstance(key, str):
            raise InputError(f"the key {key!r} is not a text", where=str(path))
    return data, Source(file=str(path), lines=lines)


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
    raise InputError(f"{dotted!r} is {_kind_of(data)}, which has no keys", where=where)


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


# --- checking --------------------------------------------------------------------------------------------------------


def _kind_of(value: object) -> str:
    """Return what a value is, in the user's words."""
    match value:
        case None:
            return "nothing"
        case bool():
            return f"a truth value ({str(value).lower()})"
        case int() | float():
            return f"a number ({value})"
        case str():
            return f"a text ({value[:40]!r})"
        case dict():
            return "a mapping"
        case list():
            return "a list"
        case _:
            return f"{value}"


def _models_in(annotation: object) -> list[type[BaseModel]]:
    """Return the pydantic models that an annotation mentions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel) and get_origin(annotation) is None:
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _models_at(model: type[BaseModel], loc: Sequence[str | int]) -> list[type[BaseModel]]:
    """Return the models that the value at `loc` may have."""
    models = [model]
    for part in loc:
        # Of sections that differ by their `kind`, pydantic puts the kind of the one that was meant into the path.
        if meant := [m for m in models if part in _kinds(m)]:
            models = meant
            continue
        named = [m.model_fields[part].annotation for m in models if isinstance(part, str) and part in m.model_fields]
        if named:
            models = [found for annotation in named for found in _models_in(annotation)]
    return models


def _kinds(model: type[BaseModel]) -> tuple[object, ...]:
    """Return the values that a section's key `kind` may have."""
    return get_args(model.model_fields["kind"].annotation) if "kind" in model.model_fields else ()


def _keys_at(model: type[BaseModel], loc: Sequence[str | int]) -> list[str]:
    """Return the keys that are known in the mapping at `loc`."""
    fields = [field for m in _models_at(model, loc) for field in m.model_fields.items()]
    return list(dict.fromkeys(info.alias or name for name, info in fields))


def _key_of(data: object, problem: ErrorDetails) -> Key:
    """Return what a pydantic location is in the data: without the names of union members, with a missing key."""
    key: list[str | int] = []
    for part in problem["loc"]:
        match data:
            case dict() if part in data:
                data = data[part]
            case list() if isinstance(part, int) and part < len(data):
                data = data[part]
            case _:
                continue
        key.append(part)
    return (*key, problem["loc"][-1]) if problem["type"] == "missing" else tuple(key)


_SHOULD_BE = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "string_type": "a text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}


def _least(context: Mapping[str, object]) -> str:
    least = context["min_length"]
    return f"at least {least} {'entry is' if least == 1 else 'entries are'} needed"


def _explain(error: ErrorDetails, model: type[BaseModel], data: object, source: Source) -> InputError:
    """Turn one pydantic error into an `InputError`."""
    loc, kind, value = error["loc"], error["type"], error["input"]
    context = error.get("ctx", {})
    key = _key_of(data, error)
    where = source.where(*key)
    match kind:
        case "extra_forbidden":
            return InputError("unknown key", where=where, hint=near(str(loc[-1]), _keys_at(model, loc[:-1])))
        case "missing":
            place = source.where(*key[:-1])
            owner = model if len(loc) == 1 else None
            info = owner.model_fields.get(str(loc[-1])) if owner else None
            hint = info.description if info is not None and info.description else None
            return InputError(f"the key {str(loc[-1])!r} is missing", where=place, hint=hint)
        case "unit":
            return InputError(str(context["message"]), where=where, hint=str(context["hint"]) or None)
        case "literal_error" | "enum":
            return InputError(f"is {_kind_of(value)}", where=where, hint=f"should be {context['expected']}")
        case "union_tag_not_found":
            kinds = ", ".join(repr(kind) for m in _models_at(model, loc) for kind in _kinds(m))
            return InputError("the key 'kind' is missing", where=where, hint=f"known: {kinds}")
        case "union_tag_invalid":
            known = f"known: {context['expected_tags']}"
            return InputError(f"unknown kind {context['tag']!r}", where=source.where(*key, "kind"), hint=known)
        case "too_short":
            return InputError(f"is {_kind_of(value)} that is too short", where=where, hint=_least(context))
        case "value_error":
            return InputError(str(context["error"]), where=where)
        case _ if kind in _SHOULD_BE:
            return InputError(f"is {_kind_of(value)}", where=where, hint=f"should be {_SHOULD_BE[kind]}")
        case _:
            message = error["msg"].removeprefix("Input ")
            return InputError(f"{_shown(value)} {message}" if message.startswith("should") else message, where=where)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:56]}…{text[-1]}"


def validate(data: object, model: type[_Model], source: Source) -> _Model:
    """Return `data` checked by `model`; raise `InputError` for the first thing wrong, in the order of the file."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = error.errors(include_url=False)

    # pydantic counts only the entries that are right, so an entry that is wrong also makes its list too short.
    problems = [p for p in problems if p["type"] != "too_short" or not any(_inside(q, p) for q in problems)]

    def order(problem: ErrorDetails) -> tuple[bool, int]:
        # An unknown key is often what makes another key seem missing, so it is named first.
        return problem["type"] == "missing", source.line(_key_of(data, problem)) or 0

    problems.sort(key=order)
    keys = [_key_of(data, problem) for problem in problems]
    # Where several kinds of value would do, there is one problem for each of them.
    same = [_explain(p, model, data, source) for p, key in zip(problems, keys, strict=True) if key == keys[0]]
    first, hints = same[0], dict.fromkeys(error.hint or "" for error in same)
    wanted = [hint.removeprefix("should be ") for hint in hints if hint.startswith("should be ")]
    hint = f"should be {' or '.join(wanted)}" if len(wanted) == len(hints) else first.hint
    others = len(set(keys)) - 1
    more = f" (and {others} more problem{'s' if others > 1 else ''})" if others else ""
    raise InputError(first.message + more, where=first.where, hint=hint)


def _inside(inner: ErrorDetails, outer: ErrorDetails) -> bool:
    """Return whether one error lies within the value of another."""
    depth = len(outer["loc"])
    return len(inner["loc"]) > depth and inner["loc"][:depth] == outer["loc"]


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
