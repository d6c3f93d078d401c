"""Bytes that all nodes send per iteration: from the prediction's counters, and by counting with paper and pencil.

Each row of `experiments/traffic` has its closed form here, written from its settings alone; a row of another label has
none. Prints one table for each model; a difference is stated in bytes.

    python benchmarks/traffic.py

Any key can be changed as with `stanza-sim run`: `--set nodes=6`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))  # so that it runs from a checkout as well

from stanza_sim.experiment.file import load_experiment
from stanza_sim.experiment.rows import cluster_of, plans_of
from stanza_sim.experiment.scenario import Conditions
from stanza_sim.model.profile import Block, ModelProfile

LABEL_BYTES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A model on `nodes` nodes with `batch` samples on each worker."""

    model: ModelProfile
    nodes: int
    batch: int

    @property
    def whole(self) -> int:
        """Bytes of all parameters."""
        return self.model.nbytes

    @property
    def conv(self) -> int:
        """Bytes of the CONV part's parameters."""
        return sum(b.numel for b in self.model.conv_blocks) * self.model.itemsize

    @property
    def fc(self) -> int:
        """Bytes of the FC part's parameters."""
        return self.whole - self.conv

    def boundary(self, itemsize: int = 4) -> int:
        """Bytes of one worker's activations there and gradients back, with the labels."""
        floats = self.model.conv_blocks[-1].output_numel
        return self.batch * (2 * floats * itemsize + LABEL_BYTES)


def linear(block: Block) -> tuple[int, int]:
    """Inputs and outputs of an FC block's linear layer."""
    (outputs, inputs) = next(t.shape for t in block.tensors if len(t.shape) == 2)
    return inputs, outputs


def factors(job: Job) -> int:
    """Each FC layer by factors or by a shard on every node, whichever moves fewer bytes; the rest by shards."""
    n, total = job.nodes, 0
    for block in job.model.blocks:
        nbytes = block.numel * job.model.itemsize
        shards = 2 * (n - 1) * nbytes
        if block in job.model.fc_blocks:
            inputs, outputs = linear(block)
            sent = n * (n - 1) * job.batch * (inputs + outputs) * job.model.itemsize
            # Poseidon's rule counts the weight only, without the bias.
            fewer = sent <= 2 * (n - 1) * inputs * outputs * job.model.itemsize
            total += sent if fewer else shards
        else:
            total += shards
    return total


def sharded_head(job: Job) -> int:
    """FC layers cut by rows and columns in turn over all nodes; the number of layers is odd, so the last is by rows.

    See `stanza_sim.strategies._shared.model_parallel`.
    """
    n, samples = job.nodes, job.nodes * job.batch
    floats = prod(job.model.conv_blocks[-1].output_shape)
    total = 2 * (n - 1) * job.batch * floats * 4 + n * (n - 1) * job.batch * LABEL_BYTES
    for i, block in enumerate(job.model.fc_blocks):
        inputs, outputs = linear(block)
        total += 2 * (n - 1) * samples * (outputs if i % 2 == 0 else inputs) * 4
    return total + 2 * (n - 1) * job.conv


def stanza(job: Job, *, fc_workers: int = 1, itemsize: int = 4) -> int:
    """CONV workers by a ring, FC workers by another."""
    n = job.nodes - fc_workers
    return n * job.boundary(itemsize) + 2 * (n - 1) * job.conv + 2 * (fc_workers - 1) * job.fc


CLOSED: dict[str, Callable[[Job], int]] = {
    "PS, one server": lambda job: 2 * (job.nodes - 1) * job.whole,
    "PS, five servers": lambda job: 2 * (job.nodes - 5) * job.whole,
    "PS co-located": lambda job: 2 * (job.nodes - 1) * job.whole,
    "all-reduce": lambda job: 2 * (job.nodes - 1) * job.whole,
    "sufficient factors": factors,
    "sharded head": sharded_head,
    "one node alone": lambda job: 0,
    "Stanza, CONV by PS": lambda job: (job.nodes - 1) * (job.boundary() + 2 * job.conv),
    "Stanza, CONV by ring": stanza,
    "Stanza, 4 micro-batches": stanza,
    "Stanza, 2 FC workers": lambda job: stanza(job, fc_workers=2),
    "Stanza, co-located": lambda job: (job.nodes - 1) * (job.boundary() + 2 * job.conv),
    "Stanza, activations as bf16": lambda job: stanza(job, itemsize=2),
}


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    loaded = load_experiment("traffic", parser.parse_args().overrides)
    cluster = cluster_of(loaded)
    print(f"MB that {cluster.world_size} nodes send per iteration, all together")
    for entry in loaded.value.models:
        plans = plans_of(loaded, cluster, model=entry.title)
        job = Job(model=plans[0].model, nodes=cluster.world_size, batch=plans[0].batch_per_worker)
        print(f"\n{entry.title}, {job.batch} samples per worker")
        print(f"{'strategy':<30}{'predicted':>12}{'counted':>12}{'off by':>12}{'of PS':>9}")
        for plan in plans:
            found = Conditions(loaded=loaded, cluster=cluster).scenario(plan).predict()
            alike = found.timeline.multiplicity
            sent = sum(n * alike.get(rank, 1) for rank, n in found.sent_bytes.items())
            form = CLOSED.get(plan.strategy.title)
            counted = off = "-"
            if form is not None:
                counted, off = f"{form(job) / 1e6:,.1f}", f"{sent - form(job):,} B"
            share = sent / (2 * (job.nodes - 1) * job.whole)
            print(f"{plan.strategy.title:<30}{sent / 1e6:>12,.1f}{counted:>12}{off:>12}{share:>9.1%}")


if __name__ == "__main__":
    main()
