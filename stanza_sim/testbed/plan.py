"""The commands that build a network: namespaces, veth pairs, bridges or routes, shapers. Nothing is run here.

Hosts around one switch hang on a bridge. With several switches each is a router: it has a route to every host, which is
one port on the way that the simulator takes; where the way depends on the source too, a rule leads to another table.
Addresses of hosts and of ports are set by number, neighbours are static, so nothing is looked up or learnt by
broadcast. Everything lies in namespaces of the testbed: with them all is gone, and no other interface is touched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise

from stanza_sim.testbed.network import Network, Node, Wire
from stanza_sim.testbed.shaping import Shaper, shape_lines, shaper_of
from stanza_sim.testbed.steps import CONGESTION_CONTROL, Step, Tool

INTERFACE = "e0"
"""What a host calls its NIC."""
BRIDGE = "br0"
MTU = 1500
_NET = "10.77.0"
_SUBNET = f"{_NET}.0/24"
_GATEWAY, _NEXT_HOP = "10.77.255.254", "10.77.255.253"
"""Addresses without an interface: they only name a neighbour, whose port is known, on a device."""
_TABLES = 1000
"""Number of the first routing table for ways that depend on the source."""

_SYSCTLS = ("-net.ipv6.conf.default.addr_gen_mode=1",)
"""In every namespace; a line that begins with - may fail, as in sysctl.conf. Without IPv6 addresses nothing is sent
before there is traffic."""
_HOST_SYSCTLS = (
    *_SYSCTLS,
    "net.ipv4.tcp_no_metrics_save=1",
    "net.ipv4.tcp_slow_start_after_idle=0",
    "net.ipv4.tcp_wmem=4096 65536 524288",
)
_BRIDGE_SYSCTLS = (
    *_SYSCTLS,
    "-net.bridge.bridge-nf-call-iptables=0",
    "-net.bridge.bridge-nf-call-ip6tables=0",
    "-net.bridge.bridge-nf-call-arptables=0",
)
"""What crosses the bridge passes no firewall rules, which would cost the cores time for every packet."""
_ROUTER_SYSCTLS = (
    *_SYSCTLS,
    "net.ipv4.ip_forward=1",
    "net.ipv4.conf.all.rp_filter=0",
    "net.ipv4.conf.default.rp_filter=0",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shaped:
    """A shaper and where it is."""

    wire: Wire
    shaper: Shaper
    namespace: str
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandPlan:
    """What a testbed will be. `namespaces[h]` and `addresses[h]` are those of host h; `switches` are the others."""

    prefix: str
    network: Network
    namespaces: tuple[str, ...]
    switches: tuple[str, ...]
    addresses: tuple[str, ...]
    shaped: tuple[Shaped, ...]
    steps: tuple[Step, ...]

    def digest(self) -> str:
        """Return a text that differs between plans that differ."""
        text = [f"{s.tool} {s.namespace}\n" + "\n".join(s.lines) for s in self.steps]
        return sha256("\n\n".join(text).encode()).hexdigest()


def prefix_of(name: str, uid: int) -> str:
    """Return the beginning of the names of all namespaces of the testbed `name` of a user."""
    return f"stz-{sha256(f'{name} of {uid}'.encode()).hexdigest()[:8]}"


def make_plan(network: Network, prefix: str) -> CommandPlan:
    """Return the commands that build `network` in namespaces whose names begin with `prefix`."""
    return _Planner(network=network, prefix=prefix).plan()


def _address(host: int) -> str:
    return f"{_NET}.{host + 1}"


def _mac(at: Node, to: Node) -> str:
    """Return the address of the port of `at` that leads to `to`; locally administered, one for each."""
    kind = 1 + 2 * at.switch + to.switch
    return f"02:77:00:{kind:02x}:{at.index:02x}:{to.index:02x}"


def _port(at: Node, to: Node) -> str:
    """Return the name of the interface of `at` that leads to `to`."""
    return to.tag if at.switch else INTERFACE


@dataclass(frozen=True, slots=True, kw_only=True)
class _Planner:
    network: Network
    prefix: str

    def plan(self) -> CommandPlan:
        network = self.network
        hosts = [Node(switch=False, index=h) for h in range(len(network.hosts))]
        switches = [Node(switch=True, index=s) for s in range(len(network.switches))]
        nodes = [*hosts, *switches]
        shaped = tuple(self._shaped(wire) for wire in network.wires)
        adds = tuple(f"netns add {self._name(node)}" for node in nodes)
        steps = [Step(tool=Tool.IP, namespace=None, lines=adds)]
        steps += [self._step(Tool.SYSCTL, node, self._sysctls(node)) for node in nodes]
        # All links before all else: a line below may need a port that another namespace's lines have made.
        steps += [self._step(Tool.IP, switch, self._link_lines(switch)) for switch in switches]
        steps += [self._step(Tool.IP, node, self._network_lines(node)) for node in nodes]
        steps += [self._step(Tool.TC, node, self._shape_lines(node, shaped)) for node in nodes]
        return CommandPlan(
            prefix=self.prefix,
            network=network,
            namespaces=tuple(map(self._name, hosts)),
            switches=tuple(map(self._name, switches)),
            addresses=tuple(_address(h.index) for h in hosts),
            shaped=shaped,
            steps=tuple(step for step in steps if step.lines),
        )

    @property
    def bridged(self) -> bool:
        return len(self.network.switches) == 1

    def _name(self, node: Node) -> str:
        return f"{self.prefix}-{node.tag}"

    def _step(self, tool: Tool, node: Node, lines: Iterator[str]) -> Step:
        return Step(tool=tool, namespace=self._name(node), lines=tuple(lines))

    def _neighbours(self, node: Node) -> list[Node]:
        return [wire.end for wire in self.network.wires if wire.start == node]

    def _shaped(self, wire: Wire) -> Shaped:
        return Shaped(
            wire=wire,
            shaper=shaper_of(wire.rate_Bps, wire.bucket),
            namespace=self._name(wire.start),
            device=_port(wire.start, wire.end),
        )

    def _sysctls(self, node: Node) -> Iterator[str]:
        if not node.switch:
            yield from _HOST_SYSCTLS
        else:
            yield from _BRIDGE_SYSCTLS if self.bridged else _ROUTER_SYSCTLS

    def _link_lines(self, switch: Node) -> Iterator[str]:
        """The links of a switch to its hosts, and to switches of a higher number."""
        for other in self._neighbours(switch):
            if other.switch and other.index < switch.index:
                continue
            ends = (f"{_port(a, b)} address {_mac(a, b)} mtu {MTU}" for a, b in ((switch, other), (other, switch)))
            yield "link add {} type veth peer name {} netns {}".format(*ends, self._name(other))

    def _network_lines(self, node: Node) -> Iterator[str]:
        yield "link set lo up"
        if not node.switch:
            yield from self._host_lines(node)
        elif self.bridged:
            yield f"link add {BRIDGE} type bridge stp_state 0 forward_delay 0 mcast_snooping 0"
            yield f"link set {BRIDGE} mtu {MTU} up"
            for other in self._neighbours(node):
                yield f"link set {_port(node, other)} master {BRIDGE} up"
        else:
            yield from self._router_lines(node)

    def _host_lines(self, host: Node) -> Iterator[str]:
        address, options = _address(host.index), f"src {_address(host.index)} congctl {CONGESTION_CONTROL}"
        wire = next(wire for wire in self.network.wires if wire.start == host)
        yield f"link set {INTERFACE} gso_max_size {shaper_of(wire.rate_Bps).packet_bytes}"
        if self.bridged:
            yield f"address add {address}/24 dev {INTERFACE} noprefixroute"
            yield f"link set {INTERFACE} up"
            yield f"route add {_SUBNET} dev {INTERFACE} scope link {options}"
            for other in range(len(self.network.hosts)):
                if other != host.index:
                    yield self._neighbour(_address(other), Node(switch=False, index=other), wire.end, INTERFACE)
        else:
            yield f"address add {address}/32 dev {INTERFACE}"
            yield f"link set {INTERFACE} up"
            yield f"route add {_SUBNET} via {_GATEWAY} dev {INTERFACE} onlink {options}"
            yield self._neighbour(_GATEWAY, wire.end, host, INTERFACE)

    def _neighbour(self, address: str, at: Node, to: Node, device: str) -> str:
        return f"neighbour replace {address} lladdr {_mac(at, to)} dev {device} nud permanent"

    # --- routers -----------------------------------------------------------------------------------------------------

    def _router_lines(self, switch: Node) -> Iterator[str]:
        for other in self._neighbours(switch):
            port = _port(switch, other)
            yield f"link set {port} up"
            if other.switch:
                yield self._neighbour(_NEXT_HOP, other, switch, port)
            else:
                yield f"route add {_address(other.index)}/32 dev {port} scope link"
                yield self._neighbour(_address(other.index), other, switch, port)
        next_of: dict[int, dict[int, int]] = {}
        for (src, dst), way in self.network.ways.items():
            for here, there in pairwise(way):
                if here == switch.index:
                    next_of.setdefault(dst, {})[src] = there
        for dst, by_source in next_of.items():
            usual = min(Counter(by_source.values()).items(), key=lambda item: (-item[1], item[0]))[0]
            yield self._route(switch, dst, usual)
            for there in sorted(set(by_source.values()) - {usual}):
                yield f"{self._route(switch, dst, there)} table {_TABLES + there}"
            for src, there in by_source.items():
                if there != usual:
                    ends = f"from {_address(src)}/32 to {_address(dst)}/32"
                    yield f"rule add {ends} table {_TABLES + there} priority 1000"

    def _route(self, switch: Node, dst: int, there: int) -> str:
        port = _port(switch, Node(switch=True, index=there))
        return f"route add {_address(dst)}/32 via {_NEXT_HOP} dev {port} onlink"

    def _shape_lines(self, node: Node, shaped: tuple[Shaped, ...]) -> Iterator[str]:
        for one in shaped:
            if one.wire.start == node:
                pairs = ((_address(src), _address(dst)) for src, dst in one.wire.pairs)
                yield from shape_lines(one.device, one.shaper, pairs)
