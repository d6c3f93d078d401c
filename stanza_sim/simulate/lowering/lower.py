"""From ops to activities: what each class of ranks computes, sends and joins, and which resources that takes.

Costs are looked up once here; the engine only decides when things happen. This module puts together four parts, of
which each is usable by itself: `resources.py` (what is shared), `op_costs.py` (what computations cost), `messages.py`
(what transfers send to whom) and `collectives.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from stanza_sim.base.errors import InputError
from stanza_sim.cluster.cluster import Cluster
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Collective, Compute, Schedule, Transfer, UnitKind, project
from stanza_sim.simulate.loads import Actor, Copies, Load, Lowered, Message
from stanza_sim.simulate.lowering.collective_steps import CollectiveInputs
from stanza_sim.simulate.lowering.collectives import Collectives
from stanza_sim.simulate.lowering.fold import Folding
from stanza_sim.simulate.lowering.messages import NEAR, MessageClasses, MessageLoads
from stanza_sim.simulate.lowering.op_costs import OpCosts
from stanza_sim.simulate.lowering.resources import Resources

if TYPE_CHECKING:
    from stanza_sim.simulate.costs import CostModel


class Lowering:
    """The parts that lower `schedule`, and the actors that they add up to.

    Resources are numbered in the order in which they are asked for, so whoever wants equal numbers asks in one order:
    messages or actors first, then collectives.
    """

    def __init__(
        self,
        schedule: Schedule,
        model: ModelProfile,
        cluster: Cluster,
        folding: Folding,
        cost_of: Callable[[int], CostModel],
        *,
        stepwise: bool = False,
    ) -> None:
        self.schedule, self.cluster, self.folding = schedule, cluster, folding
        self.costs = OpCosts(schedule, model, cost_of)
        self.resources = Resources(cluster, folding)
        self.loads = MessageLoads(self.resources)
        self.messages = MessageClasses(schedule, self.loads)
        inputs = CollectiveInputs(schedule=schedule, loads=self.loads, cost_of=cost_of)
        self.collectives = Collectives(inputs, stepwise=stepwise)

    def compute(self, op: Compute, rank: int) -> Load:
        """The activity of a computation at `rank`."""
        seconds = self.costs.compute_s(op, rank)
        return Load(work=seconds, usage=(self.resources.processor(rank),), cap=1.0)

    def actor(self, index: int, *, with_messages: bool = True) -> Actor:
        """The actor of class `index`; without messages, its transfers are left to the caller."""
        rep = self.resources.reps[index]
        program = project(self.schedule, rep)
        host = self.cluster.host_of(rep)
        loads: dict[int, Load] = {}
        messages: dict[int, tuple[Message, ...]] = {}
        arrivals: dict[int, int] = {}
        post_s: dict[int, float] = {}
        traffic: dict[int, tuple[int, int]] = {}
        copies: dict[int, Copies] = {}
        for u in program.units:
            match u.kind, u.op:
                case UnitKind.COMPUTE, Compute() as op:
                    loads[u.index] = self.compute(op, rep)
                case ((UnitKind.SEND | UnitKind.RECV), Transfer()) if not with_messages:
                    pass
                case UnitKind.SEND, Transfer() as op:
                    messages[u.index] = made = self.messages.sent(op, index)
                    post_s[u.index] = host.nic.overhead_s * sum(m.count for m in made if m.kind != NEAR)
                    traffic[u.index] = (sum(m.count * m.nbytes for m in made), 0)
                case UnitKind.RECV, Transfer() as op:
                    sizes = self.messages.received(op, index)
                    arrivals[u.index] = sum(1 for nbytes in sizes if nbytes)
                    traffic[u.index] = (0, sum(sizes))
                case _, Collective() as op:
                    alone = len(self.schedule.group(op.ranks)) == 1
                    post_s[u.index] = 0.0 if alone else host.nic.overhead_s
                    traffic[u.index] = self.collectives.moved(op)[rep]
                    if host.staging is not None:
                        copies[u.index] = self.collectives.copies(op, rep)
                case _:
                    raise InputError(f"{u.op.name}: {u.kind} is no part of such an op")
        return Actor(
            rank=rep,
            size=len(self.folding.classes[index]),
            program=program,
            loads=loads,
            sends={u: len(m) for u, m in messages.items()},
            messages=messages,
            arrivals=arrivals,
            post_s=post_s,
            traffic=traffic,
            copies=copies,
        )


def lower(
    schedule: Schedule,
    model: ModelProfile,
    cluster: Cluster,
    folding: Folding,
    cost_of: Callable[[int], CostModel],
    *,
    stepwise: bool = False,
) -> Lowered:
    """Return the activities of `schedule` on `cluster`, for each class of `folding`.

    `cost_of(rank)` gives the cost model of the device that a rank computes on. With `stepwise`, for which nothing may
    be folded, collectives come with their steps.
    """
    parts = Lowering(schedule, model, cluster, folding, cost_of, stepwise=stepwise)
    actors = [parts.actor(i) for i in range(len(folding.classes))]
    rings = parts.collectives.every()
    return Lowered(
        resources=parts.resources.made,
        actors=actors,
        rings=rings,
        links=parts.resources.used_links(),
        background=parts.resources.background(),
        buckets=parts.resources.buckets(),
        wake_s=cluster.wake_s,
    )
