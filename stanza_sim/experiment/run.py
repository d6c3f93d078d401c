"""From an experiment to its result: find the costs, predict every row and, if asked, execute it."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from stanza_sim.base.config import Loaded
from stanza_sim.base.errors import InputError
from stanza_sim.base.telling import Say, Tell
from stanza_sim.base.version import __version__
from stanza_sim.cluster import Cluster, with_loopback
from stanza_sim.cluster.dilation import dilated, perceived
from stanza_sim.experiment.file import Experiment, load_experiment
from stanza_sim.experiment.fitted import fitted
from stanza_sim.experiment.how_far import ran_line, running_line
from stanza_sim.experiment.jobs import check_precision, jobs_of, open_ranks
from stanza_sim.experiment.loops import NO_FILES, Files
from stanza_sim.experiment.result_rows import infeasible_of, result_of, row_of
from stanza_sim.experiment.rows import (
    LeftOutRow,
    Plan,
    cluster_of,
    known_profiles,
    plans_of,
    possible_plans_of,
    require_possible,
)
from stanza_sim.experiment.scenario import Conditions, Scenario
from stanza_sim.experiment.side_by_side import predictions_of
from stanza_sim.profiles.blocks import Profile, loopback_of, mismatches, write_profile
from stanza_sim.profiles.network import NetworkProfile, with_network
from stanza_sim.profiles.network import mismatches as network_mismatches
from stanza_sim.report.inputs import RunInputs
from stanza_sim.report.result import Drift, Result
from stanza_sim.simulate import Prediction

if TYPE_CHECKING:  # imported where something is executed
    from stanza_sim.execute import Measurement, Workers

PROGRESS_S = ITERATIONS_S = 5.0
"""Seconds between two lines on how far predictions are, and one of them."""


def _scenarios(conditions: Conditions, plans: Sequence[Plan], known: Mapping[str, Profile]) -> list[Scenario]:
    return [conditions.scenario(plan, known.get(plan.entry.title)) for plan in plans]


def _predicted(
    scenarios: Sequence[Scenario],
    plans: Sequence[Plan],
    say: Say = lambda text: None,
    *,
    jobs: int = 1,
    tell: Tell | None = None,
) -> list[Prediction | InputError]:
    """Predict the scenarios of all `plans`, with up to `jobs` processes; where that takes long, say how far it is.

    A row that turns out to be impossible has the error that says why. `tell` hears of every row.
    """
    if tell is not None:
        tell("rows predicted", 0, len(plans))
    found: list[Prediction | InputError] = []
    told_s = monotonic()

    def moved(index: int, iteration: int) -> None:
        nonlocal told_s
        if (tell is None or len(plans) == 1) and monotonic() - told_s > ITERATIONS_S:
            told_s = monotonic()
            say(f"simulated iteration {iteration} of {_row(plans[index])}")

    with predictions_of(scenarios, jobs, moved, say) as predictions:
        for prediction in predictions:
            found.append(prediction)
            if tell is not None:
                tell("rows predicted", len(found), len(plans))
            elif len(found) < len(plans) and monotonic() - told_s > PROGRESS_S:
                told_s = monotonic()
                say(f"simulated {len(found)} of {len(plans)}: {_row(plans[len(found) - 1])}")
    return found


def _preparable(
    conditions: Conditions, plans: Sequence[Plan], known: Mapping[str, Profile], *, left_out: list[LeftOutRow]
) -> tuple[Plan, ...]:
    """Those of `plans` that can be predicted; the others go to `left_out`. Every process of a run finds the same."""
    found: list[Plan] = []
    for plan in plans:
        try:
            conditions.scenario(plan, known.get(plan.entry.title)).prepare()
            found.append(plan)
        except InputError as error:
            left_out.append(LeftOutRow(entry=plan.entry, strategy=plan.strategy, error=error))
    return tuple(found)


def _all_of(found: Sequence[Prediction | InputError]) -> list[Prediction]:
    """What was predicted; raises the first `InputError` among it."""
    for one in found:
        if isinstance(one, InputError):
            raise one
    return [one for one in found if isinstance(one, Prediction)]


def _row(plan: Plan) -> str:
    return f"{plan.entry.title}, {plan.strategy.title}"


def predict_row(
    name_or_path: str,
    overrides: Sequence[str] = (),
    *,
    model: str | None = None,
    row: str | None = None,
    say: Say = lambda text: None,
) -> tuple[Cluster, Plan, Prediction]:
    """Predict one row of an experiment: the first whose label or strategy is `row`, for `model`; left out, the first.

    Raises `InputError` for names that the experiment does not have, and as `run_experiment` does.
    """
    loaded = load_experiment(name_or_path, overrides)
    experiment = loaded.value
    cluster = cluster_of(loaded, say)
    chosen = model or experiment.models[0].title, row or experiment.strategies[0].title
    plan = plans_of(loaded, cluster, model=chosen[0], strategy=chosen[1])[0]
    known, network = known_profiles(loaded, (), {plan.entry.title: plan.model})
    if network is not None:
        cluster = with_network(cluster, network)
    scenario = Conditions(loaded=loaded, cluster=cluster).scenario(plan, known.get(plan.entry.title))
    return cluster, plan, scenario.predict()


def run_experiment(
    name_or_path: str,
    *,
    overrides: Sequence[str] = (),
    execute: bool = False,
    profiles: Sequence[Path] = (),
    save_profile: Path | None = None,
    testbed: bool = False,
    jobs: int = 1,
    files: Files = NO_FILES,
    say: Say = lambda text: None,
    tell: Tell | None = None,
) -> Result | None:
    """Predict every row of an experiment and, if `execute`, run it; see `run_loaded`."""
    result = run_loaded(
        load_experiment(name_or_path, overrides),
        execute=execute,
        profiles=profiles,
        save_profile=save_profile,
        testbed=testbed,
        jobs=jobs,
        files=files,
        say=say,
        tell=tell,
    )
    if result is None or result.inputs is None:
        return result
    path = Path(name_or_path)
    which = {"experiment": str(path.resolve()) if path.is_file() else name_or_path, "overrides": tuple(overrides)}
    return replace(result, inputs=result.inputs.model_copy(update=which))


def run_loaded(
    loaded: Loaded[Experiment],
    *,
    execute: bool = False,
    profiles: Sequence[Path] = (),
    save_profile: Path | None = None,
    testbed: bool = False,
    jobs: int = 1,
    files: Files = NO_FILES,
    say: Say = lambda text: None,
    tell: Tell | None = None,
) -> Result | None:
    """Predict every row of an experiment and, if `execute`, run it; the result has one row for each that is possible.

    `profiles` are files of measured block times, and of a network, instead of the one that the experiment names. Before
    executing, the blocks of models without a profile are timed (and kept in `save_profile`) unless computations are
    emulated. Around each row that is run its blocks are timed again, and from these times it is predicted, unless from
    a profile that was given; what the row itself takes has no part in that. Of messages only those are measured that no
    row sends. With `testbed` the ranks run in an emulated network, which is there as long as the run, and which is
    calibrated unless that was done before. Returns None in a process that a launcher made a rank other than the first.
    Rows are predicted by up to `jobs` processes, copies of this one, where that pays; not if they are executed, too.
    Impossible rows are the result's `infeasible`. `files` are where training is saved, and what it goes on from. `tell`
    hears of every row. Raises `InputError`, also where no row is possible, and `RunError`.
    """
    if execute:
        from stanza_sim.execute import require_torch

        require_torch()
    elif save_profile is not None or testbed:
        what, where = ("measured", "--save-profile") if save_profile is not None else ("run", "--testbed")
        raise InputError(f"nothing is {what} without --execute", where=where, hint="add --execute")
    elif files != NO_FILES:
        where = "--resume" if files.save is None else "--save"
        raise InputError("nothing is trained without --execute", where=where, hint="add --execute")
    cluster = cluster_of(loaded, say)
    plans, impossible = possible_plans_of(loaded, cluster)
    require_possible(plans, impossible)
    if save_profile is not None:
        _check_target(save_profile, loaded.value)
    known, network = known_profiles(loaded, profiles, {p.entry.title: p.model for p in plans})
    if execute:
        if loaded.value.execute.compute == "real":
            check_precision(loaded, plans, cluster)
        unfit: list[LeftOutRow] = []
        conditions = Conditions(loaded=loaded, cluster=cluster, network=network)
        plans = _preparable(conditions, fitted(loaded, plans, say, left_out=unfit), known, left_out=unfit)
        impossible = (*impossible, *unfit)
        require_possible(plans, impossible)
        done = _executed(
            loaded,
            cluster,
            plans,
            known,
            network,
            save_profile=save_profile,
            testbed=testbed,
            files=files,
            say=say,
            tell=tell,
        )
        return None if done is None else replace(done, infeasible=tuple(map(infeasible_of, impossible)))
    if network is not None:
        for difference in network_mismatches(network, cluster):
            say(f"warning: {difference}")
        cluster = with_network(cluster, network)
    conditions = Conditions(loaded=loaded, cluster=cluster, network=network)
    scenarios = _scenarios(conditions, plans, known)
    found = list(zip(plans, scenarios, _predicted(scenarios, plans, say, jobs=jobs, tell=tell), strict=True))
    rows = [row_of(loaded.value, cluster, plan, p, scenario=s) for plan, s, p in found if isinstance(p, Prediction)]
    late = [LeftOutRow(entry=p.entry, strategy=p.strategy, error=e) for p, _, e in found if isinstance(e, InputError)]
    require_possible(rows, [*impossible, *late])
    return result_of(loaded.value, rows, (*impossible, *late))


def _executed(
    loaded: Loaded[Experiment],
    cluster: Cluster,
    plans: Sequence[Plan],
    known: dict[str, Profile],
    network: NetworkProfile | None,
    *,
    save_profile: Path | None,
    testbed: bool,
    files: Files,
    say: Say,
    tell: Tell | None,
) -> Result | None:
    """Calibrate what is not known, predict every row, then run it; see `run_loaded`."""
    from stanza_sim.execute import Backend
    from stanza_sim.execute import execute as run_jobs
    from stanza_sim.experiment.emulation import dilated_run_notes
    from stanza_sim.experiment.network_cache import loopback_for, network_for

    experiment = loaded.value
    jobs = jobs_of(loaded, plans, cluster, known, testbed=testbed, files=files)
    in_realtime = any(job.emulation is not None and job.emulation.realtime for job in jobs)
    backend = Backend(experiment.execute.backend)
    with open_ranks(loaded, cluster, testbed=testbed, say=say) as workers:
        stated, dilation = cluster, experiment.execute.dilate
        cluster = dilated(stated, dilation)
        network = network_for(
            workers, cluster, given=network, testbed=testbed, realtime=in_realtime, backend=backend, say=say
        )
        if network is not None:
            cluster = with_network(cluster, network)
        given = set(known)
        retimer, loopback = None, None
        if experiment.execute.compute == "real":
            from stanza_sim.experiment.retiming import Retimer

            _complete(known, workers, experiment, plans, save_profile, say)
            retimer = Retimer(workers, plans, known, seed=experiment.seed)
        elif network is None or network.loopback is None:
            loopback = loopback_for(workers, cluster, [known.get(p.entry.title) for p in plans], say)
            if loopback is not None:
                cluster = with_loopback(cluster, loopback_of(loopback))
        cluster = perceived(cluster, dilation)
        conditions = Conditions(loaded=loaded, cluster=cluster, network=network, executed=True)
        scenarios = _scenarios(conditions, plans, known)
        predictions: list[Prediction] = []
        undilated: Sequence[Prediction | None] = [None] * len(plans)
        if retimer is None and workers.is_main:
            predictions = _all_of(_predicted(scenarios, plans))
            if dilation != 1:
                as_stated = _scenarios(Conditions(loaded=loaded, cluster=stated), plans, known)
                undilated = _all_of(_predicted(as_stated, plans))
                for note in dilated_run_notes(stated, cluster, jobs, predictions):
                    say(f"note: {note}")

        def done(i: int, measurement: Measurement) -> None:
            say(ran_line(i, plans, measurement))
            if tell is not None:
                tell("rows run", i + 1, len(plans))

        measurements = run_jobs(
            jobs,
            workers,
            done=done,
            moving=lambda i, ended: say(running_line(i, ended, plans[i], jobs[i])),
            between=(lambda i: None) if retimer is None else retimer.between,
        )
        wanted = [job.emulation is not None and job.emulation.realtime for job in jobs]
        if any(w and not m.realtime for w, m in zip(wanted, measurements, strict=True)):
            say("warning: real-time scheduling is not permitted here: other programs put off ranks that only wait")
        if not workers.is_main:
            return None
        drifts: list[Drift | None] = [None] * len(plans)
        times: list[Profile | None] = [known.get(plan.entry.title) for plan in plans]
        if retimer is not None:
            timed = [retimer.timed(i, given=plan.entry.title in given) for i, plan in enumerate(plans)]
            drifts = [t.drift for t in timed]
            models = [plan.entry.title for plan in plans]
            times = [known[m] if m in given else t.profile for m, t in zip(models, timed, strict=True)]
            scenarios = [conditions.scenario(plan, profile) for plan, profile in zip(plans, times, strict=True)]
            predictions = [scenario.predict_with_spread() for scenario in scenarios]
        result = _result(experiment, cluster, plans, predictions, measurements, drifts, undilated, scenarios)
        return replace(result, inputs=RunInputs(network=network, loopback=loopback, profiles=tuple(times)))


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
    from stanza_sim.execute.calibrate.tasks import ProvenanceTask
    from stanza_sim.execute.start.tasks import DescribeTask

    device = workers.run(DescribeTask())[0].device
    here = {"torch": version("torch").partition("+")[0], "python": platform.python_version(), "stanza_sim": __version__}
    on = workers.run(ProvenanceTask())[0] if any(profile.provenance for profile in known.values()) else {}
    found = [d for profile in known.values() for d in mismatches(profile, device=device, versions=here, provenance=on)]
    for difference in dict.fromkeys(found):
        say(f"warning: {difference}")
    for title, profile in known.items():
        say(f"{title} is predicted from the profile of {profile.date}; how the machine moves is said beside each row")
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


def _result(
    experiment: Experiment,
    cluster: Cluster,
    plans: Sequence[Plan],
    predictions: Sequence[Prediction],
    measurements: Sequence[Measurement | None],
    drifts: Sequence[Drift | None],
    undilated: Sequence[Prediction | None],
    scenarios: Sequence[Scenario],
) -> Result:
    rows = zip(plans, predictions, measurements, drifts, undilated, scenarios, strict=True)
    return result_of(experiment, [row_of(experiment, cluster, *one) for one in rows])
