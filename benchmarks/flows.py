"""Speed of the flow-level solver, beside SimGrid's: `python benchmarks/flows.py [options]`.

Seconds count from arrays in memory to completion times; compiling (cached after the first run) is done before. SimGrid
runs live, through its Python module, if the interpreter that runs this file can import `simgrid`, or if the one that
`--simgrid-python` names can, which needs nothing else; what takes its engine longer than `--simgrid-limit` is given up.
The stored times are those of its compiled interface, measured elsewhere (`scenarios.SCENARIOS`).

`--check` stops each run at sampled instants and tests the condition that defines max-min fairness. Where SimGrid runs
live, it also compares every flow's completion time with SimGrid's, on these and smaller scenarios up to 10,000 flows.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import statistics
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scenarios import SCENARIOS, SMALL, Scenario, as_json, scenario, to_kernel

from stanza_sim.simulate.compiled import kernel

STORED_LIMIT_S = 600  # what the stored times were given up after
AGREE = 1e-9
COMPARED_FLOWS = 10_000  # more take SimGrid long


def run(net: kernel.Net, nodes: kernel.Nodes) -> tuple[float, kernel.State]:
    """Run once; return seconds and the final state."""
    begin = time.perf_counter()
    state = kernel.make_state(net, nodes)
    kernel.start(nodes, state)
    kernel.run(net, nodes, state, 1 << 62)
    return time.perf_counter() - begin, state


def violations(net: kernel.Net, state: kernel.State) -> int:
    """Classes under way without a full link on which their rate is the largest; and links over capacity."""
    classes = np.nonzero(state.row[:, kernel.COUNT])[0]
    counts = np.diff(net.class_ptr)
    rows = np.repeat(np.arange(len(counts)), counts)
    busy = np.isin(rows, classes)
    rows, links = rows[busy], net.class_link[busy]
    rate = state.row[rows, kernel.RATE]
    load = np.bincount(links, weights=rate * state.row[rows, kernel.COUNT], minlength=len(net.capacity))
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


def with_simgrid(named: str | None) -> str | None:
    """The interpreter that can import SimGrid: the one that was named, or else this one; None if this one cannot."""
    if named is None and find_spec("simgrid") is None:
        return None
    python = named or sys.executable
    try:
        subprocess.run([python, "-c", "import simgrid"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as e:
        why = e.strerror if isinstance(e, OSError) else e.stderr.strip().splitlines()[-1]
        if named is None:  # installed, and broken: the stored times will do
            print(f"SimGrid does not run live: {why}", file=sys.stderr)
            return None
        raise SystemExit(f"{python} cannot import simgrid: {why}") from None
    return python


def simgrid(python: str, sc: Scenario, limit_s: float) -> dict[str, Any] | None:
    """What `simgrid_peer.py` prints of a scenario; None if it was given up. A limit of 0 asks for completion times."""
    command = [python, str(Path(__file__).with_name("simgrid_peer.py")), str(limit_s)]
    done = subprocess.run(command, input=as_json(sc), capture_output=True, text=True)
    if done.returncode == -signal.SIGALRM:
        return None
    if done.returncode:
        raise SystemExit(f"SimGrid failed on {sc.name} (status {done.returncode}):\n{done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout)


def agreement(python: str) -> Table:
    """Our completion times beside SimGrid's on scenarios that are not too large, by kind and topology."""
    workers: dict[tuple[str, str], list[int]] = {}
    found: dict[tuple[str, str], list[np.ndarray]] = {}
    for arguments in [*SMALL, *(arguments for arguments, _, _ in SCENARIOS)]:
        sc = scenario(*arguments)
        if sc.flows > COMPARED_FLOWS:
            continue
        net, nodes = to_kernel(sc)
        run(net, nodes)
        theirs = simgrid(python, sc, 0)
        expected = np.array(theirs["completion_s"] if theirs else [])
        apart = np.abs(nodes.done_s[: sc.flows] - expected) / expected
        found.setdefault(arguments[:2], []).append(apart)
        workers.setdefault(arguments[:2], []).append(arguments[2])
    table = Table(title="completion times beside SimGrid's", title_justify="left")
    for column in ("scenarios", "workers", "runs", "flows", "largest relative difference", f"over {AGREE:g}"):
        table.add_column(column, justify="left" if column == "scenarios" else "right")
    for (kind, topology), runs in found.items():
        apart, sizes = np.concatenate(runs), workers[kind, topology]
        over = int((~(apart <= AGREE)).sum())
        cells = (f"{min(sizes)} to {max(sizes)}", len(runs), f"{len(apart):,}", f"{apart.max():.1e}", over)
        table.add_row(f"{kind}, {topology}", *map(str, cells))
    return table


def ratio(peer_s: float | None, limit_s: float, ours_s: float) -> tuple[str, str]:
    """A peer's seconds, None for more than the limit, and how many times ours they are, for the table."""
    if peer_s is None:
        return f"> {limit_s:g}", f"> {limit_s / ours_s:.0f}x"
    return f"{peer_s:.2f}", f"{peer_s / ours_s:.0f}x"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--check", action="store_true", help="test fairness at 1,000 instants; agreement with live SimGrid"
    )
    parser.add_argument("--repeats", type=int, default=3, help="runs of each scenario (default 3); the median counts")
    parser.add_argument("--simgrid-python", metavar="PATH", help="an interpreter that can import simgrid")
    parser.add_argument(
        "--simgrid-limit", type=float, default=60, metavar="S", help="give it up after so long (default 60)"
    )
    options = parser.parse_args()
    if options.repeats < 1 or not options.simgrid_limit > 0:
        parser.error("--repeats and --simgrid-limit must be above zero")
    python = with_simgrid(options.simgrid_python)
    run(*to_kernel(scenario("incast", "star", 2)))  # compile, or load what was compiled
    rows, ours_s = [], []
    for arguments, _, _ in SCENARIOS:
        sc = scenario(*arguments)
        net, nodes = to_kernel(sc)
        ours_s.append(statistics.median(run(net, copy(nodes))[0] for _ in range(options.repeats)))
        rows.append([sc.name, f"{sc.flows:,}", f"{ours_s[-1]:.3f}"])
        if options.check:
            seen, bad = check(net, nodes)
            rows[-1].append(f"{seen:,}" if not bad else f"{bad} VIOLATIONS")
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    columns = ["scenario", "flows", "ours, s", *(["fair at instants"] if options.check else [])]
    title = f"compiled: {kernel.COMPILED}"
    if python:
        columns += ["SimGrid live, s", "ratio"]
        for row, (arguments, _, _), seconds in zip(rows, SCENARIOS, ours_s, strict=True):
            live = simgrid(python, scenario(*arguments), options.simgrid_limit)
            row += ratio(live and live["seconds"], options.simgrid_limit, seconds)
            if live:
                title = f"compiled: {kernel.COMPILED}; live: SimGrid {live['version']}, its Python {live['interface']}"
    columns += ["SimGrid 4.1 C++ stored, s", "ratio"]
    for row, (_, compiled_s, _), seconds in zip(rows, SCENARIOS, ours_s, strict=True):
        row += ratio(compiled_s, STORED_LIMIT_S, seconds)
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column == "scenario" else "right", no_wrap=column == "scenario")
    for row in rows:
        table.add_row(*row)
    console = Console(width=110)
    console.print(table)
    if options.check and python:
        console.print(agreement(python))
    print(f"peak memory {peak_kib / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
