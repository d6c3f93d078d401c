"""What messages take of their two ends, whatever is between: the processes that send and receive, the hosts' cores.

Contract: `Endpoints` knows the cluster's transports (see `stanza_sim.cluster.Transport`) and gives limits and demands
of messages between two ranks. It knows no links. Where no NIC states a transport it gives nothing, and `matter` says
so. Domain of validity: a message is moved by one core of each host at a time, and what a process moves is limited
in each direction by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf

from stanza_sim.cluster.hardware import Transport
from stanza_sim.simulate.lowered import Activity
from stanza_sim.simulate.lowering.resources import Resources
from stanza_sim.simulate.plain.fluid import usage_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """The ends of messages that are alike: one pair of ranks that stands for all.

    Of them, the process of `src` sends `sends` and that of `dst` receives `receives`; `leaving` leave the host of
    `src` and `entering` enter that of `dst`.
    """

    src: int
    dst: int
    sends: float = 1.0
    receives: float = 1.0
    leaving: float = 1.0
    entering: float = 1.0


class Endpoints:
    """What the ends of messages take of `resources`."""

    def __init__(self, resources: Resources) -> None:
        self.resources, self.cluster = resources, resources.cluster
        transports = {nic.transport for host in self.cluster.hosts for nic in host.nics}
        self.matter = not all(transport.ideal for transport in transports)
        """Whether any end limits messages, or costs anything."""
        self.count_sizes = any(transport.message_core_s > 0 for transport in transports)
        """Whether what a byte takes depends on the size of its message."""

    def transport(self, rank: int) -> Transport:
        """The transport of the NIC that `rank` uses."""
        place = self.cluster.placement[rank]
        return self.cluster.hosts[place.host].transport_of(place.device)

    def process_Bps(self, rank: int) -> float:
        """What `rank` moves in each direction."""
        limit_Bps = self.transport(rank).process_Bps
        return inf if limit_Bps is None else limit_Bps

    def byte_core_s(self, rank: int, nbytes: float) -> float:
        """Core-seconds at the host of `rank` for each byte of a message of `nbytes` between hosts."""
        transport = self.transport(rank)
        return transport.byte_core_s + (transport.message_core_s / nbytes if nbytes else 0.0)

    def cap_Bps(self, src: int, dst: int, nbytes: float) -> float:
        """The most that one message of `nbytes` from `src` to `dst` moves per second."""
        if self.cluster.same_host(src, dst):
            return inf
        streams = (self.transport(rank).stream_Bps for rank in (src, dst))
        core_s = max(self.byte_core_s(rank, nbytes) for rank in (src, dst))
        return min(1.0 / core_s if core_s > 0 else inf, *(inf if s is None else s for s in streams))

    def through_processes(self, ends: Ends) -> list[tuple[int, float]]:
        """The processes that messages pass, with what each byte of one of them takes there."""
        near = self.cluster.same_host(ends.src, ends.dst)
        found = []
        for rank, side, alike in ((ends.src, "out", ends.sends), (ends.dst, "in", ends.receives)):
            transport = self.transport(rank)
            if transport.process_Bps is not None and (transport.process_inside or not near):
                found.append((self.process(rank, side), alike))
        return found

    def process(self, rank: int, side: str) -> int:
        """The resource of what `rank` sends (`out`) or receives (`in`); it must be limited."""
        rank_class = self.resources.folding.class_of[rank]
        rank = self.resources.reps[rank_class]
        label, key = f"{self.cluster.host_of(rank).name} process of rank {rank}, {side}", ("process", rank_class, side)
        return self.resources.resource(key, label, self.process_Bps(rank), "process")

    def on_cores(self, ends: Ends, nbytes: float) -> list[tuple[int, float]]:
        """The cores that messages of `nbytes` cost, with core-seconds for each byte of one of them."""
        if self.cluster.same_host(ends.src, ends.dst):
            return []
        found = []
        for rank, alike in ((ends.src, ends.leaving), (ends.dst, ends.entering)):
            if (core_s := self.byte_core_s(rank, nbytes)) > 0:
                found.append((self.resources.cores(rank), alike * core_s))
        return found

    def added(self, activity: Activity, ends: Ends, nbytes: float) -> Activity:
        """`activity`, one of messages of `nbytes`, with what its ends limit and cost."""
        if not self.matter:
            return activity
        cores = self.on_cores(ends, nbytes)
        weight = activity.weight
        if cores:  # as much of a core as a computation takes at most, and no more of a link than other messages
            weight = min(weight, 1.0 / max(self.byte_core_s(rank, nbytes) for rank in (ends.src, ends.dst)))
        return replace(
            activity,
            usage=usage_of([*activity.usage, *self.through_processes(ends), *cores]),
            cap=min(activity.cap, self.cap_Bps(ends.src, ends.dst, nbytes)),
            weight=weight,
        )
