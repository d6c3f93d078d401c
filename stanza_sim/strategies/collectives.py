"""Settings of strategies that all-reduce: by which algorithm, and who carries it out."""

from __future__ import annotations

from enum import StrEnum
from typing import TypedDict

from pydantic import BaseModel, ConfigDict, Field

from stanza_sim.errors import InputError
from stanza_sim.schedule.ops import CHUNK_BYTES, Algorithm, Carrier
from stanza_sim.units import Size

SMALL_BYTES = 256 * 1024
"""Up to here `auto` takes halving_doubling, if not stated.

With a seconds and 1/b seconds per byte for a message, it saves 2(n-1) - 2 log2 p - 2 starts of a message over the ring
and, where n is no power of two, moves 2S more bytes through the ports of surplus ranks (see
`stanza_sim.schedule.collectives`). For 10 ranks, 50 us and 10 Gb/s both weigh alike at some 310 kB. For a power of
two it loses nothing where links are equal; across shared links, where it sends half of everything farthest, it does.
"""


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


class CollectiveSettings(BaseModel):
    """Settings of a strategy that all-reduces."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    algorithm: Choice = Field(
        Choice.BACKEND,
        description="ring, halving_doubling, tree or hierarchical; auto (see small); backend: the library's own.",
    )
    small: Size = Field(
        SMALL_BYTES, description="auto: halving_doubling for all-reduces of at most this size, ring for larger ones."
    )
    local: int | None = Field(
        None, ge=1, description="hierarchical: ranks per host; ranks r with the same r // local are on one host."
    )
    chunk: Size = Field(CHUNK_BYTES, description="tree, hierarchical: most bytes of one message of a pipeline.")

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
            ("small", {Choice.AUTO}),
            ("local", {Choice.HIERARCHICAL}),
            ("chunk", {Choice.TREE, Choice.HIERARCHICAL}),
        ):
            if key in given and not users & chosen and getattr(self, key) is not None:
                names = " or ".join(sorted(users))
                raise InputError(f"{key} is for {names}", where=f"{strategy}: {key}", hint=f"leave {key} out")

    def how(self, choice: Choice, nbytes: int, ranks: int) -> How:
        """How an all-reduce of `nbytes` bytes over `ranks` ranks is carried out."""
        if choice is Choice.BACKEND:
            return How(algorithm=Algorithm.RING, by=Carrier.BACKEND, local=0, chunk=CHUNK_BYTES)
        if choice is Choice.AUTO:  # two ranks exchange halves either way
            small = ranks > 2 and nbytes <= self.small
            choice = Choice.HALVING_DOUBLING if small else Choice.RING
        local = self.local or 0 if choice is Choice.HIERARCHICAL else 0
        chunk = self.chunk if choice in (Choice.TREE, Choice.HIERARCHICAL) else CHUNK_BYTES
        return How(algorithm=Algorithm(choice), by=Carrier.STEPS, local=local, chunk=chunk)
