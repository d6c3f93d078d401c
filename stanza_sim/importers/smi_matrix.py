"""Reads the matrix that `nvidia-smi topo -m` prints: what is between any two GPUs and NICs of a host."""

from __future__ import annotations

import re
from dataclasses import dataclass

from stanza_sim.importers.reading import ForeignFile

EXPECTED = "the output of `nvidia-smi topo -m` is expected"
NEARNESS = ("PIX", "PXB", "PHB", "NODE", "SYS")
"""What may be between two of them beside NVLink, the nearest first."""
_OLD = {"PSB": "PIX", "SOC": "SYS"}  # what older drivers print
_CELL = re.compile(r"X|NV\d{1,3}|PIX|PXB|PHB|NODE|SYS|PSB|SOC")
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_NAME = re.compile(r"GPU\d+|NIC\d+|[a-z][a-z0-9_]*\d")
_AFTER = ("CPU", "NUMA", "GPU", "Memory")
_MOST = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """One matrix: names in its order, the lines of header and rows, and the cells by both names.

    `cpus` and `numa` are what its last columns say of a GPU (empty where they do not); `legend` names NICs.
    """

    line: int
    names: tuple[str, ...]
    rows: dict[str, int]
    cells: dict[tuple[str, str], str]
    cpus: dict[str, str]
    numa: dict[str, str]
    legend: dict[str, str]

    @property
    def gpus(self) -> tuple[str, ...]:
        """The GPUs."""
        return tuple(name for name in self.names if name.startswith("GPU"))

    @property
    def nics(self) -> tuple[str, ...]:
        """The NICs."""
        return tuple(name for name in self.names if not name.startswith("GPU"))

    def between(self, a: str, b: str) -> str:
        """What is between two of them."""
        return self.cells[a, b]

    def nvlinks(self, a: str, b: str) -> int:
        """How many NVLinks are between two GPUs, all those over a switch included."""
        cell = self.cells[a, b]
        return int(cell[2:]) if cell.startswith("NV") else 0


def read_matrices(file: ForeignFile) -> list[Matrix]:
    """Return every matrix of a file. Raises `InputError` for one that is cut short or contradicts itself."""
    found = []
    lines = [_ANSI.sub("", line) for line in file.lines]
    at = 0
    while at < len(lines):
        header = _header(lines[at])
        if header is None:
            at += 1
            continue
        matrix, at = _matrix(file, lines, at, header)
        found.append(matrix)
    if not found:
        raise file.wrong("has no line of GPU0, GPU1 and so on, which a matrix begins with", hint=EXPECTED)
    return found


def _header(line: str) -> tuple[str, ...] | None:
    """The names of the columns, if a line is a header: GPU0 first, and no cell."""
    words = line.replace("|", " ").split()
    names: list[str] = []
    for word in words:
        if not _NAME.fullmatch(word):
            break
        names.append(word)
    if not names or names[0] != "GPU0" or len(names) > _MOST:
        return None
    rest = words[len(names) :]
    return tuple(names) if not rest or rest[0] in _AFTER else None


def _matrix(file: ForeignFile, lines: list[str], at: int, names: tuple[str, ...]) -> tuple[Matrix, int]:
    header = at + 1
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise file.wrong(f"has two columns {twice}", header, EXPECTED)
    rows: dict[str, int] = {}
    cells: dict[tuple[str, str], str] = {}
    cpus: dict[str, str] = {}
    numa: dict[str, str] = {}
    says_cpus, says_numa = "CPU Affinity" in " ".join(lines[at].split()), "NUMA Affinity" in " ".join(lines[at].split())
    at += 1
    while at < len(lines) and len(rows) < len(names):
        words = lines[at].replace("|", " ").split()
        if words and _header(lines[at]) is not None and words[0] == "GPU0" and "GPU0" in rows:
            break
        if words and words[0] in names:
            name = words[0]
            _row(file, at + 1, name, words[1 : 1 + len(names)], names, rows, cells)
            after = _after(lines[at], words, len(names))
            if says_cpus and after:
                cpus[name] = after[0]
            if says_numa and len(after) > 1:
                numa[name] = after[1]
        elif words and (rows and words[0].startswith(("Legend", "NIC", "```"))):
            break
        elif words and re.fullmatch(r"GPU\d+|NIC\d+", words[0]):
            raise file.wrong(f"has a row {words[0]} without a column", at + 1, EXPECTED)
        at += 1
    if missing := [name for name in names if name not in rows]:
        last = max(rows.values(), default=header)
        raise file.wrong(f"is cut short: there is no row for {missing[0]}", last, EXPECTED)
    matrix = Matrix(line=header, names=names, rows=rows, cells=cells, cpus=cpus, numa=numa, legend=_legend(lines, at))
    _check(file, matrix)
    return matrix, at


def _row(
    file: ForeignFile,
    line: int,
    name: str,
    words: list[str],
    names: tuple[str, ...],
    rows: dict[str, int],
    cells: dict[tuple[str, str], str],
) -> None:
    if name in rows:
        raise file.wrong(f"has two rows {name}, the other on line {rows[name]}", line, EXPECTED)
    rows[name] = line
    for other, word in zip(names, words, strict=False):
        if not _CELL.fullmatch(word):
            known = "X, NV1 and so on, PIX, PXB, PHB, NODE or SYS"
            raise file.wrong(
                f"{word!r} is not what `topo -m` prints between {name} and {other}", line, f"known: {known}"
            )
        if (word == "X") != (name == other):
            raise file.wrong(f"has {word} between {name} and {other}", line, "X is for a device and itself")
        cells[name, other] = _OLD.get(word, word)
    if len(words) < len(names):
        raise file.wrong(f"the row of {name} ends before {names[len(words)]}", line, EXPECTED)


def _after(line: str, words: list[str], columns: int) -> list[str]:
    """What stands behind the cells of a row; with tabs, columns may be empty."""
    if line.count("\t") >= columns:
        fields = [field.strip() for field in line.split("\t")]
        start = fields.index(words[0]) if words[0] in fields else 0
        return fields[start + 1 + columns :]
    return words[1 + columns :]


def _check(file: ForeignFile, matrix: Matrix) -> None:
    for (a, b), cell in matrix.cells.items():
        if (back := matrix.cells[b, a]) != cell:
            what = f"has {cell} from {a} to {b}, but {back} from {b} to {a} (line {matrix.rows[b]})"
            raise file.wrong(what, matrix.rows[a], "both ways are the same")
        if cell.startswith("NV") and not (a.startswith("GPU") and b.startswith("GPU")):
            raise file.wrong(f"has {cell} between {a} and {b}", matrix.rows[a], "NVLink joins GPUs")


def _legend(lines: list[str], at: int) -> dict[str, str]:
    """The names of NICs that stand below a matrix, before another begins."""
    names: dict[str, str] = {}
    for line in lines[at:]:
        if _header(line) is not None:
            break
        if named := re.fullmatch(r"\s*(NIC\d+)\s*:\s*(\S{1,64})\s*", line):
            names[named[1]] = named[2]
    return names
