"""When a simulation has shown enough: iterations repeat, or their mean has settled."""

from __future__ import annotations

from collections.abc import Sequence

REPEATS = 1e-6
"""Iterations repeat when their lengths differ by no more than this, relatively."""
EVEN, EVEN_FROM = 1e-3, 4
"""Where iterations do not repeat, the mean has settled when two halves of so many agree by so much, relatively."""
MOST_PERIODS = 8
"""A steady state may alternate: lengths may repeat after up to so many iterations."""


def steady_window(ends: Sequence[Sequence[float]]) -> tuple[int, int] | None:
    """Return (first, last) such that iterations repeat with period last - first, or None.

    All ranks must take equally long over the period, and as long as over the period before it; iteration 0, which
    waits for nothing before it, is not counted.
    """
    last = len(ends[0]) - 1
    for period in range(1, MOST_PERIODS + 1):
        if last - 2 * period < 1:
            return None
        lengths = [e[last] - e[last - period] for e in ends]
        before = [e[last - period] - e[last - 2 * period] for e in ends]
        longest = max(lengths)
        if all(abs(x - longest) <= REPEATS * longest for x in (*lengths, *before)):
            return last - period, last
    return None


def even_window(ends: Sequence[Sequence[float]]) -> tuple[int, int] | None:
    """Return (first, last) for iterations that never quite repeat but whose mean has settled, or None.

    Many messages whose order changes from one iteration to the next lead to this. The means over the last half and the
    half before it, each of at least `EVEN_FROM` iterations, must agree within `EVEN` at every rank.
    """
    last = len(ends[0]) - 1
    half = last // 2
    if half < EVEN_FROM:
        return None
    for e in ends:
        late, early = e[last] - e[last - half], e[last - half] - e[last - 2 * half]
        if abs(late - early) > EVEN * late:
            return None
    return last - half, last


def last_period(ends: Sequence[Sequence[float]]) -> tuple[int, int]:
    """The `steady_window`, or the last iteration where they never repeat."""
    last = min(map(len, ends)) - 1
    return steady_window(ends) or (last - 1, last)
