"""Predictions of published training rows, several at once where there are several cores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import as_completed

from stanza_sim import strategies
from stanza_sim.base.errors import InputError, ScheduleError
from stanza_sim.base.processes import cores, processes
from stanza_sim.experiment.scenario import Scenario
from stanza_sim.simulate.costs import costs_for
from stanza_sim.studies.validate.published.rules import Setup, schedule_settings, setup_of
from stanza_sim.studies.validate.published.scores import Outcome, RowKind
from stanza_sim.studies.validate.published.suite import PublishedSuite
from stanza_sim.studies.validate.published.tables import TrainingRow, Usable

PARALLEL_FROM = 12
"""From so many rows on it pays to start processes."""


def scenario_of(setup: Setup) -> Scenario:
    """The scenario that a setup stands for. Raises `InputError` and `ScheduleError`."""
    cluster = setup.cluster()
    strategy = strategies.get(setup.strategy)
    schedule = strategy.build(
        setup.model,
        world_size=cluster.world_size,
        batch_per_worker=setup.batch,
        settings=schedule_settings(setup),
    )
    costs = costs_for(cluster, setup.model, setup.precision)
    return Scenario(schedule=schedule, model=setup.model, cluster=cluster, costs=costs)


def predict_row(row: TrainingRow, suite: PublishedSuite) -> Outcome:
    """Predict one row; what cannot be predicted has the reason in its outcome."""
    predicted, reason = None, ""
    if row.usable is not Usable.NO:
        try:
            predicted = scenario_of(setup_of(row, suite)).predict().samples_per_s
        except (InputError, ScheduleError) as error:
            reason = f"{error.message}" if isinstance(error, InputError) else str(error)
    transport = row.transport or ("several hosts" if row.hosts > 1 else "one host")
    size = f"{row.hosts} x {row.gpus_per_host} {row.gpu}"
    return Outcome(
        id=row.id,
        kind=RowKind.TRAINING,
        label=f"{row.model} {row.batch_per_gpu}, {row.strategy}, {size}",
        predicted=predicted,
        measured=row.samples_per_s,
        scored=row.scored and predicted is not None,
        linear=row.linear,
        reason=reason,
        groups=(("source", row.source), ("strategy", row.strategy), ("transport", transport)),
        row=row,
    )


def predict_training(
    rows: Sequence[TrainingRow], suite: PublishedSuite, tell: Callable[[str, int, int], None] = lambda *_: None
) -> list[Outcome]:
    """Predict rows, in their order; the largest first, on all cores."""
    order = sorted(range(len(rows)), key=lambda i: -rows[i].gpus)
    found: dict[int, Outcome] = {}
    if len(rows) < PARALLEL_FROM or cores() == 1:
        for done, i in enumerate(order, 1):
            found[i] = predict_row(rows[i], suite)
            tell(rows[i].id, done, len(rows))
    else:
        with processes(cores()) as pool:
            futures = {pool.submit(predict_row, rows[i], suite): i for i in order}
            for done, future in enumerate(as_completed(futures), 1):
                i = futures[future]
                found[i] = future.result()
                tell(rows[i].id, done, len(rows))
    return [found[i] for i in range(len(rows))]
