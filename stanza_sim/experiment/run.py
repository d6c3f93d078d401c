"""From an experiment to its result: find the costs, predict every row and, if asked, execute it."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from stanza_sim.base.config import Loaded
from stanza_sim.base.errors import InputError
from stanza_sim.base.telling import Say
from stanza_sim.base.units import format_time
from stanza_sim.base.version import __version__
from stanza_sim.cluster import Cluster, with_loopback
from stanza_sim.execute.rank.steal import MOST_STOLEN
from stanza_sim.experiment.file import Experiment, load_experiment
from stanza_sim.experiment.scenario import Plan, cluster_of, plans_of
from stanza_sim.model.profile import ModelProfile
from stanza_sim.profiles.blocks import (
    Profile,
    differences,
    loopback_of,
    mismatches,
    require,
    with_profile,
    write_profile,
)
from stanza_sim.profiles.network import NetworkProfile, read_either, with_network
from stanza_sim.profiles.network import mismatches as network_mismatches
from stanza_sim.report.result import Result, Row
from stanza_sim.simulate import Collectives, Prediction, simulate
from stanza_sim.simulate.costs import costs_for

if TYPE_CHECKING:  # imported where something is executed
    from stanza_sim.execute import Measurement, RunJob, Workers



def known_profiles(
    loaded: Loaded[Experiment], paths: Sequence[Path], models: Mapping[str, ModelProfile]
) -> tuple[dict[str, Profile], NetworkProfile | None]:
    """Match profiles of block times to the `models` (by title) that they serve; return them, and that of the network.

    Without `paths` the experiment's own profile is read, if it names one. Raises `InputError` for a profile that serves
    no model, and for a second one of a network.
    """
    experiment = loaded.value
    if experiment.profile is not None and not paths:
        paths = [loaded.path.parent / experiment.profile]
    precision = experiment.precision
    found: dict[str, Profile] = {}
    network: NetworkProfile | None = None

    def served_by(profile: Profile) -> list[str]:
        return [title for title, model in models.items() if not differences(profile, model, precision)]

    for path in paths:
        profile = read_either(path)
        if isinstance(profile, NetworkProfile):
            if network is not None:
                raise InputError("a second profile of a network", where=str(path), hint="give one")
            network = profile
            for timed in profile.models:
                found.update(dict.fromkeys(served_by(timed), timed))
            continue
        if not (serves := served_by(profile)):
            require(profile, next(iter(models.values())), precision, where=str(path))
        found.update(dict.fromkeys(serves, profile))
    return found, network


REPEATS = 20
"""How often a row that varies by chance is simulated unless the experiment says."""


def predict(plan: Plan, cluster: Cluster, loaded: Loaded[Experiment], profile: Profile | None) -> Prediction:
    """Simulate one row, with measured costs where there is a profile.

    Raises `InputError` for `simulation.repeats` where nothing varies.
    """
    experiment = loaded.value
    cluster = predicted_on(cluster, experiment, profile)
    costs = costs_for(cluster, plan.model, experiment.precision, profile)
    simulation = experiment.simulation
    collectives = Collectives(simulation.collectives)
    if simulation.varies or cluster.varies:
        from stanza_sim.simulate.repeats import simulate_repeats
        from stanza_sim.simulate.variation import JitterKind, Variation

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


def predicted_on(cluster: Cluster, experiment: Experiment, profile: Profile | None) -> Cluster:
    """The cluster as predictions see it: with what a profile of block times knows, and as computations are executed."""
    if profile is not None:
        cluster = with_profile(cluster, profile)
    if experiment.execute.compute == "emulated":  # computations begin, nominally, when what they wait for is there
        cluster = replace(cluster, wake_s=0.0)
    return cluster


PROGRESS_S = 5.0
"""Seconds between two lines on how far predictions are."""


def _predicted(plans: Sequence[Plan], one: Callable[[Plan], Prediction], say: Say) -> list[Prediction]:
    """Predict all `plans`, each by `one`; where that takes long, say how far it is."""
    found: list[Prediction] = []
    told_s = monotonic()
    for plan in plans:
        found.append(one(plan))
        if len(found) < len(plans) and monotonic() - told_s > PROGRESS_S:
            told_s = monotonic()
            hint = "" if find_spec("numba") else "; with numba (pip install 'stanza-sim[fast]') it would be faster"
            say(f"simulated {len(found)} of {len(plans)}: {plan.entry.title}, {plan.strategy.title}{hint}")
    return found


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
    known, network = known_profiles(loaded, (), {plan.entry.title: plan.model})
    if network is not None:
        cluster = with_network(cluster, network)
    return cluster, plan, predict(plan, cluster, loaded, known.get(plan.entry.title))


def run_experiment(
    name_or_path: str,
    *,
    overrides: Sequence[str] = (),
    execute: bool = False,
    profiles: Sequence[Path] = (),
    save_profile: Path | None = None,
    testbed: bool = False,
    say: Say = lambda text: None,
) -> Result | None:
    """Predict every row of an experiment and, if `execute`, run it; see `run_loaded`."""
    return run_loaded(
        load_experiment(name_or_path, overrides),
        execute=execute,
        profiles=profiles,
        save_profile=save_profile,
        testbed=testbed,
        say=say,
    )


def run_loaded(
    loaded: Loaded[Experiment],
    *,
    execute: bool = False,
    profiles: Sequence[Path] = (),
    save_profile: Path | None = None,
    testbed: bool = False,
    say: Say = lambda text: None,
) -> Result | None:
    """Predict every row of an experiment and, if `execute`, run it; the result has one row for each.

    `profiles` are files of measured block times, and of a network, instead of the one that the experiment names. Before
    executing, the blocks of models without a profile are timed (and kept in `save_profile`) unless computations are
    emulated; of messages only single ones are measured before predicting. With `testbed` the ranks run in an emulated
    network, which is there as long as the run, and which is calibrated unless that was done before. Returns None in a
    process that a launcher made a rank other than the first. Raises `InputError` and `RunError`.
    """
    if execute:
        from stanza_sim.execute import require_torch

        require_torch()
    elif save_profile is not None or testbed:
        what, where = ("measured", "--save-profile") if save_profile is not None else ("run", "--testbed")
        raise InputError(f"nothing is {what} without --execute", where=where, hint="add --execute")
    experiment = loaded.value
    cluster = cluster_of(loaded)
    plans = plans_of(loaded, cluster)
    if save_profile is not None:
        _check_target(save_profile, experiment)
    known, network = known_profiles(loaded, profiles, {p.entry.title: p.model for p in plans})

    def predicted(plan: Plan) -> Prediction:
        prediction = predict(plan, cluster, loaded, known.get(plan.entry.title))
        return of_network(prediction, cluster, network, executed=execute)

    if not execute:
        if network is not None:
            for difference in network_mismatches(network, cluster):
                say(f"warning: {difference}")
            cluster = with_network(cluster, network)
        predictions = _predicted(plans, predicted, say)
        return _result(experiment, cluster, plans, predictions, [None] * len(plans))
    jobs = jobs_of(loaded, plans, cluster, known, testbed=testbed)
    from stanza_sim.execute import Backend
    from stanza_sim.execute import execute as run_jobs
    from stanza_sim.experiment.network_cache import network_for

    in_realtime = any(job.emulation is not None and job.emulation.realtime for job in jobs)
    backend = Backend(experiment.execute.backend)
    with open_ranks(loaded, cluster, testbed=testbed, say=say) as workers:
        network = network_for(
            workers, cluster, given=network, testbed=testbed, realtime=in_realtime, backend=backend, say=say
        )
        if network is not None:
            cluster = with_network(cluster, network)
        if experiment.execute.compute == "real":
            _complete(known, workers, experiment, plans, save_profile, say)
        elif network is None or network.loopback is None:
            cluster = _with_measured_loopback(cluster, known, plans, workers, say)
        predictions = []
        if workers.is_main:
            predictions = [predicted(p) for p in plans]
        measurements = run_jobs(jobs, workers, done=lambda i, m: say(_progress(i, plans, m)))
        wanted = [job.emulation is not None and job.emulation.realtime for job in jobs]
        if any(w and not m.realtime for w, m in zip(wanted, measurements, strict=True)):
            say("warning: real-time scheduling is not permitted here: other programs put off ranks that only wait")
        return _result(experiment, cluster, plans, predictions, measurements) if workers.is_main else None


@contextmanager
def open_ranks(
    loaded: Loaded[Experiment], cluster: Cluster, *, testbed: bool = False, say: Say = lambda text: None
) -> Iterator[Workers]:
    """The ranks of `cluster` as the experiment starts them, in a testbed that comes up for them if `testbed`.

    Raises `InputError` and `RunError`.
    """
    from stanza_sim.execute import ComputeMode, open_workers

    how, bed = loaded.value.execute, None
    if how.compute == "emulated":
        from stanza_sim.experiment.emulation import notes_on

        for note in notes_on(cluster):
            say(f"note: {note}")
    if testbed:
        from stanza_sim.testbed import Testbed

        bed = Testbed(cluster)
        for note in bed.notes:
            say(f"note: {note}")
    with bed or nullcontext():
        places = None
        if bed is not None:
            from stanza_sim.experiment.emulation import places_in

            places = places_in(bed, cluster)
        with open_workers(
            cluster,
            threads_per_rank=how.threads_per_rank,
            timeout_s=how.timeout,
            compute=ComputeMode(how.compute),
            places=places,
        ) as workers:
            yield workers


def _with_measured_loopback(
    cluster: Cluster, known: dict[str, Profile], plans: Sequence[Plan], workers: Workers, say: Say
) -> Cluster:
    """The cluster with the loopback of this machine, where ranks share a host and no profile brings it along."""
    profiles = [known.get(p.entry.title) for p in plans]
    if workers.world_size < 2 or not cluster.same_host(0, 1) or all(p is not None and p.loopback for p in profiles):
        return cluster
    from stanza_sim.execute import measure_loopback

    say("measuring single messages between two ranks of one host")
    found = measure_loopback(workers)
    return cluster if found is None else with_loopback(cluster, loopback_of(found))


def of_network(
    prediction: Prediction, cluster: Cluster, network: NetworkProfile | None, *, executed: bool
) -> Prediction:
    """Say with a prediction where its network is from; where it is compared with a run, also if it is uncalibrated."""
    if len({p.host for p in cluster.placement}) < 2 or (network is None and not executed):
        return prediction
    note = "network: as the topology states, not calibrated" if network is None else network.source
    return replace(prediction, cost_source=f"{prediction.cost_source}; {note}")


def _check_target(save_profile: Path, experiment: Experiment) -> None:
    """Raise `InputError` if the profiles of all models cannot be written there."""
    where = f"--save-profile {save_profile}"
    if experiment.execute.compute == "emulated":
        what = "with emulated compute no block is timed"
        raise InputError(what, where=where, hint="leave it out, or compute for real")
    if len(experiment.models) > 1 and "{model}" not in save_profile.name:
        raise InputError(
            f"{experiment.name} has {len(experiment.models)} models, each with a profile of its own",
            where=where,
            hint="write {model} in the file's name, such as {model}.json",
        )
    if not save_profile.parent.is_dir() or save_profile.is_dir():
        what = "is a folder" if save_profile.is_dir() else "lies in no folder that exists"
        raise InputError(what, where=where, hint="name a file in a folder that exists")


def jobs_of(
    loaded: Loaded[Experiment],
    plans: Sequence[Plan],
    cluster: Cluster,
    known: dict[str, Profile],
    *,
    testbed: bool = False,
) -> list[RunJob]:
    """What the executor is told, by plan; `known` are the profiles by model. Raises `InputError` for what cannot run.

    In a testbed ranks that only wait run under real-time scheduling, unless the experiment says whether they do.
    """
    from stanza_sim.execute import Backend, Emulation, LearningRate, Optimizer, RunJob, Training

    experiment, training = loaded.value, loaded.value.training
    emulations: list[Emulation | None] = [None] * len(plans)
    if experiment.execute.compute == "emulated":
        from stanza_sim.experiment.emulation import check_emulated, emulation_of

        check_emulated(cluster, loaded)
        how = experiment.execute
        realtime = how.realtime if "realtime" in how.model_fields_set else testbed
        for i, plan in enumerate(plans):
            costs = costs_for(cluster, plan.model, experiment.precision, known.get(plan.entry.title))
            emulations[i] = emulation_of(plan, cluster, costs, realtime=realtime)
    elif experiment.precision != "fp32":
        what = f"training in {experiment.precision} is not supported"
        hint = "set precision: fp32, or emulate with --compute emulated"
        raise InputError(what, where=loaded.source.where("precision"), hint=hint)
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
            emulation=emulation,
        )
        for plan, emulation in zip(plans, emulations, strict=True)
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
    from stanza_sim.execute import Backend
    from stanza_sim.execute.calibrate.calibration import calibrate
    from stanza_sim.execute.start.tasks import DescribeTask

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
    line = f"ran {index + 1} of {len(plans)}: {plan.entry.title}, {plan.strategy.title}: {took} an iteration"
    if measurement.stolen > MOST_STOLEN or measurement.tries > 1:
        line += f" ({measurement.stolen:.1%} of the cores were taken away by the virtual machine's host"
        line += f" in the best of {measurement.tries} tries)" if measurement.tries > 1 else ")"
    return line


def _result(
    experiment: Experiment,
    cluster: Cluster,
    plans: Sequence[Plan],
    predictions: Sequence[Prediction],
    measurements: Sequence[Measurement | None],
) -> Result:
    rows = [
        row_of(experiment, cluster, plan, prediction, measurement)
        for plan, prediction, measurement in zip(plans, predictions, measurements, strict=True)
    ]
    return Result(experiment=experiment.name, rows=tuple(rows))


def row_of(
    experiment: Experiment,
    cluster: Cluster,
    plan: Plan,
    prediction: Prediction,
    measurement: Measurement | None = None,
) -> Row:
    """The row of a report for one plan."""
    return Row(
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
