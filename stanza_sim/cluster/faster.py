"""Clusters that are the same but for how fast messages, or hosts, are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from operator import attrgetter

from stanza_sim.cluster.cluster import Cluster
from stanza_sim.cluster.hardware import DirectedLink, Host, Nic, TokenBucket

_parts = attrgetter(*(field.name for field in fields(Host) if field.name != "name"))


def with_faster_network(cluster: Cluster, times: float) -> Cluster:
    """All that messages cross carries so many times as many bytes per second: links, fabrics in hosts, loopbacks."""
    cluster = with_faster_links(cluster, dict.fromkeys(range(len(cluster.links)), times))
    return replace(cluster, hosts=_changed(cluster.hosts, lambda host: _wider(host, times)))


def with_faster_links(cluster: Cluster, times: Mapping[int, float]) -> Cluster:
    """Links, by index, that carry so many times as many bytes per second. Other traffic stays what it is."""
    return replace(
        cluster,
        links=tuple(_wider_link(link, times[q]) if q in times else link for q, link in enumerate(cluster.links)),
    )


def _changed(hosts: Sequence[Host], change: Callable[[Host], Host]) -> tuple[Host, ...]:
    """The hosts with a change that depends on anything but their names; made once for hosts that are made of the same.

    Of a hundred thousand hosts most differ in their names only.
    """
    made: dict[tuple[int, ...], Host] = {}
    found = []
    for host in hosts:
        parts = tuple(map(id, _parts(host)))  # the hosts keep what these are the ids of
        if parts not in made:
            made[parts] = change(host)
        found.append(replace(made[parts], name=host.name))
    return tuple(found)


def _wider_link(link: DirectedLink, times: float) -> DirectedLink:
    return replace(link, bandwidth_Bps=link.bandwidth_Bps * times, bucket=_wider_bucket(link.bucket, times))


def _wider_bucket(bucket: TokenBucket | None, times: float) -> TokenBucket | None:
    return None if bucket is None else replace(bucket, peak_Bps=bucket.peak_Bps * times)


def _wider(host: Host, times: float) -> Host:
    def nic(one: Nic) -> Nic:
        back = one.receive_bandwidth_Bps
        return replace(
            one,
            bandwidth_Bps=one.bandwidth_Bps * times,
            receive_bandwidth_Bps=None if back is None else back * times,
            bucket=_wider_bucket(one.bucket, times),
            transport=one.transport.scaled(times),
        )

    return replace(
        host,
        nic=nic(host.nic),
        more_nics=tuple(map(nic, host.more_nics)),
        intra=None if host.intra is None else replace(host.intra, bandwidth_Bps=host.intra.bandwidth_Bps * times),
        loopback=replace(host.loopback, bandwidth_Bps=host.loopback.bandwidth_Bps * times),
    )


def with_slower_network(cluster: Cluster, times: float) -> Cluster:
    """Whatever messages take, they take so many times as long: rates are divided, latencies and overheads multiplied.

    Bytes that pass at once, and what others send, stay what they are.
    """
    wider = 1 / times

    def link(one: DirectedLink) -> DirectedLink:
        bucket = _wider_bucket(one.bucket, wider)
        return replace(one, bandwidth_Bps=one.bandwidth_Bps * wider, bucket=bucket, latency_s=one.latency_s * times)

    return replace(
        cluster,
        links=tuple(map(link, cluster.links)),
        hosts=_changed(cluster.hosts, lambda host: _later(_wider(host, wider), times)),
        wakeup_latency_s=cluster.wakeup_latency_s * times,
    )


def with_quicker_messages(cluster: Cluster, times: float) -> Cluster:
    """What messages take beside the rates of what they cross is divided: latencies, and what they cost cores.

    These are overheads, wake-ups, and core-seconds of messages and of bytes. Rates stay what they are.
    """
    later = 1 / times

    def link(one: DirectedLink) -> DirectedLink:
        return replace(one, latency_s=one.latency_s * later)

    def change(host: Host) -> Host:
        back = _later(host, later)
        return replace(
            back,
            nccl_times=host.nccl_times,
            nccl_latency_times=host.nccl_latency_times * later,
            staging=None if host.staging is None else host.staging.later(later),
        )

    return replace(
        cluster,
        links=tuple(map(link, cluster.links)),
        hosts=_changed(cluster.hosts, change),
        wakeup_latency_s=cluster.wakeup_latency_s * later,
    )


def with_faster_hosts(cluster: Cluster, times: Mapping[int, float]) -> Cluster:
    """Hosts, by index, whose devices and cores compute so many times as fast."""
    hosts = [
        replace(host, device_speed=host.device_speed * times[h]) if h in times else host
        for h, host in enumerate(cluster.hosts)
    ]
    return replace(cluster, hosts=tuple(hosts))


def _later(host: Host, times: float) -> Host:
    def nic(one: Nic) -> Nic:
        back_s, cost = one.receive_latency_s, one.transport
        return replace(
            one,
            latency_s=one.latency_s * times,
            overhead_s=one.overhead_s * times,
            receive_latency_s=None if back_s is None else back_s * times,
            transport=replace(cost, message_core_s=cost.message_core_s * times, byte_core_s=cost.byte_core_s * times),
        )

    loop, intra, copies = host.loopback, host.intra, host.staging
    return replace(
        host,
        nic=nic(host.nic),
        more_nics=tuple(map(nic, host.more_nics)),
        nccl_times=host.nccl_times * times,
        intra=None if intra is None else replace(intra, latency_s=intra.latency_s * times),
        loopback=replace(
            loop,
            latency_s=loop.latency_s * times,
            message_core_s=loop.message_core_s * times,
            byte_core_s=loop.byte_core_s * times,
        ),
        staging=None if copies is None else copies.slower(times),
    )
