"""What Python calls: nodes that start from outside, and a run from one instant to the next."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from stanza_sim.simulate.compiled.arrays import I32, Net, Nodes, State
from stanza_sim.simulate.compiled.kernel.filling import solve
from stanza_sim.simulate.compiled.kernel.instants import happen, next_s
from stanza_sim.simulate.compiled.kernel.jit import SOURCES, kept
from stanza_sim.simulate.compiled.kernel.starts import begin_at
from stanza_sim.simulate.compiled.kernel.state import CHANGED, LEFT


def _trigger_of(sources: int) -> Callable[[Nodes, State, I32, float], None]:
    @kept
    def trigger(nodes: Nodes, st: State, which: I32, now: float) -> None:
        """Count one predecessor less for each node of `which`; those that miss none start at `now` + delay."""
        _ = sources
        for i in range(len(which)):
            k = which[i]
            nodes.missing[k] -= 1
            if nodes.missing[k] == 0:
                begin_at(st, now + nodes.delay[k], k)

    return trigger


def _start_of(sources: int) -> Callable[[Nodes, State], None]:
    @kept
    def start(nodes: Nodes, st: State) -> None:
        """Put every node that waits for nothing on the heap of starts."""
        _ = sources
        st.scalars[LEFT] = len(nodes.cls)
        for k in range(len(nodes.cls)):
            if nodes.missing[k] == 0:
                begin_at(st, nodes.delay[k], k)

    return start


def _run_of(sources: int) -> Callable[[Net, Nodes, State, int], float]:
    @kept
    def run(net: Net, nodes: Nodes, st: State, steps: int) -> float:
        """Run until nothing is left, or for so many instants; return the time that was reached.

        `st.scalars[LEFT]` counts the nodes that are not complete.
        """
        _ = sources
        now = 0.0
        while steps > 0:
            at = next_s(st)
            if at == np.inf:
                break
            now = at
            happen(net, nodes, st, now)
            if st.scalars[CHANGED] > 0:
                solve(net, st, now)
            steps -= 1
        return now

    return run


trigger, start, run = _trigger_of(SOURCES), _start_of(SOURCES), _run_of(SOURCES)
