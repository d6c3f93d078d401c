"""The fluid solver and the bookkeeping of messages on arrays, compiled with numba where that is installed.

`plain/fluid.py` is the same arithmetic for few activities, in plain Python; tests hold the two equal. What is
different here is what makes many flows cheap:

- Flows of one *class* (same links, weight and cap) share one rate. A class keeps a virtual clock, the work that
  each of its flows has been served, and a heap of the clock readings at which its flows finish.
- Everything that starts or ends at one instant is one solve, of the links that it can affect.
- A *node* is a flow or a gate that waits for a number of other nodes; nodes complete without leaving this package,
  and only gates that were asked for are reported.

Node k starts `delay[k]` after its last predecessor completed. A node of class -1 completes then; any other is a flow
of `work[k]` that completes when it has been served. Times are seconds, work and capacities in any one unit.

`instants.py` does what happens at an instant, `filling.py` finds the rates after it, `starts.py` and `finishes.py` keep
what is to happen in order, `running.py` is what Python calls, and `jit.py` says how all of this is compiled.
"""

from __future__ import annotations

from stanza_sim.simulate.compiled.arrays import Net, Nodes, State
from stanza_sim.simulate.compiled.kernel.filling import solve
from stanza_sim.simulate.compiled.kernel.instants import happen, next_s
from stanza_sim.simulate.compiled.kernel.jit import COMPILED, SOURCES, kept, part
from stanza_sim.simulate.compiled.kernel.running import run, start, trigger
from stanza_sim.simulate.compiled.kernel.starts import push
from stanza_sim.simulate.compiled.kernel.state import (
    CAP,
    CHANGED,
    COUNT,
    LEFT,
    RATE,
    REPORTED,
    SERVED,
    SINCE,
    SOLVES,
    make_net,
    make_nodes,
    make_state,
)

__all__ = [
    "CAP",
    "CHANGED",
    "COMPILED",
    "COUNT",
    "LEFT",
    "RATE",
    "REPORTED",
    "SERVED",
    "SINCE",
    "SOLVES",
    "SOURCES",
    "Net",
    "Nodes",
    "State",
    "happen",
    "kept",
    "make_net",
    "make_nodes",
    "make_state",
    "next_s",
    "part",
    "push",
    "run",
    "solve",
    "start",
    "trigger",
]
