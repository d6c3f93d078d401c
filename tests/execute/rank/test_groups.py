"""Which process groups are made, when they are shared by jobs, and how wide NCCL's kernels may be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch.distributed as dist

from stanza_sim.base.errors import InputError
from stanza_sim.execute.rank.groups import ProcessGroups, Use
from stanza_sim.execute.rank.job import Backend
from stanza_sim.execute.rank.library import MOST_COMMUNICATORS, most_ctas
from stanza_sim.schedule import Schedule, parse


class Made:
    """A library that makes nothing, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[tuple[int, ...], int]] = []
        self.connected: list[tuple[int, int]] = []

    def new_group(self, ranks: Sequence[int], communicators: int) -> Any:
        self.asked.append((tuple(ranks), communicators))
        return object()

    def connect(self, group: object, pair: tuple[int, int]) -> None:
        self.connected.append(pair)


@pytest.fixture
def destroyed(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    found: list[object] = []
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "destroy_process_group", found.append)
    return found


def star(leaves: int) -> Schedule:
    """Rank 0 sends something to each of so many others."""
    return parse(
        f"schedule s model=m world={leaves + 1} batch=1\ngroup hub 0\ngroup leaves 1-{leaves}\n"
        "go: transfer act(b) hub->leaves fan-out nbytes=4 channel=c\n"
    )


def made_by(library: Made, world: int) -> ProcessGroups:
    return ProcessGroups(world, lambda backend: library)  # type: ignore[arg-type, return-value]


def test_blocks_of_all_communicators_fit_a_gpu_at_once() -> None:
    for multiprocessors in (20, 58, 108, 132):
        for communicators in range(2, MOST_COMMUNICATORS + 1):
            width = most_ctas(multiprocessors, communicators)
            assert width.bit_count() == 1  # NCCL rounds the channels of messages up to a power of two
            assert width == 1 or width * communicators <= multiprocessors


def test_jobs_that_use_as_many_communicators_share_them(destroyed: list[object]) -> None:
    library = Made()
    groups = made_by(library, 4)
    first = groups.prepare(star(2), Backend.NCCL)
    assert {key.ranks for key in first if key.use is Use.PAIR} == {(0, 1), (0, 2)} == set(library.connected)
    count = len(library.asked)
    assert groups.prepare(star(2), Backend.NCCL) == first
    assert len(library.asked) == count


def test_how_wide_a_kernel_is_does_not_depend_on_what_ran_before(destroyed: list[object]) -> None:
    library = Made()
    groups = made_by(library, 4)
    for leaves in (2, 3, 2, 3):
        groups.prepare(star(leaves), Backend.NCCL)
    pairs = [asked for asked in library.asked if len(asked[0]) == 2]
    assert pairs == [((0, 1), 2), ((0, 2), 2), ((0, 1), 3), ((0, 2), 3), ((0, 3), 3)]
    assert not destroyed


def test_old_communicators_go_before_streams_would_be_shared(destroyed: list[object]) -> None:
    library = Made()
    groups = made_by(library, MOST_COMMUNICATORS + 2)
    groups.prepare(star(3), Backend.NCCL)
    groups.prepare(star(MOST_COMMUNICATORS - 1), Backend.NCCL)
    assert len(destroyed) == 3
    with pytest.raises(InputError, match="33 communicators"):
        groups.prepare(star(MOST_COMMUNICATORS + 1), Backend.NCCL)
