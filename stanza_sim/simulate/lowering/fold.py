"""Folding: ranks that are identical in role, device and links are simulated once.

Ranks are coloured by all that can tell them apart, and the colouring is refined until ranks of one colour have
equal numbers of partners of each colour (an equitable partition, as in colour refinement of graphs). All ranks of
one colour then do the same at the same time, so one of them stands for its class, and the loads of shared resources
are counted. This is exact, not an approximation. Where the symmetry is not proved (a fabric with links shared
between hosts, transfers of different patterns in one channel), every rank is a class of its own.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stanza_sim.cluster.cluster import Cluster
from stanza_sim.cluster.hardware import RoutingKind, kinds_of
from stanza_sim.schedule import Carrier, Collective, CollectiveKind, Layout, Pattern, Ranks, Schedule, Transfer
from stanza_sim.schedule.collectives import has_closed_form, traffic
from stanza_sim.schedule.samples import data_rank_counts
from stanza_sim.simulate.lowering.rings import members_by_host, rings_of

if TYPE_CHECKING:
    from stanza_sim.cluster.orbits import Orbits

MOST_PAIRS = 200_000
"""Beyond so many pairs of ranks on a fabric with shared links, looking for symmetry takes longer than it saves."""

Colours = npt.NDArray[np.int64]
COMPLETE = (Pattern.FAN_IN, Pattern.FAN_OUT, Pattern.ALL_PAIRS)
"""Patterns in which every rank of one group exchanges with every rank of the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Folding:
    """Classes of ranks (each ascending; its first rank stands for it) and of hosts.

    `class_of[r]` and `host_class_of[h]` are indices into `classes` and `host_classes`. `orbits` are the classes of
    links and of pairs of hosts on a fabric with shared links; without them hosts are on one switch, or nothing is
    folded. `reason` says in words why nothing is folded.
    """

    classes: tuple[Ranks, ...]
    class_of: tuple[int, ...]
    host_classes: tuple[tuple[int, ...], ...]
    host_class_of: tuple[int, ...]
    orbits: Orbits | None = None
    reason: str = ""


def unfolded(cluster: Cluster, reason: str = "") -> Folding:
    """Every rank and every host by itself."""
    n, h = cluster.world_size, len(cluster.hosts)
    return Folding(
        classes=tuple(Ranks.of(range(r, r + 1)) for r in range(n)),
        class_of=tuple(range(n)),
        host_classes=tuple((i,) for i in range(h)),
        host_class_of=tuple(range(h)),
        reason=reason,
    )


def fold(schedule: Schedule, cluster: Cluster) -> Folding:
    """Return the coarsest folding whose symmetry is proved for `schedule` on `cluster`."""
    collectives = (op for op in schedule.ops if isinstance(op, Collective))
    if (odd := next((op for op in collectives if not has_closed_form(op)), None)) is not None:
        return unfolded(cluster, f"ranks do different things in a collective by {odd.algorithm}")
    if not _channels_agree(schedule):
        return unfolded(cluster, "messages of different patterns queue in one channel")
    links = _partner_links(schedule)
    whole = not (cluster.hosts_on_one_switch or _one_rank_per_nic(cluster))
    if whole and links:
        return unfolded(cluster, "hosts have several ranks or NICs, of which each exchanges with ranks of its own")
    n = cluster.world_size
    hosts = np.array([p.host for p in cluster.placement], dtype=np.int64)
    colour: Colours = np.zeros(n, dtype=np.int64)
    features = [np.array(kinds_of(cluster.hosts))[hosts], _device_features(cluster)]
    features += [*_role_features(schedule), *_copied_features(schedule, cluster)]
    features += _crossing_features(schedule, cluster)
    if whole:  # hosts are alike as wholes: ranks on one host are told apart
        features.append(_places_on_hosts(cluster))
    for feature in features:
        colour = _refine(colour, feature)
    many_per_host = len(np.unique(hosts)) < n
    orbits: Orbits | None = None
    while True:
        before = int(colour.max())
        for pairs in links:
            colour = _refine_by_partners(colour, pairs, hosts)
        if many_per_host:
            colour = _refine_by_devices(_refine_by_hosts(colour, hosts, schedule), cluster)
        if not cluster.hosts_on_one_switch:
            orbits = _orbits(schedule, cluster, colour, hosts)
            if orbits is None:
                return unfolded(cluster, _why_no_orbits(cluster))
            if whole and not orbits.of_tree:
                return unfolded(cluster, "hosts have several ranks or NICs, and their switches are no tree")
            colour = _refine(colour, np.array(orbits.host_class)[hosts])
        if int(colour.max()) == before:
            break
    folding = _folding(cluster, colour, hosts)
    if len(folding.classes) == n:
        return unfolded(cluster, "no two ranks are alike in role, host and partners")
    return replace(folding, orbits=orbits)


def _why_no_orbits(cluster: Cluster) -> str:
    kind = cluster.fabric.routing.kind
    if kind is RoutingKind.ECMP:
        return "a hash (ecmp) chooses ways, and a hash has no symmetry"
    return f"too many pairs of hosts exchange over shared links with routing {kind} to compare them all"


def _one_rank_per_nic(cluster: Cluster) -> bool:
    """Whether each host has at most one rank, one NIC and no internal fabric: what orbits of hosts speak of."""
    hosts = {p.host for p in cluster.placement}
    alone = len(hosts) == cluster.world_size and not cluster.fabric.inside
    return alone and all(len(h.nics) <= 1 for h in cluster.hosts)


def _orbits(schedule: Schedule, cluster: Cluster, colour: Colours, hosts: Colours) -> Orbits | None:
    """Classes of hosts, links and pairs of hosts that respect `colour` and who sends to whom; None: not proved."""
    mixes: list[list[int]] = [[] for _ in cluster.hosts]
    for h, c in zip(hosts.tolist(), colour.tolist(), strict=True):
        mixes[h].append(c)
    ids: dict[tuple[int, ...], int] = {}
    by_host = [ids.setdefault(tuple(sorted(mix)), len(ids)) for mix in mixes]
    marks = _ring_marks(schedule, cluster)
    if not _partner_links(schedule):  # classes are in a group as a whole, so complete patterns cut no class of pairs
        found = cluster.host_orbits(by_host, None, marks)
        if found is not None or not marks:
            return found
    patterns: dict[tuple[object, ...], list[tuple[int, int]]] = {}
    crossings = 0
    for op in schedule.ops:
        if isinstance(op, Transfer) and (key := _pattern_key(op, schedule)) not in patterns:
            patterns[key] = [(int(hosts[a]), int(hosts[b])) for a, b in schedule.pairs(op) if a != b]
            crossings += len(patterns[key])
            if crossings > MOST_PAIRS:
                return None
    return cluster.host_orbits(by_host, patterns.values(), marks)


def _ring_marks(schedule: Schedule, cluster: Cluster) -> dict[int, tuple[tuple[int, float], ...]]:
    """What each ring puts on each link that it uses, by the number of the ring: all that a collective is to a link."""
    groups = {
        (op.ranks, op.root, op.kind is CollectiveKind.BROADCAST): op
        for op in schedule.ops
        if isinstance(op, Collective)
    }
    marks: dict[int, dict[int, float]] = defaultdict(dict)
    for number, op in enumerate(groups.values()):
        order, chain = ring_order(schedule, op), op.kind is CollectiveKind.BROADCAST
        edges = list(pairwise(order if chain else [*order, order[0]]))
        hosts = members_by_host(cluster, order)
        if len(hosts) < len(order):  # NCCL has others there
            rings = [(*ring, ring[0]) for ring in rings_of(cluster, hosts)]
            edges += [(a, b) for ring in rings for a, b in pairwise(ring) if not chain or b != op.root]
        for a, b in edges:
            src, dst = cluster.placement[a], cluster.placement[b]
            for link, share in cluster.usage(src.host, dst.host, 0, src.device, dst.device)[0]:
                marks[link][number] = marks[link].get(number, 0.0) + share
    return {link: tuple((number, round(w, 9)) for number, w in sorted(found.items())) for link, found in marks.items()}


def _refine(colour: Colours, feature: Colours) -> Colours:
    width = int(feature.max()) - int(feature.min()) + 1
    both = colour * width + (feature - feature.min())
    result: Colours = np.unique(both, return_inverse=True)[1].astype(np.int64)
    return result


def _mask(schedule: Schedule, ranks: Ranks) -> Colours:
    m = np.zeros(schedule.world_size, dtype=np.int64)
    for a, b in ranks.spans:
        m[a:b] = 1
    return m


def _device_features(cluster: Cluster) -> Colours:
    """Each rank's device by name, and how many ranks share it: identical ranks see the same share."""
    shared: dict[tuple[int, int | None], int] = defaultdict(int)
    for p in cluster.placement:
        shared[p.host, p.device] += 1
    ids: dict[tuple[str, int], int] = {}
    found = [(cluster.device_of(r), shared[p.host, p.device]) for r, p in enumerate(cluster.placement)]
    return np.array([ids.setdefault(f, len(ids)) for f in found], dtype=np.int64)


def _places_on_hosts(cluster: Cluster) -> Colours:
    """Which of its host's ranks each rank is, and on which device."""
    ids: dict[tuple[int, int | None], int] = {}
    counts = [0] * len(cluster.hosts)
    found = []
    for place in cluster.placement:
        found.append(ids.setdefault((counts[place.host], place.device), len(ids)))
        counts[place.host] += 1
    return np.array(found, dtype=np.int64)


def _role_features(schedule: Schedule) -> list[Colours]:
    features = [_mask(schedule, g.ranks) for g in schedule.groups]
    seen: set[tuple[int, str, int]] = set()
    for b in schedule.bundles:
        if b.layout is Layout.SHARDED and (b.numel, b.owners, b.replicas) not in seen:
            seen.add((b.numel, b.owners, b.replicas))
            owners = schedule.owners(b)
            sizes = np.full(schedule.world_size, -1, dtype=np.int64)
            k = schedule.pieces(b)
            size = -(-b.numel // k)
            bounds = np.minimum(np.arange(k + 1, dtype=np.int64) * size, b.numel)
            sizes[np.fromiter(owners, dtype=np.int64, count=len(owners))] = np.tile(np.diff(bounds), b.replicas)
            features.append(sizes)
    for cut in schedule.cuts:
        widths = np.full(schedule.world_size, -1, dtype=np.int64)
        for r in schedule.group(cut.ranks):
            lo, hi = schedule.features(cut, r)
            widths[r] = hi - lo
        features.append(widths)
    features += {c.tobytes(): c for c in data_rank_counts(schedule).values()}.values()
    for op in schedule.ops:
        if isinstance(op, Collective) and op.kind is CollectiveKind.BROADCAST:
            chain = ring_order(schedule, op)  # its ends differ from the rest
            features += [_mask(schedule, Ranks.of([chain[0]])), _mask(schedule, Ranks.of([chain[-1]]))]
    return features


def _copied_features(schedule: Schedule, cluster: Cluster) -> list[Colours]:
    """What each rank moves, and a staged device copies, in collectives that go step by step: slices may differ."""
    if all(host.staging is None for host in cluster.hosts):
        return []
    found: dict[tuple[object, ...], list[Colours]] = {}
    for op in schedule.ops:
        if isinstance(op, Collective) and op.by is Carrier.STEPS:
            key = (op.kind, op.ranks, op.nbytes, op.root, op.algorithm, op.local, op.chunk, op.wire)
            if key not in found:
                moved = traffic(op, schedule.group(op.ranks), schedule.itemsize_of(op))
                sides = np.full((2, schedule.world_size), -1, dtype=np.int64)
                for rank, both in moved.items():
                    sides[:, rank] = both
                found[key] = list(sides)
    return [side for sides in found.values() for side in sides]


def _crossing_features(schedule: Schedule, cluster: Cluster) -> list[Colours]:
    """Whether each rank's edges in every ring go to other hosts, where its process is limited."""
    if all(nic.transport.process_Bps is None for host in cluster.hosts for nic in host.nics):
        return []
    found: dict[object, Colours] = {}
    for op in schedule.ops:
        if isinstance(op, Collective) and (op.ranks, op.root) not in found:
            feature = found[op.ranks, op.root] = np.zeros(schedule.world_size, dtype=np.int64)
            order = ring_order(schedule, op)
            for a, b in zip(order, order[1:] + order[:1], strict=True):
                if not cluster.same_host(a, b):
                    feature[a] += 1
                    feature[b] += 2
    return list(found.values())


def ring_order(schedule: Schedule, op: Collective) -> list[int]:
    """Members of `op` in the order in which data goes round: ascending, from the root of a broadcast."""
    members = list(schedule.group(op.ranks))
    if op.root is None:
        return members
    at = members.index(op.root)
    return members[at:] + members[:at]


def _complete(op: Transfer, schedule: Schedule) -> bool:
    """Whether every source of `op` sends to every destination."""
    few = min(len(schedule.group(op.src)), len(schedule.group(op.dst)))
    return op.pattern in COMPLETE or (op.pattern is not Pattern.EXPLICIT and few == 1)


def _pattern_key(op: Transfer, schedule: Schedule) -> tuple[object, ...]:
    kind = "complete" if _complete(op, schedule) else op.pattern
    return kind, schedule.group(op.src), schedule.group(op.dst), op.pairs


def _partner_links(schedule: Schedule) -> list[list[tuple[int, int]]]:
    """Pairs of each transfer whose partners are not simply everybody, each distinct set of pairs once."""
    found: dict[tuple[object, ...], list[tuple[int, int]]] = {}
    for op in schedule.ops:
        if isinstance(op, Transfer) and not _complete(op, schedule):
            key = _pattern_key(op, schedule)
            if key not in found:
                found[key] = list(schedule.pairs(op))
    return list(found.values())


def _refine_by_partners(colour: Colours, pairs: list[tuple[int, int]], hosts: Colours) -> Colours:
    partners: list[list[tuple[int, int, int]]] = [[] for _ in colour]
    for s, d in pairs:
        near = 2 if s == d else int(hosts[s] == hosts[d])
        partners[s].append((0, int(colour[d]), near))
        partners[d].append((1, int(colour[s]), near))
    ids: dict[tuple[tuple[int, int, int], ...], int] = {}
    return _refine(colour, np.array([ids.setdefault(tuple(sorted(p)), len(ids)) for p in partners], dtype=np.int64))


def _refine_by_hosts(colour: Colours, hosts: Colours, schedule: Schedule) -> Colours:
    """Ranks of one colour need hosts with the same mix of ranks and the same place in every ring."""
    mixes: dict[int, list[int]] = defaultdict(list)
    for r, h in enumerate(hosts):
        mixes[int(h)].append(int(colour[r]))
    edges: dict[int, list[tuple[int, int]]] = defaultdict(list)
    collective_groups = {schedule.group(op.ranks) for op in schedule.ops if isinstance(op, Collective)}
    for ranks in sorted(collective_groups, key=str):
        members = list(ranks)
        out: dict[int, int] = defaultdict(int)
        into: dict[int, int] = defaultdict(int)
        for a, b in zip(members, members[1:] + members[:1], strict=True):
            if hosts[a] != hosts[b]:
                out[int(hosts[a])] += 1
                into[int(hosts[b])] += 1
        for h in mixes:
            edges[h].append((out[h], into[h]))
    ids: dict[tuple[object, ...], int] = {}
    kind = {h: ids.setdefault((tuple(sorted(mix)), tuple(edges[h])), len(ids)) for h, mix in mixes.items()}
    return _refine(colour, np.array([kind[int(h)] for h in hosts], dtype=np.int64))


def _refine_by_devices(colour: Colours, cluster: Cluster) -> Colours:
    """Ranks of one colour need devices that ranks of the same colours share."""
    mixes: dict[tuple[int, int | None], list[int]] = defaultdict(list)
    for c, p in zip(colour, cluster.placement, strict=True):
        mixes[p.host, p.device].append(int(c))
    ids: dict[tuple[int, ...], int] = {}
    kind = {at: ids.setdefault(tuple(sorted(mix)), len(ids)) for at, mix in mixes.items()}
    return _refine(colour, np.array([kind[p.host, p.device] for p in cluster.placement], dtype=np.int64))


def _channels_agree(schedule: Schedule) -> bool:
    """Whether messages of one channel between two classes are the same pairs in every op.

    Messages of one pair queue behind each other; in a folded queue all pairs of a class must have the same queue.
    """
    by_channel: dict[str, set[tuple[object, ...]]] = defaultdict(set)
    for op in schedule.ops:
        if isinstance(op, Transfer):
            by_channel[op.channel].add(_pattern_key(op, schedule))
    return all(len(keys) == 1 or all(k[0] == "complete" for k in keys) for keys in by_channel.values())


def _folding(cluster: Cluster, colour: Colours, hosts: Colours) -> Folding:
    order = np.argsort(colour, kind="stable")
    members = [Ranks.of(int(r) for r in part) for part in np.split(order, np.nonzero(np.diff(colour[order]))[0] + 1)]
    members.sort(key=lambda m: m[0])
    class_of = np.zeros(len(colour), dtype=np.int64)
    for i, m in enumerate(members):
        for a, b in m.spans:
            class_of[a:b] = i
    mixes: dict[int, list[int]] = {h: [] for h in range(len(cluster.hosts))}
    for r, h in enumerate(hosts):
        mixes[int(h)].append(int(class_of[r]))
    ids: dict[tuple[int, ...], int] = {}
    # A host without ranks takes part in nothing; they share one class.
    host_class_of = tuple(ids.setdefault(tuple(sorted(mixes[h])), len(ids)) for h in range(len(cluster.hosts)))
    groups: list[list[int]] = [[] for _ in ids]
    for h, c in enumerate(host_class_of):
        groups[c].append(h)
    return Folding(
        classes=tuple(members),
        class_of=tuple(class_of.tolist()),
        host_classes=tuple(map(tuple, groups)),
        host_class_of=host_class_of,
    )
