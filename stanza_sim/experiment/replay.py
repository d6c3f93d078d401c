"""Replay: a run's schedules, simulated again with the computation times that it measured.

What is then still wrong is the network's part and the schedule's; the rest of the error is computations that took
longer, or less, than was predicted: a machine that was slower then, or a wrong model of computation.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from stanza_sim.base.config import Loaded
from stanza_sim.base.errors import InputError
from stanza_sim.base.telling import Say
from stanza_sim.cluster import Cluster, with_loopback
from stanza_sim.cluster.dilation import dilated, perceived
from stanza_sim.experiment.file import Experiment, load_experiment
from stanza_sim.experiment.rows import Plan, cluster_of, model_of
from stanza_sim.experiment.scenario import Conditions, Scenario
from stanza_sim.profiles.blocks import Profile, loopback_of
from stanza_sim.profiles.network import with_network
from stanza_sim.report.folder import INPUTS
from stanza_sim.report.inputs import RunInputs, read_inputs
from stanza_sim.report.replayed import Replayed
from stanza_sim.report.saved import Measured, SavedRow, read_folder, spans_of
from stanza_sim.schedule import Compute, Schedule
from stanza_sim.simulate.lowering.timed import Seconds

MOST_ITERATIONS = 20
"""So many iterations of a run are replayed, evenly chosen."""


def replay(
    folder: Path,
    name_or_path: str | None = None,
    overrides: Sequence[str] = (),
    *,
    say: Say = lambda text: None,
) -> tuple[str, list[Replayed]]:
    """Replay every row that the run in `folder` measured; return the experiment's name and the rows.

    The cluster is that of the experiment that was run, unless another is named, with these `overrides`. Raises
    `InputError` for a folder without a measured run, and where experiment and folder do not fit each other.
    """
    saved = read_folder(folder)
    path = folder / INPUTS
    rows = [(i, row, row.run.measured) for i, row in enumerate(saved.rows) if row.run.measured is not None]
    if not rows or not path.exists():
        raise InputError("holds no run that was measured", where=str(folder), hint="run with --execute -o DIR")
    inputs = read_inputs(path)
    if len(inputs.profiles) != len(saved.rows):
        raise InputError(
            "its rows are not those of the folder", where=str(path), hint="run again with --execute -o DIR"
        )
    if name_or_path is None:
        if inputs.experiment is None:
            what = "does not say which experiment was run"
            raise InputError(what, where=str(path), hint="name it: stanza-sim run EXPERIMENT --from DIR")
        name_or_path, overrides = inputs.experiment, (*inputs.overrides, *overrides)
    loaded = load_experiment(name_or_path, overrides)
    found = []
    for i, row, measured in rows:
        scenario = _scenario(_run_as(loaded, measured), row, inputs, inputs.profiles[i], measured.dilate, say)
        times = _computations(row)
        found.append(
            Replayed(
                label=row.run.label,
                model=row.run.model,
                measured_s=measured.iteration_s,
                predicted_s=row.run.predicted.iteration_s,
                replayed_s=scenario.replayed_s(times),
                iterations=len(times),
            )
        )
    return loaded.value.name, found


def _run_as(loaded: Loaded[Experiment], measured: Measured) -> Loaded[Experiment]:
    """The experiment, executed as the row was: with these computations, dilated so."""
    changes = {"compute": measured.compute, "dilate": measured.dilate}
    execute = loaded.value.execute.model_copy(update=changes)
    return replace(loaded, value=loaded.value.model_copy(update={"execute": execute}))


def _scenario(
    loaded: Loaded[Experiment], row: SavedRow, inputs: RunInputs, profile: Profile | None, dilate: float, say: Say
) -> Scenario:
    """What the row was predicted from."""
    experiment = loaded.value
    cluster = dilated(cluster_of(loaded, say), dilate)
    if inputs.network is not None:
        cluster = with_network(cluster, inputs.network)
    if inputs.loopback is not None:
        cluster = with_loopback(cluster, loopback_of(inputs.loopback))
    _check_fits(cluster, row.schedule, row)
    conditions = Conditions(loaded=loaded, cluster=perceived(cluster, dilate), network=inputs.network, executed=True)
    index = next((i for i, entry in enumerate(experiment.models) if entry.title == row.run.model), None)
    entry = next((s for s in experiment.strategies if s.title == row.run.label), None)
    if index is None or entry is None:
        what = f"holds {row.run.model}, {row.run.label}, which {experiment.name} as it is now has not"
        raise InputError(what, where=str(row.folder), hint="name the experiment that was run, and --set what was set")
    plan = Plan(
        entry=experiment.models[index],
        strategy=entry,
        model=model_of(loaded, index),
        batch_per_worker=row.run.batch_per_worker,
        schedule=row.schedule,
    )
    return conditions.scenario(plan, profile)


def _check_fits(cluster: Cluster, schedule: Schedule, row: SavedRow) -> None:
    if cluster.world_size != schedule.world_size or cluster.name != row.run.cluster:
        there = f"{schedule.world_size} ranks of {row.run.cluster}"
        what = f"{row.run.model}, {row.run.label} ran on {there}, not on {cluster.world_size} of {cluster.name}"
        raise InputError(what, where=str(row.folder), hint="name the experiment that was run, and --set what was set")


def _computations(row: SavedRow) -> list[Seconds]:
    """How long each computation took in some of the iterations that were measured. Raises `InputError`."""
    computes = {op.name: op for op in row.schedule.ops if isinstance(op, Compute)}
    wanted = {(rank, op.name) for op in computes.values() for rank in row.schedule.group(op.ranks)}
    found: defaultdict[int, dict[tuple[int, str], float]] = defaultdict(dict)
    for span, _ in spans_of(row.spans_path("measured")):
        if span.op in computes:
            found[span.iteration][span.rank, span.op] = span.duration_s
    whole = [found[i] for i in sorted(found) if found[i].keys() >= wanted]
    if not whole:
        where = str(row.spans_path("measured"))
        raise InputError("has no iteration with all computations", where=where, hint="run again with --execute -o DIR")
    every = -(-len(whole) // MOST_ITERATIONS)
    return list(whole[::every])
