"""Stanza: layer separation. Most nodes train the CONV part, a few train the FC part (arXiv 1812.10624).

CONV workers send the activations at the boundary, with labels, to the FC worker that serves them and get back
the activations' gradients; FC gradients and parameters stay on the FC workers. Input gradients are computed and
sent before the FC weight gradients, so that CONV workers wait as little as they can.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stanza_sim.errors import InputError
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Pattern, Phase, Schedule, Value, ValueKind
from stanza_sim.strategies.builder import MIB, Builder, exchange_by_all_reduce, exchange_by_servers
from stanza_sim.strategies.collectives import Choice, CollectiveSettings
from stanza_sim.units import Size


class Settings(CollectiveSettings):
    """Settings of `stanza`; `algorithm` is that of the CONV part's all-reduce."""

    fc_algorithm: Choice = Field(Choice.BACKEND, description="algorithm, for the all-reduce among several FC workers.")
    fc_workers: int = Field(1, ge=1, description="Nodes that train the FC part, each for its share of CONV workers.")
    conv_exchange: Literal["all_reduce", "parameter_server"] = Field(
        "all_reduce", description="How CONV gradients are exchanged; the parameter servers run on the FC workers."
    )
    overlap: bool = Field(True, description="Exchange CONV gradients while the backward pass goes on, or after it.")
    first_bucket: Size = Field(MIB, description="Size at which the first bucket of an all-reduce is closed.")
    bucket: Size = Field(25 * MIB, description="Size at which every other bucket is closed.")


def build(model: ModelProfile, *, world_size: int, batch_per_worker: int, settings: Settings) -> Schedule:
    """Return the schedule; raises `InputError` for a model without two parts or too few nodes.

    Bytes per iteration from one CONV worker to its FC worker and back: B*(A*itemsize + 8) and B*A*itemsize, with A
    the boundary's floats per sample and B the batch per worker (labels are int64).
    """
    k = settings.fc_workers
    if not model.fc_blocks or not model.conv_blocks:
        part = "FC" if not model.fc_blocks else "CONV"
        raise InputError(
            f"model {model.name} has no {part} part, so its layers cannot be separated",
            where="stanza",
            hint="set the model's `boundary` to the block that begins the FC part, or leave this strategy out",
        )
    conv_count = world_size - k
    if conv_count < k:
        raise InputError(
            f"{k} FC workers of {world_size} nodes leave {max(conv_count, 0)} CONV workers",
            where="stanza: fc_workers",
            hint=f"each FC worker serves at least one CONV worker: use at most {world_size // 2} of {world_size} nodes",
        )
    settings.require_used("stanza")
    for key, used, needs in (
        ("algorithm", settings.conv_exchange == "all_reduce", "conv_exchange: all_reduce"),
        ("fc_algorithm", k > 1, "fc_workers: 2 or more"),
    ):
        if not used and settings.choices()[key] is not Choice.BACKEND:
            what, hint = f"{key} is for an all-reduce that does not take place", f"leave it out, or set {needs}"
            raise InputError(what, where=f"stanza: {key}", hint=hint)
    b = Builder("stanza", model, world_size, batch_per_worker)
    conv = b.group("conv_worker", range(conv_count))
    fc = b.group("fc_worker", range(conv_count, world_size))
    boundary = model.conv_blocks[-1].name
    pattern = Pattern.BLOCKED
    forward = b.forward(model.conv_blocks, conv)
    act = b.transfer(
        "act",
        conv,
        fc,
        pattern,
        [Value(ValueKind.ACT, boundary), Value(ValueKind.LABELS)],
        channel="act",
        after=forward[-1:],
    )
    fc_forward = b.forward(model.fc_blocks, fc, after=[act])
    before = b.compute(Phase.LOSS, model.blocks[-1].name, fc, after=fc_forward[-1:])
    for block in reversed(model.fc_blocks):
        before = b.compute(Phase.BACKWARD_INPUT, block.name, fc, after=[before])
    actgrad = b.transfer(
        "actgrad",
        fc,
        conv,
        pattern,
        [Value(ValueKind.ACTGRAD, boundary)],
        channel="actgrad",
        after=[before],
    )
    fresh: dict[str, list[str]] = {}
    fc_ready: dict[str, str] = {}
    for block in reversed(model.fc_blocks):
        before = fc_ready[block.name] = b.compute(Phase.BACKWARD_WEIGHT, block.name, fc, after=[before])
    _exchange_fc(b, model, fc, settings, fc_ready, fresh)

    before, ready = actgrad, {}
    for block in reversed(model.conv_blocks):
        before = ready[block.name] = b.compute(Phase.BACKWARD, block.name, conv, after=[before])
    if not settings.overlap:
        ready = dict.fromkeys(ready, before)
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
        conv_fresh: dict[str, list[str]] = {}
        exchange_by_servers(
            b,
            model.conv_blocks,
            conv,
            fc,
            cut=True,
            overlap=settings.overlap,
            lane="server",
            ready=ready,
            fresh=conv_fresh,
        )
        fresh |= {block.name: conv_fresh[block.name] for block in model.conv_blocks if block.name in conv_fresh}
    b.set_fresh(fresh)
    return b.finish()


def _exchange_fc(
    b: Builder,
    model: ModelProfile,
    fc: str,
    settings: Settings,
    ready: dict[str, str],
    fresh: dict[str, list[str]],
) -> None:
    """Update the FC part: alone, or after all-reducing its gradients among the FC workers."""
    if settings.fc_workers > 1:
        exchange_by_all_reduce(
            b,
            model.fc_blocks,
            fc,
            prefix="fc_bucket",
            first_bytes=settings.first_bucket,
            cap_bytes=settings.bucket,
            settings=settings,
            algorithm=settings.fc_algorithm,
            ready=ready,
            fresh=fresh,
        )
        return
    for block in reversed(model.fc_blocks):
        if block.tensors:
            bundle = b.bundle(block.name, block.tensors, fc)
            update = b.compute(Phase.UPDATE, bundle.name, fc, after=[ready[block.name]])
            fresh[block.name] = [update]
