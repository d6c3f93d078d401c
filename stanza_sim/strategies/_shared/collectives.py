"""Settings of strategies that all-reduce: by which algorithm, and who carries it out."""

from __future__ import annotations

from enum import StrEnum
from math import ceil, log2
from typing import TypedDict

from pydantic import BaseModel, ConfigDict, Field, StrictInt

from stanza_sim.base.errors import InputError
from stanza_sim.base.units import Size
from stanza_sim.schedule.ops import CHUNK_BYTES, Algorithm, Carrier

START_BYTES = 64 * 1024
"""What moves while a message is started, if not stated: some 50 us at 10 Gb/s."""

GAIN = 0.05
"""`auto` leaves the ring only for what saves more than this: a ring crosses each shared link but once each way."""


class Choice(StrEnum):
    """An algorithm by name; `auto` by size and number of ranks; `backend`, the library's own collective."""

    BACKEND = "backend"
    AUTO = "auto"
    RING = "ring"
    HALVING_DOUBLING = "halving_doubling"
    TREE = "tree"
    HIERARCHICAL = "hierarchical"


class How(TypedDict):
    """The fields of a `Collective` that say how it is carried out."""

    algorithm: Algorithm
    by: Carrier
    local: int
    chunk: int


def all_reduce_costs(nbytes: int, ranks: int, *, start: float, local: int = 1) -> dict[Algorithm, float]:
    """What an all-reduce of S = `nbytes` bytes over n = `ranks` ranks costs by each algorithm, in bytes moved.

    A step of s bytes costs a + s b seconds (Thakur, Rabenseifner, Gropp: Optimization of Collective Communication
    Operations in MPICH, IJHPCA 2005); divided by b it is `start` + s, with `start` = a / b. Steps and bytes are those
    of `stanza_sim.schedule.collectives`: with p the greatest power of two that is at most n,

        ring                2(n-1) start + 2(n-1)/n S
        halving_doubling    2 log2 p start + 2(p-1)/p S, and 2 start + 2 S more where n is not p
        tree                (2d + C-1) start + (4d + 3(C-1)) S/C, of depth d, in C chunks: a port carries two, then
                            three (two with at most 5 ranks, of which none is inside the tree)
        hierarchical        2(h-1) start + 2(h-1)/h S, over h hosts

    With `local` ranks on each host, steps inside a host are taken to cost nothing beside those across, and the ranks of
    a host to share its port: in a ring one of them sends across, in halving_doubling and tree they all may, so their
    bytes count `local` times. The hierarchy is there only for several ranks on each of several hosts.
    """
    power = 1 << (ranks.bit_length() - 1)
    depth, chunks, carried = ranks.bit_length() - 1, max(1, ceil(nbytes / CHUNK_BYTES)), 3 if ranks > 5 else 2
    surplus = int(power < ranks)
    hosts, sharing = ceil(ranks / local), min(local, ranks)
    halving_bytes = (2 * (power - 1) / power + 2 * surplus) * nbytes
    tree_bytes = (4 * depth + carried * (chunks - 1)) * nbytes / chunks
    found = {
        Algorithm.RING: 2 * (ranks - 1) * start + 2 * (ranks - 1) / ranks * nbytes,
        Algorithm.HALVING_DOUBLING: (2 * log2(power) + 2 * surplus) * start + halving_bytes * sharing,
        Algorithm.TREE: (2 * depth + chunks - 1) * start + tree_bytes * sharing,
    }
    if local > 1 and hosts > 1:
        found[Algorithm.HIERARCHICAL] = 2 * (hosts - 1) * start + 2 * (hosts - 1) / hosts * nbytes
    return found


def cheapest(nbytes: int, ranks: int, *, start: float, local: int = 1) -> Algorithm:
    """The algorithm of the least cost (see `all_reduce_costs`); a ring unless another saves more than `GAIN`.

    Where ranks of a host share its port, and the hierarchy is there, that takes the place of the ring. Two ranks
    exchange halves in any case.
    """
    if ranks <= 2:
        return Algorithm.RING
    costs = all_reduce_costs(nbytes, ranks, start=start, local=local)
    usual = Algorithm.HIERARCHICAL if Algorithm.HIERARCHICAL in costs else Algorithm.RING
    best = min(costs, key=lambda a: costs[a])
    return best if costs[best] < (1 - GAIN) * costs[usual] else usual


class CollectiveSettings(BaseModel):
    """Settings of a strategy that all-reduces."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    algorithm: Choice = Field(
        Choice.BACKEND,
        description="ring, halving_doubling, tree or hierarchical; auto, by size; backend: the library's own.",
    )
    start: Size = Field(
        START_BYTES,
        description="auto: bytes that move while a message is started (latency times rate): the more, the larger are "
        "the all-reduces for which few steps count for more than few bytes.",
    )
    local: StrictInt | None = Field(
        None, ge=1, description="hierarchical, auto: ranks per host; ranks r with the same r // local are on one host."
    )
    chunk: Size = Field(
        CHUNK_BYTES,
        ge=8,
        description="tree, hierarchical: most bytes of one message of a pipeline; 8 bytes or more.",
    )

    def choices(self) -> dict[str, Choice]:
        """Every choice of an algorithm in these settings, by key."""
        return {key: value for key in type(self).model_fields if isinstance(value := getattr(self, key), Choice)}

    def require_used(self, strategy: str) -> None:
        """Raise `InputError` for a setting that no chosen algorithm uses, and for a hierarchy without `local`."""
        chosen, given = set(self.choices().values()), self.model_fields_set
        if Choice.HIERARCHICAL in chosen and self.local is None:
            hint = "set local to the number of ranks on each host"
            raise InputError("hierarchical needs local", where=f"{strategy}: local", hint=hint)
        for key, users in (
            ("start", {Choice.AUTO}),
            ("local", {Choice.AUTO, Choice.HIERARCHICAL}),
            ("chunk", {Choice.TREE, Choice.HIERARCHICAL}),
        ):
            if key in given and not users & chosen and getattr(self, key) is not None:
                names = " or ".join(sorted(users))
                raise InputError(f"{key} is for {names}", where=f"{strategy}: {key}", hint=f"leave {key} out")

    def how(self, choice: Choice, nbytes: int, ranks: int) -> How:
        """How an all-reduce of `nbytes` bytes over `ranks` ranks is carried out."""
        if choice is Choice.BACKEND:
            return How(algorithm=Algorithm.RING, by=Carrier.BACKEND, local=0, chunk=CHUNK_BYTES)
        if choice is Choice.AUTO:
            choice = Choice(cheapest(nbytes, ranks, start=self.start, local=self.local or 1))
        if choice is Choice.HIERARCHICAL and self.local == 1:  # one rank a host: the ring across hosts is all of it
            choice = Choice.RING
        local = (self.local or 0) if choice is Choice.HIERARCHICAL else 0
        chunk = self.chunk if choice in (Choice.TREE, Choice.HIERARCHICAL) else CHUNK_BYTES
        return How(algorithm=Algorithm(choice), by=Carrier.STEPS, local=local, chunk=chunk)
