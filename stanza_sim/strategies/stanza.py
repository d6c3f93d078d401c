"""Stanza: layer separation. Most nodes train the CONV part, a few train the FC part (arXiv 1812.10624).

CONV workers send the activations at the boundary, with labels, to the FC worker that serves them and get back
the activations' gradients; FC gradients and parameters stay on the FC workers. Input gradients are computed and
sent before all FC weight gradients, so that CONV workers wait as little as they can.

*Order of micro-batches.* CONV workers run all forward passes first: what they compute in all is the same in any order,
and a forward pass never waits, while one that stood behind a backward pass (1F1B) would wait with it for gradients to
come back. 1F1B keeps fewer activations; this order keeps those of the whole batch, as without micro-batches. The
backward passes then go block by block over all micro-batches, so that a block's gradients are complete, and on their
way, as early as they are without micro-batches; the first `eager_backward` micro-batches go back by themselves before
that, while the others' gradients are still to come. Predicted on `ec2_v100` (ms per iteration): vgg16 in one batch 231,
in 4 micro-batches 190, 178 and 211 with 0, 1 and 4 of them eager; alexnet 142, then 87, 82 and 71; inception_v3 187,
then 188, 209 and 252 (1F1B with two micro-batches under way: 236, 92 and 274). So it is a setting; with 0, the
default, micro-batches lose next to nothing where they win nothing.

*Samples.* What is computed at once on a rank (a micro-batch; on arrival, that of one CONV worker) is a batch of its own
to batch normalisation. `activations: bf16` rounds what travels (relative error at most 2^-9), so training equals
single-process SGD within about 1e-2 of each tensor's change over 5 steps on the networks of the tests, in place of
1e-4 (much further in layers of two or three features, and where few samples are normalised); a
co-located FC worker's own samples are not rounded. Left out, they travel in the type in which the precision of the
experiment computes them. The time of rounding is not modelled: it is that of touching the
activations once more.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Literal

from pydantic import Field, StrictBool, StrictInt

from stanza_sim.base.errors import InputError
from stanza_sim.base.precision import Precision
from stanza_sim.base.units import Size
from stanza_sim.cluster.cluster import Cluster
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Schedule
from stanza_sim.strategies._shared.assignment import by_blocks
from stanza_sim.strategies._shared.builder import MIB, Builder
from stanza_sim.strategies._shared.collectives import Choice, CollectiveSettings
from stanza_sim.strategies._shared.crossing import back_through, check_microbatches
from stanza_sim.strategies._shared.exchange import exchange_among, exchange_by_all_reduce, exchange_by_servers
from stanza_sim.strategies._shared.model_parallel import Slicing, can_be_sliced, separate_sliced
from stanza_sim.strategies._shared.places import ON, On, named_places, ranks_on
from stanza_sim.strategies._shared.separation import (
    Separation,
    cut_at,
    places,
    separate,
)
from stanza_sim.strategies._shared.wires import ACTIVATIONS, ActivationType, wire_of


class Settings(CollectiveSettings):
    """Settings of `stanza`; `algorithm` is that of the CONV part's all-reduce."""

    fc_algorithm: Choice = Field(Choice.BACKEND, description="algorithm, for the all-reduce among several FC workers.")
    fc_workers: StrictInt = Field(
        1, ge=1, description="Nodes that train the FC part, each for its share of CONV workers."
    )
    fc_parallel: Literal["data", "model"] = Field(
        "data",
        description="Several FC workers each have the FC part and a share of the CONV workers, or each have a slice of "
        "every FC layer and all CONV workers.",
    )
    placement: Literal["dedicated", "colocated"] = Field(
        "dedicated",
        description="FC workers on nodes of their own, or beside CONV workers: then every node is a CONV worker.",
    )
    on: On | None = Field(
        None,
        description=ON.format(
            who="Which ranks train the FC part",
            then=", then the fastest devices",
            count="fc_workers",
            default="the last ranks; co-located, the first of each share of CONV workers",
        ),
    )
    cut: str | None = Field(
        None, description="Block that begins the FC part, for this strategy only; default: the model's boundary."
    )
    microbatches: StrictInt = Field(
        1, ge=1, description="Parts of each batch: the CONV part computes one while the FC part computes another."
    )
    eager_backward: StrictInt = Field(
        0,
        ge=0,
        description="So many micro-batches go backward through the CONV part one by one, the others block by block.",
    )
    fc_compute: Literal["batch", "arrival"] = Field(
        "batch",
        description="An FC worker computes on all samples of its CONV workers at once, or on those of one at a time.",
    )
    activations: ActivationType | None = Field(None, description=ACTIVATIONS)
    conv_exchange: Literal["all_reduce", "parameter_server"] = Field(
        "all_reduce", description="How CONV gradients are exchanged."
    )
    conv_servers: Literal["fc", "sharded", "single"] = Field(
        "fc",
        description="Parameter servers of the CONV part: on the FC workers, a shard beside every CONV worker, or one "
        "beside the first CONV worker.",
    )
    overlap: StrictBool = Field(
        True, description="Exchange CONV gradients while the backward pass goes on, or after it."
    )
    first_bucket: Size = Field(MIB, description="Size at which the first bucket of an all-reduce is closed.")
    bucket: Size = Field(25 * MIB, description="Size at which every other bucket is closed.")


def build(
    model: ModelProfile,
    *,
    world_size: int,
    batch_per_worker: int,
    settings: Settings,
    cluster: Cluster | None = None,
    precision: Precision = Precision.FP32,
) -> Schedule:
    """Return the schedule; raises `InputError` for a model without two parts, too few nodes, and what does not fit.

    `cluster` has the places that `on` names.

    Bytes per iteration, counted from the messages, with B samples per worker, A floats per sample at the cut, w bytes
    per float that travels (`itemsize`, or 2), n CONV workers, k FC workers, and S_c and S_f bytes of parameters in the
    CONV and the FC part:

    - a CONV worker sends B*(A*w + 8) to its FC worker (labels are int64) and gets back B*A*w, in whatever parts;
      nothing where it is its own;
    - FC workers with `fc_parallel: data` by a ring: each sends and receives 2(k-1)/k*S_f (Patarasuk and Yuan, 2009);
    - with `fc_parallel: model` a CONV worker sends B*(A*w + 8k) to all FC workers together, less what it keeps where
      it is one; an FC worker that has A_i of the A floats gets n*B*(A_i*w + 8) and sends back n*B*A_i*w, and exchanges
      what `strategies._shared.model_parallel` states for n*B samples. That is with the first FC layer cut by rows;
      by columns a CONV worker sends k*B*(A*w + 8) and gets B*A*w back from the FC worker that would serve it alone;
    - CONV workers by a ring: each sends and receives 2(n-1)/n*S_c;
    - servers on the FC workers: each CONV worker sends and receives S_c, each FC worker n*S_c/k, less the own share
      where it is both; a shard beside each CONV worker: 2(n-1)/n*S_c; one server: (n-1)*S_c, the others S_c
      (Li et al., OSDI 2014).
    """
    model = cut_at(model, settings.cut)
    if "fc_workers" not in settings.model_fields_set and (named := named_places(settings.on)) is not None:
        settings = settings.model_copy(update={"fc_workers": named})
    conv_ranks, fc_ranks = places(
        world_size,
        settings.fc_workers,
        colocated=settings.placement == "colocated",
        share_out=settings.fc_parallel == "data",
    )
    if settings.on is not None:
        fc_ranks = ranks_on(
            settings.on, cluster, settings.fc_workers, precision=precision, computes=True, where="stanza: on"
        )
        if settings.placement == "dedicated":
            conv_ranks = [rank for rank in range(world_size) if rank not in set(fc_ranks)]
    _require_used(settings)
    m = settings.microbatches
    check_microbatches(batch_per_worker, m, eager=settings.eager_backward, where="stanza")
    arrival = settings.fc_compute == "arrival"
    b = Builder("stanza", model, world_size, batch_per_worker, microbatches=m, numbered=m > 1 or arrival)
    conv, fc = b.group("conv_worker", conv_ranks), b.group("fc_worker", fc_ranks)
    lane = "fc" if settings.placement == "colocated" else "main"
    wire = wire_of(settings.activations)
    params_ready: dict[str, list[str]] = {}
    if settings.fc_parallel == "model":
        sliced = separate_sliced(
            b,
            conv,
            Slicing(
                fc=fc,
                lane=lane,
                by_turns=arrival,
                wire=wire,
                settings=settings,
                algorithm=settings.fc_algorithm,
                where="stanza: fc_parallel",
            ),
        )
        params_ready |= sliced.params_ready
        returned = sliced.returned
    else:
        passes = separate(b, conv, fc, Separation(lane=lane, arrival=arrival, wire=wire))
        exchange_among(
            b,
            model.fc_blocks,
            fc,
            prefix="fc_bucket",
            first_bytes=settings.first_bucket,
            cap_bytes=settings.bucket,
            settings=settings,
            algorithm=settings.fc_algorithm,
            grads_ready=passes.grads_ready,
            lane=lane,
            params_ready=params_ready,
        )
        returned = passes.returned

    grads_ready = back_through(b, model.conv_blocks, conv, returned, eager=settings.eager_backward)
    if not settings.overlap:
        grads_ready = dict.fromkeys(grads_ready, grads_ready[model.conv_blocks[0].name])
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
            grads_ready=grads_ready,
            params_ready=params_ready,
        )
    else:
        servers = {"fc": fc, "sharded": conv}.get(settings.conv_servers) or b.group("server", conv_ranks[:1])
        conv_params_ready: dict[str, list[str]] = {}
        exchange_by_servers(
            b,
            by_blocks(b, model.conv_blocks, servers, cut=True),
            conv,
            overlap=settings.overlap,
            lane="server",
            grads_ready=grads_ready,
            params_ready=conv_params_ready,
        )
        params_ready |= {
            block.name: conv_params_ready[block.name] for block in model.conv_blocks if block.name in conv_params_ready
        }
    b.set_params_ready(params_ready)
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
    if settings.fc_parallel == "model" and settings.fc_workers == 1:
        raise InputError(
            "one FC worker has all of every layer",
            where="stanza: fc_parallel",
            hint="leave it out, or set fc_workers: 2 or more",
        )
    if reduces and settings.conv_servers != "fc":
        raise InputError(
            "conv_servers is for parameter servers, and the CONV part is all-reduced",
            where="stanza: conv_servers",
            hint="leave it out, or set conv_exchange: parameter_server",
        )


def space(model: ModelProfile, *, world_size: int, batch_per_worker: int, local_size: int) -> Iterator[Settings]:
    """Yield every setting worth trying on `world_size` ranks, `local_size` of them on each host; the default first.

    Left out are types of `activations`, which do not compute the same: they are for the user to allow.
    """
    tried: set[Settings] = set()
    for given in _worth_trying(model, world_size, batch_per_worker, local_size):
        settings = Settings.model_validate(given)
        if settings in tried:
            continue
        tried.add(settings)
        try:
            cut_at(model, settings.cut)
            data = settings.fc_parallel == "data"
            places(world_size, settings.fc_workers, colocated=settings.placement == "colocated", share_out=data)
        except InputError:
            continue
        if data or can_be_sliced(model, settings.fc_workers):
            yield settings


Given = dict[str, object]


def _worth_trying(model: ModelProfile, world_size: int, batch: int, local_size: int) -> Iterator[Given]:
    """One or two FC workers with every pipeline and exchange; more of them, cuts and arrival with a few of those."""
    yield {}
    dedicated, colocated = _counts(world_size // 2), _counts(world_size)
    sharded: Given = {"conv_exchange": "parameter_server", "conv_servers": "sharded"}
    exchanges: list[Given] = [{}, {"bucket": "5MiB"}, sharded, {"conv_exchange": "parameter_server"}]
    if local_size > 1:
        exchanges.append({"algorithm": "hierarchical", "local": local_size})
    parts = [m for m in (2, 4, 8) if batch % m == 0]
    plain: list[Given] = [{"microbatches": m} for m in (1, *parts)]
    eager: list[Given] = [{"microbatches": m, "eager_backward": e} for m in parts for e in (1, m) if m > 2 or e == m]
    for pipeline, exchange in product([*plain, *eager], exchanges):
        for placement, counts in (("dedicated", dedicated), ("colocated", colocated)):
            for k in [k for k in counts if k <= 2]:
                yield {"placement": placement, "fc_workers": k} | pipeline | exchange
    for pipeline, exchange in product(plain, exchanges[::2]):
        for placement, counts in (("dedicated", dedicated), ("colocated", colocated)):
            place: Given = {"placement": placement}
            yield {"fc_compute": "arrival"} | place | pipeline | exchange
            for k in [k for k in counts if k > 2 and pipeline in plain[::2]]:
                yield {"fc_workers": k} | place | pipeline | exchange
            for cut in _cuts(model) if pipeline in plain[1:3] else ():
                yield {"cut": cut} | place | pipeline | exchange
    for k, placement in [(k, "dedicated") for k in dedicated] + [(k, "colocated") for k in colocated]:
        sliced: Given = {"fc_parallel": "model", "fc_workers": k, "placement": placement}
        apart: list[Given] = [*plain[:3], sharded]
        apart += [{"microbatches": m, "eager_backward": 1, "bucket": "5MiB"} for m in parts if m > 2]
        yield from (sliced | given for given in apart if k > 1)


def _counts(most: int) -> list[int]:
    """1, 2, 4, ... up to `most`, and `most` itself."""
    return sorted({k for k in (1 << i for i in range(most.bit_length())) if k < most} | ({most} if most else set()))


def _cuts(model: ModelProfile) -> list[str]:
    """Blocks near the model's boundary, at which it could be cut instead: two before it and two behind."""
    names = [block.name for block in model.blocks]
    near = range(max(1, model.boundary - 2), min(len(names), model.boundary + 3))
    return [names[i] for i in near if i != model.boundary]
