"""From an experiment to its result: find the costs, predict every row and, if asked, execute it."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from stanza_sim import __version__
from stanza_sim.cluster import Cluster
from stanza_sim.config import Loaded
from stanza_sim.errors import InputError
from stanza_sim.experiment import Experiment, load_experiment
from stanza_sim.plan import Plan, cluster_of, plans_of
from stanza_sim.profiles import Profile, differences, mismatches, read_profile, require, with_profile, write_profile
from stanza_sim.report.result import Result, Row
from stanza_sim.simulate import Collectives, Prediction, simulate
from stanza_sim.simulate.costs import costs_for
from stanza_sim.units import format_time

if TYPE_CHECKING:  # imported where something is executed
    from stanza_sim.execute import Measurement, RunJob, Workers

Say = Callable[[str], None]
"""Tells the user something in passing: what is being done, or a warning."""


def _profiles(paths: Sequence[Path], plans: Sequence[Plan], precision: str) -> dict[str, Profile]:
    """Match each profile to the models that it serves, by title. Raises `InputError` for one that serves none."""
    found: dict[str, Profile] = {}
    models = {p.entry.title: p.model for p in plans}
    for path in paths:
        profile = read_profile(path)
        serves = [title for title, model in models.items() if not differences(profile, model, precision)]
        if not serves:
            require(profile, next(iter(models.values())), precision, where=str(path))
        found.update(dict.fromkeys(serves, profile))
    return found


REPEATS = 20
"""How often a row that varies by chance is simulated unless the experiment says."""


def predict(plan: Plan, cluster: Cluster, loaded: Loaded[Experiment], profile: Profile | None) -> Prediction:
    """Simulate one row, with measured costs where there is a profile.

    Raises `InputError` for `simulation.repeats` where nothing varies.
    """
    experiment = loaded.value
    if profile is not None:
        cluster = with_profile(cluster, profile)
    costs = costs_for(cluster, plan.model, experiment.precision, profile)
    simulation = experiment.simulation
    collectives = Collectives(simulation.collectives)
    if simulation.varies or cluster.varies:
        from stanza_sim.simulate.variation import JitterKind, Variation, simulate_repeats

        variation = Variation(
            seed=experiment.seed,
            jitter=JitterKind(simulation.jitter.kind),
            spread=simulation.jitter.spread,
            straggler_probability=simulation.straggler.probability or 0.0,
            straggler_slowdown=simulation.straggler.slowdown or 1.0,
        )
        prediction = simulate_repeats(
            plan.schedule,
            plan.model,
            cluster,
            costs,
            variation=variation,
            repeats=simulation.repeats or REPEATS,
            collectives=collectives,
        )
    elif simulation.repeats is not None:
        hint = "add jitter, stragglers or background traffic that comes and goes, or leave repeats out"
        raise InputError(
            "every repeat would be the same", where=loaded.source.where("simulation", "repeats"), hint=hint
        )
    else:
        prediction = simulate(plan.schedule, plan.model, cluster, costs, collectives=collectives)
    return replace(prediction, cost_source=costs.source)  # by now it knows what it had to estimate


def predict_row(
    name_or_path: str, overrides: Sequence[str] = (), *, model: str | None = None, row: str | None = None
) -> tuple[Cluster, Plan, Prediction]:
    """Predict one row of an experiment: the first whose label or strategy is `row`, for `model`; left out, the first.

    Raises `InputError` for names that the experiment does not have, and as `run_experiment` does.
    """
    loaded = load_experiment(name_or_path, overrides)
    experiment = loaded.value
    cluster = cluster_of(loaded)
    chosen = model or experiment.models[0].title, row or experiment.strategies[0].title
    plan = plans_of(loaded, cluster, model=chosen[0], strategy=chosen[1])[0]
    paths = [] if experiment.profile is None else [loaded.path.parent / experiment.profile]
    profile = _profiles(paths, [plan], experiment.precision).get(plan.entry.title)
    return cluster, plan, predict(plan, cluster, loaded, profile)


def run_experiment(
    name_or_path: str,
    *,
    overrides: Sequence[str] = (),
    execute: bool = False,
    profiles: Sequence[Path] = (),
    save_profile: Path | None = None,
    say: Say = lambda text: None,
) -> Result | None:
    """Predict every row of an experiment and, if `execute`, run it; the result has one row for each.

    `profiles` are files of measured block times, instead of the one that the experiment names. Before executing, the
    blocks of models without a profile are timed (and kept in `save_profile`); nothing else is measured before
    predicting. Returns None in a process that a launcher made a rank other than the first. Raises `InputError` and
    `RunError`.
    """
    if execute:
        from stanza_sim.execute import require_torch

        require_torch()
    elif save_profile is not None:
        raise InputError("nothing is measured without --execute", where="--save-profile", hint="add --execute")
    loaded = load_experiment(name_or_path, overrides)
    experiment = loaded.value
    cluster = cluster_of(loaded)
    plans = plans_of(loaded, cluster)
    if save_profile is not None:
        _check_target(save_profile, experiment)
    paths = list(profiles)
    if experiment.profile is not None and not paths:
        paths = [loaded.path.parent / experiment.profile]
    known = _profiles(paths, plans, experiment.precision)

    def predicted() -> list[Prediction]:
        return [predict(p, cluster, loaded, known.get(p.entry.title)) for p in plans]

    if not execute:
        return _result(experiment, cluster, plans, predicted(), [None] * len(plans))
    jobs = _jobs(loaded, plans)
    from stanza_sim.execute import execute as run_jobs
    from stanza_sim.execute import open_workers

    how = experiment.execute
    with open_workers(cluster, threads_per_rank=how.threads_per_rank, timeout_s=how.timeout) as workers:
        _complete(known, workers, experiment, plans, save_profile, say)
        predictions = predicted() if workers.is_main else []
        measurements = run_jobs(jobs, workers, done=lambda i, m: say(_progress(i, plans, m)))
        return _result(experiment, cluster, plans, predictions, measurements) if workers.is_main else None


def _check_target(save_profile: Path, experiment: Experiment) -> None:
    """Raise `InputError` if the profiles of all models cannot be written there."""
    where = f"--save-profile {save_profile}"
    if len(experiment.models) > 1 and "{model}" not in save_profile.name:
        raise InputError(
            f"{experiment.name} has {len(experiment.models)} models, each with a profile of its own",
            where=where,
            hint="write {model} in the file's name, such as {model}.json",
        )
    if not save_profile.parent.is_dir() or save_profile.is_dir():
        what = "is a folder" if save_profile.is_dir() else "lies in no folder that exists"
        raise InputError(what, where=where, hint="name a file in a folder that exists")


def _jobs(loaded: Loaded[Experiment], plans: Sequence[Plan]) -> list[RunJob]:
    """What the executor is told, by plan. Raises `InputError` for what cannot be executed."""
    from stanza_sim.execute import Backend, LearningRate, Optimizer, RunJob, Training

    experiment, training = loaded.value, loaded.value.training
    if experiment.precision != "fp32":
        what = f"training in {experiment.precision} is not supported"
        raise InputError(what, where=loaded.source.where("precision"), hint="set precision: fp32")
    optimizer = training.optimizer
    return [
        RunJob(
            schedule=plan.schedule,
            model=plan.model,
            training=Training(
                iterations=training.iterations,
                warmup=training.warmup,
                optimizer=Optimizer(
                    lr=optimizer.lr,
                    momentum=optimizer.momentum,
                    weight_decay=optimizer.weight_decay,
                    schedule=LearningRate(**optimizer.schedule.model_dump()),
                ),
                data=training.data,
                seed=experiment.seed,
            ),
            backend=Backend(experiment.execute.backend),
            timeout_s=experiment.execute.timeout,
        )
        for plan in plans
    ]


def _complete(
    known: dict[str, Profile],
    workers: Workers,
    experiment: Experiment,
    plans: Sequence[Plan],
    save_profile: Path | None,
    say: Say,
) -> None:
    """Time the blocks of every model that has no profile in `known`; warn where a known one is from elsewhere."""
    from stanza_sim.execute import Backend, calibrate
    from stanza_sim.execute.protocol import DescribeTask

    device = workers.run(DescribeTask())[0].device
    here = {"torch": version("torch").partition("+")[0], "python": platform.python_version(), "stanza_sim": __version__}
    found = [d for profile in known.values() for d in mismatches(profile, device=device, versions=here)]
    for difference in dict.fromkeys(found):
        say(f"warning: {difference}")
    titles = dict.fromkeys(p.entry.title for p in plans)
    for title in titles:
        if title in known:
            continue
        say(f"timing the blocks of {title} on {workers.world_size} ranks")
        mine = [p for p in plans if p.entry.title == title]
        known[title] = calibrate(
            workers,
            mine[0].model,
            [p.schedule for p in mine],
            backend=Backend(experiment.execute.backend),
            precision=experiment.precision,
            seed=experiment.seed,
        )
        if save_profile is not None and workers.is_main:
            write_profile(known[title], Path(str(save_profile).replace("{model}", title)))


def _progress(index: int, plans: Sequence[Plan], measurement: Measurement) -> str:
    plan = plans[index]
    took = format_time(measurement.iteration_s)
    return f"ran {index + 1} of {len(plans)}: {plan.entry.title}, {plan.strategy.title}: {took} an iteration"


def _result(
    experiment: Experiment,
    cluster: Cluster,
    plans: Sequence[Plan],
    predictions: Sequence[Prediction],
    measurements: Sequence[Measurement | None],
) -> Result:
    rows = [
        Row(
            label=plan.strategy.title,
            model=plan.entry.title,
            strategy=plan.strategy.strategy,
            settings=plan.strategy.settings.model_dump(mode="json"),
            cluster=cluster.name,
            nodes=cluster.nodes,
            batch_per_worker=plan.batch_per_worker,
            precision=experiment.precision,
            seed=experiment.seed,
            schedule=plan.schedule,
            prediction=prediction,
            measurement=measurement,
        )
        for plan, prediction, measurement in zip(plans, predictions, measurements, strict=True)
    ]
    return Result(experiment=experiment.name, rows=tuple(rows))
