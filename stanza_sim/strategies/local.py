"""One node trains alone, the others rest: what a cluster has to beat.

Rank 0 draws `batch_per_worker` samples per iteration, holds the whole model and updates it; nothing crosses the
network. Samples per second count its batch only, whatever the number of nodes: is the cluster worth it?
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict

from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Phase, Schedule
from stanza_sim.strategies._shared.builder import Builder


class Settings(BaseModel):
    """`local` has no settings."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


def build(model: ModelProfile, *, world_size: int, batch_per_worker: int, settings: Settings) -> Schedule:
    """Return the schedule; ranks but rank 0 have nothing to do. Bytes that any rank sends per iteration: 0."""
    b = Builder("local", model, world_size, batch_per_worker)
    worker = b.group("worker", [0])
    forward = b.forward(model.blocks, worker)
    before = b.compute(Phase.LOSS, model.blocks[-1].name, worker, after=forward[-1:])
    grads_ready: dict[str, str] = {}
    for block in reversed(model.blocks):
        before = grads_ready[block.name] = b.compute(Phase.BACKWARD, block.name, worker, after=[before])
    params_ready: dict[str, list[str]] = {}
    for block in reversed(model.blocks):
        if block.tensors:
            bundle = b.bundle(block.name, block.tensors, worker)
            params_ready[block.name] = [b.compute(Phase.UPDATE, bundle.name, worker, after=[grads_ready[block.name]])]
    b.set_params_ready(params_ready)
    return b.finish()


def space(model: ModelProfile, *, world_size: int, batch_per_worker: int, local_size: int) -> Iterator[Settings]:
    """Yield every setting worth trying."""
    yield Settings()
