"""Stanza: layer separation. Most nodes train the CONV part, a few train the FC part (arXiv 1812.10624).

CONV workers send the activations at the boundary, with labels, to the FC worker that serves them and get back
the activations' gradients; FC gradients and parameters stay on the FC workers. Input gradients are computed and
sent before the FC weight gradients, so that CONV workers wait as little as they can.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from stanza_sim.errors import InputError
from stanza_sim.model.profile import Block, ModelProfile
from stanza_sim.schedule import Phase, Schedule, Wire
from stanza_sim.strategies.builder import MIB, Builder, exchange_by_all_reduce, exchange_by_servers
from stanza_sim.strategies.collectives import Choice, CollectiveSettings
from stanza_sim.strategies.separation import Separation, back_through_conv, cut_at, places, separate
from stanza_sim.units import Size


class Settings(CollectiveSettings):
    """Settings of `stanza`; `algorithm` is that of the CONV part's all-reduce."""

    fc_algorithm: Choice = Field(Choice.BACKEND, description="algorithm, for the all-reduce among several FC workers.")
    fc_workers: int = Field(1, ge=1, description="Nodes that train the FC part, each for its share of CONV workers.")
    placement: Literal["dedicated", "colocated"] = Field(
        "dedicated",
        description="FC workers on nodes of their own, or beside CONV workers: then every node is a CONV worker.",
    )
    cut: str | None = Field(
        None, description="Block that begins the FC part, for this strategy only; default: the model's boundary."
    )
    microbatches: int = Field(
        1, ge=1, description="Parts of each batch: the CONV part computes one while the FC part computes another."
    )
    eager_backward: int = Field(
        0,
        ge=0,
        description="So many micro-batches go backward through the CONV part one by one, the others block by block.",
    )
    fc_compute: Literal["batch", "arrival"] = Field(
        "batch",
        description="An FC worker computes on all samples of its CONV workers at once, or on those of one at a time.",
    )
    activations: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="Activations and their gradients travel as they are, or rounded to bfloat16: half the bytes.",
    )
    conv_exchange: Literal["all_reduce", "parameter_server"] = Field(
        "all_reduce", description="How CONV gradients are exchanged."
    )
    conv_servers: Literal["fc", "sharded", "single"] = Field(
        "fc",
        description="Parameter servers of the CONV part: on the FC workers, a shard beside every CONV worker, or one "
        "beside the first CONV worker.",
    )
    overlap: bool = Field(True, description="Exchange CONV gradients while the backward pass goes on, or after it.")
    first_bucket: Size = Field(MIB, description="Size at which the first bucket of an all-reduce is closed.")
    bucket: Size = Field(25 * MIB, description="Size at which every other bucket is closed.")


def build(model: ModelProfile, *, world_size: int, batch_per_worker: int, settings: Settings) -> Schedule:
    """Return the schedule; raises `InputError` for a model without two parts, too few nodes, and what does not fit.

    Bytes per iteration from one CONV worker to its FC worker and back: B*(A*itemsize + 8) and B*A*itemsize, with A
    the boundary's floats per sample and B the batch per worker (labels are int64).
    """
    model = cut_at(model, settings.cut)
    conv_ranks, fc_ranks = places(world_size, settings.fc_workers, colocated=settings.placement == "colocated")
    _require_used(settings)
    m = settings.microbatches
    if batch_per_worker % m:
        divisors = [d for d in range(1, batch_per_worker + 1) if batch_per_worker % d == 0]
        raise InputError(
            f"a batch of {batch_per_worker} cannot be cut in {m} equal micro-batches",
            where="stanza: microbatches",
            hint=f"use one of {', '.join(map(str, divisors))}",
        )
    if settings.eager_backward > m:
        raise InputError(
            f"{settings.eager_backward} micro-batches cannot go backward one by one: there are {m}",
            where="stanza: eager_backward",
            hint=f"use at most {m}, or more microbatches",
        )
    arrival = settings.fc_compute == "arrival"
    b = Builder("stanza", model, world_size, batch_per_worker, microbatches=m, numbered=m > 1 or arrival)
    conv, fc = b.group("conv_worker", conv_ranks), b.group("fc_worker", fc_ranks)
    lane = "fc" if settings.placement == "colocated" else "main"
    wire = Wire.BF16 if settings.activations == "bf16" else Wire.NATIVE
    passes = separate(b, conv, fc, Separation(lane=lane, arrival=arrival, wire=wire))
    fresh: dict[str, list[str]] = {}
    _exchange_fc(b, model.fc_blocks, fc, settings, lane, passes.ready, fresh)

    ready = back_through_conv(b, conv, passes.returned, eager=settings.eager_backward)
    if not settings.overlap:
        ready = dict.fromkeys(ready, ready[model.conv_blocks[0].name])
    if settings.conv_exchange == "all_reduce":
        exchange_by_all_reduce(
            b,
            model.conv_blocks,
            conv,
            prefix="bucket",
            first_bytes=settings.first_bucket,
            cap_bytes=settings.bucket,
            settings=settings,
            algorithm=settings.algorithm,
            ready=ready,
            fresh=fresh,
        )
    else:
        servers = {"fc": fc, "sharded": conv}.get(settings.conv_servers) or b.group("server", conv_ranks[:1])
        conv_fresh: dict[str, list[str]] = {}
        exchange_by_servers(
            b,
            model.conv_blocks,
            conv,
            servers,
            cut=True,
            overlap=settings.overlap,
            lane="server",
            ready=ready,
            fresh=conv_fresh,
        )
        fresh |= {block.name: conv_fresh[block.name] for block in model.conv_blocks if block.name in conv_fresh}
    b.set_fresh(fresh)
    return b.finish()


def _require_used(settings: Settings) -> None:
    """Raise `InputError` for settings that nothing would use."""
    settings.require_used("stanza")
    reduces = settings.conv_exchange == "all_reduce"
    for key, used, needs in (
        ("algorithm", reduces, "conv_exchange: all_reduce"),
        ("fc_algorithm", settings.fc_workers > 1, "fc_workers: 2 or more"),
    ):
        if not used and settings.choices()[key] is not Choice.BACKEND:
            what, hint = f"{key} is for an all-reduce that does not take place", f"leave it out, or set {needs}"
            raise InputError(what, where=f"stanza: {key}", hint=hint)
    if reduces and settings.conv_servers != "fc":
        raise InputError(
            "conv_servers is for parameter servers, and the CONV part is all-reduced",
            where="stanza: conv_servers",
            hint="leave it out, or set conv_exchange: parameter_server",
        )


def _exchange_fc(
    b: Builder,
    blocks: Sequence[Block],
    fc: str,
    settings: Settings,
    lane: str,
    ready: dict[str, str],
    fresh: dict[str, list[str]],
) -> None:
    """Update the FC part: alone, or after all-reducing its gradients among the FC workers."""
    if settings.fc_workers > 1:
        exchange_by_all_reduce(
            b,
            blocks,
            fc,
            prefix="fc_bucket",
            first_bytes=settings.first_bucket,
            cap_bytes=settings.bucket,
            settings=settings,
            algorithm=settings.fc_algorithm,
            ready=ready,
            lane=lane,
            fresh=fresh,
        )
        return
    for block in reversed(blocks):
        if block.tensors:
            bundle = b.bundle(block.name, block.tensors, fc)
            update = b.compute(Phase.UPDATE, bundle.name, fc, after=[ready[block.name]], lane=lane)
            fresh[block.name] = [update]
