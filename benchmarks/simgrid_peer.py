"""The speed scenarios in SimGrid, through its Python task interface, for a comparison in one run.

Pure max-min fairness (no TCP factors, no cross-traffic), as `stanza_sim` has it. SimGrid has one engine per process, so
`flows.py` runs this file: `python benchmarks/simgrid_peer.py KIND TOPOLOGY N JITTER` prints the seconds that the
simulation took and the simulated time at its end.
"""

from __future__ import annotations

import sys
import time

import simgrid
from scenarios import LATENCY_S, Scenario, scenario


def simulate(sc: Scenario) -> tuple[float, float]:
    """Return (seconds that the simulation took, simulated completion time of the last flow)."""
    options = ("network/model:CM02", "network/TCP-gamma:0", "network/crosstraffic:0", "network/weight-S:0")
    factors = ("network/bandwidth-factor:1", "network/latency-factor:1", "network/loopback-lat:0")
    engine = simgrid.Engine(["peer", *(f"--cfg={o}" for o in (*options, *factors)), "--log=root.thres:critical"])
    zone = engine.netzone_root
    count = int(max(sc.push_ends.max(), sc.pull_ends.max())) + 1
    hosts = [zone.add_host(f"h{i}", 1e9).seal() for i in range(count)]
    # All latency is on the host links, one of which every route begins and ends with.
    latency = [LATENCY_S if q < 2 * count else 0.0 for q in range(len(sc.capacity))]
    links = [zone.add_link(f"l{q}", float(c)).set_latency(latency[q]).seal() for q, c in enumerate(sc.capacity)]
    pairs = {(int(s), int(d)) for s, d in [*sc.push_ends.tolist(), *sc.pull_ends.tolist()]}
    for s, d in sorted(pairs):
        way = [simgrid.LinkInRoute(links[q]) for q in sc.route(s, d)]
        zone.add_route(hosts[s], hosts[d], way, False)
    zone.seal()
    gates = [simgrid.ExecTask.init(f"g{g}", 0.0, hosts[0]) for g in range(len(sc.group_ready_s))]
    pulls: dict[int, list[object]] = {}
    for k, (s, d) in enumerate(sc.pull_ends.tolist()):
        task = simgrid.CommTask.init(f"q{k}", float(sc.pull_bytes[k]), hosts[s], hosts[d])
        gates[int(sc.pull_group[k])].add_successor(task)
        pulls.setdefault(int(sc.pull_group[k]), []).append(task)
    due: dict[float, list[object]] = {}
    for k, (s, d) in enumerate(sc.push_ends.tolist()):
        task = simgrid.CommTask.init(f"p{k}", float(sc.push_bytes[k]), hosts[s], hosts[d])
        task.add_successor(gates[int(sc.push_group[k])])
        due.setdefault(float(sc.push_ready_s[k]), []).append(task)
    for g, ready in enumerate(sc.group_ready_s.tolist()):
        own = simgrid.ExecTask.init(f"o{g}", 0.0, hosts[0])
        own.add_successor(gates[g])
        due.setdefault(ready, []).append(own)

    def release() -> None:
        for at in sorted(due):
            simgrid.this_actor.sleep_until(at)
            for task in due[at]:
                task.enqueue_firings(1)

    hosts[0].add_actor("release", release)
    begin = time.perf_counter()
    engine.run()
    return time.perf_counter() - begin, float(simgrid.Engine.clock)


if __name__ == "__main__":
    kind, topology, n, jitter = sys.argv[1:]
    print(*simulate(scenario(kind, topology, int(n), float(jitter))))
