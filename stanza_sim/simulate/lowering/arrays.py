"""Lowering to arrays: every message of every pair of ranks as one entry, or of every pair of classes where ranks fold.

Contract: as `lower`, with the same parts. Where class c is rank c, `message_arrays` stands in for `MessageClasses`, and
prices messages by the same `MessageActivities`; where ranks are folded, `class_arrays` writes the messages of
`MessageClasses` down.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stanza_sim.cluster.cluster import Cluster
from stanza_sim.model.profile import ModelProfile
from stanza_sim.schedule import Layout, Schedule, Transfer, UnitKind
from stanza_sim.simulate.lowered import Activity, Lowered, RankClass
from stanza_sim.simulate.lowering.endpoints import Ends
from stanza_sim.simulate.lowering.fold import COMPLETE, Folding
from stanza_sim.simulate.lowering.lower import Lowering
from stanza_sim.simulate.lowering.messages import MessageActivities, Path

if TYPE_CHECKING:
    from stanza_sim.simulate.costs import CostModel

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Messages:
    """One iteration's messages in program order: arrays of one length, but for `activities`.

    `op` is the op's place in the schedule, `src` and `dst` classes of ranks, `channel` the number of a queue (pairs of
    classes that are near and those that are far have two), `nbytes` those of one message, `activity` an index
    into `activities`, whose work is not used: the work is `nbytes`. So are `copy_out` and `copy_in`, what staged
    devices copy before and after (see `Message`), -1 for nothing; they are empty where no device is staged.
    """

    op: I32
    src: I32
    dst: I32
    channel: I32
    nbytes: I64
    activity: I32
    activities: tuple[Activity, ...]
    copy_out: I32
    copy_in: I32

    def __len__(self) -> int:
        return len(self.op)

    def bytes_by_activity(self) -> list[float]:
        """Bytes of all messages of each of `activities`."""
        total = np.bincount(self.activity, weights=self.nbytes, minlength=len(self.activities))
        for copies in (self.copy_out, self.copy_in):
            there = copies >= 0
            if there.any():
                total += np.bincount(copies[there], weights=self.nbytes[there], minlength=len(self.activities))
        moved: list[float] = total.tolist()
        return moved


@dataclass(slots=True, kw_only=True)
class ArrayLowered(Lowered):
    """As `Lowered`, with all messages in arrays and none in the rank classes; `op_names` are in program order."""

    messages: Messages
    op_names: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OfOp:
    """Per rank: messages of an op that it sends and receives, those it sends to other hosts, and the bytes."""

    sent: I64
    received: I64
    far: I64
    bytes_sent: I64
    bytes_received: I64


def message_count(schedule: Schedule, size: Callable[[str], int] | None = None) -> int:
    """Messages of one iteration, local pairs included; `size` gives the number of members of a group."""
    total = 0
    for op in schedule.ops:
        if isinstance(op, Transfer):
            n, k = (len(schedule.group(end)) if size is None else size(end) for end in (op.src, op.dst))
            if op.pattern in COMPLETE:
                total += n * k
            else:
                total += max(n, k, len(op.pairs) if size is None else 0)
    return total


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sent:
    """Who sends what to whom, and how much: arrays of one length, one entry a message, in program order.

    `channel` numbers the queues, whose names are `channels`.
    """

    op: I32
    src: I32
    dst: I32
    channel: I32
    nbytes: I64
    channels: tuple[str, ...]


def message_arrays(schedule: Schedule, activities: MessageActivities) -> Messages:
    """Every message of an iteration of `schedule`; `activities` knows every rank as a class of its own."""
    sent = _sent(schedule)
    placement = activities.cluster.placement
    hosts = np.array([p.host for p in placement], dtype=np.int64)
    made: list[Activity] = []
    activity = _over_links(schedule, activities, sent, made)
    near = activity < 0
    activity[near] = _over_loopbacks(activities, hosts[sent.src[near]], sent.nbytes[near], made)
    if activities.endpoints.matter:
        activity = _with_ends(activities, sent, activity, made)
    staged = near | (hosts[sent.src] != hosts[sent.dst])
    return Messages(
        op=sent.op,
        src=sent.src,
        dst=sent.dst,
        channel=sent.channel,
        nbytes=sent.nbytes,
        activity=activity,
        copy_out=_copies(activities, sent.src, "out", staged, made),
        copy_in=_copies(activities, sent.dst, "in", staged, made),
        activities=tuple(made),
    )


def _sent(schedule: Schedule) -> _Sent:
    """The messages of all transfers; one of no bytes is not sent."""
    queues: dict[str, tuple[int, str]] = {}  # the number of a queue, and the channel that it is named after
    pairs: dict[tuple[object, ...], tuple[I32, I32]] = {}
    empty = np.zeros(0, dtype=np.int32)
    parts: list[tuple[I32, I32, I32, I32, I64]] = [(empty, empty, empty, empty, empty.astype(np.int64))]
    for index, op in enumerate(schedule.ops):
        if not isinstance(op, Transfer):
            continue
        key = (op.pattern, op.src, op.dst, op.pairs)
        if key not in pairs:
            pairs[key] = _pairs(schedule, op)
        src, dst = pairs[key]
        nbytes = _sizes(schedule, op, src, dst)
        if not nbytes.all():
            src, dst, nbytes = src[nbytes > 0], dst[nbytes > 0], nbytes[nbytes > 0]
        channel, _ = queues.setdefault(op.queue, (len(queues), op.channel))
        same = np.full(len(src), index, dtype=np.int32), np.full(len(src), channel, dtype=np.int32)
        parts.append((same[0], src, dst, same[1], nbytes))
    of_op, src, dst, channels, nbytes = (np.concatenate(x) for x in zip(*parts, strict=True))
    names = tuple(name for _, name in queues.values())
    return _Sent(op=of_op, src=src, dst=dst, channel=channels, nbytes=nbytes, channels=names)


def _pairs(schedule: Schedule, op: Transfer) -> tuple[I32, I32]:
    """Source and destination of every message of `op`, sources in ascending order."""
    if op.pattern in COMPLETE:
        a = np.fromiter(schedule.group(op.src), dtype=np.int32)
        b = np.fromiter(schedule.group(op.dst), dtype=np.int32)
        src, dst = np.repeat(a, len(b)), np.tile(b, len(a))
    else:
        both = np.array(list(schedule.pairs(op)), dtype=np.int32).reshape(-1, 2)
        src, dst = both[:, 0], both[:, 1]
    keep = src != dst
    return np.ascontiguousarray(src[keep]), np.ascontiguousarray(dst[keep])


def _sizes(schedule: Schedule, op: Transfer, src: I32, dst: I32) -> I64:
    """Bytes of every message of `op`."""
    value = op.values[0]
    if op.slices:
        ends = zip(src.tolist(), dst.tolist(), strict=True)  # Python's numbers: bytes may be more than 32 bits hold
        return np.array([schedule.message_bytes(op, a, b) for a, b in ends], dtype=np.int64)
    if (owner_sends := value.kind.owner_sends) is not None:
        bundle = schedule.bundle(value.name)
        if bundle.layout is Layout.SHARDED:
            owners = np.fromiter(schedule.owners(bundle), dtype=np.int64)
            size = -(-bundle.numel // len(owners))
            bounds = np.minimum(np.arange(len(owners) + 1, dtype=np.int64) * size, bundle.numel)
            by_rank = np.zeros(schedule.world_size, dtype=np.int64)
            by_rank[owners] = np.diff(bounds) * schedule.itemsize_of(op)
            sizes: I64 = by_rank[src if owner_sends else dst]
            return sizes
    return np.full(len(src), op.nbytes, dtype=np.int64)


def _over_links(schedule: Schedule, activities: MessageActivities, sent: _Sent, made: list[Activity]) -> I32:
    """The load over links of each message, as an index into `made`, which is extended; -1 over the loopback.

    Messages with the same two ends use the same links, but for those whose channels are hashed.
    """
    code = sent.src.astype(np.int64) * schedule.world_size + sent.dst
    if activities.hashed:
        code = code * len(sent.channels) + sent.channel
    codes, inverse = np.unique(code, return_inverse=True)
    place = np.full(len(codes), -1, dtype=np.int32)
    known: dict[Path, int] = {}
    links: dict[int, int] = {}  # each link is a resource by itself, which is looked up once
    for k, c in enumerate(codes.tolist()):
        ends, channel = divmod(c, len(sent.channels)) if activities.hashed else (c, 0)
        src, dst = divmod(ends, schedule.world_size)
        path = activities.path(src, dst, sent.channels[channel])
        if path is None:
            continue
        if path not in known:
            known[path] = len(made)
            made.append(_of_path(activities, path, links))
        place[k] = known[path]
    found: I32 = place[inverse]
    return found


def _of_path(activities: MessageActivities, path: Path, links: dict[int, int]) -> Activity:
    """As `MessageActivities.over_links` for one message of unfolded ranks: every link is on a path once.

    `links` keeps the resources of links.
    """
    usage, latency_s = path
    for q, _ in usage:
        if q not in links:
            links[q] = activities.resources.link(q)
    usage = tuple(sorted((links[q], s) for q, s in usage))
    return Activity(work=0.0, usage=usage, weight=activities.resources.link_weight, delay_s=latency_s)


def _over_loopbacks(activities: MessageActivities, host: I64, nbytes: I64, made: list[Activity]) -> I64:
    """The load of each message over the loopback of its `host`, as an index into `made`, which is extended.

    Their sizes matter, for a message costs cores so much a byte and so much by itself.
    """
    kinds, inverse = np.unique(np.stack([host, nbytes]), axis=1, return_inverse=True)
    found: I64 = len(made) + inverse.reshape(-1)
    on_host = activities.resources.on_host
    made.extend(activities.over_loopback(on_host[h][0], size, 1.0) for h, size in kinds.T.tolist())
    return found


def _with_ends(activities: MessageActivities, sent: _Sent, activity: I32, made: list[Activity]) -> I32:
    """The load of each message with what its ends take, as an index into `made`, which is extended.

    `activity` is the load of each without them. Sizes matter only where a message costs cores by itself.
    """
    endpoints = activities.endpoints
    hosts = np.array([p.host for p in activities.cluster.placement], dtype=np.int64)
    inside = np.array([endpoints.transport(r).process_inside for r in range(len(hosts))], dtype=np.bool_)
    ends = (hosts[sent.src] != hosts[sent.dst]) | inside[sent.src] | inside[sent.dst]
    size = sent.nbytes[ends] if endpoints.count_sizes else np.ones(int(ends.sum()), dtype=np.int64)
    kinds, inverse = np.unique(
        np.stack([activity[ends], sent.src[ends], sent.dst[ends], size]), axis=1, return_inverse=True
    )
    found: I32 = activity.copy()
    found[ends] = len(made) + inverse.reshape(-1)
    for bare, src, dst, nbytes in kinds.T.tolist():
        made.append(endpoints.added(made[bare], Ends(src=src, dst=dst), nbytes))
    return found


def _copies(
    activities: MessageActivities, rank: I32, side: str, staged: npt.NDArray[np.bool_], made: list[Activity]
) -> I32:
    """What each message copies at its `rank` if it is `staged`, as an index into `made`, which is extended."""
    if all(host.staging is None for host in activities.cluster.hosts):
        return np.zeros(0, dtype=np.int32)
    index = np.full(activities.cluster.world_size, -1, dtype=np.int32)
    for a in range(activities.cluster.world_size):
        activity = activities.copy(a, 1.0, side)
        if activity is not None:
            index[a] = len(made)
            made.append(activity)
    found: I32 = np.where(staged, index[rank], -1)
    return found


def class_arrays(schedule: Schedule, rank_classes: Sequence[RankClass]) -> Messages:
    """The messages of classes of ranks, as `lower` finds them: those between the same two classes are one entry."""
    place = {op.name: k for k, op in enumerate(schedule.ops)}
    queues: dict[tuple[str, int], int] = {}
    known: dict[Activity, int] = {}

    def number(activity: Activity | None) -> int:
        return -1 if activity is None else known.setdefault(replace(activity, work=0.0), len(known))

    rows: list[tuple[int, ...]] = []
    for a in rank_classes:
        for index, sent in a.messages.items():
            op = a.program.units[index].op
            for m in sent:
                channel = queues.setdefault((op.queue if isinstance(op, Transfer) else "", m.kind), len(queues))
                copies = number(m.copy_out), number(m.copy_in)
                rows.append((place[op.name], m.src, m.dst, channel, m.nbytes, number(m.activity), *copies))
    rows.sort(key=itemgetter(0))
    columns = np.array(rows, dtype=np.int64).reshape(-1, 8).T
    of_op, src, dst, channels, activity, out, into = (columns[k].astype(np.int32) for k in (0, 1, 2, 3, 5, 6, 7))
    none = np.zeros(0, dtype=np.int32)
    return Messages(
        op=of_op,
        src=src,
        dst=dst,
        channel=channels,
        nbytes=columns[4],
        activity=activity,
        copy_out=out if (out >= 0).any() else none,
        copy_in=into if (into >= 0).any() else none,
        activities=tuple(known),
    )


def _of_ops(schedule: Schedule, cluster: Cluster, messages: Messages) -> dict[str, OfOp]:
    """The counts of each transfer, by its name."""
    world = cluster.world_size
    host = np.array([p.host for p in cluster.placement], dtype=np.int64)
    bounds = np.searchsorted(messages.op, np.arange(len(schedule.ops) + 1))
    found: dict[str, OfOp] = {}
    for index, op in enumerate(schedule.ops):
        if isinstance(op, Transfer):
            part = slice(bounds[index], bounds[index + 1])
            src, dst, nbytes = messages.src[part], messages.dst[part], messages.nbytes[part]
            found[op.name] = OfOp(
                sent=np.bincount(src, minlength=world),
                received=np.bincount(dst, minlength=world),
                far=np.bincount(src, weights=host[src] != host[dst], minlength=world).astype(np.int64),
                bytes_sent=np.bincount(src, weights=nbytes, minlength=world).astype(np.int64),
                bytes_received=np.bincount(dst, weights=nbytes, minlength=world).astype(np.int64),
            )
    return found


def _rank_class(parts: Lowering, rank: int, of_ops: dict[str, OfOp]) -> RankClass:
    """The rank class of `rank`, whose messages are in arrays."""
    made = parts.rank_class(rank, with_messages=False)
    overhead_s = parts.cluster.host_of(rank).nic.overhead_s
    sends: dict[int, int] = {}
    arrivals: dict[int, int] = {}
    post_s, traffic = dict(made.post_s), dict(made.traffic)
    for u in made.program.units:
        if u.kind is UnitKind.SEND:
            of = of_ops[u.op.name]
            sends[u.index] = int(of.sent[rank])
            post_s[u.index] = overhead_s * int(of.far[rank])
            traffic[u.index] = (int(of.bytes_sent[rank]), 0)
        elif u.kind is UnitKind.RECV:
            of = of_ops[u.op.name]
            arrivals[u.index] = int(of.received[rank])
            traffic[u.index] = (0, int(of.bytes_received[rank]))
    return replace(made, sends=sends, arrivals=arrivals, post_s=post_s, traffic=traffic)


def lower_to_arrays(
    schedule: Schedule,
    model: ModelProfile,
    cluster: Cluster,
    folding: Folding,
    cost_of: Callable[[int], CostModel],
) -> ArrayLowered:
    """As `lower`, with all messages in arrays."""
    parts = Lowering(schedule, model, cluster, folding, cost_of)
    if len(folding.classes) == cluster.world_size:
        messages = message_arrays(schedule, parts.activities)
        of_ops = _of_ops(schedule, cluster, messages)
        rank_classes = [_rank_class(parts, r, of_ops) for r in range(cluster.world_size)]
    else:
        with_messages = [parts.rank_class(i) for i in range(len(folding.classes))]
        messages = class_arrays(schedule, with_messages)
        rank_classes = [replace(a, messages={}) for a in with_messages]
    collectives = parts.collectives.every()
    return ArrayLowered(
        resources=parts.resources.made,
        rank_classes=rank_classes,
        collectives=collectives,
        links=parts.resources.used_links(),
        background=parts.resources.background(),
        token_buckets=parts.resources.token_buckets(),
        wakeup_latency_s=cluster.wakeup_latency_s,
        messages=messages,
        op_names=tuple(op.name for op in schedule.ops),
    )
