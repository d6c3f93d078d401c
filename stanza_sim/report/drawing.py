"""What a drawing of a cluster in text and one in a picture have in common."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

from stanza_sim.base.units import format_rate, format_time
from stanza_sim.cluster import Cluster, DirectedLink, Host

Utilisation = Mapping[str, float]
"""Share of the time for which a link is busy, by its label or name, such as `Prediction.utilisation` (which leaves out
links that nothing uses); links that it does not name are not drawn as busy or idle."""


def busy(link: DirectedLink, utilisation: Utilisation) -> float | None:
    """Return how busy `link` is, if `utilisation` has it."""
    return utilisation.get(link.label, utilisation.get(link.name))


def levels(cluster: Cluster) -> list[int]:
    """Return the layer of each switch: 1 next to hosts, 2 for those above, and so on."""
    beside: list[set[int]] = [set() for _ in cluster.switches]
    for a, b, _ in cluster.fabric.trunks:
        beside[a].add(b)
        beside[b].add(a)
    level = [0] * len(cluster.switches)
    frontier = sorted({s for attached in cluster.fabric.attached for s in attached})
    depth = 1
    while frontier:
        for s in frontier:
            level[s] = depth
        frontier = sorted({t for s in frontier for t in beside[s] if not level[t]})
        depth += 1
    return [at or depth for at in level]


def alike(count: int, looks: Callable[[int], Hashable], near: Sequence[Iterable[tuple[Hashable, int]]]) -> list[int]:
    """Return the class of each of `count` things: same looks and, refined, the same neighbours over the same links."""
    classes = _number(looks(i) for i in range(count))
    while True:
        finer = _number(
            (classes[i], tuple(sorted((str(link), classes[j]) for link, j in near[i]))) for i in range(count)
        )
        if max(finer, default=0) == max(classes, default=0):
            return classes
        classes = finer


def span_of(names: Sequence[str]) -> str:
    """Return many names in short: `node-0..31` if they count up, otherwise the first and the last."""
    if len(names) == 1:
        return names[0]
    parts = [re.fullmatch(r"(.*?)(\d+)", name) for name in names]
    first = parts[0]
    if first and all(p and p[1] == first[1] and int(p[2]) == int(first[2]) + i for i, p in enumerate(parts)):
        return f"{names[0]}..{int(first[2]) + len(names) - 1}"
    return f"{names[0]} .. {names[-1]}"


def about_host(host: Host) -> str:
    """Return what a host has, in a few words."""
    devices = [d.rpartition("/")[2].removesuffix(".yaml") for d in host.devices]
    kinds = [f"{devices.count(d)} x {d}" if devices.count(d) > 1 else d for d in dict.fromkeys(devices)]
    speed = "" if host.device_speed == 1 else f", speed {host.device_speed:g}"
    return ", ".join([f"{host.cores} core{'s' if host.cores > 1 else ''}", *kinds]) + speed


def about_link(link: DirectedLink, back: DirectedLink | None = None) -> str:
    """Return a link's goodput and latency, and those of the way back where they differ."""
    text = f"{format_rate(link.bandwidth_Bps)} goodput, {format_time(link.latency_s)}"
    if back is None or (back.bandwidth_Bps, back.latency_s) == (link.bandwidth_Bps, link.latency_s):
        return text
    return f"{text} (back {format_rate(back.bandwidth_Bps)}, {format_time(back.latency_s)})"


def _number(keys: Iterable[Hashable]) -> list[int]:
    ids: dict[Hashable, int] = {}
    return [ids.setdefault(key, len(ids)) for key in keys]
