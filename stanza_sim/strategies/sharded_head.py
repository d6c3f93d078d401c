"""Sharded head: every node trains the CONV part data-parallel and holds a slice of the FC part.

Source: Krizhevsky, One weird trick for parallelizing convolutional neural networks, arXiv 1404.5997: model parallelism
for the layers with the parameters, and data parallelism for those with the work. In his scheme (b) workers take turns:
all compute their slice of the FC part on the samples of the one whose turn it is, and the next one's activations travel
meanwhile; the gradients of a turn go back to its worker. In scheme (a) all samples are one batch. Here FC gradients are
summed over all turns before the one update of an iteration, so that it is SGD on the global batch.

Unlike there the first FC layer is cut by its inputs where that moves less (see `strategies._shared.model_parallel`):
a worker then sends each other one the features that this one needs, not all of them. What is computed of one turn is
exchanged while the next is computed. Both parts have a lane of their own, so that CONV backward passes need not wait
for others' turns.

`activations: bf16` rounds what travels between workers; `stanza_sim.strategies.stanza` says how close to SGD it stays.

Predicted on `ec2_v100` (ms per iteration): vgg16 by turns 249, in one batch 203, and 187 in 4 micro-batches of which
one goes back eagerly (all-reduce 867, Stanza with one FC worker 232); resnet152 485, 473 and 599. Turns lose by their
many small sums, each of which costs the latency of a ring; micro-batches of resnet152 by their many small kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Literal

from pydantic import Field, StrictBool, StrictInt

from stanza_sim.base.errors import InputError
from stanza_sim.base.units import Size
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Schedule
from stanza_sim.strategies._shared.builder import MIB, Builder
from stanza_sim.strategies._shared.collectives import Choice, CollectiveSettings
from stanza_sim.strategies._shared.crossing import back_through, check_microbatches
from stanza_sim.strategies._shared.cutting import require_whole
from stanza_sim.strategies._shared.exchange import exchange_by_all_reduce
from stanza_sim.strategies._shared.model_parallel import Slicing, can_be_sliced, separate_sliced
from stanza_sim.strategies._shared.wires import ACTIVATIONS, ActivationType, wire_of

MOST_TURNS = 16
"""Up to so many turns `space` tries more than one setting with them."""


class Settings(CollectiveSettings):
    """Settings of `sharded_head`; `algorithm` is that of the CONV part's all-reduce."""

    fc_algorithm: Choice = Field(Choice.BACKEND, description="algorithm, for the sums within the FC part.")
    fc_compute: Literal["turns", "batch"] = Field(
        "turns", description="Samples of one worker after another, or those of all workers at once."
    )
    microbatches: StrictInt = Field(
        1,
        ge=1,
        description="Parts of each worker's batch: the CONV part computes one while another one's values travel.",
    )
    eager_backward: StrictInt = Field(
        0,
        ge=0,
        description="So many micro-batches go backward through the CONV part one by one, the others block by block.",
    )
    activations: ActivationType | None = Field(None, description=ACTIVATIONS)
    overlap: StrictBool = Field(
        True, description="Exchange CONV gradients while the backward pass goes on, or after it."
    )
    first_bucket: Size = Field(MIB, description="Size at which the first bucket of an all-reduce is closed.")
    bucket: Size = Field(25 * MIB, description="Size at which every other bucket is closed.")


def build(model: ModelProfile, *, world_size: int, batch_per_worker: int, settings: Settings) -> Schedule:
    """Return the schedule; raises `InputError` for a model without two parts, and an FC layer that cannot be cut.

    Bytes that rank i of N sends per iteration, with B samples per worker, A floats at the boundary of which A_i are in
    its slice, w bytes of each on the wire and C bytes of CONV parameters: B*(A-A_i)*w + 8*B*(N-1) of its activations
    and labels (int64), (N-1)*B*A_i*w of the others' gradients, 2(N-1)/N*C by a ring for the CONV part, and within the
    FC part what `strategies._shared.model_parallel` states for N*B samples over N ranks. It receives B*A_i*w*(N-1) +
    8*B*(N-1) and B*(A-A_i)*w, and the same of the exchanges. Where the first FC layer is cut by columns it sends and
    receives (N-1)*B*(A*w + 8) for activations and labels, and no gradients of others: the exchanges have summed them.
    By turns these are the same bytes in smaller parts.
    """
    if not model.fc_blocks or not model.conv_blocks:
        part = "FC" if not model.fc_blocks else "CONV"
        raise InputError(
            f"model {model.name} has no {part} part, so there is no head to shard",
            where="sharded_head",
            hint="set the model's `boundary` to the block that begins the FC part, or leave this strategy out",
        )
    require_whole(model, [model.boundary], "sharded_head", "the model's boundary")
    settings.require_used("sharded_head")
    turns, m = settings.fc_compute == "turns", settings.microbatches
    check_microbatches(batch_per_worker, m, eager=settings.eager_backward, where="sharded_head")
    b = Builder("sharded_head", model, world_size, batch_per_worker, microbatches=m, numbered=turns or m > 1)
    workers = b.group("worker", range(world_size))
    passes = separate_sliced(
        b,
        workers,
        Slicing(
            fc=workers,
            lane="fc",
            by_turns=turns,
            wire=wire_of(settings.activations),
            settings=settings,
            algorithm=settings.fc_algorithm,
            where="sharded_head",
        ),
    )
    grads_ready = back_through(b, model.conv_blocks, workers, passes.returned, eager=settings.eager_backward)
    if not settings.overlap:
        grads_ready = dict.fromkeys(grads_ready, grads_ready[model.conv_blocks[0].name])
    params_ready = dict(passes.params_ready)
    exchange_by_all_reduce(
        b,
        model.conv_blocks,
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


def space(model: ModelProfile, *, world_size: int, batch_per_worker: int, local_size: int) -> Iterator[Settings]:
    """Yield every setting worth trying on `world_size` ranks, `local_size` of them on each host; the default first.

    Left out are types of `activations`, which do not compute the same: they are for the user to allow.
    """
    if not model.conv_blocks or not model.fc_blocks or not can_be_sliced(model, world_size):
        return
    try:
        require_whole(model, [model.boundary], "sharded_head", "the model's boundary")
    except InputError:
        return
    exchanges: list[dict[str, object]] = [{}, {"bucket": "5MiB"}]
    if local_size > 1:
        exchanges.append({"algorithm": "hierarchical", "local": local_size})
    sums: list[dict[str, object]] = [{}, {"fc_algorithm": "halving_doubling"}, {"fc_algorithm": "tree"}]
    # Turns make ops for every rank, and smaller ones with micro-batches: worth little, and slow to simulate.
    for inner, exchange in product(sums, exchanges) if world_size <= MOST_TURNS else [(sums[0], exchanges[0])]:
        yield Settings.model_validate(inner | exchange)
    for m, eager in ((1, 0), (2, 0), (4, 0), (4, 1), (8, 0), (8, 1)):
        if batch_per_worker % m == 0:
            parts: dict[str, object] = {"fc_compute": "batch", "microbatches": m, "eager_backward": eager}
            for inner, exchange in product(sums, exchanges):
                yield Settings.model_validate(parts | inner | exchange)
