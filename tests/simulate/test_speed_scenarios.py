"""The benchmark's speed scenarios, small: both solvers against progressive filling that is slow and plain."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from benchmarks.scenarios import LATENCY_S, SMALL, Scenario, scenario, to_kernel
from stanza_sim.simulate import simulate_flows
from stanza_sim.simulate.compiled import kernel

Arguments = tuple[str, str, int, float]
TOGETHER = 1e-12


def fair_rates(capacity: np.ndarray, routes: np.ndarray) -> np.ndarray:
    """Progressive filling, flow by flow: the links that are full first give their flows what these then have.

    `routes` has a row of links per flow, filled up with a last link that has room for anything.
    """
    rates = np.zeros(len(routes))
    room = np.append(capacity, np.inf)
    rising = np.ones(len(routes), dtype=bool)
    while rising.any():
        users = np.bincount(routes[rising].ravel(), minlength=len(room))
        share = np.full(len(room), np.inf)
        share[users > 0] = room[users > 0] / users[users > 0]
        full = share <= share.min() * (1 + TOGETHER)
        held = rising & full[routes].any(axis=1)
        rates[held] = share.min()
        room -= np.bincount(routes[held].ravel(), minlength=len(room)) * share.min()
        rising &= ~held
    return rates


@cache
def reference(arguments: Arguments) -> np.ndarray:
    """Completion times, pushes first: all rates from scratch at every instant at which a flow begins or ends."""
    sc = scenario(*arguments)
    pushes = len(sc.push_bytes)
    links = [sc.route(s, d) for s, d in [*sc.push_ends.tolist(), *sc.pull_ends.tolist()]]
    routes = np.full((len(links), max(map(len, links))), len(sc.capacity))
    for k, route in enumerate(links):
        routes[k, : len(route)] = route
    left = np.concatenate([sc.push_bytes, sc.pull_bytes])
    begin_s = np.concatenate([sc.push_ready_s + 2 * LATENCY_S, np.full(len(sc.pull_bytes), np.inf)])
    done_s = np.full(len(left), np.nan)
    missing = np.bincount(sc.push_group, minlength=len(sc.group_ready_s))
    begun = np.zeros(len(left), dtype=bool)
    now = 0.0
    while np.isnan(done_s).any():
        begun |= begin_s <= now * (1 + TOGETHER)
        running = np.nonzero(begun & np.isnan(done_s))[0]
        rates = fair_rates(sc.capacity, routes[running])
        ends_s = now + left[running] / rates
        then = min(ends_s.min(initial=np.inf), begin_s[~begun].min(initial=np.inf))
        left[running] -= rates * (then - now)
        now = then
        ended = running[ends_s <= now * (1 + TOGETHER)]
        done_s[ended] = now
        for k in ended[ended < pushes]:
            g = sc.push_group[k]
            missing[g] -= 1
            if missing[g] == 0:
                begin_s[pushes:][sc.pull_group == g] = max(now, sc.group_ready_s[g]) + 2 * LATENCY_S
    return done_s


def as_case(sc: Scenario) -> dict[str, object]:
    """The scenario as a bare flow-level case, flows named by their place."""
    ends = [*sc.push_ends.tolist(), *sc.pull_ends.tolist()]
    hosts = sorted({h for pair in ends for h in pair})
    outer = {q for s, d in ends for q in (sc.route(s, d)[0], sc.route(s, d)[-1])}
    deps: list[list[str]] = [[] for _ in sc.group_ready_s]
    for k, g in enumerate(sc.push_group.tolist()):
        deps[g].append(str(k))
    waits = [(ready_s, []) for ready_s in sc.push_ready_s.tolist()]
    waits += [(float(sc.group_ready_s[g]), deps[g]) for g in sc.pull_group.tolist()]
    nbytes = [*sc.push_bytes.tolist(), *sc.pull_bytes.tolist()]
    return {
        "hosts": [str(h) for h in hosts],
        "links": [
            {"name": str(q), "bandwidth": c, "latency": LATENCY_S if q in outer else 0.0}
            for q, c in enumerate(sc.capacity.tolist())
        ],
        "routes": [
            {"src": str(s), "dst": str(d), "links": [str(q) for q in sc.route(s, d)]}
            for s, d in sorted({(s, d) for s, d in ends})
        ],
        "flows": [
            {"id": str(k), "src": str(s), "dst": str(d), "bytes": b, "start": start_s, "deps": after}
            for k, ((s, d), b, (start_s, after)) in enumerate(zip(ends, nbytes, waits, strict=True))
        ],
    }


@pytest.mark.parametrize("arguments", SMALL, ids=lambda a: "-".join(map(str, a)))
def test_plain_solver(arguments: Arguments) -> None:
    found = list(simulate_flows(as_case(scenario(*arguments)), engine="plain").completion_s.values())
    np.testing.assert_allclose(found, reference(arguments), rtol=1e-9, atol=0)


@pytest.mark.parametrize("arguments", SMALL, ids=lambda a: "-".join(map(str, a)))
def test_array_solver(arguments: Arguments) -> None:
    pytest.importorskip("numba")
    sc = scenario(*arguments)
    net, nodes = to_kernel(sc)
    state = kernel.make_state(net, nodes)
    kernel.start(nodes, state)
    kernel.run(net, nodes, state, 1 << 62)
    np.testing.assert_allclose(nodes.done_s[: sc.flows], reference(arguments), rtol=1e-9, atol=0)
