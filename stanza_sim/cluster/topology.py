"""The schema of a topology file: what can be written, with which units, and what a value left out means.

A value that a file leaves out is ideal (no latency, no overhead, efficiency 1); only the loopback has typical values.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from stanza_sim.base.config import Count, Factor, Fraction, Section
from stanza_sim.base.units import PositiveSeconds, Rate, Seconds, Size
from stanza_sim.cluster.hardware import IntraKind, Loopback, RoutingKind

Spread = Annotated[float, Field(strict=True, ge=0, le=0.5)]
"""A standard deviation, relative to the mean."""


Price = Annotated[float, Field(strict=True, ge=0, le=1e9, allow_inf_nan=False)]
"""Dollars."""


def _form(value: object) -> str:
    """Tell a quantity that is one text from one by direction, so that what is wrong with either can be said."""
    return "directions" if isinstance(value, dict | Section) else "one"


class TrafficSection(Section):
    """`background:` of a NIC or link that comes and goes; a bare rate is always there.

    The means of the times that it is there and away go together; `seed` is that of the draws.
    """

    rate: Rate
    on: PositiveSeconds | None = None
    off: PositiveSeconds | None = None
    seed: Annotated[int, Field(strict=True, ge=0)] | None = None


class RateSides(Section):
    """A NIC's rate where its two sides differ."""

    send: Rate
    receive: Rate


class LatencySides(Section):
    """A NIC's latency where its two sides differ."""

    send: Seconds
    receive: Seconds


class RateWays(Section):
    """A link's rate where its two directions differ; forward is from `from` to `to`."""

    forward: Rate
    backward: Rate


class LatencyWays(Section):
    """A link's latency where its two directions differ."""

    forward: Seconds
    backward: Seconds


_One, _Two = Tag("one"), Tag("directions")
SidesRate = Annotated[Annotated[Rate, _One] | Annotated[RateSides, _Two], Discriminator(_form)]
SidesLatency = Annotated[Annotated[Seconds, _One] | Annotated[LatencySides, _Two], Discriminator(_form)]
WaysRate = Annotated[Annotated[Rate, _One] | Annotated[RateWays, _Two], Discriminator(_form)]
Background = Annotated[Annotated[Rate, _One] | Annotated[TrafficSection, _Two], Discriminator(_form)]
WaysLatency = Annotated[Annotated[Seconds, _One] | Annotated[LatencyWays, _Two], Discriminator(_form)]


class Shared(Section):
    """What a link that is shaped, or shared with others, may state beside its rate."""

    background: Background | None = None
    burst: Size | None = None
    peak: Rate | None = None


class TransportKeys(Section):
    """What a NIC may state of its transport; see `stanza_sim.cluster.Transport`. What it states overrides `preset`."""

    preset: str | None = Field(None, min_length=1)
    stream_rate: Rate | None = None
    process_rate: Rate | None = None
    process_inside: bool | None = None
    message_core: Seconds | None = None
    byte_core: Seconds | None = None


class NicSection(Shared, TransportKeys):
    """`nic:` of a host group, or an entry of its `nics:`."""

    rate: SidesRate = Field(description="write the raw rate of the port, such as `rate: 10Gbps`")
    latency: SidesLatency = 0.0
    overhead: Seconds = 0.0
    efficiency: Fraction = 1.0


class LoopbackSection(Section):
    """`loopback:` of a host group; see `stanza_sim.cluster.Loopback`."""

    rate: Rate = Loopback().bandwidth_Bps
    latency: Seconds = Loopback().latency_s
    message_core: Seconds = Loopback().message_core_s
    byte_core: Seconds = Loopback().byte_core_s


_Device = Annotated[int, Field(strict=True, ge=0)]


class IntraSection(Section):
    """`intra:` of a host group; see `stanza_sim.cluster.Intra` and `PcieTree`.

    `switches` lists the devices under each PCIe switch, by number; in its place, `per_switch` is how many devices each
    has, in order. `host_link` is for NVLink hosts.
    """

    kind: IntraKind
    rate: Rate
    latency: Seconds = 0.0
    efficiency: Fraction = 1.0
    switches: Annotated[tuple[Annotated[tuple[_Device, ...], Field(min_length=1)], ...], Field(min_length=1)] | None = (
        None
    )
    per_switch: Count | None = None
    switch_rate: Rate | None = None
    sockets: Count | None = None
    root_rate: Rate | None = None
    socket_rate: Rate | None = None
    host_memory_rate: Rate | None = None
    nics_at: Literal["root", "switch"] | None = None
    host_link: Rate | None = None


class LossesSection(Section):
    """`losses:` of a host group; see `stanza_sim.cluster.Losses`."""

    collective_share: Annotated[float, Field(strict=True, ge=0, lt=1)] = 0.0
    iteration_overhead: Seconds = 0.0
    overhead_per_device: Seconds = 0.0
    barrier: Annotated[bool, Field(strict=True)] = False


class HostSection(Section):
    """An entry of `hosts:`: one host or, with `count`, that many, called `name-0`, `name-1` and so on.

    `nics` is the number of NICs like `nic`, or a list of them in its place. `nccl` names what NCCL reaches there; see
    `stanza_sim.cluster.nccl`.
    """

    name: str = Field(min_length=1)
    count: Count | None = None
    cores: Count | Literal["this-machine"]
    devices: tuple[str, ...] = ()
    device_speed: Factor = 1.0
    device_spread: Spread = 0.0
    nic: NicSection | None = None
    nics: Count | Annotated[tuple[NicSection, ...], Field(min_length=1)] | None = None
    intra: IntraSection | None = None
    staging: StagingSection | None = None
    nccl: str | None = Field(None, min_length=1)
    loopback: LoopbackSection = LoopbackSection()
    reduce_rate: Rate | None = None
    losses: LossesSection = LossesSection()
    price_per_hour: Price | None = Field(None, description="in dollars, such as `price_per_hour: 3.06`")


class StagingSection(Section):
    """`staging:` of a host group; see `stanza_sim.cluster.Staging`."""

    rate: Rate
    latency: Seconds = 0.0


class NicOverride(Shared, TransportKeys):
    """`nic:` of a single host under `overrides:`, for all its NICs; what it leaves out stays."""

    rate: SidesRate | None = None
    latency: SidesLatency | None = None
    overhead: Seconds | None = None
    efficiency: Fraction | None = None


class HostOverride(Section):
    """An entry of `overrides:`; what it leaves out stays."""

    cores: Count | None = None
    devices: tuple[str, ...] | None = None
    device_speed: Factor | None = None
    nic: NicOverride | None = None
    intra: IntraSection | None = None
    staging: StagingSection | None = None
    loopback: LoopbackSection | None = None
    reduce_rate: Rate | None = None
    losses: LossesSection | None = None
    price_per_hour: Price | None = None


class SwitchSection(Section):
    """An entry of `switches:`. `backplane` limits what the switch passes on in total, all ports and directions."""

    name: str = Field(min_length=1)
    backplane: Rate | None = None


class LinkSection(Shared):
    """An entry of `links:`: a host (or host group) to a switch, a switch to a switch, or a host to a host.

    `nic` is the number of the NIC, from 0, of a host with several that the link is for; left out, all of them.
    """

    start: str = Field(alias="from")
    end: str = Field(alias="to")
    rate: WaysRate | None = None
    latency: WaysLatency = 0.0
    efficiency: Fraction = 1.0
    nic: Annotated[int, Field(strict=True, ge=0)] | None = None


class StarFabric(Section):
    """`fabric: {kind: star}`: every host on one switch."""

    kind: Literal["star"]
    backplane: Rate | None = None


class LeafSpineFabric(Shared):
    """`fabric: {kind: leaf-spine}`: hosts on leaves, every leaf joined to every spine.

    A leaf's links up have `rate` each or, instead, the rate at which the NICs below it are `oversubscription` times
    what all its links up carry together. `efficiency` left out is that of the NICs.
    """

    kind: Literal["leaf-spine"]
    leaves: Count
    hosts_per_leaf: Count
    spines: Count
    oversubscription: Factor | None = None
    rate: Rate | None = None
    latency: Seconds = 0.0
    efficiency: Fraction | None = None
    leaf_backplane: Rate | None = None
    spine_backplane: Rate | None = None


class FatTreeFabric(Shared):
    """`fabric: {kind: fat-tree}`: three layers of switches with k ports each, for k³/4 hosts (Al-Fares et al. 2008).

    `rate` left out is that of a host's NICs together, so that nothing is oversubscribed.
    """

    kind: Literal["fat-tree"]
    k: Count
    rate: Rate | None = None
    latency: Seconds = 0.0
    efficiency: Fraction | None = None
    backplane: Rate | None = None


class TorusFabric(Section):
    """`fabric: {kind: torus}`: hosts joined to their neighbours in 2 or 3 dimensions, forwarding for others.

    A host has a port, with its NIC's values, for each neighbour. `rate` left out is the lower of the two ports'.
    """

    kind: Literal["torus"]
    dims: Annotated[tuple[Annotated[int, Field(strict=True, ge=2)], ...], Field(min_length=2, max_length=3)]
    rate: Rate | None = None
    latency: Seconds = 0.0
    efficiency: Fraction | None = None


class RingFabric(Section):
    """`fabric: {kind: ring}`: a torus of one dimension, of as many hosts as there are."""

    kind: Literal["ring"]
    rate: Rate | None = None
    latency: Seconds = 0.0
    efficiency: Fraction | None = None


FabricSection = Annotated[
    StarFabric | LeafSpineFabric | FatTreeFabric | TorusFabric | RingFabric, Field(discriminator="kind")
]


class PathSection(Section):
    """An entry of `paths:`: what a message passes between two hosts, or between two switches.

    `via` names, in order, the switches (where hosts forward, the hosts) between the two ends. The way back is the
    same unless another entry states it.
    """

    start: str = Field(alias="from")
    end: str = Field(alias="to")
    via: tuple[str, ...] = ()


class RoutingSection(Section):
    """`routing:`, as a mapping or as the bare kind; see `stanza_sim.cluster.routing`."""

    kind: RoutingKind = RoutingKind.SHORTEST
    seed: Annotated[int, Field(strict=True, ge=0)] = 0
    paths: tuple[PathSection, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, data: object) -> object:
        return {"kind": data} if isinstance(data, str) else data


class TopologySection(Section):
    """A topology file. `fabric` stands for `switches` and `links`.

    `cpu_ranks_per_host` places so many ranks on the cores of each host with devices, after all others; in `placement`
    such a rank is `HOST/cpu`. `ranks_per_device` places so many ranks on each device, which they share; in `placement`
    `HOST/2` is a rank on the host's device number 2, and several may be there.
    """

    name: str = Field(min_length=1)
    description: str = ""
    scales: Literal["hosts", "ranks"] = "hosts"
    hosts: tuple[HostSection, ...] = Field(min_length=1)
    fabric: FabricSection | None = None
    switches: tuple[SwitchSection, ...] = ()
    links: tuple[LinkSection, ...] = ()
    forwarding: bool = False
    routing: RoutingSection = RoutingSection()
    overrides: dict[str, HostOverride] = Field(default_factory=dict)
    placement: tuple[str, ...] | None = None
    ranks_per_host: Count | None = None
    cpu_ranks_per_host: Count | None = None
    ranks_per_device: Count | None = None
