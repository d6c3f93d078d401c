"""A quick lower bound on an iteration, from the schedule alone: nothing is checked, folded or lowered.

It counts what every order of the work has in common with the exact bound (`bounds.py`) and is quick to add up: passes
and losses on each lane and device, and what crosses each host's NICs, limited processes and devices' links over PCIe.
It leaves out sums, updates, loopbacks, cores and all other links, so it is at or below the exact bound.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stanza_sim.cluster.cluster import Cluster, IntraKind, Placement
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import (
    Collective,
    CollectiveKind,
    Compute,
    Layout,
    Pattern,
    Phase,
    Schedule,
    Transfer,
)
from stanza_sim.schedule.collectives import has_closed_form
from stanza_sim.simulate.lowering.op_costs import OpCosts

if TYPE_CHECKING:
    from stanza_sim.simulate.costs import CostModel

COMPLETE = (Pattern.FAN_IN, Pattern.FAN_OUT, Pattern.ALL_PAIRS)
"""Patterns in which every rank of one group sends to every rank of the other."""
MOST_PAIRS = 50_000
"""Of a transfer whose pairs carry slices of their own, so many are looked at one by one."""

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


def quick_bound_s(
    schedule: Schedule, model: ModelProfile, cluster: Cluster, cost_of: Callable[[int], CostModel]
) -> float:
    """Seconds per iteration that no order of the work of a legal `schedule` can beat, at or below the exact bound.

    `cost_of(rank)` gives the cost model of the device that a rank computes on. The cluster must have the schedule's
    number of ranks.
    """
    return max(
        _computing_s(schedule, model, cluster, cost_of), _crossing_s(schedule, cluster), _ends_s(schedule, cluster)
    )


# ---- computations -------------------------------------------------------------------------------------------------


def _computing_s(
    schedule: Schedule, model: ModelProfile, cluster: Cluster, cost_of: Callable[[int], CostModel]
) -> float:
    """The busiest lane of a rank, or the busiest device, with passes and losses alone."""
    costs = OpCosts(schedule, model, cost_of)
    alike: dict[tuple[object, ...], Compute] = {}
    times: dict[tuple[object, ...], int] = defaultdict(int)
    for op in schedule.ops:
        if isinstance(op, Compute) and not op.phase.on_bundle and op.phase is not Phase.RECONSTRUCT:
            key: tuple[object, ...] = (
                op.phase,
                op.target,
                op.ranks,
                op.lane,
                costs.samples[op.target, op.microbatch].tobytes(),
            )
            alike.setdefault(key, op)
            times[key] += 1
    n = cluster.world_size
    models: dict[int, int] = {}
    like = np.array([models.setdefault(id(cost_of(rank)), len(models)) for rank in range(n)], dtype=np.int64)
    groups: dict[str, I64] = {}
    widths: dict[tuple[str, str], I64] = {}
    lanes: dict[str, F64] = defaultdict(lambda: np.zeros(n))
    for like_it, op in alike.items():
        if op.ranks not in groups:
            groups[op.ranks] = np.array(list(schedule.group(op.ranks)), dtype=np.int64)
        ranks, cut = groups[op.ranks], schedule.cut(op.target)
        if (op.target, op.ranks) not in widths:
            ends = [(0, 0) if cut is None else schedule.features(cut, rank) for rank in ranks.tolist()]
            widths[op.target, op.ranks] = np.array([hi - lo for lo, hi in ends], dtype=np.int64)
        samples, width = costs.samples[op.target, op.microbatch][ranks], widths[op.target, op.ranks]
        alike_ranks = (like[ranks] * (int(samples.max()) + 1) + samples) * (int(width.max()) + 1) + width
        _, first, which = np.unique(alike_ranks, return_index=True, return_inverse=True)
        seconds = np.array([costs.compute_s(op, rank) for rank in ranks[first].tolist()])
        lanes[op.lane][ranks] += times[like_it] * seconds[which]
    places: dict[Placement, int] = {}
    device = np.array([places.setdefault(p, len(places)) for p in cluster.placement], dtype=np.int64)
    on_device = np.array([not cluster.on_cores(rank) for rank in range(n)])
    busy = sum(lanes.values(), np.zeros(n))
    devices = np.bincount(device, weights=np.where(on_device, busy, 0.0))
    return float(max([*(lane.max() for lane in lanes.values()), devices.max()]))


# ---- messages -----------------------------------------------------------------------------------------------------


def _crossing_s(schedule: Schedule, cluster: Cluster) -> float:
    """The busiest direction of a host's NICs together, which all that leaves or enters it crosses."""
    hosts = np.array([p.host for p in cluster.placement], dtype=np.int64)
    if len(np.unique(hosts)) < 2:
        return 0.0
    out, into = _transfers(schedule, hosts, hosts, len(cluster.hosts))
    links = [cluster.nic_links_of(h) for h in range(len(cluster.hosts))]
    capacity = [
        np.array([sum(cluster.links[p[side]].bandwidth_Bps for p in ports) for ports in links]) for side in (0, 1)
    ]
    spread: dict[str, float] = defaultdict(float)  # of collectives: bytes that leave all hosts of a group together
    for op in schedule.ops:
        if not isinstance(op, Collective):
            continue
        ranks = list(schedule.group(op.ranks))
        there = np.unique(hosts[ranks])
        # Whatever the steps: a sum, or a value, reaches all hosts of a group only by crossing to each but one.
        total = float(op.nbytes) * (len(there) - 1) * (2 if op.kind is CollectiveKind.ALL_REDUCE else 1)
        if has_closed_form(op) and op.kind is not CollectiveKind.BROADCAST and len(there) == len(ranks):
            out[there] += total / len(there)
            into[there] += total / len(there)
        else:
            spread[op.ranks] += total
    sides = list(zip((out, into), capacity, strict=True))
    bounds = [nbytes[h] / rate[h] for nbytes, rate in sides for h in np.flatnonzero(nbytes)]
    for name, total in spread.items():
        there = np.unique(hosts[list(schedule.group(name))])
        if len(there) > 1:
            bounds.extend((nbytes[there].sum() + total) / rate[there].sum() for nbytes, rate in sides)
    return float(max(bounds, default=0.0))


def _ends_s(schedule: Schedule, cluster: Cluster) -> float:
    """The busiest direction of a process between hosts, or of a device's link over PCIe, with transfers alone."""
    hosts = np.array([p.host for p in cluster.placement], dtype=np.int64)
    ranks = np.arange(cluster.world_size, dtype=np.int64)
    found = [0.0]
    of_process = [cluster.hosts[p.host].transport_of(p.device).process_Bps for p in cluster.placement]
    if any(of_process):
        capacity = np.array([limit_Bps or np.inf for limit_Bps in of_process])
        found += [float((moved / capacity).max()) for moved in _transfers(schedule, hosts, ranks, len(ranks))]
    over_pcie = [h for h, host in enumerate(cluster.hosts) if host.intra and host.intra.kind is IntraKind.PCIE]
    if over_pcie:
        ids: dict[Placement, int] = {}
        places = np.array([ids.setdefault(p, len(ids)) for p in cluster.placement], dtype=np.int64)
        for side, moved in enumerate(_transfers(schedule, places, places, len(ids))):
            for place, nbytes in zip(ids, moved.tolist(), strict=True):
                if place.device is not None and place.host in over_pcie:
                    link = cluster.fabric.inside[place.host].devices[place.device][side]
                    found.append(nbytes / cluster.links[link].bandwidth_Bps)
    return max(found)


def _transfers(schedule: Schedule, apart: I64, owner: I64, count: int) -> tuple[F64, F64]:
    """Bytes of transfers that leave, and that enter, each of `count` owners of ranks, between ranks that are `apart`.

    Both arrays are by rank: two ranks are apart if their entries in `apart` differ. Where every rank of a group sends
    to every rank of another, pairs are not looked at one by one; where they would have to be, as each pair carries
    slices of its own, more than `MOST_PAIRS` are left out.
    """
    uniform: dict[tuple[object, ...], tuple[Transfer, int]] = {}
    sliced: dict[tuple[tuple[object, ...], str, bool], tuple[Transfer, I64]] = {}
    out, into = np.zeros(count), np.zeros(count)
    moved = _Moved(schedule, apart)

    def add(by_rank: tuple[tuple[I64, F64], tuple[I64, F64]]) -> None:
        for side, (ranks, nbytes) in zip((out, into), by_rank, strict=True):
            side += np.bincount(owner[ranks], weights=nbytes, minlength=count)

    for op in schedule.ops:
        if not isinstance(op, Transfer):
            continue
        key: tuple[object, ...] = (op.pattern, op.src, op.dst, op.pairs)
        bundles = [schedule.bundle(v.name) for v in op.values if v.kind.owner_sends is not None]
        cut = [bundle for bundle in bundles if bundle.layout is Layout.SHARDED]
        if op.slices or (cut and len(op.values) > 1):
            if op.pattern in COMPLETE and len(schedule.group(op.src)) * len(schedule.group(op.dst)) > MOST_PAIRS:
                continue
            src, dst = moved.pairs(op)
            each = [schedule.message_bytes(op, int(a), int(b)) for a, b in zip(src, dst, strict=True)]
            nbytes = np.array(each, dtype=np.float64)
            add(((src, nbytes), (dst, nbytes)))
        elif cut:
            owners = schedule.owners(cut[0])
            ends = _slice_ends(cut[0].numel, len(owners))
            part = key, cut[0].owners, bool(op.values[0].kind.owner_sends)
            if part not in sliced:
                sliced[part] = op, np.zeros(len(owner), dtype=np.int64)
            sliced[part][1][list(owners)] += np.diff(ends) * schedule.itemsize_of(op)
        else:
            uniform[key] = op, op.nbytes + (uniform[key][1] if key in uniform else 0)
    one = np.ones(len(owner))
    for op, nbytes_of_each in uniform.values():
        add(moved.by_rank(op, float(nbytes_of_each) * one, one))
    for (_, _, owner_sends), (op, of_rank) in sliced.items():
        add(moved.by_rank(op, of_rank, one) if owner_sends else moved.by_rank(op, one, of_rank))
    return out, into


def _slice_ends(numel: int, pieces: int) -> I64:
    """Where slices begin and end, as `slice_bounds` says."""
    return np.minimum(np.arange(pieces + 1, dtype=np.int64) * -(-numel // pieces), numel)


class _Moved:
    """What ranks send and receive in transfers of `schedule`, messages between ranks that are not `apart` left out."""

    def __init__(self, schedule: Schedule, apart: I64) -> None:
        self.schedule, self.apart = schedule, apart
        self._pairs: dict[tuple[object, ...], tuple[I64, I64]] = {}

    def pairs(self, op: Transfer) -> tuple[I64, I64]:
        """Sources and destinations of the messages of `op`."""
        key = op.pattern, op.src, op.dst, op.pairs
        if key not in self._pairs:
            pairs = [(a, b) for a, b in self.schedule.pairs(op) if self.apart[a] != self.apart[b]]
            both = np.array(pairs, dtype=np.int64).reshape(-1, 2)
            self._pairs[key] = both[:, 0], both[:, 1]
        return self._pairs[key]

    def by_rank(
        self, op: Transfer, from_src: npt.NDArray[np.generic], to_dst: npt.NDArray[np.generic]
    ) -> tuple[tuple[I64, F64], tuple[I64, F64]]:
        """Ranks that send, and what they send; ranks that receive, and what they receive.

        The message from rank a to rank b has `from_src[a] * to_dst[b]` bytes.
        """
        f, g = from_src.astype(np.float64), to_dst.astype(np.float64)
        if op.pattern not in COMPLETE:
            src, dst = self.pairs(op)
            return (src, f[src] * g[dst]), (dst, f[src] * g[dst])
        src = np.array(list(self.schedule.group(op.src)), dtype=np.int64)
        dst = np.array(list(self.schedule.group(op.dst)), dtype=np.int64)
        near = [
            np.bincount(self.apart[ends], weights=size[ends], minlength=len(f)) for ends, size in ((src, f), (dst, g))
        ]
        to_others = g[dst].sum() - near[1][self.apart[src]]
        from_others = f[src].sum() - near[0][self.apart[dst]]
        return (src, f[src] * to_others), (dst, g[dst] * from_others)
