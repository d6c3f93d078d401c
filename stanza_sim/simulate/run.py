"""`simulate`: from a schedule, a model, a cluster and costs to a prediction."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from stanza_sim.cluster.cluster import Cluster
from stanza_sim.errors import InputError
from stanza_sim.measures import op_seconds, steady_iteration_s, waiting
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Collective, Schedule, check
from stanza_sim.simulate.array_lower import ArrayLowered, lower_to_arrays, message_count
from stanza_sim.simulate.engine import Engine
from stanza_sim.simulate.fold import Folding, fold, unfolded
from stanza_sim.simulate.lower import Lowered, lower
from stanza_sim.timeline import Timeline

if TYPE_CHECKING:
    from stanza_sim.simulate.costs import CostModel
    from stanza_sim.simulate.variation import Variation

REPEATS = 1e-6
"""Iterations repeat when their lengths differ by no more than this, relatively."""
EVEN, EVEN_FROM = 1e-3, 4
"""Where iterations do not repeat, the mean has settled when two halves of so many agree by so much, relatively."""
COMPILED_FROM = 1_500
"""From so many messages in an iteration on, the compiled fabric is worth its start-up time."""
WARM_UP, MEASURED = 2, 5
"""Iterations of a random simulation: those before the window, and those in it."""
MOST_PERIODS = 8
"""A steady state may alternate: lengths may repeat after up to so many iterations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeats:
    """How long an iteration takes over `count` repeats of a random simulation: 5th, 50th and 95th percentile, seconds.

    Percentiles interpolate linearly between repeats.
    """

    count: int
    p5_s: float
    median_s: float
    p95_s: float


class Collectives(StrEnum):
    """How collectives are simulated: each as one activity over all links that it uses, or message by message."""

    ACTIVITY = "activity"
    STEPS = "steps"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What the simulator predicts for one schedule. Times in seconds, per iteration, in the steady state.

    `utilisation` maps resources (links, also those that folding made one, devices and cores) to the share of the
    iteration in which they are busy, background traffic included; `bound_s` is what no order of the same work can
    beat; bytes are per iteration and rank (of the rank that stands for its class when folded). `steady` says that
    iterations repeat; otherwise `iteration_s` is a mean, which has `settled` or not after `iterations`. `repeats` is
    there for a prediction made of several (see `simulate_repeats`), of which all but `iteration_s` and `samples_per_s`
    is the one in the middle.
    """

    timeline: Timeline
    iteration_s: float
    samples_per_s: float
    exposed_comm_s: float
    idle_s: float
    bound_s: float
    bottleneck: str
    cost_source: str
    utilisation: dict[str, float]
    op_seconds: dict[str, float]
    sent_bytes: dict[int, int]
    received_bytes: dict[int, int]
    iterations: int
    steady: bool
    events: int
    settled: bool = True
    repeats: Repeats | None = None


@contextmanager
def _collector_off() -> Iterator[None]:
    """Keep Python's collector of cycles from walking over everything that a large simulation holds, again and again.

    A simulation makes few cycles; what it drops is freed by counting references.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@_collector_off()
def simulate(
    schedule: Schedule,
    model: ModelProfile,
    cluster: Cluster,
    costs: Callable[[int], CostModel],
    *,
    cost_source: str = "",
    fold_ranks: bool = True,
    max_iterations: int = 40,
    variation: Variation | None = None,
    collectives: Collectives = Collectives.ACTIVITY,
) -> Prediction:
    """Predict the steady state of `schedule`, with the costs of rank r's device from `costs(r)`.

    Identical ranks are folded and simulated once unless `fold_ranks` is False; the answer is the same. `variation`
    makes computations take longer or shorter by chance: nothing is then folded, and `iteration_s` is the mean over a
    fixed number of iterations, as it is where background traffic comes and goes. Raises `ScheduleError` for an illegal
    schedule and `InputError` if the cluster has another number of ranks. With `collectives` step by step nothing is
    folded where there are any.
    """
    check(schedule, model)
    if cluster.world_size != schedule.world_size:
        raise InputError(
            f"schedule {schedule.name} has {schedule.world_size} ranks, cluster {cluster.name} places "
            f"{cluster.world_size}",
            hint="build the schedule for the cluster's number of ranks, or set `nodes`",
        )
    if variation is not None and not variation.varies:
        variation = None
    by_chance = variation is not None or cluster.varies
    stepwise = collectives is Collectives.STEPS and any(isinstance(op, Collective) for op in schedule.ops)
    folds = fold_ranks and not by_chance and not stepwise
    folding = fold(schedule, cluster) if folds else unfolded(cluster)
    if stepwise:
        engine = Engine(schedule, lower(schedule, model, cluster, folding, costs, stepwise=True))
    else:
        engine = _engine(schedule, model, cluster, folding, costs)
    engine.variation = variation
    lowered = engine.lowered
    ends: list[Sequence[float]] = []
    window = (0, 0)

    def enough(known: list[tuple[float, ...]]) -> bool:
        nonlocal ends, window
        if by_chance:  # iterations that look alike do not end it
            found = (WARM_UP, WARM_UP + MEASURED) if len(known[0]) > WARM_UP + MEASURED else None
        else:
            found = steady_window(known) or even_window(known)
        if not by_chance and found is None and len(known[0]) >= max(max_iterations, 2):
            found = (len(known[0]) // 2 - 1, len(known[0]) - 1)
        if found is None:
            return False
        ends, window = list(known), found
        return True

    engine.run(enough)
    first, last = window
    iteration_s = steady_iteration_s(ends, first, last)
    working = [r for r in engine.ranks if r.actor.program.units]
    timeline = Timeline(
        spans=tuple(engine.spans),
        iteration_end_s={r.actor.rank: tuple(e) for r, e in zip(working, ends, strict=True)},
        multiplicity={r.actor.rank: r.actor.size for r in engine.ranks},
    )
    slower = None if variation is None else [variation.mean(a.rank, first + 1, last) for a in lowered.actors]
    busy = demands(lowered, slower)
    floor = bound_s(lowered, busy, slower)
    if by_chance:  # some of the window's work may have been done before it
        floor = min(floor, iteration_s)
    for q, nbytes in engine.fabric.background_bytes().items():
        busy[q] += nbytes * iteration_s / engine.clock.now
    shares = [
        min(1.0, d / (r.capacity * iteration_s)) if iteration_s > 0 else 0.0
        for r, d in zip(lowered.resources, busy, strict=True)
    ]
    utilisation = {r.label: share for r, share in zip(lowered.resources, shares, strict=True)}
    utilisation |= {cluster.links[q].label: shares[r] for q, r in lowered.links.items()}
    waits = waiting(schedule, timeline, first, last)
    return Prediction(
        timeline=timeline,
        iteration_s=iteration_s,
        samples_per_s=schedule.global_batch / iteration_s if iteration_s > 0 else float("inf"),
        exposed_comm_s=waits.exposed_comm_s,
        idle_s=waits.idle_s,
        bound_s=floor,
        bottleneck=bottleneck(schedule, cluster, folding, lowered, busy, iteration_s),
        cost_source=cost_source or costs(0).source,
        utilisation=utilisation,
        op_seconds=op_seconds(schedule, timeline, first, last),
        sent_bytes={a.rank: sum(t[0] for t in a.traffic.values()) for a in lowered.actors},
        received_bytes={a.rank: sum(t[1] for t in a.traffic.values()) for a in lowered.actors},
        iterations=last + 1,
        steady=by_chance or steady_window(ends) is not None,
        settled=by_chance or (steady_window(ends) or even_window(ends)) is not None,
        events=engine.events,
    )


def _engine(
    schedule: Schedule,
    model: ModelProfile,
    cluster: Cluster,
    folding: Folding,
    costs: Callable[[int], CostModel],
) -> Engine:
    """The engine with the fabric that suits the number of messages."""
    # The compiled fabric has neither staging nor token buckets.
    plain = any(h.staging is not None for h in cluster.hosts) or any(k.bucket is not None for k in cluster.links)
    if not plain and len(folding.classes) == cluster.world_size and message_count(schedule) >= COMPILED_FROM:
        from stanza_sim.simulate import kernel

        if kernel.COMPILED:
            from stanza_sim.simulate.array_fabric import ArrayFabric

            arrays = lower_to_arrays(schedule, model, cluster, folding, costs)
            return Engine(schedule, arrays, fabric=lambda _, clock, listener: ArrayFabric(arrays, clock, listener))
    return Engine(schedule, lower(schedule, model, cluster, folding, costs))


def steady_window(ends: Sequence[Sequence[float]]) -> tuple[int, int] | None:
    """Return (first, last) such that iterations repeat with period last - first, or None.

    All ranks must take equally long over the period, and as long as over the period before it; iteration 0, which
    waits for nothing before it, is not counted.
    """
    last = len(ends[0]) - 1
    for period in range(1, MOST_PERIODS + 1):
        if last - 2 * period < 1:
            return None
        lengths = [e[last] - e[last - period] for e in ends]
        before = [e[last - period] - e[last - 2 * period] for e in ends]
        longest = max(lengths)
        if all(abs(x - longest) <= REPEATS * longest for x in (*lengths, *before)):
            return last - period, last
    return None


def even_window(ends: Sequence[Sequence[float]]) -> tuple[int, int] | None:
    """Return (first, last) for iterations that never quite repeat but whose mean has settled, or None.

    Many messages whose order changes from one iteration to the next lead to this. The means over the last half and the
    half before it, each of at least `EVEN_FROM` iterations, must agree within `EVEN` at every rank.
    """
    last = len(ends[0]) - 1
    half = last // 2
    if half < EVEN_FROM:
        return None
    for e in ends:
        late, early = e[last] - e[last - half], e[last - half] - e[last - 2 * half]
        if abs(late - early) > EVEN * late:
            return None
    return last - half, last


def demands(lowered: Lowered, slower: Sequence[float] | None = None) -> list[float]:
    """Work that one iteration puts on each resource: bytes on links, core-seconds, device-seconds.

    `slower` are factors on the computations of each class.
    """
    total = [0.0] * len(lowered.resources)
    if isinstance(lowered, ArrayLowered):
        for load, nbytes in zip(lowered.messages.loads, lowered.messages.bytes_by_load(), strict=True):
            for q, demand in load.usage:
                total[q] += nbytes * demand
    for k, a in enumerate(lowered.actors):
        factor = 1.0 if slower is None else slower[k]
        for load in a.loads.values():
            for q, demand in load.usage:
                total[q] += factor * load.work * demand
        others = [load for ms in a.messages.values() for m in ms for load in m.loads]
        others += [load for c in a.copies.values() for load in (c.out, c.into) if load is not None]
        for load in others:
            for q, demand in load.usage:
                total[q] += load.work * demand
    for ring in lowered.rings.values():
        for q, demand in ring.load.usage:
            total[q] += ring.load.work * demand
    return total


def bound_s(lowered: Lowered, busy: Sequence[float], slower: Sequence[float] | None = None) -> float:
    """Seconds that no order of the same work can beat: the busiest resource, or the busiest lane of a rank."""
    bounds = [d / r.capacity for r, d in zip(lowered.resources, busy, strict=True)]
    for k, a in enumerate(lowered.actors):
        factor = 1.0 if slower is None else slower[k]
        lanes: dict[str, float] = {}
        for u, load in a.loads.items():
            lane = getattr(a.program.units[u].op, "lane", "main")
            lanes[lane] = lanes.get(lane, 0.0) + factor * load.work
        bounds.extend(lanes.values())
    return max(bounds, default=0.0)


def bottleneck(
    schedule: Schedule,
    cluster: Cluster,
    folding: Folding,
    lowered: Lowered,
    busy: Sequence[float],
    iteration_s: float,
) -> str:
    """Name the busiest resource in words, with the roles of the ranks on its host."""
    if not lowered.resources or iteration_s <= 0:
        return "nothing takes time"
    shares = [d / (r.capacity * iteration_s) for r, d in zip(lowered.resources, busy, strict=True)]
    share = max(shares)
    tied = [r for r, s in zip(lowered.resources, shares, strict=True) if s >= share * (1 - REPEATS)]
    resource = min(tied, key=lambda r: r.label)
    host = next((i for i, h in enumerate(cluster.hosts) if resource.label.startswith(h.name + " ")), None)
    if host is None:
        return f"{resource.label}, {min(share, 1):.0%} busy"
    here = [r for r, p in enumerate(cluster.placement) if p.host == host]
    roles = [g.name for g in schedule.groups if any(r in g.ranks for r in here) and "." not in g.name]
    alike = len(folding.host_classes[folding.host_class_of[host]]) - 1
    who = " + ".join(roles) + (f", {alike} more like it" if alike else "")
    return f"{resource.label} ({who}), {min(share, 1):.0%} busy"
