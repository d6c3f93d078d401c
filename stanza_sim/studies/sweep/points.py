"""One point of a sweep: the rows of the experiment with these keys set. What cannot be built there is said, not raised.

A point is loaded where the experiment's files are and predicted anywhere: `Ready` has all that a prediction needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from stanza_sim.base.config import Loaded
from stanza_sim.base.errors import InputError
from stanza_sim.cluster import Cluster
from stanza_sim.experiment.file import Experiment, load_experiment
from stanza_sim.experiment.rows import cluster_of, known_profiles, model_of, plan_for
from stanza_sim.experiment.scenario import Conditions, Scenario
from stanza_sim.experiment.worth import flops_utilisation
from stanza_sim.model.profile import ModelProfile
from stanza_sim.profiles.blocks import Profile
from stanza_sim.profiles.network import NetworkProfile, mismatches, with_network
from stanza_sim.simulate import Prediction
from stanza_sim.simulate.residual import OPPOSITE, SAME, Corner, Spread, ties

BETWEEN = "; "
"""Between two warnings of a line, and between two labels."""
CONTENDERS = 3
"""So many rows of a model at a point are also predicted with costs that are off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepRow:
    """One row at one point. A row that is not `feasible` has a `reason` and no figures; sizes in bytes, times in s.

    `warnings` is what its network profile does not fit, joined by `BETWEEN`. The best row of a model, and at most
    `CONTENDERS` - 1 others that could overtake it, have `samples_per_s_low` and `_high`, with costs that are off as far
    as `basis` says, and `tied_with`, the labels of those from which it cannot be told apart then. `spread` is what
    these were found from; no file keeps it.
    """

    model: str
    label: str
    strategy: str
    nodes: int | None = None
    batch_per_worker: int | None = None
    samples_per_s: float | None = None
    samples_per_s_low: float | None = None
    samples_per_s_high: float | None = None
    tokens_per_s: float | None = None
    mfu: float | None = None
    tied_with: str = ""
    iteration_s: float | None = None
    exposed_comm_s: float | None = None
    bound_s: float | None = None
    sent_bytes: int | None = None
    bottleneck: str = ""
    cost_source: str = ""
    basis: str = ""
    schedule_hash: str = ""
    warnings: str = ""
    reason: str = ""
    spread: Spread | None = None

    @property
    def feasible(self) -> bool:
        """Whether the row can be built at its point."""
        return self.samples_per_s is not None


class Spreads(Enum):
    """Which rows of a point are also predicted with costs that are off: the best ones, all of them, none."""

    CONTENDERS = "contenders"
    ALL = "all"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to be predicted: an experiment with `overrides`; if given, only rows of this model, of these labels.

    `spreads` says which rows are also predicted with costs that are off.
    """

    experiment: str
    overrides: tuple[str, ...]
    profiles: tuple[Path, ...] = ()
    model: str | None = None
    labels: tuple[str, ...] | None = None
    spreads: Spreads = Spreads.CONTENDERS


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
        begin = len(lines)
        made: dict[int, tuple[Scenario, Prediction]] = {}
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
                conditions = Conditions(loaded=point.loaded, cluster=cluster, network=point.network, names_rate=False)
                scenario = conditions.scenario(plan, point.known.get(entry.title))
                found = scenario.predict()
            except InputError as error:
                lines.append(replace(bare, reason=error.one_line))
                continue
            alike = found.timeline.multiplicity
            model, tokens = plan.model, plan.model.sample_tokens
            made[len(lines)] = scenario, found
            lines.append(
                replace(
                    bare,
                    samples_per_s=found.samples_per_s,
                    tokens_per_s=None if tokens is None else found.samples_per_s * tokens,
                    mfu=flops_utilisation(plan.schedule, model, cluster, experiment.precision, found.samples_per_s),
                    iteration_s=found.iteration_s,
                    exposed_comm_s=found.exposed_comm_s,
                    bound_s=found.bound_s,
                    sent_bytes=sum(n * alike.get(rank, 1) for rank, n in found.sent_bytes.items()),
                    bottleneck=found.bottleneck,
                    cost_source=found.cost_source,
                    basis=found.basis,
                    schedule_hash=plan.schedule.digest(),
                    warnings=warnings,
                )
            )
        lines[begin:] = _with_spreads(lines[begin:], {i - begin: two for i, two in made.items()}, request.spreads)
    return tuple(lines)


def _with_spreads(
    lines: Sequence[SweepRow], made: Mapping[int, tuple[Scenario, Prediction]], which: Spreads
) -> list[SweepRow]:
    """The rows of a model at a point, with `which` of them also predicted with costs that are off."""
    if which is Spreads.NONE or not made:
        return list(lines)
    ranked = sorted(made, key=lambda i: -made[i][1].samples_per_s)
    if which is Spreads.CONTENDERS:
        scenario, best = made[ranked[0]]
        least = best.samples_per_s / scenario.most_reversed / (1 + SAME)
        ranked = [i for i in ranked if made[i][1].samples_per_s >= least][:CONTENDERS]
    corners = OPPOSITE if which is Spreads.ALL else tuple(Corner)
    found = {i: made[i][0].spread(made[i][1], corners=corners) for i in ranked}
    result = list(lines)
    for i, others in zip(ranked, ties([found[i] for i in ranked]), strict=True):
        spread = found[i]
        result[i] = replace(
            lines[i],
            samples_per_s_low=None if spread is None else spread.low,
            samples_per_s_high=None if spread is None else spread.high,
            tied_with=BETWEEN.join(lines[ranked[j]].label for j in others),
            spread=spread,
        )
    return result


def lines_of(request: Request) -> tuple[SweepRow, ...]:
    """Read and predict a point in one go, where the experiment's files are."""
    point = ready(request)
    return predicted(point) if isinstance(point, Ready) else point


def best_of(lines: Sequence[SweepRow], model: str) -> SweepRow | None:
    """The row of a model with most samples per second, then fewest bytes, then the first; None if none is feasible."""
    mine = [line for line in lines if line.model == model and line.samples_per_s is not None]
    return min(mine, key=lambda line: (-(line.samples_per_s or 0.0), line.sent_bytes or 0), default=None)
