"""Files of tensors: the safetensors library reads what is written, and the other way round; others are refused."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from stanza_sim.base.errors import InputError
from stanza_sim.base.tensor_file import ToStore, open_tensors, write_tensors
from stanza_sim.execute.rank.checkpoint import FORMAT, ITERATION, VERSION, open_resume

ARRAYS = {
    "w": np.arange(12, dtype=np.float32).reshape(3, 4),
    "deep/b.1": np.array([1.5], dtype=np.float64),
    "count": np.array(7, dtype=np.int64),
    "none": np.zeros((0, 3), dtype=np.float32),
    "on": np.array([True, False]),
}
CODES = {"float32": "F32", "float64": "F64", "int64": "I64", "bool": "BOOL"}


def stored() -> dict[str, ToStore]:
    return {name: ToStore(dtype=CODES[a.dtype.name], shape=a.shape, content=a.tobytes()) for name, a in ARRAYS.items()}


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, stored(), {"what": "a test"})
    found = load_file(path)
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert np.array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    assert open_tensors(path).texts == {"what": "a test"}


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(ARRAYS, path, metadata={"a": "b"})
    found = open_tensors(path)
    assert found.texts == {"a": "b"}
    for name, array in ARRAYS.items():
        assert found.tensors[name].shape == array.shape
        assert bytes(found.read(name)) == array.tobytes()


def test_equal_tensors_make_equal_bytes_and_nothing_is_left_beside(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_tensors(tmp_path / name, stored(), {})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(InputError, match="cannot be written"):
        write_tensors(tmp_path / "no" / "a", stored(), {})


@given(data=st.data())
def test_a_file_that_is_damaged_is_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "a"
    write_tensors(path, stored(), {"what": "a test"})
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    for _ in range(data.draw(st.integers(1, 3)) if content else 0):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        found = open_tensors(path)
        for name in found.tensors:
            found.read(name)
    except InputError as error:
        assert str(path) in str(error)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing", Path("/dev/null")):
        with pytest.raises(InputError):
            open_tensors(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without pipes that are files")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is not a regular file"):
        open_tensors(tmp_path / "pipe")


def test_an_iteration_of_too_many_digits_is_none(tmp_path: Path) -> None:
    path = tmp_path / "x.resume.safetensors"
    for digits, refused in (("12", False), ("1" * 5000, True)):
        write_tensors(path, {}, {FORMAT: VERSION, ITERATION: digits})
        with pytest.raises(InputError, match="can be resumed") if refused else nullcontext():
            assert int(open_resume(path).texts[ITERATION]) == 12
