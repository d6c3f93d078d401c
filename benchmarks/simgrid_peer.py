"""A speed scenario in SimGrid, through its Python module, for a comparison in one run.

`python benchmarks/simgrid_peer.py LIMIT_S < scenario.json`: the scenario is what `scenarios.as_json` makes of it, so
that the interpreter that has SimGrid needs nothing else. SimGrid has one engine per process, so `flows.py` runs this
file for each scenario. It prints one JSON object:

- `seconds`: what SimGrid's engine took, platform and flows already made;
- `version` of SimGrid, and `interface`: `tasks` where the module has them (SimGrid 4): the engine itself starts what
  has become ready. Otherwise `actors`: one per group of flows, which waits for its pushes and then starts its pulls;
- `completion_s`, pushes first, if LIMIT_S is 0. SimGrid then resolves times and amounts far more finely than by
  default, where events less than 1 ns apart are one. Otherwise it runs as it comes, and SIGALRM ends the process once
  the engine has run for LIMIT_S.

Sharing is pure max-min (no TCP factors, no cross-traffic), as `stanza_sim` has it.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import simgrid

PURE = (
    "network/model:CM02",
    "network/TCP-gamma:0",
    "network/crosstraffic:0",
    "network/weight-S:0",
    "network/bandwidth-factor:1",
    "network/latency-factor:1",
    "network/loopback-lat:0",
)
VERSION = tuple(int(part) for part in simgrid.simgrid_version.split("."))
HAS_TASKS = hasattr(getattr(simgrid, "CommTask", None), "enqueue_firings")
ALIVE: list[Any] = []
"""Tasks: the engine uses them, and it is Python that owns them."""


def engine_for(exact: bool) -> Any:
    """The engine of this process, of pure max-min sharing."""
    options = list(PURE)
    if exact:
        timing, amount = ("precision/timing", "precision/work-amount")
        if VERSION < (3, 34):
            timing, amount = ("surf/precision", "maxmin/precision")
        options += [f"{timing}:1e-15", f"{amount}:1e-9"]
    return simgrid.Engine(["peer", *(f"--cfg={o}" for o in options), "--log=root.thres:critical"])


def platform(engine: Any, sc: dict[str, Any]) -> list[Any]:
    """Build links and routes; return the hosts. What these calls are named and take depends on the version."""
    zone = engine.netzone_root or simgrid.NetZone.create_full_zone("network")
    add_host = zone.add_host if hasattr(zone, "add_host") else zone.create_host
    add_link = zone.add_link if hasattr(zone, "add_link") else zone.create_link
    hosts = [add_host(f"h{i}", 1e9).seal() for i in range(sc["hosts"])]
    links = [
        add_link(f"l{q}", bandwidth).set_latency(latency).seal() for q, (bandwidth, latency) in enumerate(sc["links"])
    ]
    for source, destination, route in sc["routes"]:
        a, b, way = hosts[source], hosts[destination], [simgrid.LinkInRoute(links[q]) for q in route]
        try:
            zone.add_route(a, b, way, False)
        except TypeError:
            zone.add_route(a.netpoint, b.netpoint, None, None, way, False)
    zone.seal()
    return hosts


def start_actor(name: str, host: Any, body: Callable[[], None]) -> None:
    """Let `body` run as an actor on `host`."""
    if hasattr(host, "add_actor"):
        host.add_actor(name, body)
    else:
        simgrid.Actor.create(name, host, body)


def with_tasks(sc: dict[str, Any], hosts: list[Any], exact: bool) -> Callable[[], list[float]]:
    """Make flows as tasks, each group's gate as a task without work; return what tells the completion times."""
    gates = [simgrid.ExecTask.init(f"gate {g}", 0.0, hosts[0]) for g in range(len(sc["groups"]))]
    flows: list[Any] = []
    due: dict[float, list[Any]] = {}
    for source, destination, nbytes, ready_s, g in sc["pushes"]:
        task = simgrid.CommTask.init(str(len(flows)), nbytes, hosts[source], hosts[destination])
        task.add_successor(gates[g])
        due.setdefault(ready_s, []).append(task)
        flows.append(task)
    for source, destination, nbytes, g in sc["pulls"]:
        task = simgrid.CommTask.init(str(len(flows)), nbytes, hosts[source], hosts[destination])
        gates[g].add_successor(task)
        flows.append(task)
    for g, ready_s in enumerate(sc["groups"]):
        own = simgrid.ExecTask.init(f"own {g}", 0.0, hosts[0])
        own.add_successor(gates[g])
        due.setdefault(ready_s, []).append(own)

    def release() -> None:
        for at in sorted(due):
            simgrid.this_actor.sleep_until(at)
            for task in due[at]:
                task.enqueue_firings(1)

    done = [0.0] * len(flows)

    def completed(task: Any) -> None:
        if task.name.isdecimal():
            done[int(task.name)] = simgrid.Engine.clock

    if exact:
        simgrid.Task.on_completion_cb(completed)
    ALIVE.extend([*flows, *gates, *(task for tasks in due.values() for task in tasks)])
    start_actor("release", hosts[0], release)
    return lambda: done


def with_actors(sc: dict[str, Any], hosts: list[Any]) -> Callable[[], list[float]]:
    """Make an actor per group; return what tells the completion times."""
    pushes: list[list[Any]] = [[] for _ in sc["groups"]]
    pulls: list[list[Any]] = [[] for _ in sc["groups"]]
    flows: list[Any] = [None] * (len(sc["pushes"]) + len(sc["pulls"]))
    for k, (source, destination, nbytes, ready_s, g) in enumerate(sc["pushes"]):
        pushes[g].append((ready_s, k, hosts[source], hosts[destination], nbytes))
    for k, (source, destination, nbytes, g) in enumerate(sc["pulls"], len(sc["pushes"])):
        pulls[g].append((k, hosts[source], hosts[destination], nbytes))

    def serve(g: int) -> None:
        now = 0.0
        for ready_s, k, source, destination, nbytes in sorted(pushes[g], key=lambda p: p[:2]):
            if ready_s > now:
                simgrid.this_actor.sleep_until(ready_s)
                now = ready_s
            flows[k] = simgrid.Comm.sendto_async(source, destination, nbytes)
        simgrid.Comm.wait_all([flows[p[1]] for p in pushes[g]])
        if sc["groups"][g] > simgrid.Engine.clock:
            simgrid.this_actor.sleep_until(sc["groups"][g])
        for k, source, destination, nbytes in pulls[g]:
            flows[k] = simgrid.Comm.sendto_init(source, destination).set_payload_size(nbytes).detach()

    for g in range(len(sc["groups"])):
        start_actor(f"group {g}", hosts[0], partial(serve, g))
    return lambda: [flow.finish_time for flow in flows]


def main() -> None:
    """Run the scenario of standard input and print what came of it."""
    limit_s = float(sys.argv[1])
    exact = limit_s == 0
    sc = json.load(sys.stdin)
    engine = engine_for(exact)
    hosts = platform(engine, sc)
    completion_s = with_tasks(sc, hosts, exact) if HAS_TASKS else with_actors(sc, hosts)
    signal.setitimer(signal.ITIMER_REAL, limit_s)  # 0 sets none
    begin = time.perf_counter()
    engine.run()
    seconds = time.perf_counter() - begin
    signal.setitimer(signal.ITIMER_REAL, 0)
    found = {
        "seconds": seconds,
        "version": simgrid.simgrid_version,
        "interface": "tasks" if HAS_TASKS else "actors",
        "completion_s": completion_s() if exact else [],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
