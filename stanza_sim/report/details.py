"""What a result's folder says beyond `result.json`: all that a page and pictures need, each number worked out once.

`details.json` is one object: `format`, `version`, `experiment`, `settings` (the experiment as it was read), `versions`
of the programs, `cluster` (what is alike, once, in layers; null for very large ones) and `rows`, one for each row of
the result, in its order:

    files         stem of its files in schedules/ and spans/
    predicted, measured   `window_s`, begin and end of typical iterations on the spans' clock, `iterations`, how many
                  these are, and `seconds`, an iteration of a rank that trains, by what it is charged to (see `compare`)
    utilisation   predicted, of the busiest links and devices by name: the share of time in which each is busy
    traffic       bytes per iteration from and to each of `names`; null where there are too many messages to count
    blocks        FLOPs, bytes of memory traffic and seconds of each block's passes, of the rank that trains first
    device        what these are computed on: `name`, `precision`, `peak_flops` and `memory_Bps`

Seconds, bytes, and FLOPs; null is what is not known.
"""

from __future__ import annotations

import json
import platform
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from statistics import median

from stanza_sim.base.errors import InputError
from stanza_sim.base.precision import HALF, HALF_BYTES
from stanza_sim.base.version import __version__
from stanza_sim.cluster import Cluster, load_device
from stanza_sim.model.profile import Block
from stanza_sim.report.classes import Classes, Pair
from stanza_sim.report.compare import per_iteration, typical_iterations
from stanza_sim.report.drawing import about_host, about_link, busy, span_of
from stanza_sim.report.pair_bytes import pair_bytes
from stanza_sim.report.result import Json, Result, Row
from stanza_sim.schedule import Compute, Phase, Schedule
from stanza_sim.simulate.roofline import FORWARD_PASSES
from stanza_sim.timeline.spans import Timeline

FORMAT, VERSION = "stanza_sim details", 1
MOST_PLACES = 64
"""A traffic matrix has at most so many rows: ranks, else hosts, else runs of hosts."""
MOST_HOSTS = 20_000
"""Of a larger cluster it is not looked at what is alike, which takes some seconds there."""
MOST_BUSY = 200
"""So many links and devices are named: the busiest."""
PROGRAMS = ("numba", "numpy", "simpy", "torch")


def details_json(result: Result, stems: Sequence[str]) -> str:
    """`details.json` of a result whose rows' files have these `stems`."""
    seen = [row.hardware for row in result.rows if row.hardware is not None]
    clusters = {cluster.name: cluster for cluster in seen if len(cluster.hosts) <= MOST_HOSTS}
    data: dict[str, Json] = {
        "format": FORMAT,
        "version": VERSION,
        "experiment": result.experiment,
        "settings": result.settings,
        "versions": _versions(),
        "cluster": None if len(clusters) != 1 else _cluster(next(iter(clusters.values())), result.rows),
        "rows": [_row(row, stem) for row, stem in zip(result.rows, stems, strict=True)],
    }
    return json.dumps(data, allow_nan=False) + "\n"


def _versions() -> dict[str, Json]:
    found: dict[str, Json] = {"stanza_sim": __version__, "python": platform.python_version()}
    for name in PROGRAMS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _row(row: Row, stem: str) -> dict[str, Json]:
    measured = None if row.measurement is None else row.measurement.timeline
    return {
        "files": stem,
        "label": row.label,
        "model": row.model,
        "predicted": _typical(row.prediction.timeline, row.schedule),
        "measured": None if measured is None else _typical(measured, row.schedule),
        "utilisation": _busiest(row.prediction.utilisation),
        "traffic": None if row.hardware is None else _traffic(row.schedule, row.hardware),
        "blocks": _blocks(row, measured),
        "device": _device(row),
    }


def _busiest(utilisation: Mapping[str, float]) -> dict[str, Json]:
    return dict(sorted(utilisation.items(), key=lambda one: (-one[1], one[0]))[:MOST_BUSY])


def _typical(timeline: Timeline, schedule: Schedule) -> dict[str, Json] | None:
    """Typical iterations of a timeline, and what a rank's time goes to; None of one that is not there."""
    if not timeline.spans:
        return None
    first, last = typical_iterations(timeline)
    begins, ends = ([at[i] for at in timeline.iteration_end_s.values()] for i in (first, last))
    return {
        "window_s": [max(begins), max(ends)],
        "iterations": last - first,
        "seconds": per_iteration(timeline, schedule),
    }


# --- traffic ---------------------------------------------------------------------------------------------------------


def _traffic(schedule: Schedule, cluster: Cluster) -> dict[str, Json] | None:
    """Bytes per iteration between ranks, or between hosts where there are more than `MOST_PLACES` ranks."""
    moved = pair_bytes(schedule)
    if moved is None:
        return None
    names, place = _places(cluster)
    found: defaultdict[tuple[int, int], int] = defaultdict(int)
    for (a, b), nbytes in moved.items():
        found[place[a], place[b]] += nbytes
    return {"names": names, "nbytes": [[a, b, nbytes] for (a, b), nbytes in sorted(found.items())]}


def _places(cluster: Cluster) -> tuple[list[str], list[int]]:
    """Names of the places of a matrix, and the place of each rank."""
    if cluster.world_size <= MOST_PLACES:
        return [f"rank {r}" for r in range(cluster.world_size)], list(range(cluster.world_size))
    hosts = [host.name for host in cluster.hosts]
    each = -(-len(hosts) // MOST_PLACES)
    runs = [hosts[i : i + each] for i in range(0, len(hosts), each)]
    return [span_of(run) for run in runs], [at.host // each for at in cluster.placement]


# --- the cluster -----------------------------------------------------------------------------------------------------


def _cluster(cluster: Cluster, rows: Sequence[Row]) -> dict[str, Json]:
    """What is alike, once, with its count, and the links between; how busy they are in each row, both directions."""
    made = Classes(cluster=cluster)
    number = {c: i for i, c in enumerate(made.members)}
    hosts = len(cluster.hosts)
    nodes: list[Json] = []
    for members in made.members.values():
        host = members[0] < hosts
        about = about_host(cluster.hosts[members[0]]) if host else "switch"
        nodes.append(
            {
                "name": made.names(made.class_of[members[0]]),
                "kind": "host" if host else "switch",
                "count": len(members),
                "level": made.level[members[0]],
                "about": about,
                "inside": _inside(cluster, members, rows) if host else None,
            }
        )
    links: list[Json] = []
    for low in made.members:
        for high in made.members:
            ends = [(made.level[made.members[c][0]], c) for c in (low, high)]
            if ends[0] <= ends[1] and (pairs := made.between(low, high)):
                known = [_busy_of(pairs, cluster, row.prediction.utilisation) for row in rows]
                about = made.about(low, pairs)
                links.append({"from": number[low], "to": number[high], "about": about, "busy": known})
    return {
        "name": cluster.name,
        "description": cluster.description,
        "hosts": hosts,
        "ranks": cluster.world_size,
        "nodes": nodes,
        "links": links,
    }


def _inside(cluster: Cluster, members: Sequence[int], rows: Sequence[Row]) -> dict[str, Json] | None:
    """What joins the devices of hosts that are alike, if anything does."""
    intra = cluster.hosts[members[0]].intra
    if intra is None:
        return None
    pairs = [pair for h in members for pair in cluster.fabric.device_links[h]]
    about = f"{intra.kind} inside: {about_link(cluster.links[pairs[0][0]])}"
    return {"about": about, "busy": [_busy_of(pairs, cluster, row.prediction.utilisation) for row in rows]}


def _busy_of(pairs: Iterable[Pair], cluster: Cluster, utilisation: Mapping[str, float]) -> list[float]:
    """The mean and the largest share of time in which these links are busy, those that nothing uses included."""
    found = [busy(cluster.links[k], utilisation) or 0.0 for pair in pairs for k in pair]
    return [sum(found) / len(found), max(found)]


# --- blocks on their device ------------------------------------------------------------------------------------------


def _device(row: Row) -> dict[str, Json] | None:
    """The device of the rank that trains first, as its data sheet says; None where that has no such precision."""
    if row.hardware is None:
        return None
    try:
        device = load_device(row.hardware.device_of(row.schedule.data_ranks[0]))
        peak = device.precision(row.precision).peak_flops
    except InputError:
        return None
    return {
        "name": device.name,
        "precision": row.precision,
        "peak_flops": peak,
        "memory_Bps": device.memory_bandwidth_Bps,
    }


def _blocks(row: Row, measured: Timeline | None) -> list[Json]:
    """The forward pass of each block that a rank computes for its own samples only, in the order of the model."""
    if row.profile is None or not row.prediction.timeline.spans:
        return []
    schedule = row.schedule
    whole = {b.name: b for b in row.profile.blocks if schedule.cut(b.name) is None}
    passes: dict[str, list[str]] = {}
    for op in schedule.ops:
        if isinstance(op, Compute) and op.phase is Phase.FORWARD and op.target in whole:
            passes.setdefault(op.target, []).append(op.name if op.microbatch < schedule.microbatches else "")
    own = {name: ops for name, ops in passes.items() if "" not in ops}  # all but those with others' samples too
    samples, predicted = schedule.batch_per_worker, _op_seconds(row.prediction.timeline, schedule)
    seen = {} if measured is None else _op_seconds(measured, schedule)
    width = HALF_BYTES / row.profile.itemsize if row.precision in HALF else 1.0
    found: list[Json] = []
    for name, ops in own.items():
        if not all(predicted.get(op) for op in ops):
            continue
        block = whole[name]
        found.append(
            {
                "name": name,
                "kind": block.kind.value,
                "flops": block.forward_flops * samples,
                "nbytes": width * _forward_bytes(block, samples, row.profile.itemsize),
                "predicted_s": sum(predicted[op] for op in ops),
                "measured_s": sum(seen[op] for op in ops) if all(op in seen for op in ops) else None,
            }
        )
    return found


def _op_seconds(timeline: Timeline, schedule: Schedule) -> dict[str, float]:
    """The median seconds of each op at the first rank that trains, or one that stands for such."""
    trains = schedule.data_ranks
    rank = next((r for r in sorted(timeline.iteration_end_s) if r in trains), None)
    found: defaultdict[str, list[float]] = defaultdict(list)
    for span in timeline.of(rank=rank):
        found[span.op].append(span.duration_s)
    return {op: median(seconds) for op, seconds in found.items()}


def _forward_bytes(block: Block, samples: int, itemsize: int) -> float:
    """Bytes of memory that a forward pass touches, by kind of op or, where these are not known, as for a roofline."""
    if block.work:
        return sum(w.forward.sample_nbytes * samples + w.forward.fixed_nbytes for w in block.work)
    return FORWARD_PASSES * block.bytes_touched * samples + block.numel * itemsize
