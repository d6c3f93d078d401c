"""Topologies for tests of the testbed."""

from pathlib import Path

from stanza_sim.cluster import Cluster, load_cluster

STAR = """\
name: {name}
hosts: [{{name: n, count: {hosts}, cores: 2, nic: {{rate: {rate}, efficiency: 0.956}}}}]
switches: [{{name: switch}}]
"""
LEAF_SPINE = """\
name: {name}
hosts: [{{name: n, cores: 2, nic: {{rate: 200Mbps, efficiency: 0.956}}}}]
fabric: {{kind: leaf-spine, leaves: {leaves}, hosts_per_leaf: {each}, spines: {spines}, oversubscription: {over}}}
routing: {routing}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "topology.yaml"
    path.write_text(text)
    return path


def load(folder: Path, text: str) -> Cluster:
    return load_cluster(written(folder, text))


def star_text(name: str = "t", hosts: int = 3, rate: str = "200Mbps", more: str = "") -> str:
    return STAR.format(name=name, hosts=hosts, rate=rate) + more


def leaf_spine_text(
    name: str = "t",
    leaves: int = 2,
    each: int = 2,
    spines: int = 1,
    over: float = 2,
    routing: str = "shortest",
    more: str = "",
) -> str:
    values = {"name": name, "leaves": leaves, "each": each, "spines": spines, "over": over, "routing": routing}
    return LEAF_SPINE.format(**values) + more
