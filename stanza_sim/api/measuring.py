"""Measurements: schedules executed for real, and networks calibrated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from stanza_sim.api import _assemble
from stanza_sim.api._arguments import expect, one_path, paths, placed
from stanza_sim.api.schedules import USE_CLUSTER, ModelSchedule, agreed_precision, check_agreed, of_model
from stanza_sim.base.tables import shortened
from stanza_sim.base.telling import Say
from stanza_sim.base.units import format_time
from stanza_sim.cluster.cluster import Cluster
from stanza_sim.execute.rank.job import Measurement as Measured
from stanza_sim.experiment.loops import Files
from stanza_sim.model.profile import ModelProfile
from stanza_sim.profiles.network import NetworkProfile
from stanza_sim.schedule import Compute, Schedule, Wire


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Measurement(Measured):
    """What a run of a `schedule` on a `cluster` measured. Times in seconds.

    `iteration_s` is the median over iterations, `iteration_s_min` and `iteration_s_max` their spread, `samples_per_s`
    that of all ranks; `losses` by iteration, and `scores` of held-out samples, are there where it trained. `timeline`
    has the spans.
    """

    schedule: ModelSchedule
    cluster: Cluster

    @property
    def label(self) -> str:
        """What tables call it."""
        return self.schedule.title

    @property
    def model(self) -> ModelProfile:
        """The model that was trained."""
        return self.schedule.profile

    def __repr__(self) -> str:
        speed = f"{format_time(self.iteration_s)} an iteration, {self.samples_per_s:,.4g} samples/s"
        return f"<Measurement of {shortened(self.label)}: {speed}, {self.compute} compute>"


def measure(
    schedule: Schedule,
    cluster: Cluster,
    *,
    data: str = "synthetic",
    loss: Literal["cross_entropy", "mse", "bce"] | None = None,
    model: ModelProfile | None = None,
    iterations: int | None = None,
    warmup: int | None = None,
    epochs: float | None = None,
    evaluate: Mapping[str, object] | None = None,
    target: Mapping[str, object] | None = None,
    save: str | Path | None = None,
    resume: str | Path | None = None,
    optimizer: str | Mapping[str, object] | None = None,
    precision: str | None = None,
    loss_scale: float | None = None,
    seed: int = 1,
    compute: Literal["real", "emulated"] = "real",
    testbed: bool = False,
    dilate: float = 1.0,
    backend: Literal["auto", "gloo", "nccl"] = "auto",
    issue: Literal["auto", "eager", "in_order"] = "auto",
    threads_per_rank: int = 1,
    deterministic: bool = False,
    timeout: str | float = "60s",
    profiles: str | Path | Sequence[str | Path] = (),
    say: Say = lambda text: None,
) -> Measurement:
    """Execute a schedule on the ranks of `cluster` and return what that measured.

    Ranks are processes of this machine, those of the launcher that started this process (torchrun, Slurm), or with
    `testbed` they run in an emulated network (root). They train on `data` ("synthetic", "digits", or the import
    path of a Dataset); with `compute="emulated"` each computation is a wait of its predicted time instead.
    `iterations` (60) include `warmup` (10), which is not timed; or they are those of so many `epochs`. Held-out samples
    are looked at as `evaluate` says, such as {"epochs": 1}, and training ends once they reach the `target`, such as
    {"accuracy": 0.9} or {"perplexity": 20}. The trained parameters go to the file `save` as a `state_dict`, and what
    it takes to `resume` from that file, bitwise as if it had not stopped, beside it. The `loss` is what the labels ask
    for unless it is given. With `dilate`, for emulated computations in a testbed, links are so many times slower,
    computations as much longer, and measured times divided by it. `optimizer`, as in
    a file, such as {"lr": 0.02}, and `precision` are by default those for which the schedule was built; where anything
    is in fp16 the loss is multiplied by `loss_scale`. With `deterministic` repeats are bitwise equal on GPUs too.
    `timeout` is how long a rank may stay silent, in seconds or as "60s"; it is dilated too. Raises `InputError` for
    what does not fit this machine, and `RunError` if a rank fails.

    >>> import stanza_sim as ss
    >>> here = ss.load_cluster("laptop", nodes=2)
    >>> model = ss.load_model("alexnet")
    >>> schedule = ss.build_schedule("all_reduce", model, here, batch_per_worker=32)
    >>> ss.measure(schedule, here, iterations=1)
    Traceback (most recent call last):
    stanza_sim.base.errors.InputError: measure: 1 iterations with 10 of warm-up leave fewer than two to time
      raise `iterations` or lower `warmup`
    """
    name = "measure"
    with placed(name):
        known = of_model(schedule, model, name)
        training = {
            "iterations": iterations,
            "warmup": warmup,
            "epochs": epochs,
            "evaluate": evaluate,
            "target": target,
            "data": data,
            "loss": loss,
            "optimizer": known.optimizer.model_dump(exclude_unset=True)
            if optimizer is None and known.optimizer
            else optimizer,
            "loss_scale": loss_scale,
        }
        execute = {
            "compute": compute,
            "backend": backend,
            "issue": issue,
            "threads_per_rank": threads_per_rank,
            "deterministic": deterministic,
            "timeout": timeout,
            "dilate": dilate,
        }
        keys = {
            "seed": seed,
            "precision": agreed_precision(known, precision),
            "training": {key: value for key, value in training.items() if value is not None},
            "execute": execute,
        }
        if loss_scale is not None and any(not isinstance(op, Compute) and op.wire is Wire.FP16 for op in known.ops):
            keys["gradients"] = "fp16"  # something travels in fp16, so the scale has a use
        loaded = _assemble.experiment_of(name, keys, within=("training", "execute"))
        check_agreed(known, loaded.value.precision, name)
        given = paths(profiles, name, "profiles")
        made = _assemble.setup(name, cluster, known.profile, loaded, profiles=given, say=say)
        files = Files(save=one_path(save, name, "save"), resume=one_path(resume, name, "resume"))
        found = _assemble.measured(known, made, testbed=testbed, files=files, say=say)
    return knowing(found, known, cluster)


def knowing(found: Measured, schedule: ModelSchedule, cluster: Cluster) -> Measurement:
    """A measurement that knows what was run, and where."""
    parts = {field.name: getattr(found, field.name) for field in fields(Measured)}
    return Measurement(**parts, schedule=schedule, cluster=cluster)


def calibrate(
    cluster: Cluster,
    *,
    models: Sequence[ModelProfile] = (),
    batch: int = 32,
    testbed: bool = False,
    realtime: bool | None = None,
    output: str | Path | None = None,
    say: Say = lambda text: None,
) -> NetworkProfile:
    """Measure single messages between the ranks of `cluster`, the sharing of cores, and the blocks of `models`.

    These are timed with `batch` samples. Ranks are those of `measure`; with `testbed` their network is emulated (root),
    and then ranks run under real-time scheduling unless `realtime` says otherwise. The profile, which goes into the
    file `output` if given, is for `predict(..., profiles=output)`. Raises `InputError` and `RunError`.

    >>> import stanza_sim as ss
    >>> profile = ss.calibrate(ss.load_cluster("laptop", nodes=2), output="here.json")  # doctest: +SKIP
    """
    from stanza_sim.base.files import check_target
    from stanza_sim.experiment.calibration import calibrate_cluster
    from stanza_sim.profiles.network import write_network

    name = "calibrate"
    with placed(name):
        if output is not None:
            check_target(Path(output))
        found, is_main = calibrate_cluster(
            expect(cluster, Cluster, name, "cluster", USE_CLUSTER),
            [(model, batch) for model in models],
            testbed=testbed,
            realtime=testbed if realtime is None else realtime,
            say=say,
        )
        if output is not None and is_main:
            write_network(found, Path(output))
    return found
