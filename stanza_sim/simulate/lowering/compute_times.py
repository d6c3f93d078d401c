"""How long each computation of a schedule takes at each rank: what the simulator predicts with, as plain numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Compute, Schedule
from stanza_sim.simulate.lowering.op_costs import OpCosts

if TYPE_CHECKING:
    from stanza_sim.simulate.costs import CostModel


def compute_seconds(
    schedule: Schedule, model: ModelProfile, cost_of: Callable[[int], CostModel]
) -> tuple[dict[str, float], ...]:
    """Return, for each rank, the seconds that each of its computations takes on an idle device, by the op's name.

    `cost_of(rank)` gives the cost model of the device that a rank computes on.
    """
    costs = OpCosts(schedule, model, cost_of)
    return tuple(
        {op.name: costs.compute_s(op, rank) for op in schedule.for_rank(rank) if isinstance(op, Compute)}
        for rank in range(schedule.world_size)
    )
