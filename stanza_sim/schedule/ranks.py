"""A set of ranks, held as ranges so that ten thousand workers cost what four do."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from stanza_sim.base.errors import InputError

_PART = re.compile(r"([0-9]{1,18})(?:-([0-9]{1,18}))?")


@dataclass(frozen=True, slots=True)
class Ranks:
    """An ordered set of ranks: half-open, ascending, disjoint, non-adjacent `spans`.

    Iterates in ascending order; `ranks[i]` is the i-th smallest rank and `ranks.index(r)` its inverse.
    """

    spans: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, ranks: Iterable[int]) -> Ranks:
        """Build from any collection of ranks; raises `InputError` for a negative one."""
        if isinstance(ranks, range) and ranks.step == 1:
            if ranks and ranks.start < 0:
                raise InputError(f"rank {ranks.start} is negative")
            return cls(((ranks.start, ranks.stop),) if ranks else ())
        spans: list[tuple[int, int]] = []
        for r in sorted(set(ranks)):
            if r < 0:
                raise InputError(f"rank {r} is negative")
            if spans and spans[-1][1] == r:
                spans[-1] = (spans[-1][0], r + 1)
            else:
                spans.append((r, r + 1))
        return cls(tuple(spans))

    @classmethod
    def parse(cls, text: str) -> Ranks:
        """Parse the printed form, e.g. `0-8,10`; raises `InputError`."""
        parts: list[tuple[int, int]] = []
        for part in filter(None, text.split(",")):
            m = _PART.fullmatch(part)
            if m is None:
                raise InputError(f"{text!r} is not a set of ranks", hint="write it like 0-8,10")
            first, last = int(m[1]), int(m[2] or m[1])
            if last < first:
                raise InputError(f"{part!r} runs backwards", hint=f"write {last}-{first}")
            parts.append((first, last + 1))
        spans: list[tuple[int, int]] = []
        for a, b in sorted(parts):
            if spans and a <= spans[-1][1]:
                spans[-1] = (spans[-1][0], max(b, spans[-1][1]))
            else:
                spans.append((a, b))
        return cls(tuple(spans))

    def __str__(self) -> str:
        return ",".join(str(a) if b == a + 1 else f"{a}-{b - 1}" for a, b in self.spans)

    def __len__(self) -> int:
        return sum(b - a for a, b in self.spans)

    def __iter__(self) -> Iterator[int]:
        for a, b in self.spans:
            yield from range(a, b)

    def __contains__(self, rank: object) -> bool:
        if not isinstance(rank, int):
            return False
        i = bisect_right(self.spans, (rank, float("inf"))) - 1
        return i >= 0 and rank < self.spans[i][1]

    def meets(self, other: Ranks) -> bool:
        """Whether some rank is in both."""
        mine, theirs = self.spans, other.spans
        i = j = 0
        while i < len(mine) and j < len(theirs):
            if max(mine[i][0], theirs[j][0]) < min(mine[i][1], theirs[j][1]):
                return True
            if mine[i][1] < theirs[j][1]:
                i += 1
            else:
                j += 1
        return False

    def __getitem__(self, index: int) -> int:
        if index >= 0:
            for a, b in self.spans:
                if index < b - a:
                    return a + index
                index -= b - a
        raise IndexError("rank index out of range")

    def index(self, rank: int) -> int:
        """Position of `rank` in ascending order; raises `ValueError` if it is not a member."""
        before = 0
        for a, b in self.spans:
            if a <= rank < b:
                return before + rank - a
            before += b - a
        raise ValueError(f"rank {rank} is not in {self}")
