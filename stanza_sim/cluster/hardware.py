"""The parts of a cluster: links, NICs, hosts, the place of a rank, and how all hangs together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from math import inf
from operator import attrgetter
from statistics import NormalDist


class LinkKind(StrEnum):
    """What a directed link stands for."""

    SEND = "send"  # a NIC's transmit side
    RECEIVE = "receive"  # a NIC's receive side
    TRUNK = "trunk"  # from switch to switch
    CABLE = "cable"  # from host to host
    BACKPLANE = "backplane"  # what a switch passes on in total
    DEVICE_OUT = "device-out"  # from a device into its host's internal fabric
    DEVICE_IN = "device-in"  # and back
    INSIDE = "inside"  # another link inside a host: of its PCIe tree, of a socket, to its memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What others send over a link, in each of its directions: one flow that wants `bandwidth_Bps` and no more.

    It takes its max-min fair share beside the job's flows, so it has all that it wants where the link has room for it.
    With `on_s` and `off_s` it comes and goes: both phases last exponentially distributed times with these means, drawn
    from `seed`, and it starts as likely in either as it is to be found in it.
    """

    bandwidth_Bps: float
    on_s: float | None = None
    off_s: float | None = None
    seed: int = 0

    def scaled(self, efficiency: float) -> Traffic:
        """Return it as goodput."""
        return replace(self, bandwidth_Bps=self.bandwidth_Bps * efficiency)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBucket:
    """The token bucket of a shaped link: see `stanza_sim.simulate.plain.token_bucket`.

    `nbytes` pass at `peak_Bps` after the link was idle for long; infinity means that nothing but other links limits
    them.
    """

    nbytes: float
    peak_Bps: float = inf

    def scaled(self, efficiency: float) -> TokenBucket:
        """Return it as goodput."""
        return TokenBucket(nbytes=self.nbytes * efficiency, peak_Bps=self.peak_Bps * efficiency)


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectedLink:
    """One direction of a cable, or something else that messages share.

    `bandwidth_Bps` is goodput (rate x efficiency); `label` is for tables. `host` is the index of the host that a
    side of a NIC or a device's link belongs to.
    """

    name: str
    label: str
    bandwidth_Bps: float
    latency_s: float
    kind: LinkKind = LinkKind.TRUNK
    host: int | None = None
    background: Traffic | None = None
    bucket: TokenBucket | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Transport:
    """What the software that moves messages between hosts allows and costs, beside what the port carries.

    `stream_Bps` is the most payload that one message moves per second (one TCP connection between two ranks), and
    `process_Bps` the most that one rank moves in each direction, all its messages together; None is no limit. With
    `process_inside`, messages between ranks of one host count towards the latter too. `message_core_s` and
    `byte_core_s` are the core-seconds that a message between hosts, and a byte of it, cost the cores of either host;
    one core at a time works on a message. `preset` is the data file that values were taken from.
    """

    preset: str | None = None
    stream_Bps: float | None = None
    process_Bps: float | None = None
    process_inside: bool = False
    message_core_s: float = 0.0
    byte_core_s: float = 0.0

    @property
    def ideal(self) -> bool:
        """Whether it neither limits nor costs anything."""
        limits = self.stream_Bps is not None or self.process_Bps is not None
        return not (limits or self.message_core_s or self.byte_core_s)

    def scaled(self, times: float) -> Transport:
        """Return it with other limits."""
        stream_Bps = None if self.stream_Bps is None else self.stream_Bps * times
        process_Bps = None if self.process_Bps is None else self.process_Bps * times
        return replace(self, stream_Bps=stream_Bps, process_Bps=process_Bps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Nic:
    """A network port, full duplex.

    `bandwidth_Bps` is the raw rate of each direction and `efficiency` the share of it that payload gets;
    `latency_s` is one way from the host to the switch (or back), `overhead_s` the time that the sending side needs
    for each message before its first byte leaves. Where the way back differs, `receive_bandwidth_Bps` and
    `receive_latency_s` say so. `background` and `bucket` are those of each side, raw as the rate is. `transport` is
    what the software above it allows and costs.
    """

    bandwidth_Bps: float
    latency_s: float = 0.0
    overhead_s: float = 0.0
    efficiency: float = 1.0
    receive_bandwidth_Bps: float | None = None
    receive_latency_s: float | None = None
    background: Traffic | None = None
    bucket: TokenBucket | None = None
    transport: Transport = Transport()

    @property
    def goodput_Bps(self) -> float:
        """Payload bytes per second that the transmit side carries."""
        return self.bandwidth_Bps * self.efficiency

    @property
    def receive_goodput_Bps(self) -> float:
        """Payload bytes per second that the receive side carries."""
        return (self.receive_bandwidth_Bps or self.bandwidth_Bps) * self.efficiency


@dataclass(frozen=True, slots=True, kw_only=True)
class Loopback:
    """How ranks on one host exchange messages.

    `bandwidth_Bps` caps a single stream; `message_core_s` and `byte_core_s` are the core-seconds that a message and
    a byte cost, both sides together. The defaults are what gloo reached between two processes of a virtual machine
    with 2 cores (16 MB one way: 1.5 GB/s and 0.75 core-seconds per GB; 64 bytes: 140 us); they are calibrated before
    a run on this machine is predicted.
    """

    bandwidth_Bps: float = 1.5e9
    latency_s: float = 50e-6
    message_core_s: float = 100e-6
    byte_core_s: float = 0.8e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Staging:
    """Copies between the devices of a host and its memory, which messages take where NICs cannot reach devices.

    A device copies in each direction with `bandwidth_Bps`, which its copies share, after `latency_s`; to the device
    with `back_Bps` after `back_latency_s`, where these are others. See `stanza_sim.simulate.lowering.messages` for what
    is copied when.
    """

    bandwidth_Bps: float
    latency_s: float = 0.0
    back_Bps: float | None = None
    back_latency_s: float | None = None

    def way(self, side: str) -> tuple[float, float]:
        """Bytes per second and seconds of latency from a device (`out`) or to it (`in`)."""
        if side == "out":
            return self.bandwidth_Bps, self.latency_s
        return (
            self.back_Bps or self.bandwidth_Bps,
            self.latency_s if self.back_latency_s is None else self.back_latency_s,
        )

    def slower(self, times: float) -> Staging:
        """The same, so many times slower."""
        back_Bps = None if self.back_Bps is None else self.back_Bps / times
        return replace(self.later(times), bandwidth_Bps=self.bandwidth_Bps / times, back_Bps=back_Bps)

    def later(self, times: float) -> Staging:
        """The same, with latencies so many times as long."""
        back_s = None if self.back_latency_s is None else self.back_latency_s * times
        return replace(self, latency_s=self.latency_s * times, back_latency_s=back_s)


class IntraKind(StrEnum):
    """What joins the devices of one host."""

    NVLINK = "nvlink"
    PCIE = "pcie"


@dataclass(frozen=True, slots=True, kw_only=True)
class PcieTree:
    """What joins devices, NICs and sockets of a host beside the devices' own links; see `stanza_sim.cluster.inside`.

    `switches` are the devices under each PCIe switch, whose uplink carries `switch_Bps` in each direction (raw; None:
    as much as a device's link). Each of `sockets` has a root complex that passes on `root_Bps` in total and memory
    that reads and writes `memory_Bps` in total; a socket sends `socket_Bps` to another. None is no limit. NICs hang at
    root complexes or, with `nics_at_switches`, at switches, each kind shared out in order.
    """

    switches: tuple[tuple[int, ...], ...] = ()
    switch_Bps: float | None = None
    sockets: int = 1
    root_Bps: float | None = None
    socket_Bps: float | None = None
    memory_Bps: float | None = None
    nics_at_switches: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Intra:
    """The fabric inside a host: every device has one link out of it and one into it, over a switch that never limits.

    `bandwidth_Bps` is the raw rate of a device's link in each direction, `efficiency` the share that payload gets,
    `latency_s` the time across one link, so a message from device to device takes two. PCIe is also the way to the
    NICs, so there a message to another host crosses its device's links too; NVLink joins the devices only.
    With `tree`, which only PCIe has, what is between the devices limits too. `host_link_Bps` is what a device of an
    NVLink host and the host's memory exchange in each direction; left out, they use the loopback.
    """

    kind: IntraKind
    bandwidth_Bps: float
    latency_s: float = 0.0
    efficiency: float = 1.0
    tree: PcieTree | None = None
    host_link_Bps: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """What a host's ranks lose beside computing and moving bytes; all of it is off by default.

    A collective takes `collective_share` of a device while it moves data (NCCL's channels occupy multiprocessors), so a
    computation beside it runs at one less that share. At the start of an iteration each rank spends
    `iteration_overhead_s`, and `overhead_per_device_s` more for each further rank with a device on its host (the
    framework's launching and synchronising). With `barrier`, a rank begins an iteration only when it is through with
    everything of the one before, as a training loop does that waits for its last update.
    """

    collective_share: float = 0.0
    iteration_overhead_s: float = 0.0
    overhead_per_device_s: float = 0.0
    barrier: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A machine. `devices` names its accelerators; without any, ranks compute on its cores (device `cpu`).

    `device_speed` scales how fast its devices (or cores) compute: 0.5 is half as fast as the device's data say.
    `more_nics` are NICs beside `nic`; `intra` joins the devices, which otherwise talk over the loopback. With `staging`
    what devices send and receive is copied through the host's memory. `device_spread` is the standard deviation of the
    speed of devices of one kind, relative to their mean; see `pace`. `reduce_Bps` is at how many bytes per second a
    rank on its cores adds up contributions and updates parameters; ranks on the cores of a host with devices do nothing
    else. `losses` are what a full host loses. `nccl` is the path of what NCCL reaches there, if that is stated; see
    `stanza_sim.cluster.nccl`. All that is said there takes `nccl_times` as long, its latencies
    `nccl_latency_times` beside that. `price_per_hour`: in dollars.
    """

    name: str
    cores: int
    nic: Nic
    devices: tuple[str, ...] = ()
    device_speed: float = 1.0
    device_spread: float = 0.0
    loopback: Loopback = field(default_factory=Loopback)
    more_nics: tuple[Nic, ...] = ()
    intra: Intra | None = None
    staging: Staging | None = None
    nccl: str | None = None
    nccl_times: float = 1.0
    nccl_latency_times: float = 1.0
    reduce_Bps: float | None = None
    losses: Losses = Losses()
    price_per_hour: float | None = None

    @property
    def nics(self) -> tuple[Nic, ...]:
        """All NICs."""
        return (self.nic, *self.more_nics)

    def pace(self, together: int) -> float:
        """Return how fast a device computes, relative to its data, in a job of `together` devices that wait for each
        other.

        The slowest sets the pace of all: of n, it is as many standard deviations below the mean as the expected maximum
        of n normal draws, for which Blom's approximation is taken (Statistical Estimates and Transformed
        Beta-Variables, 1958). Measured spreads: Sinha et al., Not All GPUs Are Created Equal, SC 2022.
        """
        if not self.device_spread or together < 2:
            return self.device_speed
        slowest = NormalDist().inv_cdf((together - 0.375) / (together + 0.25))
        return self.device_speed / (1 + self.device_spread * slowest)

    def nic_of(self, device: int | None) -> int:
        """Return the number of the NIC that `device` uses: its share of them in order; the first for the cores."""
        return 0 if device is None or not self.devices else device * (1 + len(self.more_nics)) // len(self.devices)

    def transport_of(self, device: int | None) -> Transport:
        """Return the transport of the NIC that `device` uses."""
        return self.nics[self.nic_of(device)].transport


_WHAT = attrgetter(*(f.name for f in fields(Host) if f.name not in ("name", "price_per_hour")))


def kinds_of(hosts: Iterable[Host]) -> list[int]:
    """Return a number for each host, from 0 in order of first occurrence: equal where only names and prices differ."""
    numbers: dict[tuple[object, ...], int] = {}
    same: dict[tuple[int, ...], int] = {}  # hosts of one group share what they are made of, and that is quickly seen
    found = []
    for what in map(_WHAT, hosts):
        if (number := same.get(ids := (*map(id, what),))) is None:
            number = same[ids] = numbers.setdefault(what, len(numbers))
        found.append(number)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a rank runs: the index of its host and of its device there (None: on the host's cores)."""

    host: int
    device: int | None = None


class RoutingKind(StrEnum):
    """How a message finds its way; see `stanza_sim.cluster.routing`."""

    SHORTEST = "shortest"
    ECMP = "ecmp"
    SPREAD = "spread"
    EXPLICIT = "explicit"


Way = tuple[int, ...]
"""A path as the switches (or, where hosts forward, the hosts) that it visits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """How messages find their way.

    `seed` is that of ECMP's hash. `host_ways` are (source host, destination host, way) and `switch_ways` (first
    switch, last switch, way) for explicit routing; a pair of hosts that neither gives takes the shortest way.
    """

    kind: RoutingKind = RoutingKind.SHORTEST
    seed: int = 0
    host_ways: tuple[tuple[int, int, Way], ...] = ()
    switch_ways: tuple[tuple[int, int, Way], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class InnerLinks:
    """The links inside a host, as indices into `Cluster.links`.

    `devices[d]` and `host_links[d]` are (out, in) of device d, `uplinks[w]` are (up, down) of PCIe switch w, `roots`
    and `memories` are by socket, and `sockets[a][b]` leads from socket a to socket b. Empty: no such link.
    """

    devices: tuple[tuple[int, int], ...] = ()
    host_links: tuple[tuple[int, int], ...] = ()
    uplinks: tuple[tuple[int, int], ...] = ()
    roots: tuple[int, ...] = ()
    memories: tuple[int, ...] = ()
    sockets: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fabric:
    """How hosts hang together. All numbers are indices of hosts, of switches or into `Cluster.links`.

    `attached[h]` are the switches of host h; `trunks` are (switch, switch, link) and `cables` (host, host, links),
    each for one direction. `ports[h][n]` are the switches of NIC n of host h; left out, all hosts have one NIC.
    `backplanes` are (switch, link). `inside[h]` are the links inside host h; left out, no host has any. With
    `forwarding` messages pass through other hosts, over cables, and there are no switches.
    """

    attached: tuple[tuple[int, ...], ...]
    trunks: tuple[tuple[int, int, int], ...] = ()
    cables: tuple[tuple[int, int, tuple[int, ...]], ...] = ()
    ports: tuple[tuple[tuple[int, ...], ...], ...] = ()
    backplanes: tuple[tuple[int, int], ...] = ()
    inside: tuple[InnerLinks, ...] = ()
    forwarding: bool = False
    routing: Routing = field(default_factory=Routing)

    @property
    def device_links(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """The links (out, in) of each device into the fabric inside its host, by host."""
        return tuple(found.devices for found in self.inside)
