"""How long schedules take by their number of ops: `python benchmarks/schedules.py [options]`.

Each case is a deep model, or one in many pieces, on 8 ranks, so that its schedule has about as many ops as asked for.
Seconds of CPU of one process: to build the schedule, check it, print it, hash its printed form, project it on its first
and last rank, and simulate it. Medians of `--repeats` count. `growth` is the exponent of ops between the smallest and
the largest size: about 1 where time is linear in ops, 2 where it is their square.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import log
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))  # so that it runs from a checkout as well

from rich.console import Console
from rich.table import Table

from stanza_sim import strategies
from stanza_sim.cluster import load_cluster
from stanza_sim.model.profile import Block, BlockKind, ModelProfile, ParamTensor
from stanza_sim.schedule import Schedule, check, project
from stanza_sim.simulate import costs_for, simulate

WORLD = 8
PHASES = ("build", "check", "print", "hash", "project", "simulate")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A strategy with its settings, and how many CONV and FC blocks and micro-batches give about so many ops."""

    name: str
    strategy: str
    sizes: Callable[[int], tuple[int, int, int]]
    settings: dict[str, object] = field(default_factory=dict)

    def model(self, ops: int) -> ModelProfile:
        """The model whose schedule has about `ops` ops."""
        convs, fcs, _ = self.sizes(ops)
        kinds = [BlockKind.CONV] * convs + [BlockKind.FC] * fcs
        return ModelProfile(
            name="deep",
            blocks=tuple(_block(i, kind) for i, kind in enumerate(kinds)),
            boundary=convs,
            input_shape=(1024,),
            num_classes=1024,
        )

    def build(self, model: ModelProfile, ops: int) -> Schedule:
        """The schedule of `model`, with about `ops` ops."""
        chosen, microbatches = strategies.get(self.strategy), self.sizes(ops)[2]
        given = self.settings | ({"microbatches": microbatches} if microbatches > 1 else {})
        settings = chosen.Settings.model_validate(given)
        return strategies.build(
            self.strategy, model, world_size=WORLD, batch_per_worker=8 * microbatches, settings=settings
        )


def _block(i: int, kind: BlockKind) -> Block:
    """A block of one linear layer of 1,024 by 1,024."""
    flops = 2 * 1024 * 1024
    return Block(
        name=f"b{i}",
        kind=kind,
        tensors=(ParamTensor(name=f"b{i}.weight", shape=(1024, 1024)), ParamTensor(name=f"b{i}.bias", shape=(1024,))),
        forward_flops=flops,
        backward_input_flops=flops,
        backward_weight_flops=flops,
        bytes_touched=4096,
        kernels=1,
        output_shape=(1024,),
    )


CASES = (
    Case(name="stanza, micro-batches", strategy="stanza", sizes=lambda n: (300, 3, n // 610)),
    Case(
        name="all_reduce, small buckets",
        strategy="all_reduce",
        sizes=lambda n: (n // 3, 0, 1),
        settings={"bucket": "5MiB"},
    ),
    Case(
        name="parameter_server, 4 servers",
        strategy="parameter_server",
        sizes=lambda n: (n // 7, 0, 1),
        settings={"servers": 4},
    ),
    Case(
        name="parameter_server, pieces",
        strategy="parameter_server",
        sizes=lambda n: (n // 60, 0, 1),
        settings={"servers": 4, "assignment": "byteps", "partition": "320KiB"},
    ),
    Case(name="sufficient_factors", strategy="sufficient_factors", sizes=lambda n: (1, n // 5, 1)),
)


def seconds(case: Case, ops: int, phases: list[str]) -> tuple[int, dict[str, float]]:
    """How many ops the schedule has, and the CPU seconds of each phase."""
    model, cluster = case.model(ops), load_cluster("ec2-p3-10", nodes=WORLD)
    took: dict[str, float] = {}

    def timed(phase: str, call: Callable[[], object]) -> None:
        if phase in phases:
            begin = time.process_time()
            call()
            took[phase] = time.process_time() - begin

    begin = time.process_time()
    schedule = case.build(model, ops)
    took["build"] = time.process_time() - begin
    timed("check", lambda: check(schedule, model))
    timed("print", schedule.text)
    timed("hash", schedule.digest)
    timed("project", lambda: [project(schedule, rank) for rank in (0, WORLD - 1)])
    timed("simulate", lambda: simulate(schedule, model, cluster, costs_for(cluster, model)))
    return len(schedule.ops), took


def main() -> None:
    """Print the table, or JSON: one object for each case and size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[4000, 9000, 18000, 36000], help="numbers of ops")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each case and size (default 5)")
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES), help="building is always timed")
    parser.add_argument("--only", default="", help="cases whose name has this word")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    if min(options.sizes) < 1000 or options.repeats < 1:
        parser.error("sizes are 1000 ops or more, and repeats 1 or more")
    phases = [phase for phase in PHASES if phase in ("build", *options.phases)]
    table = Table(title="seconds of CPU by number of ops", title_justify="left")
    for column in ("case", "ops", *phases):
        table.add_column(column, justify="left" if column == "case" else "right")
    rows: list[dict[str, object]] = []
    for case in (case for case in CASES if options.only in case.name):
        found: list[tuple[int, dict[str, float]]] = []
        for size in sorted(set(options.sizes)):
            runs = [seconds(case, size, phases) for _ in range(options.repeats)]
            found.append((runs[0][0], {p: statistics.median(took[p] for _, took in runs) for p in phases}))
            ops, medians = found[-1]
            table.add_row(case.name, f"{ops:,}", *(f"{medians[p]:.2f}" for p in phases))
            rows.append({"case": case.name, "ops": ops, "seconds": medians})
        (few, least), (many, most) = found[0], found[-1]
        if many > few:
            growth = [f"{log(most[p] / least[p]) / log(many / few):.1f}" if least[p] > 0 else "" for p in phases]
            table.add_row("  growth", "", *growth, end_section=True)
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        Console(width=120).print(table)


if __name__ == "__main__":
    main()
