"""Which code of a user's a file may name: an experiment's `model` and `data` are code, as a Makefile's rules are."""

from __future__ import annotations

import inspect
import sys

from stanza_sim.base.errors import InputError

_HINT = "name a class or a function of your own: package.module:callable"


def check_module(name: str, where: str) -> None:
    """Raise `InputError`, before anything is imported, for a module of Python's standard library."""
    if name.partition(".")[0] in {*sys.stdlib_module_names, *sys.builtin_module_names}:
        raise InputError(f"{name} is a module of Python's standard library", where=where, hint=_HINT)


def check_found(found: object, where: str) -> None:
    """Raise `InputError` for a class or a function of the standard library, under whatever name a module has it."""
    if inspect.isclass(found) or inspect.isroutine(found):
        home = str(getattr(found, "__module__", None) or type(getattr(found, "__self__", None)).__module__)
        check_module(home, where)
