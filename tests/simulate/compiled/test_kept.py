"""What numba keeps on disk: shared by processes, made anew where it is broken, done without where it cannot be kept."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

import stanza_sim
from stanza_sim.base.errors import InputError
from stanza_sim.simulate import engines

pytest.importorskip("numba")

PROGRAM = """
from stanza_sim.simulate.compiled.kernel.jit import kept

@kept
def twice(x):
    return 2 * x

print(twice(20) + twice(1))
"""
COMPILING, WARNING = "compiling the fast engine, once", "warning: the compiled engine cannot be kept"


def started(folder: Path, **environment: str) -> subprocess.Popen[str]:
    program = folder / "program.py"
    program.write_text(PROGRAM)
    env = {**os.environ, "PYTHONPATH": str(Path(stanza_sim.__file__).parents[1]), **environment}
    return subprocess.Popen(
        [sys.executable, str(program)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def told(process: subprocess.Popen[str]) -> str:
    """What it says, once it has given the right answer."""
    out, err = process.communicate(timeout=100)
    assert (process.returncode, out) == (0, "42\n"), err
    return err


@pytest.mark.processes
def test_processes_that_compile_at_once_and_files_that_are_cut_short(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    together = [started(tmp_path, NUMBA_CACHE_DIR=str(kept)) for _ in range(2)]
    for process in together:
        assert told(process).count(COMPILING) <= 1
    files = [path for path in kept.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".nbi", ".nbc"}
    assert told(started(tmp_path, NUMBA_CACHE_DIR=str(kept))) == ""
    for suffix in (".nbi", ".nbc"):
        for path in kept.rglob(f"*{suffix}"):
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        said = told(started(tmp_path, NUMBA_CACHE_DIR=str(kept)))
        assert (said.count(WARNING), said.count("Traceback")) == (1, 0)
        assert told(started(tmp_path, NUMBA_CACHE_DIR=str(kept))) == "", "it was mended"


@pytest.mark.processes
def test_nowhere_to_keep_it(tmp_path: Path) -> None:
    nowhere = tmp_path / "file"
    nowhere.touch()
    (tmp_path / "__pycache__").touch()
    said = told(started(tmp_path, NUMBA_CACHE_DIR=str(nowhere), HOME=str(nowhere), XDG_CACHE_HOME=str(nowhere)))
    assert (said.count(WARNING), said.count(COMPILING), said.count("Traceback")) == (1, 1, 0)


@pytest.mark.parametrize("error", [ImportError("it wants another numpy"), OSError("no libllvm")])
def test_a_numba_that_cannot_be_imported(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(name: str) -> None:
        raise error

    monkeypatch.setattr(engines, "import_module", broken)
    monkeypatch.setattr(engines, "_warm", False)
    engines._numba_error.cache_clear()
    engines.can_compile.cache_clear()
    try:
        assert not engines.pays(1)
        assert not caplog.records, "nobody asked for it"
        assert not engines.pays(engines.COMPILED_FROM)
        assert not engines.pays(engines.COMPILED_FROM)
        (record,) = caplog.records
        assert (record.levelno, str(error) in record.getMessage()) == (logging.WARNING, True)
        with pytest.raises(InputError, match=str(error)):
            engines.require_numba()
    finally:
        engines._numba_error.cache_clear()
        engines.can_compile.cache_clear()
