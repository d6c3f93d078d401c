"""What NCCL reaches on a platform: the constants of its tuning model, and what was measured there.

One YAML file a platform, in `stanza_sim/data/nccl` or in `./nccl`; `stanza-sim import nccl-tests` writes one from logs
(as JSON, which is YAML too). A key that a file leaves out has NCCL's own constant: `src/graph/tuning.cc` of
NVIDIA/nccl at commit 5067397, in microseconds. What the constants mean is said in
`stanza_sim.simulate.lowering.nccl`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from stanza_sim.base.config import Count, Fraction, Kind, Section, find, load
from stanza_sim.base.units import Rate, Seconds, Size
from stanza_sim.cluster.hardware import Host, IntraKind


class Protocol(StrEnum):
    """How NCCL hands data over: with a flag in every 8 bytes, in every 128, or by whole chunks."""

    LL = "ll"
    LL128 = "ll128"
    SIMPLE = "simple"


@dataclass(frozen=True, slots=True, kw_only=True)
class ByProtocol:
    """One value for each protocol."""

    ll: float
    ll128: float
    simple: float

    def slower(self, times: float) -> ByProtocol:
        """So many times as long."""
        return ByProtocol(ll=self.ll * times, ll128=self.ll128 * times, simple=self.simple * times)

    def __getitem__(self, protocol: Protocol) -> float:
        return float(getattr(self, protocol.value))


@dataclass(frozen=True, slots=True, kw_only=True)
class HopLatencies:
    """Seconds that one hop of a ring and of a tree takes, by protocol: inside a host, or across hosts."""

    ring: ByProtocol
    tree: ByProtocol

    def slower(self, times: float) -> HopLatencies:
        """So many times as long."""
        return HopLatencies(ring=self.ring.slower(times), tree=self.tree.slower(times))


@dataclass(frozen=True, slots=True, kw_only=True)
class NcclPlatform:
    """The constants of one platform; rates in bytes per second, times in seconds.

    `inside_share` and `across_share` are what NCCL's rings reach of the links that they fill inside a host and across
    hosts. `inside_Bps` and `across_Bps`, where they were measured, cap the bus rate inside a host and that of all NICs
    of a host together. An all-reduce passes each byte
    through a device's memory once more than the links carry it: at `memory_Bps` where that was measured, else at
    `memory_share` of the memory's bandwidth. `overhead_s` is what a collective takes beside NCCL's own latencies, all
    of it from a few times `ramp_bytes` on; `launch_s` is the least time of a collective, for each GPU that one process
    drives. `ll128` says where that protocol is used; `channels` (none: not limited) times `tree_channel_Bps` (on one,
    two and more hosts) or `ll128_channel_Bps` cap trees and LL128.
    """

    name: str
    description: str
    sources: tuple[str, ...]
    inside_share: float
    across_share: float
    inside_Bps: float | None
    across_Bps: float | None
    memory_Bps: float | None
    memory_share: float
    overhead_s: float
    ramp_bytes: float
    launch_s: float
    ll128: Literal["nowhere", "inside", "everywhere"]
    channels: int | None
    base_s: HopLatencies
    inside_s: HopLatencies
    across_s: HopLatencies
    tree_channel_Bps: tuple[float, float, float]
    ll128_channel_Bps: float

    def slower(self, times: float) -> NcclPlatform:
        """The platform with all that it says taking so many times as long; shares of links are as they were."""
        if times == 1:
            return self
        one, two, more = self.tree_channel_Bps
        return replace(
            self,
            inside_Bps=None if self.inside_Bps is None else self.inside_Bps / times,
            across_Bps=None if self.across_Bps is None else self.across_Bps / times,
            memory_Bps=None if self.memory_Bps is None else self.memory_Bps / times,
            memory_share=self.memory_share / times,
            tree_channel_Bps=(one / times, two / times, more / times),
            ll128_channel_Bps=self.ll128_channel_Bps / times,
        ).later(times)

    def later(self, times: float) -> NcclPlatform:
        """The platform with its latencies so many times as long, and its rates as they were."""
        if times == 1:
            return self
        return replace(
            self,
            overhead_s=self.overhead_s * times,
            launch_s=self.launch_s * times,
            base_s=self.base_s.slower(times),
            inside_s=self.inside_s.slower(times),
            across_s=self.across_s.slower(times),
        )


def _us(ll: float, ll128: float, simple: float) -> ByProtocolSection:
    return ByProtocolSection.model_validate({"ll": f"{ll}us", "ll128": f"{ll128}us", "simple": f"{simple}us"})


class ByProtocolSection(Section):
    """A time for each protocol."""

    ll: Seconds
    ll128: Seconds
    simple: Seconds


class HopSection(Section):
    """Times of a ring and of a tree."""

    ring: ByProtocolSection
    tree: ByProtocolSection


class LatencySection(Section):
    """`latency:` of a platform file; `base` is once a collective, the others once a hop."""

    base: HopSection = HopSection(ring=_us(6.6, 14.0, 8.4), tree=_us(6.8, 14.0, 8.4))
    inside: HopSection = HopSection(ring=_us(0.6, 1.9, 3.4), tree=_us(0.6, 1.25, 4.0))
    across: HopSection = HopSection(ring=_us(2.7, 4.0, 14.0), tree=_us(5.0, 8.5, 14.0))


class ChannelSection(Section):
    """`channels:` of a platform file: how many, and what each carries."""

    count: Count
    tree: Annotated[tuple[Rate, ...], Field(min_length=3, max_length=3)] = (24e9, 23.6e9, 17.8e9)
    ll128: Rate = 20e9


class PlatformSection(Section):
    """A platform file."""

    name: str = Field(min_length=1)
    description: str = ""
    sources: tuple[str, ...] = Field(min_length=1)
    inside_share: Fraction = 1.0
    across_share: Fraction = 1.0
    inside: Rate | None = None
    across: Rate | None = None
    memory: Rate | None = None
    memory_share: Fraction = 0.47
    overhead: Seconds
    ramp: Size
    launch: Seconds
    ll128: Literal["nowhere", "inside", "everywhere"] = "nowhere"
    latency: LatencySection = LatencySection()
    channels: ChannelSection | None = None


def nccl_path(name_or_path: str | Path, *, beside: Path | None = None) -> Path:
    """Return the file of a platform; raise `InputError`, with the names that are known, if there is none."""
    if str(name_or_path).endswith(".json"):
        name_or_path = Path(name_or_path)
    return find(Kind.NCCL, name_or_path, beside=beside)


def load_nccl(name_or_path: str | Path) -> NcclPlatform:
    """Return a platform, given by name or path. Raises `InputError`."""
    return _load(nccl_path(name_or_path).resolve())


@lru_cache(maxsize=64)
def _load(path: Path) -> NcclPlatform:
    return platform_of(load(path, PlatformSection))


def platform_of(section: PlatformSection) -> NcclPlatform:
    """Return what a section states."""
    channels = section.channels or ChannelSection(count=1)
    one, two, more = channels.tree
    latency = section.latency
    return NcclPlatform(
        name=section.name,
        description=section.description,
        sources=section.sources,
        inside_share=section.inside_share,
        across_share=section.across_share,
        inside_Bps=section.inside,
        across_Bps=section.across,
        memory_Bps=section.memory,
        memory_share=section.memory_share,
        overhead_s=section.overhead,
        ramp_bytes=float(section.ramp),
        launch_s=section.launch,
        ll128=section.ll128,
        channels=None if section.channels is None else section.channels.count,
        base_s=_hops(latency.base),
        inside_s=_hops(latency.inside),
        across_s=_hops(latency.across),
        tree_channel_Bps=(one, two, more),
        ll128_channel_Bps=channels.ll128,
    )


def _hops(section: HopSection) -> HopLatencies:
    ring, tree = section.ring, section.tree
    return HopLatencies(ring=ByProtocol(**dict(ring)), tree=ByProtocol(**dict(tree)))


def platform_on(host: Host) -> NcclPlatform:
    """Return the platform of a host: the one that its topology states, or a shipped one.

    By what joins its devices that is `a100-nvlink` for A100s joined by NVLink, `nvlink` for others so joined, else
    `pcie`. It is `Host.nccl_times` as slow, and its latencies `Host.nccl_latency_times` as long beside that.
    """
    return load_nccl(_platform_name(host)).slower(host.nccl_times).later(host.nccl_latency_times)


def _platform_name(host: Host) -> str:
    if host.nccl is not None:
        return host.nccl
    if host.intra is None or host.intra.kind is not IntraKind.NVLINK:
        return "pcie"
    return "a100-nvlink" if {Path(device).stem for device in host.devices} == {"A100"} else "nvlink"
