"""Host lists of Slurm: taken apart and put together."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stanza_sim.importers.hostlist import HostlistError, expand, fold, without_prefix


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a", ["a"]),
        ("a,b2", ["a", "b2"]),
        ("n[0-2,08-10]", ["n0", "n1", "n2", "n08", "n09", "n10"]),
        ("r[1-2]n[1-2]x", ["r1n1x", "r1n2x", "r2n1x", "r2n2x"]),
        ("n[098-101]", ["n098", "n099", "n100", "n101"]),
        ("a[1],b[2-2]", ["a1", "b2"]),
    ],
)
def test_names(text: str, names: list[str]) -> None:
    assert expand(text) == names


@pytest.mark.parametrize(
    "text", ["", ",a", "a,", "a,,b", "n[1-2", "n1-2]", "n[[1-2]]", "[1-3]", "n[]", "n[a-b]", "n[3-1]", "n[1-2-3]"]
)
def test_what_is_no_list(text: str) -> None:
    with pytest.raises(HostlistError):
        expand(text)


@pytest.mark.parametrize("text", ["n[0-99999999]", "n[0-999]m[0-999]", "n[0-9][0-9][0-9][0-9][0-9][0-9]"])
def test_too_many_names(text: str) -> None:
    with pytest.raises(HostlistError, match="more than 100,000 names"):
        expand(text)


@pytest.mark.parametrize("text", [f"a[{','.join(['0-99999'] * 1000)}]", "a" + "[0-99999]" * 20])
def test_too_many_names_are_not_made_first(text: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(HostlistError, match="more than 100,000 names"):
            expand(text)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 30e6  # about what a bracket of the most names takes, twice


@given(st.lists(st.from_regex(r"[a-c]{1,2}-?[0-9]{0,3}", fullmatch=True), min_size=1, max_size=40))
def test_a_folded_list_says_the_same(names: list[str]) -> None:
    assert expand(fold(names)) == names


def test_folding_is_short() -> None:
    assert fold([f"n{i:03}" for i in (*range(1, 17), 19, 20)]) == "n[001-016,019-020]"
    assert fold(["n8", "n9", "n10", "n010", "m"]) == "n[8-10,010],m"


def test_a_prefix_that_is_cut_short() -> None:
    most = [f"circe-n{i}" for i in range(1, 41) if i != 19]
    assert without_prefix([*most, "n19", "login"]) == {"n19": "circe-n19"}
    assert not without_prefix([*most, "n18"])  # there is such a host
    assert not without_prefix([*most, "n7019"])  # nor is it between them
    assert not without_prefix([*most, *(f"n{i}" for i in range(100, 140))])  # they are as many
    assert not without_prefix([*most, "n19", *(f"p{i}x1" for i in range(600))])
