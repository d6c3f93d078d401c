"""Speed scenarios as arrays: what a flow-level simulator is asked to do, free of any simulator.

A scenario is a synchronous aggregation of VGG-16's weights. `sharded`: every tensor is cut in n shards, one per host;
`assigned`: tensor t lives whole on host t mod n; `incast`: one tensor of 25 MB, one server. Worker i and server i share
host i; what stays on the host crosses no link and is left out. A push of tensor k (backward order) is ready after
a share of the worker's compute time equal to its place; a pull starts when all pushes of its group have arrived and
the server's own gradient is ready. `jitter` is the relative spread of each worker's compute time: with any, nothing is
symmetric. All latency is on the host links (2 x 1 us per route); links carry 1.25 GB/s.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from stanza_sim.simulate.compiled import kernel

VGG16 = [1728, 36864, 73728, 147456, 294912, 589824, 589824, 1179648] + [2359296] * 5 + [102760448, 16777216, 4096000]
"""Parameters of VGG-16's weight layers in forward order, biases left out."""
BANDWIDTH_BPS, LATENCY_S = 1.25e9, 1e-6

Route = Callable[[int, int], list[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Arrays of one entry per push, pull and group. `push_group` and `pull_group` are indices of groups."""

    name: str
    capacity: np.ndarray
    route: Route
    push_ends: np.ndarray  # (pushes, 2): source and destination host
    push_bytes: np.ndarray
    push_ready_s: np.ndarray
    push_group: np.ndarray
    pull_ends: np.ndarray
    pull_bytes: np.ndarray
    pull_group: np.ndarray
    group_ready_s: np.ndarray

    @property
    def flows(self) -> int:
        """Number of flows."""
        return len(self.push_bytes) + len(self.pull_bytes)


def star(n: int) -> tuple[int, Route]:
    """Links and route of n hosts around one switch."""
    return 2 * n, lambda s, d: [2 * s, 2 * d + 1]


def fat_tree(k: int) -> tuple[int, Route]:
    """Links and route of a k-ary fat tree of k^3/4 hosts; one path per pair, by the destination's place."""
    half = k // 2
    n = k * half * half
    base, per = 2 * n, k * half * half

    def edge_up(pod: int, edge: int, agg: int, down: int) -> int:
        return base + 2 * ((pod * half + edge) * half + agg) + down

    def agg_up(pod: int, agg: int, core: int, down: int) -> int:
        return base + 2 * per + 2 * ((pod * half + agg) * half + core) + down

    def route(s: int, d: int) -> list[int]:
        p, e = s // (half * half), s // half % half
        q, f, j = d // (half * half), d // half % half, d % half
        a, c = j % half, f % half
        middle: list[int] = []
        if p != q:
            middle = [edge_up(p, e, a, 0), agg_up(p, a, c, 0), agg_up(q, a, c, 1), edge_up(q, f, a, 1)]
        elif e != f:
            middle = [edge_up(p, e, a, 0), edge_up(q, f, a, 1)]
        return [2 * s, *middle, 2 * d + 1]

    return base + 4 * per, route


def scenario(kind: str, topology: str, n: int, jitter: float = 0.0, compute_s: float = 0.2, seed: int = 1) -> Scenario:
    """Build a scenario: `kind` as in the module's text, `topology` `star` or `fattreeK`, `n` workers."""
    rng = random.Random(seed)
    links, route = star(n + (kind == "incast")) if topology == "star" else fat_tree(int(topology[7:]))
    pace = [compute_s * (1 + jitter * rng.random()) for _ in range(n)]
    groups: list[float] = []
    push: list[tuple[int, int, int, float, int]] = []
    pull: list[tuple[int, int, int, int]] = []
    if kind == "incast":
        groups.append(0.0)
        push = [(i, n, 25_000_000, pace[i] - compute_s, 0) for i in range(n)]
        pull = [(n, i, 25_000_000, 0) for i in range(n)]
    else:
        sizes = [4 * x for x in reversed(VGG16)]
        for t, size in enumerate(sizes):
            share = (t + 1) / len(sizes)
            for s in range(n) if kind == "sharded" else [t % n]:
                g, nbytes = len(groups), max(1, size // n) if kind == "sharded" else size
                groups.append(pace[s] * share)
                push += [(i, s, nbytes, pace[i] * share, g) for i in range(n) if i != s]
                pull += [(s, i, nbytes, g) for i in range(n) if i != s]
    return Scenario(
        name=f"{kind}, {topology} {n}" + (", jit" if jitter else ""),
        capacity=np.full(links, BANDWIDTH_BPS),
        route=route,
        push_ends=np.array([p[:2] for p in push]),
        push_bytes=np.array([p[2] for p in push], dtype=float),
        push_ready_s=np.array([p[3] for p in push]),
        push_group=np.array([p[4] for p in push]),
        pull_ends=np.array([p[:2] for p in pull]),
        pull_bytes=np.array([p[2] for p in pull], dtype=float),
        pull_group=np.array([p[3] for p in pull]),
        group_ready_s=np.array(groups),
    )


def as_json(sc: Scenario) -> str:
    """The scenario for a simulator in another process: hosts, links (B/s, s), routes, groups (s), pushes and pulls."""
    hosts = int(max(sc.push_ends.max(), sc.pull_ends.max())) + 1
    ends = np.unique(np.concatenate([sc.push_ends, sc.pull_ends]), axis=0).tolist()
    groups, pushes, pulls = sc.push_group.tolist(), sc.push_ends.tolist(), sc.pull_ends.tolist()
    push_bytes, pull_bytes = sc.push_bytes.astype(int).tolist(), sc.pull_bytes.astype(int).tolist()
    return json.dumps(
        {
            "hosts": hosts,
            # All latency is on the host links, with one of which every route begins and with another ends.
            "links": [(c, LATENCY_S if q < 2 * hosts else 0.0) for q, c in enumerate(sc.capacity.tolist())],
            "routes": [(s, d, sc.route(s, d)) for s, d in ends],
            "groups": sc.group_ready_s.tolist(),
            "pushes": [
                (s, d, nbytes, ready_s, g)
                for (s, d), nbytes, ready_s, g in zip(pushes, push_bytes, sc.push_ready_s.tolist(), groups, strict=True)
            ],
            "pulls": [
                (s, d, nbytes, g) for (s, d), nbytes, g in zip(pulls, pull_bytes, sc.pull_group.tolist(), strict=True)
            ],
        }
    )


def as_case(sc: Scenario) -> dict[str, Any]:
    """The scenario as `stanza_sim.simulate_flows` takes it: a dictionary of hosts, links, routes and flows."""
    hosts = int(max(sc.push_ends.max(), sc.pull_ends.max())) + 1
    ends = np.unique(np.concatenate([sc.push_ends, sc.pull_ends]), axis=0).tolist()
    groups: list[list[str]] = [[] for _ in sc.group_ready_s]
    flows: list[dict[str, Any]] = []
    pushes = zip(sc.push_ends.tolist(), sc.push_bytes.tolist(), sc.push_ready_s.tolist(), sc.push_group, strict=True)
    for i, ((s, d), nbytes, ready_s, g) in enumerate(pushes):
        groups[g].append(f"push{i}")
        flows.append({"id": f"push{i}", "src": f"h{s}", "dst": f"h{d}", "bytes": nbytes, "start": ready_s})
    starts = sc.group_ready_s.tolist()
    for i, ((s, d), nbytes, g) in enumerate(
        zip(sc.pull_ends.tolist(), sc.pull_bytes.tolist(), sc.pull_group, strict=True)
    ):
        flow = {"id": f"pull{i}", "src": f"h{s}", "dst": f"h{d}", "bytes": nbytes}
        flows.append({**flow, "start": starts[g], "deps": list(groups[g])})
    capacity = sc.capacity.tolist()
    return {
        "hosts": [f"h{i}" for i in range(hosts)],
        "links": [
            {"name": f"l{q}", "bandwidth": c, "latency": LATENCY_S if q < 2 * hosts else 0.0}
            for q, c in enumerate(capacity)
        ],
        "routes": [{"src": f"h{s}", "dst": f"h{d}", "links": [f"l{q}" for q in sc.route(s, d)]} for s, d in ends],
        "flows": flows,
    }


def to_kernel(sc: Scenario) -> tuple[kernel.Net, kernel.Nodes]:
    """The scenario as the solver's arrays: nodes are pushes, pulls, groups, and each group's own readiness."""
    p, q, g = len(sc.push_bytes), len(sc.pull_bytes), len(sc.group_ready_s)
    ends = np.concatenate([sc.push_ends, sc.pull_ends])
    codes, of_flow = np.unique(ends[:, 0] * len(sc.capacity) + ends[:, 1], return_inverse=True)
    routes = [tuple((link, 1.0) for link in sc.route(*divmod(int(c), len(sc.capacity)))) for c in codes]
    cls = np.full(p + q + 2 * g, -1, dtype=np.int32)
    cls[: p + q] = of_flow
    work = np.zeros(len(cls))
    work[:p], work[p : p + q] = sc.push_bytes, sc.pull_bytes
    delay = np.zeros(len(cls))
    delay[:p], delay[p : p + q] = sc.push_ready_s + 2 * LATENCY_S, 2 * LATENCY_S
    delay[p + q + g :] = sc.group_ready_s
    missing = np.zeros(len(cls), dtype=np.int32)
    missing[p : p + q] = 1
    missing[p + q : p + q + g] = np.bincount(sc.push_group, minlength=g) + 1
    pulls_by_group = np.argsort(sc.pull_group, kind="stable")
    ptr = np.zeros(len(cls) + 1, dtype=np.int64)
    ptr[1:] = np.cumsum(np.concatenate([np.ones(p), np.zeros(q), np.bincount(sc.pull_group, minlength=g), np.ones(g)]))
    successor = np.concatenate([p + q + sc.push_group, p + pulls_by_group, p + q + np.arange(g)]).astype(np.int32)
    net = kernel.make_net(sc.capacity, routes, np.ones(len(routes)), np.full(len(routes), np.inf))
    return net, kernel.make_nodes(cls, work, delay, missing, ptr, successor)


SCENARIOS: tuple[tuple[tuple[str, str, int, float], float | None, float | None], ...] = (
    (("sharded", "star", 32, 0.0), 0.29, 0.57),
    (("sharded", "star", 128, 0.0), 10.2, 23.2),
    (("sharded", "star", 32, 0.1), 3.3, 3.8),
    (("sharded", "star", 64, 0.1), 52.9, None),
    (("sharded", "star", 128, 0.1), None, None),
    (("assigned", "star", 128, 0.1), 1.0, 1.3),
    (("incast", "star", 1024, 0.1), 0.30, 0.48),
    (("assigned", "fattree8", 128, 0.1), 2.4, 2.1),
    (("sharded", "fattree8", 128, 0.0), 33.4, 33.7),
)
"""Arguments of `scenario`, and SimGrid 4.1's own seconds: its compiled interface and its Python one.

They were measured on two cores of another machine and are good to about 40%; None: over 600 s or not run."""

SMALL: tuple[tuple[str, str, int, float], ...] = tuple(
    (kind, topology, n, jitter)
    for kind in ("incast", "assigned", "sharded")
    for topology, sizes in (("star", (2, 3, 5, 8, 16)), ("fattree2", (2,)), ("fattree4", (4, 8, 16)))
    for n in sizes
    for jitter in (0.0, 0.1)
    if kind != "incast" or (topology, n) not in {("fattree2", 2), ("fattree4", 16)}  # no host is left for the server
)
"""Arguments of scenarios that are small enough for their answers to be checked against a plain reference."""
