"""What a full host loses beside computing and moving bytes: see `stanza_sim.cluster.Losses`, where all of it is off.

Contract: each function turns an activity, or a program, into one with the loss, and returns it as it is where hosts
state none. A collective's share is a demand on the devices of its members: beside it, computations run at one less
the share, and it keeps its own rate. The time at which an iteration begins is part of each rank's first forward pass. A
barrier is that first work of an iteration waits for all of the one before at the rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from stanza_sim.cluster.cluster import Cluster
from stanza_sim.schedule import Compute, Phase, RankProgram, UnitKind
from stanza_sim.simulate.lowered import Activity, StepProgram
from stanza_sim.simulate.lowering.resources import Resources
from stanza_sim.simulate.plain.fluid import usage_of

YIELDING = 1e-6
"""Weight of computations on a device that collectives take a share of: these have their rate first."""


def computation(cluster: Cluster, rank: int, seconds: float, usage: tuple[int, float]) -> Activity:
    """A computation of `rank` that takes `seconds` alone."""
    yields = not cluster.on_cores(rank) and cluster.host_of(rank).losses.collective_share > 0
    return Activity(work=seconds, usage=(usage,), cap=1.0, weight=YIELDING if yields else 1.0)


# ---- collectives ---------------------------------------------------------------------------------------------------


def with_share(resources: Resources, activity: Activity, ranks: Iterable[int]) -> Activity:
    """The activity of a collective of `ranks`, which takes its share of their devices while it moves."""
    shares = _shares(resources, ranks)
    moving_s = _moving_s(resources, activity)
    if not shares or moving_s <= 0:
        return activity
    by_device: dict[int, float] = {}
    for rank in {resources.reps[resources.folding.class_of[r]] for r in shares}:
        device, alike = resources.device(rank)
        by_device[device] = by_device.get(device, 0.0) + alike * shares[rank] * moving_s / activity.work
    return replace(activity, usage=usage_of([*activity.usage, *by_device.items()]))


def with_shares_of_steps(
    resources: Resources, program: StepProgram, activity: Activity, ranks: Iterable[int]
) -> StepProgram:
    """`program` whose messages take together what `activity`, the same collective as one, takes of each device.

    Of a rank's messages each takes in proportion to its bytes. Nothing is folded.
    """
    shares = _shares(resources, ranks)
    moving_s = _moving_s(resources, activity)
    if not shares or moving_s <= 0:
        return program
    moved: dict[int, float] = {}
    for src, dst, message in program.messages:
        for rank in (src, dst):
            moved[rank] = moved.get(rank, 0.0) + message.work
    messages = []
    for src, dst, message in program.messages:
        taken = [(resources.device(r)[0], shares[r] * moving_s / moved[r]) for r in (src, dst) if r in shares]
        messages.append((src, dst, replace(message, usage=usage_of([*message.usage, *taken]))))
    return replace(program, messages=tuple(messages))


def _shares(resources: Resources, ranks: Iterable[int]) -> Mapping[int, float]:
    """What a collective takes of the device of each of `ranks`, where it takes any."""
    cluster = resources.cluster
    shares = {r: cluster.host_of(r).losses.collective_share for r in ranks if not cluster.on_cores(r)}
    return {r: share for r, share in shares.items() if share > 0}


def _moving_s(resources: Resources, activity: Activity) -> float:
    """Seconds for which `activity` alone moves."""
    return max(activity.work / activity.cap, resources.busiest_s(activity))


# ---- iterations ----------------------------------------------------------------------------------------------------


def first_forward(program: RankProgram) -> int | None:
    """The unit of the first forward pass of an iteration, if the rank has any."""
    forward = (u.index for u in program.units if isinstance(u.op, Compute) and u.op.phase is Phase.FORWARD)
    return next(forward, None)


def overhead_s(cluster: Cluster, rank: int) -> float:
    """What `rank` spends at the start of an iteration."""
    host = cluster.placement[rank].host
    losses = cluster.hosts[host].losses
    devices = sum(not cluster.on_cores(r) for r in cluster.ranks_on(host))
    return losses.iteration_overhead_s + losses.overhead_per_device_s * max(devices - 1, 0)


def behind_barrier(program: RankProgram) -> RankProgram:
    """`program` whose iterations begin when all of the one before is through; receives are posted as before."""
    needed = {v for u in program.units for v in u.needs}
    last = tuple(u.index for u in program.units if u.index not in needed)
    receives = {u.index for u in program.units if u.kind is UnitKind.RECV}
    units = [
        u if u.index in receives or not receives.issuperset(u.needs) else replace(u, needs_previous=last)
        for u in program.units
    ]
    return replace(program, units=tuple(units))
