"""What the self-test and the tests train: a tiny model, variants of strategies, and what each must equal.

A variant is (id, strategy, world size, settings).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from stanza_sim import strategies
from stanza_sim.base.precision import Precision
from stanza_sim.cluster.cluster import Host, Nic, star
from stanza_sim.execute.rank.job import LearningRate, Optimizer, RunJob, Training
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Collective, Schedule, Transfer, Wire, check
from stanza_sim.schedule.collectives import collective_bytes

Variant = tuple[str, str, int, dict[str, object]]

PS, AR, ST = "parameter_server", "all_reduce", "stanza"
CHOSEN: tuple[Variant, ...] = (
    ("ps-1", PS, 4, {"servers": 1, "overlap": False}),
    ("ps-1-overlap", PS, 4, {"servers": 1}),
    ("colocated-cut", PS, 4, {"placement": "colocated", "assignment": "cut"}),
    ("ps-2-byteps-credit", PS, 5, {"servers": 2, "assignment": "byteps", "partition": "2kB", "credit": 2}),
    ("colocated-sliced", PS, 4, {"placement": "colocated", "assignment": "sliced", "slice": 300}),
    ("ps-2-cut-credit", PS, 4, {"servers": 2, "assignment": "cut", "credit": 1}),
    ("colocated-cut-by-host", PS, 4, {"placement": "colocated", "assignment": "cut", "local": 2}),
    ("all-reduce", AR, 4, {}),
    ("stanza-1", ST, 4, {}),
    ("stanza-2", ST, 4, {"fc_workers": 2}),
    ("stanza-2-sliced", ST, 4, {"fc_workers": 2, "fc_parallel": "model"}),
    ("stanza-2-sliced-microbatches", ST, 4, {"fc_workers": 2, "fc_parallel": "model", "microbatches": 3}),
    ("head", "sharded_head", 4, {}),
)
"""The variants of the self-test; the tests have more."""
TRAINED = ("ps-1", "all-reduce", "stanza-2-sliced")
"""Those that are trained on cores without a stand-in."""
ON_STANDIN = ("ps-1", "stanza-1", "stanza-2-sliced", "head", "all-reduce", "colocated-cut", "ps-2-byteps-credit")
"""Those that are trained on imitated GPUs."""
ON_ONE_GPU = tuple(name for name, _, world, _ in CHOSEN if world <= 4)
"""The twelve that four ranks train on one GPU."""
TOLERANCE = 1e-4
"""How far parameters may be from those of SGD, relative to how far they have moved: sums have several orders."""
TRAINING = Training(
    iterations=5,
    warmup=1,
    data="digits",
    seed=3,
    optimizer=Optimizer(lr=0.1, momentum=0.9, weight_decay=5e-3, schedule=LearningRate(kind="cosine", warmup=2)),
)


def tiny() -> ModelProfile:
    """The model of 4,546 parameters; needs torch."""
    from stanza_sim.model.extract import extract

    return extract("stanza_sim.model.examples:tiny_cnn", name="tiny", input_shape=(1, 8, 8))


def chosen(name: str) -> Variant:
    """The variant of the self-test that is called `name`."""
    return next(v for v in CHOSEN if v[0] == name)


def schedule_of(
    model: ModelProfile,
    strategy: str,
    world: int,
    settings: dict[str, object],
    *,
    batch_per_worker: int = 6,
    precision: Precision = Precision.FP32,
    gradients: Wire = Wire.NATIVE,
    accumulation: int = 1,
) -> Schedule:
    """The schedule of a variant, checked; a setting `on` names hosts `node-0` and so on, one for each rank."""
    hosts = (Host(name=f"node-{i}", cores=1, nic=Nic(bandwidth_Bps=1e9)) for i in range(world))
    made = strategies.build(
        strategy,
        model,
        world_size=world,
        batch_per_worker=batch_per_worker,
        settings=strategies.get(strategy).Settings.model_validate(settings),
        precision=precision,
        gradients=gradients,
        cluster=star(hosts) if "on" in settings else None,
        accumulation=accumulation,
    )
    check(made, model)
    return made


def job_of(model: ModelProfile, schedule: Schedule, **changes: Any) -> RunJob:
    """The job that trains a variant."""
    job = RunJob(schedule=schedule, model=model, training=TRAINING, timeout_s=15, keep_parameters=True)
    return replace(job, **changes)


def expected_bytes(schedule: Schedule, iterations: int) -> tuple[list[int], list[int]]:
    """Bytes that each rank sends and receives in so many iterations."""
    sent, received = [0] * schedule.world_size, [0] * schedule.world_size
    for op in schedule.ops:
        if isinstance(op, Transfer):
            for s, d in schedule.pairs(op):
                sent[s] += schedule.message_bytes(op, s, d)
                received[d] += schedule.message_bytes(op, s, d)
        elif isinstance(op, Collective):
            for r in schedule.group(op.ranks):
                out, back = collective_bytes(op, schedule.group(op.ranks), r, schedule.itemsize_of(op))
                sent[r] += out
                received[r] += back
    return [n * iterations for n in sent], [n * iterations for n in received]
