"""The same scenario, were something faster: the cluster and the costs are changed, and it is simulated again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import inf

from stanza_sim.cluster import Cluster
from stanza_sim.cluster.faster import (
    with_faster_hosts,
    with_faster_links,
    with_faster_network,
    with_quicker_messages,
)
from stanza_sim.experiment.scenario import Scenario
from stanza_sim.simulate.slower_costs import SlowerCosts

FREE = 1e9
"""What takes no time at all is simulated as so many times as fast."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What is so many times as fast; infinity: it takes no time.

    `network` is the rates of all that messages cross: links, fabrics inside hosts, loopbacks. `latency` is what
    messages take beside that: latencies, and what they cost cores. `compute` is all computations; `hosts` those of
    hosts, by index; `links` the rates of links, by index.
    """

    network: float = 1.0
    latency: float = 1.0
    compute: float = 1.0
    links: Mapping[int, float] = field(default_factory=dict)
    hosts: Mapping[int, float] = field(default_factory=dict)

    def cluster(self, cluster: Cluster) -> Cluster:
        """The cluster with what is faster."""
        if self.network != 1:
            cluster = with_faster_network(cluster, _finite(self.network))
        if self.latency != 1:
            cluster = with_quicker_messages(cluster, _finite(self.latency))
        if self.links:
            cluster = with_faster_links(cluster, {link: _finite(times) for link, times in self.links.items()})
        hosts = self._hosts(cluster)
        return with_faster_hosts(cluster, hosts) if hosts else cluster

    def of(self, scenario: Scenario) -> Scenario:
        """The scenario with what is faster."""
        changed = replace(scenario, cluster=self.cluster(scenario.cluster))
        hosts = self._hosts(scenario.cluster)
        if not hosts:
            return changed
        shares = [1 / hosts.get(place.host, 1.0) for place in scenario.cluster.placement]
        costs = SlowerCosts(scenario.costs, lambda rank, model: shares[rank], "at other speeds")
        return replace(changed, costs=costs)

    def _hosts(self, cluster: Cluster) -> dict[int, float]:
        """How many times as fast each host computes; none where nothing computes faster."""
        hosts = {h: _finite(times) for h, times in self.hosts.items()}
        if self.compute != 1:
            hosts = {h: hosts.get(h, 1.0) * _finite(self.compute) for h in range(len(cluster.hosts))}
        return hosts


def _finite(times: float) -> float:
    return FREE if times == inf else times
