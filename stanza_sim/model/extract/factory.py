"""From an import path to a torch module.

Code that a user wrote may raise nearly anything; every call of it here and in the other files of this
package is guarded by `USER_ERRORS`, and the error is told in one line.
"""

from __future__ import annotations

import importlib
import importlib.util
import linecache
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType

import torch
from torch import nn

from stanza_sim.base.errors import InputError
from stanza_sim.model.profile import ModelProfile

Scalar = str | int | float | bool | None
Kwargs = Mapping[str, Scalar] | Iterable[tuple[str, Scalar]]

#: What code that is not ours may raise: all of `Exception` that a mistake in it can cause.
USER_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    ImportError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)

_EXAMPLE = "a factory is written package.module:callable, as in torchvision.models:vgg16"
_MOVED = {
    "stanza_sim.execute.examples": "stanza_sim.model.examples",
    "stanza_sim.execute.wide_heads": "stanza_sim.model.examples",
}
"""Modules of factories that moved: experiment files may name the old ones."""

_torchvision_schemas: torch.library.Library | None = None


def describe(error: BaseException) -> str:
    """Return `error` in one line: its type, what it says, and the user's line that raised it."""
    said = str(error).strip()
    first = said.splitlines()[0] if said else ""
    text = f"{type(error).__name__}: {first}" if first else type(error).__name__
    place = _user_line(error.__traceback__)
    return f"{text} ({place})" if place else text


def _user_line(traceback: TracebackType | None) -> str | None:
    """Return the innermost line of `traceback` that is neither ours nor torch's nor the import system's."""
    ours = Path(__file__).parent
    torchs = Path(torch.__file__).parent
    place = None
    while traceback is not None:
        name = traceback.tb_frame.f_code.co_filename
        code = linecache.getline(name, traceback.tb_lineno).strip()
        path = Path(name)
        if code and not ({ours, torchs} & set(path.parents) or "importlib" in path.parts):
            place = f"{path.name}, line {traceback.tb_lineno}: `{code}`"
        traceback = traceback.tb_next
    return place


def load_factory(path: str) -> Callable[..., object]:
    """Return the callable at `path` (`package.module:callable`); the current directory is importable.

    Raises `InputError` for a path of another form, a module that is missing or fails to import, and an
    attribute that is missing or not callable.
    """
    where = f"model factory {path!r}"
    module_name, colon, attribute = path.partition(":")
    parts = [*module_name.split("."), *attribute.split(".")]
    if not colon or not all(part.isidentifier() for part in parts):
        raise InputError("not an import path", where=where, hint=_EXAMPLE)
    module_name = _MOVED.get(module_name, module_name)
    if module_name.split(".")[0] == "torchvision":
        _prepare_torchvision()
    found: object = _import(module_name, where)
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise InputError(f"module {module_name} has no {attribute!r}", where=where, hint=_EXAMPLE) from None
    if not callable(found):
        raise InputError(f"{attribute} is a {type(found).__name__}, not a callable", where=where, hint=_EXAMPLE)
    return found


def _import(module_name: str, where: str) -> object:
    """Import a module; the user's own files come first while it is imported, and last afterwards."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            message, hint = f"there is no module {error.name!r}", f"looked in {here} and in Python's path; {_EXAMPLE}"
        else:
            message, hint = f"importing {module_name} fails: {describe(error)}", "install what it needs"
        raise InputError(message, where=where, hint=hint) from error
    except USER_ERRORS as error:
        raise InputError(f"importing {module_name} fails: {describe(error)}", where=where) from error
    finally:
        sys.path.remove(here)
        if here not in sys.path:
            sys.path.append(here)  # what the factory imports when it is called


def _prepare_torchvision() -> None:
    """Let torchvision be imported where its compiled operators do not load.

    They do not beside a torch built for other hardware (`operator torchvision::nms does not exist`). The
    classification models need none of them, only that two schemas exist; where the operators load,
    declaring them would be an error.
    """
    global _torchvision_schemas
    if _torchvision_schemas is not None or "torchvision" in sys.modules:
        return
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    for library in sorted(Path(spec.origin).parent.glob("_C*")):
        try:
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
        except (ImportError, OSError):
            continue
    if hasattr(torch.ops.torchvision, "nms"):
        return
    schemas = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        schema = f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        schemas.define(schema)  # type: ignore[no-untyped-call]
    _torchvision_schemas = schemas  # the declarations live as long as this object


def build(path: str, factory_kwargs: Kwargs = (), *, device: str = "cpu") -> nn.Module:
    """Call the factory at `path` and return its module, with parameters on `device`.

    On the `meta` device no memory is used; a factory that cannot be called there (it reads a value from a
    tensor) is called on the CPU. Raises `InputError` if the call fails or returns no `nn.Module`.
    """
    factory = load_factory(path)
    kwargs = dict(factory_kwargs)
    where = f"model factory {path!r}"
    call = f"{path}({', '.join(f'{k}={v!r}' for k, v in kwargs.items())})"
    try:
        made = _call(factory, kwargs, device)
    except USER_ERRORS as error:
        if device != "meta":
            raise InputError(f"{call} fails: {describe(error)}", where=where) from error
        return build(path, kwargs)
    if isinstance(made, torch._dynamo.OptimizedModule):  # compiled or not, it is the same model
        made = made._orig_mod
    if not isinstance(made, nn.Module):
        raise InputError(f"{call} returns a {type(made).__name__}, not a torch.nn.Module", where=where)
    return made


def _call(factory: Callable[..., object], kwargs: dict[str, Scalar], device: str) -> object:
    with torch.device(device):
        return factory(**kwargs)


def build_module(profile: ModelProfile, *, device: str = "cpu") -> nn.Module:
    """Build the module that `profile` describes; raise `InputError` if the profile names no factory."""
    if profile.factory is None:
        raise InputError(f"model {profile.name} is a table of numbers without a factory: it cannot be executed")
    return build(profile.factory, profile.factory_kwargs, device=device)
