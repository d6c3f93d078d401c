"""Parameter servers: every worker trains the whole model, servers hold it.

Sources: Li et al., OSDI 2014 (parameter server); Zhang et al., ATC 2017 (wait-free backpropagation: a layer's
gradients leave while the layers before it still compute); Jiang et al., OSDI 2020 (BytePS); Jayarajan et al., MLSys
2019 (P3: slices by priority). Which server has what: see `stanza_sim.strategies._shared.assignment`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt

from stanza_sim.base.errors import InputError
from stanza_sim.base.precision import Precision
from stanza_sim.base.units import Size
from stanza_sim.cluster.cluster import Cluster
from stanza_sim.model.profile import Block, ModelProfile
from stanza_sim.schedule import Bundle, Phase, Schedule
from stanza_sim.strategies._shared.assignment import (
    BIGARRAY_BOUND,
    PARTITION_BYTES,
    SLICE_PARAMETERS,
    by_blocks,
    by_byteps,
    by_mxnet,
    by_slices,
)
from stanza_sim.strategies._shared.builder import Builder
from stanza_sim.strategies._shared.exchange import exchange_by_servers
from stanza_sim.strategies._shared.hosts import Hosts
from stanza_sim.strategies._shared.places import ON, On, check_whole_hosts, named_places, ranks_on

MOST_PIECES = 700
"""About how many slices of a model `space` asks for at most: so few that a plan takes a few seconds to simulate, and so
many that servers are within 10% or so of each other, since where tensors are smaller than slices their sizes show."""


class Assignment(StrEnum):
    """Which server has what; see `stanza_sim.strategies._shared.assignment`."""

    BALANCED = "balanced"
    CUT = "cut"
    MXNET = "mxnet"
    BYTEPS = "byteps"
    SLICED = "sliced"


class Settings(BaseModel):
    """Settings of `parameter_server`."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    servers: StrictInt | None = Field(
        None, ge=1, description="How many servers; default: 1 dedicated, or every node when co-located."
    )
    placement: Literal["dedicated", "colocated"] = Field(
        "dedicated", description="Servers on nodes of their own, or as shards beside the workers."
    )
    assignment: Assignment = Field(
        Assignment.BALANCED,
        description="balanced: whole tensors, by bytes; cut: every block evenly over all servers; mxnet: small tensors "
        "whole, by hash, others cut; byteps: pieces, by hash; sliced: small slices in turn, by priority (P3).",
    )
    bigarray_bound: StrictInt = Field(
        BIGARRAY_BOUND, ge=1, description="mxnet: elements from which on a tensor is cut over all servers."
    )
    partition: Size = Field(PARTITION_BYTES, description="byteps: most bytes of one piece of a tensor.")
    slice: StrictInt = Field(SLICE_PARAMETERS, ge=1, description="sliced: most parameters of one slice of a tensor.")
    credit: StrictInt | None = Field(
        None,
        ge=0,
        description="Most pushes under way from a worker to a server, and pulls from a server; the blocks that come "
        "first in forward order go first. 0: in the order in which they are ready. Default: 1 if sliced, else 0.",
    )
    local: StrictInt | None = Field(
        None,
        ge=2,
        description="Workers per host, which add up their gradients before one of them pushes the sum, and share what "
        "it pulls; ranks r with the same r // local are on one host. Default: each pushes and pulls by itself.",
    )
    share_pulls: StrictBool = Field(
        True,
        description="local: one worker of a host pulls and passes on; or each pulls by itself, as the towers of "
        "TensorFlow's parameter_server mode read variables.",
    )
    pull: Literal["ready", "step"] = Field(
        "ready",
        description="ready: each block's parameters are pulled as soon as they are updated; step: when all are, at the "
        "beginning of the next step, as TensorFlow 1.x reads variables.",
    )
    on: On | None = Field(
        None,
        description=ON.format(
            who="Which ranks serve", then="", count="servers", default="the last ranks; co-located, the first"
        ),
    )
    overlap: StrictBool = Field(
        True, description="Push each block when its backward pass is done (wait-free), or push all, then pull all."
    )


def build(
    model: ModelProfile,
    *,
    world_size: int,
    batch_per_worker: int,
    settings: Settings,
    cluster: Cluster | None = None,
    precision: Precision = Precision.FP32,
) -> Schedule:
    """Return the schedule; raises `InputError` where there are more servers than the nodes allow.

    `cluster` has the places that `on` names.

    Bytes per iteration, with S the bytes of the model, S_j those that server j has and W workers (Li et al., OSDI 2014,
    whatever the assignment): a worker sends S and receives S, but for the S_j of its own shard; server j sends and
    receives W*S_j, a co-located one (W-1)*S_j. So through one dedicated server's NIC W*S each way; through a co-located
    even shard's, of N, 2(N-1)/N*S each way.

    With `local` (BytePS, OSDI 2020, section 4.2) these are the bytes of leaders with H hosts in the place of W workers:
    of the bundles that it leads for, L_r bytes, rank r sends and receives L_r, but for what its own shard has of them.
    Moreover it sends S - L_r to other leaders of its host and L_r to each of the other workers there, and gets as much;
    server j sends and receives the same as before, but once per host, its own leaders' left out where they are j.
    Where pulls are not shared, each worker pulls S, but for its own shard, and leaders pass nothing on: server j sends
    W*S_j as without `local`.
    """
    _require_used(settings)
    b = Builder("parameter_server", model, world_size, batch_per_worker)
    colocated = settings.placement == "colocated"
    k = settings.servers or named_places(settings.on) or (world_size if colocated else 1)
    workers_count = world_size if colocated else world_size - k
    if k > world_size or workers_count < 1:
        most = world_size if colocated else world_size - 1
        raise InputError(
            f"{k} {settings.placement} servers leave {max(workers_count, 0)} workers of {world_size} nodes",
            where="parameter_server: servers",
            hint=f"use at most {most} servers, or more nodes" if most else "use more nodes, or placement: colocated",
        )
    if settings.on is not None:
        serve: Sequence[int] = ranks_on(
            settings.on, cluster, k, precision=precision, computes=False, where="parameter_server: on"
        )
    else:
        serve = _colocated(k, world_size, settings) if colocated else range(workers_count, world_size)
    train = range(world_size) if colocated else _without(world_size, serve)
    if settings.on is not None and settings.local is not None:
        check_whole_hosts(train, settings.local, cluster, where="parameter_server: on")
    workers, servers = b.group("worker", train), b.group("server", serve)
    forward = b.forward(model.blocks, workers)
    before = b.compute(Phase.LOSS, model.blocks[-1].name, workers, after=forward[-1:])
    grads_ready: dict[str, str] = {}
    for block in reversed(model.blocks):
        before = grads_ready[block.name] = b.compute(Phase.BACKWARD, block.name, workers, after=[before])
    params_ready: dict[str, list[str]] = {}
    lane = "server" if colocated or _credit(settings) else "main"
    exchange_by_servers(
        b,
        _bundles(b, model.blocks, servers, settings),
        workers,
        overlap=settings.overlap,
        lane=lane,
        grads_ready=grads_ready,
        params_ready=params_ready,
        credit=_credit(settings),
        hosts=Hosts(b, workers, settings.local) if settings.local is not None else None,
        share_pulls=settings.share_pulls,
        pull_together=settings.pull == "step",
    )
    b.set_params_ready(params_ready)
    return b.finish()


def space(model: ModelProfile, *, world_size: int, batch_per_worker: int, local_size: int) -> Iterator[Settings]:
    """Yield every setting worth trying on `world_size` ranks, `local_size` of them on each host; the default first.

    Slices are those of P3, or larger where that would be many more than `MOST_PIECES`.
    """
    del batch_per_worker  # what fits does not depend on it
    if world_size > 1:
        yield Settings()
    slices: dict[str, object] = {
        "assignment": Assignment.SLICED,
        "slice": max(SLICE_PARAMETERS, -(-model.numel // MOST_PIECES)),
    }
    quarter: dict[str, object] = {"assignment": Assignment.BYTEPS, "partition": f"{PARTITION_BYTES // 4}B"}
    whole: list[dict[str, object]] = [{}, {"assignment": Assignment.BYTEPS}]
    divided: list[dict[str, object]] = [{"assignment": Assignment.CUT}, {"assignment": Assignment.MXNET}]
    pieces: list[dict[str, object]] = [
        quarter,
        {**quarter, "credit": 4},
        {**slices, "credit": 1},
        {**slices, "credit": 4},
    ]
    some = {1, world_size // 3, world_size // 2}
    dedicated = {*some, 2, 3, 4, 6, 8, world_size // 4}
    places = [("dedicated", k) for k in sorted(dedicated) if 1 <= k < world_size]
    places += [("colocated", k) for k in sorted({world_size, world_size // 2}, reverse=True) if k >= 1]
    for place, k in places:
        ways = whole + (divided if k > 1 else [])  # one server has everything, however it is divided
        if place == "colocated" or k in some:  # many pieces take their time to simulate
            ways = ways + pieces
        for way in ways:
            given = {"placement": place, "servers": k, **way}
            if (place, k, way) != ("dedicated", 1, {}):
                yield Settings.model_validate(given)
            if local_size > 1:
                yield Settings.model_validate({**given, "local": local_size})


def _require_used(settings: Settings) -> None:
    """Raise `InputError` for a setting that the assignment does not use."""
    for key, user in (
        ("bigarray_bound", Assignment.MXNET),
        ("partition", Assignment.BYTEPS),
        ("slice", Assignment.SLICED),
    ):
        if key in settings.model_fields_set and settings.assignment is not user:
            where, hint = f"parameter_server: {key}", f"leave {key} out, or set assignment: {user}"
            raise InputError(f"{key} is for the assignment {user}", where=where, hint=hint)
    if not settings.share_pulls and settings.local is None:
        hint = "set local to the number of workers on each host, or leave share_pulls out"
        raise InputError("workers share pulls only with local", where="parameter_server: share_pulls", hint=hint)


def _without(world_size: int, ranks: Sequence[int]) -> Sequence[int]:
    """All ranks but these."""
    left_out = set(ranks)
    return [rank for rank in range(world_size) if rank not in left_out]


def _colocated(k: int, world_size: int, settings: Settings) -> Sequence[int]:
    """Ranks of `k` co-located servers: the first, and where workers are grouped by host as many of each host."""
    local = settings.local or 1
    hosts = -(-world_size // local)
    turn = [h * local + i for i in range(local) for h in range(hosts) if h * local + i < world_size]
    return sorted(turn[:k])


def _credit(settings: Settings) -> int:
    return int(settings.assignment is Assignment.SLICED) if settings.credit is None else settings.credit


def _bundles(b: Builder, blocks: Sequence[Block], servers: str, settings: Settings) -> list[Bundle]:
    match settings.assignment:
        case Assignment.BALANCED | Assignment.CUT:
            return by_blocks(b, blocks, servers, cut=settings.assignment is Assignment.CUT)
        case Assignment.MXNET:
            return by_mxnet(b, blocks, servers, bigarray_bound=settings.bigarray_bound)
        case Assignment.BYTEPS:
            return by_byteps(b, blocks, servers, partition_bytes=settings.partition)
        case Assignment.SLICED:
            return by_slices(b, blocks, servers, slice_parameters=settings.slice)
