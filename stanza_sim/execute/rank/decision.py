"""What each rank tells of itself when it joins, and what all of them then hold to: which GPUs, which backend.

`stanza_sim.execute.start.decision.decide` makes the one of the other. No torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from stanza_sim.base.errors import InputError
from stanza_sim.execute.rank.devices import GpuInfo
from stanza_sim.execute.rank.job import Backend


@dataclass(frozen=True, slots=True, kw_only=True)
class RankFacts:
    """What a rank finds where it runs. `kind` is what it was started for, `cpu` or `cuda`; `gpus` are all it sees.

    `machine` tells machines apart whose hosts have one name (see `clock.boot_id`); `nccl` is whether its torch has it.
    """

    host: str
    machine: str
    local_rank: int
    kind: str
    gpus: tuple[GpuInfo, ...] = ()
    nccl: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """Where the topology puts a rank: its host and device by number (None: the host's cores), the device's name."""

    host: int
    device: int | None
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What all ranks of a world hold to.

    `gpus[r]` is the GPU of rank r, None on cores; `shared` are the groups of ranks that have one GPU together.
    NCCL can be used where `nccl`; `why_not` and `hint` say why it cannot, and what would be right.
    """

    gpus: tuple[GpuInfo | None, ...] = ()
    shared: tuple[tuple[int, ...], ...] = ()
    nccl: bool = False
    why_not: str = "ranks compute on cores"
    hint: str = "use backend: gloo, or auto"

    def gpu(self, rank: int) -> GpuInfo | None:
        """The GPU of `rank`; None if it computes on cores."""
        return self.gpus[rank] if self.gpus else None

    def sharing(self, rank: int) -> tuple[int, ...]:
        """The ranks that compute on the device of `rank`, itself among them; () where it has no GPU."""
        if self.gpu(rank) is None:
            return ()
        return next((group for group in self.shared if rank in group), (rank,))

    def backend(self, wanted: Backend) -> Backend:
        """The backend to use where `wanted` is asked for. Raises `InputError`, the same at all ranks."""
        if wanted is Backend.NCCL and not self.nccl:
            raise InputError(
                f"backend nccl needs a GPU of its own for each rank: {self.why_not}", where="--execute", hint=self.hint
            )
        if wanted is not Backend.AUTO:
            return wanted
        return Backend.NCCL if self.nccl else Backend.GLOO
