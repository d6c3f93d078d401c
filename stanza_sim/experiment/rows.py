"""What an experiment file names: the cluster, the schedule of every model and strategy, and measured profiles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from stanza_sim import strategies
from stanza_sim.base import config
from stanza_sim.base.config import Loaded
from stanza_sim.base.errors import InputError, ScheduleError, at
from stanza_sim.base.telling import Say
from stanza_sim.cluster import Cluster, load_cluster
from stanza_sim.cluster.hosts import with_nccl
from stanza_sim.cluster.load import NoNetworkError
from stanza_sim.experiment.file import Experiment, ModelEntry, StrategyEntry
from stanza_sim.model.decay import without_decay
from stanza_sim.model.labels import Loss, usual_labels
from stanza_sim.model.profile import ModelProfile, Throughput, scaled
from stanza_sim.model.zoo import load_model
from stanza_sim.profiles.blocks import Profile, differences, require
from stanza_sim.profiles.network import NetworkProfile, read_either
from stanza_sim.schedule import Schedule
from stanza_sim.simulate.costs import pass_times
from stanza_sim.simulate.throughput import check_throughput


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One row to be: a strategy of the experiment for one of its models, and the schedule that it builds.

    `train_samples` are those that an epoch has, where the data is known.
    """

    entry: ModelEntry
    strategy: StrategyEntry
    model: ModelProfile
    batch_per_worker: int
    schedule: Schedule
    train_samples: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOutRow:
    """A row that is not possible here, and the `error` that says why."""

    entry: ModelEntry
    strategy: StrategyEntry
    error: InputError


@contextmanager
def _placed(where: str) -> Iterator[None]:
    """Let errors within name the key of the experiment file that led to them."""
    # Where a strategy built what is not legal, no key of the file is at fault.
    with at(where, outer=True, but=(ScheduleError,)):
        yield


def cluster_of(loaded: Loaded[Experiment], say: Say = lambda text: None) -> Cluster:
    """Load the experiment's cluster with `nodes` and `network.rate` applied. Raises `InputError`.

    A rate for one host, which has no network, is said to be of no use.
    """
    experiment, source = loaded.value, loaded.source
    with _placed(source.where("cluster")):
        path = config.find("topologies", experiment.cluster, beside=loaded.path)
    changed = [source.where(*key) for key in (("nodes",), ("network", "rate")) if key[0] in experiment.model_fields_set]
    beside = loaded.path
    with _placed(changed[0] if changed else source.where("cluster")):
        try:
            cluster = load_cluster(path, nodes=experiment.nodes, rate_Bps=experiment.network.rate, experiment=beside)
        except NoNetworkError as error:
            say(f"note: {source.where('network', 'rate')}: {error.message.partition(': ')[2]}, so it changes nothing")
            cluster = load_cluster(path, nodes=experiment.nodes, experiment=beside)
    if experiment.network.nccl is None:
        return cluster
    with _placed(source.where("network", "nccl")):
        return with_nccl(cluster, experiment.network.nccl, beside=loaded.path)


def plans_of(
    loaded: Loaded[Experiment], cluster: Cluster, *, model: str | None = None, strategy: str | None = None
) -> tuple[Plan, ...]:
    """Build the schedule of every model and strategy, in the order of the file.

    `model` and `strategy` keep only what is called so (a row's label, or all rows of a strategy). Raises `InputError`
    with the key at fault for a model that cannot be loaded, settings that do not fit, and a name that is not there.
    """
    plans, impossible = possible_plans_of(loaded, cluster, model=model, strategy=strategy)
    if impossible:
        raise impossible[0].error
    return plans


def possible_plans_of(
    loaded: Loaded[Experiment], cluster: Cluster, *, model: str | None = None, strategy: str | None = None
) -> tuple[tuple[Plan, ...], tuple[LeftOutRow, ...]]:
    """As `plans_of`, but a row whose schedule cannot be built leaves the others as they are; these rows come second."""
    experiment, source = loaded.value, loaded.source
    models = [(i, m) for i, m in enumerate(experiment.models) if model in (None, m.title, m.model)]
    chosen = [(j, s) for j, s in enumerate(experiment.strategies) if strategy in (None, s.title, s.strategy)]
    for what, wanted, found, titles in (
        ("model", model, models, [m.title for m in experiment.models]),
        ("strategy", strategy, chosen, [s.title for s in experiment.strategies]),
    ):
        if not found:
            raise InputError(f"{experiment.name} has no {what} {wanted!r}", hint=f"it has: {'; '.join(titles)}")
    plans: list[Plan] = []
    impossible: list[LeftOutRow] = []
    for i, entry in models:
        profile = model_of(loaded, i)
        with _placed(source.where("models", i)):
            check_throughput(profile, cluster)
        with _placed(source.where("training", "optimizer", "no_decay")):
            without_decay(profile, experiment.training.optimizer.no_decay)
        for j, row in chosen:
            try:
                with _placed(source.where("strategies", j)):
                    plans.append(plan_for(loaded, cluster, entry, profile, row))
            except InputError as error:
                impossible.append(LeftOutRow(entry=entry, strategy=row, error=error))
    return tuple(plans), tuple(impossible)


def require_possible(rows: Sequence[object], impossible: Sequence[LeftOutRow]) -> None:
    """Raise `InputError` with the reasons unless some row is possible."""
    if rows or not impossible:
        return
    reasons = dict.fromkeys(one.error.one_line for one in impossible)
    if len(reasons) == 1:
        raise impossible[0].error
    told = [f"{one.entry.title}, {one.strategy.title}: {one.error.one_line}" for one in impossible]
    raise InputError(f"none of {len(told)} rows is possible", hint="\n  ".join(told))


def model_of(loaded: Loaded[Experiment], index: int) -> ModelProfile:
    """Load model number `index` of the experiment, scaled as its entry says. Raises `InputError` with its key."""
    entry = loaded.value.models[index]
    with _placed(loaded.source.where("models", index)):
        profile = load_model(
            entry.model,
            name=entry.title,
            input_shape=entry.input_shape,
            factory_kwargs=entry.factory_kwargs,
            boundary=entry.boundary,
            sequence=entry.sequence,
            vocabulary=entry.vocabulary,
            tied=entry.tied,
        )
        given = (Throughput(device=name, **dict(known)) for name, known in entry.throughput.items())
        profile = replace(profile, throughput=tuple(given))
        if (loss := loaded.value.training.loss) is not None and loss != profile.labels.loss:
            profile = replace(profile, stated_labels=usual_labels(profile.blocks[-1].output_shape, Loss(loss)))
        return scaled(profile, nbytes=entry.scale.bytes, compute=entry.scale.compute)


def plan_for(
    loaded: Loaded[Experiment], cluster: Cluster, entry: ModelEntry, model: ModelProfile, row: StrategyEntry
) -> Plan:
    """Build the schedule of a strategy, of the experiment's or another, for one of its models.

    Raises `InputError` for settings that do not fit the model or the number of ranks.
    """
    batch = loaded.value.batch_of(entry)
    profile = partial(_own_profile, loaded, entry, model)
    optimizer = loaded.value.training.optimizer
    schedule = strategies.build(
        row.strategy,
        model,
        world_size=cluster.world_size,
        batch_per_worker=batch,
        settings=row.settings,
        precision=loaded.value.precision,
        gradients=loaded.value.gradient_wire,
        cluster=cluster,
        times=pass_times(cluster, model, loaded.value.precision, profile, launch=loaded.value.launch),
        accumulation=loaded.value.training.accumulation,
        moments=optimizer.moments,
        clipped=optimizer.clip_norm is not None,
    )
    return Plan(entry=entry, strategy=row, model=model, batch_per_worker=batch, schedule=schedule)


def _own_profile(loaded: Loaded[Experiment], entry: ModelEntry, model: ModelProfile) -> Profile | None:
    """The times of the model's blocks in the profile that the experiment names, if it names one."""
    return known_profiles(loaded, (), {entry.title: model})[0].get(entry.title)


def known_profiles(
    loaded: Loaded[Experiment], paths: Sequence[Path], models: Mapping[str, ModelProfile]
) -> tuple[dict[str, Profile], NetworkProfile | None]:
    """Match profiles of block times to the `models` (by title) that they serve; return them, and that of the network.

    Without `paths` the experiment's own profile is read, if it names one. Raises `InputError` for a profile that serves
    no model, and for a second one of a network.
    """
    experiment = loaded.value
    if experiment.profile is not None and not paths:
        paths = [loaded.path.parent / experiment.profile]
    precision = experiment.precision
    found: dict[str, Profile] = {}
    network: NetworkProfile | None = None

    def served_by(profile: Profile) -> list[str]:
        return [title for title, model in models.items() if not differences(profile, model, precision)]

    for path in paths:
        profile = read_either(path)
        if isinstance(profile, NetworkProfile):
            if network is not None:
                raise InputError("a second profile of a network", where=str(path), hint="give one")
            network = profile
            for timed in profile.models:
                found.update(dict.fromkeys(served_by(timed), timed))
            continue
        if not (serves := served_by(profile)):
            require(profile, next(iter(models.values())), precision, where=str(path))
        found.update(dict.fromkeys(serves, profile))
    return found, network
