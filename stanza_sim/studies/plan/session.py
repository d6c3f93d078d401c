"""A whole `plan` command: every model of an experiment in turn within one budget; then the best for real, if asked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import monotonic

from stanza_sim.base.config import Loaded
from stanza_sim.base.errors import InputError
from stanza_sim.base.limits import TimeIsUp, free_memory, memory_limit, own_memory, time_limit
from stanza_sim.base.telling import Say, Tell
from stanza_sim.experiment.file import Experiment, StrategyEntry, load_experiment
from stanza_sim.experiment.result_rows import row_of
from stanza_sim.experiment.rows import cluster_of, known_profiles, model_of
from stanza_sim.experiment.run import run_loaded
from stanza_sim.profiles.blocks import differences
from stanza_sim.profiles.network import NetworkProfile, mismatches, read_either, with_network
from stanza_sim.report.result import Row
from stanza_sim.studies.plan.assess import Problem, Score
from stanza_sim.studies.plan.choices import Choice, choices, local_size
from stanza_sim.studies.plan.explain import Explanation, explain
from stanza_sim.studies.plan.search import Limits, Search, SearchResult, Stop
from stanza_sim.studies.plan.worker_pool import LOADING_S, WorkerPool, compiled_ahead, worker_pool

SEARCHING = 0.8
"""The share of a model's time that is for the search; the rest is for how sure it is, and for explaining what it
found."""
SPREADS = 10
"""So many of the best plans are simulated again with costs that are off."""
GRACE_S = 1.5
"""For all models together: so long after the end one plan of each that has none may still be simulated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What was found for one model: `best` is the winner's row, whose prediction has a timeline only if asked for.

    Where it was executed, `best` is the row of that run. Without a single plan that could be simulated there is none.
    """

    problem: Problem
    found: SearchResult
    best: Row | None
    explanation: Explanation | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanAnswers:
    """What one `plan` command found, by model in the order of the experiment; fewer models if it was interrupted."""

    experiment: str
    answers: tuple[Answer, ...]
    interrupted: bool = False


def problems_of(loaded: Loaded[Experiment], profiles: Sequence[Path], say: Say = lambda text: None) -> list[Problem]:
    """The search of each model; warnings of a network's profile are said.

    Raises `InputError` for what is wrong with the experiment or a profile.
    """
    experiment = loaded.value
    cluster = cluster_of(loaded, say)
    models = {entry.title: model_of(loaded, i) for i, entry in enumerate(experiment.models)}
    known, network = known_profiles(loaded, profiles, models)
    if network is not None:
        for difference in dict.fromkeys(mismatches(network, cluster)):
            say(f"warning: {difference}")
        cluster = with_network(cluster, network)
    return [
        Problem(
            loaded=loaded,
            cluster=cluster,
            entry=entry,
            model=models[entry.title],
            profile=known.get(entry.title),
            network=network,
        )
        for entry in experiment.models
    ]


def plan_experiment(
    name_or_path: str,
    *,
    overrides: Sequence[str] = (),
    budget_s: float | None = None,
    max_evaluations: int | None = None,
    memory_nbytes: int | None = None,
    profiles: Sequence[Path] = (),
    jobs: int = 1,
    scheduler: str | None = None,
    timelines: bool = False,
    tell: Tell = lambda model, done, total: None,
    say: Say = lambda text: None,
) -> PlanAnswers:
    """Search the best plan of every model of an experiment.

    `budget_s` is for all models together and counts from now: each gets an equal share of what is left. A model of
    which no plan has been simulated by then has a moment more for one. `max_evaluations` is for each model. Both limits
    hold for the explanation as well. No process takes more than `memory_nbytes` (left out: than its part of what the
    machine has); on the workers of a Dask `scheduler` that is only estimated. With `timelines` the best plans have
    theirs, unless there is no time for them, which is said. Ctrl-C ends the search with what has been found. Raises
    `InputError` and `RunError`.
    """
    end_s = None if budget_s is None else monotonic() + budget_s
    loaded = load_experiment(name_or_path, overrides)
    return plan_problems(
        loaded.value.name,
        problems_of(loaded, profiles, say),
        loaded.value.strategies,
        end_s=end_s,
        max_evaluations=max_evaluations,
        memory_nbytes=memory_nbytes,
        jobs=jobs,
        scheduler=scheduler,
        timelines=timelines,
        tell=tell,
        say=say,
    )


def plan_problems(
    experiment: str,
    problems: Sequence[Problem],
    rows: Sequence[StrategyEntry] = (),
    *,
    end_s: float | None = None,
    max_evaluations: int | None = None,
    memory_nbytes: int | None = None,
    jobs: int = 1,
    scheduler: str | None = None,
    timelines: bool = False,
    tell: Tell = lambda model, done, total: None,
    say: Say = lambda text: None,
) -> PlanAnswers:
    """Search the best plan of each problem; `rows` are tried first, `end_s` is an instant of the monotonic clock.

    See `plan_experiment` for the rest.
    """
    spaces = [
        choices(
            p.model,
            world_size=p.cluster.world_size,
            batch_per_worker=p.batch_per_worker,
            local_size=local_size(p.cluster),
            rows=rows,
        )
        for p in problems
    ]
    if memory_nbytes is None and scheduler is None and (free_nbytes := free_memory()) is not None:
        memory_nbytes = own_memory() + free_nbytes // jobs
    answers: list[Answer] = []
    with worker_pool(
        problems, jobs=jobs, work=sum(len(some) for some, _ in spaces), memory_nbytes=memory_nbytes, scheduler=scheduler
    ) as pool:
        took_s = compiled_ahead()
        if end_s is not None and took_s > LOADING_S:
            end_s += took_s  # once on a machine, and said
        pool.begin(end_s)
        for i, (problem, (some, out)) in enumerate(zip(problems, spaces, strict=True)):
            time = _Share.of(end_s, len(problems) - i)
            limits = Limits(deadline_s=time.search_s, max_evaluations=max_evaluations, grace_s=time.grace_s)
            search = Search(pool, i, some, limits, left_out=out, tell=partial(tell, problem.entry.title))
            search.run()
            found, best, explanation = search.found(), None, None
            try:
                best = None if found.best is None else row(problem, found.best)
                if found.stop is not Stop.INTERRUPTED:
                    if timelines and best is not None and found.best is not None:
                        best = _with_timeline(problem, found.best.choice, best, time.end_s, memory_nbytes, say)
                    found = _with_spreads(pool, i, found, time.end_s)
                    explanation = explain(
                        pool, i, found, Limits(deadline_s=time.end_s, max_evaluations=max_evaluations)
                    )
            except KeyboardInterrupt:
                found = replace(found, stop=Stop.INTERRUPTED)
            if best is not None and found.best is not None:
                best = replace(best, prediction=replace(best.prediction, spread=found.best.prediction.spread))
            answers.append(Answer(problem=problem, found=found, best=best, explanation=explanation))
            if found.stop is Stop.INTERRUPTED:
                return PlanAnswers(experiment=experiment, answers=tuple(answers), interrupted=True)
    return PlanAnswers(experiment=experiment, answers=tuple(answers))


def _with_timeline(
    problem: Problem, choice: Choice, best: Row, end_s: float | None, memory_nbytes: int | None, say: Say
) -> Row:
    """The row of the best plan with the timeline of its prediction, if there is room for that; else that is said."""
    try:
        with memory_limit(memory_nbytes), time_limit(end_s):
            return replace(best, prediction=problem.predict(problem.plan(choice)))
    except TimeIsUp:
        short = "time"
    except MemoryError:
        short = "memory"
    say(f"{best.model}: no {short} was left for the spans of {best.label}, which are not written")
    return best


def _with_spreads(pool: WorkerPool, index: int, found: SearchResult, end_s: float | None) -> SearchResult:
    """The best plans with what their samples/s are where costs are off, as far as half of the time left allows."""
    now_s = monotonic()
    until_s = None if end_s is None else now_s + max(0.0, end_s - now_s) / 2
    some = found.ranked[:SPREADS]
    known = [new or one for one, new in zip(some, pool.spreads(index, some, until_s), strict=True)]
    return replace(found, ranked=(*known, *found.ranked[SPREADS:]))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Share:
    """One model's share of the time: when its search ends, its explanation, and its grace; None without a limit."""

    search_s: float | None = None
    end_s: float | None = None
    grace_s: float | None = None

    @classmethod
    def of(cls, all_end_s: float | None, models: int) -> _Share:
        """One of so many equal parts of what is left until `all_end_s`; of the grace, as much after its own end."""
        if all_end_s is None:
            return cls()
        now_s = monotonic()
        share_s = max(0.0, all_end_s - now_s) / models
        grace_s = now_s + (max(0.0, all_end_s + GRACE_S - now_s)) / models
        return cls(search_s=now_s + SEARCHING * share_s, end_s=now_s + share_s, grace_s=grace_s)


def row(problem: Problem, one: Score) -> Row:
    """The row that `run` would report for a plan, but for the timeline."""
    return row_of(problem.loaded.value, problem.cluster, problem.plan(one.choice), one.prediction)


def check_not_launched() -> None:
    """Raise `InputError` in one of several processes that a launcher started: each would search for itself."""
    for key in ("WORLD_SIZE", "SLURM_NTASKS"):
        if os.environ.get(key, "1") not in ("", "1"):
            hint = "plan without a launcher, put the plan into an experiment, and run that with the launcher"
            raise InputError(f"{key} is {os.environ[key]}: a launcher started several searches", hint=hint)


def _profiles_for(problem: Problem, profiles: Sequence[Path]) -> list[Path]:
    """Those of `profiles`, or of the experiment's own, that are of a network or serve the model of `problem`."""
    loaded = problem.loaded
    own = [] if loaded.value.profile is None else [loaded.path.parent / loaded.value.profile]
    found = []
    for path in profiles or own:
        profile = read_either(path)
        serves = isinstance(profile, NetworkProfile) or not differences(profile, problem.model, loaded.value.precision)
        if serves:
            found.append(path)
    return found


def execute_best(
    plan_result: PlanAnswers, *, profiles: Sequence[Path] = (), testbed: bool = False, say: Say
) -> PlanAnswers:
    """Run the best plan of each model for real; return the answers with the rows of those runs as their best.

    Raises `InputError` and `RunError`, as `run` does.
    """
    done: list[Answer] = []
    for answer in plan_result.answers:
        winner = answer.found.best
        if winner is None:
            done.append(answer)
            continue
        loaded = answer.problem.loaded
        rows = {"models": (answer.problem.entry,), "strategies": (winner.choice.entry,), "profile": None}
        only = loaded.value.model_copy(update=rows)
        mine = _profiles_for(answer.problem, profiles)
        result = run_loaded(replace(loaded, value=only), execute=True, profiles=mine, testbed=testbed, say=say)
        done.append(answer if result is None else replace(answer, best=result.rows[0]))
    return replace(plan_result, answers=tuple(done))
