"""The phases that collectives are made of: messages between two ranks, numbered by step.

Each function appends its messages to `out`, from step `at` on, and returns the step after its last. `members` are ranks
in order; `blocks[i]` are the elements [lo, hi) of member i, ascending and without gaps. Messages without elements
are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import ceil

from stanza_sim.schedule.ops import slice_bounds

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Step:
    """One message of step `step`: elements [lo, hi) from rank `src` to `dst`, which adds them to its own or keeps them.

    A rank does its steps in ascending order; within one it sends and receives at once, and goes on when both are
    done. What it sends and what it receives in one step never overlap.
    """

    step: int
    src: int
    dst: int
    lo: int
    hi: int
    reduce: bool


Out = list[Step]


def even_blocks(lo: int, hi: int, pieces: int) -> list[Range]:
    """[lo, hi) in `pieces` blocks, as `slice_bounds` cuts: the last ones may be short or empty."""
    return [(lo + a, lo + b) for a, b in (slice_bounds(hi - lo, pieces, i) for i in range(pieces))]


def chunks_of(lo: int, hi: int, chunk: int) -> list[Range]:
    """[lo, hi) in as few chunks of nearly one size as there are with at most `chunk` elements in each."""
    return even_blocks(lo, hi, max(1, ceil((hi - lo) / chunk)))


def _put(out: Out, step: int, src: int, dst: int, what: Range, *, reduce: bool = False) -> None:
    if what[0] < what[1]:
        out.append(Step(step, src, dst, *what, reduce))


def exchange(
    out: Out, at: int, pairs: Sequence[tuple[int, int]], what: Sequence[Sequence[Range]], *, reduce: bool
) -> int:
    """Each pair (source, destination) moves its ranges, all in one step; no step where there are no pairs."""
    for (src, dst), ranges in zip(pairs, what, strict=True):
        for one in ranges:
            _put(out, at, src, dst, one, reduce=reduce)
    return at + bool(pairs)


# ---- ring ----------------------------------------------------------------------------------------------------------


def ring_reduce_scatter(out: Out, at: int, members: Sequence[int], blocks: Sequence[Range]) -> int:
    """n-1 steps; block k is summed on its way from member k+1 round to member k."""
    n = len(members)
    for s in range(n - 1):
        for i in range(n):
            _put(out, at + s, members[i], members[(i + 1) % n], blocks[(i - s - 1) % n], reduce=True)
    return at + n - 1


def ring_all_gather(out: Out, at: int, members: Sequence[int], blocks: Sequence[Range]) -> int:
    """n-1 steps; block k goes from member k round to member k-1."""
    n = len(members)
    for s in range(n - 1):
        for i in range(n):
            _put(out, at + s, members[i], members[(i + 1) % n], blocks[(i - s) % n])
    return at + n - 1


def chain_broadcast(out: Out, at: int, members: Sequence[int], chunks: Sequence[Range]) -> int:
    """From the first member to the second and so on, chunk by chunk: n-1 + chunks-1 steps."""
    n = len(members)
    for c, chunk in enumerate(chunks):
        for i in range(n - 1):
            _put(out, at + c + i, members[i], members[i + 1], chunk)
    return at + (n + len(chunks) - 2 if n > 1 else 0)


# ---- recursive halving and doubling, for a power of two ------------------------------------------------------------


def _span(blocks: Sequence[Range], first: int, count: int) -> Range:
    return blocks[first][0], blocks[first + count - 1][1]


def halving(out: Out, at: int, members: Sequence[int], blocks: Sequence[Range]) -> int:
    """Reduce-scatter in log2 n steps: partners at half the distance each time keep one half of what they share."""
    d = len(members) // 2
    while d:
        for j, rank in enumerate(members):
            theirs = (j ^ d) // d * d
            _put(out, at, rank, members[j ^ d], _span(blocks, theirs, d), reduce=True)
        at, d = at + 1, d // 2
    return at


def doubling(out: Out, at: int, members: Sequence[int], blocks: Sequence[Range]) -> int:
    """All-gather in log2 n steps: partners at twice the distance each time give each other all that they have."""
    d = 1
    while d < len(members):
        for j, rank in enumerate(members):
            _put(out, at, rank, members[j ^ d], _span(blocks, j // d * d, d))
        at, d = at + 1, d * 2
    return at


def scatter(out: Out, at: int, members: Sequence[int], blocks: Sequence[Range]) -> int:
    """From the first member, along a binomial tree, in log2 n steps."""
    d = len(members) // 2
    while d:
        for j in range(0, len(members), 2 * d):
            _put(out, at, members[j], members[j + d], _span(blocks, j + d, d))
        at, d = at + 1, d // 2
    return at


# ---- tree ----------------------------------------------------------------------------------------------------------


class Passing(StrEnum):
    """What of each chunk passes over an edge of a tree: all, or what is within or outside the child's subtree."""

    ALL = "all"
    WITHIN = "within"
    OUTSIDE = "outside"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """A balanced binary tree over n members, in order: every subtree is a contiguous run [first, last) of them.

    `parent[root]` is -1; `depth` is that of the deepest leaf, ceil(log2(n + 1)) - 1.
    """

    root: int
    parent: tuple[int, ...]
    level: tuple[int, ...]
    runs: tuple[Range, ...]
    depth: int

    @classmethod
    def of(cls, n: int) -> Tree:
        """The tree over n members; its root is member n // 2."""
        parent, level, runs = [-1] * n, [0] * n, [(0, n)] * n
        open_ = [(0, n, -1, 0)]
        while open_:
            first, last, above, depth = open_.pop()
            middle = (first + last) // 2
            parent[middle], level[middle], runs[middle] = above, depth, (first, last)
            open_ += [(a, b, middle, depth + 1) for a, b in ((first, middle), (middle + 1, last)) if a < b]
        return cls(root=n // 2, parent=tuple(parent), level=tuple(level), runs=tuple(runs), depth=max(level))

    def edge(self, child: int, chunk: Range, part: Passing, blocks: Sequence[Range]) -> list[Range]:
        """What of `chunk` passes between `child` and its parent."""
        if part is Passing.ALL:
            return [chunk]
        first, last = self.runs[child]
        lo, hi = blocks[first][0], blocks[last - 1][1]
        if part is Passing.WITHIN:
            return [(max(chunk[0], lo), min(chunk[1], hi))]
        return [(chunk[0], min(chunk[1], lo)), (max(chunk[0], hi), chunk[1])]


def tree_up(
    out: Out,
    at: int,
    members: Sequence[int],
    chunks: Sequence[Range],
    *,
    reduce: bool,
    part: Passing = Passing.ALL,
    blocks: Sequence[Range] = (),
) -> int:
    """Chunk by chunk to the root, member n // 2: depth + chunks-1 steps."""
    tree = Tree.of(len(members))
    for c, chunk in enumerate(chunks):
        for i, above in enumerate(tree.parent):
            for one in tree.edge(i, chunk, part, blocks) if above >= 0 else ():
                _put(out, at + c + tree.depth - tree.level[i], members[i], members[above], one, reduce=reduce)
    return at + (tree.depth + len(chunks) - 1 if tree.depth else 0)


def tree_down(
    out: Out,
    at: int,
    members: Sequence[int],
    chunks: Sequence[Range],
    *,
    part: Passing = Passing.ALL,
    blocks: Sequence[Range] = (),
) -> int:
    """Chunk by chunk from the root, member n // 2: depth + chunks-1 steps."""
    tree = Tree.of(len(members))
    for c, chunk in enumerate(chunks):
        for i, above in enumerate(tree.parent):
            for one in tree.edge(i, chunk, part, blocks) if above >= 0 else ():
                _put(out, at + c + tree.level[above], members[above], members[i], one)
    return at + (tree.depth + len(chunks) - 1 if tree.depth else 0)


def tree_through(
    out: Out,
    at: int,
    members: Sequence[int],
    chunks: Sequence[Range],
    *,
    reduce: bool,
    up: Passing = Passing.ALL,
    down: Passing = Passing.ALL,
    blocks: Sequence[Range] = (),
) -> int:
    """Up, and down again as soon as a chunk is at the root: 2 depth + chunks-1 steps."""
    tree_up(out, at, members, chunks, reduce=reduce, part=up, blocks=blocks)
    return tree_down(out, at + Tree.of(len(members)).depth, members, chunks, part=down, blocks=blocks)
