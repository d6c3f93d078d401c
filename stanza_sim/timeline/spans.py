"""What both engines return: one span per op, rank and iteration.

Times are seconds on one clock (the executor maps every rank's clock onto rank 0's before it returns).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, overload

import numpy as np
import numpy.typing as npt

from stanza_sim.base.tables import Tabular


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """The time in which `op` was under way at `rank` in `iteration`.

    A computation's span is the time that its lane worked on it. A transfer has up to two spans at a rank:
    `side` is `sent` for what the rank sent and `recv` for what it received, from the moment that the first
    message moved (both ends posted) to the moment that the last had arrived. A collective's span begins
    when every member had joined. `side` is empty for everything but transfers.
    """

    op: str
    rank: int
    iteration: int
    lane: str
    side: str
    start_s: float
    end_s: float
    nbytes: int = 0

    @property
    def duration_s(self) -> float:
        """Length of the span in seconds."""
        return self.end_s - self.start_s


class SpanKind(NamedTuple):
    """What the spans of one op, rank and side have in common in every iteration; see `Span`."""

    op: str
    rank: int
    lane: str
    side: str
    nbytes: int


class SpanColumns(Sequence[Span]):
    """Spans in columns, which very many are quickly measured in; each becomes a `Span` when it is asked for.

    Arrays of one length: `kind`, an index into `kinds`; `iteration`; `start_s` and `end_s`, in seconds.
    """

    __slots__ = ("end_s", "iteration", "kind", "kinds", "start_s")

    def __init__(
        self,
        kinds: Sequence[SpanKind],
        kind: npt.NDArray[np.int64] | npt.NDArray[np.int32],
        iteration: npt.NDArray[np.int64] | npt.NDArray[np.int32],
        start_s: npt.NDArray[np.float64],
        end_s: npt.NDArray[np.float64],
    ) -> None:
        self.kinds, self.kind, self.iteration, self.start_s, self.end_s = kinds, kind, iteration, start_s, end_s

    @classmethod
    def of(cls, spans: Sequence[Span]) -> SpanColumns:
        """Write `spans` in columns, unless they are."""
        if isinstance(spans, SpanColumns):
            return spans
        kinds: dict[SpanKind, int] = {}
        kind = [kinds.setdefault(SpanKind(s.op, s.rank, s.lane, s.side, s.nbytes), len(kinds)) for s in spans]
        return cls(
            tuple(kinds),
            np.array(kind, dtype=np.int64),
            np.array([s.iteration for s in spans], dtype=np.int64),
            np.array([s.start_s for s in spans], dtype=np.float64),
            np.array([s.end_s for s in spans], dtype=np.float64),
        )

    def within(self, first: int, last: int) -> SpanColumns:
        """The spans of the iterations `first` .. `last`, both included."""
        return self._some((self.iteration >= first) & (self.iteration <= last))

    def where(self, kinds: npt.NDArray[np.bool_]) -> SpanColumns:
        """The spans of the kinds for which `kinds` is true."""
        return self._some(kinds[self.kind])

    def _some(self, which: npt.NDArray[np.bool_] | slice) -> SpanColumns:
        times = self.start_s[which], self.end_s[which]
        return SpanColumns(self.kinds, self.kind[which], self.iteration[which], *times)

    def rows(self) -> Iterator[tuple[int, int, float, float]]:
        """Yield kind, iteration, start and end of each."""
        columns = (self.kind, self.iteration, self.start_s, self.end_s)
        return zip(*(column.tolist() for column in columns), strict=True)

    def __len__(self) -> int:
        return len(self.kind)

    def __iter__(self) -> Iterator[Span]:
        made = [kind._asdict() for kind in self.kinds]
        return (Span(**made[k], iteration=i, start_s=a, end_s=b) for k, i, a, b in self.rows())

    @overload
    def __getitem__(self, index: int) -> Span: ...
    @overload
    def __getitem__(self, index: slice) -> SpanColumns: ...
    def __getitem__(self, index: int | slice) -> Span | SpanColumns:
        if isinstance(index, slice):
            return self._some(index)
        place = range(len(self))[index]
        (span,) = self._some(slice(place, place + 1))
        return span

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Timeline(Tabular):
    """Spans of one run, and when each rank ended each iteration.

    `iteration_end_s[rank][i]` is the last completion at `rank` in iteration `i`. A folded simulation holds
    one rank for each class of identical ranks; `multiplicity[rank]` is the size of its class (1 where absent).
    `first_iteration` is the index of the first iteration whose spans are kept.
    """

    spans: Sequence[Span]
    iteration_end_s: dict[int, tuple[float, ...]]
    multiplicity: dict[int, int] = field(default_factory=dict)
    first_iteration: int = 0

    def of(self, *, rank: int | None = None, iteration: int | None = None) -> Iterator[Span]:
        """Yield the spans of one rank, of one iteration, or of both."""
        for s in self.spans:
            if (rank is None or s.rank == rank) and (iteration is None or s.iteration == iteration):
                yield s

    def __repr__(self) -> str:
        ended = min(map(len, self.iteration_end_s.values()), default=0)
        return f"<Timeline of {len(self.spans):,} spans at {len(self.iteration_end_s):,} ranks, {ended} iterations>"

    def _columns(self) -> Mapping[str, Sequence[object]]:
        """One row for each span, in order of start; `multiplicity` is the number of ranks that it stands for."""
        spans = sorted(self.spans, key=lambda s: (s.start_s, s.rank, s.op, s.side))
        names = ("op", "rank", "iteration", "lane", "side", "start_s", "end_s", "nbytes")
        columns: dict[str, Sequence[object]] = {name: [getattr(s, name) for s in spans] for name in names}
        columns["multiplicity"] = [self.multiplicity.get(s.rank, 1) for s in spans]
        return columns
