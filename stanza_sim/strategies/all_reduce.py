"""All-reduce data parallelism: gradients are fused in buckets, reduced while the backward pass goes on.

Two rules of fusion. As PyTorch's DistributedDataParallel (Li et al., PyTorch Distributed, VLDB 2020): buckets that are
closed once they hold their size. As Horovod (Sergeev and Del Balso, Horovod: fast and easy distributed deep learning in
TensorFlow, arXiv 1802.05799, 2018): a fusion buffer of 64 MiB that takes tensors in the order in which they become
ready, as long as they fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, StrictBool

from stanza_sim.base.errors import InputError
from stanza_sim.base.units import Size
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Phase, Schedule
from stanza_sim.strategies._shared.builder import MIB, Builder
from stanza_sim.strategies._shared.collectives import Choice, CollectiveSettings
from stanza_sim.strategies._shared.exchange import exchange_by_all_reduce

BUCKETS_MIB = (1, 2, 4, 8, 16, 25, 50, 100)
"""Sizes of buckets that are tried."""


class Settings(CollectiveSettings):
    """Settings of `all_reduce`."""

    fusion: Literal["ddp", "horovod"] = Field(
        "ddp",
        description="ddp: a bucket is closed once it holds its size; horovod: before it would exceed the buffer.",
    )
    first_bucket: Size = Field(MIB, description="ddp: size at which the first bucket is closed.")
    bucket: Size = Field(25 * MIB, description="ddp: size at which every other bucket is closed.")
    buffer: Size = Field(64 * MIB, description="horovod: most bytes that are fused; a larger tensor goes alone.")
    overlap: StrictBool = Field(
        True, description="Reduce a bucket as soon as it is full, or all after the backward pass."
    )


def build(model: ModelProfile, *, world_size: int, batch_per_worker: int, settings: Settings) -> Schedule:
    """Return the schedule; raises `InputError` for settings that do not fit each other.

    Bytes that each rank sends per iteration by a ring: 2(N-1)/N*S, S the model's bytes, however they are fused.

    Horovod fuses what is ready whenever a cycle (1 ms, as shipped) is over. Cycles are not modelled: here a buffer is
    reduced once it is full, or the last gradient is there: all goes in as few pieces as the buffer allows.
    """
    settings.require_used("all_reduce")
    _require_fusion_used(settings)
    b = Builder("all_reduce", model, world_size, batch_per_worker)
    workers = b.group("worker", range(world_size))
    forward = b.forward(model.blocks, workers)
    before = b.compute(Phase.LOSS, model.blocks[-1].name, workers, after=forward[-1:])
    grads_ready: dict[str, str] = {}
    for block in reversed(model.blocks):
        before = grads_ready[block.name] = b.compute(Phase.BACKWARD, block.name, workers, after=[before])
    if not settings.overlap:
        grads_ready = dict.fromkeys(grads_ready, before)
    params_ready: dict[str, list[str]] = {}
    exchange_by_all_reduce(
        b,
        model.blocks,
        workers,
        prefix="bucket",
        first_bytes=settings.first_bucket,
        cap_bytes=settings.bucket,
        settings=settings,
        algorithm=settings.algorithm,
        grads_ready=grads_ready,
        params_ready=params_ready,
        fits=settings.buffer if settings.fusion == "horovod" else None,
    )
    b.set_params_ready(params_ready)
    return b.finish()


def _require_fusion_used(settings: Settings) -> None:
    """Raise `InputError` for a size of the rule of fusion that is not chosen."""
    for key, rule in (("first_bucket", "ddp"), ("bucket", "ddp"), ("buffer", "horovod")):
        if key in settings.model_fields_set and settings.fusion != rule:
            raise InputError(
                f"{key} is for fusion: {rule}",
                where=f"all_reduce: {key}",
                hint=f"leave {key} out, or set fusion: {rule}",
            )


def space(model: ModelProfile, *, world_size: int, batch_per_worker: int, local_size: int) -> Iterator[Settings]:
    """Yield every algorithm with every size of bucket, Horovod's fusion, and all at once; the default first.

    Without overlap nothing can be won, so it is not tried; nor is a ring by steps, which moves what the default moves.
    Algorithms for small sizes get every third size of bucket.
    """
    del batch_per_worker  # what fits does not depend on it
    yield Settings()
    algorithms: list[dict[str, object]] = [{}]
    if world_size > 1:
        algorithms += [{"algorithm": a} for a in (Choice.AUTO, Choice.HALVING_DOUBLING, Choice.TREE)]
        if 1 < local_size < world_size:
            algorithms.append({"algorithm": Choice.HIERARCHICAL, "local": local_size})
    whole = 1 + model.nbytes // MIB  # one bucket holds all
    sizes = [size for size in BUCKETS_MIB if size < whole]
    for chosen in algorithms:
        ring = chosen.get("algorithm", Choice.AUTO) is Choice.AUTO
        for size in sizes if ring else sizes[::3]:
            made = Settings.model_validate({"bucket": f"{size}MiB", **chosen})
            if made != Settings():
                yield made
        yield Settings.model_validate({"first_bucket": f"{whole}MiB", "bucket": f"{whole}MiB", **chosen})
        yield Settings.model_validate({"fusion": "horovod", **chosen})
