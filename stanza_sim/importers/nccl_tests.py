"""Reads what nccl-tests print (`all_reduce_perf` and the others that this project knows), and tables of such times.

A log has header lines (`#`), from which the GPUs, their hosts and the columns are taken, and a line for each size: its
bytes, what was reduced, and for buffers out of place and in place the time in microseconds. Times out of place are
used. Lines of other programs between them (such as `NCCL INFO`) are skipped, as are a line
into which one was written and a last line that is cut short.

A table is a CSV file with the columns `gpus`, `bytes` and `time_us_out_of_place`, of all-reduces, as in
`stanza_sim/data/published/nccl.csv`.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from stanza_sim.base.errors import InputError
from stanza_sim.base.files import LARGEST_TEXT
from stanza_sim.base.tables import reading_csv
from stanza_sim.importers.looks_like import Foreign
from stanza_sim.importers.reading import check_kind, read_raw
from stanza_sim.schedule import CollectiveKind

CSV_COLUMNS = ("gpus", "bytes", "time_us_out_of_place")
KINDS = {
    "all_reduce": CollectiveKind.ALL_REDUCE,
    "reduce_scatter": CollectiveKind.REDUCE_SCATTER,
    "all_gather": CollectiveKind.ALL_GATHER,
    "broadcast": CollectiveKind.BROADCAST,
}
OTHERS = ("alltoall", "alltoallv", "gather", "hypercube", "reduce", "scatter", "sendrecv")
"""Programs of nccl-tests whose collectives no schedule has."""

_RANK = re.compile(r"#\s*Rank\s+(\d+)\s.*?\bPid\s+(\d+)\s+on\s+(\S+)\s+device\s+(\d+)\s*(?:\[[^\]]*\])?\s*(.*)")
_THREADS = re.compile(r"#\s*nThread\s+(\d+)\s+nGpus\s+(\d+)\b")
_PROGRAM = re.compile(r"\b(\w+?)_perf\b")
_PREFIX = re.compile(r"^\[\d+,\d+\]<std(?:out|err)>:\s*|^\s*\d+:\s+(?=#|\d)")
_TORN = re.compile(r"\bNCCL (?:INFO|WARN|TRACE)\b")
"""In a line of times: another process wrote into it, and nobody knows what is missing."""
_SIZE = re.compile(r"\s*\d+\s+\d+\s+[a-z]")
_SIZE_HINT = "a line is: size count type redop root time algbw busbw #wrong (and again for in place)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """One size: what was carried out, on how many bytes in all, and for how many seconds, out of place."""

    kind: CollectiveKind
    nbytes: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NcclLog:
    """One run of nccl-tests: how many GPUs of each host took part, how many a process drove, and the times.

    `device` is what the driver calls the GPUs, empty where the log does not say.
    """

    path: str
    by_host: tuple[int, ...]
    gpus_per_process: int
    device: str
    rows: tuple[Timed, ...]

    @property
    def gpus(self) -> int:
        """The number of GPUs."""
        return sum(self.by_host)


def read_logs(
    paths: Iterable[Path], *, hosts: int | None = None, gpus_per_host: int | None = None
) -> tuple[NcclLog, ...]:
    """Read logs, and tables of several runs each.

    `hosts` and `gpus_per_host` say where GPUs were if a log does not (or says so wrongly, as in containers that share a
    host's name); of a table's GPUs as many are on each host as it takes to have the fewest hosts. Raises `InputError`
    with file and line for what is wrong.
    """
    found: list[NcclLog] = []
    for path in paths:
        raw = read_raw(path, most=LARGEST_TEXT)
        check_kind(raw, path, Foreign.NCCL_TESTS, Foreign.NCCL_LOG)  # a log of NCCL may have times between
        text = raw.decode("utf-8", errors="replace")
        if path.suffix == ".csv" or text.lstrip().partition("\n")[0].count(",") >= 2:
            found += _table(path, text, gpus_per_host)
        else:
            found.append(_log(path, text, hosts, gpus_per_host))
    return tuple(found)


# ---- logs ----------------------------------------------------------------------------------------------------------


NOW = ("size", "count", "type", "redop", "root", "time", "algbw", "busbw")
BEFORE = ("size", "count", "type", "redop", "time", "algbw", "busbw")
"""Columns of newer and of older versions, of the part out of place; one or two more follow, and those in place."""


def _columns(lines: Sequence[str], sizes: Sequence[str]) -> tuple[str, ...]:
    """The columns of a log: as its header says or, where that is not there, by how many its lines have."""
    for line in lines:
        names = tuple(line.lstrip("# ").split())
        if line.lstrip().startswith("#") and names[:2] == ("size", "count") and "time" in names:
            return names
    return BEFORE if all(len(line.split()) in (8, 12) for line in sizes[:-1] or sizes) else NOW


def _log(path: Path, text: str, hosts: int | None, gpus_per_host: int | None) -> NcclLog:
    """Read one log."""
    where: dict[int, tuple[str, str]] = {}
    devices: Counter[str] = Counter()
    program, driven = "", 0
    lines = [_PREFIX.sub("", line) for line in text.splitlines()]
    sizes = [i for i, line in enumerate(lines) if _SIZE.match(line) and not _TORN.search(line)]
    columns = _columns(lines, [lines[i] for i in sizes])
    raw: list[tuple[int, int, float, str, str, float | None]] = []
    for i, line in enumerate(lines):
        if line.lstrip().startswith("#"):
            if rank := _RANK.match(line.lstrip()):
                where[int(rank[1])] = (rank[3], rank[2])
                devices[rank[5].strip()] += 1
            if threads := _THREADS.match(line.lstrip()):
                driven = int(threads[1]) * int(threads[2])
            if "Collective test starting" in line and (named := _PROGRAM.search(line)):
                program = named[1]
        elif _SIZE.match(line) and not _TORN.search(line):
            made = _times(columns, line.split(), f"{path}:{i + 1}", last=i == sizes[-1])
            if made is not None:
                raw.append((i, *made))
    if not raw:
        hint = "the output of all_reduce_perf and the like is expected, or a CSV file of " + ", ".join(CSV_COLUMNS)
        raise InputError("holds no line of times", where=str(path), hint=hint)
    by_host = _by_host(path, where, hosts, gpus_per_host)
    n = sum(by_host)
    rows = []
    for i, nbytes, time_us, redop, root, ratio in raw:
        kind = _kind(f"{path}:{i + 1}", program, redop, root, ratio, n)
        if time_us > 0 and nbytes > 0:  # sizes below one element a rank move nothing
            rows.append(Timed(kind=kind, nbytes=nbytes, seconds=time_us * 1e-6))
    processes = len(set(where.values()))
    per_process = driven or (len(where) // processes if processes else 1)
    device = devices.most_common(1)[0][0] if devices else ""
    return NcclLog(
        path=str(path),
        by_host=by_host,
        gpus_per_process=min(per_process, max(by_host)),
        device=device,
        rows=tuple(rows),
    )


def _times(
    columns: Sequence[str], words: Sequence[str], where: str, *, last: bool
) -> tuple[int, float, str, str, float | None] | None:
    """What a line says: bytes, microseconds, redop, root, and bus over algorithm bandwidth; None if it is cut short."""
    at = columns.index("time")
    if last and len(words) <= at + 1:  # the time, if there is one, may have lost digits
        return None
    if len(words) <= at:
        raise InputError("a line of times ends too soon", where=where, hint=_SIZE_HINT)
    time_us = _number(words[at])
    if time_us is None or time_us < 0:
        raise InputError(f"{words[at]!r} is no time in microseconds", where=where, hint=_SIZE_HINT)
    said = {}
    for name in ("redop", "root"):
        said[name] = words[columns.index(name)] if name in columns[:at] else ""
    algbw, busbw = (_number(w) for w in (*words[at + 1 : at + 3], "", "")[:2])
    ratio = busbw / algbw if algbw and busbw is not None else None
    return int(words[0]), time_us, said["redop"], said["root"], ratio


def _number(word: str) -> float | None:
    """The number that `word` is; None for `N/A` and what else is none."""
    try:
        value = float(word)
    except ValueError:
        return None
    return value if isfinite(value) else None


def _kind(where: str, program: str, redop: str, root: str, ratio: float | None, n: int) -> CollectiveKind:
    """Which collective a line is of: what the log says or, in an older one, what its columns tell.

    What reduces has a `redop`. Of these the bus bandwidth of an all-reduce is 2(n-1)/n times the algorithm's, that of a
    reduce-scatter half of this; a broadcast has a root.
    """
    if program:
        if program in KINDS:
            return KINDS[program]
        raise InputError(f"{program} is not simulated", where=where, hint=f"known: {', '.join(KINDS)}")
    if redop in ("", "none"):
        rooted = root not in ("", "-1")
        return CollectiveKind.BROADCAST if rooted or redop == "" else CollectiveKind.ALL_GATHER
    half = n > 1 and ratio is not None and abs(ratio - (n - 1) / n) < abs(ratio - 2 * (n - 1) / n) and ratio > 0
    return CollectiveKind.REDUCE_SCATTER if half else CollectiveKind.ALL_REDUCE


def _by_host(
    path: Path, where: dict[int, tuple[str, str]], hosts: int | None, gpus_per_host: int | None
) -> tuple[int, ...]:
    """How many GPUs each host has: as asked for, else as the log says."""
    hint = "state --hosts and --gpus-per-host"
    if hosts is not None and gpus_per_host is not None:
        if where and len(where) != hosts * gpus_per_host:
            what = f"has {len(where)} ranks, but {hosts} hosts of {gpus_per_host} GPUs are {hosts * gpus_per_host}"
            raise InputError(what, where=str(path), hint="correct --hosts and --gpus-per-host, or leave both out")
        return (gpus_per_host,) * hosts
    if not where:
        raise InputError("does not say which GPUs it is of (no line `#  Rank ...`)", where=str(path), hint=hint)
    if sorted(where) != list(range(len(where))):
        missing = next(r for r in range(len(where) + 1) if r not in where)
        raise InputError(f"has no line for rank {missing}", where=str(path), hint=hint)
    if hosts is not None or gpus_per_host is not None:
        count = hosts if hosts is not None else len(where) // (gpus_per_host or 1)
        if count < 1 or len(where) % count or (gpus_per_host and count * gpus_per_host != len(where)):
            what = f"has {len(where)} ranks, which are not so many on each of {max(count, 1)} hosts"
            raise InputError(what, where=str(path), hint=hint)
        return (len(where) // count,) * count
    return tuple(Counter(host for host, _ in where.values()).values())


# ---- tables --------------------------------------------------------------------------------------------------------


def _table(path: Path, text: str, gpus_per_host: int | None) -> list[NcclLog]:
    """Read a table: one run for each number of GPUs."""
    with reading_csv(path, "a table of nccl-tests"):
        return _runs(path, text, gpus_per_host)


def _runs(path: Path, text: str, gpus_per_host: int | None) -> list[NcclLog]:
    reader = csv.DictReader(text.splitlines())
    missing = [c for c in CSV_COLUMNS if c not in (reader.fieldnames or ())]
    if missing:
        hint = f"a table has the columns {', '.join(CSV_COLUMNS)}"
        raise InputError(f"has no column {missing[0]!r}", where=f"{path}:1", hint=hint)
    if gpus_per_host is None:
        raise InputError("does not say how many GPUs a host has", where=str(path), hint="state --gpus-per-host")
    rows: dict[int, list[Timed]] = {}
    for row in reader:
        values = [_number(row[c] or "") for c in CSV_COLUMNS]
        for column, value in zip(CSV_COLUMNS, values, strict=True):
            if value is None or value < 0 or (column != CSV_COLUMNS[2] and value != int(value)):
                what = f"{column} is {row[column]!r}"
                raise InputError(what, where=f"{path}:{reader.line_num}", hint="a number of at least 0 is expected")
        gpus, nbytes, time_us = (value or 0.0 for value in values)
        if gpus < 1:
            raise InputError("gpus is 0", where=f"{path}:{reader.line_num}", hint="at least one takes part")
        timed = rows.setdefault(int(gpus), [])
        if time_us > 0 and nbytes > 0:
            timed.append(Timed(kind=CollectiveKind.ALL_REDUCE, nbytes=int(nbytes), seconds=time_us * 1e-6))
    if not any(rows.values()):
        raise InputError("holds no row", where=str(path))
    return [
        NcclLog(path=str(path), by_host=shared_out, gpus_per_process=max(shared_out), device="", rows=tuple(timed))
        for gpus, timed in sorted(rows.items())
        for shared_out in [_evenly(gpus, gpus_per_host)]
    ]


def _evenly(gpus: int, most: int) -> tuple[int, ...]:
    """GPUs over the fewest hosts of at most `most`, as evenly as can be."""
    hosts = -(-gpus // most)
    return tuple(gpus // hosts + (h < gpus % hosts) for h in range(hosts))
