"""How far a run is, in lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stanza_sim.base.units import format_time
from stanza_sim.execute.rank.steal import MOST_STOLEN
from stanza_sim.experiment.rows import Plan

if TYPE_CHECKING:  # imported where something is executed
    from stanza_sim.execute import Measurement, RunJob, Score


def running_line(index: int, ended: int | Score, plan: Plan, job: RunJob) -> str:
    """How far a run is that takes long, and what its held-out samples say."""
    what, score = f"{plan.entry.title}, {plan.strategy.title}", ""
    if not isinstance(ended, int):
        ended, score = ended.iteration, f": {ended}"
    return f"running {index + 1}: {what}: {ended} of {job.training.iterations} iterations done{score}"


def ran_line(index: int, plans: Sequence[Plan], measurement: Measurement) -> str:
    """What came out of a run."""
    plan = plans[index]
    took = format_time(measurement.iteration_s)
    line = f"ran {index + 1} of {len(plans)}: {plan.entry.title}, {plan.strategy.title}: {took} an iteration"
    if measurement.stolen > MOST_STOLEN or measurement.tries > 1:
        line += f" ({measurement.stolen:.1%} of the cores were taken away by the virtual machine's host"
        line += f" in the best of {measurement.tries} tries)" if measurement.tries > 1 else ")"
    return line
