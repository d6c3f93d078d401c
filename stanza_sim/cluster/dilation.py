"""Time dilation: a cluster whose links run slower, and the same cluster by a clock that runs slower too.

An emulated network can be given the rates of a much faster one if time passes more slowly inside it (D. Gupta et al.,
"To Infinity and Beyond: Time-Warped Network Emulation", NSDI 2006). With a *dilation* of 40 a link of 10 Gb/s is shaped
to 250 Mb/s, and by a clock that shows a second for every 40 it carries 10 Gb/s again. Bytes are what they are. What
takes real time, such as a latency that nobody scaled, takes 40 times less by that clock.
"""

from __future__ import annotations

from dataclasses import replace
from math import isinf

from stanza_sim.cluster.cluster import Cluster
from stanza_sim.cluster.hardware import (
    DirectedLink,
    Host,
    Intra,
    LinkKind,
    Loopback,
    Losses,
    Nic,
    PcieTree,
    TokenBucket,
    Traffic,
    Transport,
)

_INSIDE = (LinkKind.DEVICE_OUT, LinkKind.DEVICE_IN, LinkKind.INSIDE)


def dilated(cluster: Cluster, dilation: float) -> Cluster:
    """Return `cluster` with links `dilation` times slower: what a testbed has to shape.

    Rates of NICs and links are divided, and those of background traffic and of the peaks of token buckets with them;
    what comes and goes does so more slowly. Token buckets hold as many bytes as before, and so pass the same share of
    a message. Latencies, what the software that moves messages allows and costs, and what is inside hosts stay: they
    are the emulating machine's own.
    """
    if dilation == 1:
        return cluster
    hosts = tuple(
        replace(
            host,
            nic=_slower_nic(host.nic, dilation),
            more_nics=tuple(_slower_nic(nic, dilation) for nic in host.more_nics),
        )
        for host in cluster.hosts
    )
    links = (link if link.kind in _INSIDE else _slower_link(link, dilation) for link in cluster.links)
    return replace(cluster, hosts=hosts, links=tuple(links))


def perceived(cluster: Cluster, dilation: float) -> Cluster:
    """Return a dilated `cluster` as it looks by a clock that runs `dilation` times slower.

    Every rate is multiplied and every time divided; so predicting an iteration here is predicting one that computes
    `dilation` times longer on `cluster`, and dividing. Only what NCCL takes is as before: emulated ranks use gloo.
    """
    if dilation == 1:
        return cluster
    by = 1 / dilation
    return replace(
        cluster,
        hosts=tuple(_perceived_host(host, by) for host in cluster.hosts),
        links=tuple(replace(_slower_link(link, by), latency_s=link.latency_s * by) for link in cluster.links),
        wakeup_latency_s=cluster.wakeup_latency_s * by,
    )


# --- rates -----------------------------------------------------------------------------------------------------------


def _slower_traffic(traffic: Traffic | None, factor: float) -> Traffic | None:
    if traffic is None:
        return None
    on_s, off_s = (None if phase_s is None else phase_s * factor for phase_s in (traffic.on_s, traffic.off_s))
    return replace(traffic, bandwidth_Bps=traffic.bandwidth_Bps / factor, on_s=on_s, off_s=off_s)


def _slower_bucket(bucket: TokenBucket | None, factor: float) -> TokenBucket | None:
    if bucket is None or isinf(bucket.peak_Bps):
        return bucket
    return replace(bucket, peak_Bps=bucket.peak_Bps / factor)


def _slower_nic(nic: Nic, factor: float) -> Nic:
    back_Bps = nic.receive_bandwidth_Bps
    return replace(
        nic,
        bandwidth_Bps=nic.bandwidth_Bps / factor,
        receive_bandwidth_Bps=None if back_Bps is None else back_Bps / factor,
        background=_slower_traffic(nic.background, factor),
        bucket=_slower_bucket(nic.bucket, factor),
    )


def _slower_link(link: DirectedLink, factor: float) -> DirectedLink:
    return replace(
        link,
        bandwidth_Bps=link.bandwidth_Bps / factor,
        background=_slower_traffic(link.background, factor),
        bucket=_slower_bucket(link.bucket, factor),
    )


# --- times -----------------------------------------------------------------------------------------------------------


def _perceived_nic(nic: Nic, by: float) -> Nic:
    late_s = nic.receive_latency_s
    return replace(
        _slower_nic(nic, by),
        latency_s=nic.latency_s * by,
        overhead_s=nic.overhead_s * by,
        receive_latency_s=None if late_s is None else late_s * by,
        transport=_perceived_transport(nic.transport, by),
    )


def _perceived_transport(transport: Transport, by: float) -> Transport:
    return replace(
        transport.scaled(1 / by),
        message_core_s=transport.message_core_s * by,
        byte_core_s=transport.byte_core_s * by,
    )


def _perceived_loopback(loopback: Loopback, by: float) -> Loopback:
    return Loopback(
        bandwidth_Bps=loopback.bandwidth_Bps / by,
        latency_s=loopback.latency_s * by,
        message_core_s=loopback.message_core_s * by,
        byte_core_s=loopback.byte_core_s * by,
    )


def _perceived_inside(part: Intra, by: float) -> Intra:
    return replace(
        part,
        bandwidth_Bps=part.bandwidth_Bps / by,
        latency_s=part.latency_s * by,
        tree=None if part.tree is None else _perceived_tree(part.tree, by),
        host_link_Bps=None if part.host_link_Bps is None else part.host_link_Bps / by,
    )


def _perceived_tree(tree: PcieTree, by: float) -> PcieTree:
    def faster(rate_Bps: float | None) -> float | None:
        return None if rate_Bps is None else rate_Bps / by

    return replace(
        tree,
        switch_Bps=faster(tree.switch_Bps),
        root_Bps=faster(tree.root_Bps),
        socket_Bps=faster(tree.socket_Bps),
        memory_Bps=faster(tree.memory_Bps),
    )


def _perceived_losses(losses: Losses, by: float) -> Losses:
    return replace(
        losses,
        iteration_overhead_s=losses.iteration_overhead_s * by,
        overhead_per_device_s=losses.overhead_per_device_s * by,
    )


def _perceived_host(host: Host, by: float) -> Host:
    return replace(
        host,
        nic=_perceived_nic(host.nic, by),
        more_nics=tuple(_perceived_nic(nic, by) for nic in host.more_nics),
        loopback=_perceived_loopback(host.loopback, by),
        intra=None if host.intra is None else _perceived_inside(host.intra, by),
        staging=None if host.staging is None else host.staging.slower(by),
        losses=_perceived_losses(host.losses, by),
    )
