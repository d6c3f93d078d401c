"""What a schedule runs on: hosts, devices, NICs, switches, links, routes and the place of each rank."""

from stanza_sim.cluster.cluster import (
    Cluster,
    DirectedLink,
    Fabric,
    Host,
    Loopback,
    Nic,
    Placement,
    star,
    with_loopback,
)
from stanza_sim.cluster.load import load_cluster

__all__ = [
    "Cluster",
    "DirectedLink",
    "Fabric",
    "Host",
    "Loopback",
    "Nic",
    "Placement",
    "load_cluster",
    "star",
    "with_loopback",
]
