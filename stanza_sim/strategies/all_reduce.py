"""All-reduce data parallelism as PyTorch's DistributedDataParallel does it: buckets, overlapped with backward.

Source: Li et al., PyTorch Distributed, VLDB 2020.
"""

from __future__ import annotations

from pydantic import Field

from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Phase, Schedule
from stanza_sim.strategies.builder import MIB, Builder, exchange_by_all_reduce
from stanza_sim.strategies.collectives import CollectiveSettings
from stanza_sim.units import Size


class Settings(CollectiveSettings):
    """Settings of `all_reduce`."""

    first_bucket: Size = Field(MIB, description="Size at which the first bucket is closed.")
    bucket: Size = Field(25 * MIB, description="Size at which every other bucket is closed.")
    overlap: bool = Field(True, description="Reduce a bucket as soon as it is full, or all after the backward pass.")


def build(model: ModelProfile, *, world_size: int, batch_per_worker: int, settings: Settings) -> Schedule:
    """Return the schedule; raises `InputError` for settings that do not fit each other.

    Bytes that each rank sends per iteration by a ring: 2(N-1)/N*S, S the model's bytes.
    """
    settings.require_used("all_reduce")
    b = Builder("all_reduce", model, world_size, batch_per_worker)
    workers = b.group("worker", range(world_size))
    forward = b.forward(model.blocks, workers)
    before = b.compute(Phase.LOSS, model.blocks[-1].name, workers, after=forward[-1:])
    ready: dict[str, str] = {}
    for block in reversed(model.blocks):
        before = ready[block.name] = b.compute(Phase.BACKWARD, block.name, workers, after=[before])
    if not settings.overlap:
        ready = dict.fromkeys(ready, before)
    fresh: dict[str, list[str]] = {}
    exchange_by_all_reduce(
        b,
        model.blocks,
        workers,
        prefix="bucket",
        first_bytes=settings.first_bucket,
        cap_bytes=settings.bucket,
        settings=settings,
        algorithm=settings.algorithm,
        ready=ready,
        fresh=fresh,
    )
    b.set_fresh(fresh)
    return b.finish()
