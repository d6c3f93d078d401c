"""The rows of a report, from what was predicted and measured."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from stanza_sim.cluster import Cluster
from stanza_sim.experiment.details import Details
from stanza_sim.experiment.file import Experiment
from stanza_sim.experiment.rows import LeftOutRow, Plan
from stanza_sim.experiment.scenario import Scenario
from stanza_sim.experiment.slow_places import slow_places
from stanza_sim.experiment.worth import flops_utilisation, price_per_hour, unpriced
from stanza_sim.report.result import Drift, Infeasible, Result, Row
from stanza_sim.simulate import Prediction

if TYPE_CHECKING:  # imported where something is executed
    from stanza_sim.execute import Measurement


def row_of(
    experiment: Experiment,
    cluster: Cluster,
    plan: Plan,
    prediction: Prediction,
    measurement: Measurement | None = None,
    drift: Drift | None = None,
    undilated: Prediction | None = None,
    scenario: Scenario | None = None,
) -> Row:
    """The row of a report for one plan; `scenario` is what `prediction` was made of."""
    return Row(
        label=plan.strategy.title,
        model=plan.entry.title,
        strategy=plan.strategy.strategy,
        settings=plan.strategy.settings.model_dump(mode="json"),
        cluster=cluster.name,
        nodes=cluster.nodes,
        batch_per_worker=plan.batch_per_worker,
        accumulation=experiment.training.accumulation,
        precision=experiment.precision,
        seed=experiment.seed,
        schedule=plan.schedule,
        prediction=prediction,
        measurement=measurement,
        drift=drift,
        undilated=undilated,
        notes=(*slow_places(plan.schedule, cluster, experiment.precision), *unpriced(plan.schedule, cluster)),
        mfu=flops_utilisation(plan.schedule, plan.model, cluster, experiment.precision, prediction.samples_per_s),
        price_per_hour=price_per_hour(plan.schedule, cluster),
        training_samples=experiment.training.all_samples,
        sample_tokens=plan.model.sample_tokens,
        details=None if scenario is None else Details(scenario=scenario, prediction=prediction),
        hardware=cluster,
        profile=plan.model,
    )


def result_of(experiment: Experiment, rows: Iterable[Row], left_out: Iterable[LeftOutRow] = ()) -> Result:
    """The result of an experiment with these rows."""
    return Result(
        experiment=experiment.name,
        rows=tuple(rows),
        infeasible=tuple(map(infeasible_of, left_out)),
        settings=experiment.model_dump(mode="json"),
    )


def infeasible_of(one: LeftOutRow) -> Infeasible:
    """What a report says of a row that is not possible."""
    return Infeasible(label=one.strategy.title, model=one.entry.title, reason=one.error.one_line)
