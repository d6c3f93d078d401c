"""One point of a sweep: the rows of the experiment with these keys set. What cannot be built there is said, not raised.

A point is loaded where the experiment's files are and predicted anywhere: `Ready` has all that a prediction needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stanza_sim.base.config import Loaded
from stanza_sim.base.errors import InputError
from stanza_sim.cluster import Cluster
from stanza_sim.experiment.file import Experiment, load_experiment
from stanza_sim.experiment.rows import cluster_of, known_profiles, model_of, plan_for
from stanza_sim.experiment.scenario import Conditions
from stanza_sim.model.profile import ModelProfile
from stanza_sim.profiles.blocks import Profile
from stanza_sim.profiles.network import NetworkProfile, mismatches, with_network

BETWEEN = "; "
"""Between two warnings of a line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepRow:
    """One row at one point. A row that is not `feasible` has a `reason` and no figures; sizes in bytes, times in s.

    `warnings` is what its network profile does not fit, joined by `BETWEEN`.
    """

    model: str
    label: str
    strategy: str
    nodes: int | None = None
    batch_per_worker: int | None = None
    samples_per_s: float | None = None
    iteration_s: float | None = None
    exposed_comm_s: float | None = None
    bound_s: float | None = None
    sent_bytes: int | None = None
    bottleneck: str = ""
    cost_source: str = ""
    schedule_hash: str = ""
    warnings: str = ""
    reason: str = ""

    @property
    def feasible(self) -> bool:
        """Whether the row can be built at its point."""
        return self.samples_per_s is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to be predicted: an experiment with `overrides`; if given, only rows of this model, of these labels."""

    experiment: str
    overrides: tuple[str, ...]
    profiles: tuple[Path, ...] = ()
    model: str | None = None
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A request whose files have been read. `reason` says why there is no cluster, no model."""

    request: Request
    loaded: Loaded[Experiment]
    cluster: Cluster | None
    models: Mapping[str, ModelProfile]
    known: Mapping[str, Profile]
    network: NetworkProfile | None
    reason: str = ""


def ready(request: Request) -> Ready | tuple[SweepRow, ...]:
    """Read what a request needs; where even that fails, its lines, as far as the experiment without it names them."""
    try:
        loaded = load_experiment(request.experiment, request.overrides)
    except InputError as error:
        return (SweepRow(model=request.model or "", label="", strategy="", reason=error.one_line),)
    experiment = loaded.value
    try:
        cluster = cluster_of(loaded)
        every = {entry.title: model_of(loaded, i) for i, entry in enumerate(experiment.models)}
        known, network = known_profiles(loaded, request.profiles, every)
        models = {title: model for title, model in every.items() if request.model in (None, title)}
    except InputError as error:
        return Ready(
            request=request, loaded=loaded, cluster=None, models={}, known={}, network=None, reason=error.one_line
        )
    return Ready(request=request, loaded=loaded, cluster=cluster, models=models, known=known, network=network)


def predicted(point: Ready) -> tuple[SweepRow, ...]:
    """Predict every row of a point."""
    experiment, cluster, request = point.loaded.value, point.cluster, point.request
    warnings = ""
    if cluster is not None and point.network is not None:
        warnings = BETWEEN.join(mismatches(point.network, cluster))
        cluster = with_network(cluster, point.network)
    lines: list[SweepRow] = []
    for entry in experiment.models:
        if request.model not in (None, entry.title):
            continue
        for row in experiment.strategies:
            if request.labels is not None and row.title not in request.labels:
                continue
            bare = SweepRow(
                model=entry.title,
                label=row.title,
                strategy=row.strategy,
                nodes=None if cluster is None else cluster.nodes,
                batch_per_worker=experiment.batch_of(entry),
                reason=point.reason,
            )
            if cluster is None:
                lines.append(bare)
                continue
            try:
                plan = plan_for(point.loaded, cluster, entry, point.models[entry.title], row)
                conditions = Conditions(loaded=point.loaded, cluster=cluster, network=point.network)
                found = conditions.scenario(plan, point.known.get(entry.title)).predict()
            except InputError as error:
                lines.append(replace(bare, reason=error.one_line))
                continue
            alike = found.timeline.multiplicity
            lines.append(
                replace(
                    bare,
                    samples_per_s=found.samples_per_s,
                    iteration_s=found.iteration_s,
                    exposed_comm_s=found.exposed_comm_s,
                    bound_s=found.bound_s,
                    sent_bytes=sum(n * alike.get(rank, 1) for rank, n in found.sent_bytes.items()),
                    bottleneck=found.bottleneck,
                    cost_source=found.cost_source,
                    schedule_hash=plan.schedule.digest(),
                    warnings=warnings,
                )
            )
    return tuple(lines)


def lines_of(request: Request) -> tuple[SweepRow, ...]:
    """Read and predict a point in one go, where the experiment's files are."""
    point = ready(request)
    return predicted(point) if isinstance(point, Ready) else point


def best_of(lines: Sequence[SweepRow], model: str) -> SweepRow | None:
    """The row of a model with most samples per second, then fewest bytes, then the first; None if none is feasible."""
    mine = [line for line in lines if line.model == model and line.samples_per_s is not None]
    return min(mine, key=lambda line: (-(line.samples_per_s or 0.0), line.sent_bytes or 0), default=None)
