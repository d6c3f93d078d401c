"""Explanations: where another plan wins, and what the runner-up loses on."""

from dataclasses import replace

import pytest

from stanza_sim.experiment.file import load_experiment
from stanza_sim.studies.plan.assess import weigh
from stanza_sim.studies.plan.choices import choices
from stanza_sim.studies.plan.explain import explain
from stanza_sim.studies.plan.search import Limits, Search
from stanza_sim.studies.plan.session import problems_of
from stanza_sim.studies.plan.worker_pool import WorkerPool

BATCH = "batch_per_worker=32"


def found_for(path, *overrides):
    problem = problems_of(load_experiment(str(path), [BATCH, *overrides]), [])[0]
    rows = problem.loaded.value.strategies
    some, _ = choices(problem.model, world_size=4, batch_per_worker=32, local_size=1, rows=rows, names=("all_reduce",))
    pool = WorkerPool([problem], None)
    search = Search(pool, 0, some[:6], Limits())
    search.run()
    return pool, search.found()


def test_beyond_the_rate_at_which_it_turns_another_plan_wins(small):
    pool, found = found_for(small)
    why = explain(pool, 0, found, Limits())
    assert why is not None
    assert why.rate is not None
    turn = why.rate.above
    assert turn is not None
    assert why.rate.present == 1.25e9
    assert turn.loses_at == pytest.approx(turn.wins_at, rel=0.03)
    for rate_Bps, best_wins in ((turn.wins_at, True), (turn.loses_at, False)):
        there = problems_of(load_experiment(str(small), [BATCH, f"network.rate={rate_Bps * 8e-9:.9f}Gbps"]), [])[0]
        best, other = weigh(there, found.best.choice).score, weigh(there, turn.by).score
        assert (best.order < other.order) is best_wins


def test_losses_add_up_to_the_difference(small):
    pool, found = found_for(small)
    why = explain(pool, 0, found, Limits())
    assert why is not None
    assert why.loss is not None
    assert why.runner_up is not None
    slower = 1000 / why.runner_up.prediction.samples_per_s - 1000 / found.best.prediction.samples_per_s
    assert why.loss.total_s == pytest.approx(slower)
    assert why.loss.most == "exposed communication"


def test_without_time_nothing_is_looked_at(small):
    pool, found = found_for(small)
    why = explain(pool, 0, found, Limits(deadline_s=0.0))
    assert why is not None
    assert (why.rate, why.batch) == (None, None)
    assert set(why.skipped.values()) == {"there was no time left"}


def test_no_more_plans_are_looked_at_than_may_be(small, monkeypatch):
    pool, found = found_for(small)
    real, run = pool.weigh, []

    def weighing(index, some, deadline_s, variants):
        run.extend(variant.rate_Bps is None for variant in variants)
        return real(index, some, deadline_s, variants)

    monkeypatch.setattr(pool, "weigh", weighing)
    why = explain(pool, 0, found, Limits(max_evaluations=5))
    assert why is not None
    assert why.rate is not None
    assert why.rate.hurried
    for batches in (False, True):
        assert 0 < run.count(batches) <= 5
    why = explain(pool, 0, found, Limits(max_evaluations=1))
    assert why is not None
    assert set(why.skipped.values()) == {"the number of evaluations is too small"}


def test_plans_that_cannot_be_better_are_not_simulated(small, monkeypatch):
    pool, found = found_for(small)
    real, asked = pool.weigh, []

    def weighing(index, some, deadline_s, variants):
        weighed = real(index, some, deadline_s, variants)
        asked.extend((least, one) for (_, least), one in zip(some, weighed, strict=True))
        return weighed

    everything = explain(pool, 0, found, Limits())
    monkeypatch.setattr(pool, "weigh", weighing)
    assert explain(pool, 0, found, Limits()) == everything
    assert any(least > 0 and one.score is None and not one.out for least, one in asked), "a bound rules a plan out"
    assert all(one.most_samples_per_s < least for least, one in asked if one.score is None and not one.out)


def test_batches_that_no_plan_can_have_end_the_range(small):
    pool, found = found_for(small, "batch_per_worker=2000")
    why = explain(pool, 0, found, Limits())
    assert why is not None
    assert why.batch is not None
    assert why.batch.full
    assert why.batch.high <= 8000


def test_without_a_rival_there_is_nothing_to_compare(small):
    pool, found = found_for(small)
    winner = found.best.choice.strategy
    alone = replace(found, ranked=tuple(one for one in found.ranked if one.choice.strategy == winner))
    why = explain(pool, 0, alone, Limits())
    assert why is not None
    assert (why.runner_up, why.rate, why.batch) == (None, None, None)
    nothing = replace(found, ranked=())
    assert explain(pool, 0, nothing, Limits()) is None
