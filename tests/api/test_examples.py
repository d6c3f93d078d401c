"""The examples in the docstrings of everything public run."""

from __future__ import annotations

import doctest
import importlib
import inspect
import sys

import pytest

import stanza_sim

PUBLIC = [name for name in stanza_sim.__all__ if not name.startswith("_")]


def doctests(name: str) -> list[doctest.DocTest]:
    """The examples of a name, and of its methods."""
    thing = getattr(stanza_sim, name)
    module = sys.modules[thing.__module__]
    return [t for t in doctest.DocTestFinder(recurse=True).find(thing, name, module=module) if t.examples]


@pytest.mark.parametrize("name", PUBLIC)
def test_examples_run(name: str) -> None:
    for example in doctests(name):
        told: list[str] = []
        result = doctest.DocTestRunner().run(example, out=told.append)
        assert not result.failed, "".join(told)


@pytest.mark.parametrize("name", [n for n in PUBLIC if inspect.isfunction(getattr(stanza_sim, n))])
def test_every_function_has_an_example(name: str) -> None:
    assert doctests(name)


def test_the_package_itself_has_an_example() -> None:
    module = importlib.import_module("stanza_sim")
    assert not doctest.testmod(module, exclude_empty=True, report=False).failed
