"""Clusters, models and devices: loaded by name or path, or given in code; what there is of each, and how it looks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from warnings import warn

from pydantic import Field

from stanza_sim.api._arguments import arguments, checked, placed
from stanza_sim.base import config
from stanza_sim.base.config import Count, Factor, Section
from stanza_sim.base.errors import InputError
from stanza_sim.base.units import Rate
from stanza_sim.cluster.cluster import Cluster
from stanza_sim.cluster.device import DeviceSpec
from stanza_sim.cluster.hosts import with_nccl
from stanza_sim.model.profile import ModelProfile, Throughput
from stanza_sim.schedule import Schedule

if TYPE_CHECKING:
    from rich.console import Console

    from stanza_sim.simulate.prediction import Prediction

Scalar = str | int | float | bool | None
Listed = Literal["clusters", "devices", "experiments", "models", "strategies", "suites"]


class _ClusterArguments(Section):
    nodes: Count | None = None
    rate: Rate | None = None


class _Throughput(Section):
    samples_per_s: Factor
    batch: Count


class _ModelArguments(Section):
    name: str | None = None
    input_shape: tuple[Count, ...] | dict[str, tuple[Count, ...]] | None = None
    factory_kwargs: dict[str, Scalar] | None = None
    boundary: str | int | None = None
    sequence: Count | None = None
    vocabulary: Count | None = None
    tied: bool | None = Field(None, strict=True)
    throughput: dict[str, _Throughput] = Field(default_factory=dict)


def load_cluster(
    cluster: str | Path | Mapping[str, object],
    *,
    nodes: int | None = None,
    rate: str | float | None = None,
    nccl: str | Path | None = None,
) -> Cluster:
    """Return a cluster: a topology by name, by the path of its file, or as a mapping of what its file would say.

    `nodes` is the number of nodes and `rate` the rate of every NIC ("25Gbps", or bytes per second), where the topology
    is to have others. `nccl` is what NCCL reaches there: the name of a platform, or the path of a file that
    `stanza-sim import nccl-tests` wrote. Raises `InputError` for a topology that is not there or is wrong, and for
    values that it cannot take; a rate where there is one host warns.

    >>> import stanza_sim as ss
    >>> ss.load_cluster("star", nodes=4, rate="10Gbps")
    <Cluster star: 4 ranks on 4 hosts, 8 links>
    >>> nodes = {"name": "node", "count": 2, "cores": 8, "nic": {"rate": "1Gbps", "latency": "20us"}}
    >>> ss.load_cluster({"name": "two", "hosts": [nodes], "switches": [{"name": "switch"}]})
    <Cluster two: 2 ranks on 2 hosts, 4 links>
    """
    from stanza_sim.cluster import load
    from stanza_sim.cluster.topology import TopologySection

    with placed("load_cluster"):
        given = checked("load_cluster", _ClusterArguments, {"nodes": nodes, "rate": rate})
        if isinstance(cluster, Mapping):
            source = arguments("load_cluster")
            topology = config.validate(dict(cluster), TopologySection, source)
            build = load.Builder(topology=topology, source=source, path=Path("topology.yaml")).build
        else:
            _text(cluster, "load_cluster", "cluster", "should be a name, a path or a mapping")
            path = cluster
            build = lambda nodes, rate_Bps: load.load_cluster(path, nodes=nodes, rate_Bps=rate_Bps)  # noqa: E731
        try:
            found = build(given.nodes, given.rate)
        except load.NoNetworkError:
            warn("load_cluster: rate has no use: there is one host", stacklevel=2)
            found = build(given.nodes, None)
        if nccl is None:
            return found
        _text(nccl, "load_cluster", "nccl", "should be a name or a path")
        return with_nccl(found, nccl)


def load_model(
    model: str,
    *,
    name: str | None = None,
    input_shape: tuple[int, ...] | Mapping[str, tuple[int, ...]] | None = None,
    factory_kwargs: Mapping[str, Scalar] | None = None,
    boundary: int | str | None = None,
    sequence: int | None = None,
    vocabulary: int | None = None,
    tied: bool | None = None,
    throughput: Mapping[str, Mapping[str, float]] | None = None,
) -> ModelProfile:
    """Return a model: a shipped one by name, or what `package.module:factory` builds, an `nn.Module` (needs torch).

    For a factory `input_shape`, the shape of one sample, is needed; a module that takes several tensors needs that of
    each, by the names of forward's arguments. `boundary` is the block at which the FC part begins, by name or index; it
    is found where it is left out. Language models have the `sequence` length in tokens, the `vocabulary` and a head
    that is `tied` to the embedding or not, as published unless given. `throughput` is what single devices are known to
    train, by their names: costs on such a device are scaled to it. Raises `InputError` for what is not there and for
    what cannot be a chain of blocks.

    >>> import stanza_sim as ss
    >>> ss.load_model("alexnet")
    <ModelProfile alexnet: 8 blocks, 61,100,840 parameters>
    >>> ss.load_model("gpt2", sequence=2048, vocabulary=128_000, tied=False)
    <ModelProfile gpt2: 14 blocks, 283,236,864 parameters>
    >>> model = ss.load_model("resnet50", throughput={"V100": {"samples_per_s": 340, "batch": 64}})
    >>> cluster = ss.load_cluster("ec2-p3-10", nodes=1)
    >>> round(ss.predict(ss.build_schedule("local", model, cluster, batch_per_worker=64), cluster).samples_per_s)
    340
    """
    from stanza_sim.model import zoo

    with placed("load_model"):
        _text(model, "load_model", "model", "should be a name or package.module:factory")
        given = checked(
            "load_model",
            _ModelArguments,
            {
                "name": name,
                "input_shape": dict(input_shape) if isinstance(input_shape, Mapping) else input_shape,
                "factory_kwargs": factory_kwargs,
                "boundary": boundary,
                "sequence": sequence,
                "vocabulary": vocabulary,
                "tied": tied,
                "throughput": throughput,
            },
        )
        profile = zoo.load_model(
            str(model),
            name=given.name,
            input_shape=given.input_shape,
            factory_kwargs=given.factory_kwargs,
            boundary=given.boundary,
            sequence=given.sequence,
            vocabulary=given.vocabulary,
            tied=given.tied,
        )
        known = (Throughput(device=device, **dict(stated)) for device, stated in given.throughput.items())
        return replace(profile, throughput=tuple(known))


def load_device(name: str | Path) -> DeviceSpec:
    """Return a device's data by name or path: peaks in FLOP/s, memory in bytes, and fits of its efficiency.

    Raises `InputError` for a device that is not there.

    >>> import stanza_sim as ss
    >>> ss.load_device("V100").memory_nbytes
    16000000000
    """
    from stanza_sim.cluster.device import load_device as load

    with placed("load_device"):
        _text(name, "load_device", "name", "should be a name or a path")
        return load(str(name))


def available(kind: Listed) -> list[str]:
    """Return the names that there are of clusters, devices, experiments, models, strategies or validation suites.

    Raises `InputError` for another kind.

    >>> import stanza_sim as ss
    >>> ss.available("strategies")[:2]
    ['all_reduce', 'fsdp']
    """
    match kind:
        case "models":
            from stanza_sim.model import zoo

            return list(zoo.available())
        case "strategies":
            from stanza_sim import strategies

            return strategies.names()
        case "clusters":
            return config.available(config.Kind.TOPOLOGIES)
        case "devices" | "experiments" | "suites":
            return config.available(kind)
        case _:
            kinds = "clusters, devices, experiments, models, strategies, suites"
            raise InputError(f"is {kind!r:.60}", where="available: kind", hint=f"should be one of {kinds}")


def describe(what: Cluster | ModelProfile | DeviceSpec | Schedule | str) -> str:
    """Return as text what `stanza-sim show` prints of a cluster, a model, a device, a schedule, or a named strategy.

    Raises `InputError` for anything else.

    >>> import stanza_sim as ss
    >>> print(ss.describe("local").splitlines()[0])
    it has no settings
    """
    from stanza_sim.report import describe as report

    if isinstance(what, Schedule):
        return what.text()
    console = keeping_console()
    match what:
        case Cluster():
            report.print_cluster(what, console)
        case ModelProfile():
            report.print_model(what, console)
        case DeviceSpec():
            report.print_device(what, console)
        case str():
            from stanza_sim import strategies

            with placed("describe"):
                report.print_settings(strategies.get(what).Settings, console)
        case _:
            hint = "should be a cluster, a model, a device, a schedule, or the name of a strategy"
            raise InputError(f"is a {type(what).__name__}", where="describe: what", hint=hint)
    return printed(console)


def draw(cluster: Cluster, path: str | Path | None = None, *, prediction: Prediction | None = None) -> str:
    """Return a drawing of a cluster in characters and, if `path` (.png or .svg) is given, draw it there too.

    With a `prediction` it shows how busy each link is. Raises `InputError` for a file of another kind or that cannot be
    written.

    >>> import stanza_sim as ss
    >>> "switch" in ss.draw(ss.load_cluster("star", nodes=2))
    True
    """
    from stanza_sim.report.draw import draw_picture, draw_text

    with placed("draw"):
        if not isinstance(cluster, Cluster):
            raise InputError(f"is a {type(cluster).__name__}", where="draw: cluster", hint="use load_cluster")
        busy = None
        if prediction is not None:
            busy = {link.label: 0.0 for link in cluster.links} | prediction.utilisation
        if path is not None:
            draw_picture(cluster, Path(path), busy)
        return draw_text(cluster, busy)


def _text(value: object, function: str, argument: str, hint: str) -> None:
    if not isinstance(value, str | Path):
        raise InputError(f"is a {type(value).__name__}", where=f"{function}: {argument}", hint=hint)


def keeping_console(width: int = 100) -> Console:
    """A console that keeps what is printed, without colours."""
    from io import StringIO

    from rich.console import Console

    return Console(file=StringIO(), highlight=False, markup=False, width=width, color_system=None)


def printed(console: Console) -> str:
    """What has been printed on a console that keeps it."""
    console.file.seek(0)
    return console.file.read()
