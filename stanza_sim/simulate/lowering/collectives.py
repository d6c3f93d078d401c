"""What a collective costs: as one activity over the links that its steps use, or message by message.

As one activity: every link is charged the bytes that all steps move over it, and the whole takes as long as the steps
do with nothing beside them; the latencies and overheads on their longest path come first, and nothing moves in those.
Rings, in which all ranks do alike, have a closed form (`ring`); for the rest see `by_steps.py`. Beside other traffic it
is an approximation, which the same collective step by step does not make.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import inf

from stanza_sim.cluster.cluster import Usage
from stanza_sim.schedule import Carrier, Collective, CollectiveKind
from stanza_sim.schedule.collectives import collective_bytes, has_closed_form, traffic
from stanza_sim.simulate.loads import LINK_PHI, Load, Ring
from stanza_sim.simulate.lowering.collective_cost import busiest_s, priced, stepped, taking
from stanza_sim.simulate.lowering.fold import ring_order
from stanza_sim.simulate.lowering.lower import Lowering
from stanza_sim.simulate.plain.fluid import usage_of

SAME = 1e-9
"""Relative tolerance: a ring whose edges are all alike takes what its links alone make of it."""


def collective(work: Lowering, op: Collective) -> Ring:
    """What `op` costs: rings by their closed form, the rest from their steps; with the steps where those are to run."""
    found = ring(work, op) if has_closed_form(op) else priced(work, op)
    return stepped(work, op, found) if work.stepwise else found


def moved(work: Lowering, op: Collective) -> dict[int, tuple[int, int]]:
    """Bytes that each rank sends and receives in `op`; of a backend's collective by the closed form, in whole bytes."""
    ranks, itemsize = work.s.group(op.ranks), work.s.itemsize
    if op.by is Carrier.STEPS:
        return traffic(op, ranks, itemsize)
    return {r: collective_bytes(op, ranks, r, itemsize) for r in ranks}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Edge:
    """How messages get from a rank of a ring to the next, on host `host`: over `usage`, or over its loopback."""

    host: int
    latency_s: float
    overhead_s: float
    cap_Bps: float
    usage: Usage


def ring(work: Lowering, op: Collective) -> Ring:
    """The ring algorithm as one activity over all the links that its steps use.

    Bytes that cross each edge of the ring, and steps: all-reduce 2(N-1)/N*n in 2(N-1); reduce-scatter and all-gather
    (N-1)/N*n in N-1; broadcast, as a pipelined chain of endlessly many chunks, n in N-1 (Thakur et al. 2005).
    """
    members = ring_order(work.s, op)
    n = len(members)
    actors = tuple(sorted({work.folding.class_of[r] for r in members}))
    pairs = list(pairwise(members))
    steps, edge_bytes = n - 1, float(op.nbytes)
    if op.kind is not CollectiveKind.BROADCAST:
        pairs.append((members[-1], members[0]))
        edge_bytes *= (n - 1) / n
        if op.kind is CollectiveKind.ALL_REDUCE:
            steps, edge_bytes = 2 * steps, 2 * edge_bytes
    if n == 1 or edge_bytes == 0:
        return Ring(actors=actors, load=Load(work=0.0, usage=()))
    place, hosts = work.cluster.placement, work.cluster.hosts
    seen = {work.folding.host_class_of[place[rep].host]: place[rep].host for rep in reversed(work.reps)}
    standing = set(seen.values())
    crossing: dict[int, float] = defaultdict(float)
    inside: Counter[int] = Counter()
    edges: set[_Edge] = set()
    folded = len(work.folding.classes) < work.cluster.world_size
    orbits = work.folding.orbits
    met: set[tuple[int, int]] = set()
    for a, b in pairs:
        ha, hb = place[a].host, place[b].host
        there = seen.get(work.folding.host_class_of[hb], hb)
        path = None if ha != hb else work.path(a, b, op.ranks)
        if ha == hb and path is None:
            inside[ha] += 1
            loop = hosts[ha].loopback
            near = _Edge(host=there, latency_s=loop.latency_s, overhead_s=0.0, cap_Bps=loop.bandwidth_Bps, usage=())
            edges.add(near)
            continue
        alike = (work.folding.host_class_of[ha], work.folding.host_class_of[hb])
        if folded and orbits is None and ha not in standing and hb not in standing and alike in met:
            continue
        met.add(alike)  # the slowest edge may be one that no standing host has
        usage, latency_s = path or work.path(a, b, op.ranks) or ((), 0.0)
        overhead_s = hosts[ha].nic.overhead_s if ha != hb else 0.0
        edges.add(_Edge(host=there, latency_s=latency_s, overhead_s=overhead_s, cap_Bps=inf, usage=usage))
        for q, share in usage:
            if orbits is not None:
                crossing[q] += share / work.link_sizes[orbits.link_class[q]]
            elif not folded or q // 2 in standing:
                crossing[q] += share
    demands = [(work.link(q), w) for q, w in crossing.items()]
    phi = LINK_PHI
    reducing = op.kind in (CollectiveKind.ALL_REDUCE, CollectiveKind.REDUCE_SCATTER)
    cores: dict[int, tuple[float, float]] = {}
    for host in standing if folded else {p.host for p in place}:
        ranks = [r for r in work.on_host.get(host, ()) if r in work.s.group(op.ranks)]
        loop = hosts[host].loopback
        core_s = near_s = inside[host] * (loop.byte_core_s + loop.message_core_s * steps / edge_bytes)
        for r in ranks:
            if reducing and work.cluster.on_cores(r):
                core_s += work.cost_of(r).reduce_s(int(op.nbytes * (n - 1) / n), 2) / edge_bytes
        if core_s > 0 and ranks:
            demands.append((work.cores(ranks[0]), core_s))
            phi = min(phi, len(ranks) / core_s)
            busy_s = edge_bytes / hosts[host].cores
            cores[host] = near_s * busy_s / steps, (core_s - near_s) * busy_s / (n - 1)
    load = Load(
        work=edge_bytes,
        usage=usage_of(demands),
        phi=phi,
        cap=min(e.cap_Bps for e in edges),
        delay_s=steps * max(e.latency_s for e in edges) + (steps - 1) * max(e.overhead_s for e in edges),
    )
    if op.kind is not CollectiveKind.BROADCAST:
        load = _at_its_pace(work, op, load, edges, cores)
    return Ring(actors=actors, load=load)


def _at_its_pace(
    work: Lowering, op: Collective, load: Load, edges: Iterable[_Edge], cores: Mapping[int, tuple[float, float]]
) -> Load:
    """`load` such that alone it takes as long as the steps of the ring, of which each waits for the slowest edge.

    That edge need not have both the largest latency and the least rate, and where ranks add on cores it need not be
    the same in all steps. `cores[host]` are the seconds that a step's messages and its additions take on the cores.
    """
    n = len(work.s.group(op.ranks))
    demand = dict(load.usage)

    def step_s(edge: _Edge, adds: bool) -> float:
        byte_s = 1.0 / edge.cap_Bps
        for q, share in edge.usage:
            together = demand.get(work.keys.get(work.link_key(q), -1), 0.0)
            byte_s = max(byte_s, max(together, share) / work.cluster.links[q].bandwidth_Bps)
        messages_s, additions_s = cores.get(edge.host, (0.0, 0.0))
        on_cores_s = messages_s + (additions_s if adds else 0.0)
        return edge.latency_s + edge.overhead_s + max(op.nbytes / n * byte_s, on_cores_s)

    adds = {CollectiveKind.ALL_REDUCE: (True, False), CollectiveKind.REDUCE_SCATTER: (True,)}.get(op.kind, (False,))
    slowest = [max((step_s(e, a), e.latency_s, e.overhead_s) for e in edges) for a in adds]
    paid_s = slowest[0][2]  # for its first message each rank has paid when it joined
    seconds = (n - 1) * sum(s for s, _, _ in slowest) - paid_s
    took = load.delay_s + max(load.work / load.cap, busiest_s(work, load))
    if abs(took - seconds) <= SAME * seconds:
        return load
    return taking(work, load, seconds, (n - 1) * sum(lat + over for _, lat, over in slowest) - paid_s)
