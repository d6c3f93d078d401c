"""Writes topology files for tests."""

from __future__ import annotations

from pathlib import Path

from stanza_sim.cluster import Cluster, load_cluster

NIC = "{rate: 10Gbps, latency: 10us, efficiency: 0.5}"


def fabric_text(fabric: str, *, routing: str = "spread", host: str = "", more: str = "") -> str:
    """Return a file with one host group, on `fabric`."""
    hosts = f"hosts: [{{name: n, cores: 8, nic: {NIC}{host}}}]"
    return f"name: t\n{hosts}\nfabric: {fabric}\nrouting: {routing}\n{more}"


def load_text(folder: Path, text: str, *, nodes: int | None = None, rate_Bps: float | None = None) -> Cluster:
    """Return the cluster of a file with `text`."""
    path = folder / "t.yaml"
    path.write_text(text)
    return load_cluster(path, nodes=nodes, rate_Bps=rate_Bps)


LEAF_SPINE = "{kind: leaf-spine, leaves: 4, hosts_per_leaf: 4, spines: 2, oversubscription: 4, latency: 1us}"
FAT_TREE = "{kind: fat-tree, k: 4, latency: 1us}"
TORUS = "{kind: torus, dims: [3, 4], latency: 1us}"
CUBE = "{kind: torus, dims: [2, 3, 3], latency: 1us}"
RING = "{kind: ring, latency: 1us}"
