"""How long the messages of an op keep links busy: what a picture of links over time is made of."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np

from stanza_sim.simulate.lowered import Lowered
from stanza_sim.simulate.lowering.arrays import ArrayLowered

LinkSeconds = Mapping[tuple[int, str], Mapping[str, float]]
"""For (rank, op): for each link, by label, the seconds that the op's messages from the rank take of its whole rate.

Of a collective, those of all its members are at the first of them. A rank that stands for a class has those of all
on the link, which stands for one of its class, too.
"""


def link_seconds(lowered: Lowered, labels: Collection[str]) -> LinkSeconds:
    """What each op of one iteration takes of each of the links called so."""
    labels = frozenset(labels)
    wanted = {q: r for q, r in enumerate(lowered.resources) if r.kind == "link" and r.label in labels}
    found: dict[tuple[int, str], dict[str, float]] = {}

    def add(rank: int, op: str, work: float, usage: Iterable[tuple[int, float]]) -> None:
        for q, demand in usage:
            if q in wanted and work:
                of = found.setdefault((rank, op), {})
                link = wanted[q]
                of[link.label] = of.get(link.label, 0.0) + work * demand / link.capacity

    for a in lowered.rank_classes:
        names = {u.index: u.op.name for u in a.program.units}
        for unit, messages in a.messages.items():
            for activity in (activity for m in messages for activity in m.activities):
                add(a.rank, names[unit], activity.work, activity.usage)
    if isinstance(lowered, ArrayLowered) and len(lowered.messages):
        m = lowered.messages
        kinds, of = np.unique(np.stack((m.op, m.src, m.activity)), axis=1, return_inverse=True)
        moved = np.bincount(of.reshape(-1), weights=m.nbytes)
        for (op, src, activity), nbytes in zip(kinds.T.tolist(), moved.tolist(), strict=True):
            rank = lowered.rank_classes[src].rank
            add(rank, lowered.op_names[op], nbytes, m.activities[activity].usage)
    for name, collective in lowered.collectives.items():
        first = min(lowered.rank_classes[c].rank for c in collective.rank_classes)
        add(first, name, collective.activity.work, collective.activity.usage)
    return found
