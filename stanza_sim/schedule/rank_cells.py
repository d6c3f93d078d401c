"""Ranks in parts that behave alike, so that what holds at every rank can be proved at a few."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

from stanza_sim.schedule.ops import Collective, Op, Pattern, Transfer
from stanza_sim.schedule.ranks import Ranks
from stanza_sim.schedule.schedule import Schedule

Span = tuple[int, int]
"""First rank, and the rank behind the last."""


def bits(mask: int) -> Iterator[int]:
    """Yield the positions of the bits that are set in `mask`, lowest first."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """Which cells send to which in a transfer; masks have bit a for cell a.

    `sources` and `writers`, by destination, are None where every source sends to every destination. A writer is a
    source that sends a message; a local pair writes nothing.
    """

    src: int
    dst: int
    sources: Mapping[int, int] | None = None
    writers: Mapping[int, int] | None = None


class RankCells:
    """A partition of the ranks of `schedule`: ranks of one cell are in exactly the same groups and roots.

    A cell of several ranks is split into its first rank and the others: what the first knows of the others is
    then told apart from what it knows of itself, and as any of them could have been the first, a rule that holds
    for the first holds for all. Where a transfer does not send from every source to every destination, ranks are
    not alike; with `pairwise` every rank of such a transfer is a cell. Without, such transfers are taken at the
    level of cells: leniently, as if each rank of a cell met its own partners only.
    """

    def __init__(self, schedule: Schedule, *, pairwise: bool) -> None:
        self._schedule = schedule
        ends = [_ends(schedule, op) for op in schedule.ops]
        spans = _split(_refine(schedule.world_size, *_told_apart(schedule, ends, pairwise=pairwise)))
        self.first = {cell: start for start, _, cell in reversed(spans)}
        """The lowest rank of each cell."""
        self.count = len(self.first)
        self.single = _single(spans)
        """Mask of the cells that are one rank."""
        self._starts = [start for start, _, _ in spans]
        self._cells = [cell for _, _, cell in spans]
        self._masks: dict[Ranks, int] = {}
        self._links: dict[tuple[object, ...], Links] = {}
        self.gated = [self.mask(src) for src, _ in ends]
        """For each op, the cells at which its dependencies gate it."""
        self.completes = [self.mask(dst) for _, dst in ends]
        """For each op, the cells at which it makes or brings what it is there for."""

    def of_rank(self, rank: int) -> int:
        """The cell that `rank` is in."""
        return self._cells[bisect_right(self._starts, rank) - 1]

    def mask(self, ranks: Ranks) -> int:
        """The cells that make up `ranks`, which must be a union of cells, e.g. of groups."""
        if ranks not in self._masks:
            found = {
                cell
                for start, stop in ranks.spans
                for cell in self._cells[bisect_right(self._starts, start) - 1 : bisect_right(self._starts, stop - 1)]
            }
            self._masks[ranks] = sum(1 << cell for cell in found)
        return self._masks[ranks]

    def group(self, name: str) -> int:
        """The cells of the group `name`."""
        return self.mask(self._schedule.group(name))

    def links(self, i: int) -> Links:
        """Which cells send to which in op `i`, a transfer."""
        op, src, dst = self._schedule.ops[i], self.gated[i], self.completes[i]
        if not isinstance(op, Transfer) or _complete(op, *_ends(self._schedule, op)):
            return Links(src=src, dst=dst)
        key = (op.src, op.dst, op.pattern, op.pairs)
        if key not in self._links:
            sources: dict[int, int] = {}
            writers = dict.fromkeys(bits(dst), 0)
            for s, d in self._schedule.pairs(op):
                a, b = self.of_rank(s), self.of_rank(d)
                sources[b] = sources.get(b, 0) | 1 << a
                if s != d:
                    writers[b] |= 1 << a
            self._links[key] = Links(src=src, dst=dst, sources=sources, writers=writers)
        return self._links[key]

    def written(self, i: int) -> int:
        """Cells at which op `i`, a transfer, writes something: those that receive more than from themselves."""
        links = self.links(i)
        if links.writers is not None:
            return sum(1 << a for a, src in links.writers.items() if src)
        alone = links.src if links.src & self.single and links.src.bit_count() == 1 else 0
        return links.dst & ~alone


def _ends(schedule: Schedule, op: Op) -> tuple[Ranks, Ranks]:
    """Ranks at which `op` starts and at which it completes; pairs given one by one may leave out some of a group."""
    if not isinstance(op, Transfer):
        at = schedule.group(op.ranks)
        return at, at
    if op.pattern is Pattern.EXPLICIT:
        return Ranks.of(a for a, _ in op.pairs), Ranks.of(b for _, b in op.pairs)
    return schedule.group(op.src), schedule.group(op.dst)


def _complete(op: Transfer, src: Ranks, dst: Ranks) -> bool:
    """Whether every source of `op` sends to every destination."""
    if op.pattern in (Pattern.FAN_IN, Pattern.FAN_OUT, Pattern.ALL_PAIRS):
        return True
    n, k = len(src), len(dst)
    return n * k == len(op.pairs) if op.pattern is Pattern.EXPLICIT else min(n, k) == 1


# ---- refinement ------------------------------------------------------------------------------------------------------


def _told_apart(
    schedule: Schedule, ends: Sequence[tuple[Ranks, Ranks]], *, pairwise: bool
) -> tuple[list[Ranks], set[int]]:
    """Sets of ranks that are alike as far as each set goes, and the ranks that are like no other.

    `ends` are the ranks at which each op starts and completes.
    """
    alike = [g.ranks for g in schedule.groups]
    alone: set[int] = set()
    for op, both in zip(schedule.ops, ends, strict=True):
        if isinstance(op, Collective) and op.root is not None:
            alone.add(op.root)
        if isinstance(op, Transfer):
            if op.pattern is Pattern.EXPLICIT:
                alike += both
            if pairwise and not _complete(op, *both):
                alone.update(*both)
    return alike, alone


def _refine(world_size: int, alike: Sequence[Ranks], alone: Set[int]) -> list[list[Span]]:
    """The spans of ranks that are in exactly the same sets of `alike`; each rank of `alone` by itself."""
    cuts = sorted(
        {0, world_size}
        | {end for ranks in alike for span in ranks.spans for end in span}
        | {end for r in alone for end in (r, r + 1)}
    )
    place = {start: k for k, start in enumerate(cuts)}
    member: list[list[int]] = [[] for _ in cuts[1:]]
    for number, ranks in enumerate(dict.fromkeys(alike)):
        for start, stop in ranks.spans:
            for k in range(place[start], place[stop]):
                member[k].append(number)
    for r in alone:
        member[place[r]].append(-1 - r)
    parts: dict[tuple[int, ...], list[Span]] = {}
    for k, numbers in enumerate(member):
        parts.setdefault(tuple(numbers), []).append((cuts[k], cuts[k + 1]))
    return list(parts.values())


def _split(parts: Iterable[Sequence[Span]]) -> list[tuple[int, int, int]]:
    """(First rank, rank behind the last, cell) of every span, in order: of each part its first rank, and the others."""
    spans: list[tuple[int, int, int]] = []
    count = 0
    for (start, stop), *more in parts:
        spans.append((start, start + 1, count))
        count += 1
        others = [(start + 1, stop), *more] if stop > start + 1 else more
        if others:
            spans += [(*span, count) for span in others]
            count += 1
    return sorted(spans)


def _single(spans: Iterable[tuple[int, int, int]]) -> int:
    """The mask of the cells that are one rank."""
    size: Counter[int] = Counter()
    for start, stop, cell in spans:
        size[cell] += stop - start
    return sum(1 << cell for cell, ranks in size.items() if ranks == 1)
