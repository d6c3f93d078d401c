"""What limits an iteration, whatever the order of its work: the work on each resource, the bound, the bottleneck."""

from __future__ import annotations

from collections.abc import Sequence

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


def bound_s(lowered: Lowered, busy: Sequence[float], slower: Sequence[float] | None = None) -> float:
    """Seconds that no order of the same work can beat: the busiest resource, or the busiest lane of a rank."""
    bounds = [d / r.capacity for r, d in zip(lowered.resources, busy, strict=True)]
    for k, a in enumerate(lowered.rank_classes):
        factor = 1.0 if slower is None else slower[k]
        lanes: dict[str, float] = {}
        for u, activity in a.activities.items():
            lane = getattr(a.program.units[u].op, "lane", "main")
            lanes[lane] = lanes.get(lane, 0.0) + factor * activity.work
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
    tied = [r for r, s in zip(lowered.resources, shares, strict=True) if s >= share * (1 - EVEN_LOADS)]
    resource = min(tied, key=lambda r: r.label)
    host = next((i for i, h in enumerate(cluster.hosts) if resource.label.startswith(h.name + " ")), None)
    if host is None:
        return f"{resource.label}, {min(share, 1):.0%} busy"
    here = [r for r, p in enumerate(cluster.placement) if p.host == host]
    roles = [g.name for g in schedule.groups if any(r in g.ranks for r in here) and "." not in g.name]
    alike = len(folding.host_classes[folding.host_class_of[host]]) - 1
    who = " + ".join(roles) + (f", {alike} more like it" if alike else "")
    return f"{resource.label} ({who}), {min(share, 1):.0%} busy"
