"""A collective of NCCL as one activity: what links its rings fill, and how long it takes by NCCL's tuning model.

NCCL makes a ring for each NIC of a host, which all move a like share of the bytes: each enters every host at the device
of another NIC, visits all devices, and leaves by the NIC of the last. Trees are charged as rings, since NCCL's two
trees load the hosts' NICs, on average, with the bytes of a ring. An activity waits for the collective's latencies and
then moves such that alone it takes the time of `nccl.price`; beside others, it shares the links that it fills.

Contract: `NcclRings` prices the collectives of one schedule that `carries` holds of. The rings of a group are looked up
once.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf

from stanza_sim.cluster.cluster import IntraKind, LinkKind
from stanza_sim.cluster.device import load_device
from stanza_sim.cluster.hardware import kinds_of
from stanza_sim.cluster.nccl import NcclPlatform, platform_on
from stanza_sim.schedule import Carrier, Collective, CollectiveKind
from stanza_sim.simulate.lowered import Activity
from stanza_sim.simulate.lowering.collective_cost import taking
from stanza_sim.simulate.lowering.collective_steps import CollectiveInputs
from stanza_sim.simulate.lowering.endpoints import Ends
from stanza_sim.simulate.lowering.nccl import Layout, Price, price
from stanza_sim.simulate.lowering.rings import members_by_host, nics_of, rings_of
from stanza_sim.simulate.plain.fluid import usage_of

ACROSS = (LinkKind.SEND, LinkKind.RECEIVE, LinkKind.TRUNK, LinkKind.CABLE, LinkKind.BACKPLANE)
"""Links between hosts; all others are inside one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """What rings use for each byte that crosses an edge of the ring, and what their edges across hosts take.

    `on_links` are shares by link. `ends` are demands on what messages between hosts pass or cost at their two ends,
    processes and cores; an edge moves no more than `cap_Bps`, and the network adds `hop_s` to its hop.
    """

    on_links: Mapping[int, float]
    ends: Sequence[tuple[int, float]] = ()
    cap_Bps: float = inf
    hop_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rings:
    """The rings of a group: bytes on each resource for each byte that crosses an edge of the ring, and its layout.

    `cap_Bps` is what all rings together move at most, by the streams between hosts.
    """

    usage: tuple[tuple[int, float], ...]
    cap_Bps: float
    weight: float
    layout: Layout
    platforms: tuple[NcclPlatform, ...]


class NcclRings:
    """The collectives of one schedule that NCCL carries out.

    `single_ring` gives what a ring with one rank a host fills, where hosts may be folded.
    """

    def __init__(self, inputs: CollectiveInputs, single_ring: Callable[[Collective], Filled]) -> None:
        self.inputs, self._single_ring = inputs, single_ring
        self._rings: dict[tuple[object, ...], Rings] = {}
        self._carried: dict[str, bool] = {}

    def carries(self, op: Collective) -> bool:
        """Whether `op` is NCCL's: the backend's, among several devices that need no staging and have links.

        On a host with several members something must join the devices; over the loopback nothing is known of NCCL.
        """
        if op.by is not Carrier.BACKEND:
            return False
        if op.ranks not in self._carried:
            self._carried[op.ranks] = self._on_devices(op)
        return self._carried[op.ranks]

    def _on_devices(self, op: Collective) -> bool:
        cluster, group = self.inputs.cluster, self.inputs.group(op)
        if not cluster.uses_nccl or len(group) < 2 or any(cluster.on_cores(r) for r in group):
            return False
        members = Counter(cluster.placement[r].host for r in group)
        hosts = [(cluster.hosts[h], count) for h, count in members.items()]
        return all(host.staging is None and (count == 1 or host.intra is not None) for host, count in hosts)

    def price(self, op: Collective, *, gpus_per_process: int = 1) -> Price:
        """What `op` takes alone: on unlike platforms, what it takes on the slowest."""
        rings = self.rings(op)
        layout = replace(rings.layout, gpus_per_process=gpus_per_process)
        return max((price(p, layout, op.kind, float(op.nbytes)) for p in rings.platforms), key=lambda p: p.seconds)

    def activity(self, op: Collective, *, gpus_per_process: int = 1) -> Activity:
        """`op` as one activity, which alone takes its price, or what its links need if that is more."""
        rings, found = self.rings(op), self.price(op, gpus_per_process=gpus_per_process)
        n = rings.layout.ranks
        work = _edge_bytes(op, n)
        activity = Activity(work=work, usage=rings.usage, weight=rings.weight)
        resources = self.inputs.resources
        seconds = max(found.seconds, found.latency_s + max(work / rings.cap_Bps, resources.busiest_s(activity)))
        return taking(resources, activity, seconds, found.latency_s)

    # ---- rings -----------------------------------------------------------------------------------------------------

    def rings(self, op: Collective) -> Rings:
        """The rings of the group of `op`; of a broadcast, chains that begin at its root."""
        key: tuple[object, ...] = (op.ranks, op.root if op.kind is CollectiveKind.BROADCAST else None)
        if self.inputs.activities.endpoints.count_sizes:
            key = (*key, op.kind, op.nbytes)
        if key not in self._rings:
            self._rings[key] = self._found(op)
        return self._rings[key]

    def _found(self, op: Collective) -> Rings:
        cluster, resources = self.inputs.cluster, self.inputs.resources
        hosts = members_by_host(cluster, self.inputs.group(op))
        single = all(len(ranks) == 1 for ranks in hosts.values())
        filled = self._single_ring(op) if single else self._filled(op, hosts)
        across = {resources.link(q) for q in filled.on_links if cluster.links[q].kind in ACROSS}
        on_links = [(resources.link(q), share) for q, share in filled.on_links.items()]
        usage = usage_of([*on_links, *filled.ends])
        inside_Bps, across_Bps = inf, filled.cap_Bps
        for q, share in usage:
            rate_Bps = resources.made[q].capacity / share
            if q in across or resources.made[q].kind != "link":
                across_Bps = min(across_Bps, rate_Bps)
            else:
                inside_Bps = min(inside_Bps, rate_Bps)
        on_cores = [demand / resources.made[q].capacity for q, demand in usage if resources.made[q].kind == "cores"]
        members = [cluster.hosts[h] for h in hosts]
        with_members = dict(zip(kinds_of(members), members, strict=True)).values()
        nics = (len(nics_of(cluster, ranks)) / len(cluster.hosts[h].nics) for h, ranks in hosts.items())
        devices = dict.fromkeys(cluster.device_of(r) for ranks in hosts.values() for r in ranks)
        layout = Layout(
            ranks=len(self.inputs.group(op)),
            hosts=len(hosts),
            inside_Bps=inside_Bps,
            across_Bps=across_Bps,
            memory_Bps=min(load_device(name).memory_bandwidth_Bps for name in devices),
            nics_share=min(nics),
            hop_s=filled.hop_s,
            nvlink=all(
                len(ranks) == 1 or ((intra := cluster.hosts[h].intra) is not None and intra.kind is IntraKind.NVLINK)
                for h, ranks in hosts.items()
            ),
        )
        platforms = tuple({p.name: p for p in map(platform_on, with_members)}.values())
        return Rings(
            usage=usage,
            cap_Bps=filled.cap_Bps,
            weight=min([resources.link_weight, *(1.0 / s for s in on_cores)]),
            layout=layout,
            platforms=platforms,
        )

    def _filled(self, op: Collective, hosts: Mapping[int, Sequence[int]]) -> Filled:
        """What the rings of a group fill, edge by edge; of what is folded, what stands for its class."""
        cluster, path = self.inputs.cluster, self.inputs.activities.path
        endpoints = self.inputs.activities.endpoints
        resources, made = self.inputs.resources, list(rings_of(cluster, hosts))
        reps, standing, orbits = set(resources.reps), set(resources.standing_hosts.values()), resources.folding.orbits
        on_links: dict[int, float] = defaultdict(float)
        ends: list[tuple[int, float]] = []
        cap_Bps, hop_s, n = inf, 0.0, len(made[0])
        steps = n - 1 if op.kind is not CollectiveKind.ALL_REDUCE else 2 * (n - 1)
        message = _edge_bytes(op, n) / steps / len(made)
        for ring in made:
            for a, b in pairwise((*ring, ring[0])):
                if op.kind is CollectiveKind.BROADCAST and b == op.root:
                    continue
                usage, latency_s = path(a, b, op.ranks) or ((), 0.0)
                for q, share in usage:
                    alike = 1 if orbits is None else resources.link_sizes[orbits.link_class[q]]
                    on_links[q] += share / len(made) / alike
                if cluster.same_host(a, b):
                    continue
                hop_s = max(hop_s, latency_s + cluster.host_of(a).nic.overhead_s)
                if endpoints.matter:
                    there = [cluster.placement[r].host in standing for r in (a, b)]
                    stands = Ends(
                        src=a, dst=b, sends=a in reps, receives=b in reps, leaving=there[0], entering=there[1]
                    )
                    cap_Bps = min(cap_Bps, len(made) * endpoints.cap_Bps(a, b, message))
                    taken = [*endpoints.through_processes(stands), *endpoints.on_cores(stands, message)]
                    ends += [(q, demand / len(made)) for q, demand in taken]
        return Filled(on_links=on_links, ends=ends, cap_Bps=cap_Bps, hop_s=hop_s)


def _edge_bytes(op: Collective, n: int) -> float:
    """Bytes that cross each edge of a ring of `n` ranks, all rings together."""
    if op.kind is CollectiveKind.BROADCAST:
        return float(op.nbytes)
    return (2 if op.kind is CollectiveKind.ALL_REDUCE else 1) * (op.nbytes * ((n - 1) / n))
