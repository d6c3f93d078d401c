"""The search: what it finds is what trying everything finds, whatever it leaves out; limits and interruptions."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from time import monotonic, sleep
from typing import NoReturn

import numpy as np
import pytest

from stanza_sim import strategies
from stanza_sim.base.limits import own_memory
from stanza_sim.cluster import load_cluster
from stanza_sim.experiment.file import StrategyEntry, load_experiment
from stanza_sim.studies.plan import session
from stanza_sim.studies.plan.assess import Problem, Score, Weighed, sketch, weigh
from stanza_sim.studies.plan.choices import Choice, as_yaml, choices, in_words, local_size
from stanza_sim.studies.plan.room import Estimate, Rates, Room, Work
from stanza_sim.studies.plan.search import SKETCHED_FOR_EACH, Limits, Search, SearchResult, Stop
from stanza_sim.studies.plan.session import plan_problems, problems_of
from stanza_sim.studies.plan.worker_pool import WorkerPool, worker_pool

OLD = ("all_reduce", "parameter_server", "stanza")


def problem_of(path: Path, *overrides: str) -> Problem:
    return problems_of(load_experiment(str(path), overrides), [])[0]


def choices_of(problem: Problem, names: Sequence[str], most: int = 1000) -> list[Choice]:
    found, _ = choices(
        problem.model,
        world_size=problem.cluster.world_size,
        batch_per_worker=problem.batch_per_worker,
        local_size=local_size(problem.cluster),
        rows=problem.loaded.value.strategies,
        names=names,
    )
    return found[:most]


def searched(problem: Problem, some: Sequence[Choice], limits: Limits | None = None) -> Search:
    search = Search(WorkerPool([problem], None), 0, some, limits or Limits())
    search.run()
    return search


@pytest.mark.parametrize("rate", ["1Gbps", "40Gbps"])
def test_the_winner_and_the_runner_up_are_those_of_trying_everything(small, rate):
    problem = problem_of(small, f"network.rate={rate}")
    some = choices_of(problem, OLD, most=30)
    everything: list[Score] = sorted((weigh(problem, c).score for c in some), key=lambda one: one.order)
    found = searched(problem, some).found()
    assert found.stop is Stop.COMPLETE
    assert found.best is not None
    assert found.best.order == everything[0].order
    winner = everything[0].choice.strategy
    assert found.best.choice.strategy == winner
    runner_up = next(one for one in everything if one.choice.strategy != winner)
    assert found.best_of_others()[0].order == runner_up.order
    assert found.pruned > 0
    assert found.evaluated + found.pruned + found.same + len(found.left_out) == len(some)
    assert found.unreached == 0


def test_nothing_that_is_pruned_could_have_won(small):
    problem = problem_of(small)
    for choice in choices_of(problem, OLD, most=12):
        quick, exact = sketch(problem, choice), weigh(problem, choice)
        assert exact.score is not None
        assert exact.score.prediction.samples_per_s <= exact.most_samples_per_s * (1 + 1e-9)
        assert exact.most_samples_per_s <= quick.most_samples_per_s * (1 + 1e-9)


def test_rows_of_the_experiment_come_first_and_keep_their_labels(small):
    some = choices_of(problem_of(small), OLD)
    assert [c.label for c in some[:2]] == ["PS, one server", "stanza"]
    assert [c.label for c in some[2:4]] == ["all_reduce", "parameter_server"]
    assert sum(c.strategy == "stanza" and not c.entry.settings.model_dump(exclude_defaults=True) for c in some) == 1


def test_evaluations_are_limited_and_the_answer_is_reproducible(small):
    problem = problem_of(small)
    some = choices_of(problem, OLD, most=60)
    found = searched(problem, some, Limits(max_evaluations=6)).found()
    assert (found.evaluated, found.stop) == (6, Stop.EVALUATIONS)
    assert found.unreached == len(some) - 6 - found.pruned - found.same - len(found.left_out) > 0
    assert searched(problem, some, Limits(max_evaluations=6)).found() == found


def test_without_time_no_plan_says_how_sure_it_is(small):
    """What is left of a budget that is spent allows no further simulation; the ranking stays."""
    loaded = load_experiment(str(small))
    answers = plan_problems("small", problems_of(loaded, ()), loaded.value.strategies, end_s=monotonic())
    (found,) = (answer.found for answer in answers.answers)
    assert found.ranked
    assert [one.prediction.spread for one in found.ranked] == [None] * len(found.ranked)
    assert found.tied_with() == [()] * len(found.ranked)


def test_only_the_best_plans_are_simulated_again(small, monkeypatch):
    monkeypatch.setattr(session, "SPREADS", 2)
    loaded = load_experiment(str(small))
    answers = plan_problems("small", problems_of(loaded, ()), loaded.value.strategies, max_evaluations=6)
    (answer,) = answers.answers
    spreads = [one.prediction.spread for one in answer.found.ranked]
    assert all(spreads[:2])
    assert not any(spreads[2:])
    assert answer.best.prediction.spread == spreads[0]


def test_few_evaluations_make_few_sketches(small, monkeypatch):
    problem = problem_of(small)
    some = choices_of(problem, OLD)
    looked_at = []
    pool = WorkerPool([problem], None)
    real = pool.sketch
    monkeypatch.setattr(
        pool, "sketch", lambda i, which, *a, **more: looked_at.extend(which) or real(i, which, *a, **more)
    )
    search = Search(pool, 0, some, Limits(max_evaluations=6))
    search.run()
    first = sum(choice.first for choice in some)
    assert len(looked_at) == first + SKETCHED_FOR_EACH * 6 < len(some)
    assert search.found().stop is Stop.EVALUATIONS


def test_what_is_like_a_good_plan_is_tried_before_what_is_like_a_bad_one(small, monkeypatch):
    problem = problem_of(small)
    pool, tried = WorkerPool([problem], None), []
    real = pool.weigh
    monkeypatch.setattr(
        pool,
        "weigh",
        lambda i, batch, until, **more: tried.append([c for c, _ in batch]) or real(i, batch, until, **more),
    )
    some = choices_of(problem, OLD)
    search = Search(pool, 0, some, Limits(max_evaluations=20))
    search.run()
    rates = {one.choice.label: one.prediction.samples_per_s for one in search.found().ranked}
    first = [rates[c.label] for c in some if c.first and c.label in rates]
    later = [rates[c.label] for batch in tried for c in batch if not c.first and c.label in rates]
    assert len(later) >= 10
    assert sum(later) / len(later) > sum(first) / len(first)
    assert max(later) > max(first)


def test_settings_that_differ_are_counted():
    def made(name, **given):
        settings = strategies.get(name).Settings.model_validate(given)
        return Choice(entry=StrategyEntry.model_construct(strategy=name, label=None, settings=settings))

    plain = made("all_reduce")
    assert plain.differs(made("all_reduce", bucket="4MiB", overlap=False)) == 2
    assert plain.differs(made("all_reduce")) == 0
    assert plain.differs(made("stanza")) is None


def test_what_takes_too_long_is_stopped_wherever_it_is(small, monkeypatch):
    def endless(*args):
        while True:
            pass

    problem = problem_of(small)
    pool = WorkerPool([problem])
    some = choices_of(problem, OLD, most=2)
    assert pool.weigh(0, [(c, 0.0) for c in some], 0.0) == [None, None]
    monkeypatch.setattr("stanza_sim.studies.plan.assess.Problem.plan", endless)
    (found,) = pool.weigh(0, [(some[0], 0.0)], None, most_s=0.01)
    assert (found.kind, found.limited) == ("time", True)
    assert found.reason.startswith("stopped after ")
    (sketched,) = pool.sketch(0, some[:1], None, most_s=0.01)
    assert (sketched.kind, sketched.digest) == ("time", "")


def test_what_takes_too_much_memory_is_left_out(small, monkeypatch):
    def huge(*args):
        return np.ones(10**9)

    problem = problem_of(small)
    some = choices_of(problem, OLD, most=2)
    pool = WorkerPool([problem], memory_nbytes=own_memory() + 10**8)
    monkeypatch.setattr("stanza_sim.studies.plan.assess.Problem.plan", huge)
    (found,) = pool.weigh(0, [(some[0], 0.0)], None)
    assert found.kind == "host_memory"
    assert "more memory than" in found.reason
    assert pool.sketch(0, some[:1], None)[0].kind == "host_memory"


def test_what_would_take_too_much_is_not_begun(small, monkeypatch):
    """Neither is lowered: time is told from what others took in this search, memory from the number of parts."""
    problem = problem_of(small)
    choice = choices_of(problem, OLD)[0]
    work = weigh(problem, choice).work
    assert work.parts > 0
    monkeypatch.setattr("stanza_sim.simulate.run.lower", None)
    slow = Estimate(least_s=0.0, part_s=3600.0)
    slow = Room(deadline_s=monotonic() + 3600.0, estimates={work.compiled: slow})
    found = weigh(problem, choice, 0.0, slow)
    assert found.kind == "time"
    assert "1 hour" in found.reason or "h left" in found.reason or "s left" in found.reason
    little = Room(memory_nbytes=own_memory())
    assert weigh(problem, choice, 0.0, little).kind == "host_memory"


def test_time_is_estimated_from_what_others_took():
    rates = Rates()
    assert rates.estimates() == {}
    for parts in (100, 300, 1000):
        rates.add(Work(parts=parts, compiled=True, seconds=1.0 + 0.01 * (parts - 100)))
    (estimate,) = rates.estimates().values()
    assert estimate.seconds(0) == 1.0
    assert sum(estimate.seconds(parts) for parts in (100, 300, 1000)) == pytest.approx(3.0 + 2.0 + 9.0)
    rates.add(Work(parts=10, compiled=False, seconds=5.0))
    assert rates.estimates()[False].seconds(10) == pytest.approx(5.0)
    assert rates.estimates()[False].seconds(10**9) > 100.0


def test_what_needs_longer_than_others_comes_last(small, monkeypatch):
    """It is stopped after its part of the time, and simulated in what is left of it."""
    problem = problem_of(small)
    pool, real, asked = WorkerPool([problem]), WorkerPool.weigh, []

    def weighing(i, batch, until, variant=None, most_s=None):
        asked.append((tuple(c.label for c, _ in batch), most_s))
        found = real(pool, i, batch, until)
        return [
            Weighed(kind="time", reason="slow") if most_s is not None and c.strategy == "stanza" else one
            for (c, _), one in zip(batch, found, strict=True)
        ]

    monkeypatch.setattr(pool, "weigh", weighing)
    search = Search(pool, 0, choices_of(problem, OLD, most=5), Limits(deadline_s=monotonic() + 1000.0))
    search.run()
    found = search.found()
    assert found.stop is Stop.COMPLETE
    assert "stanza" in {one.choice.strategy for one in found.ranked}
    assert asked[0][1] == pytest.approx(400.0, rel=0.01)
    assert asked[-1][1] is None
    assert all(label.startswith("stanza") for label in asked[-1][0])


def test_what_stays_below_what_is_asked_for_is_not_simulated(small):
    problem = problem_of(small)
    choice = choices_of(problem, OLD)[0]
    most = weigh(problem, choice).most_samples_per_s
    assert weigh(problem, choice, most).score is not None
    known = weigh(problem, choice, 1.01 * most)
    assert (known.score, known.out, known.most_samples_per_s) == (None, False, most)


def test_one_plan_is_simulated_even_without_time(small):
    problem = problem_of(small)
    some = choices_of(problem, OLD)
    found = searched(problem, some, Limits(deadline_s=0.0, grace_s=monotonic() + 1000.0)).found()
    assert found.stop is Stop.BUDGET
    assert [one.choice.label for one in found.ranked] == ["PS, one server"]
    assert found.unreached == len(some) - 1
    none = searched(problem, some, Limits(deadline_s=0.0, grace_s=0.0)).found()
    assert (none.ranked, none.unreached, none.stop) == ((), len(some), Stop.BUDGET)


def test_with_a_deadline_rows_and_defaults_come_the_cheapest_first(small, monkeypatch):
    problem = problem_of(small)
    pool, real, tried = WorkerPool([problem]), WorkerPool.weigh, []
    monkeypatch.setattr(
        pool,
        "weigh",
        lambda i, batch, *a, **more: tried.extend(c for c, _ in batch) or real(pool, i, batch, *a, **more),
    )
    some = [c for c in choices_of(problem, OLD) if c.first]
    Search(pool, 0, some, Limits(deadline_s=monotonic() + 1000.0)).run()
    parts = [sketch(problem, c).parts for c in tried]
    assert len(parts) == len(some)
    assert parts == sorted(parts)


def test_an_interruption_keeps_what_was_found(small, monkeypatch):
    problem = problem_of(small)
    pool = WorkerPool([problem], None)
    real = pool.weigh
    calls = []

    def weighing(*args, **more):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **more)

    monkeypatch.setattr(pool, "weigh", weighing)
    search = Search(pool, 0, choices_of(problem, OLD), Limits())
    search.run()
    found = search.found()
    assert found.stop is Stop.INTERRUPTED
    assert found.best is not None
    assert found.evaluated >= 2


@pytest.mark.processes
@pytest.mark.parametrize("jobs", [2, 4])
def test_several_processes_find_what_one_finds(small, jobs):
    problem = problem_of(small)
    some = choices_of(problem, ("all_reduce", "stanza"), most=16)
    found = []
    for count in (1, jobs):
        with worker_pool([problem], jobs=count, work=1000) as pool:
            search = Search(pool, 0, some, Limits())
            search.run()
            found.append(search.found())
    assert found[0] == found[1]


@pytest.mark.processes  # dask asks `uname` for the processor
def test_a_dask_cluster_finds_what_one_process_finds(small):
    distributed = pytest.importorskip("distributed")
    problem = problem_of(small)
    some = choices_of(problem, ("all_reduce", "stanza"), most=16)

    def found(**more) -> SearchResult:
        with worker_pool([problem], jobs=1, work=1000, **more) as pool:
            search = Search(pool, 0, some, Limits())
            search.run()
            return search.found()

    cluster = distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None, worker_dashboard_address=None
    )
    try:
        with worker_pool([problem], jobs=1, work=1000, scheduler=cluster.scheduler_address) as pool:
            assert pool.weigh(0, [(some[0], 0.0)], 0.0) == [None]  # it is too late
        assert found(scheduler=cluster.scheduler_address) == found()
    finally:
        cluster.close()


class Stuck(Problem):
    """A problem whose schedules are never built, in code that cannot be interrupted."""

    def plan(self, choice: Choice) -> NoReturn:
        while True:
            with suppress(BaseException):
                sleep(60.0)


@pytest.mark.processes
def test_a_process_that_cannot_be_stopped_is_ended_and_another_takes_its_place(small):
    problem = problem_of(small)
    stuck = Stuck(**{f.name: getattr(problem, f.name) for f in fields(problem)})
    some = choices_of(problem, OLD, most=2)
    with worker_pool([stuck, problem], jobs=2, work=1000) as pool:
        assert None not in pool.sketch(1, some, None)  # they have started
        assert pool.sketch(0, some[:1], monotonic() + 0.1) == [None]
        assert None not in pool.sketch(1, some, None)


def test_what_cannot_be_built_is_left_out_with_the_reason(small):
    problem = problem_of(small, "strategies.1.settings.fc_workers=3")
    found = searched(problem, choices_of(problem, ())).found()
    assert [one.kind for one in found.left_out] == ["infeasible"]
    assert "3 FC workers of 4 nodes" in found.left_out[0].reason
    assert found.best is not None


def test_what_varies_by_chance_is_not_pruned(small):
    changes = ("simulation.jitter.kind=uniform", "simulation.jitter.spread=0.1", "simulation.repeats=2")
    problem = problem_of(small, *changes)
    some = choices_of(problem, (), most=2)
    found = searched(problem, some).found()
    assert (found.evaluated, found.pruned) == (2, 0)
    assert found.best is not None
    assert found.best.prediction.repeats is not None


@pytest.mark.parametrize("name", strategies.names())
@pytest.mark.parametrize(("world", "local"), [(1, 1), (2, 1), (4, 2), (10, 1)])
def test_spaces_offer_what_can_be_built(name, world, local, small):
    problem = problem_of(small)
    found = list(strategies.get(name).space(problem.model, world_size=world, batch_per_worker=8, local_size=local))
    assert len(found) < 500
    if found and world > 1:
        assert found[0] == strategies.get(name).Settings()
    assert len({one.model_dump_json() for one in found}) == len(found)
    for settings in found[:: max(1, len(found) // 12)]:
        strategies.build(
            name,
            problem.model,
            world_size=world,
            batch_per_worker=8,
            settings=settings,
            cluster=load_cluster("star", nodes=world),
            times=lambda block, samples: (block.forward_flops * samples, 1.0),
        )


def test_names_and_lines_of_an_experiment_say_what_was_changed():
    made = strategies.get("all_reduce").Settings.model_validate({"bucket": "4MiB", "overlap": False})
    assert in_words("all_reduce", made) == "all_reduce bucket=4MiB overlap=false"
    choice = Choice(entry=StrategyEntry.model_construct(strategy="all_reduce", label=None, settings=made))
    assert as_yaml(choice) == "{strategy: all_reduce, settings: {bucket: 4MiB, overlap: false}}"
    sized = strategies.get("fsdp").Settings.model_validate({"unit_size": "25MiB", "unit_blocks": None})
    assert in_words("fsdp", sized) == "fsdp unit_size=25MiB"
