"""What limits an iteration, whatever the order of its work: the work on each resource, the bound, the bottleneck."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from stanza_sim.cluster.cluster import Cluster
from stanza_sim.schedule import Schedule
from stanza_sim.simulate.lowered import Lowered
from stanza_sim.simulate.lowering.arrays import ArrayLowered
from stanza_sim.simulate.lowering.fold import Folding

EVEN_LOADS = 1e-6
"""Resources are equally busy when their shares differ by no more than this, relatively."""


def demands(lowered: Lowered, slower: Sequence[float] | None = None) -> list[float]:
    """Work that one iteration puts on each resource: bytes on links, core-seconds, device-seconds.

    `slower` are factors on the computations of each class.
    """
    total = [0.0] * len(lowered.resources)
    if isinstance(lowered, ArrayLowered):
        for activity, nbytes in zip(lowered.messages.activities, lowered.messages.bytes_by_activity(), strict=True):
            for q, demand in activity.usage:
                total[q] += nbytes * demand
    for k, a in enumerate(lowered.rank_classes):
        factor = 1.0 if slower is None else slower[k]
        for activity in a.activities.values():
            for q, demand in activity.usage:
                total[q] += factor * activity.work * demand
        others = [activity for ms in a.messages.values() for m in ms for activity in m.activities]
        others += [activity for c in a.copies.values() for activity in (c.out, c.into) if activity is not None]
        for activity in others:
            for q, demand in activity.usage:
                total[q] += activity.work * demand
    for collective in lowered.collectives.values():
        for q, demand in collective.activity.usage:
            total[q] += collective.activity.work * demand
    return total


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """Something that bounds an iteration, with the seconds that one iteration's work takes it: a resource, by number,
    or the `lane` of a class of ranks, by number."""

    seconds: float
    resource: int | None = None
    rank_class: int | None = None
    lane: str = ""


def limits(lowered: Lowered, busy: Sequence[float], slower: Sequence[float] | None = None) -> Iterator[Limit]:
    """Every resource, then every lane of every class of ranks."""
    for q, (r, d) in enumerate(zip(lowered.resources, busy, strict=True)):
        yield Limit(seconds=d / r.capacity, resource=q)
    for k, a in enumerate(lowered.rank_classes):
        factor = 1.0 if slower is None else slower[k]
        lanes: dict[str, float] = {}
        for u, activity in a.activities.items():
            lane = getattr(a.program.units[u].op, "lane", "main")
            lanes[lane] = lanes.get(lane, 0.0) + factor * activity.work
        for lane, seconds in lanes.items():
            yield Limit(seconds=seconds, rank_class=k, lane=lane)


def bound_s(lowered: Lowered, busy: Sequence[float], slower: Sequence[float] | None = None) -> float:
    """Seconds that no order of the same work can beat: the busiest resource, or the busiest lane of a rank."""
    return max((limit.seconds for limit in limits(lowered, busy, slower)), default=0.0)


def bottleneck(
    schedule: Schedule,
    cluster: Cluster,
    folding: Folding,
    lowered: Lowered,
    busy: Sequence[float],
    iteration_s: float,
    slower: Sequence[float] | None = None,
) -> str:
    """Name in words what `bound_s` of the same `busy` measures, with the roles of the ranks there.

    Of a resource and a lane that are equally busy it is the resource; of several resources the first by name.
    """
    found = list(limits(lowered, busy, slower))
    most_s = max((limit.seconds for limit in found), default=0.0)
    if most_s <= 0 or iteration_s <= 0:
        return "nothing takes time"
    share = f"{min(most_s / iteration_s, 1):.0%} busy"
    tied = [limit for limit in found if limit.seconds >= most_s * (1 - EVEN_LOADS)]
    shared = [lowered.resources[limit.resource].label for limit in tied if limit.resource is not None]
    if not shared:
        return f"{_lane(schedule, cluster, lowered, tied[0])}, {share}"
    label = min(shared)
    host = next((i for i, h in enumerate(cluster.hosts) if label.startswith(h.name + " ")), None)
    if host is None:
        return f"{label}, {share}"
    here = cluster.ranks_on(host)
    alike = len(folding.host_classes[folding.host_class_of[host]]) - 1
    return f"{label} ({_roles(schedule, here, alike)}), {share}"


def _lane(schedule: Schedule, cluster: Cluster, lowered: Lowered, limit: Limit) -> str:
    """A lane in words: `srv-0 main lane (server)`."""
    assert limit.rank_class is not None
    rank_class = lowered.rank_classes[limit.rank_class]
    rank, alike = rank_class.rank, rank_class.size - 1
    alone = len(cluster.ranks_on(cluster.placement[rank].host)) == 1
    of = "" if alone else f" of rank {rank}"
    return f"{cluster.host_of(rank).name} {limit.lane} lane{of} ({_roles(schedule, (rank,), alike)})"


def _roles(schedule: Schedule, ranks: Sequence[int], alike: int) -> str:
    """What `ranks` are, and how many more are like them."""
    roles = [g.name for g in schedule.groups if "." not in g.name and any(r in g.ranks for r in ranks)]
    return " + ".join(roles) + (f", {alike} more like it" if alike else "")
