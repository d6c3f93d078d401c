"""Models held to the data that they will be trained on, and all that can be known of a run before ranks start."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

from stanza_sim.base.config import Loaded
from stanza_sim.base.errors import InputError, at
from stanza_sim.base.telling import Say
from stanza_sim.experiment.file import DIGITS, Experiment
from stanza_sim.experiment.jobs import training_of
from stanza_sim.experiment.loops import length_of
from stanza_sim.experiment.rows import LeftOutRow, Plan
from stanza_sim.model.labels import Labels, Loss
from stanza_sim.model.profile import ModelProfile
from stanza_sim.model.shipped import SOURCES, WIDE
from stanza_sim.schedule.wires import with_labels


def fitted(
    loaded: Loaded[Experiment],
    plans: Sequence[Plan],
    say: Say = lambda text: None,
    *,
    left_out: list[LeftOutRow] | None = None,
) -> tuple[Plan, ...]:
    """Return `plans` with models that know their labels from the data, and schedules with the bytes of these.

    For emulated computations they are returned as they are: nothing is trained. Raises `InputError` for data that does
    not fit a model, for a loss that makes no sense, and for a model or a block of it that cannot be trained; what is
    odd about the data is said. Rows that ask of a block what it cannot do go to `left_out`, or are an error without it.
    """
    experiment = loaded.value
    if experiment.execute.compute == "emulated":
        return tuple(plans)
    from stanza_sim.execute.train.known import check_cut_loss

    models: dict[str, tuple[ModelProfile, int | None]] = {}
    for title in dict.fromkeys(plan.entry.title for plan in plans):
        mine = [plan for plan in plans if plan.entry.title == title]
        index = next((i for i, entry in enumerate(experiment.models) if entry.title == title), 0)
        with at(loaded.source.where("models", index), outer=True):
            rows = _checked(mine)
        for row in rows:
            if left_out is None:
                raise row.error
            left_out.append(row)
        refused = [row.strategy for row in rows]
        if not (mine := [plan for plan in mine if plan.strategy not in refused]):
            continue
        with at(loaded.source.where("training", "data"), outer=True):
            models[title] = _with_labels(loaded, mine, say)
    found = []
    unfit = {(row.entry.title, row.strategy.title) for row in left_out or ()}
    for plan in plans:
        if (plan.entry.title, plan.strategy.title) in unfit:
            continue
        model, samples = models[plan.entry.title]
        try:
            with at(loaded.source.where("training", "data"), outer=True):
                check_cut_loss(model, plan.schedule)
            if experiment.training.target is not None:
                with at(loaded.source.where("training", "target"), outer=True):
                    experiment.training.target.check(model.labels)
        except InputError as error:
            if left_out is None:
                raise
            left_out.append(LeftOutRow(entry=plan.entry, strategy=plan.strategy, error=error))
            continue
        schedule = with_labels(plan.schedule, plan.model, model)
        found.append(replace(plan, model=model, schedule=schedule, train_samples=samples))
    return tuple(found)


def _checked(plans: Sequence[Plan]) -> list[LeftOutRow]:
    """Look at the model of `plans`: that of a user's own factory, which torch has built already, block by block.

    Returns the rows that ask of a block what it cannot do; raises `InputError` for what none of them can.
    """
    from stanza_sim.execute.train.known import check_trainable

    model, found = plans[0].model, list[LeftOutRow]()
    check_trainable(model)
    shipped = {source.factory for source in (*SOURCES.values(), *WIDE.values())}
    if "torch" in sys.modules and model.factory not in shipped:
        from stanza_sim.execute.train.early import check_blocks

        check_blocks(model)
        for plan in plans:
            try:
                check_blocks(model, plan.schedule)
            except InputError as error:
                found.append(LeftOutRow(entry=plan.entry, strategy=plan.strategy, error=error))
    return found


def _with_labels(loaded: Loaded[Experiment], plans: Sequence[Plan], say: Say) -> tuple[ModelProfile, int | None]:
    """The model of `plans` with the labels that its data has, and how many samples are trained on, if that is known."""
    from stanza_sim.execute.train.known import shipped_labels

    experiment, model = loaded.value, plans[0].model
    training = training_of(experiment)
    loss = None if training.loss is None else Loss(training.loss)
    labels = shipped_labels(training.data, model, loss)
    if labels is not None:
        return _stating(model, labels), DIGITS if training.data == "digits" else None
    from stanza_sim.execute.train import data, early

    items = data.raw(training.data, model, experiment.seed)
    model = _stating(model, early.labels_in(training.data, items, model, loss))
    batches = [plan.schedule.global_batch for plan in plans]
    train, held_out = data.divide(training.data, len(items), experiment.seed)
    if not held_out and (training.evaluate is not None or training.target is not None):
        raise InputError(f"has {len(items)} samples, too few to hold out some", hint="leave evaluate and target out")
    iterations = length_of(training, max(batches), len(train)).iterations
    for note in early.look_at(training.data, items, model, batches, iterations, experiment.seed):
        say(f"note: {note}")
    return model, len(train)


def _stating(model: ModelProfile, labels: Labels) -> ModelProfile:
    return model if model.labels == labels else replace(model, stated_labels=labels)
