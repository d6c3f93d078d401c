"""What a collective costs: as one activity over the links that its steps use, or message by message.

As one activity: every link is charged the bytes that all steps move over it, and the whole takes as long as the steps
do with nothing beside them; the latencies and overheads on their longest path come first, and nothing moves in those.
What NCCL carries out takes what its own tuning model says (`nccl_rings.py`). Rings, in which all ranks do alike, have a
closed form (`Collectives.closed_form`); for the rest see `collective_cost.py`. Beside other traffic it is an
approximation, which the same collective step by step does not make.

Contract: `Collectives` prices the collectives of one schedule. It asks for loads of messages and costs of additions,
and knows nothing of transfers or programs. Only rings may be folded.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf

from stanza_sim.cluster.cluster import Usage
from stanza_sim.schedule import Carrier, Collective, CollectiveKind
from stanza_sim.schedule.collectives import collective_bytes, has_closed_form, traffic
from stanza_sim.simulate.lowered import Activity, CollectiveActivity, Copies
from stanza_sim.simulate.lowering.collective_cost import StepCosts, taking
from stanza_sim.simulate.lowering.collective_steps import CollectiveInputs
from stanza_sim.simulate.lowering.endpoints import Ends
from stanza_sim.simulate.lowering.fold import ring_order
from stanza_sim.simulate.lowering.losses import with_share, with_shares_of_steps
from stanza_sim.simulate.lowering.nccl_rings import Filled, NcclRings
from stanza_sim.simulate.plain.fluid import usage_of

SAME = 1e-9
"""Relative tolerance: a ring whose edges are all alike takes what its links alone make of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Round:
    """How data goes round a ring: from whom to whom, in how many steps, and bytes that cross each edge in all."""

    edges: tuple[tuple[int, int], ...]
    steps: int
    edge_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Edge:
    """How messages get from a rank of a ring to the next, on host `host`: over `usage`, or over its loopback."""

    host: int
    latency_s: float
    overhead_s: float
    cap_Bps: float
    usage: Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class _Edges:
    """The edges of a ring, those alike once, and what they use for each byte that crosses one of them.

    `on_links` are bytes by link; `inside` counts the edges over the loopback of each host.
    """

    kinds: Collection[_Edge]
    on_links: Mapping[int, float]
    inside: Mapping[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cores:
    """What a ring takes of the cores of a host that has `ranks` of its members.

    `byte_s` is core-seconds for each byte that crosses an edge; `messages_s` and `additions_s` are the seconds that a
    step's messages over the loopback and its additions take on all cores.
    """

    resource: int
    ranks: int
    byte_s: float
    messages_s: float
    additions_s: float


class Collectives:
    """The prices of the collectives of one schedule; with `simulate_steps`, for which nothing is folded, with their
    steps."""

    def __init__(self, inputs: CollectiveInputs, *, simulate_steps: bool = False) -> None:
        self.inputs, self.simulate_steps = inputs, simulate_steps
        self.steps = StepCosts(inputs)
        self.nccl = NcclRings(inputs, self._single_ring)
        self._moved: dict[str, Mapping[int, tuple[int, int]]] = {}

    def every(self) -> dict[str, CollectiveActivity]:
        """Every collective, by op name; those alike are looked up once."""
        made: dict[tuple[object, ...], CollectiveActivity] = {}
        found: dict[str, CollectiveActivity] = {}
        for op in self.inputs.schedule.ops:
            if isinstance(op, Collective):
                key = (op.kind, op.ranks, op.nbytes, op.root, op.algorithm, op.by, op.local, op.chunk, op.wire)
                if key not in made:
                    made[key] = self.collective(op)
                found[op.name] = made[key]
        return found

    def collective(self, op: Collective) -> CollectiveActivity:
        """What `op` costs: NCCL's by its tuning model, rings by their closed form, the rest from their steps.

        Step by step, a collective of NCCL is carried out as the ring that `closed_form` says.
        """
        if not self.simulate_steps and self.nccl.carries(op):
            found = CollectiveActivity(rank_classes=self._members(op), activity=self.nccl.activity(op))
        else:
            found = (
                self.closed_form(op) if has_closed_form(op) else self.steps.priced(op, timed=not self.simulate_steps)
            )
        resources, group = self.inputs.resources, self.inputs.group(op)
        if not self.simulate_steps:
            return replace(found, activity=with_share(resources, found.activity, group))
        program = with_shares_of_steps(resources, self.steps.program(op), found.activity, group)
        return replace(found, activity=with_share(resources, found.activity, group), program=program)

    # ---- bytes and copies ------------------------------------------------------------------------------------------

    def moved(self, op: Collective) -> Mapping[int, tuple[int, int]]:
        """Bytes that each member that stands for a class sends and receives in `op`; of a backend's in whole bytes."""
        if op.name not in self._moved:
            ranks, itemsize = self.inputs.group(op), self.inputs.schedule.itemsize_of(op)
            if op.by is Carrier.STEPS:
                self._moved[op.name] = traffic(op, ranks, itemsize)
            else:
                standing = (r for r in self.inputs.resources.reps if r in ranks)
                self._moved[op.name] = {r: collective_bytes(op, ranks, r, itemsize) for r in standing}
        return self._moved[op.name]

    def copies(self, op: Collective, rank: int) -> Copies:
        """What `rank` copies for a collective: all that it contributes, and all that it gets.

        Where the executor carries out the steps itself it copies what each of them sends and receives; here all that
        is sent is copied before the first step, and all that is received after the last, with the latency once each.
        """
        group = self.inputs.group(op)
        mine = op.nbytes / len(group)
        match op.kind:
            case CollectiveKind.ALL_REDUCE:
                out, into = float(op.nbytes), float(op.nbytes)
            case CollectiveKind.REDUCE_SCATTER:
                out, into = float(op.nbytes), mine
            case CollectiveKind.ALL_GATHER:
                out, into = mine, float(op.nbytes)
            case CollectiveKind.BROADCAST:
                out, into = (float(op.nbytes), 0.0) if rank == op.root else (0.0, float(op.nbytes))
        if op.by is Carrier.STEPS:
            out, into = map(float, self.moved(op)[rank])
        if len(group) == 1:
            out = into = 0.0
        copy = self.inputs.activities.copy
        return Copies(out=copy(rank, out, "out"), into=copy(rank, into, "in"))

    # ---- rings -----------------------------------------------------------------------------------------------------

    def closed_form(self, op: Collective) -> CollectiveActivity:
        """The ring algorithm as one activity over all the links that its steps use.

        It waits for the latencies of its steps and the overheads of all but the first, then moves over all edges at
        once, as fast as the slowest loopback, link and host's cores allow.
        """
        resources, rank_classes = self.inputs.resources, self._members(op)
        data = self._round(op)
        if not data.edges or data.edge_bytes == 0:
            return CollectiveActivity(rank_classes=rank_classes, activity=Activity(work=0.0, usage=()))
        edges = self._edges(op, data)
        demands = [(resources.link(q), w) for q, w in edges.on_links.items()]
        cores = self._cores(op, data, edges.inside)
        demands += [(c.resource, c.byte_s) for c in cores.values()]
        demands += self._processes(data)
        activity = Activity(
            work=data.edge_bytes,
            usage=usage_of(demands),
            weight=min([resources.link_weight, *(c.ranks / c.byte_s for c in cores.values())]),
            cap=min(e.cap_Bps for e in edges.kinds),
            delay_s=data.steps * max(e.latency_s for e in edges.kinds)
            + (data.steps - 1) * max(e.overhead_s for e in edges.kinds),
        )
        if op.kind is not CollectiveKind.BROADCAST:
            activity = self._at_its_pace(op, activity, edges.kinds, cores)
        return CollectiveActivity(rank_classes=rank_classes, activity=activity)

    def _members(self, op: Collective) -> tuple[int, ...]:
        """The classes of the members of `op`."""
        class_of = self.inputs.resources.folding.class_of
        return tuple(sorted({class_of[r] for r in self.inputs.group(op)}))

    def _single_ring(self, op: Collective) -> Filled:
        """What a ring over hosts of one rank each fills."""
        data = self._round(op)
        edges, cores = self._edges(op, data), self._cores(op, data, {})
        return Filled(
            on_links=edges.on_links,
            ends=[*((c.resource, c.byte_s) for c in cores.values()), *self._processes(data)],
            cap_Bps=min(e.cap_Bps for e in edges.kinds),
            hop_s=max(e.latency_s + e.overhead_s for e in edges.kinds),
        )

    def _round(self, op: Collective) -> _Round:
        """Edges, steps and bytes of a ring of N ranks.

        Bytes that cross each edge of the ring, and steps: all-reduce 2(N-1)/N*n in 2(N-1); reduce-scatter and
        all-gather (N-1)/N*n in N-1; broadcast, as a pipelined chain of endlessly many chunks, n in N-1 (Thakur et al.
        2005).
        """
        members = ring_order(self.inputs.schedule, op)
        n = len(members)
        chain, nbytes = tuple(pairwise(members)), float(op.nbytes)
        if op.kind is CollectiveKind.BROADCAST or n == 1:
            return _Round(edges=chain, steps=n - 1, edge_bytes=nbytes)
        times = 2 if op.kind is CollectiveKind.ALL_REDUCE else 1
        edges = (*chain, (members[-1], members[0]))
        return _Round(edges=edges, steps=times * (n - 1), edge_bytes=times * (nbytes * ((n - 1) / n)))

    def _edges(self, op: Collective, data: _Round) -> _Edges:
        """The edges of a ring.

        Where hosts on one switch are folded, links are counted at the standing hosts, and of edges between two others
        one of each pair of host classes is looked at, since the slowest edge may be one that no standing host has.
        """
        resources, cluster, path = self.inputs.resources, self.inputs.cluster, self.inputs.activities.path
        folding, place = resources.folding, cluster.placement
        standing = set(resources.standing_hosts.values())
        folded, orbits = len(folding.classes) < cluster.world_size, folding.orbits
        on_links: dict[int, float] = defaultdict(float)
        inside: Counter[int] = Counter()
        kinds: set[_Edge] = set()
        met: set[tuple[int, int]] = set()
        for a, b in data.edges:
            ha, hb = place[a].host, place[b].host
            there = resources.standing_hosts.get(folding.host_class_of[hb], hb)
            if ha == hb and path(a, b, op.ranks) is None:
                inside[ha] += 1
                loop = cluster.hosts[ha].loopback
                latency_s, cap_Bps = loop.latency_s, min(loop.bandwidth_Bps, self._cap_Bps(a, b, data))
                kinds.add(_Edge(host=there, latency_s=latency_s, overhead_s=0.0, cap_Bps=cap_Bps, usage=()))
                continue
            alike = (folding.host_class_of[ha], folding.host_class_of[hb])
            if folded and orbits is None and alike in met and not {ha, hb} & standing:
                continue
            met.add(alike)
            usage, latency_s = path(a, b, op.ranks) or ((), 0.0)
            overhead_s = cluster.hosts[ha].nic.overhead_s if ha != hb else 0.0
            cap_Bps = self._cap_Bps(a, b, data)
            kinds.add(_Edge(host=there, latency_s=latency_s, overhead_s=overhead_s, cap_Bps=cap_Bps, usage=usage))
            for q, share in usage:
                if orbits is not None:
                    on_links[q] += share / resources.link_sizes[orbits.link_class[q]]
                elif not folded or q // 2 in standing:
                    on_links[q] += share
        return _Edges(kinds=kinds, on_links=on_links, inside=inside)

    def _cap_Bps(self, a: int, b: int, data: _Round) -> float:
        """What the two ends of an edge let pass, which nothing else of this ring shares."""
        endpoints = self.inputs.activities.endpoints
        if not endpoints.matter:
            return inf
        processes = [self.inputs.resources.made[q].capacity for q, _ in endpoints.through_processes(Ends(src=a, dst=b))]
        return min([endpoints.cap_Bps(a, b, data.edge_bytes / data.steps), *processes])

    def _processes(self, data: _Round) -> list[tuple[int, float]]:
        """The processes that the edges of a ring pass: of each class, that of the rank that stands for it."""
        endpoints, reps = self.inputs.activities.endpoints, set(self.inputs.resources.reps)
        if not endpoints.matter:
            return []
        passed = [
            endpoints.through_processes(Ends(src=a, dst=b, sends=a in reps, receives=b in reps)) for a, b in data.edges
        ]
        return [process for edge in passed for process in edge]

    def _cores(self, op: Collective, data: _Round, inside: Mapping[int, int]) -> dict[int, _Cores]:
        """What messages over the loopback and additions take of the cores of each standing host; none that take none.

        `inside` counts the edges over the loopback of each host.
        """
        resources, group = self.inputs.resources, self.inputs.group(op)
        between = self._between(data)
        n, reducing = len(group), op.kind in (CollectiveKind.ALL_REDUCE, CollectiveKind.REDUCE_SCATTER)
        found: dict[int, _Cores] = {}
        for host in set(resources.standing_hosts.values()):
            ranks = [r for r in resources.on_host[host] if r in group]
            loop = self.inputs.cluster.hosts[host].loopback
            byte_s = near_s = inside.get(host, 0) * (
                loop.byte_core_s + loop.message_core_s * data.steps / data.edge_bytes
            ) + between.get(host, 0.0)
            if reducing:
                for r in ranks:
                    byte_s += self.inputs.adding_core_s(r, int(op.nbytes * (n - 1) / n)) / data.edge_bytes
            if byte_s > 0 and ranks:
                busy_s = data.edge_bytes / self.inputs.cluster.hosts[host].cores
                found[host] = _Cores(
                    resource=resources.cores(ranks[0]),
                    ranks=len(ranks),
                    byte_s=byte_s,
                    messages_s=near_s * busy_s / data.steps,
                    additions_s=(byte_s - near_s) * busy_s / (n - 1),
                )
        return found

    def _between(self, data: _Round) -> Mapping[int, float]:
        """Core-seconds at each host for each byte that crosses an edge: of messages from and to other hosts."""
        endpoints, place = self.inputs.activities.endpoints, self.inputs.cluster.placement
        found: dict[int, float] = defaultdict(float)
        for a, b in data.edges if endpoints.matter else ():
            if place[a].host != place[b].host:
                for rank in (a, b):
                    found[place[rank].host] += endpoints.byte_core_s(rank, data.edge_bytes / data.steps)
        return found

    def _at_its_pace(
        self, op: Collective, activity: Activity, edges: Iterable[_Edge], cores: Mapping[int, _Cores]
    ) -> Activity:
        """`activity` such that alone it takes as long as the steps of the ring, of which each waits for the slowest
        edge.

        That edge need not have both the largest latency and the least rate, and where ranks add on cores it need not
        be the same in all steps.
        """
        resources = self.inputs.resources
        n = len(self.inputs.group(op))
        demand: dict[int | None, float] = dict(activity.usage)

        def step_s(edge: _Edge, adds: bool) -> float:
            byte_s = 1.0 / edge.cap_Bps
            for q, share in edge.usage:
                together = demand.get(resources.known_link(q), 0.0)
                byte_s = max(byte_s, max(together, share) / self.inputs.cluster.links[q].bandwidth_Bps)
            on_cores_s = 0.0
            if (there := cores.get(edge.host)) is not None:
                on_cores_s = there.messages_s + (there.additions_s if adds else 0.0)
            return edge.latency_s + edge.overhead_s + max(op.nbytes / n * byte_s, on_cores_s)

        adds = {CollectiveKind.ALL_REDUCE: (True, False), CollectiveKind.REDUCE_SCATTER: (True,)}.get(op.kind, (False,))
        slowest = [max((step_s(e, a), e.latency_s, e.overhead_s) for e in edges) for a in adds]
        paid_s = slowest[0][2]  # for its first message each rank has paid when it joined
        seconds = (n - 1) * sum(s for s, _, _ in slowest) - paid_s
        took = activity.delay_s + max(activity.work / activity.cap, resources.busiest_s(activity))
        if abs(took - seconds) <= SAME * seconds:
            return activity
        delay_s = (n - 1) * sum(latency_s + overhead_s for _, latency_s, overhead_s in slowest) - paid_s
        return taking(resources, activity, seconds, delay_s)
