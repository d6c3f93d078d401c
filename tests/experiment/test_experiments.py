"""The shipped experiments: that they load and predict, and that what stands beside them is what they predict."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from stanza_sim import strategies
from stanza_sim.experiment.file import load_experiment
from stanza_sim.experiment.rows import cluster_of, plans_of
from stanza_sim.experiment.scenario import Conditions

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments"

#: Rows that simulate in little time: experiment, model (None: its only one), label.
ROWS = [
    ("bandwidth_crossover", "alexnet", "sharded head"),
    ("emulated_all", None, "Stanza, FC cut over 2"),
    ("emulated_all", None, "sufficient factors"),
    ("emulated_all", None, "Horovod"),
    ("fc_workers", "vgg16", "cut over 5"),
    ("large_head", "faces-2M", "sharded head"),
    ("large_head", "faces-1M", "FSDP"),
    ("large_head", "words-793k", "one node alone"),
    ("language_model", "gpt2-32k", "DDP"),
    ("language_model", "gpt2-250k", "pipeline, 2 stages"),
    ("paper_speedup", "alexnet", "Stanza, 1F1B"),
    ("traffic", "resnet152", "PS, five servers"),
]


@pytest.mark.parametrize(("name", "model", "label"), ROWS)
def test_rows_predict_what_stands_in_their_tables(name: str, model: str | None, label: str) -> None:
    loaded = load_experiment(name)
    cluster = cluster_of(loaded)
    (plan,) = plans_of(loaded, cluster, model=model, strategy=label)
    found = Conditions(loaded=loaded, cluster=cluster).scenario(plan).predict()
    assert found.iteration_s >= found.bound_s * (1 - 1e-9) > 0
    table = FOLDER / name / "table.txt"
    if not table.exists() or name == "traffic":
        return
    section = table.read_text().partition(f"{plan.entry.title}, ")[2]
    (columns,) = [line.split() for line in section.splitlines() if line.startswith("strategy  ")][:1]
    (row,) = [line for line in section.splitlines() if line.startswith(f"{label}  ")][:1]
    cells = ["strategy", *row.removeprefix(label).split()]
    tokens = plan.model.sample_tokens
    rate = float(cells[columns.index("tokens/s" if tokens else "samples/s")].replace(",", ""))
    assert rate == pytest.approx(found.samples_per_s * (tokens or 1), rel=0.01)


@pytest.mark.parametrize(
    ("name", "key", "value"), [("bandwidth_crossover", "network.rate", "10Gbps"), ("paper_speedup", "nodes", "8")]
)
def test_sweeps_beside_experiments_are_of_their_rows(name: str, key: str, value: str) -> None:
    loaded = load_experiment(name, [f"{key}={value}"])
    with (FOLDER / name / "sweep.csv").open(newline="") as file:
        lines = [line for line in csv.DictReader(file) if line[key] == value]
    cluster = cluster_of(loaded)
    lines = [line for line in lines if line.get("cluster", loaded.value.cluster) == loaded.value.cluster]
    rows = loaded.value.strategies
    wanted = {(m.title, s.title) for m in loaded.value.models for s in rows}
    assert {(line["model"], line["label"]) for line in lines} == wanted
    for label in ("DDP", "Stanza, co-located"):
        (line,) = [line for line in lines if (line["model"], line["label"]) == ("alexnet", label)]
        (plan,) = plans_of(loaded, cluster, model="alexnet", strategy=label)
        assert float(line["samples_per_s"]) == pytest.approx(
            Conditions(loaded=loaded, cluster=cluster).scenario(plan).predict().samples_per_s, rel=1e-3
        )


def test_emulated_all_has_every_strategy_and_all_its_rows_can_be_built() -> None:
    loaded = load_experiment("emulated_all")
    assert {row.strategy for row in loaded.value.strategies} == set(strategies.names())
    built = plans_of(loaded, cluster_of(loaded))
    assert len({plan.schedule.digest() for plan in built}) == len(built)


@pytest.mark.processes
def test_a_head_of_any_size_needs_no_torch() -> None:
    code = """
import sys
sys.modules["torch"] = None
from stanza_sim.cli.app import app
app(["run", "large_head", "--set", "models.0.factory_kwargs.classes=5000", "--set", "strategies=[all_reduce, stanza]"])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT, check=False
    )
    assert "faces-100k, 64 samples per worker" in done.stdout, done.stderr


@pytest.mark.processes
def test_bytes_by_counting_are_those_of_the_counters() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "traffic.py"), "--set", "models=[alexnet]", "--set", "nodes=8"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    rows = [line for line in done.stdout.splitlines() if line.endswith("%")]
    assert len(rows) == len(load_experiment("traffic").value.strategies)
    for row in rows:
        off = int(row.split()[-3].replace(",", ""))
        # Ranks that are alike are simulated once: where a bucket does not divide evenly over a ring, some send more.
        assert abs(off) <= 100 if "ring" in row or "Stanza" in row or "all-reduce" in row else off == 0
