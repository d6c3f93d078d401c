"""Computations that take as long as they were measured to: a schedule replayed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from stanza_sim.schedule import Compute
from stanza_sim.simulate.lowered import Lowered

Seconds = Mapping[tuple[int, str], float]
"""How long the computation of an op at a rank took, by (rank, op)."""
AHEAD = 1e6
"""The weight of a computation that was measured: it gets what it needs before messages that want the same cores."""


def with_times(lowered: Lowered, seconds: Seconds) -> None:
    """Let each computation take these `seconds`, whatever else is under way. No ranks may be folded.

    What it takes of its cores or device meanwhile is spread over that time, so messages find what is left: one that
    took twice as long as alone, since two shared a core, occupies half of it.
    """
    for a in lowered.rank_classes:
        for unit in a.program.units:
            took = seconds.get((a.rank, unit.op.name))
            if not isinstance(unit.op, Compute) or took is None:
                continue
            alone = a.activities[unit.index]
            share = min(1.0, alone.work / took) if took > 0 else 0.0
            usage = tuple((q, demand * share) for q, demand in alone.usage) if share else ()
            a.activities[unit.index] = replace(alone, work=took, usage=usage, weight=AHEAD)
