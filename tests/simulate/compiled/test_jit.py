"""What numba keeps on disk is compiled anew when any file changes from which code went into it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stanza_sim.simulate.compiled import advance as advance_module
from stanza_sim.simulate.compiled import kernel
from stanza_sim.simulate.compiled.kernel import jit

KERNEL = Path(jit.__file__).parent


def python_of(function: Callable[..., Any]) -> Callable[..., Any]:
    made: Callable[..., Any] = getattr(function, "py_func", function)
    return made


def files_of(function: Callable[..., Any]) -> set[Path]:
    """The files of a function and of all functions of ours that it calls."""
    found: dict[Any, Path] = {}
    ahead = [python_of(function)]
    while ahead:
        own = ahead.pop()
        code = own.__code__
        if code in found or "stanza_sim" not in code.co_filename:
            continue
        found[code] = Path(code.co_filename)
        ahead += [
            python_of(value)
            for name in code.co_names
            if inspect.isfunction(python_of(value := own.__globals__.get(name)))
        ]
    return set(found.values())


@pytest.mark.parametrize("function", [kernel.run, kernel.start, kernel.trigger, advance_module.advance])
def test_the_checksum_covers_every_file_of_what_is_kept(function: Callable[..., Any]) -> None:
    own = Path(python_of(function).__code__.co_filename)
    others = files_of(function) - {own}
    assert others, "all of it is in one file?"
    assert {path.parent for path in others} == {KERNEL}
    held = [cell.cell_contents for cell in python_of(function).__closure__ or ()]
    assert held == [kernel.SOURCES]


def test_the_checksum_depends_on_each_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = sorted(KERNEL.glob("*.py"))
    for path in paths:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(jit, "__file__", str(tmp_path / "jit.py"))
    assert jit._sources() == jit.SOURCES
    for path in paths:
        copy = tmp_path / path.name
        copy.write_bytes(path.read_bytes() + b"#\n")
        assert jit._sources() != jit.SOURCES, path.name
        copy.write_bytes(path.read_bytes())
