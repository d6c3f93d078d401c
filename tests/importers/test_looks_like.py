"""A foreign file is known by its content, and one of another kind is refused by name."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from stanza_sim.base.errors import InputError
from stanza_sim.importers.looks_like import Foreign, looks_like
from stanza_sim.importers.reading import MOST_LINE, read_bytes, read_foreign
from tests.importers.foreign_files import KINDS


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_kind_is_known_packed_or_not_and_refused_by_name(kind: Foreign, tmp_path: Path) -> None:
    raw = KINDS[kind].encode()
    assert looks_like(raw) is kind
    assert looks_like(gzip.compress(raw)) is kind
    if kind not in (Foreign.CHAKRA, Foreign.BINARY):
        assert looks_like(raw.replace(b"\n", b"\r\n")) is kind
    path = tmp_path / "file.xml"  # whose name says nothing
    path.write_bytes(raw)
    for wanted in (Foreign.NCCL_TOPO, Foreign.NVIDIA_SMI, Foreign.SLURM, Foreign.IBNETDISCOVER):
        if wanted is kind:
            assert read_foreign(path, wanted).lines[0] == KINDS[kind].splitlines()[0]
            continue
        with pytest.raises(InputError) as error:
            read_foreign(path, wanted)
        assert error.value.message == f"looks like {kind.what}, not {wanted.what}"
        assert (f"import {kind.command} " in str(error.value.hint)) == bool(kind.command)
        assert ("show cluster" in str(error.value.hint)) == (kind.name in ("CLUSTER", "NODE_LINK", "GRAPHML"))


@pytest.mark.parametrize("text", ["", "hello\n", "<a/>", "{}", "[1, 2]", "a: b\n", "x,y\n1,2\n", "GPU0 is fast\n"])
def test_other_text_is_of_no_kind(text: str) -> None:
    assert looks_like(text.encode()) is None


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "is empty"),
        (b" \n\t\n", "is empty"),
        (b"x" * 2000, "has more than 0 MiB"),
        (gzip.compress(b"x" * 2000), "has more than 0 MiB"),
        (gzip.compress(b"ab" * 400)[:-12], "is a gzip file that is cut short"),
        (b"\x1f\x8bxxxx", "is a broken gzip file"),
    ],
)
def test_what_cannot_be_read(raw: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(raw)
    with pytest.raises(InputError, match=message):
        read_bytes(path, most=1000)


def test_what_is_no_file_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_bytes(tmp_path / "none")
    with pytest.raises(InputError, match="Is a directory"):
        read_bytes(tmp_path)
    path = tmp_path / "f"
    path.write_text("a" * (MOST_LINE + 1))
    with pytest.raises(InputError, match="a line of 1,000,001 characters"):
        read_foreign(path, Foreign.SLURM)
    path.write_bytes("a\nSwitchName=s0 Nodes=n0\n".encode("utf-16"))
    assert read_foreign(path, Foreign.SLURM).lines[1] == "SwitchName=s0 Nodes=n0"


def test_hostile_text_takes_no_time() -> None:
    for piece in (b"\n", b" ", b"<?", b"<!--", b"models:\n", b"\x1b[4m", b"[", b'"nodes"', b"#  Rank 1 ", b"a: \n"):
        looks_like(b"<" + piece * 100_000)
        looks_like(piece * 100_000)
