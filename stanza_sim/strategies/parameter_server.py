"""Parameter servers: every worker trains the whole model, servers hold it.

Sources: Li et al., OSDI 2014 (parameter server); Zhang et al., ATC 2017 (wait-free backpropagation: a layer's
gradients leave while the layers before it still compute).
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from stanza_sim.errors import InputError
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Phase, Schedule
from stanza_sim.strategies.builder import Builder, exchange_by_servers


class Settings(BaseModel):
    """Settings of `parameter_server`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    servers: int | None = Field(
        None, ge=1, description="How many servers; default: 1 dedicated, or every node when co-located."
    )
    placement: Literal["dedicated", "colocated"] = Field(
        "dedicated", description="Servers on nodes of their own, or as shards beside the workers."
    )
    assignment: Literal["balanced", "cut"] = Field(
        "balanced", description="Whole tensors balanced by bytes, or every block cut evenly over all servers."
    )
    overlap: bool = Field(
        True, description="Push each block when its backward pass is done (wait-free), or push all, then pull all."
    )


def build(model: ModelProfile, *, world_size: int, batch_per_worker: int, settings: Settings) -> Schedule:
    """Return the schedule; raises `InputError` where there are more servers than the nodes allow.

    Bytes through one dedicated server's NIC per iteration: W*S each way (S model bytes, W workers); through a
    co-located shard's: 2(N-1)/N*S each way.
    """
    b = Builder("parameter_server", model, world_size, batch_per_worker)
    colocated = settings.placement == "colocated"
    k = settings.servers or (world_size if colocated else 1)
    workers_count = world_size if colocated else world_size - k
    if k > world_size or workers_count < 1:
        raise InputError(
            f"{k} {settings.placement} servers leave {max(workers_count, 0)} workers of {world_size} nodes",
            where="parameter_server: servers",
            hint=f"use at most {world_size if colocated else world_size - 1} servers, or more nodes",
        )
    workers = b.group("worker", range(workers_count))
    servers = b.group("server", range(k) if colocated else range(workers_count, world_size))
    forward = b.forward(model.blocks, workers)
    before = b.compute(Phase.LOSS, model.blocks[-1].name, workers, after=forward[-1:])
    ready: dict[str, str] = {}
    for block in reversed(model.blocks):
        before = ready[block.name] = b.compute(Phase.BACKWARD, block.name, workers, after=[before])
    fresh: dict[str, list[str]] = {}
    exchange_by_servers(
        b,
        model.blocks,
        workers,
        servers,
        cut=settings.assignment == "cut",
        overlap=settings.overlap,
        lane="server" if colocated else "main",
        ready=ready,
        fresh=fresh,
    )
    b.set_fresh(fresh)
    return b.finish()
