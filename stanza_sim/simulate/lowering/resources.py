"""What activities share: links, cores, devices and copy engines, each numbered when it is first asked for.

Contract: `Resources` knows the cluster and its folding, and nothing of schedules. What folding makes one (NICs of hosts
of one class, links of one orbit, cores of hosts of one class) has one key and so one resource, with the capacity of one
of them. Numbers are given in the order of asking and never change.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from stanza_sim.cluster.cluster import Cluster
from stanza_sim.cluster.hardware import TokenBucket
from stanza_sim.schedule.ops import CHUNK_BYTES
from stanza_sim.simulate.background import BackgroundFlow
from stanza_sim.simulate.lowered import Activity, Resource
from stanza_sim.simulate.lowering.fold import Folding

Key = tuple[object, ...]
"""What tells resources apart."""


def link_weight(cluster: Cluster) -> float:
    """Weight of a flow that uses links only, in bytes per core-second: that of a message of `CHUNK_BYTES` on `cluster`.

    Of loopbacks and transports the one counts that costs cores most. Where none costs any, it is a message whose bytes
    take as long on a core as on the fastest link. So it has the scale of the cluster's own times.
    """
    loopbacks = {id(host.loopback): host.loopback for host in cluster.hosts}.values()
    transports = {id(nic.transport): nic.transport for host in cluster.hosts for nic in host.nics}.values()
    costs = [
        *(one.byte_core_s + one.message_core_s / CHUNK_BYTES for one in loopbacks),
        *(one.byte_core_s + one.message_core_s / CHUNK_BYTES for one in transports),
    ]
    if (core_s := max(costs)) > 0:
        return 1.0 / core_s
    return max((link.bandwidth_Bps for link in cluster.links), default=max(one.bandwidth_Bps for one in loopbacks))


class Resources:
    """The resources of `cluster` under `folding`; `made` are those asked for so far, by number."""

    def __init__(self, cluster: Cluster, folding: Folding) -> None:
        self.cluster, self.folding = cluster, folding
        self.made: list[Resource] = []
        self._keys: dict[Key, int] = {}
        self._processors: dict[int, tuple[int, float]] = {}
        self._device_mixes: dict[int, dict[int | None, tuple[int, ...]]] = {}
        self._one_switch = cluster.hosts_on_one_switch
        self.link_weight = cluster.remember("link weight", lambda: link_weight(cluster))
        """Weight of a flow that uses links only."""
        self.on_host: dict[int, list[int]] = {}
        """The ranks of each host that has any, ascending."""
        for r, p in enumerate(cluster.placement):
            self.on_host.setdefault(p.host, []).append(r)
        self.reps = [members[0] for members in folding.classes]
        """The rank that stands for each class."""
        self.near = [self._near(rep) for rep in self.reps]
        """For each class: how many ranks of each class are on the host of the rank that stands for it."""
        hosts = (cluster.placement[rep].host for rep in reversed(self.reps))
        self.standing_hosts = {folding.host_class_of[h]: h for h in hosts}
        """For each class of hosts that has ranks: the host of the first rank that stands for a class there."""
        orbits = folding.orbits
        self.link_sizes = Counter(orbits.link_class) if orbits is not None else Counter[int]()
        """How many links each class of links has, on a fabric with shared links."""

    def _near(self, rank: int) -> Counter[int]:
        return Counter(self.folding.class_of[r] for r in self.on_host[self.cluster.placement[rank].host])

    def resource(self, key: Key, label: str, capacity: float, kind: str) -> int:
        """The number of the resource `key`, which is made when it is first asked for."""
        if key not in self._keys:
            self._keys[key] = len(self.made)
            self.made.append(Resource(label=label, capacity=capacity, kind=kind))
        return self._keys[key]

    def busiest_s(self, activity: Activity) -> float:
        """Seconds for which `activity` alone occupies the resource that it uses most."""
        return max((activity.work * demand / self.made[q].capacity for q, demand in activity.usage), default=0.0)

    # ---- links -----------------------------------------------------------------------------------------------------

    def link(self, link: int) -> int:
        """The resource of a directed link."""
        made = self.cluster.links[link]
        return self.resource(self._link_key(link), made.label, made.bandwidth_Bps, "link")

    def known_link(self, link: int) -> int | None:
        """The resource of a directed link if there is one already."""
        return self._keys.get(self._link_key(link))

    def _link_key(self, link: int) -> Key:
        """What links that share a resource (those that folding makes one) have in common."""
        if self._one_switch and link < 2 * len(self.cluster.hosts):
            return "nic", self.folding.host_class_of[link // 2], link % 2
        if self.folding.orbits is not None:
            return "class", self.folding.orbits.link_class[link]
        return "link", link

    def used_links(self) -> dict[int, int]:
        """The resource of every link of the cluster that has one by now."""
        found = ((q, self.known_link(q)) for q in range(len(self.cluster.links)))
        return {q: resource for q, resource in found if resource is not None}

    def background(self) -> tuple[BackgroundFlow, ...]:
        """The traffic of others on every resource that is a link: on one of those that folding made one."""
        found: dict[int, BackgroundFlow] = {}
        for q, link in enumerate(self.cluster.links):
            if link.background is None or (resource := self.known_link(q)) is None:
                continue
            if resource not in found:
                found[resource] = BackgroundFlow(
                    resource=resource, name=link.name, traffic=link.background, weight=self.link_weight
                )
        return tuple(found.values())

    def token_buckets(self) -> tuple[tuple[int, TokenBucket], ...]:
        """The token bucket of every resource that is a shaped link."""
        shaped = ((self.known_link(q), link.bucket) for q, link in enumerate(self.cluster.links) if link.bucket)
        found = {resource: bucket for resource, bucket in shaped if resource is not None and bucket is not None}
        return tuple(found.items())

    # ---- cores and devices -----------------------------------------------------------------------------------------

    def cores(self, rank: int) -> int:
        """The resource of the cores of the host of `rank`."""
        host = self.cluster.placement[rank].host
        h = self.cluster.hosts[host]
        return self.resource(("cores", self.folding.host_class_of[host]), f"{h.name} cores", h.cores, "cores")

    def device(self, rank: int) -> tuple[int, float]:
        """The device of `rank`, and how many ranks of its class compute on that one device."""
        place = self.cluster.placement[rank]
        mixes = self._mixes(place.host)
        mix = mixes[place.device]
        mine = mix.count(self.folding.class_of[rank])
        key = ("device", self.folding.host_class_of[place.host], mix)
        host = self.cluster.hosts[place.host]
        label = f"{host.name} {Path(self.cluster.device_of(rank)).stem}"
        called_so = [d for d in mixes if d is not None and host.devices[d] == self.cluster.device_of(rank)]
        if any(mixes[d] != mix for d in called_so):  # ranks on them differ, so the number has to tell them apart
            label += f" #{min(d for d in called_so if mixes[d] == mix)}"
        return self.resource(key, label, 1.0, "device"), float(mine)

    def _mixes(self, host: int) -> dict[int | None, tuple[int, ...]]:
        """The classes of the ranks on each device of a host that has any."""
        if host not in self._device_mixes:
            found: dict[int | None, list[int]] = {}
            for r in self.on_host[host]:
                found.setdefault(self.cluster.placement[r].device, []).append(self.folding.class_of[r])
            self._device_mixes[host] = {device: tuple(sorted(mix)) for device, mix in found.items()}
        return self._device_mixes[host]

    def processor(self, rank: int) -> tuple[int, float]:
        """What `rank` computes on, its host's cores or a device, and how many ranks of its class do so there."""
        if rank not in self._processors:
            mine = self.folding.class_of[rank]
            on_cores = self.cluster.on_cores(rank)
            found = (self.cores(rank), float(self.near[mine][mine])) if on_cores else self.device(rank)
            self._processors[rank] = found
        return self._processors[rank]
