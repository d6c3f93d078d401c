"""Speed of whole predictions: `python benchmarks/simulate.py [--repeats N] [--only WORD]`.

Each row is a command or a call as a user makes it; the median of the repeats counts. `unfolded` simulates every rank by
itself; `one slow` has a rank whose device is 1% slower than the others'.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace

from rich.console import Console
from rich.table import Table

from stanza_sim import strategies
from stanza_sim.cluster import Cluster, load_cluster
from stanza_sim.model import zoo
from stanza_sim.schedule import check
from stanza_sim.simulate import costs_for, simulate


def slowed(cluster: Cluster) -> Cluster:
    """`cluster` with one device 1% slower."""
    hosts = list(cluster.hosts)
    hosts[3] = replace(hosts[3], device_speed=0.99)
    return replace(cluster, hosts=tuple(hosts))


def prediction(model: str, strategy: str, cluster: Cluster, *, folded: bool, **settings: object) -> Callable[[], str]:
    """A call that builds, checks and simulates; it returns what it found."""
    profile, chosen = zoo.get(model), strategies.get(strategy)

    def call() -> str:
        schedule = chosen.build(
            profile, world_size=cluster.world_size, batch_per_worker=32, settings=chosen.Settings(**settings)
        )
        check(schedule, profile)
        found = simulate(schedule, profile, cluster, costs_for(cluster, profile), fold_ranks=folded)
        return f"{found.iteration_s:.4f} s an iteration, {found.iterations} simulated"

    return call


def command(*words: str) -> Callable[[], str]:
    """A call of the command line in a new process."""

    def call() -> str:
        subprocess.run([sys.executable, "-m", "stanza_sim", *words], check=True, capture_output=True)
        return ""

    return call


def cases() -> dict[str, Callable[[], str]]:
    """What is timed, by name."""
    star = {n: load_cluster("ec2-p3-10", nodes=n) for n in (256, 1024, 10_000)}
    fabric = load_cluster("leaf-spine", nodes=256)
    shards: dict[str, object] = {"placement": "colocated", "assignment": "cut"}
    return {
        "stanza-sim run ec2_v100": command("run", "ec2_v100"),
        "10,000 ranks folded, one server": prediction("vgg16", "parameter_server", star[10_000], folded=True),
        "10,000 ranks folded, Stanza": prediction("vgg16", "stanza", star[10_000], folded=True),
        "10,000 ranks folded, all-reduce": prediction("vgg16", "all_reduce", star[10_000], folded=True),
        "256 shards, leaf-spine, folded": prediction("vgg16", "parameter_server", fabric, folded=True, **shards),
        "256 shards, leaf-spine, unfolded": prediction("vgg16", "parameter_server", fabric, folded=False, **shards),
        "1,024 ranks, one server, one slow, unfolded": prediction(
            "vgg16", "parameter_server", slowed(star[1024]), folded=False
        ),
        "1,024 ranks, all-reduce, one slow, unfolded": prediction(
            "vgg16", "all_reduce", slowed(star[1024]), folded=False
        ),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each case (default 3)")
    parser.add_argument("--only", default="", help="cases whose name has this word")
    options = parser.parse_args()
    table = Table()
    for column in ("case", "median, s", "least, s", "found"):
        table.add_column(column)
    for name, call in cases().items():
        if options.only not in name:
            continue
        took, found = [], ""
        for _ in range(options.repeats):
            begin = time.perf_counter()
            found = call()
            took.append(time.perf_counter() - begin)
        table.add_row(name, f"{statistics.median(took):.2f}", f"{min(took):.2f}", found)
    Console(width=120).print(table)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
