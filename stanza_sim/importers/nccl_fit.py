"""Fits the constants of a platform to logs of nccl-tests, and writes them as a file that a topology can name.

Fitted, by a search along one constant after another, are the bus rates inside a host and of its NICs, the overhead, and
the pass through memory where that can be told from the rate: where logs have different numbers of GPUs in one host, or
where the links of a cluster bound the rate. The least time comes from the smallest sizes. What no log tells is a known
platform's. What is minimised is the mean of |log (predicted / measured)| and half its root mean square, over all sizes
of `FROM_BYTES` and more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, inf, sqrt
from math import log as ln
from pathlib import Path
from statistics import median

import numpy as np

from stanza_sim.base.errors import InputError
from stanza_sim.base.files import write_whole
from stanza_sim.cluster.cluster import Cluster
from stanza_sim.cluster.nccl import NcclPlatform, load_nccl
from stanza_sim.importers.nccl_tests import NcclLog, Timed
from stanza_sim.schedule import CollectiveKind
from stanza_sim.simulate.lowering.nccl import Layout, price
from stanza_sim.simulate.one_collective import OneCollective

FROM_BYTES = 256 * 1024
"""Smaller collectives are not fitted: there, what programs do between them counts more than what NCCL does."""
SMALL_BYTES = 1024
"""Collectives of no more than this take the least time there is."""
LEAST_ROWS = 4
"""With fewer sizes than these there is nothing to fit."""
GAIN = 0.2
"""By how much the loss has to fall for the pass through memory to be fitted where links bound the bus rate."""
MOST_ROUNDS = 200
"""Rounds of the search, each of two steps along every constant; it ends when steps are below one in a thousand."""
BOUNDS = {
    "inside_Bps": (1e7, 1e13),
    "across_Bps": (1e7, 1e13),
    "memory_Bps": (1e9, 1e14),
    "overhead_s": (1e-7, 1e-2),
}
"""Where constants are looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Residual:
    """How far the fitted model is off in one log, in percent of what was measured, at `FROM_BYTES` and more."""

    path: str
    gpus: int
    hosts: int
    rows: int
    median_pct: float
    p90_pct: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """A platform, which of its constants were fitted, and how far it is off from the logs."""

    platform: NcclPlatform
    fitted: tuple[str, ...]
    base: str
    residuals: tuple[Residual, ...]


def platform_like(logs: Sequence[NcclLog]) -> str:
    """The shipped platform to begin with, by what the driver calls the GPUs: A100s on NVLink, others on it, or PCIe."""
    names = {log.device for log in logs}
    if all("A100" in name and "PCI" not in name for name in names):
        return "a100-nvlink"
    return "nvlink" if all("SXM" in name or "NVL" in name or not name for name in names) else "pcie"


def fit(logs: Sequence[NcclLog], *, base: str, name: str, cluster: Cluster | None = None) -> Fitted:
    """Fit a platform called `name`, which begins as `base` and keeps of it what no log tells.

    With `cluster`, its links bound the rates and its latencies count; the GPUs of the logs must be there. Without, all
    of a hop is NCCL's. Raises `InputError` where there is too little to fit, or a GPU is not in the cluster.
    """
    laid_out = _laid_out(logs, cluster)
    if (count := sum(len(rows) for _, rows in laid_out)) < LEAST_ROWS:
        what = f"{count} times of 256 KiB and more, of more than one GPU: too few to fit"
        hint = "run such as: all_reduce_perf -b 1K -e 1G -f 2"
        raise InputError(what, where=", ".join(dict.fromkeys(log.path for log in logs)), hint=hint)
    start = _start(load_nccl(base), laid_out)
    keys = _keys(laid_out)
    launch_s = _launch_s(logs)
    if launch_s is not None:
        start = replace(start, launch_s=launch_s)
    found = _search(start, keys, laid_out)
    if "memory_Bps" not in keys and _at_links(found, laid_out):
        freed = _search(found, (*keys, "memory_Bps"), laid_out)
        if _loss(freed, laid_out) < (1 - GAIN) * _loss(found, laid_out):
            found, keys = freed, (*keys, "memory_Bps")
    sources = [f"Fitted to {count} times of nccl-tests: {', '.join(dict.fromkeys(log.path for log in logs))}."]
    sources += [f"What they do not tell is as in {base}: {source}" for source in found.sources]
    description = f"Fitted to logs of nccl-tests with {', '.join(str(log.gpus) for log in logs)} GPUs."
    named = replace(found, name=name, description=description, sources=tuple(sources))
    told = (*keys, *(["launch_s"] if launch_s is not None else []))
    return Fitted(platform=named, fitted=told, base=base, residuals=residuals(found, logs, cluster=cluster))


def residuals(
    platform: NcclPlatform, logs: Sequence[NcclLog], *, cluster: Cluster | None = None
) -> tuple[Residual, ...]:
    """How far `platform` is off in each log, of the fit or not, that has times of `FROM_BYTES` and more."""
    found = []
    for log, (layout, rows) in zip(logs, _laid_out(logs, cluster), strict=True):
        if rows:
            found.append(_residual(log, platform, layout, rows))
    return tuple(found)


def _laid_out(logs: Sequence[NcclLog], cluster: Cluster | None) -> list[tuple[Layout, list[Timed]]]:
    """The group of each log, and its times that are to be fitted: none where one GPU was alone."""
    most = max((max(log.by_host) for log in logs), default=1)
    return [
        (_layout(log, most, cluster), [row for row in log.rows if row.nbytes >= FROM_BYTES and log.gpus > 1])
        for log in logs
    ]


def _layout(log: NcclLog, most: int, cluster: Cluster | None) -> Layout:
    """The group of a log as NCCL sees it: on the cluster or, without one, on hosts of `most` GPUs with NICs alike."""
    by_host = log.by_host
    if cluster is None:
        return Layout(
            ranks=log.gpus,
            hosts=len(by_host),
            inside_Bps=inf,
            across_Bps=inf,
            memory_Bps=inf,
            nics_share=min(by_host) / most,
            gpus_per_process=log.gpus_per_process,
        )
    places = [[r for r, p in enumerate(cluster.placement) if p.host == h] for h in range(len(cluster.hosts))]
    if len(by_host) > len(places) or any(n > len(there) for n, there in zip(by_host, places, strict=False)):
        what = f"has {' + '.join(map(str, by_host[:8]))}{' + ...' if len(by_host) > 8 else ''} GPUs on its hosts"
        raise InputError(f"{what}, which {cluster.name} has not", where=log.path, hint="name another --cluster")
    ranks = [r for n, there in zip(by_host, places, strict=False) for r in there[:n]]
    layout = OneCollective(cluster, ranks).layout
    if layout is None:
        what = f"{cluster.name} does not say what joins the devices of a host"
        raise InputError(what, where="--cluster", hint="write `intra:` in its topology, or leave --cluster out")
    return replace(layout, gpus_per_process=log.gpus_per_process)


def _start(base: NcclPlatform, laid_out: Sequence[tuple[Layout, Sequence[Timed]]]) -> NcclPlatform:
    """Where the search begins: at the best bus rates that were measured; shares become part of the rates."""
    inside = [_bus_Bps(layout, row) for layout, rows in laid_out for row in rows if layout.hosts == 1]
    across = [
        _bus_Bps(layout, row) / layout.nics_share for layout, rows in laid_out for row in rows if layout.hosts > 1
    ]
    memory_Bps = base.memory_Bps or base.memory_share * min(layout.memory_Bps for layout, _ in laid_out)
    return replace(
        base,
        inside_share=1.0,
        across_share=1.0,
        inside_Bps=1.2 * max(inside) if inside else None,
        across_Bps=1.1 * max(across) if across else None,
        memory_Bps=725e9 if memory_Bps == inf else memory_Bps,
        overhead_s=max(base.overhead_s, BOUNDS["overhead_s"][0]),
    )


def _bus_Bps(layout: Layout, row: Timed) -> float:
    n = layout.ranks
    edge = {CollectiveKind.ALL_REDUCE: 2 * (n - 1) / n, CollectiveKind.BROADCAST: 1.0}.get(row.kind, (n - 1) / n)
    return edge * row.nbytes / row.seconds


def _keys(laid_out: Sequence[tuple[Layout, Sequence[Timed]]]) -> tuple[str, ...]:
    """The constants that these logs tell."""
    inside = {layout.ranks for layout, rows in laid_out if rows and layout.hosts == 1}
    across = any(rows and layout.hosts > 1 for layout, rows in laid_out)
    told = [*(["inside_Bps"] if inside else []), *(["across_Bps"] if across else [])]
    return (*told, *(["memory_Bps"] if len(inside) > 1 else []), "overhead_s")


def _at_links(found: NcclPlatform, laid_out: Sequence[tuple[Layout, Sequence[Timed]]]) -> bool:
    """Whether the links of the hosts, not NCCL, bound what was fitted: then the pass through memory can be told."""
    bounds = [layout.inside_Bps for layout, rows in laid_out if rows and layout.hosts == 1]
    return found.inside_Bps is not None and bool(bounds) and found.inside_Bps >= min(bounds)


def _launch_s(logs: Sequence[NcclLog]) -> float | None:
    """The least time, for each GPU that a process drives, by the smallest sizes on one host."""
    small = [
        median(times) / log.gpus_per_process
        for log in logs
        if len(log.by_host) == 1
        and log.gpus_per_process == log.gpus
        and (times := [row.seconds for row in log.rows if row.nbytes <= SMALL_BYTES])
    ]
    return min(small) if small else None


# ---- the search ----------------------------------------------------------------------------------------------------


def _errors(platform: NcclPlatform, laid_out: Sequence[tuple[Layout, Sequence[Timed]]]) -> list[float]:
    """The log of predicted over measured, of every time."""
    return [
        ln(price(platform, layout, row.kind, row.nbytes).seconds / row.seconds)
        for layout, rows in laid_out
        for row in rows
    ]


def _loss(platform: NcclPlatform, laid_out: Sequence[tuple[Layout, Sequence[Timed]]]) -> float:
    errors = _errors(platform, laid_out)
    return sum(map(abs, errors)) / len(errors) + 0.5 * sqrt(sum(e * e for e in errors) / len(errors))


def _search(
    start: NcclPlatform, keys: Sequence[str], laid_out: Sequence[tuple[Layout, Sequence[Timed]]]
) -> NcclPlatform:
    """The platform with the least loss that steps along single constants, and along the last gain, lead to."""
    steps = dict.fromkeys(keys, 0.2)
    here, least = start, _loss(start, laid_out)
    for _ in range(MOST_ROUNDS):
        before = here
        for key in keys:
            for factor in (exp(steps[key]), exp(-steps[key])):
                there = _moved(here, {key: factor})
                if (loss := _loss(there, laid_out)) < least:
                    here, least, steps[key] = there, loss, steps[key] * 1.3
                    break
            else:
                steps[key] /= 2
        gain = {key: getattr(here, key) / getattr(before, key) for key in keys}
        if (loss := _loss(there := _moved(here, gain), laid_out)) < least:
            here, least = there, loss
        if max(steps.values()) < 1e-3:
            break
    return here


def _moved(platform: NcclPlatform, factors: Mapping[str, float]) -> NcclPlatform:
    changes: dict[str, float] = {}
    for key, factor in factors.items():
        low, high = BOUNDS[key]
        changes[key] = min(max(getattr(platform, key) * factor, low), high)
    return replace(platform, **changes)  # type: ignore[arg-type]


def _residual(log: NcclLog, platform: NcclPlatform, layout: Layout, rows: Sequence[Timed]) -> Residual:
    off = [abs(exp(e) - 1) * 100 for e in _errors(platform, [(layout, rows)])]
    return Residual(
        path=log.path,
        gpus=log.gpus,
        hosts=len(log.by_host),
        rows=len(rows),
        median_pct=median(off),
        p90_pct=float(np.percentile(off, 90)),
    )


# ---- files ---------------------------------------------------------------------------------------------------------


def write_platform(platform: NcclPlatform, path: Path) -> None:
    """Write a platform as a file for `nccl:` of a topology; raise `InputError` if it cannot be written there."""
    write_whole(json.dumps(platform_data(platform), indent=2) + "\n", path)


def platform_data(platform: NcclPlatform) -> dict[str, object]:
    """What a platform's file says, every quantity with its unit."""
    data: dict[str, object] = {
        "name": platform.name,
        "description": platform.description,
        "sources": list(platform.sources),
        "inside_share": platform.inside_share,
        "across_share": platform.across_share,
    }
    for key, value in (
        ("inside", platform.inside_Bps),
        ("across", platform.across_Bps),
        ("memory", platform.memory_Bps),
    ):
        if value is not None:
            data[key] = f"{value / 1e9:.6f}GB/s"
    data["memory_share"] = platform.memory_share
    data["overhead"], data["launch"] = _us(platform.overhead_s), _us(platform.launch_s)
    data["ramp"], data["ll128"] = f"{platform.ramp_bytes:.0f}B", platform.ll128
    parts = {"base": platform.base_s, "inside": platform.inside_s, "across": platform.across_s}
    data["latency"] = {
        part: {
            algorithm: {"ll": _us(times.ll), "ll128": _us(times.ll128), "simple": _us(times.simple)}
            for algorithm, times in (("ring", hops.ring), ("tree", hops.tree))
        }
        for part, hops in parts.items()
    }
    if platform.channels is not None:
        data["channels"] = {
            "count": platform.channels,
            "tree": [f"{rate / 1e9:g}GB/s" for rate in platform.tree_channel_Bps],
            "ll128": f"{platform.ll128_channel_Bps / 1e9:g}GB/s",
        }
    return data


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:.6f}us"
