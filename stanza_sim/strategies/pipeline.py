"""Pipeline: the model is cut into stages, micro-batches flow through them, and each stage's replicas add up gradients.

Sources: Huang et al., GPipe, NeurIPS 2019 (arXiv 1811.06965): all micro-batches go forward, then all go back.
Narayanan et al., PipeDream, SOSP 2019, and Efficient large-scale language model training on GPU clusters using
Megatron-LM, SC 2021 (arXiv 2104.04473): 1F1B with a flush at the end of the batch, in which a stage goes back with one
micro-batch before it goes forward with the next, as soon as the first gradient is there. Both update once in an
iteration, from the gradients of the whole batch, so both are SGD on it.

It is layer separation with any number of parts (`stanza` is one of two, with unlike numbers of ranks): activations go
on with their labels, from stage to stage, and the gradients of activations come back. N ranks in S stages are R = N/S
replicas. Stage s has the ranks s*R to s*R + R-1, so that replicas are neighbours, on one host if it has so many ranks,
and replica r is the r-th of each stage (Megatron's order). The ranks of the first stage draw the samples, S *
`batch_per_worker` each, so that the global batch is that of any other strategy on N ranks.

By default there is one stage a rank, and as many micro-batches as stages: each has the `batch_per_worker` samples of
one rank. A model of fewer parts than ranks has as many stages as divide the ranks: in all, of 10 ranks 5 stages of 2
replicas for alexnet's 8 blocks. A part has parameters.

Weights that are tied across stages (a language model's embedding and head) are held by all of these stages, which add
up their gradients with an all-reduce of their own (Megatron-LM's embedding group).

Batch normalisation has the statistics of each micro-batch. A pass that is computed again draws the same dropout, and
leaves running statistics as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import chain, product
from typing import Literal

from pydantic import Field, StrictBool, StrictInt

from stanza_sim.base.errors import InputError
from stanza_sim.base.precision import HALF_BYTES, Precision
from stanza_sim.base.units import Size
from stanza_sim.cluster.cluster import Cluster
from stanza_sim.model.profile import Block, ModelProfile
from stanza_sim.schedule import Pattern, Phase, Schedule
from stanza_sim.strategies._shared.builder import MIB, Builder
from stanza_sim.strategies._shared.collectives import Choice, CollectiveSettings
from stanza_sim.strategies._shared.crossing import Crossing, check_microbatches
from stanza_sim.strategies._shared.cutting import PassTimes, balanced, most_parts, parts_of, place_of_cut, trains
from stanza_sim.strategies._shared.exchange import exchange_among
from stanza_sim.strategies._shared.places import network_Bps
from stanza_sim.strategies._shared.wires import ACTIVATIONS, ActivationType, wire_of

STAGES_TRIED = 4
"""How many numbers of stages `space` tries."""


class Settings(CollectiveSettings):
    """Settings of `pipeline`; `algorithm` is that of the all-reduce among the replicas of a stage."""

    stages: StrictInt | None = Field(
        None,
        ge=1,
        description="Parts of the model, which must divide the ranks; default: one a rank, or the most that divide the "
        "ranks and that the model can be cut into.",
    )
    cuts: tuple[str, ...] | None = Field(
        None,
        description="Blocks that begin the second and later stages; default: see balance.",
    )
    balance: Literal["flops", "time"] = Field(
        "flops",
        description="Cut so that the stage with the most FLOPs has the least, or that what takes longest takes least: "
        "a stage, by what the first rank's device takes (in the experiment's profile, else by its data sheet), or "
        "what crosses a cut between hosts.",
    )
    microbatches: StrictInt | None = Field(
        None,
        ge=1,
        description="Parts of a replica's batch of stages x batch_per_worker samples; default: as many as stages.",
    )
    order: Literal["1f1b", "gpipe"] = Field(
        "1f1b",
        description="1f1b: back with a micro-batch as soon as its gradient is there; gpipe: forward with all of them "
        "first.",
    )
    checkpoint: Literal["none", "stage", "block"] = Field(
        "none",
        description="Keep of each micro-batch only the input of the stage, or of each block, and run the forward pass "
        "again before the backward pass.",
    )
    activations: ActivationType | None = Field(None, description=ACTIVATIONS)
    overlap: StrictBool = Field(
        True, description="Exchange a stage's gradients during the last backward pass, or after it."
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
    times: PassTimes | None = None,
) -> Schedule:
    """Return the schedule; raises `InputError` for stages that cannot be cut or do not divide the ranks.

    By `balance: time` stages are balanced by what `times` say of a micro-batch and by twice the time in which its
    activations cross a cut, at the rate of NICs of `cluster`; as PipeDream does, but for its exchange of gradients.

    With S stages of R replicas, M micro-batches, B = `batch_per_worker`, A_s floats per sample at the end of stage s,
    w bytes per float that travels, L bytes of a label and P_s bytes of parameters in stage s:

    - *Time*: where all stages take f forward and b backward for a micro-batch, and messages nothing, an iteration takes
      (M + S-1)(f + b) and its updates, in either order; each rank idles for (S-1)/(M + S-1) of it, the bubble. With a
      checkpoint b has a forward pass more.
    - *Bytes* per iteration: a rank of stage s sends S*B*(A_s*w + L) on, but for the last stage, S*B*A_{s-1}*w back, but
      for the first, and 2(R-1)/R*P_s by a ring. Weights that are tied across k stages are apart from P_s: all of their
      kR ranks send 2(kR-1)/(kR) of them.
    - *Memory*: a rank of stage s holds the activations of at most min(S-s, M) micro-batches under 1f1b (s from 0) and
      of M under gpipe, each of S*B/M samples. With a checkpoint it holds those of one micro-batch or block, and of the
      others the inputs of the stage or of its blocks.
    """
    settings.require_used("pipeline")
    stages = _stages(model, world_size, settings)
    batch, m = stages * batch_per_worker, settings.microbatches or stages
    check_microbatches(batch, m, where="pipeline")
    if settings.cuts is not None:
        places = _given(model, settings.cuts)
    elif settings.balance == "flops":
        places = balanced(model, stages, [_in_all(b.forward_flops, _backward_flops(b), settings) for b in model.blocks])
    elif cluster is None or times is None:
        raise InputError("time is known on a cluster only", where="pipeline: balance", hint="leave it out")
    else:
        costs = [_in_all(*times(block, batch // m), settings) for block in model.blocks]
        half = settings.activations in ("bf16", "fp16") or (settings.activations is None and precision.is_half)
        sample_nbytes = [0, *(b.output_numel * (HALF_BYTES if half else model.itemsize) for b in model.blocks)]
        between = _seconds_a_byte(cluster, world_size // stages)

        def crossing(stage: int, place: int) -> float:
            return 2 * sample_nbytes[place] * (batch // m) * between(stage)

        places = balanced(model, stages, costs, crossing)
    replicas = world_size // stages
    parts = parts_of(model, places)
    apart = _tied_apart(model, parts)
    if replicas == 1 and not apart and settings.algorithm is not Choice.BACKEND:
        what = "algorithm is for an all-reduce that does not take place: each stage has one rank"
        raise InputError(what, where="pipeline: algorithm", hint="leave it out, or use fewer stages")
    b = Builder("pipeline", model, world_size, batch, microbatches=m, numbered=m > 1)
    wire = wire_of(settings.activations)
    ranks = [b.group(f"stage{s}", range(s * replicas, (s + 1) * replicas)) for s in range(stages)]
    cuts = [Crossing(block=part[-1].name, wire=wire, mark=f".{s}") for s, part in enumerate(parts[:-1])]
    grads_ready = _flow(b, parts, ranks, cuts, settings)
    params_ready: dict[str, list[str]] = {}
    for part, group in zip(parts, ranks, strict=True):
        if not settings.overlap:
            grads_ready |= dict.fromkeys((block.name for block in part), grads_ready[part[0].name])
        exchange_among(
            b,
            [replace(block, tensors=tuple(t for t in block.tensors if t.name not in apart)) for block in part],
            group,
            prefix=f"{group}.bucket",
            first_bytes=settings.first_bucket,
            cap_bytes=settings.bucket,
            settings=settings,
            algorithm=settings.algorithm,
            grads_ready=grads_ready,
            params_ready=params_ready,
        )
    for i, (name, users) in enumerate(apart.items()):
        _exchange_tied(b, name, [ranks[s] for s in users], f"tied{i}", settings, grads_ready, params_ready)
    b.set_params_ready(params_ready)
    return b.finish()


# ---- stages ----------------------------------------------------------------------------------------------------------


def _stages(model: ModelProfile, world_size: int, settings: Settings) -> int:
    """How many stages there are: as given, or as many as the model and the ranks allow."""
    fit = [d for d in _divisors(world_size) if d <= (most := most_parts(model))]
    if settings.cuts is None:
        stages, where = settings.stages or max(fit), "pipeline: stages"
        if stages > most:
            raise InputError(
                f"the {len(model.blocks)} blocks of model {model.name} make at most {most} stages, not {stages}",
                where=where,
                hint=f"each stage has parameters: use one of {', '.join(map(str, fit))}",
            )
    else:
        stages, where = len(settings.cuts) + 1, "pipeline: cuts"
        if settings.stages not in (None, stages):
            what = f"{len(settings.cuts)} cuts make {stages} stages, not {settings.stages}"
            raise InputError(what, where=where, hint="leave stages out, or cuts")
        if "balance" in settings.model_fields_set:
            raise InputError("the cuts are given", where="pipeline: balance", hint="leave balance out, or cuts")
    if world_size % stages:
        what = f"{world_size} ranks cannot be shared out evenly to {stages} stages"
        raise InputError(what, where=where, hint=f"use one of {', '.join(map(str, fit))}")
    return stages


def _given(model: ModelProfile, cuts: tuple[str, ...]) -> list[int]:
    """The places of the blocks that begin stages: the first, and those at which `cuts` are."""
    where = "pipeline: cuts"
    places = [0, *(place_of_cut(model, cut, where=where, first="block to the first stage") for cut in cuts)]
    if places != sorted(set(places)):
        what = f"[{', '.join(cuts)}] are not in the order of the model's blocks, each once"
        raise InputError(what, where=where, hint=", ".join(model.blocks[i].name for i in sorted(set(places[1:]))))
    for s, part in enumerate(parts_of(model, places)):
        if not any(map(trains, part)):
            what = f"stage {s} would have no parameters: {', '.join(block.name for block in part)}"
            raise InputError(what, where=where, hint="join it to its neighbour: leave one cut out")
    return places


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _backward_flops(block: Block) -> int:
    return block.backward_input_flops + block.backward_weight_flops


def _in_all(forward: float, backward: float, settings: Settings) -> float:
    """What a block costs in all its passes."""
    return forward * (1 if settings.checkpoint == "none" else 2) + backward


def _seconds_a_byte(cluster: Cluster, replicas: int) -> Callable[[int], float]:
    """Seconds in which a byte crosses from a rank of the stage before to its peer in stage s; 0 inside a host."""
    host = [place.host for place in cluster.placement]

    @cache
    def between(stage: int) -> float:
        first = stage * replicas
        peers = [r for r in range(first, first + replicas) if host[r] != host[r - replicas]]
        return max((1 / min(network_Bps(cluster, r), network_Bps(cluster, r - replicas)) for r in peers), default=0.0)

    return between


def _tied_apart(model: ModelProfile, parts: Sequence[Sequence[Block]]) -> dict[str, list[int]]:
    """The tensors that several stages use, and these stages."""
    stage_of = {block.name: s for s, part in enumerate(parts) for block in part}
    found = {name: sorted({stage_of[block] for block in blocks}) for name, blocks in model.users.items()}
    return {name: stages for name, stages in found.items() if len(stages) > 1}


def _exchange_tied(
    b: Builder,
    name: str,
    stages: Sequence[str],
    known_as: str,
    settings: Settings,
    grads_ready: dict[str, str],
    params_ready: dict[str, list[str]],
) -> None:
    """All-reduce the gradients of the tensor `name` over the ranks of all `stages` that use it, and update it there."""
    group = b.group(known_as, chain.from_iterable(b.groups[stage].ranks for stage in stages))
    bundle = b.bundle(known_as, [b.model.holder(name)[1]], group)
    how = settings.how(settings.algorithm, bundle.numel * b.model.itemsize, len(b.groups[group].ranks))
    reduced = b.all_reduce(bundle, group, how, after=dict.fromkeys(grads_ready[user] for user in b.model.users[name]))
    update = b.compute(Phase.UPDATE, bundle.name, group, after=[reduced])
    for user in b.model.users[name]:
        params_ready.setdefault(user, []).append(update)


# ---- passes ----------------------------------------------------------------------------------------------------------


def in_flight(order: str, stage: int, stages: int, microbatches: int) -> int:
    """Micro-batches that a stage has gone forward with, at most, and not back."""
    return microbatches if order == "gpipe" else min(stages - stage, microbatches)


def _steps(microbatches: int, held: int) -> list[tuple[Phase, int]]:
    """The order in which a stage that holds so many goes forward and backward with micro-batches."""
    steps = [(Phase.FORWARD, m) for m in range(held)]
    for m in range(microbatches):
        steps += [(Phase.BACKWARD, m), *[(Phase.FORWARD, n) for n in (m + held,) if n < microbatches]]
    return steps


def _flow(
    b: Builder, parts: list[tuple[Block, ...]], ranks: list[str], cuts: list[Crossing], settings: Settings
) -> dict[str, str]:
    """Add all passes of all stages; returns the op after which each block's gradients are complete."""
    stages, one = len(parts), Pattern.ONE_TO_ONE
    # By stage and micro-batch: what brings its activations there, and what brings or makes their gradients.
    there: dict[tuple[Phase, int, int], list[str]] = {(Phase.FORWARD, 0, m): [] for m in range(b.microbatches)}
    grads_ready: dict[str, str] = {}

    def forward(s: int, m: int) -> None:
        done = b.forward(parts[s], ranks[s], after=there[Phase.FORWARD, s, m], microbatch=m)[-1:]
        if s == stages - 1:
            there[Phase.BACKWARD, s, m] = [b.compute(Phase.LOSS, parts[s][-1].name, ranks[s], after=done, microbatch=m)]
            return
        sent = cuts[s].on(b, ranks[s], ranks[s + 1], one, microbatch=m, number=m, after=done)
        there[Phase.FORWARD, s + 1, m] = [sent]

    def backward(s: int, m: int) -> None:
        done = there[Phase.BACKWARD, s, m]
        again = [(Phase.RECOMPUTE, block) for block in parts[s] if settings.checkpoint == "stage"]
        for block in reversed(parts[s]):
            again += [(Phase.RECOMPUTE, block)] if settings.checkpoint == "block" else []
            again.append((Phase.BACKWARD, block))
        for phase, block in again:
            done = [b.compute(phase, block.name, ranks[s], after=done, microbatch=m)]
            grads_ready[block.name] = done[0]
        if s:
            sent = cuts[s - 1].back(b, ranks[s], ranks[s - 1], one, number=m, microbatch=m, after=done)
            there[Phase.BACKWARD, s - 1, m] = [sent]

    waiting = [_steps(b.microbatches, in_flight(settings.order, s, stages, b.microbatches)) for s in range(stages)]
    while any(waiting):  # in turn, what can begin: an op names only earlier ones
        for s, steps in enumerate(waiting):
            while steps and (steps[0][0], s, steps[0][1]) in there:
                phase, m = steps.pop(0)
                (forward if phase is Phase.FORWARD else backward)(s, m)
    return grads_ready


def space(model: ModelProfile, *, world_size: int, batch_per_worker: int, local_size: int) -> Iterator[Settings]:
    """Yield every setting worth trying there, the default first; all others are balanced by time.

    Some numbers of stages, from the most down to two (one is `all_reduce`); as many micro-batches as stages, twice and
    four times as many; 1f1b with and without a checkpoint, and gpipe, which holds more and waits less for what crosses
    the cuts.
    """
    yield Settings()
    most = most_parts(model)
    found = [d for d in _divisors(world_size) if 1 < d <= most]
    counts = {found[-1 - i * (len(found) - 1) // (STAGES_TRIED - 1)]: None for i in range(STAGES_TRIED) if found}
    ways: list[dict[str, object]] = [{"order": "1f1b"}, {"order": "gpipe"}, {"order": "1f1b", "checkpoint": "block"}]
    for stages, times, way in product(counts, (1, 2, 4), ways):
        given = way | {"stages": stages, "microbatches": times * stages, "balance": "time"}
        if local_size > 1 and world_size // stages > local_size:
            given |= {"algorithm": Choice.HIERARCHICAL, "local": local_size}
        if batch_per_worker % times == 0:
            yield Settings.model_validate(given)
