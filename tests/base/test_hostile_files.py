"""Files that are made to hurt: each is refused with one message, soon, or read as what it is."""

from __future__ import annotations

import json
import os
import threading
import tracemalloc
from pathlib import Path

import pytest
import typer

from stanza_sim.base import units
from stanza_sim.base.config import read_yaml
from stanza_sim.base.errors import InputError
from stanza_sim.base.files import check_target, only_writer, read_bytes, read_json, write_whole
from stanza_sim.base.finding import near
from stanza_sim.base.tables import csv_cell, of_csv_cell
from stanza_sim.base.telling import printable
from stanza_sim.cli.console import errors_for_people

BOMB = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)
MERGED = "a0: &a0 {a: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 12))


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param(BOMB, "more than 400,000 values", id="aliases of aliases"),
        pytest.param(MERGED, "more than 400,000 values", id="merged aliases"),
        pytest.param("a: " + "[" * 100 + "]" * 100, "levels deep", id="nested"),
        pytest.param("a: " + "{b: " * 3000, "nested too deeply", id="nested for ever"),
        pytest.param('a: 1\nname: "x\\e[31m"\n', r"line 2: x\x1b[31m has characters", id="escape"),
        pytest.param('"x\\x9b": 1\n', "cannot be printed", id="a key"),
        pytest.param('name: "\\u202egnp.exe"\n', "cannot be printed", id="from right to left"),
    ],
)
def test_a_yaml_file_that_is_made_to_hurt_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_yaml(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_aliases_and_texts_of_several_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("a: &a {b: [1, 2]}\nc: [*a, *a]\nd: {<<: *a, e: 3}\nf: |\n  two\n  lines\tand a tab\n")
    data, _ = read_yaml(path)
    assert data == {
        "a": {"b": [1, 2]},
        "c": [{"b": [1, 2]}] * 2,
        "d": {"b": [1, 2], "e": 3},
        "f": "two\nlines\tand a tab\n",
    }


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(InputError, match="is not a regular file"):
            read_bytes(path, at_most=1000)
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_bytes(tmp_path, at_most=1000)
    (tmp_path / "large").write_bytes(b"x" * 1001)
    with pytest.raises(InputError, match=r"holds more than 0\.001 MB"):
        read_bytes(tmp_path / "large", at_most=1000)
    with pytest.raises(InputError, match="no such file"):
        read_bytes(tmp_path / "absent", at_most=1)
    with pytest.raises(InputError, match="cannot be read: File name too long"):
        read_bytes(tmp_path / ("x" * 300), at_most=1)
    with pytest.raises(InputError, match="cannot be read"):
        read_bytes(Path("a\0b"), at_most=1)


def test_a_small_file_takes_little_memory_whatever_may_be_read(tmp_path: Path) -> None:
    path = tmp_path / "small"
    path.write_bytes(b"some text")
    tracemalloc.start()
    try:
        assert read_bytes(path, at_most=2**33) == b"some text"
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert read_bytes(path, at_most=9) == b"some text"
    with pytest.raises(InputError, match="holds more than"):
        read_bytes(path, at_most=8)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux has files that do not say their size")
def test_a_file_that_does_not_say_its_size_is_read_whole() -> None:
    assert b"Threads:" in read_bytes(Path("/proc/self/status"), at_most=10**6)
    with pytest.raises(InputError, match="holds more than"):
        read_bytes(Path("/proc/self/status"), at_most=100)


def test_too_little_memory_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, errors_for_people():
        raise MemoryError
    assert ended.value.exit_code == 1
    assert capsys.readouterr().err == "error: there is not enough memory\n"


@pytest.mark.parametrize("name", ["\x1b[2J", "\x00", "\x9b1m", "\x7f"])
def test_json_with_control_characters_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"a": 1, "name": name}, indent=1))
    with pytest.raises(InputError, match=r"x\.json:3.*cannot be printed"):
        read_json(path, expected="a profile")


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b'{\n"a": "\xc2\x9b1m"}', r"x\.json:2.*cannot be printed"),
        (b'{"a": "\x7f"}', "cannot be printed"),
        ('{"a": "\\u001b"}'.encode("utf-16"), "is not text in UTF-8"),
    ],
)
def test_json_with_raw_control_characters_is_refused(tmp_path: Path, raw: bytes, says: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(raw)
    with pytest.raises(InputError, match=says):
        read_json(path, expected="a profile")


def test_json_with_backslashes_and_ends_of_lines_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    data = {"a": "\\u001b", "b": "two\nlines", "c": "\\\\u0000", "d": "\u00fc"}
    path.write_text(json.dumps(data))
    assert read_json(path, expected="a profile") == data


@pytest.mark.timeout(10)
def test_long_numbers_and_long_names_are_refused_soon() -> None:
    for text in ("9" * 4000 + "Gbps", "0." + "1" * 4000 + "Gbps", "1" + " " * 4000 + "Gbps"):
        with pytest.raises(InputError, match="is not a rate"):
            units.rate(text)
    assert near("x" * 100_000, ["vgg16", "y" * 100_000])


@pytest.mark.parametrize("size", ["1e19", "10000000TB"])
def test_sizes_and_speeds_beyond_all_clusters_are_refused(size: str) -> None:
    with pytest.raises(InputError):
        units.nbytes(size)
    with pytest.raises(InputError, match="too large"):
        units.flops("10000000000PFLOPS")


def test_a_terminal_does_nothing_that_a_text_says() -> None:
    assert printable("a\x1b[31mb\nc\td\x9b\u202e\r") == "a\\x1b[31mb\nc\td\\x9b\\u202e\\r"


@pytest.mark.parametrize("text", ["=HYPERLINK(1)", "+cmd", "-x", "@SUM", "'=1", "'", "\tx", "plain", "-1.5", "+3", ""])
def test_cells_are_texts_to_a_spreadsheet_and_come_back(text: str) -> None:
    cell = csv_cell(text)
    assert of_csv_cell(cell) == text
    assert not cell.startswith(("=", "@", "+c", "-x", "\t"))


def test_a_name_that_is_too_long_is_no_target(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        check_target(tmp_path / ("x" * 300))


def test_a_file_has_one_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path, said = tmp_path / "points.csv", []

    def second() -> None:
        try:
            with only_writer(path):
                said.append("in")
        except InputError as error:
            said.append(error.message)

    with only_writer(path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        with only_writer(tmp_path / "other.csv"):
            pass
    second()
    assert said == ["is being written by another process", "in"]


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    write_whole("old", path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "chmod", full)
    with pytest.raises(InputError, match="No space left"):
        write_whole("new", path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
