"""Checks plain data by a pydantic model, and says in the user's words what is wrong and where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from stanza_sim.base.errors import InputError
from stanza_sim.base.finding import near
from stanza_sim.base.located import Key, Source

_Model = TypeVar("_Model", bound=BaseModel)


def kind_of(value: object) -> str:
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
            return InputError(f"is {kind_of(value)}", where=where, hint=f"should be {context['expected']}")
        case "union_tag_not_found":
            kinds = ", ".join(repr(kind) for m in _models_at(model, loc) for kind in _kinds(m))
            return InputError("the key 'kind' is missing", where=where, hint=f"known: {kinds}")
        case "union_tag_invalid":
            known = f"known: {context['expected_tags']}"
            return InputError(f"unknown kind {context['tag']!r}", where=source.where(*key, "kind"), hint=known)
        case "too_short":
            return InputError(f"is {kind_of(value)} that is too short", where=where, hint=_least(context))
        case "value_error":
            return InputError(str(context["error"]), where=where)
        case _ if kind in _SHOULD_BE:
            return InputError(f"is {kind_of(value)}", where=where, hint=f"should be {_SHOULD_BE[kind]}")
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
