"""What a schedule runs on: hosts, devices, NICs, switches, links, routes and the place of each rank."""

from stanza_sim.cluster.cluster import (
    Cluster,
    DirectedLink,
    Fabric,
    Host,
    Intra,
    IntraKind,
    LinkKind,
    Loopback,
    Nic,
    Placement,
    Routing,
    RoutingKind,
    Usage,
    flow_key,
    star,
    with_loopback,
)
from stanza_sim.cluster.device import DeviceSpec, load_device
from stanza_sim.cluster.hardware import Losses, PcieTree, Staging, TokenBucket, Traffic, Transport
from stanza_sim.cluster.load import load_cluster

__all__ = [
    "Cluster",
    "DeviceSpec",
    "DirectedLink",
    "Fabric",
    "Host",
    "Intra",
    "IntraKind",
    "LinkKind",
    "Loopback",
    "Losses",
    "Nic",
    "PcieTree",
    "Placement",
    "Routing",
    "RoutingKind",
    "Staging",
    "TokenBucket",
    "Traffic",
    "Transport",
    "Usage",
    "flow_key",
    "load_cluster",
    "load_device",
    "star",
    "with_loopback",
]
