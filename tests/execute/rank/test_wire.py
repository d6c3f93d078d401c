"""Ranks tell each other data, and nothing else comes out of what they hear."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from stanza_sim.base.errors import InputError, RunError  # noqa: E402
from stanza_sim.execute.rank.decision import RankFacts  # noqa: E402
from stanza_sim.execute.rank.job import Backend  # noqa: E402
from stanza_sim.execute.rank.wire import from_bytes, to_bytes  # noqa: E402

FACTS = RankFacts(host="a", machine="b", local_rank=3, kind="cpu", gpus=(), nccl=False)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.just(FACTS),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=20,
)


@given(VALUES)
def test_data_comes_back_as_it_was(value: object) -> None:
    again = from_bytes(to_bytes(value))
    assert again == value
    assert type(again) is type(value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_come_back_bit_for_bit(dtype: torch.dtype) -> None:
    some = {"w": torch.arange(6).reshape(2, 3).to(dtype).T, "none": torch.empty(0, 4, dtype=dtype)}
    again = from_bytes(to_bytes((some, np.arange(3.0), Backend.AUTO)))
    assert isinstance(again, tuple)
    assert all(torch.equal(again[0][key], some[key]) and again[0][key].dtype == some[key].dtype for key in some)
    assert again[1].tolist() == [0.0, 1.0, 2.0]
    assert again[2] is Backend.AUTO
    again[0]["w"].zero_()  # it may be written to


def test_an_error_keeps_its_place() -> None:
    again = from_bytes(to_bytes(InputError("wrong", where="x.yaml:1", hint="right")))
    assert isinstance(again, InputError)
    assert (again.message, again.where, again.hint) == ("wrong", "x.yaml:1", "right")


def wire(packed: object) -> bytes:
    text = json.dumps(packed).encode()
    return len(text).to_bytes(8, "big") + text


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(pickle.dumps(Path("x")), id="a pickle"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="a browser"),
        pytest.param(b"", id="nothing"),
        pytest.param(wire(["data", "os:system", {}]), id="a function"),
        pytest.param(wire(["data", "subprocess:Popen", {"args": "ls"}]), id="a class of another package"),
        pytest.param(wire(["data", "stanza_sim.base.processes:Path", {}]), id="what a module of ours imports"),
        pytest.param(wire(["enum", "stanza_sim.execute.rank.decision:RankFacts", 1]), id="a class of another kind"),
        pytest.param(wire(["data", "stanza_sim.__main__:main", {}]), id="a program"),
        pytest.param(wire(["data", "stanza_sim.execute.rank.decision:RankFacts", {}]), id="values are missing"),
        pytest.param(wire(["tensor", "float32", [10**9], 4 * 10**9]), id="cut short"),
        pytest.param(wire(["named", "stanza_sim.execute.rank.wire:torch.Size", [1]]), id="what it imports"),
        pytest.param(wire(["tensor", "float32", [3, 5], 0]), id="another shape"),
        pytest.param(wire(["tensor", "float32", [2**70], 0]), id="a huge shape"),
        pytest.param(wire(["nothing", []]), id="an unknown tag"),
        pytest.param(wire({"a": 1}), id="no tag"),
    ],
)
def test_what_no_rank_says_is_refused(raw: bytes) -> None:
    with pytest.raises(RunError, match="no rank says"):
        from_bytes(raw)


def test_what_is_no_data_is_not_sent() -> None:
    for value in (print, object(), Path("x"), lambda: 0):
        with pytest.raises(TypeError):
            to_bytes(value)
