"""From ops to activities: what each class of ranks computes, sends and joins, and which resources that takes.

Costs are looked up once here; the engine only decides when things happen. This module puts together four parts, of
which each is usable by itself: `resources.py` (what is shared), `op_costs.py` (what computations cost), `messages.py`
(what transfers send to whom) and `collectives.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from stanza_sim.base.errors import InputError
from stanza_sim.cluster.cluster import Cluster
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Collective, Compute, RankProgram, Schedule, Transfer, UnitKind, project
from stanza_sim.simulate.lowered import Activity, Copies, Lowered, Message, RankClass
from stanza_sim.simulate.lowering.collective_steps import CollectiveInputs
from stanza_sim.simulate.lowering.collectives import Collectives
from stanza_sim.simulate.lowering.fold import Folding
from stanza_sim.simulate.lowering.losses import behind_barrier, computation, first_forward, overhead_s
from stanza_sim.simulate.lowering.messages import NEAR, MessageActivities, MessageClasses
from stanza_sim.simulate.lowering.op_costs import OpCosts
from stanza_sim.simulate.lowering.resources import Resources

if TYPE_CHECKING:
    from stanza_sim.simulate.costs import CostModel

_last: tuple[Schedule, dict[int, RankProgram]] | None = None


def _program(schedule: Schedule, rank: int) -> RankProgram:
    """The program of `rank`; those of the last schedule are kept, which may be lowered again at other costs."""
    global _last
    last = _last  # another thread may be at another schedule
    if last is None or last[0] is not schedule:
        last = _last = schedule, {}
    programs = last[1]
    if rank not in programs:
        programs[rank] = project(schedule, rank)
    return programs[rank]


class Lowering:
    """The parts that lower `schedule`, and the rank classes that they add up to.

    Resources are numbered in the order in which they are asked for, so whoever wants equal numbers asks in one order:
    messages or rank classes first, then collectives.
    """

    def __init__(
        self,
        schedule: Schedule,
        model: ModelProfile,
        cluster: Cluster,
        folding: Folding,
        cost_of: Callable[[int], CostModel],
        *,
        simulate_steps: bool = False,
    ) -> None:
        self.schedule, self.cluster, self.folding = schedule, cluster, folding
        self.costs = OpCosts(schedule, model, cost_of)
        self.resources = Resources(cluster, folding)
        self.activities = MessageActivities(self.resources)
        self.messages = MessageClasses(schedule, self.activities)
        inputs = CollectiveInputs(schedule=schedule, activities=self.activities, cost_of=cost_of)
        self.collectives = Collectives(inputs, simulate_steps=simulate_steps)

    def compute(self, op: Compute, rank: int) -> Activity:
        """The activity of a computation at `rank`."""
        seconds = self.costs.compute_s(op, rank)
        return computation(self.cluster, rank, seconds, self.resources.processor(rank))

    def rank_class(self, index: int, *, with_messages: bool = True) -> RankClass:
        """The rank class of class `index`; without messages, its transfers are left to the caller."""
        rep = self.resources.reps[index]
        host = self.cluster.host_of(rep)
        program = _program(self.schedule, rep)
        if host.losses.barrier:
            program = behind_barrier(program)
        activities: dict[int, Activity] = {}
        messages: dict[int, tuple[Message, ...]] = {}
        arrivals: dict[int, int] = {}
        post_s: dict[int, float] = {}
        traffic: dict[int, tuple[int, int]] = {}
        copies: dict[int, Copies] = {}
        for u in program.units:
            match u.kind, u.op:
                case UnitKind.COMPUTE, Compute() as op:
                    activities[u.index] = self.compute(op, rep)
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
        lost_s = overhead_s(self.cluster, rep)
        if lost_s > 0 and (first := first_forward(program)) is not None:
            activities[first] = replace(activities[first], work=activities[first].work + lost_s)
        return RankClass(
            rank=rep,
            size=len(self.folding.classes[index]),
            program=program,
            activities=activities,
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
    simulate_steps: bool = False,
) -> Lowered:
    """Return the activities of `schedule` on `cluster`, for each class of `folding`.

    `cost_of(rank)` gives the cost model of the device that a rank computes on. With `simulate_steps`, for which nothing
    may be folded, collectives come with their steps.
    """
    parts = Lowering(schedule, model, cluster, folding, cost_of, simulate_steps=simulate_steps)
    rank_classes = [parts.rank_class(i) for i in range(len(folding.classes))]
    collectives = parts.collectives.every()
    return Lowered(
        resources=parts.resources.made,
        rank_classes=rank_classes,
        collectives=collectives,
        links=parts.resources.used_links(),
        background=parts.resources.background(),
        token_buckets=parts.resources.token_buckets(),
        wakeup_latency_s=cluster.wakeup_latency_s,
    )
