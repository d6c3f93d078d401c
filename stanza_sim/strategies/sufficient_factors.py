"""Poseidon: the gradients of linear layers travel as sufficient factors where that is less, all others whole.

Every node trains the whole model. The gradient of a linear layer's weight is dy^T x, with x its inputs and dy the
gradients of its outputs; for a small batch these are far fewer numbers than the gradient. So every worker sends x and
dy of its samples to all others, and each makes the sum over all workers' samples and updates its own replica. Nobody
computes a weight gradient of only its own samples: one product over the samples of all takes as many FLOPs as one
of its own and one of the others', and less memory traffic.

Sources: Zhang et al., "Poseidon: An Efficient Communication Architecture for Distributed Deep Learning on GPU
Clusters", ATC 2017 (which of the two for each layer; wait-free backpropagation: a layer's exchange begins as soon as
its backward pass is done); Xie et al., "Lighter-Communication Distributed Machine Learning via Sufficient Factor
Broadcasting", UAI 2016.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from stanza_sim.base.errors import InputError
from stanza_sim.base.units import Size
from stanza_sim.model.profile import Block, ModelProfile
from stanza_sim.schedule import Bundle, Pattern, Phase, Schedule, Value, ValueKind
from stanza_sim.schedule.factors import Factors, factors_of
from stanza_sim.strategies._shared.assignment import by_blocks
from stanza_sim.strategies._shared.builder import MIB, Builder
from stanza_sim.strategies._shared.collectives import Choice, CollectiveSettings
from stanza_sim.strategies._shared.exchange import exchange_by_all_reduce, exchange_by_servers


class Settings(CollectiveSettings):
    """Settings of `sufficient_factors`; `algorithm` is that of the CONV blocks' all-reduce."""

    fc_exchange: Literal["auto", "factors", "parameter_server"] = Field(
        "auto",
        description="How gradients of linear layers are exchanged: as factors, by a parameter server, or each layer "
        "by the one that moves fewer bytes.",
    )
    conv_exchange: Literal["parameter_server", "all_reduce"] = Field(
        "parameter_server", description="How gradients of all other blocks are exchanged."
    )
    reconstruct: Literal["beside", "behind"] = Field(
        "beside",
        description="Make gradients from factors as soon as they are there, beside the backward pass, or behind it.",
    )
    first_bucket: Size = Field(MIB, description="Size at which the first bucket of an all-reduce is closed.")
    bucket: Size = Field(25 * MIB, description="Size at which every other bucket is closed.")


def factors_move_less(factors: Factors, batch: int, workers: int, servers: int) -> bool:
    """Whether factors move no more than a parameter server, by Poseidon's rule (ATC 2017, table 1 and algorithm 1).

    Elements that a node which is worker and server sends and receives for an M x N layer, with P1 workers, P2 servers
    and K samples (here: rows of factors) at each worker: 2K(P1-1)(M+N) as factors, 2MN(P1+P2-2)/P2 by servers.
    """
    rows, product = batch * factors.rows, factors.inputs * factors.outputs
    return rows * (workers - 1) * (factors.inputs + factors.outputs) * servers <= product * (workers + servers - 2)


def build(
    model: ModelProfile, *, world_size: int, batch_per_worker: int, settings: Settings, accumulation: int = 1
) -> Schedule:
    """Return the schedule; raises `InputError` for settings that do not fit the model or each other.

    Factors are of all samples of an iteration, `accumulation` times a batch, so that `auto` takes them more rarely.

    Bytes that each of the W workers sends per iteration, and receives: (W-1)*B*(in+out)*itemsize for a layer by
    factors, with B the batch per worker; 2(W-1)/W of its bytes for a layer by parameter servers, of which every worker
    is one, with a slice of each block (ATC 2017, table 1); the same for all-reduced blocks by a ring.
    """
    by_factors = _by_factors(model, world_size, batch_per_worker * accumulation, settings)
    others = [block for block in model.blocks if block.name not in by_factors]
    linear = {block.name for block in others if factors_of(model, block.name) is not None}
    all_reduces = settings.conv_exchange == "all_reduce"
    reduced = [block for block in others if all_reduces and block.name not in linear]
    served = [block for block in others if not all_reduces or block.name in linear]
    _require_used(settings)
    b = Builder("sufficient_factors", model, world_size, batch_per_worker)
    workers = b.group("worker", range(world_size))
    servers = b.group("server", range(world_size)) if any(block.tensors for block in served) else workers
    forward = b.forward(model.blocks, workers)
    before = b.compute(Phase.LOSS, model.blocks[-1].name, workers, after=forward[-1:])
    grads_ready: dict[str, str] = {}
    params_ready: dict[str, list[str]] = {}
    arrived: list[tuple[Block, Bundle, str]] = []
    for block in reversed(model.blocks):
        as_factors = block.name in by_factors
        phase = Phase.BACKWARD_INPUT if as_factors else Phase.BACKWARD
        before = grads_ready[block.name] = b.compute(phase, block.name, workers, after=[before])
        if as_factors:
            bundle = b.bundle(block.name, block.tensors, workers)
            arrived.append((block, bundle, _send(b, bundle, workers, before)))
            if settings.reconstruct == "beside":
                params_ready[block.name] = [_renew(b, *arrived[-1][1:], workers, "factors")]
    if settings.reconstruct == "behind":
        for block, bundle, moved in arrived:
            params_ready[block.name] = [_renew(b, bundle, moved, workers, "main")]
    bundles = by_blocks(b, served, servers, cut=True)
    exchange_by_servers(
        b, bundles, workers, overlap=True, lane="server", grads_ready=grads_ready, params_ready=params_ready
    )
    exchange_by_all_reduce(
        b,
        reduced,
        workers,
        prefix="bucket",
        first_bytes=settings.first_bucket,
        cap_bytes=settings.bucket,
        settings=settings,
        algorithm=settings.algorithm,
        grads_ready=grads_ready,
        params_ready=params_ready,
    )
    b.set_params_ready(params_ready)
    return b.finish()


def _by_factors(model: ModelProfile, world_size: int, batch_per_worker: int, settings: Settings) -> set[str]:
    """Names of the blocks whose gradients travel as factors."""
    found = {block.name: factors_of(model, block.name) for block in model.blocks}
    linear = {name: factors for name, factors in found.items() if factors is not None}
    match settings.fc_exchange:
        case "parameter_server":
            return set()
        case "auto":
            return {n for n, f in linear.items() if factors_move_less(f, batch_per_worker, world_size, world_size)}
        case "factors":
            if not linear:
                raise InputError(
                    f"no block of model {model.name} is one linear layer, so there are no factors to exchange",
                    where="sufficient_factors: fc_exchange",
                    hint="leave it out, or leave this strategy out",
                )
            return set(linear)


def _send(b: Builder, bundle: Bundle, workers: str, after: str) -> str:
    return b.transfer(
        f"factors.{bundle.name}",
        workers,
        workers,
        Pattern.ALL_PAIRS,
        [Value(ValueKind.FACTORS, bundle.name)],
        channel="factors",
        priority=b.priority(bundle),
        after=[after],
    )


def _renew(b: Builder, bundle: Bundle, moved: str, workers: str, lane: str) -> str:
    """Make the gradients of `bundle` from the factors that `moved` brings, and update it; returns the update."""
    made = b.compute(Phase.RECONSTRUCT, bundle.name, workers, after=[moved], lane=lane)
    return b.compute(Phase.UPDATE, bundle.name, workers, after=[made], lane=lane)


def _require_used(settings: Settings) -> None:
    """Raise `InputError` for settings that nothing would use."""
    settings.require_used("sufficient_factors")
    if settings.conv_exchange == "all_reduce":
        return
    given = {"first_bucket", "bucket"} & settings.model_fields_set
    if settings.algorithm is not Choice.BACKEND:
        given.add("algorithm")
    if given:
        key = min(given)
        raise InputError(
            f"{key} is for an all-reduce that does not take place",
            where=f"sufficient_factors: {key}",
            hint="leave it out, or set conv_exchange: all_reduce",
        )


def space(model: ModelProfile, *, world_size: int, batch_per_worker: int, local_size: int) -> Iterator[Settings]:
    """Yield every setting worth trying: the default, then all that gives a schedule of its own.

    `local_size` is the number of ranks on a host. Where `auto` takes factors for all linear layers, or for none, that
    choice by its name is left out.
    """
    if world_size == 1:
        yield Settings()
        return
    linear = {block.name for block in model.blocks if factors_of(model, block.name) is not None}
    chosen = _by_factors(model, world_size, batch_per_worker, Settings())
    exchanges: list[Literal["auto", "factors", "parameter_server"]] = ["auto"]
    if chosen != linear:
        exchanges.append("factors")
    if chosen:
        exchanges.append("parameter_server")
    algorithms = [Choice.BACKEND, Choice.RING, Choice.HALVING_DOUBLING, Choice.TREE]
    if 1 < local_size < world_size:
        algorithms.append(Choice.HIERARCHICAL)
    for fc_exchange in exchanges:
        factors = chosen if fc_exchange == "auto" else linear if fc_exchange == "factors" else set()
        for reconstruct in ("beside", "behind") if factors else ("beside",):
            common = {"fc_exchange": fc_exchange, "reconstruct": reconstruct}
            yield Settings.model_validate(common)
            for algorithm in algorithms:
                local = {"local": local_size} if algorithm is Choice.HIERARCHICAL else {}
                for bucket in (25 * MIB, 5 * MIB, 100 * MIB):
                    sizes = {} if bucket == 25 * MIB else {"bucket": f"{bucket}B"}
                    yield Settings.model_validate(
                        {**common, "conv_exchange": "all_reduce", "algorithm": algorithm, **local, **sizes}
                    )
