"""How long one collective takes with nothing beside it, as it is simulated: to compare with collective benchmarks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from stanza_sim.base.errors import InputError
from stanza_sim.cluster.cluster import Cluster
from stanza_sim.schedule import Collective, CollectiveKind, Group, Ranks, Schedule, Value, ValueKind
from stanza_sim.simulate.lowered import Activity
from stanza_sim.simulate.lowering.collective_steps import CollectiveInputs
from stanza_sim.simulate.lowering.collectives import Collectives
from stanza_sim.simulate.lowering.fold import unfolded
from stanza_sim.simulate.lowering.messages import MessageActivities
from stanza_sim.simulate.lowering.nccl import Layout, Price
from stanza_sim.simulate.lowering.resources import Resources

if TYPE_CHECKING:
    from stanza_sim.simulate.costs import CostModel


class OneCollective:
    """Collectives of the backend among `ranks` of `cluster`, each alone: the price that simulations of schedules use.

    A process drives `gpus_per_process` of the devices of a host, which matters to NCCL's least time only. Ranks must be
    on devices (what ranks on cores add costs core time, and is not known here); `InputError` says so.
    """

    def __init__(self, cluster: Cluster, ranks: Iterable[int], *, gpus_per_process: int = 1) -> None:
        group = Ranks.of(ranks)
        if any(cluster.on_cores(r) for r in group):
            raise InputError("a rank on its host's cores has costs of its own", where=cluster.name)
        self.cluster, self.gpus_per_process = cluster, gpus_per_process
        schedule = Schedule(
            name="one-collective",
            model="none",
            world_size=cluster.world_size,
            batch_per_worker=1,
            groups=(Group(name="all", ranks=group),),
            bundles=(),
            ops=(),
        )
        self.resources = Resources(cluster, unfolded(cluster))
        activities = MessageActivities(self.resources)
        self._collectives = Collectives(
            CollectiveInputs(schedule=schedule, activities=activities, cost_of=_no_costs), simulate_steps=False
        )

    @property
    def layout(self) -> Layout | None:
        """The ranks as NCCL sees them; None where their collectives are not NCCL's."""
        op = self.op(CollectiveKind.ALL_REDUCE, 1)
        if not self._collectives.nccl.carries(op):
            return None
        return replace(self._collectives.nccl.rings(op).layout, gpus_per_process=self.gpus_per_process)

    def op(self, kind: CollectiveKind, nbytes: int) -> Collective:
        """The collective of `nbytes` in all; a broadcast is from the first of the ranks."""
        root = self._collectives.inputs.schedule.group("all")[0] if kind is CollectiveKind.BROADCAST else None
        value = Value(kind=ValueKind.GRAD, name="none")
        return Collective(name="op", kind=kind, ranks="all", value=value, nbytes=nbytes, root=root)

    def activity(self, kind: CollectiveKind, nbytes: int) -> Activity:
        """What it takes of the cluster's links."""
        op = self.op(kind, nbytes)
        if self._collectives.nccl.carries(op):
            return self._collectives.nccl.activity(op, gpus_per_process=self.gpus_per_process)
        return self._collectives.collective(op).activity

    def price(self, kind: CollectiveKind, nbytes: int) -> Price | None:
        """What NCCL's tuning model says it takes; None where the collective is not NCCL's."""
        op = self.op(kind, nbytes)
        if not self._collectives.nccl.carries(op):
            return None
        return self._collectives.nccl.price(op, gpus_per_process=self.gpus_per_process)

    def seconds(self, kind: CollectiveKind, nbytes: int) -> float:
        """Seconds from when all have joined to when all have the result."""
        activity = self.activity(kind, nbytes)
        return activity.delay_s + max(activity.work / activity.cap, self.resources.busiest_s(activity))

    def how(self, kind: CollectiveKind, nbytes: int) -> str:
        """How NCCL would carry it out, such as `ring, ll128`; the empty text where the collective is not NCCL's."""
        price = self.price(kind, nbytes)
        return "" if price is None else f"{price.algorithm}, {price.protocol}"


def _no_costs(rank: int) -> CostModel:
    raise InputError(f"rank {rank} has no costs")
