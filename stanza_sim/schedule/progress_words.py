"""How units, and what they wait for, are said in words."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from stanza_sim.schedule.program import Unit, UnitKind


def label(unit: Unit) -> str:
    """The unit's op with its side, as in `push.fc1.recv`."""
    side = {UnitKind.SEND: ".sent", UnitKind.RECV: ".recv"}.get(unit.kind, "")
    return unit.op.name + side


def waiting_lines(
    units: Sequence[Unit], messages: Sequence[int], iteration: int, left: AbstractSet[int], before: AbstractSet[int]
) -> list[str]:
    """What each unit of `left`, those incomplete in `iteration`, waits for; a line each.

    `before` are the units that are incomplete in the iteration before, `messages[u]` is the number of messages of
    unit u to or from other ranks.
    """
    lines = []
    for index in sorted(left):
        u = units[index]
        lacks = [label(units[j]) for j in u.needs if j in left]
        lacks += [f"{label(units[j])} of the iteration before" for j in u.needs_previous if j in before]
        if u.kind is UnitKind.RECV and messages[index]:
            what = f"awaits messages from ranks {u.peers}" + (f" and {', '.join(lacks)}" if lacks else "")
        elif lacks:
            what = f"waits for {', '.join(lacks)}"
        elif u.kind is UnitKind.COMPUTE:
            what = "is being computed, or waits for its turn in its lane"
        elif u.kind is UnitKind.SEND:
            what = f"waits for its turn, or for its receivers: ranks {u.peers}"
        else:
            what = f"waits for its turn, or for the other members: ranks {u.peers}"
        lines.append(f"iteration {iteration}: {label(u)} {what}")
    return lines
