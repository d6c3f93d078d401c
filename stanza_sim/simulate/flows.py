"""Bare flow-level cases: flows with dependencies over routes of one-direction links, shared max-min fairly.

A flow is released at max(start, completion of every dependency) + delay; its transfer begins after the sum of its
route's latencies; its rate is its max-min fair share, anew whenever a transfer begins or ends; it completes when its
last byte has moved. A flow of 0 bytes, or from a host to itself, completes when its transfer would begin.
"""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heappop, heappush
from math import inf, isfinite
from typing import Any

from stanza_sim.base.collector import collector_off
from stanza_sim.base.errors import InputError, RunError
from stanza_sim.simulate.engines import EngineChoice, engine_of, require_numba
from stanza_sim.simulate.flow_case import FlowCase, check_case
from stanza_sim.simulate.plain.fluid import TIE, FluidShare, RunningActivity
from stanza_sim.simulate.prediction import FlowResult

COMPILED_FROM = 20_000
"""From so many flows on, the compiled solver is worth its start-up time."""


@collector_off()
def simulate_flows(case: Mapping[str, Any], *, engine: EngineChoice | str = EngineChoice.AUTO) -> FlowResult:
    """Run a case: a mapping with `hosts`, `links`, `routes` and `flows`; other keys are ignored.

    Bandwidths are bytes per second, latencies, starts and delays seconds; every link is one direction. `engine` is
    `plain`, `compiled` (with numba) or `auto`, which takes the quicker one; they agree. Raises `InputError` for names
    that do not resolve, routes that do not connect, cyclic dependencies, and numbers that are negative, zero where a
    rate is, or not finite.

    >>> import stanza_sim as ss
    >>> case = {
    ...     "hosts": ["a", "b"],
    ...     "links": [{"name": "ab", "bandwidth": 1e9, "latency": 1e-5}],
    ...     "routes": [{"src": "a", "dst": "b", "links": ["ab"]}],
    ...     "flows": [{"id": "f", "src": "a", "dst": "b", "bytes": 1e6}],
    ... }
    >>> ss.simulate_flows(case).completion_s
    {'f': 0.00101}
    """
    checked = check_case(case)
    chosen = engine_of(engine)
    if chosen is EngineChoice.COMPILED:
        require_numba()
    run = _run_compiled if chosen is EngineChoice.COMPILED else _run
    if chosen is EngineChoice.AUTO and len(checked.names) >= COMPILED_FROM:
        from stanza_sim.simulate.compiled import kernel

        run = _run_compiled if kernel.COMPILED else _run
    try:
        done, limit = run(checked)
    except RunError:  # a rate that is no number above zero any more
        raise InputError("a link's bandwidth is too small to be shared", where="links") from None
    for i, time_s in enumerate(done):
        if not isfinite(time_s):
            hint = "its bytes, bandwidths or times are beyond what can be computed"
            raise InputError("does not complete in finite time", where=f"flows.{i} ({checked.names[i]})", hint=hint)
    return _result(checked, done, limit)


def _run(c: FlowCase) -> tuple[list[float], list[int]]:
    """Completion times and last bottleneck (a link, or -1) of each flow, in plain Python."""
    n = len(c.names)
    share = FluidShare(c.capacity)
    missing, waiting, holding = [len(flows) for flows in c.sets], c.waiting(), c.holding()
    done = [inf] * n
    limit = [-1] * n
    starts: list[tuple[float, int]] = []
    for i, s in enumerate(c.waits):
        if not missing[s]:
            heappush(starts, (c.start[i] + c.delay[i], i))

    def complete(i: int, now: float) -> None:
        done[i] = now
        for s in holding[i]:
            missing[s] -= 1
            if not missing[s]:
                for j in waiting[s]:
                    heappush(starts, (max(c.start[j], now) + c.delay[j], j))

    while True:
        now = min(share.next_finish_s(), starts[0][0] if starts else float("inf"))
        if not isfinite(now):
            return done, limit
        for activity in share.finish(now):
            if isinstance(activity.tag, int):
                limit[activity.tag] = activity.limit
                complete(activity.tag, now)
        while starts and starts[0][0] <= now + TIE * now:
            i = heappop(starts)[1]
            if c.nbytes[i] > 0:
                share.start(RunningActivity(work=c.nbytes[i], usage=tuple((q, 1.0) for q in c.route[i]), tag=i), now)
            else:
                complete(i, now)
        if share.dirty:
            share.solve(now)


def _run_compiled(c: FlowCase) -> tuple[list[float], list[int]]:
    """As `_run`, on arrays."""
    import numpy as np

    from stanza_sim.simulate.compiled import kernel

    n = len(c.names)
    # After the flows comes a node for each set of flows that others wait for, and then one for each flow that waits
    # for others, to hold it back until its earliest start.
    waits = np.array(c.waits, dtype=np.int64)
    start, delay = np.array(c.start), np.array(c.delay)
    counts = np.array([len(flows) for flows in c.sets], dtype=np.int64)
    waiting = counts[waits] > 0
    held = np.nonzero(waiting & (start > 0))[0]
    total = n + len(c.sets) + len(held)
    classes: dict[tuple[int, ...], int] = {}
    cls = np.full(total, -1, dtype=np.int32)
    for i, route in enumerate(c.route):
        if c.nbytes[i] > 0:
            cls[i] = classes.setdefault(route, len(classes))
    members = np.array([i for flows in c.sets for i in flows], dtype=np.int64)
    source = np.concatenate([members, n + waits[waiting], n + len(c.sets) + np.arange(len(held))])
    target = np.concatenate([n + np.repeat(np.arange(len(c.sets)), counts), np.nonzero(waiting)[0], held])
    missing = np.bincount(target, minlength=total).astype(np.int32)
    missing[n : n + len(c.sets)][counts == 0] = 1  # who waits for nothing does not wait for this node
    order = np.argsort(source, kind="stable")
    ptr = np.zeros(total + 1, dtype=np.int64)
    ptr[1:] = np.cumsum(np.bincount(source, minlength=total))
    net = kernel.make_net(
        np.array(c.capacity),
        [tuple((q, 1.0) for q in route) for route in classes],
        np.ones(len(classes)),
        np.full(len(classes), np.inf),
    )
    nodes = kernel.make_nodes(
        cls=cls,
        work=np.concatenate([np.array(c.nbytes), np.zeros(total - n)]),
        delay=np.concatenate([np.where(waiting, delay, delay + start), np.zeros(len(c.sets)), start[held]]),
        missing=missing,
        successor_ptr=ptr,
        successor=target[order].astype(np.int32),
    )
    state = kernel.make_state(net, nodes)
    kernel.start(nodes, state)
    kernel.run(net, nodes, state, 1 << 62)
    return nodes.done_s[:n].tolist(), state.limited_by[:n].tolist()


def _result(c: FlowCase, done: list[float], limit: list[int]) -> FlowResult:
    makespan = max(done, default=0.0)
    busy_s = [0.0] * len(c.links)
    for route, nbytes in zip(c.route, c.nbytes, strict=True):
        for q in route:
            busy_s[q] += nbytes / c.capacity[q]
    return FlowResult(
        completion_s=dict(zip(c.names, done, strict=True)),
        utilisation={name: busy_s[q] / makespan if makespan > 0 else 0.0 for q, name in enumerate(c.links)},
        bottleneck={name: c.links[q] if q >= 0 else None for name, q in zip(c.names, limit, strict=True)},
        makespan_s=makespan,
    )
