"""The schema of a topology file: what can be written, with which units, and what a value left out means.

A value that a file leaves out is ideal (no latency, no overhead, efficiency 1); only the loopback has typical values.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stanza_sim.cluster.cluster import Loopback
from stanza_sim.config import Count, Factor, Fraction, Section
from stanza_sim.units import Rate, Seconds


class NicSection(Section):
    """`nic:` of a host group."""

    rate: Rate = Field(description="write the raw rate of the port, such as `rate: 10Gbps`")
    latency: Seconds = 0.0
    overhead: Seconds = 0.0
    efficiency: Fraction = 1.0


class LoopbackSection(Section):
    """`loopback:` of a host group; see `stanza_sim.cluster.Loopback`."""

    rate: Rate = Loopback().bandwidth_Bps
    latency: Seconds = Loopback().latency_s
    message_core: Seconds = Loopback().message_core_s
    byte_core: Seconds = Loopback().byte_core_s


class HostSection(Section):
    """An entry of `hosts:`: one host or, with `count`, that many, called `name-0`, `name-1` and so on."""

    name: str = Field(min_length=1)
    count: Count | None = None
    cores: Count | Literal["this-machine"]
    devices: tuple[str, ...] = ()
    device_speed: Factor = 1.0
    nic: NicSection | None = None
    loopback: LoopbackSection = LoopbackSection()


class NicOverride(Section):
    """`nic:` of a single host under `overrides:`; what it leaves out stays."""

    rate: Rate | None = None
    latency: Seconds | None = None
    overhead: Seconds | None = None
    efficiency: Fraction | None = None


class HostOverride(Section):
    """An entry of `overrides:`; what it leaves out stays."""

    cores: Count | None = None
    devices: tuple[str, ...] | None = None
    device_speed: Factor | None = None
    nic: NicOverride | None = None
    loopback: LoopbackSection | None = None


class SwitchSection(Section):
    """An entry of `switches:`."""

    name: str = Field(min_length=1)


class LinkSection(Section):
    """An entry of `links:`: a host (or host group) to a switch, a switch to a switch, or a host to a host."""

    start: str = Field(alias="from")
    end: str = Field(alias="to")
    rate: Rate | None = None
    latency: Seconds = 0.0
    efficiency: Fraction = 1.0


class TopologySection(Section):
    """A topology file."""

    name: str = Field(min_length=1)
    description: str = ""
    scales: Literal["hosts", "ranks"] = "hosts"
    hosts: tuple[HostSection, ...] = Field(min_length=1)
    switches: tuple[SwitchSection, ...] = ()
    links: tuple[LinkSection, ...] = ()
    overrides: dict[str, HostOverride] = Field(default_factory=dict)
    placement: tuple[str, ...] | None = None
    ranks_per_host: Count | None = None
