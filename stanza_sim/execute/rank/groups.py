"""Which process groups a schedule needs, and making them: the same ones in one order at every rank."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch.distributed as dist

from stanza_sim.execute.rank.job import Backend
from stanza_sim.execute.rank.library import MOST_COMMUNICATORS, Library, require_few
from stanza_sim.schedule import Collective, Schedule, Transfer


class Use(StrEnum):
    """What a process group is for.

    `CHANNEL`: the messages of a channel, among all ranks (gloo). `PAIR`: those from one rank to another (NCCL).
    `ANNOUNCEMENTS`: the numbers of messages that are about to be sent. `COLLECTIVE`: collectives of some ranks.
    """

    CHANNEL = "channel"
    PAIR = "pair"
    ANNOUNCEMENTS = "announcements"
    COLLECTIVE = "collective"


@dataclass(frozen=True, slots=True, order=True)
class GroupKey:
    """A process group of `ranks`, in this order; `channel` is the one whose messages it carries, or empty."""

    use: Use
    ranks: tuple[int, ...]
    channel: str = ""


Groups = dict[GroupKey, dist.ProcessGroup]
"""Those that a rank is a member of."""


def group_keys(schedule: Schedule, world: Sequence[int], backend: Backend) -> set[GroupKey]:
    """Process groups that `schedule` needs in a world of the ranks `world`."""
    keys: set[GroupKey] = set()
    for op in schedule.ops:
        if isinstance(op, Collective):
            if len(ranks := tuple(schedule.group(op.ranks))) > 1:
                keys.add(GroupKey(Use.COLLECTIVE, ranks))
        elif isinstance(op, Transfer) and backend is Backend.NCCL:
            pairs = {(s, d) for s, d in schedule.pairs(op) if s != d and schedule.message_bytes(op, s, d)}
            keys.update(GroupKey(Use.PAIR, pair) for pair in pairs)
        elif isinstance(op, Transfer):
            keys.add(GroupKey(Use.CHANNEL, tuple(world), op.channel))
    if any(key.use is Use.PAIR for key in keys):
        keys.add(GroupKey(Use.ANNOUNCEMENTS, tuple(world)))
    return keys


class ProcessGroups:
    """Process groups, kept from one job to the next. All ranks must ask for the same ones.

    NCCL makes a communicator when its group is made, and both are kept: so no rank that never uses a group is missed.
    Its kernels are as wide as the number of communicators lets them be that a job uses at once, so jobs that use as
    many share them, whatever ran before. Announcements are gloo's, whatever moves the messages. `library` gives what
    moves the messages of a backend.
    """

    def __init__(self, world_size: int, library: Callable[[Backend], Library]) -> None:
        self._world = tuple(range(world_size))
        self._library = library
        self._made: dict[tuple[Backend, int, GroupKey], dist.ProcessGroup | None] = {}

    def prepare(self, schedule: Schedule, backend: Backend) -> Groups:
        """Make the groups that `schedule` needs, in one sorted order, and return those this rank is a member of.

        Raises `InputError`, at every rank alike and before any is made, if one would need too many communicators.
        """
        keys = sorted(group_keys(schedule, self._world, backend))
        of_backend = [key for key in keys if key.use is not Use.ANNOUNCEMENTS]
        communicators = busiest(of_backend)
        if backend is Backend.NCCL:
            require_few(communicators)
            kept = [(at_once, key) for by, at_once, key in self._made if by is Backend.NCCL]
            new = [key for key in of_backend if (communicators, key) not in kept]
            if busiest([*(key for _, key in kept), *new]) > MOST_COMMUNICATORS:
                self._destroy(sorted(kept))  # streams are handed out in turn: old ones would be shared
        found: Groups = {}
        for key in keys:
            by, at_once = (backend, communicators) if backend is Backend.NCCL else (Backend.GLOO, 0)
            if key.use is Use.ANNOUNCEMENTS:
                by, at_once = Backend.GLOO, 0
            if (by, at_once, key) not in self._made:
                self._made[by, at_once, key] = self._make(by, at_once, key)
            group = self._made[by, at_once, key]
            if group is not None:
                found[key] = group
        return found

    def _make(self, by: Backend, at_once: int, key: GroupKey) -> dist.ProcessGroup | None:
        """Make a group; None at a rank that is not a member."""
        library = self._library(by)
        made = library.new_group(key.ranks, at_once)
        if dist.get_rank() not in key.ranks:
            return None
        if key.use is Use.PAIR:
            library.connect(made, (key.ranks[0], key.ranks[1]))
        return made

    def _destroy(self, kept: Sequence[tuple[int, GroupKey]]) -> None:
        """Destroy groups of NCCL, at all ranks alike."""
        for at_once, key in kept:
            group = self._made.pop((Backend.NCCL, at_once, key))
            if group is not None:
                dist.destroy_process_group(group)


def busiest(keys: Iterable[GroupKey]) -> int:
    """How many of the groups the rank is a member of that is a member of most."""
    return max(Counter(rank for key in keys for rank in key.ranks).values(), default=0)
