"""The executor's side of an experiment: its ranks, and what they are told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from stanza_sim.base.config import Loaded
from stanza_sim.base.errors import InputError, at
from stanza_sim.base.optimizers import OptimizerKind
from stanza_sim.base.precision import FLOAT_BYTES, Precision
from stanza_sim.base.telling import Say
from stanza_sim.cluster import Cluster
from stanza_sim.experiment import file
from stanza_sim.experiment.file import Experiment
from stanza_sim.experiment.loops import NO_FILES, Files, length_of, resumed
from stanza_sim.experiment.rows import Plan
from stanza_sim.profiles.blocks import Profile
from stanza_sim.schedule.progress import Issue
from stanza_sim.simulate.costs import costs_for

if TYPE_CHECKING:  # imported where something is executed
    from stanza_sim.execute import RunJob, Workers


@contextmanager
def open_ranks(
    loaded: Loaded[Experiment], cluster: Cluster, *, testbed: bool = False, say: Say = lambda text: None
) -> Iterator[Workers]:
    """The ranks of `cluster` as the experiment starts them, in a testbed that comes up for them if `testbed`.

    Raises `InputError` and `RunError`.
    """
    from stanza_sim.execute import Backend, ComputeMode, open_workers

    how, bed = loaded.value.execute, None
    if how.compute == "emulated":
        from stanza_sim.experiment.emulation import notes_on

        for note in notes_on(cluster, how.dilate):
            say(f"note: {note}")
    if testbed:
        from stanza_sim.testbed import Testbed

        bed = Testbed(cluster, dilation=how.dilate)
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
            deterministic=how.deterministic,
            backend=Backend(how.backend),
            say=say,
        ) as workers:
            yield workers


def check_precision(loaded: Loaded[Experiment], plans: Sequence[Plan], cluster: Cluster) -> None:
    """Raise `InputError` for a precision in which no device of `cluster` can train, whatever its GPUs turn out to be.

    Once ranks are up, `stanza_sim.execute.start.start.check_precision` looks at each of them.
    """
    from stanza_sim.execute.rank.supported import supported, unsupported

    precision, where = loaded.value.precision, loaded.source.where("precision")
    kind = "cuda" if any(cluster.host_of(r).devices for r in range(cluster.world_size)) else "cpu"
    if (reason := unsupported(precision, kind, None)) is not None:
        raise InputError(
            f"ranks on the cores of {cluster.name} cannot train in {precision}: {reason}",
            where=where,
            hint=f"set precision to {' or '.join(supported(kind, None))}, or emulate with --compute emulated",
        )
    for plan in plans:
        if precision is not Precision.FP32 and plan.model.itemsize != FLOAT_BYTES:
            what = f"model {plan.entry.title} has elements of {plan.model.itemsize} bytes, {precision} is for float32"
            raise InputError(what, where=where, hint="set precision: fp32, which is the model's own type")


DILATED_ITERATIONS, DILATED_WARMUP = 4, 1
"""What runs where time is dilated, unless an experiment says how much does: each iteration takes long, and is close to
the others."""


def training_of(experiment: Experiment) -> file.Training:
    """How many iterations are run, and of what kind."""
    stated = experiment.training
    if experiment.execute.dilate == 1 or stated.model_fields_set & {"iterations", "warmup"}:
        return stated
    return stated.model_copy(update={"iterations": DILATED_ITERATIONS, "warmup": DILATED_WARMUP})


def jobs_of(
    loaded: Loaded[Experiment],
    plans: Sequence[Plan],
    cluster: Cluster,
    known: dict[str, Profile],
    *,
    testbed: bool = False,
    files: Files = NO_FILES,
) -> list[RunJob]:
    """What the executor is told, by plan; `known` are the profiles by model. Raises `InputError` for what cannot run.

    `files` are where trainings are saved, and what they go on from. In a testbed ranks that only wait run under
    real-time scheduling, unless the experiment says whether they do.
    """
    from stanza_sim.execute import Backend, Emulation, LearningRate, Optimizer, RunJob, Target, Training
    from stanza_sim.execute.start.start import check_optimizer
    from stanza_sim.experiment.emulation import check_dilated

    check_dilated(loaded, testbed=testbed)
    experiment, training = loaded.value, training_of(loaded.value)
    emulations: list[Emulation | None] = [None] * len(plans)
    if experiment.execute.compute == "emulated":
        from stanza_sim.experiment.emulation import check_emulated, emulation_of

        check_emulated(cluster, loaded)
        how = experiment.execute
        realtime = how.realtime if "realtime" in how.model_fields_set else testbed
        for i, plan in enumerate(plans):
            costs = costs_for(
                cluster,
                plan.model,
                experiment.precision,
                known.get(plan.entry.title),
                launch=experiment.launch,
                moments=plan.schedule.moments,
            )
            emulations[i] = emulation_of(plan, cluster, costs, realtime=realtime, dilation=how.dilate)
    else:
        check_precision(loaded, plans, cluster)
    optimizer, target = training.optimizer, training.target
    files.check(plans, emulated=experiment.execute.compute == "emulated")
    lengths = []
    for plan in plans:
        with at(loaded.source.where("training"), outer=True):
            lengths.append(length_of(training, plan.schedule.global_batch, plan.train_samples))
    jobs = [
        RunJob(
            schedule=plan.schedule,
            model=plan.model,
            training=Training(
                iterations=length.iterations,
                warmup=length.warmup,
                evaluate=length.evaluate,
                target=None if target is None else Target(**target.model_dump()),
                optimizer=Optimizer(
                    kind=OptimizerKind(optimizer.kind),
                    **optimizer.settings,
                    no_decay=optimizer.no_decay,
                    clip_norm=optimizer.clip_norm,
                    schedule=LearningRate(**optimizer.schedule.model_dump()),
                ),
                data=training.data,
                seed=experiment.seed,
            ),
            backend=Backend(experiment.execute.backend),
            issue=Issue(experiment.execute.issue),
            timeout_s=experiment.execute.timeout * experiment.execute.dilate,
            deterministic=experiment.execute.deterministic,
            emulation=emulation,
            precision=experiment.precision,
            loss_scale=training.loss_scale,
            save=files.of(plan, files.save),
            resume=files.of(plan, files.resume),
        )
        for plan, emulation, length in zip(plans, emulations, lengths, strict=True)
    ]
    for job in jobs:
        check_optimizer(job)
    return [resumed(job) if job.resume is not None else job for job in jobs]
