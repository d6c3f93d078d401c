"""Intervals of time in arrays, in groups: their unions, and when two of them overlap."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


class Intervals(NamedTuple):
    """Arrays of one length, ordered by `group`, then by `start_s`; those of one group do not touch each other."""

    group: I64
    start_s: F64
    end_s: F64

    def seconds(self, groups: int) -> F64:
        """The length of each of so many groups."""
        return np.bincount(self.group, weights=self.end_s - self.start_s, minlength=groups).astype(np.float64)


def merged(group: I64, start_s: F64, end_s: F64) -> Intervals:
    """The union of the intervals of each group."""
    order = np.lexsort((start_s, group))
    group, start_s = group[order], start_s[order]
    reach = running_max(group, end_s[order])
    begins = np.ones(len(order), dtype=np.bool_)
    begins[1:] = (group[1:] != group[:-1]) | (start_s[1:] > reach[:-1])
    first = np.nonzero(begins)[0]
    last = np.append(first[1:], len(order))[: len(first)] - 1
    return Intervals(group[first], start_s[first], reach[last])


def running_max(group: I64, values: F64) -> F64:
    """The largest of `values` up to each in its group; groups are contiguous."""
    n = len(values)
    order: I64 = np.argsort(values, kind="stable")
    place = np.empty(n, dtype=np.int64)
    place[order] = np.arange(n)
    # Places of later groups are all larger, so that the largest of an earlier one counts no more.
    shift = np.zeros(n, dtype=np.int64)
    shift[1:] = n * np.cumsum(group[1:] != group[:-1])
    most: I64 = np.maximum.accumulate(place + shift) - shift
    return values[order[most]]


def common(intervals: Intervals) -> Intervals:
    """When two intervals of a group overlap, of which each is in one of two unions."""
    n = len(intervals.group)
    group = np.tile(intervals.group, 2)
    at_s = np.concatenate([intervals.start_s, intervals.end_s])
    change = np.repeat(np.array([1, -1]), n)
    order = np.lexsort((change, at_s, group))  # what ends at an instant ends before others begin
    depth = np.cumsum(change[order])
    both = np.nonzero(depth == 2)[0]
    start_s, end_s = at_s[order[both]], at_s[order[both + 1]]
    lasts = end_s > start_s
    return Intervals(group[order[both]][lasts], start_s[lasts], end_s[lasts])
