"""Speed of the flow-level solver, beside SimGrid's: `python benchmarks/flows.py [--check] [--repeats N]`.

Seconds count from arrays in memory to completion times; compiling (cached after the first run) is done before.
SimGrid is run live (its Python interface) where `simgrid` can be imported; otherwise the times of its compiled
interface are those of `scenarios.SCENARIOS`, measured elsewhere.
`--check` stops each run at sampled events and tests the condition that defines max-min fairness.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from scenarios import SCENARIOS, scenario, to_kernel

from stanza_sim.simulate import kernel

SIMGRID_TIMEOUT_S = 600


def run(net: kernel.Net, nodes: kernel.Nodes) -> tuple[float, kernel.State]:
    """Run once; return seconds and the final state."""
    begin = time.perf_counter()
    state = kernel.make_state(net, nodes)
    kernel.start(nodes, state)
    kernel.run(net, nodes, state, 1 << 62)
    return time.perf_counter() - begin, state


def violations(net: kernel.Net, state: kernel.State) -> int:
    """Classes under way without a full link on which their rate is the largest; and links over capacity."""
    classes = np.nonzero(state.active)[0]
    counts = np.diff(net.class_ptr)
    rows = np.repeat(np.arange(len(counts)), counts)
    busy = np.isin(rows, classes)
    rows, links = rows[busy], net.class_link[busy]
    rate = state.rate[rows]
    load = np.bincount(links, weights=rate * state.active[rows], minlength=len(net.capacity))
    largest = np.zeros(len(net.capacity))
    np.maximum.at(largest, links, rate)
    full = load[links] >= net.capacity[links] * (1 - 1e-9)
    held = full & (rate >= largest[links] * (1 - 1e-9))
    satisfied = np.bincount(rows, weights=held, minlength=len(counts))[classes] > 0
    return int((~satisfied).sum() + (load > net.capacity * (1 + 1e-9)).sum())


def check(net: kernel.Net, nodes: kernel.Nodes, samples: int = 1000) -> tuple[int, int]:
    """Stop at up to `samples` instants spread over the run; return (instants, violations)."""
    _, whole = run(net, copy(nodes))
    every = max(1, int(whole.scalars[kernel.SOLVES]) // samples)
    state = kernel.make_state(net, nodes)
    kernel.start(nodes, state)
    seen = bad = 0
    while state.scalars[kernel.LEFT] > 0:
        kernel.run(net, nodes, state, every)
        bad += violations(net, state)
        seen += 1
    return seen, bad


def copy(nodes: kernel.Nodes) -> kernel.Nodes:
    """Nodes are used up by a run."""
    return kernel.Nodes(*(a.copy() for a in nodes))


def simgrid_seconds(arguments: tuple[str, str, int, float]) -> float | None:
    """SimGrid's time on a scenario through its Python interface; None if it is not installed or takes too long."""
    if find_spec("simgrid") is None:
        return None
    command = [sys.executable, str(Path(__file__).with_name("simgrid_peer.py")), *map(str, arguments)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SIMGRID_TIMEOUT_S, check=True)
    except subprocess.TimeoutExpired:
        return None
    return float(done.stdout.split()[0])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="test the fairness condition at 1,000 sampled instants")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each scenario (default 3); the median counts")
    options = parser.parse_args()
    run(*to_kernel(scenario("incast", "star", 2)))  # compile, or load what was compiled
    table = Table(title=f"compiled: {kernel.COMPILED}", title_justify="left")
    for column in ("scenario", "flows", "ours, s", "SimGrid, s", "ratio", "fair at" if options.check else ""):
        table.add_column(column, justify="left" if column == "scenario" else "right")
    for arguments, compiled_s, _ in SCENARIOS:
        sc = scenario(*arguments)
        net, nodes = to_kernel(sc)
        seconds = statistics.median(run(net, copy(nodes))[0] for _ in range(options.repeats))
        live = simgrid_seconds(arguments)
        peer = live or compiled_s
        fair = ""
        if options.check:
            seen, bad = check(net, nodes)
            fair = f"{seen} instants" if not bad else f"{bad} VIOLATIONS"
        table.add_row(
            sc.name,
            f"{sc.flows:,}",
            f"{seconds:.3f}",
            f"{peer:.2f} {'live' if live else 'C++'}" if peer else "> 600",
            f"{peer / seconds:.0f}x" if peer else f"> {600 / seconds:.0f}x",
            fair,
        )
    Console(width=100).print(table)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
