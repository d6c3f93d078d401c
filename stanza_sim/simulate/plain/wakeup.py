"""Which computations a lane must wake up for.

A lane's thread goes on from one computation to the next by itself. What it waits for beyond that is brought about by
other threads, those that receive, those of collectives and those of other lanes: to wake up for it takes
`Cluster.wakeup_latency_s`. So a computation starts at the later of two instants: the end of the one before it in its
lane, and `wakeup_latency_s` after the last of all else that it needs. (A lane that is busy at the latter and free
within `wakeup_latency_s` of it would not have slept; the difference is less than `wakeup_latency_s`, and such meetings
are rare.)
"""

from __future__ import annotations

from dataclasses import dataclass

from stanza_sim.schedule import Compute, RankProgram


@dataclass(frozen=True, slots=True, kw_only=True)
class Others:
    """Units that a computation needs and that are not of its own lane: of its iteration, and of the one before."""

    needs: tuple[int, ...]
    needs_previous: tuple[int, ...]


def wakeup_needs(program: RankProgram, wakeup_latency_s: float) -> dict[int, Others]:
    """Return what each computation that a lane wakes up for needs of others, by unit; nothing if that takes no time."""
    if wakeup_latency_s <= 0:
        return {}
    lanes = {u.index: u.op.lane for u in program.units if isinstance(u.op, Compute)}
    found: dict[int, Others] = {}
    for u in program.units:
        if u.index in lanes:
            here = lanes[u.index]
            others = Others(
                needs=tuple(v for v in u.needs if lanes.get(v) != here),
                needs_previous=tuple(v for v in u.needs_previous if lanes.get(v) != here),
            )
            if others.needs or others.needs_previous:
                found[u.index] = others
    return found
