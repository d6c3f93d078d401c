"""What a check is and what it says: its place in the list, its outcome, and the lines by which its process reports."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

MOST_DETAIL = 1_000
"""Characters of a detail that are kept: an error of many ranks may be long."""


class Status(StrEnum):
    """How a check came out."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The outcome of one check, which took `seconds`, the start of its process included."""

    check: str
    status: Status
    seconds: float
    detail: str

    def as_json(self) -> dict[str, object]:
        """As it stands in the folder and in what `--json` prints."""
        return {
            "check": self.check,
            "status": str(self.status),
            "seconds": round(self.seconds, 3),
            "detail": self.detail,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Checks that share a process, since starting it takes longer than each of them; see `one`.

    `function` is `module:name` of what carries them out. Each may take `limit_s`, the first one longer, as its process
    has to start (`runner.START_S`). `needs_s` is about what each takes on a machine of two idle cores: where less than
    that is left of the budget, a check is not begun.
    """

    names: tuple[str, ...]
    function: str
    limit_s: float
    needs_s: float
    gpu: bool = False


class Skipped(Exception):
    """Raised within a check that cannot be carried out here; says why."""


@dataclass(slots=True)
class Said:
    """What a check that passes has to say."""

    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """What the function of a group is given: which checks it is to carry out, and where they put files and lines.

    Lines go to the file descriptor `lines`, one JSON object each: `{"begin": NAME}`, `{"note": TEXT}` and
    `{"check": NAME, "status": ..., "detail": ...}`. `limit_s` is how long each check may take.
    """

    names: tuple[str, ...]
    folder: Path
    limit_s: float
    lines: int
    began_s: float = field(default_factory=time.monotonic)

    def wants(self, name: str) -> bool:
        """Whether a check is to be carried out."""
        return name in self.names

    def note(self, text: str) -> None:
        """Say how far the check is: what is told of it if it hangs."""
        self._write({"note": text})

    @contextmanager
    def check(self, name: str) -> Iterator[Said]:
        """Carry out the check `name` within: it passes unless an exception leaves, which goes no further."""
        self._write({"begin": name})
        said = Said()
        try:
            yield said
        except Skipped as why:
            self._tell(name, Status.SKIPPED, str(why))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the check's outcome
            traceback.print_exc()
            sys.stderr.flush()
            self._tell(name, Status.FAILED, words_of(error))
        else:
            self._tell(name, Status.PASSED, said.detail)

    def _tell(self, name: str, status: Status, detail: str) -> None:
        self._write({"check": name, "status": str(status), "detail": detail[:MOST_DETAIL]})

    def _write(self, line: Mapping[str, str]) -> None:
        os.write(self.lines, (json.dumps(line) + "\n").encode())


def words_of(error: BaseException) -> str:
    """An error on one line; its kind where it is none of this package's."""
    from stanza_sim.base.errors import StanzaError

    text = " ".join(str(error).split())
    known = isinstance(error, StanzaError | Wrong)
    return text if known and text else f"{type(error).__name__}: {text}" if text else type(error).__name__


class Wrong(Exception):
    """Raised within a check that has found something wrong; says what."""


def require(fine: bool, what: str) -> None:
    """Raise `Wrong`, which says `what`, unless it is `fine`."""
    if not fine:
        raise Wrong(what)
