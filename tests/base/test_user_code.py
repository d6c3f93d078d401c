"""A file may name code of the user's, and none of Python's own."""

from __future__ import annotations

import functools
import os
import subprocess
import uuid

import pytest

from stanza_sim.base.errors import InputError
from stanza_sim.base.user_code import check_found, check_module


@pytest.mark.parametrize("name", ["os", "posix", "subprocess", "os.path", "builtins", "uuid"])
def test_modules_of_the_standard_library_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} is a module of Python's standard library"):
        check_module(name, "model")


@pytest.mark.parametrize("found", [os.system, eval, exec, subprocess.Popen, os.remove, uuid.uuid4, "x".join, print])
def test_whatever_a_module_calls_them_they_are_refused(found: object) -> None:
    with pytest.raises(InputError, match="standard library"):
        check_found(found, "model")


def test_what_the_user_made_is_taken() -> None:
    class Mine:
        def method(self) -> None: ...

    check_module("mine", "model")
    for found in (Mine, Mine().method, test_what_the_user_made_is_taken, functools.partial(Mine), pytest.fixture):
        check_found(found, "model")
